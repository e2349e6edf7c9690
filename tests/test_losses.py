import dataclasses
import math
import re

import pytest
import torch
from datasets import Dataset, DatasetDict
from PIL import Image
from sentence_transformers import InputExample, SentenceTransformer, SentenceTransformerTrainer, SparseEncoder
from sentence_transformers import SentenceTransformerTrainingArguments as Arguments
from sentence_transformers.base.sampler import DefaultBatchSampler
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
from sentence_transformers.sentence_transformer.losses import (
    AdaptiveLayerLoss,
    Matryoshka2dLoss,
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
)
from sentence_transformers.sentence_transformer.modules import BoW, Dense, Dropout
from torch import nn
from torch.utils.data import DataLoader, SequentialSampler
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

from st_simcse import (
    AngularMargin,
    DimensionContrast,
    DropoutFreeNegatives,
    FocalMargin,
    GuidedNegatives,
    HardnessWeighting,
    MaskedLanguageModel,
    MomentumQueue,
    OwnNegativeWeight,
    ProjectionHead,
    RankConsistency,
    RankDistillation,
    SharedLayers,
    SimCSETrainer,
    SimCSETrainingArguments,
    SimilarityThreshold,
    SupSimCSELoss,
    UnsupSimCSELoss,
)
from st_simcse.data.views import VIEWS
from st_simcse.demo import tiny_model
from st_simcse.losses import OPTIONS, EncoderOption, Option, TermOption, check_wrappers
from st_simcse.losses.columns import Columns
from st_simcse.losses.encoder import BatchEncoder
from st_simcse.losses.lookup import looked_up_once
from st_simcse.losses.precision import ObservedPrecision
from tests.inputs import without_dropout
from tests.reference import info_nce_loop, sup_zh_loop, unsup_loop


def _weights(module):
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def _same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def _features(model, *columns):
    return [model.preprocess(list(column)) for column in columns]


def _arguments(folder, **options):
    defaults = {
        "per_device_train_batch_size": 4,
        "max_steps": 3,
        "learning_rate": 1e-3,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
    }
    return Arguments(str(folder), **(defaults | options))


@pytest.mark.parametrize("symmetric", [False, True])
def test_unsup_is_info_nce_of_two_dropout_views(model, sentences, symmetric):
    torch.manual_seed(1)
    value = UnsupSimCSELoss(model, temperature=0.1, symmetric=symmetric)(_features(model, sentences))
    first, second = _views_embedded_by_hand(model, sentences, 64)
    assert not torch.allclose(first, second)
    expected = info_nce_loop(first, second, temperature=0.1, symmetric=symmetric)
    assert value.item() == pytest.approx(expected, abs=1e-5)


def _views_embedded_by_hand(model, sentences, rows):
    """The two views, from the same random numbers: long texts first, so many rows at a time, padded to the longest."""
    torch.manual_seed(1)
    lengths = model.preprocess(sentences * 2)["attention_mask"].sum(1)
    order = lengths.argsort(descending=True, stable=True).tolist() if rows == 64 else list(range(len(lengths)))
    parts = []
    for begin in range(0, len(order), rows):
        texts = [(sentences * 2)[row] for row in order[begin : begin + rows]]
        parts.append(model(model.preprocess(texts))["sentence_embedding"])
    embeddings = torch.cat(parts)
    place = {row: position for position, row in enumerate(order)}
    return [embeddings[[place[row + offset] for row in range(len(sentences))]] for offset in (0, len(sentences))]


@pytest.mark.parametrize("mini_batch_size", [None, 3])
def test_sorting_by_length_changes_nothing(model, sentences, monkeypatch, mini_batch_size):
    """In passes of two rows, sorted by length, the columns give the loss of whole columns embedded one by one."""
    model.eval()
    monkeypatch.setattr("st_simcse.losses.encoder.ROWS_PER_PASS", 2)
    columns = [sentences, sentences[3:] + sentences[:3], ["No.", *sentences[1:]]]
    loss = SupSimCSELoss(model, mini_batch_size=mini_batch_size, mask_duplicates=False)
    value = loss(_features(model, *columns))
    with monkeypatch.context() as patch:
        patch.setattr("st_simcse.losses.encoder.merge_feature_batches", lambda columns: None)
        assert loss(_features(model, *columns)).item() == pytest.approx(value.item(), abs=1e-5)
    embeddings = [model.encode(column, convert_to_tensor=True).cpu() for column in columns]
    expected = info_nce_loop(embeddings[0], embeddings[1], embeddings[2][:, None])
    assert value.item() == pytest.approx(expected, abs=1e-4)


def test_in_mixed_precision_several_passes_cast_each_weight_once(model, sentences, monkeypatch):
    monkeypatch.setattr("st_simcse.losses.encoder.ROWS_PER_PASS", 2)
    model.eval()
    forward, inputs, gradients = model.forward, [], []
    weight = model[0].auto_model.encoder.layer[0].intermediate.dense.weight

    def in_bf16(features):  # as accelerate wraps it
        inputs.append(features["input_ids"])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = forward(features)
        return output | {"sentence_embedding": output["sentence_embedding"].float()}

    monkeypatch.setattr(model, "forward", in_bf16)
    loss = SupSimCSELoss(model, mask_duplicates=False)
    with torch.profiler.profile(record_shapes=True) as profile:
        loss(_features(model, sentences, sentences[::-1]))
    casts = [e for e in profile.events() if e.name == "aten::_to_copy" and e.input_shapes[0] == list(weight.shape)]
    assert len(inputs) > 2
    layers = len(model[0].auto_model.encoder.layer)
    assert len(casts) == layers

    for rows in (2, 64):
        monkeypatch.setattr("st_simcse.losses.encoder.ROWS_PER_PASS", rows)
        model.zero_grad()
        loss(_features(model, sentences, sentences[::-1])).backward()
        gradients.append(weight.grad.clone())
    assert torch.allclose(*gradients, atol=0.02 * gradients[0].abs().max().item())


def test_several_passes_look_the_tokens_up_once(model, sentences, monkeypatch):
    """One gradient as large as the vocabulary a batch, which is that of a single pass."""
    table = model[0].auto_model.get_input_embeddings().weight
    model.eval()
    loss, gradients = SupSimCSELoss(model, mask_duplicates=False), []
    for rows in (2, 64):
        monkeypatch.setattr("st_simcse.losses.encoder.ROWS_PER_PASS", rows)
        model.zero_grad()
        value = loss(_features(model, sentences, sentences[::-1]))
        with torch.profiler.profile(record_shapes=True) as profile:
            value.backward()
        zeros = [e for e in profile.events() if e.name == "aten::embedding_dense_backward"]
        assert sum(e.concrete_inputs[2] == len(table) for e in zeros) == 1
        gradients.append(table.grad.clone())
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-4)


def test_hooks_of_the_vocabulary_see_every_place_of_a_pass(model, sentences, monkeypatch):
    """Such as one that adds noise, which is to be another at every place."""
    monkeypatch.setattr("st_simcse.losses.encoder.ROWS_PER_PASS", 2)
    shapes = []
    table = model[0].auto_model.get_input_embeddings()
    handle = table.register_forward_hook(lambda module, inputs, output: shapes.append(output.shape[:-1]))
    SupSimCSELoss(model, mask_duplicates=False)(_features(model, sentences, sentences[::-1])).backward()
    handle.remove()
    assert len(shapes) > 2
    assert all(rows <= 2 for rows, width in shapes)


def test_one_column_equals_two_identical_columns(model, sentences):
    loss = UnsupSimCSELoss(model)
    torch.manual_seed(1)
    one = loss(_features(model, sentences))
    torch.manual_seed(1)
    two = loss(_features(model, sentences, sentences))
    assert torch.equal(one, two)


@pytest.mark.parametrize(("kind", "mini_batch_size"), [("transformer", None), ("transformer", 3), ("static", None)])
def test_equal_texts_are_no_negatives(model, static_model, sentences, kind, mini_batch_size):
    """By their tokens, in whatever column they stand, whether or not columns can be merged."""
    model = (model if kind == "transformer" else static_model).eval()
    anchors = [sentences[0], sentences[0].upper(), *sentences[2:]]  # the tokenizer lower-cases
    columns = [anchors, sentences[3:] + sentences[:3], [sentences[5], sentences[2], *sentences[2:]]]
    embeddings = [model.encode(column, convert_to_tensor=True).cpu() for column in columns]
    texts = sorted({text.lower() for column in columns for text in column})
    keys = [torch.tensor([texts.index(text.lower()) for text in column]) for column in columns]
    options = {"options": [OwnNegativeWeight(2.0)], "mini_batch_size": mini_batch_size}
    for mask_duplicates in (True, False):
        loss = SupSimCSELoss(model, mask_duplicates=mask_duplicates, **options)
        expected = info_nce_loop(
            embeddings[0], embeddings[1], embeddings[2][:, None], weight=2.0, keys=keys if mask_duplicates else None
        )
        assert loss(_features(model, *columns)).item() == pytest.approx(expected, abs=1e-4)

    repeated = [*sentences[:5], sentences[0], sentences[0], sentences[3]]
    keys = [torch.tensor([0, 1, 2, 3, 4, 0, 0, 3])] * 2
    first = model.encode(repeated, convert_to_tensor=True).cpu()
    value = UnsupSimCSELoss(model, symmetric=True, mini_batch_size=mini_batch_size)(_features(model, repeated))
    assert value.item() == pytest.approx(info_nce_loop(first, first, symmetric=True, keys=keys), abs=1e-4)


def test_similar_negatives_are_left_out_above_the_threshold(model, sentences):
    model.eval()
    embeddings = model.encode(sentences, convert_to_tensor=True).cpu()
    values = {}
    for threshold in (0.9, 0.99, 2.0):
        loss = UnsupSimCSELoss(model, temperature=1.0, options=[SimilarityThreshold(threshold)])
        values[threshold] = loss(_features(model, sentences)).item()
        expected = info_nce_loop(embeddings, embeddings, temperature=1.0, threshold=threshold)
        assert values[threshold] == pytest.approx(expected, abs=1e-4)
    assert values[0.9] < values[2.0]


def test_focal_margin_reaches_the_objective(model, sentences):
    model.eval()
    embeddings = model.encode(sentences, convert_to_tensor=True).cpu()
    value = SupSimCSELoss(model, options=[FocalMargin(0.2)], mask_duplicates=False)(
        _features(model, sentences, sentences)
    )
    assert value.item() == pytest.approx(info_nce_loop(embeddings, embeddings, focal=0.2), abs=1e-3)


@pytest.mark.parametrize("kind", ["transformer", "static"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_dropout_is_in_the_positive_pairs_alone(model, static_model, sentences, monkeypatch, kind, symmetric):
    model = model if kind == "transformer" else static_model
    monkeypatch.setattr("st_simcse.losses.encoder.ROWS_PER_PASS", 3)
    model.train()
    frozen = model[0].eval() if kind == "static" else model[0].model.encoder.eval()
    loss = UnsupSimCSELoss(model, symmetric=symmetric, projection_head=True, options=[DropoutFreeNegatives()])
    seen = []
    original = loss.compute_loss_from_embeddings
    loss.compute_loss_from_embeddings = lambda columns, *rest: seen.extend(columns) or original(columns, *rest)
    repeated = [*sentences[:6], sentences[0], sentences[3]]
    value = loss(_features(model, repeated))
    assert model.training
    assert not frozen.training
    first, second, dropout_free = (embeddings.detach().cpu() for embeddings in seen)
    similarities = torch.tensor([torch.dot(a, b) / a.norm() / b.norm() for a, b in zip(first, second, strict=True)])
    assert similarities.max() < 0.9999
    quiet = model.eval().encode(repeated, convert_to_tensor=True).clone()  # also leaves dropout out
    assert torch.allclose(loss.projection_head(quiet).detach().cpu(), dropout_free, atol=1e-5)
    keys = [torch.tensor([0, 1, 2, 3, 4, 5, 0, 3])] * 2
    expected = info_nce_loop(dropout_free, dropout_free, symmetric=symmetric, keys=keys, similarities=similarities)
    assert value.item() == pytest.approx(expected, abs=1e-4)
    gradients = torch.autograd.grad(value, seen)
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


def test_dropout_free_negatives_are_the_first_views(model, sentences):
    loss, seen = UnsupSimCSELoss(model.eval(), options=[DropoutFreeNegatives()]), []
    original = loss.compute_loss_from_embeddings
    loss.compute_loss_from_embeddings = lambda columns, *rest: seen.extend(columns) or original(columns, *rest)
    loss(_features(model, sentences, sentences[::-1]))
    first, second, dropout_free = seen
    assert torch.allclose(dropout_free, first, atol=1e-5)
    assert not torch.allclose(dropout_free, second, atol=1e-2)


def test_cached_gradients_are_not_rounded(model, sentences):
    """The backward pass from the loss to the embeddings is in float32, whatever the precision around it."""
    gradients = []
    for mini_batch_size in (None, 3):
        loss = UnsupSimCSELoss(model.eval(), mini_batch_size=mini_batch_size, options=[DimensionContrast(10.0)])
        model.zero_grad()
        terms = loss(_features(model, sentences, sentences[::-1]))
        (sum(terms.values()) if isinstance(terms, dict) else terms).backward()
        gradients.append(torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None]))
    exact, cached = gradients
    assert (exact - cached).norm() < 1e-4 * exact.norm()


def test_dropout_free_negatives_in_mini_batches_are_refused(model):
    with pytest.raises(ValueError, match="DropoutFreeNegatives cannot be combined with mini_batch_size"):
        UnsupSimCSELoss(model, mini_batch_size=3, options=[DropoutFreeNegatives()])


@pytest.mark.parametrize("supervised", [False, True])
@pytest.mark.parametrize("mini_batch_size", [None, 3])
def test_matryoshka_around_ours_is_the_sum_over_truncated_embeddings(model, sentences, supervised, mini_batch_size):
    model.eval()
    columns = [sentences, sentences[3:] + sentences[:3]]
    loss = (SupSimCSELoss if supervised else UnsupSimCSELoss)(model, mini_batch_size=mini_batch_size)
    value = MatryoshkaLoss(model, loss, [32, 16, 8], [1.0, 0.5, 2.0])(_features(model, *columns), None)
    first, second = (model.encode(column, convert_to_tensor=True).cpu() for column in columns)
    keys = [torch.arange(8), torch.arange(8).roll(-3)]
    expected = sum(
        weight * info_nce_loop(first[:, :width], second[:, :width], keys=keys)
        for width, weight in ((32, 1.0), (16, 0.5), (8, 2.0))
    )
    assert value.item() == pytest.approx(expected, abs=1e-3)
    value.backward()
    assert model[0].model.embeddings.word_embeddings.weight.grad.abs().sum() > 0


def _pooled_layers(model, texts):
    """The embeddings of every layer, the last one first, by transformers alone."""
    features = model.preprocess(texts)
    states = model[0].model(
        **{name: features[name] for name in ("input_ids", "attention_mask")}, output_hidden_states=True
    )
    weights = features["attention_mask"][:, :, None] / features["attention_mask"].sum(1)[:, None, None]
    return [(state * weights).sum(1).detach() for state in states.hidden_states[::-1]]


@pytest.mark.parametrize("kind", ["one column", "dropout-free negatives", "two columns", "triplets"])
@pytest.mark.parametrize("dimensions", [None, [32, 8]])
def test_each_layer_has_the_objective_of_its_own_embeddings(model, sentences, monkeypatch, kind, dimensions):
    """In AdaptiveLayerLoss and Matryoshka2dLoss, with dropout, and with more rows than a pass of a CPU has."""
    monkeypatch.setattr("st_simcse.losses.encoder.ROWS_PER_PASS", 2)
    shifted = [sentences[offset:] + sentences[:offset] for offset in range(3)]
    columns = {"two columns": [sentences] * 2, "triplets": shifted}.get(kind, [sentences])
    added = [DropoutFreeNegatives()] if kind == "dropout-free negatives" else []
    loss = (SupSimCSELoss if kind == "triplets" else UnsupSimCSELoss)(model, options=added, mask_duplicates=False)
    options = {"n_layers_per_step": -1, "kl_temperature": 0.0}
    if dimensions:
        wrapped = Matryoshka2dLoss(model, loss, dimensions, [1.0, 0.5], n_dims_per_step=-1, **options)
    else:
        wrapped = AdaptiveLayerLoss(model, loss, **options)
    torch.manual_seed(1)
    value = wrapped(_features(model, *columns), None)
    value.backward()
    torch.manual_seed(1)
    views = [_pooled_layers(model, column) for column in (columns * 2 if len(columns) == 1 else columns)]
    quiet = _pooled_layers(model.eval(), sentences)
    objectives = []
    for layer in range(3):
        first, second, *others = (view[layer] for view in views)
        if layer:
            assert torch.nn.functional.cosine_similarity(first, second).max() < 0.9999
        objective = 0.0
        for width, weight in zip(dimensions or [32], [1.0, 0.5], strict=False):
            a, p, *n = (embeddings[:, :width] for embeddings in (first, second, *others))
            similarities = None
            if added:
                similarities = torch.nn.functional.cosine_similarity(a, p)
                a = p = quiet[layer][:, :width]
            objective += weight * info_nce_loop(a, p, n[0][:, None] if n else None, similarities=similarities)
        objectives.append(objective)
    assert value.item() == pytest.approx(objectives[0] + (objectives[1] + objectives[2]) / 2, abs=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mini_batch_size": 4}, "AdaptiveLayerLoss .* Omit mini_batch_size"),
        ({"options": [MomentumQueue(4)]}, "MomentumQueue cannot be combined with AdaptiveLayerLoss"),
    ],
)
def test_adaptive_layers_need_the_whole_batch_and_no_queue(model, sentences, tmp_path, options, message):
    wrapped = AdaptiveLayerLoss(model, UnsupSimCSELoss(model, **options))
    with pytest.raises(ValueError, match=message):
        wrapped(_features(model, sentences), None)
    with pytest.raises(ValueError, match=message):
        SimCSETrainer(model, _arguments(tmp_path), Dataset.from_dict({"sentence": sentences}), loss=wrapped)


def test_only_the_wrappers_around_a_loss_restrict_it(model):
    """A queue does not go with AdaptiveLayerLoss, nor does AdaptiveLayerLoss with compiling in several processes."""
    queued = UnsupSimCSELoss(model, options=[MomentumQueue(4)])
    for loss in (queued, MatryoshkaLoss(model, queued, [32, 16])):
        check_wrappers(loss, compiled_in_processes=True)
    wrapped = AdaptiveLayerLoss(model, UnsupSimCSELoss(model))
    check_wrappers(wrapped)
    with pytest.raises(ValueError, match="Omit torch_compile"):
        check_wrappers(wrapped, compiled_in_processes=True)


@pytest.mark.parametrize("has_keys", [False, True])
@pytest.mark.parametrize("has_teacher", [False, True])
def test_one_process_gathers_its_own_rows(has_keys, has_teacher):
    generator = torch.Generator().manual_seed(0)
    vectors, teacher = torch.randn(2, 3, 4, 8, generator=generator).unbind()
    keys = list(torch.arange(12).view(3, 4)) if has_keys else None
    columns = Columns([*vectors], torch.rand(4, generator=generator), keys, [*teacher] if has_teacher else None)
    (batch, share), (gathered, same) = (columns.batch([], gather) for gather in (False, True))
    assert share == same == 1
    assert torch.equal(gathered.anchors, vectors[0])
    assert torch.equal(gathered.hard_negatives, vectors[2][:, None])
    assert (gathered.text_keys is not None, gathered.teacher_embeddings is not None) == (has_keys, has_teacher)
    for one, other in zip(gathered.text_keys or [], batch.text_keys or [], strict=True):
        assert torch.equal(one, other)
    for one, other in zip(gathered.teacher_embeddings or [], batch.teacher_embeddings or [], strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("option", [DropoutFreeNegatives(), RankConsistency(0.1), SharedLayers(1)], ids=repr)
def test_options_for_views_of_one_text_refuse_triplets(model, option):
    with pytest.raises(ValueError, match=f"{type(option).__name__} cannot be combined with SupSimCSELoss"):
        SupSimCSELoss(model, options=[option])


@pytest.mark.parametrize("mini_batch_size", [None, 3])
def test_matryoshka_does_not_go_with_a_head(model, sentences, mini_batch_size):
    loss = UnsupSimCSELoss(model, projection_head=True, mini_batch_size=mini_batch_size)
    with pytest.raises(ValueError, match="Omit projection_head"):
        MatryoshkaLoss(model, loss, [32, 16])(_features(model, sentences), None)
    with pytest.raises(ValueError, match="Omit projection_head"):
        check_wrappers(MatryoshkaLoss(model, loss, [32, 16]))


@pytest.mark.parametrize("supervised", [False, True])
def test_mlm_is_added_to_the_loss(model, sentences, supervised):
    model.eval()
    columns = [sentences, sentences[::-1]] if supervised else [sentences]
    kind = SupSimCSELoss if supervised else UnsupSimCSELoss
    plain = kind(model)(_features(model, *columns))
    loss = kind(model, options=[MaskedLanguageModel(0.1)]).eval()
    torch.manual_seed(3)
    parts = loss(_features(model, *columns))
    assert parts["contrastive"].item() == pytest.approx(plain.item(), abs=1e-5)
    value = sum(parts.values())
    torch.manual_seed(3)
    term = loss.terms["masked_language_model"]
    auxiliary = sum(term.from_features([features]) for features in _features(model, *columns))
    assert value.item() == pytest.approx(plain.item() + 0.1 * auxiliary.item() / len(columns), abs=1e-5)
    value.backward()
    assert all(parameter.grad is not None for parameter in loss.terms["masked_language_model"].parameters())
    with pytest.raises(ValueError, match="MaskedLanguageModel cannot be combined with mini_batch_size"):
        kind(model, options=[MaskedLanguageModel(0.1)], mini_batch_size=4)
    with pytest.raises(ValueError, match="needs a finite weight of at least 0"):
        kind(model, options=[MaskedLanguageModel(-0.1)])


@pytest.mark.parametrize("wrapper", ["dimensions", "layers"])
def test_mlm_counts_once_in_a_wrapper(model, sentences, wrapper):
    def value(mlm_weight):
        torch.manual_seed(3)
        loss = UnsupSimCSELoss(model.eval(), options=[MaskedLanguageModel(mlm_weight)]).eval()
        if wrapper == "dimensions":
            wrapped = MatryoshkaLoss(model, loss, [32, 16, 8])
        else:
            wrapped = AdaptiveLayerLoss(model, loss, n_layers_per_step=-1)
        torch.manual_seed(3)
        return wrapped(_features(model, sentences), None).item(), loss.terms["masked_language_model"]

    (plain, _), (both, masked_language_model) = value(0.0), value(0.5)
    torch.manual_seed(3)
    expected = 0.5 * masked_language_model.from_features([model.preprocess(sentences)]).item()
    assert expected > 0
    assert both - plain == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("negatives", [0, 1, 2])
def test_sup_is_info_nce_of_the_columns(model, sentences, negatives):
    model.eval()
    columns = [sentences[offset:] + sentences[:offset] for offset in range(2 + negatives)]
    value = SupSimCSELoss(model, options=[OwnNegativeWeight(2.0)], mask_duplicates=False)(_features(model, *columns))
    anchors, positives, *others = (model.encode(column, convert_to_tensor=True) for column in columns)
    expected = info_nce_loop(anchors, positives, torch.stack(others, 1) if others else None, weight=2.0)
    assert value.item() == pytest.approx(expected, abs=1e-4)


def test_unsup_without_symmetry_equals_multiple_negatives_ranking(model, sentences):
    model.eval()
    columns = [sentences, sentences[1:] + sentences[:1]]
    ours = UnsupSimCSELoss(model, mask_duplicates=False)(_features(model, *columns))
    theirs = MultipleNegativesRankingLoss(model, scale=20.0)(_features(model, *columns), None)
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)


def test_two_columns_of_different_texts_warn_once(model, sentences, caplog):
    def warnings(*columns, kind=UnsupSimCSELoss):
        caplog.clear()
        loss = kind(model, mask_duplicates=False)
        for _ in range(2):
            loss(_features(model, *columns))
        return [record.message for record in caplog.records if "SupSimCSELoss for (anchor, positive)" in record.message]

    assert len(warnings(sentences, sentences[::-1])) == 1
    assert warnings(sentences, sentences) == warnings(sentences) == []
    assert warnings(sentences, sentences[::-1], kind=SupSimCSELoss) == []


def test_columns_padded_on_the_left_embed_no_more_tokens_than_their_own(model, sentences, monkeypatch):
    """Merged, the narrow column would be padded on both sides."""
    monkeypatch.setattr("st_simcse.losses.encoder.ROWS_PER_PASS", 2)
    # Sorted by length, rows of the second column would stand among those of the first.
    columns = [
        [f"{text.split()[1]}." for text in sentences],
        [sentences[4], *(text.split()[2] for text in sentences[1:])],
    ]
    seen = []
    model[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]["input_ids"].numel()))

    def tokens(side):
        seen.clear()
        model.tokenizer.padding_side = side
        features = _features(model, *columns)
        width = sum(column["input_ids"].numel() for column in features)
        return SupSimCSELoss(model, mask_duplicates=False)(features), sum(seen), width

    model.eval()
    (left, embedded, width), (_, fewer, _) = tokens("left"), tokens("right")
    assert embedded == width
    assert fewer < width
    embeddings = []
    model.tokenizer.padding_side = "left"
    for column in columns:
        embeddings.append(model(model.preprocess(column))["sentence_embedding"].detach())
    assert left.item() == pytest.approx(info_nce_loop(*embeddings), abs=1e-4)


def test_bags_of_words_train(sentences):
    words = sorted({word for sentence in sentences for word in sentence.lower().rstrip(".").split()})
    dense = Dense(len(words), 16, activation_function=torch.nn.Identity())
    model = SentenceTransformer(modules=[BoW(words), dense, Dropout(0.1)], device="cpu").train()
    columns = [sentences, sentences[1:] + sentences[:1]]
    for loss in (UnsupSimCSELoss(model), UnsupSimCSELoss(model, options=[MomentumQueue(4)]), SupSimCSELoss(model)):
        loss(_features(model, *columns[: 1 + isinstance(loss, SupSimCSELoss)])).backward()
        assert dense.linear.weight.grad.abs().sum() > 0
    model.eval()
    theirs = MultipleNegativesRankingLoss(model)(_features(model, *columns), None)
    assert SupSimCSELoss(model)(_features(model, *columns)).item() == pytest.approx(theirs.item(), abs=1e-5)


def test_images_and_their_captions_train(model, sentences, tmp_path):
    """A CLIP of one layer: the columns have no input in common."""
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": len(model.tokenizer), "max_position_embeddings": 64, "bos_token_id": 2, "eos_token_id": 3}
    vision = {"image_size": 8, "patch_size": 4}
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text | sizes, vision_config=vision | sizes, projection_dim=16)).save_pretrained(
        tmp_path
    )
    images = CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    CLIPProcessor(images, model.tokenizer).save_pretrained(tmp_path)
    clip = SentenceTransformer(str(tmp_path), device="cpu").train()
    pictures = [Image.new("RGB", (8, 8), color) for color in ("red", "blue", "green")]
    features = [clip.preprocess(pictures), clip.preprocess(sentences[:3])]
    value = SupSimCSELoss(clip)(features)
    value.backward()
    assert clip[0].model.vision_model.embeddings.patch_embedding.weight.grad.abs().sum() > 0
    theirs = MultipleNegativesRankingLoss(clip)([dict(column) for column in features], None)
    assert value.item() == pytest.approx(theirs.item(), abs=1e-5)
    cached = SupSimCSELoss(clip, mini_batch_size=2)(features)
    assert cached.item() == pytest.approx(theirs.item(), abs=1e-5)


@pytest.mark.parametrize("loss", [UnsupSimCSELoss, SupSimCSELoss])
def test_a_sparse_encoder_is_refused(model, loss):
    """In a SpladeLoss around it options, head and masking of duplicates would not be seen."""
    with pytest.raises(ValueError, match=f"{loss.__name__} is for dense embeddings.* SpladeLoss"):
        loss(SparseEncoder(modules=list(model)))


@pytest.mark.parametrize(
    ("loss", "columns", "message"),
    [(UnsupSimCSELoss, 3, "one column of sentences or the same column twice"), (SupSimCSELoss, 1, "UnsupSimCSELoss")],
)
def test_wrong_number_of_columns(model, sentences, loss, columns, message):
    with pytest.raises(ValueError, match=message):
        loss(model)(_features(model, *[sentences] * columns))


@pytest.mark.parametrize("options", [{"temperature": 0}, {"temperature": -1}, {"mini_batch_size": 0}])
@pytest.mark.parametrize("loss", [UnsupSimCSELoss, SupSimCSELoss])
def test_bad_options(model, loss, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        loss(model, **options)
    with pytest.raises(ValueError, match="a finite weight of at least 0"):
        loss(model, options=[OwnNegativeWeight(-1)])
    with pytest.raises(ValueError, match="contains FocalMargin more than once"):
        loss(model, options=[FocalMargin(0.1), SimilarityThreshold(0.9), FocalMargin(0.2)])
    for no_option in (FocalMargin, 0.2, Option()):
        with pytest.raises(ValueError, match="is not an option"):
            loss(model, options=[no_option])


def test_a_batch_is_embedded_in_one_way(model):
    class SomeOtherWay(EncoderOption):
        def build(self, model):
            return BatchEncoder

    assert type(UnsupSimCSELoss(model, options=[SomeOtherWay()]).encoder) is BatchEncoder
    with pytest.raises(ValueError, match="SharedLayers and SomeOtherWay both change how a batch is embedded: pass"):
        UnsupSimCSELoss(model, options=[SharedLayers(1), SomeOtherWay()])


def test_missing_dropout_warns_once(model, static_model, sentences, caplog):
    def warnings(model, steps=2):
        caplog.clear()
        loss = UnsupSimCSELoss(model)
        for _ in range(steps):
            loss(_features(model, sentences))
        return [record.message for record in caplog.records if "no dropout is active" in record.message]

    assert warnings(model) == []
    assert warnings(static_model) == []
    assert len(warnings(SentenceTransformer(modules=[static_model[0]], device="cpu").train())) == 1
    assert len(warnings(model.eval())) == 1
    without_dropout(model.train())
    messages = warnings(model)
    assert len(messages) == 1
    assert "build_model(..., dropout=0.1)" in messages[0]
    with torch.no_grad():  # evaluation has no dropout by right
        assert warnings(model.eval()) == []


def test_dropout_that_changes_no_embedding_warns(model, sentences, caplog):
    without_dropout(model)[0].unused = nn.Dropout(0.1)
    UnsupSimCSELoss(model.train())(_features(model, sentences))
    assert "no dropout is active" in caplog.text


@pytest.mark.parametrize("mini_batch_size", [None, 3])
def test_head_trains_in_the_trainer_and_is_not_saved(model, sentences, tmp_path, mini_batch_size):
    loss = UnsupSimCSELoss(model, projection_head=True, mini_batch_size=mini_batch_size)
    assert isinstance(loss.projection_head, ProjectionHead)
    head, body = _weights(loss.projection_head), _weights(model)
    dataset = Dataset.from_dict({"sentence": sentences})
    SentenceTransformerTrainer(model, _arguments(tmp_path), dataset, loss=loss).train()
    assert not _same(head, _weights(loss.projection_head))
    assert not _same(body, _weights(model))

    model.save_pretrained(str(tmp_path / "saved"))
    saved = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert not any("projection" in name for name, _ in saved.named_parameters())
    before = model.encode(sentences)
    assert abs(saved.encode(sentences) - before).max() < 1e-6
    with torch.no_grad():
        loss.projection_head.dense.weight.fill_(7.0)
    assert (model.encode(sentences) == before).all()


@pytest.mark.parametrize("trainer", [SentenceTransformerTrainer, SimCSETrainer])
def test_head_gradients_are_zeroed_between_steps(model, sentences, tmp_path, trainer):
    loss = UnsupSimCSELoss(model, projection_head=True)
    dataset = Dataset.from_dict({"sentence": sentences})
    trainer(model, _arguments(tmp_path), dataset, loss=loss).train()
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in loss.projection_head.parameters())


def test_a_head_of_ones_own(model, sentences):
    loss = SupSimCSELoss(model, projection_head=torch.nn.Linear(32, 8))
    loss(_features(model, sentences, sentences)).backward()
    assert loss.projection_head.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("needs", [{"projection_head": True}, {"options": [MomentumQueue(4)]}])
def test_embeddings_of_unknown_width(model, monkeypatch, needs):
    monkeypatch.setattr(model, "get_embedding_dimension", lambda: None)
    with pytest.raises(ValueError, match="width of the embeddings is unknown.* a method get_embedding_dimension"):
        UnsupSimCSELoss(model, **needs)


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("supervised", [False, True])
def test_cached_gradients_equal_the_uncached(sentences, supervised, head):
    gradients = []
    for mini_batch_size in (None, 3):
        model = tiny_model(sentences, width=32).to("cpu").double()
        # Without dropout the two passes may differ in their random numbers, and still must agree.
        model.eval()
        torch.manual_seed(2)
        options = {"projection_head": head, "mini_batch_size": mini_batch_size}
        loss = SupSimCSELoss(model, **options) if supervised else UnsupSimCSELoss(model, **options)
        columns = [sentences, sentences[1:] + sentences[:1], sentences[2:] + sentences[:2]][: 3 if supervised else 2]
        value = loss(_features(model, *columns))
        (value * 0.25).backward()  # what gradient accumulation and loss scaling do
        gradients.append({name: p.grad for name, p in loss.named_parameters() if p.grad is not None} | {"": value})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], atol=1e-12), name


def test_only_the_second_pass_of_gradient_caching_keeps_a_graph(model, sentences):
    encoder = UnsupSimCSELoss(model, projection_head=True, mini_batch_size=3).encoder
    for with_grad in (False, True):
        rows, _ = encoder.embed_minibatch(model.preprocess(sentences), 0, 3, with_grad, copy_random_state=False)
        assert rows.requires_grad == with_grad


def test_a_loss_with_its_backward_pass_is_detached(model, sentences):
    """Gradient caching and MatryoshkaLoss add such losses up, and would keep the graph of each."""
    loss = SupSimCSELoss(model.eval())
    batch = loss.encoder.arrange(_features(model, sentences, sentences[::-1]))
    rows = torch.cat(loss.encoder.embed(batch)[0]).detach().requires_grad_()
    (expected,) = torch.autograd.grad(loss.calculate_loss([[rows]], batch), rows)
    assert not loss.calculate_loss([[rows]], batch, with_backward=True).requires_grad
    assert torch.equal(rows.grad, expected)


def test_cached_dropout_is_replayed_and_differs_between_views(model, sentences):
    """The cached gradient equals that of an uncached loss whose views are embedded mini-batch by mini-batch."""
    torch.manual_seed(1)
    cached = UnsupSimCSELoss(model, mini_batch_size=3)(_features(model, sentences))
    cached.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    views = _views_embedded_by_hand(model, sentences, 3)
    assert not torch.allclose(*views)
    cosine = torch.nn.functional.cosine_similarity(views[0][:, None], views[1][None], dim=-1)
    plain = torch.nn.functional.cross_entropy(cosine / 0.05, torch.arange(len(sentences)))
    plain.backward()
    assert cached.item() == pytest.approx(plain.item(), abs=1e-5)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert torch.allclose(gradients[name], parameter.grad, atol=1e-5), name


def test_cached_static_embedding_is_refused(static_model):
    with pytest.raises(ValueError, match="raise the batch size"):
        UnsupSimCSELoss(static_model, mini_batch_size=2)


@pytest.mark.parametrize("method", ["fit", "old_fit"])
@pytest.mark.parametrize("supervised", [False, True])
def test_fit(model, sentences, tmp_path, method, supervised, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loss = SupSimCSELoss(model) if supervised else UnsupSimCSELoss(model, projection_head=True)
    examples = [InputExample(texts=[s, s, sentences[0]][: 3 if supervised else 2]) for s in sentences]
    before = _weights(model)
    pairs = sentences[:4], sentences[4:], [0.1, 0.5, 0.7, 0.2]
    getattr(model, method)(
        [(DataLoader(examples, batch_size=4, shuffle=True), loss)],
        # old_fit compares an evaluator's score with a number, which ST's own evaluators no longer return.
        evaluator=EmbeddingSimilarityEvaluator(*pairs, main_similarity="cosine") if method == "fit" else None,
        evaluation_steps=1,
        warmup_steps=0,
        output_path=str(tmp_path / "best"),
        show_progress_bar=False,
    )
    assert not _same(before, _weights(model))
    assert SentenceTransformer(str(tmp_path / "best"), device="cpu").encode(sentences).shape == (8, 32)


@pytest.mark.parametrize("supervised", [False, True])
def test_static_embedding_trains(static_model, sentences, tmp_path, supervised):
    columns = {"anchor": sentences, "positive": sentences[1:] + sentences[:1]} if supervised else {"text": sentences}
    loss = SupSimCSELoss(static_model) if supervised else UnsupSimCSELoss(static_model, projection_head=True)
    before = _weights(static_model)
    SentenceTransformerTrainer(static_model, _arguments(tmp_path), Dataset.from_dict(columns), loss=loss).train()
    assert not _same(before, _weights(static_model))


def test_multi_dataset_training_with_evaluation_and_best_model(model, sentences, tmp_path):
    data = DatasetDict(
        unsup=Dataset.from_dict({"sentence": sentences}),
        sup=Dataset.from_dict({"anchor": sentences, "positive": sentences[::-1], "negative": [*sentences[1:], "No."]}),
    )
    losses = {"unsup": UnsupSimCSELoss(model, projection_head=True), "sup": SupSimCSELoss(model)}
    arguments = _arguments(
        tmp_path,
        max_steps=4,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_sup_loss",
    )
    trainer = SentenceTransformerTrainer(model, arguments, data, eval_dataset=data, loss=losses)
    trainer.train()
    values = [entry["eval_sup_loss"] for entry in trainer.state.log_history if "eval_sup_loss" in entry]
    assert len(values) == 2
    best = SentenceTransformer(trainer.state.best_model_checkpoint, device="cpu")
    assert trainer.state.best_metric == min(values)
    assert _same(_weights(best), _weights(model))


@pytest.mark.parametrize("mini_batch_size", [None, 2])
def test_gradient_accumulation_steps_along_the_mean_gradient(sentences, tmp_path, mini_batch_size):
    columns = {"anchor": sentences, "positive": sentences[::-1]}
    moved = []
    for trained in (True, False):
        model = without_dropout(tiny_model(sentences, width=32).to("cpu"))
        torch.manual_seed(0)
        loss = SupSimCSELoss(model, projection_head=True, mini_batch_size=mini_batch_size)
        if trained:
            arguments = _arguments(
                tmp_path,
                max_steps=1,
                gradient_accumulation_steps=2,
                optim="sgd",
                learning_rate=0.1,
                lr_scheduler_type="constant",
                max_grad_norm=0,
                batch_sampler=lambda dataset, **options: DefaultBatchSampler(SequentialSampler(dataset), **options),
            )
            SentenceTransformerTrainer(model, arguments, Dataset.from_dict(columns), loss=loss).train()
        else:
            model.train()
            for rows in (slice(0, 4), slice(4, 8)):
                (loss(_features(model, *(column[rows] for column in columns.values()))) / 2).backward()
            torch.optim.SGD(loss.parameters(), lr=0.1).step()
        moved.append(_weights(loss))
    for name, weight in moved[0].items():
        assert torch.allclose(weight, moved[1][name], atol=1e-5), name


def test_config_and_citation(model):
    unsup = UnsupSimCSELoss(model, temperature=0.1, symmetric=True, projection_head=True)
    expected = {
        "temperature": 0.1,
        "options": [],
        "symmetric": True,
        "directions": ("query_to_doc",),
        "partition_mode": "joint",
        "projection_head": True,
        "mini_batch_size": None,
        "gather_across_devices": False,
        "mask_duplicates": True,
    }
    assert unsup.get_config_dict() == expected
    sup = SupSimCSELoss(model, options=[OwnNegativeWeight(2.0)], mini_batch_size=8)
    assert sup.get_config_dict()["options"] == ["OwnNegativeWeight(weight=2.0)"]
    assert sup.get_config_dict()["mini_batch_size"] == 8


PAPERS = {
    FocalMargin: ("hou2023focal", FocalMargin(0.2)),
    AngularMargin: ("zhang2022arccse", AngularMargin(0.1)),
    HardnessWeighting: ("lan2025llave", HardnessWeighting(5.0)),
    SimilarityThreshold: (None, SimilarityThreshold(0.9)),
    OwnNegativeWeight: (None, OwnNegativeWeight(2.0)),
    GuidedNegatives: ("solatorio2024gistembed", GuidedNegatives(0.1)),
    MomentumQueue: ("wu2022esimcse", MomentumQueue(4)),
    DropoutFreeNegatives: ("xu2023simcseplusplus", DropoutFreeNegatives()),
    MaskedLanguageModel: (None, MaskedLanguageModel(0.1)),
    RankDistillation: ("liu2023rankcse", RankDistillation(1.0)),
    RankConsistency: ("liu2023rankcse", RankConsistency(1.0)),
    DimensionContrast: ("xu2023simcseplusplus", DimensionContrast(0.1)),
    SharedLayers: (None, SharedLayers(1)),
}


def test_the_citation_is_that_of_the_options_used(model):
    def cited(kind, *options):
        return re.findall(r"@\w+\{(\w+),", kind(model, options=options).citation)

    for kind in (UnsupSimCSELoss, SupSimCSELoss):
        assert cited(kind) == ["gao2021simcse"]
    for option in OPTIONS:
        paper, instance = PAPERS[option]
        kind = SupSimCSELoss if "UnsupSimCSELoss" in getattr(option, "incompatible", ()) else UnsupSimCSELoss
        assert cited(kind, instance) == ["gao2021simcse", *([paper] if paper else [])]
    together = cited(UnsupSimCSELoss, MomentumQueue(4), FocalMargin(0.2), SimilarityThreshold(0.9))
    assert together == ["gao2021simcse", "wu2022esimcse", "hou2023focal"]
    of_one_paper = DimensionContrast(0.1), DropoutFreeNegatives()
    assert cited(UnsupSimCSELoss, *of_one_paper) == ["gao2021simcse", "xu2023simcseplusplus"]


def test_model_card_names_the_loss_and_its_options(model, sentences, tmp_path):
    dataset = Dataset.from_dict({"sentence": sentences})
    loss = UnsupSimCSELoss(model, options=[FocalMargin(0.2), MaskedLanguageModel(0.1)])
    trainer = SentenceTransformerTrainer(model, _arguments(tmp_path, logging_steps=1), dataset, loss=loss)
    trainer.train()
    logged = trainer.state.log_history[0]
    parts = logged["contrastive"], logged["masked_language_model"]
    assert sum(parts) == pytest.approx(logged["loss"], abs=1e-3)
    model.save_pretrained(str(tmp_path / "saved"))
    card = (tmp_path / "saved" / "README.md").read_text()
    assert "UnsupSimCSELoss" in card
    assert "FocalMargin(margin=0.2)" in card
    assert "gao2021simcse" in card
    assert "hou2023focal" in card
    assert "wu2022esimcse" not in card


def test_non_finite_embeddings_stop_the_step(model, sentences):
    with torch.no_grad():
        model[0].model.embeddings.word_embeddings.weight[model.tokenizer.vocab["guitar"]] = float("nan")
    with pytest.raises(ValueError, match=r"row\(s\) \[0\] of 8"):
        SupSimCSELoss(model)(_features(model, sentences, sentences[1:] + sentences[:1]))


def test_dimension_contrast_is_the_cross_entropy_of_correlations():
    columns = [torch.randn(6, 4, generator=torch.Generator().manual_seed(seed)).double() for seed in range(2)]
    total = 0.0
    for c in range(4):
        correlations = [
            torch.corrcoef(torch.stack([columns[0][:, c], columns[1][:, k]]))[0, 1].item() for k in range(4)
        ]
        scores = [math.exp(correlation / 0.5) for correlation in correlations]
        total -= math.log(scores[c] / sum(scores)) / 4
    term = DimensionContrast(1.0, 0.5).build(None)
    assert term.from_embeddings(columns, None).item() == pytest.approx(total, abs=1e-4)  # of variances with 1e-5 added
    leaves = [column.requires_grad_() for column in columns]
    assert torch.autograd.gradcheck(lambda *views: term.from_embeddings(list(views), None), leaves)
    for options in ((-1.0,), (0.1, 0.0)):
        with pytest.raises(ValueError, match="DimensionContrast needs a finite (weight|temperature)"):
            DimensionContrast(*options)


_NUMBERS = [
    (option, one.name)
    for option in (*OPTIONS, *VIEWS.values())
    for one in dataclasses.fields(option)
    if one.type in ("float", "int")
]


@pytest.mark.parametrize(("option", "name"), _NUMBERS, ids=[f"{option.__name__}-{name}" for option, name in _NUMBERS])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_number_of_an_option_is_nan_or_infinite(option, name, value):
    needed = {one.name: 1 for one in dataclasses.fields(option) if one.default is dataclasses.MISSING}
    option(**needed)
    with pytest.raises(ValueError, match=f"got .*{value}"):
        option(**needed | {name: value})


@pytest.mark.parametrize("size", [0, 2.5, math.nan, math.inf])
def test_mini_batches_have_a_whole_number_of_rows(model, size):
    with pytest.raises(ValueError, match="mini_batch_size must be an integer of at least 1"):
        UnsupSimCSELoss(model, mini_batch_size=size)
    assert UnsupSimCSELoss(model, mini_batch_size=1).mini_batch_size == 1


class _Noisy(nn.Embedding):
    def forward(self, ids):
        return super().forward(ids) + torch.randn(*ids.shape, self.embedding_dim)


def _spoil(table, how, model):
    if how == "subclass":
        table.__class__ = _Noisy
    elif how == "patched forward":
        table.forward = lambda ids: nn.functional.embedding(ids, table.weight)
    elif how == "compiled in place":
        model.compile(backend="eager")
    elif how.startswith("register"):
        getattr(table, how)(lambda *call: None)
    else:
        setattr(table, how, 1.0 if how == "max_norm" else True)


@pytest.mark.parametrize(
    "how",
    [
        "register_forward_pre_hook",
        "register_forward_hook",
        "register_full_backward_pre_hook",
        "register_full_backward_hook",
        "scale_grad_by_freq",
        "sparse",
        "max_norm",
        "subclass",
        "patched forward",
        "compiled in place",
    ],
)
def test_a_vocabulary_that_does_more_than_look_up_is_left_alone(model, sentences, how):
    """Every pass looks its own tokens up, as it does outside."""
    table = model[0].model.get_input_embeddings()
    _spoil(table, how, model)
    ids = model.preprocess(sentences)["input_ids"]
    hooks = len(table._forward_hooks)
    with looked_up_once(model, ids):
        assert len(table._forward_hooks) == hooks


def test_hooks_of_the_vocabulary_see_every_pass(model, sentences):
    """Of two passes over the rows, as without the one lookup; backward hooks once a pass."""
    table, seen = model[0].model.get_input_embeddings(), []
    table.register_forward_pre_hook(lambda module, inputs: seen.append(tuple(inputs[0].shape)))
    table.register_full_backward_hook(lambda *call: seen.append("backward"))
    texts = sentences * 4
    UnsupSimCSELoss(model)([model.preprocess(texts)]).backward()
    assert sum(shape[0] for shape in seen if shape != "backward") == 2 * len(texts)
    assert seen.count("backward") == len(seen) // 2 == 2


@pytest.mark.slow
@pytest.mark.parametrize("how", ["torch.compile(model)", "model.compile()", "its transformer"])
def test_a_model_that_is_compiled_trains_to_the_same_weights(sentences, tmp_path, how):
    def trained(how):
        torch._dynamo.reset()
        model = given = tiny_model(sentences, width=32, layers=1).to("cpu")
        if how == "torch.compile(model)":
            given = torch.compile(model, backend="eager")
        elif how == "model.compile()":
            model.compile(backend="eager")
        elif how == "its transformer":
            model[0].model = torch.compile(model[0].model, backend="eager")
        torch.manual_seed(1)
        options = [MaskedLanguageModel(0.1), MomentumQueue(4)]
        arguments = SimCSETrainingArguments(
            str(tmp_path), max_steps=1, per_device_train_batch_size=8, bf16=False, use_cpu=True, report_to="none",
            save_strategy="no", prompts="A ", tokenize_once=True, views="word_repetition",
        )  # fmt: skip
        loss = UnsupSimCSELoss(given, options=options, projection_head=True)
        SimCSETrainer(given, arguments, Dataset.from_dict({"sentence": sentences}), loss=loss).train()
        return {name.replace("_orig_mod.", ""): weight for name, weight in model.state_dict().items()}

    expected, got = trained("not at all"), trained(how)
    assert got.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.allclose(got[name], weight, atol=1e-6), name
    start = tiny_model(sentences, width=32, layers=1).to("cpu").state_dict()
    assert any(not torch.equal(weight, start[name]) for name, weight in expected.items())


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"mini_batch_size": 4}, {"options": [SharedLayers(1)]}])
def test_the_losses_take_a_compiled_model(model, sentences, options):
    features = model.eval().preprocess(sentences)
    expected = UnsupSimCSELoss(model, **options)([features])
    compiled = torch.compile(model, backend="eager")
    assert UnsupSimCSELoss(compiled, **options)([features]).item() == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("trainer_class", [SimCSETrainer, SentenceTransformerTrainer])
@pytest.mark.parametrize("labels", [[0.1, 0.9] * 4, [0, 1] * 4])
def test_scored_pairs_are_no_positive_pairs(model, sentences, tmp_path, trainer_class, labels):
    """A column named label or score reaches the loss, which would take a pair of score 0 as a positive pair."""
    data = Dataset.from_dict({"sentence1": sentences, "sentence2": sentences[::-1], "score": labels})
    args = Arguments(str(tmp_path), report_to="none", max_steps=1, use_cpu=True)
    with pytest.raises(ValueError, match="SupSimCSELoss treats every row as a positive pair .* such as .* CoSENTLoss"):
        trainer_class(model, args, data, loss=SupSimCSELoss(model)).train()


def test_labels_that_tell_no_rows_apart_are_no_scores(model, sentences):
    """As model.fit gives them, which labels every InputExample."""
    loss = SupSimCSELoss(model)
    columns = [model.preprocess(texts) for texts in (sentences, sentences[::-1])]
    model.eval()
    torch.testing.assert_close(loss(columns, torch.zeros(len(sentences), dtype=torch.long)), loss(columns, None))
    row = [model.preprocess(texts[:1]) for texts in (sentences, sentences[::-1])]
    assert loss(row, torch.tensor([0.7])).item() == 0  # the only candidate is the positive


@pytest.mark.parametrize("rows", [1, 5])
def test_chinese_repositories_losses(model, rows):
    """bojone's Keras loss, and both of SimCSE-Chinese-Pytorch, are `symmetric=True` at a temperature of 1 / 20."""
    columns = [torch.randn(rows, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(n)) for n in range(3)]
    views, triplets = (torch.stack(columns[:n], dim=1).flatten(0, 1) for n in (2, 3))
    unsupervised = UnsupSimCSELoss(model, symmetric=True).compute_loss_from_embeddings(columns[:2])
    supervised = SupSimCSELoss(model, symmetric=True).compute_loss_from_embeddings(columns)
    assert float(unsupervised) == pytest.approx(unsup_loop(views, 1 / 20), abs=1e-9)
    assert float(supervised) == pytest.approx(sup_zh_loop(triplets, 1 / 20), abs=1e-9)
    paper = SupSimCSELoss(model).compute_loss_from_embeddings(columns)
    assert abs(float(paper) - float(supervised)) > 1e-3 or rows == 1


@pytest.mark.parametrize("loss", [UnsupSimCSELoss, SupSimCSELoss])
@pytest.mark.parametrize("labels", [[0.1, 0.9] * 4, [0, 1] * 4, [[0, 1]] * 8])
def test_labels_that_tell_rows_apart_are_scores(model, sentences, loss, labels):
    with pytest.raises(ValueError, match=f"{loss.name} .* such as .* CoSENTLoss"):
        loss(model)(_features(model, sentences, sentences), torch.tensor(labels))


def test_dimension_contrast_of_a_constant_dimension():
    """It correlates with nothing: the losses are log(e + 1) - 1 and log(2). A third column does not count."""
    views = torch.tensor([[1.0, 5.0], [-1.0, 5.0]])
    expected = (math.log(math.e + 1) - 1 + math.log(2)) / 2
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        columns = [views.to(dtype), views.to(dtype), torch.zeros(2, 2, dtype=dtype)]
        value = DimensionContrast(1.0, temperature=1.0).build(None).from_embeddings(columns, None)
        assert value.dtype == torch.promote_types(dtype, torch.float32)
        assert value.item() == pytest.approx(expected, abs=1e-5)


def test_a_term_of_features_counts_with_its_weight(model, sentences):
    class RowLength(TermOption):
        weight, reads_labels = 0.5, True

        def from_features(self, columns):
            return columns[0]["attention_mask"].sum(1).float().mean()

    features = model.preprocess(sentences)
    tokens = sum(map(len, model.tokenizer(sentences)["input_ids"])) / len(sentences)
    parts = UnsupSimCSELoss(model, options=[RowLength()])([features], torch.arange(8))
    assert parts["row_length"].item() == pytest.approx(0.5 * tokens)


@pytest.mark.parametrize(
    ("weights", "autocast", "expected"),
    [
        (torch.float32, None, torch.float32),
        (torch.float32, torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, None, torch.bfloat16),
        (torch.float64, None, torch.float32),
    ],
)
def test_what_runs_beside_a_model_has_its_precision(weights, autocast, expected):
    class Module(nn.Linear):
        def forward(self, features):
            return features

    module, precision = Module(2, 2, dtype=weights), ObservedPrecision()
    precision.watch(module)
    with torch.autocast("cpu", dtype=autocast or torch.bfloat16, enabled=autocast is not None):
        module({"name": "no tensor", "input_ids": torch.zeros(1, 1)})
    with precision.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == expected


def test_tokens_that_were_not_expected_are_looked_up_too(model):
    """Ids between and beyond the known ones, and ids given by keyword."""
    table = model[0].model.embeddings.word_embeddings
    with looked_up_once(model, torch.tensor([[5, 7], [7, 9]])):
        for ids in ([[7, 5, 9]], [[6]], [[0, 5]], [[10, 7]], [[table.num_embeddings - 1]]):
            assert torch.equal(table(torch.tensor(ids)), table.weight[torch.tensor(ids)])
        assert torch.equal(table(input=torch.tensor([5])), table.weight[[5]])
    with looked_up_once(model, torch.tensor([table.num_embeddings])):  # as from the tokenizer of another route
        assert torch.equal(table(torch.tensor([5])), table.weight[[5]])


def test_cached_dropout_of_a_head_is_replayed(model, sentences):
    head, outputs = nn.Sequential(nn.Linear(32, 32), nn.Dropout(0.5)), []
    head.register_forward_hook(lambda *arguments: outputs.append(arguments[-1].detach()))
    UnsupSimCSELoss(without_dropout(model), projection_head=head, mini_batch_size=16)(
        _features(model, sentences)
    ).backward()
    first, second = outputs
    assert torch.equal(first, second)


def test_a_head_with_batch_normalization_sees_the_whole_batch(model, sentences, monkeypatch):
    model, head = without_dropout(model), nn.BatchNorm1d(32)
    columns = [sentences, sentences[3:] + sentences[:3]]
    features = _features(model, *columns)
    expected = SupSimCSELoss(model, projection_head=head)([dict(column) for column in features])
    monkeypatch.setattr("st_simcse.losses.encoder.ROWS_PER_PASS", 5)
    value = SupSimCSELoss(model, projection_head=head)(features)
    assert value.item() == pytest.approx(expected.item(), abs=1e-5)
    with pytest.raises(ValueError, match="would normalize each mini-batch .* Omit mini_batch_size"):
        SupSimCSELoss(model, projection_head=nn.Sequential(nn.Linear(32, 32), head), mini_batch_size=4)


@pytest.mark.parametrize("option", [MomentumQueue(4), DimensionContrast(0.1), MaskedLanguageModel(0.1)], ids=repr)
def test_options_that_ignore_labels_leave_scored_pairs_refused(model, sentences, option):
    loss = SupSimCSELoss(model, options=[option])
    with pytest.raises(ValueError, match="treats every row as a positive pair"):
        loss(_features(model, sentences, sentences[::-1]), torch.linspace(0, 1, len(sentences)))


def test_a_term_may_read_labels(model, sentences):
    class MeanLabel(TermOption):
        weight, reads_labels = 1.0, True

        def from_embeddings(self, columns, labels):
            return labels.mean()

    labels = torch.linspace(0, 1, len(sentences))
    loss = SupSimCSELoss(model, options=[MeanLabel()])
    assert loss(_features(model, sentences, sentences[::-1]), labels)["mean_label"].item() == pytest.approx(0.5)


def test_several_functions_are_several_edits(model):
    edits = [lambda logits, tile: logits, lambda logits, tile: 2 * logits]
    assert UnsupSimCSELoss(model, options=edits).options == edits
