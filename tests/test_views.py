"""Views of a text that differ by more than dropout: what they are, that they are fresh, that runs resume exactly."""

import random
import shutil
from collections import Counter
from dataclasses import fields, replace

import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from conftest import CHINESE
from st_simcse import (
    Crops,
    RankDistillation,
    SharedLayers,
    SimCSETrainer,
    SimCSETrainingArguments,
    TokenCutoff,
    UnsupSimCSELoss,
    WordRepetition,
    add_teacher_embeddings,
)
from st_simcse.cli import train
from st_simcse.data.views import VIEWS, view_collator
from st_simcse.demo import tiny_model


def test_views_are_what_they_say():
    rng, text = random.Random(0), list(range(100))
    lengths = Counter()
    for _ in range(300):
        for view in Crops(0.1, 0.5, least=12)(text, rng):
            assert view == text[view[0] : view[0] + len(view)]  # a span
            lengths[len(view)] += 1
        same, repeated = WordRepetition(0.3)(text, rng)
        assert same == text
        assert list(dict.fromkeys(repeated)) == text
        assert repeated == sorted(repeated)
        assert max(Counter(repeated).values()) <= 2
        assert len(repeated) <= 130
        for view in TokenCutoff(0.15)(text, rng):
            assert len(view) == 85
            assert view == sorted(set(view))
    assert set(lengths) == set(range(12, 51))
    for view in (Crops(), WordRepetition(), TokenCutoff(0.9)):
        assert view([], rng) == ([], [])
        assert view([7], rng)[0] == [7]
    assert Crops()(text[:5], rng) == (text[:5], text[:5])
    bad = [
        (Crops, (0, 0.5)),
        (Crops, (0.6, 0.5)),
        (Crops, (0.1, 0.5, 0)),
        (WordRepetition, (-0.1,)),
        (TokenCutoff, (1,)),
    ]
    assert set(VIEWS.values()) == {kind for kind, _ in bad}
    for kind, options in bad:
        with pytest.raises(ValueError, match="needs an? (finite|integer|shortest)"):
            kind(*options)


@pytest.fixture
def paragraphs(sentences):
    return [" ".join(sentences[place:] + sentences[:place]) for place in range(len(sentences))] * 2


@pytest.mark.parametrize("kind", ["plain", "prompts", "routes"])
def test_views_are_made_of_whole_texts_behind_the_prompt(model, paragraphs, tiny_bert, kind):
    """And cut to the length of training; both have the key of the text, whose labels stay."""
    options = {"max_length": 12}
    if kind == "prompts":
        options["prompts"] = {"text": "Two dogs: "}
    if kind == "routes":
        routes = [[Transformer(tiny_bert, max_seq_length=64), Pooling(32)] for _ in range(2)]
        model = SentenceTransformer(modules=[Router.for_query_document(*routes)], device="cpu")
        options["router_mapping"] = {"text": "document"}
    plain = SentenceTransformerDataCollator(model.preprocess, **options)
    collator = view_collator(model, plain, Crops(), seed=0)
    rows = [{"text": text, "label": number} for number, text in enumerate(paragraphs)]
    batch = collator(rows)
    assert batch["label"].tolist() == list(range(len(rows)))
    prompt = model.tokenizer("Two dogs: " if kind == "prompts" else "")["input_ids"][:-1]
    seen = set()
    for name in ("first", "second"):
        expected = plain(rows[:1])  # the same features as of texts
        features = {key.removeprefix(f"text_{name}_"): batch[key] for key in batch if key.startswith(f"text_{name}_")}
        assert features.keys() == {key.removeprefix("text_") for key in expected if key.startswith("text_")} | {
            "text_key"
        }
        for text, ids, mask in zip(paragraphs, features["input_ids"], features["attention_mask"], strict=True):
            ids, whole = ids[mask.bool()].tolist(), model.tokenizer(text)["input_ids"]
            assert len(ids) <= 12
            assert (ids[: len(prompt)], ids[-1]) == (prompt, whole[-1])
            view = ids[len(prompt) : -1]
            places = [place for place in range(len(whole)) if whole[place : place + len(view)] == view]
            assert places
            seen.update(places)
        half = len(paragraphs) // 2
        assert torch.equal(features["text_key"][:half], features["text_key"][half:])
        assert len(set(features["text_key"].tolist())) == half
        assert not torch.equal(features["input_ids"][:half], features["input_ids"][half:])  # equal texts, other views
    assert max(seen) > 30  # behind what training sees of a text that is not cropped


@pytest.mark.parametrize("name", VIEWS)
def test_views_of_chinese(chinese_bert, name):
    """Their tokens are characters: crops are spans of the text, repetition doubles some, cutoff leaves some out."""
    model = SentenceTransformer(chinese_bert, device="cpu")
    texts = ["".join(CHINESE[place:] + CHINESE[:place]) for place in range(len(CHINESE))]
    batch = view_collator(model, SentenceTransformerDataCollator(model.preprocess), VIEWS[name](), seed=0)(
        [{"text": text} for text in texts]
    )
    first, second = (
        [text.replace(" ", "") for text in model.tokenizer.batch_decode(batch[key], skip_special_tokens=True)]
        for key in ("text_first_input_ids", "text_second_input_ids")
    )
    assert first != second
    for text, one, two in zip(texts, first, second, strict=True):
        if name == "crops":
            assert one in text
            assert two in text
            assert all(8 <= len(view) <= len(text) / 2 + 1 for view in (one, two))
        elif name == "word_repetition":
            assert one == text
            left = iter(two)
            assert all(character in left for character in text)  # in their order
            assert len(text) <= len(two) <= 1.32 * len(text)
            assert set(two) == set(text)
        else:
            for view in (one, two):
                left = iter(text)
                assert all(character in left for character in view)
                assert len(view) == len(text) - round(0.15 * len(text))


def test_a_prompt_whose_space_goes_to_the_text_keeps_no_token_of_it(tiny_bert, tmp_path, sentences):
    """As the byte-level tokenizers of decoders do: the last token of a prompt depends on what follows it."""
    spaced = [text.replace(".", " .") for text in sentences]
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator(spaced, BpeTrainer(special_tokens=["[PAD]"], show_progress=False))
    folder = shutil.copytree(tiny_bert, tmp_path / "model")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]").save_pretrained(folder)
    model = SentenceTransformer(modules=[Transformer(str(folder)), Pooling(32)], device="cpu")
    assert model.tokenizer.tokenize("run: ")[-1] != model.tokenizer.tokenize("run: .")[-1]
    plain = SentenceTransformerDataCollator(model.preprocess, prompts="run: ", max_length=64)
    collator = view_collator(model, plain, Crops(shortest=0.2, longest=0.3, least=2), seed=0)
    text = " ".join(spaced[:4])
    batch = collator([{"text": text}] * 40)
    last = model.tokenizer(text)["input_ids"][-1]
    ends = [
        row[mask.bool()][-1].item()
        for name in ("first", "second")
        for row, mask in zip(batch[f"text_{name}_input_ids"], batch[f"text_{name}_attention_mask"], strict=True)
    ]
    assert 0 < ends.count(last) < len(ends) / 2


def _trainer(paragraphs, folder, **options):
    model = tiny_model(paragraphs, width=32).to("cpu")
    arguments = SimCSETrainingArguments(
        str(folder),
        **{"views": "crops", "max_length": 16, "per_device_train_batch_size": 4, "num_train_epochs": 2} | options,
        save_steps=2,
        save_total_limit=None,
        bf16=False,
        use_cpu=True,
        report_to="none",
    )
    loss = UnsupSimCSELoss(model)
    trainer = SimCSETrainer(model, arguments, Dataset.from_dict({"text": paragraphs}), loss=loss)
    seen = []
    loss.register_forward_pre_hook(lambda _, inputs: seen.append([column["input_ids"] for column in inputs[0]]))
    return trainer, seen


@pytest.mark.slow
def test_views_are_fresh_every_epoch_and_resumed_exactly(paragraphs, tmp_path, caplog):
    """In a run that was stopped in the middle of an epoch, with workers, and where texts are tokenized once."""
    whole, seen = _trainer(paragraphs, tmp_path / "whole")
    whole.train()
    assert all(len(columns) == 2 for columns in seen)
    assert not any(torch.equal(*columns) for columns in seen)
    assert "two columns have different texts" not in caplog.text
    views = [tuple(row.tolist()) for columns in seen for row in columns[1]]
    assert len(set(views)) > 16  # of 8 texts, each twice in each of 2 epochs
    assert whole.data_collator.preprocess_fn.epoch == 1
    rows = [{"text": text} for text in paragraphs]
    last = whole.data_collator(rows)["text_second_input_ids"]
    assert torch.equal(whole.data_collator(rows)["text_second_input_ids"], last)
    whole.data_collator.preprocess_fn.epoch = 0
    before = whole.data_collator(rows)["text_second_input_ids"]
    assert last.shape != before.shape or not torch.equal(last, before)
    expected = whole.model.state_dict()
    folder = tmp_path / "resumed"
    for checkpoint, options in ((6, {}), (None, {"tokenize_once": True, "dataloader_num_workers": 1})):
        again, _ = _trainer(paragraphs, folder, **options)
        again.train(resume_from_checkpoint=str(tmp_path / f"whole/checkpoint-{checkpoint}") if checkpoint else None)
        for name, weight in again.model.state_dict().items():
            assert torch.equal(weight, expected[name]), (checkpoint, name)
    for view in (Crops(least=4), "word_repetition"):
        other, _ = _trainer(paragraphs, folder, views=view)
        assert "Crops(shortest=0.1, longest=0.5, least=4)" in other.args.to_json_string() or view == "word_repetition"
        with pytest.raises(ValueError, match=r'views: "crops" -> '):
            other.train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-6"))


def test_equal_texts_are_no_negatives_whatever_their_views(paragraphs, tmp_path):
    """Two rows of one text: nothing is told apart, so that the loss is 0."""
    trainer, _ = _trainer(paragraphs, tmp_path)
    batch = trainer.data_collator([{"text": paragraphs[0]}] * 2)
    features, _ = trainer.collect_features(batch)
    assert not torch.equal(features[0]["input_ids"], features[1]["input_ids"])
    assert trainer.loss(features).item() == 0
    assert UnsupSimCSELoss(trainer.model, mask_duplicates=False)(features).item() > 0


def test_a_teacher_sees_the_texts_whose_views_are_trained(paragraphs, tmp_path):
    model = tiny_model(paragraphs, width=32).to("cpu")
    dataset = add_teacher_embeddings(Dataset.from_dict({"text": paragraphs}), tiny_model(paragraphs, width=16))
    arguments = SimCSETrainingArguments(str(tmp_path), views="crops", max_steps=1, report_to="none", use_cpu=True)
    loss = UnsupSimCSELoss(model, options=[RankDistillation(1.0)])
    assert SimCSETrainer(model, arguments, dataset, loss=loss).train().training_loss > 0


def test_what_views_do_not_go_with_is_refused(paragraphs, tmp_path, static_model):
    pairs = Dataset.from_dict({"anchor": paragraphs, "positive": paragraphs})
    one = pairs.select_columns("anchor")
    model = tiny_model(paragraphs, width=32).to("cpu")
    for options, given, data, message in (
        ({}, model, pairs, "a single column of texts, but the data has anchor, positive. Keep one"),
        ({}, static_model, one, "no attention mask"),
        (
            {"views": "mixup"},
            model,
            one,
            "views='mixup' is unknown: choose one of crops, word_repetition, token_cutoff",
        ),
        ({"dataloader_persistent_workers": True, "dataloader_num_workers": 1}, model, one, "persistent workers"),
    ):
        arguments = SimCSETrainingArguments(str(tmp_path), use_cpu=True, **{"views": "crops"} | options)
        with pytest.raises(ValueError, match=message):
            SimCSETrainer(given, arguments, data, loss=UnsupSimCSELoss(given))
    deep = tiny_model(paragraphs, width=32, layers=2).to("cpu")
    arguments = SimCSETrainingArguments(str(tmp_path), use_cpu=True, views="crops")
    with pytest.raises(ValueError, match="SharedLayers cannot be combined with views"):
        SimCSETrainer(deep, arguments, one, loss=UnsupSimCSELoss(deep, options=[SharedLayers(1)]))


def test_a_length_without_room_for_the_text_is_refused(model, sentences, tmp_path):
    """Here a tokenizer puts two tokens around a text, so that three is the least."""
    data = Dataset.from_dict({"sentence": sentences})
    for once in (False, True):
        for length in (1, 2):
            arguments = SimCSETrainingArguments(
                str(tmp_path), max_length=length, views="token_cutoff", tokenize_once=once, bf16=False
            )
            with pytest.raises(ValueError, match=rf"max_length={length} leaves no room for text, .* pass at least 3"):
                SimCSETrainer(model, arguments, data, loss=UnsupSimCSELoss(model))
            collator = SentenceTransformerDataCollator(model.preprocess, max_length=length)
            with pytest.raises(ValueError, match=rf"views of {length} tokens .* raise max_length .* to 3 or more"):
                view_collator(model, collator, "token_cutoff", seed=0)
        arguments.max_length = 3
        batch = next(iter(SimCSETrainer(model, arguments, data, loss=UnsupSimCSELoss(model)).get_train_dataloader()))
        for name in ("first", "second"):
            assert batch[f"sentence_{name}_input_ids"].shape[1] == 3


def test_the_fields_of_views_are_flags():
    """Each of every view, none of them named in the command line's own code."""
    for name, kind in VIEWS.items():
        for one in fields(kind):
            value = 3 if one.type == "int" else 0.2
            given = train.parse_train(
                ["--model_name_or_path", "tiny", "--views", name, f"--{name}_{one.name}", str(value)]
            )[-1].views
            assert given == replace(kind(), **{one.name: value})
        assert train.parse_train(["--model_name_or_path", "tiny", "--views", name])[-1].views == name
    with pytest.raises(ValueError, match="--crops_least needs --views crops: pass both, or neither"):
        train.parse_train(["--model_name_or_path", "tiny", "--views", "token_cutoff", "--crops_least", "3"])
    with pytest.raises(ValueError, match="TokenCutoff needs a finite share of at least 0 and below 1, got 2"):
        train.parse_train(["--model_name_or_path", "tiny", "--views", "token_cutoff", "--token_cutoff_share", "2"])
