"""Rows with different numbers of hard negatives: the loss is the formula's over those that there are."""

import pyarrow as pa
import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformerTrainingArguments as Arguments
from sentence_transformers.base.sampler import NoDuplicatesBatchSampler

from st_simcse import MaskedLanguageModel, SimCSETrainer, SimCSETrainingArguments, SupSimCSELoss, UnsupSimCSELoss
from st_simcse.training.negatives import NegativesCollator, list_columns, longest_list

NUMBERS = [2, 0, 1, 3, 0, 1]


def _rows(sentences):
    """Different texts in all places."""
    texts = iter(f"{first} {second}" for first in sentences for second in sentences)
    return [
        {"anchor": next(texts), "positive": next(texts), "negatives": [next(texts) for _ in range(number)]}
        for number in NUMBERS
    ]


def _loop(model, rows, temperature):
    """The paper's equation 5 in float64, a row at a time."""

    def embed(text):
        embedding = model(model.preprocess([text]))["sentence_embedding"][0]
        return embedding / embedding.norm()

    candidates = [embed(row["positive"]) for row in rows]
    candidates += [embed(text) for row in rows for text in row["negatives"]]
    total = 0.0
    for place, row in enumerate(rows):
        logits = [embed(row["anchor"]) @ candidate / temperature for candidate in candidates]
        total = total + sum(logit.exp() for logit in logits).log() - logits[place]
    return total / len(rows)


@pytest.mark.parametrize("mini_batch_size", [None, 4])
@pytest.mark.parametrize("width", [0, 5])
def test_loss_and_gradients_are_those_of_the_negatives_that_there_are(model, sentences, mini_batch_size, width):
    model = model.double().eval()
    rows = _rows(sentences)
    expected = _loop(model, rows, 0.5)
    gradients = torch.autograd.grad(expected, list(model.parameters()), allow_unused=True)
    batch = NegativesCollator(model.preprocess, width=width)(rows)
    trainer = SimCSETrainer.__new__(SimCSETrainer)
    columns, _ = trainer.collect_features(batch)
    assert len(columns) == 2 + max(3, width)
    value = SupSimCSELoss(model, temperature=0.5, mini_batch_size=mini_batch_size)(columns)
    assert float(value.detach()) == pytest.approx(float(expected.detach()), abs=1e-10)
    value.backward()
    for (name, weight), gradient in zip(model.named_parameters(), gradients, strict=True):
        if gradient is not None:
            assert torch.allclose(weight.grad, gradient, atol=1e-10), name


@pytest.mark.parametrize("nothing", [None, []])
@pytest.mark.parametrize("rows_without", [[0, 1, 2, 3, 4, 5], [1, 3]])
def test_rows_without_negatives_in_a_batch(model, sentences, tmp_path, nothing, rows_without):
    """Also where all of a batch have none; a column of texts has the same name in another dataset."""
    rows = [row | ({"negatives": []} if place in rows_without else {}) for place, row in enumerate(_rows(sentences))]
    data = Dataset.from_list(_rows(sentences))
    trainer = SimCSETrainer(model.double().eval(), Arguments(str(tmp_path), use_cpu=True), data)
    batch = trainer.data_collator([row | {"negatives": row["negatives"] or nothing} for row in rows])
    with torch.no_grad():
        value = SupSimCSELoss(model, temperature=0.5)(trainer.collect_features(batch)[0]).item()
        assert value == pytest.approx(_loop(model, rows, 0.5).item(), abs=1e-10)
    texts = trainer.data_collator([{"anchor": "a", "positive": "dog", "negatives": "two dogs"}])
    assert torch.equal(texts["negatives_input_ids"], model.preprocess(["two dogs"])["input_ids"])


@pytest.mark.parametrize("tokenize_once", [False, True])
def test_training_takes_a_column_of_lists(model, sentences, tmp_path, tokenize_once):
    """With a prompt of the column, which is that of all its texts."""
    rows = _rows(sentences)
    data = Dataset.from_list(rows)
    arguments = SimCSETrainingArguments(
        str(tmp_path),
        max_steps=1,
        report_to="none",
        use_cpu=True,
        bf16=False,
        save_strategy="no",
        tokenize_once=tokenize_once,
        prompts={"negatives": "the woman "},
    )
    trainer = SimCSETrainer(model, arguments, data, data)
    assert type(trainer.loss) is SupSimCSELoss
    prompted = [row | {"negatives": [f"the woman {text}" for text in row["negatives"]]} for row in rows]
    with torch.no_grad():
        expected = float(_loop(model.eval(), prompted, 0.05))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-4)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    trainer.train()
    assert any(not torch.equal(weight, before[name]) for name, weight in model.named_parameters())


def test_what_does_not_go_with_lists_is_refused(model, sentences, tmp_path, monkeypatch):
    data = Dataset.from_list(_rows(sentences))

    def make(loss, dataset=data, **options):
        return SimCSETrainer(model, Arguments(str(tmp_path), use_cpu=True), dataset, loss=loss, **options)

    for loss, message in (
        (UnsupSimCSELoss(model), "needs SupSimCSELoss, got UnsupSimCSELoss"),
        (SupSimCSELoss(model, mask_duplicates=False), "needs mask_duplicates=True"),
        (SupSimCSELoss(model, options=[MaskedLanguageModel(0.1)]), "does not work with MaskedLanguageModel"),
    ):
        with pytest.raises(ValueError, match=f"The column 'negatives' with lists.*{message}"):
            make(loss)
    loss = SupSimCSELoss(model)
    with pytest.raises(ValueError, match="must come after the anchor and the positive"):
        make(loss, data.select_columns(["anchor", "negatives", "positive"]))
    for sampler in ("no_duplicates", "no_duplicates_hashed", NoDuplicatesBatchSampler):
        arguments = Arguments(str(tmp_path), use_cpu=True, batch_sampler=sampler)
        with pytest.raises(ValueError, match="'negatives' with lists.* does not look into lists.*Leave batch_sampler"):
            SimCSETrainer(model, arguments, data)
    assert longest_list([data], ["negatives"]) == 3
    with pytest.raises(ValueError, match="cannot come from a stream"):
        longest_list([data.to_iterable_dataset()], ["negatives"])
    monkeypatch.setattr(Arguments, "world_size", 2)
    assert make(loss).data_collator.width == 3


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
def test_lists_of_all_kinds_of_texts_are_lists(kind):
    columns = {"anchor": pa.array(["a"], kind), "negatives": pa.array([["b"]], pa.list_(kind))}
    assert list_columns(Dataset(pa.table(columns | {"numbers": pa.array([[1]])}))) == ["negatives"]


@pytest.mark.parametrize("empty", ["", None])
def test_an_empty_hard_negative_is_refused(model, sentences, empty):
    rows = [{"anchor": text, "positive": text, "negative_1": text, "negative_2": empty} for text in sentences]
    with pytest.raises(ValueError, match="The column 'negative_2' has an empty text.*one column of lists"):
        NegativesCollator(model.preprocess)(rows)
    with pytest.raises(ValueError, match="The column 'negatives' has an empty text"):
        NegativesCollator(model.preprocess)([{"anchor": "a", "positive": "b", "negatives": [empty]}])
