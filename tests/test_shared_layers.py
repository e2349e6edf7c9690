"""Lower layers that both views of a sentence share."""

import copy
import shutil
from contextlib import nullcontext

import pytest
import torch
from datasets import Dataset
from torch import nn
from transformers import AutoConfig, AutoModel, set_seed

from st_simcse import (
    DropoutFreeNegatives,
    RankDistillation,
    SharedLayers,
    SimCSETrainer,
    SimCSETrainingArguments,
    UnsupSimCSELoss,
    build_model,
)
from st_simcse.demo import tiny_model
from st_simcse.losses.shared_layers import SharedPass

# Texts of several lengths, one of them twice.
TEXTS = ["Two dogs run in the park.", "A cat sleeps.", "Two dogs run.", "Someone rides a horse on the beach.", "Two"]
TEXTS += ["A cat sleeps."]

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
ARCHITECTURES = {
    "bert": SIZES,
    "distilbert": {"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48},
    "mpnet": SIZES,
    "modernbert": SIZES | {"pad_token_id": 0, "local_attention": 4, "global_attn_every_n_layers": 2},
    "deberta-v2": SIZES
    | {"relative_attention": True, "position_buckets": 4, "pos_att_type": ["p2c", "c2p"], "conv_kernel_size": 3},
    "llama": SIZES | {"num_key_value_heads": 2},
    "qwen3": SIZES | {"num_key_value_heads": 2, "head_dim": 8},
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4},
    "t5": {"d_model": 32, "num_layers": 3, "num_heads": 4, "d_kv": 8, "d_ff": 48},
    "fnet": SIZES,
    "albert": SIZES | {"embedding_size": 16},
}


@pytest.fixture
def make(tiny_bert, tmp_path):
    """A SentenceTransformer of an architecture, its weights random and large enough for every layer to count."""

    def of(architecture, pooling="mean"):
        set_seed(0)
        shutil.copytree(tiny_bert, tmp_path / architecture)
        config = AutoConfig.for_model(architecture, vocab_size=64, **ARCHITECTURES[architecture])
        transformer = AutoModel.from_config(config)
        for parameter in transformer.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.2)
        transformer.save_pretrained(tmp_path / architecture)
        return build_model(str(tmp_path / architecture), pooling=pooling, device="cpu")

    return of


def _loss_and_gradients(model, *options, texts=(TEXTS,), **others):
    loss = UnsupSimCSELoss(model, 0.5, options, mask_duplicates=False, **others)
    model.zero_grad()
    value = loss([model.preprocess(column) for column in texts])
    value.backward()
    return value, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.fixture
def three_layers():
    """A tiny BERT in training mode, and its layers."""
    model = tiny_model(TEXTS, width=32, layers=3).to("cpu").train()
    return model, model[0].model.encoder.layer


class _Gap(UnsupSimCSELoss):
    """Notes how far apart the views are."""

    def compute_loss_from_embeddings(self, embeddings, *others):
        self.gap = (embeddings[0] - embeddings[1]).abs().max().item()
        return super().compute_loss_from_embeddings(embeddings, *others)


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name not in ("albert", "fnet")])
def test_without_dropout_nothing_changes(make, architecture, monkeypatch):
    """Neither the loss nor its gradients, in one pass or several, cached or not."""
    model = make(architecture).eval()
    value, gradients = _loss_and_gradients(model)
    for shared, mini_batch_size, rows_per_pass in ((1, None, 4), (2, None, 48), (2, 4, 48)):
        monkeypatch.setattr("st_simcse.losses.encoder.ROWS_PER_PASS", rows_per_pass)
        same, shared_gradients = _loss_and_gradients(model, SharedLayers(shared), mini_batch_size=mini_batch_size)
        assert same.item() == pytest.approx(value.item(), abs=1e-6)
        assert shared_gradients.keys() == gradients.keys()
        for name, gradient in gradients.items():
            assert torch.allclose(shared_gradients[name], gradient, atol=1e-6, rtol=1e-5), name


def test_lower_layers_see_a_text_once(three_layers):
    """With dropout the two views come out of the shared layers with the same bits, and differ above."""
    model, layers = three_layers
    seen = []
    for layer in layers:
        layer.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    UnsupSimCSELoss(model, options=[SharedLayers(2)])([model.preprocess(TEXTS)])
    (first, _), (second, _), (third, output) = seen[-3:]
    assert [len(first), len(second), len(third)] == [len(TEXTS), len(TEXTS), 2 * len(TEXTS)]
    assert torch.equal(third[::2], third[1::2])
    assert not any(torch.allclose(one, other) for one, other in zip(output[::2], output[1::2], strict=True))


def test_a_layer_that_is_replaced_later_is_the_one_that_runs(three_layers):
    """Adapters and compilers replace layers after the loss is built."""
    model, layers = three_layers
    loss, seen = UnsupSimCSELoss(model, options=[SharedLayers(1)]), []
    layers[0] = copy.deepcopy(layers[0])
    layers[0].register_forward_hook(lambda *call: seen.append(len(call[2])))
    loss([model.preprocess(TEXTS)])
    assert seen == [len(TEXTS)]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["whole", "cached", "checkpointed", "compiled"])
def test_dropout_that_only_shared_layers_have_makes_equal_views(three_layers, how):
    model, layers = three_layers
    for module in layers[2].modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    if how == "checkpointed":
        model.gradient_checkpointing_enable()
    features = model.preprocess(TEXTS)
    gaps = []
    for options in ([], [SharedLayers(2)], []):
        loss = _Gap(model, options=options, mini_batch_size=4 if how == "cached" else None)
        if how == "compiled":
            loss.model = torch.compile(model, backend="aot_eager")
        loss([features]).backward()
        gaps.append(loss.gap)
    assert gaps[1] < 1e-5 < 0.1 < min(gaps[0], gaps[2])


@pytest.mark.parametrize("how", ["cached", "checkpointed", "checkpointed with reentry"])
def test_computing_twice_draws_the_same_masks(three_layers, how, monkeypatch):
    """Gradients with dropout are those of passes of as many rows, computed once."""
    monkeypatch.setattr("st_simcse.losses.encoder.ROWS_PER_PASS", 4)
    model, _ = three_layers
    texts = sorted(TEXTS, key=lambda text: -len(text.split()))  # in the order that passes are made in
    torch.manual_seed(0)
    value, gradients = _loss_and_gradients(model, SharedLayers(2), texts=[texts])
    if how != "cached":
        model.gradient_checkpointing_enable({"use_reentrant": how != "checkpointed"})
    torch.manual_seed(0)
    again, same = _loss_and_gradients(
        model, SharedLayers(2), texts=[texts], mini_batch_size=4 if how == "cached" else None
    )
    assert again.item() == pytest.approx(value.item(), abs=1e-6)
    assert all(torch.allclose(same[name], gradient, atol=1e-6) for name, gradient in gradients.items())


def test_two_columns_have_to_be_equal(three_layers, tmp_path):
    model, _ = three_layers
    values = []
    for texts in ([TEXTS], [TEXTS, TEXTS]):
        torch.manual_seed(0)
        values.append(_loss_and_gradients(model, SharedLayers(1), texts=texts)[0])
    assert torch.equal(*values)
    with pytest.raises(ValueError, match="have different texts.*would read only the first"):
        _loss_and_gradients(model, SharedLayers(1), texts=[TEXTS, TEXTS[::-1]])
    views = [model.preprocess(texts) | {"text_key": torch.arange(len(TEXTS))} for texts in (TEXTS, TEXTS[::-1])]
    with pytest.raises(ValueError, match="have different texts.*would read only the first"):
        UnsupSimCSELoss(model, options=[SharedLayers(1)])(views)
    data, arguments = Dataset.from_dict({"sentence": TEXTS}), SimCSETrainingArguments(str(tmp_path), views="crops")
    with pytest.raises(ValueError, match="SharedLayers cannot be combined with views"):
        SimCSETrainer(model, arguments, data, loss=UnsupSimCSELoss(model, options=[SharedLayers(1)]))


@pytest.mark.parametrize(("layers", "shared"), [(1, 1), (2.0, 2), (0.5, 3), (0.25, 2), (0.75, 4), (5, 5)])
def test_a_share_of_six_layers(layers, shared):
    loss = UnsupSimCSELoss(tiny_model(TEXTS, width=16, layers=6), options=[SharedLayers(layers)])
    assert len(loss.encoder.sharing.lower) == shared


@pytest.mark.parametrize("layers", [0, -1, 1.5, float("nan"), float("inf"), "0.5"])
def test_neither_a_number_nor_a_share(layers):
    with pytest.raises(ValueError, match="an integer of at least 1 or a share|a finite layers above 0"):
        SharedLayers(layers)


def test_what_cannot_be_shared_is_refused(three_layers, make, static_model, tiny_bert):
    model, layers = three_layers
    for number in (3, 7, 0.9, 0.1):
        with pytest.raises(ValueError, match="Choose from 1 to 2"):
            UnsupSimCSELoss(model, options=[SharedLayers(number)])
    with pytest.raises(ValueError, match="mini_batch_size must be even, got 3"):
        UnsupSimCSELoss(model, options=[SharedLayers(1)], mini_batch_size=3)
    head = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.BatchNorm1d(16))
    with pytest.raises(ValueError, match="the projection head has batch normalization"):
        UnsupSimCSELoss(model, options=[SharedLayers(1)], mini_batch_size=2, projection_head=head)
    for other in (make("albert"), static_model):
        with pytest.raises(ValueError, match="layers are one list, but .* has 0 such lists"):
            UnsupSimCSELoss(other, options=[SharedLayers(1)])
    with pytest.raises(ValueError, match="that can be sorted and split"):
        UnsupSimCSELoss(make("fnet"), options=[SharedLayers(1)])
    before = list(layers)
    with pytest.raises(ValueError, match="would change or break this model.s embeddings"):
        UnsupSimCSELoss(build_model(tiny_bert, "first_last_avg"), options=[SharedLayers(1)])
    flat = model.preprocess
    model.preprocess = lambda texts: {"input_ids": flat(texts)["input_ids"].view(1, -1), "cu_seq_lens_q": torch.ones(4)}
    with pytest.raises(ValueError, match="unpad_inputs = False"):
        UnsupSimCSELoss(model, options=[SharedLayers(1)])
    assert list(layers) == before


def test_embeddings_of_distances_are_not_taken_for_rows(make):
    """DeBERTa has 2 * position_buckets of them, as wide as hidden states: here as many as rows, as wide as texts."""
    model = make("deberta-v2").eval()
    texts = [" ".join(["dogs"] * 30), *TEXTS[:3]]
    features = model.preprocess(texts)
    rows, width = 2 * len(texts), features["input_ids"].shape[1]
    assert (rows, width) == (2 * model[0].model.config.position_buckets, model[0].model.config.hidden_size)
    value, gradients = _loss_and_gradients(model, texts=[texts])
    same, shared_gradients = _loss_and_gradients(model, SharedLayers(2), texts=[texts])
    assert same.item() == pytest.approx(value.item(), abs=1e-6)
    for name, gradient in gradients.items():
        assert torch.allclose(shared_gradients[name], gradient, atol=1e-6, rtol=1e-5), name


@pytest.mark.parametrize(
    ("dtype", "share", "is_refused"),
    [
        (torch.float32, 0.02, True),
        (torch.float32, 0.0, False),
        (torch.bfloat16, 1.0, True),
        (torch.bfloat16, 0.001, False),
    ],
)
def test_a_change_of_the_embeddings_beyond_rounding_is_refused(three_layers, dtype, share, is_refused):
    """Rows that mix with their neighbours have other neighbours if each text is there once. Lengths do not matter."""
    model, layers = three_layers
    layers[-1].output.LayerNorm.weight.data.mul_(0.01)
    layers[0].output.register_forward_hook(lambda module, inputs, output: output + share * output.roll(1, 0))
    with pytest.raises(ValueError, match="would change or break") if is_refused else nullcontext():
        UnsupSimCSELoss(model.to(dtype), options=[SharedLayers(1)])


def test_terms_and_sources_are_those_of_two_views(three_layers):
    """Without dropout, each part of the loss is that of a loss that shares no layers."""
    model, _ = three_layers
    teacher = torch.nn.functional.normalize(torch.randn(len(TEXTS), 8))
    parts = []
    for options in ([], [SharedLayers(2)]):
        loss = UnsupSimCSELoss(model.eval(), options=[*options, RankDistillation(1.0), DropoutFreeNegatives()])
        parts.append(loss([model.preprocess(TEXTS)], teacher))
    assert parts[0].keys() == parts[1].keys() == {"contrastive", "rank_distillation"}
    for name, value in parts[0].items():
        assert parts[1][name].item() == pytest.approx(value.item(), abs=1e-5), name


@pytest.mark.parametrize("by_name", [False, True])
def test_a_shared_layer_sees_what_belongs_to_the_first_row_of_each_pair(by_name):
    """Flash attention passes layers the mask of tokens. Tensors of other shapes are the same for all rows."""
    seen = {}

    class Layer(nn.Module):
        def forward(self, hidden, mask, cache=None, *, scores, distances, positions, lengths, one):
            seen.update(hidden=hidden, mask=mask, scores=scores, distances=distances)
            seen.update(positions=positions, lengths=lengths, one=one)
            return hidden + mask[:, :, None], hidden.mean(1), torch.ones(3), hidden.sum(), positions

    layers = nn.ModuleList([Layer(), Layer()])
    hidden, mask, scores = torch.randn(3, 4, 5), torch.arange(12).view(3, 4), torch.randn(3, 1, 4, 4)
    same = {
        "distances": torch.randn(6, 4),  # as many as rows and as wide as texts, but no mask
        "positions": torch.arange(4)[None],
        "lengths": torch.zeros(6, 7, dtype=torch.long),
        "one": torch.zeros(1, 4, 5),
    }
    with SharedPass(layers, 1):
        rows = [tensor.repeat_interleave(2, dim=0) for tensor in (hidden, mask, scores)]
        names = {"cache": None, "hidden": rows[0], "mask": rows[1]}
        given = ([], names) if by_name else (rows[:2], {})
        output, means, *others = layers[0](*given[0], **given[1], scores=rows[2], **same)
    for name, expected in (same | {"hidden": hidden, "mask": mask, "scores": scores}).items():
        assert torch.equal(seen[name], expected), name
    assert seen["hidden"].is_contiguous()  # otherwise query, key and value would each keep a copy
    for value, expected in ((output, hidden + mask[:, :, None]), (means, hidden.mean(1))):
        assert torch.equal(value, expected.repeat_interleave(2, dim=0))
    for value, expected in zip(others, (torch.ones(3), hidden.sum(), same["positions"]), strict=True):
        assert torch.equal(value, expected)
