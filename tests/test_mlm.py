import math
import shutil

import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

from st_simcse import (
    MaskedLanguageModel,
    MomentumQueue,
    SimCSETrainer,
    SimCSETrainingArguments,
    UnsupSimCSELoss,
    build_model,
)
from st_simcse.losses.mlm import _padded
from tests.inputs import flattened


@pytest.fixture
def checkpoint(tiny_bert, tmp_path):
    """A BERT with a prediction head that has been trained, as far as its weights tell."""
    model = AutoModelForMaskedLM.from_pretrained(tiny_bert)
    torch.nn.init.normal_(model.cls.predictions.bias)
    model.save_pretrained(tmp_path / "mlm")
    build_model(tiny_bert).tokenizer.save_pretrained(tmp_path / "mlm")
    return str(tmp_path / "mlm")


def test_the_loss_is_that_of_transformers_with_the_checkpoints_head(checkpoint, sentences):
    model = build_model(checkpoint, device="cpu").eval()
    mlm = MaskedLanguageModel(1.0, probability=0.5).build(model).eval()
    features = model.preprocess(sentences)
    torch.manual_seed(0)
    value = mlm.from_features([features])
    torch.manual_seed(0)
    ids, labels = mlm.collator.torch_mask_tokens(features["input_ids"].clone())
    theirs = AutoModelForMaskedLM.from_pretrained(checkpoint).eval()
    logits = theirs(ids, attention_mask=features["attention_mask"]).logits.double()
    chosen = labels != -100
    expected = -logits.log_softmax(-1)[chosen].gather(1, labels[chosen, None]).mean()
    assert value.item() == pytest.approx(expected.item(), abs=1e-5)
    special = torch.tensor(model.tokenizer.all_special_ids)
    assert not torch.isin(features["input_ids"][chosen], special).any()


def test_flattened_texts_do_not_see_their_neighbours(checkpoint, sentences):
    """The loss of texts in one row, as flash attention takes them, is the mean over the masked tokens of each."""
    model = build_model(checkpoint, device="cpu").eval()
    mlm = MaskedLanguageModel(1.0).build(model).eval()

    def masked(ids, **kwargs):  # the same places in every batch: words of even number
        labels = ids.masked_fill(ids % 2 == 1, -100).masked_fill(ids < 5, -100)
        return ids.masked_fill(labels != -100, model.tokenizer.mask_token_id), labels

    mlm.collator.torch_mask_tokens = masked
    values, counts = [], []
    for sentence in sentences:
        features = model.preprocess([sentence])
        counts.append(int((masked(features["input_ids"])[1] != -100).sum()))
        values.append(mlm.from_features([features]).item() * counts[-1])
    value = mlm.from_features([flattened(model, sentences)])
    assert value.item() == pytest.approx(sum(values) / sum(counts), abs=1e-5)


@pytest.mark.parametrize("bf16", [True, False])
def test_the_masked_language_model_and_the_queue_compute_as_the_model_does(model, sentences, tmp_path, bf16):
    loss = UnsupSimCSELoss(model, options=[MaskedLanguageModel(0.1), MomentumQueue(4)])
    seen = {"model": set(), "queue": set()}
    linear = "encoder.layer.0.attention.self.query"
    model[0].model.get_submodule(linear).register_forward_hook(lambda *call: seen["model"].add(call[2].dtype))
    encoder = loss.sources["momentum_queue"].encoder[0].model
    encoder.get_submodule(linear).register_forward_hook(lambda *call: seen["queue"].add(call[2].dtype))
    calls = []
    mlm = loss.terms["masked_language_model"]._whole[0]
    mlm.register_forward_hook(lambda *call: calls.append(call[2].logits.dtype))
    arguments = SimCSETrainingArguments(
        str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=4,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        bf16=bf16,
    )
    SimCSETrainer(model, arguments, Dataset.from_dict({"sentence": sentences}), loss=loss).train()
    expected = torch.bfloat16 if bf16 else torch.float32
    assert seen == {"model": {expected}, "queue": {expected}}
    assert calls == [expected]


@pytest.mark.parametrize("option", [MaskedLanguageModel(0.1), MomentumQueue(4)], ids=["term", "source"])
def test_each_of_them_alone_computes_as_the_model_does(model, sentences, option):
    """In mixed precision accelerate wraps the model's forward pass in autocast, but not the rest of the loss."""
    loss = UnsupSimCSELoss(model, options=[option])
    inside, seen = [*loss.terms.values(), *loss.sources.values()][0], []
    beside = inside.head if isinstance(option, MaskedLanguageModel) else inside.encoder
    for module in beside.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda *call: seen.append(call[2].dtype))
    model.forward = torch.autocast("cpu", dtype=torch.bfloat16)(model.forward)
    loss([model.preprocess(sentences)])
    assert set(seen) == {torch.bfloat16}


def test_fifteen_percent_are_masked(checkpoint, sentences):
    mlm = MaskedLanguageModel(1.0).build(build_model(checkpoint, device="cpu"))
    ids = mlm._whole[0].get_input_embeddings().weight.new_full((200, 50), 9, dtype=torch.long)
    _, labels = mlm.collator.torch_mask_tokens(ids)
    assert (labels != -100).float().mean().item() == pytest.approx(0.15, abs=0.02)


def test_the_transformer_is_shared_and_the_head_stays_behind(checkpoint, sentences, tmp_path):
    model = build_model(checkpoint, pooling="mean", device="cpu")
    loss = UnsupSimCSELoss(model, options=[MaskedLanguageModel(0.1)])
    head = loss.terms["masked_language_model"]
    assert head._whole[0].get_output_embeddings().weight is model[0].model.get_input_embeddings().weight
    before = {name: parameter.detach().clone() for name, parameter in loss.named_parameters()}
    arguments = SimCSETrainingArguments(
        str(tmp_path / "out"),
        max_steps=3,
        per_device_train_batch_size=8,
        learning_rate=1e-2,
        report_to="none",
        save_steps=3,
    )
    data = Dataset.from_dict({"sentence": sentences})
    trainer = SimCSETrainer(model=model, args=arguments, train_dataset=data, loss=loss)
    trainer.train()
    moved = [name for name, parameter in loss.named_parameters() if not torch.equal(before[name], parameter)]
    assert any(name.startswith("terms.masked_language_model") for name in moved)
    assert any(name.startswith("model") for name in moved)
    # The checkpoint holds the head once, and not the transformer again.
    assert not any("encoder" in name or "word_embeddings" in name for name in trainer._loss_weights())
    assert any("transform" in name for name in trainer._loss_weights())
    model.save_pretrained(str(tmp_path / "saved"))
    saved = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert {name for name, _ in saved.named_parameters()} == {name for name, _ in model.named_parameters()}


def test_a_checkpoint_that_is_gone_gives_a_new_head(model, caplog):
    MaskedLanguageModel(0.1).build(model)
    assert "masked-language-model head starts untrained" in caplog.text


@pytest.fixture
def filled_memory():
    """New memory holds NaN, as it may at any time."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("architecture", ["bert", "fnet", "longformer", "nystromformer", "data2vec-text"])
def test_a_head_that_the_checkpoint_lacks_starts_as_berts_does(
    tiny_bert, sentences, tmp_path, architecture, filled_memory
):
    """Weights from N(0, 0.02), biases 0: the loss is about the logarithm of the vocabulary's size."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    extra = {"attention_window": 8, "pad_token_id": 0} if architecture == "longformer" else {}
    shutil.copytree(tiny_bert, tmp_path / "bare")
    config = AutoConfig.for_model(architecture, vocab_size=64, **sizes, **extra)
    AutoModel.from_config(config).save_pretrained(tmp_path / "bare")
    model = build_model(str(tmp_path / "bare"), pooling="mean", device="cpu")
    mlm = MaskedLanguageModel(1.0, probability=0.5).build(model).eval()
    for name, parameter in mlm.head.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif parameter.ndim > 1:
            assert parameter.std().item() == pytest.approx(0.02, abs=0.005), name
    torch.manual_seed(0)
    assert mlm.from_features([model.preprocess(sentences)]).item() == pytest.approx(math.log(64), abs=0.2)


def test_the_share_of_masked_tokens_is_the_probability(checkpoint):
    mlm = MaskedLanguageModel(1.0, probability=0.6).build(build_model(checkpoint, device="cpu"))
    _, labels = mlm.collator.torch_mask_tokens(torch.full((200, 50), 9))
    assert (labels != -100).float().mean().item() == pytest.approx(0.6, abs=0.02)


def test_the_loss_is_zero_where_no_token_is_masked(checkpoint, sentences):
    model = build_model(checkpoint, device="cpu")
    mlm = MaskedLanguageModel(1.0).build(model)
    mlm.collator.torch_mask_tokens = lambda ids: (ids, torch.full_like(ids, -100))
    assert mlm.from_features([model.preprocess(sentences)]).item() == 0


def test_flattened_texts_become_padded_rows():
    flat = {
        "input_ids": torch.tensor([[4, 5, 6, 7, 8]]),
        "token_type_ids": torch.tensor([[1, 1, 1, 1, 1]]),
        "cu_seq_lens_q": torch.tensor([0, 3, 5]),
    }
    rows = {name: value.tolist() for name, value in _padded(flat, pad_token=2).items()}
    assert rows == {
        "input_ids": [[4, 5, 6], [7, 8, 2]],
        "token_type_ids": [[1, 1, 1], [1, 1, 0]],
        "attention_mask": [[1, 1, 1], [1, 1, 0]],
    }


def test_a_router_is_refused(model):
    router = Router.for_query_document([*model], [*model])
    with pytest.raises(ValueError, match="has a Router with several routes"):
        MaskedLanguageModel(1.0).build(SentenceTransformer(modules=[router], device="cpu"))


@pytest.mark.parametrize("lacking", ["transformer", "mask token"])
def test_a_model_that_cannot_predict_masked_tokens_is_refused(model, static_model, lacking):
    if lacking == "mask token":
        model.tokenizer.mask_token = None
    with pytest.raises(ValueError, match="needs a transformer whose tokenizer has a mask token"):
        UnsupSimCSELoss(static_model if lacking == "transformer" else model, options=[MaskedLanguageModel(0.1)])
