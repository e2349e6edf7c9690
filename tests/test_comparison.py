"""Directions, partition modes and hardness weighting against sentence-transformers' own loss, in float64."""

import math
from itertools import combinations

import pytest
import torch
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from st_simcse import SupSimCSELoss, UnsupSimCSELoss
from st_simcse.objective import Batch, Comparison, cross_entropy, info_nce
from st_simcse.objective.batch import MISSING_KEY
from st_simcse.objective.edits import HardnessWeighting
from tests.reference import info_nce_loop

OTHERS = ("query_to_query", "doc_to_query", "doc_to_doc")
JOINT = [("query_to_doc", *chosen) for number in range(4) for chosen in combinations(OTHERS, number)]


def _columns(negatives):
    generator = torch.Generator().manual_seed(0)
    shape = 7, 5
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2 + negatives)
    ]


def _same(ours, theirs, columns):
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-9)
    for gradient, expected in zip(*(torch.autograd.grad(loss, columns) for loss in (ours, theirs)), strict=True):
        assert torch.allclose(gradient, expected, atol=1e-9)


@pytest.fixture(params=["one tile", "tiles"])
def _kernel(request, monkeypatch):
    if request.param == "tiles":
        for rows in ("TILE_ROWS", "EDITED_TILE_ROWS"):
            monkeypatch.setattr(cross_entropy, rows, 5)  # cuts groups of two unless it is rounded


@pytest.mark.usefixtures("_kernel")
@pytest.mark.parametrize("negatives", [0, 1, 2])
@pytest.mark.parametrize(
    ("directions", "mode"), [(d, "joint") for d in JOINT] + [(("query_to_doc", "doc_to_query"), "per_direction")]
)
def test_directions_are_those_of_sentence_transformers(directions, mode, negatives):
    columns = _columns(negatives)
    peer = MultipleNegativesRankingLoss(None, directions=directions, partition_mode=mode)
    anchors, positives, *others = columns
    batch = Batch(anchors, positives, torch.stack(others, 1) if others else None)
    ours = info_nce(batch, comparison=Comparison(directions, mode))
    _same(ours, peer.compute_loss_from_embeddings(columns, None), columns)


@pytest.mark.usefixtures("_kernel")
@pytest.mark.parametrize("mode", ["in_batch_negatives", "hard_negatives", "all_negatives"])
def test_hardness_weighting_is_that_of_sentence_transformers(mode):
    columns = _columns(2)
    peer = MultipleNegativesRankingLoss(None, hardness_mode=mode, hardness_strength=5.0)
    ours = info_nce(Batch(columns[0], columns[1], torch.stack(columns[2:], 1)), edits=[HardnessWeighting(5.0, mode)])
    _same(ours, peer.compute_loss_from_embeddings(columns, None), columns)


@pytest.mark.usefixtures("_kernel")
def test_the_loss_of_some_rows_is_that_of_a_process_with_them():
    """The mean over two processes' rows is the loss of all rows, whatever the directions."""
    anchors, positives, negatives = _columns(1)
    whole = info_nce(Batch(anchors, positives, negatives), comparison=Comparison(JOINT[-1]))
    parts = [
        info_nce(Batch(anchors, positives, negatives, rows=rows), comparison=Comparison(JOINT[-1]))
        for rows in (slice(0, 3), slice(3, 7))
    ]
    assert (3 * parts[0] + 4 * parts[1]).item() / 7 == pytest.approx(whole.item())


def _value_and_gradients(loss, features):
    loss.model.zero_grad()
    value = loss([dict(column) for column in features], None)
    value.backward()
    return value.item(), {name: p.grad.clone() for name, p in loss.model.named_parameters() if p.grad is not None}


def _in_float64(model, sentences, count):
    model.double().eval()
    return [model.preprocess(sentences[shift:] + sentences[:shift]) for shift in range(count)]


def _equal(ours, theirs):
    (value, gradients), (expected, others) = ours, theirs
    assert value == pytest.approx(expected, abs=1e-6)
    assert gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, others[name], atol=1e-6), name


@pytest.mark.parametrize(
    ("directions", "mode"),
    [(JOINT[1], "joint"), (JOINT[2], "joint"), (JOINT[-1], "joint"), (JOINT[2], "per_direction")],
)
@pytest.mark.parametrize("columns", [2, 3])
@pytest.mark.parametrize("mini_batch_size", [None, 3])
def test_the_losses_compare_as_sentence_transformers_does(model, sentences, directions, mode, columns, mini_batch_size):
    features = _in_float64(model, sentences, columns)
    options = {"directions": directions, "partition_mode": mode}
    theirs = _value_and_gradients(MultipleNegativesRankingLoss(model, **options), features)
    for kind in (UnsupSimCSELoss, SupSimCSELoss) if columns == 2 else (SupSimCSELoss,):
        loss = kind(model, mask_duplicates=False, mini_batch_size=mini_batch_size, **options)
        _equal(_value_and_gradients(loss, features), theirs)


@pytest.mark.parametrize("columns", [2, 3])
def test_symmetric_is_the_mean_of_both_sides(model, sentences, columns):
    """Of each side sentence-transformers' loss against documents and queries, which leaves the query itself out."""
    features = _in_float64(model, sentences, columns)
    peer = MultipleNegativesRankingLoss(model, directions=("query_to_doc", "query_to_query"))
    one, gradients = _value_and_gradients(peer, features)
    other, others = _value_and_gradients(peer, [features[1], features[0], *features[2:]])
    mean = (one + other) / 2, {name: (gradient + others[name]) / 2 for name, gradient in gradients.items()}
    for kind in (UnsupSimCSELoss, SupSimCSELoss) if columns == 2 else (SupSimCSELoss,):
        _equal(_value_and_gradients(kind(model, symmetric=True, mask_duplicates=False), features), mean)


def test_duplicates_are_no_negatives_in_any_direction():
    """Two rows with the same texts: what is left of each softmax is its own pair, once a direction."""
    row = torch.randn(1, 4, dtype=torch.float64)
    keys = [torch.tensor([1, 1]), torch.tensor([2, 2])]
    batch = Batch(row.repeat(2, 1), row.repeat(2, 1), text_keys=keys)
    assert info_nce(batch, comparison=Comparison(("query_to_doc", "query_to_query"))).item() == pytest.approx(0)
    joint = info_nce(batch, comparison=Comparison(("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")))
    assert joint.item() == pytest.approx(torch.tensor(2.0).log().item())  # the pair, from both sides


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"directions": ("doc_to_query",)}, "query_to_doc contains the positive pairs"),
        ({"directions": ("query_to_doc", "doc_to_fox")}, r"unknown direction\(s\) \['doc_to_fox'\]"),
        ({"directions": JOINT[-1], "partition_mode": "per_direction"}, "Pass partition_mode='joint'"),
        ({"partition_mode": "split"}, "joint or per_direction, got 'split'"),
        ({"symmetric": True, "directions": JOINT[-1]}, "omit directions"),
        ({"symmetric": True, "partition_mode": "per_direction"}, "omit partition_mode.* pass directions="),
    ],
)
def test_comparisons_that_are_none(options, message):
    with pytest.raises(ValueError, match=message):
        Comparison(**options)


@pytest.mark.parametrize("rows", [None, range(2, 6)])
@pytest.mark.parametrize("has_similarities", [False, True])
def test_per_direction_is_the_mean_of_both_directions(rows, has_similarities):
    """Each direction leaves out equal texts, and uses the given rows and similarities."""
    anchors, positives = (column.detach() for column in _columns(0))
    similarities = torch.linspace(-0.5, 0.9, 7, dtype=torch.float64) if has_similarities else None
    keys = [torch.tensor([1, 1, 2, 3, 4, 5, 6]), torch.tensor([11, 12, 13, 14, 14, 3, 15])]
    options = {"temperature": 0.2, "rows": rows, "similarities": similarities}
    forth = info_nce_loop(anchors, positives, keys=keys, **options)
    back = info_nce_loop(positives, anchors, keys=keys[::-1], **options)
    batch = Batch(
        anchors,
        positives,
        text_keys=keys,
        positive_similarities=similarities,
        rows=slice(rows.start, rows.stop) if rows else slice(None),
    )
    both = Comparison(("query_to_doc", "doc_to_query"), "per_direction")
    assert info_nce(batch, 0.2, comparison=both).item() == pytest.approx((forth + back) / 2, abs=1e-9)
    one = Comparison(("query_to_doc",), "per_direction")
    assert info_nce(batch, 0.2, comparison=one).item() == pytest.approx(forth, abs=1e-9)


@pytest.mark.parametrize("missing", [[], [(0, 1)], [(1, 0), (1, 1), (6, 1)]])
def test_missing_hard_negatives_with_shared_negatives_and_two_directions(missing):
    anchors, positives, *negatives = (column.detach() for column in _columns(2))
    negatives, shared = torch.stack(negatives, 1), torch.randn(3, 5, dtype=torch.float64)
    keys = [torch.arange(7), torch.arange(10, 17), torch.arange(20, 34).view(7, 2), torch.arange(40, 43)]
    for place in missing:
        keys[2][place] = MISSING_KEY
    batch = Batch(anchors, positives, negatives, shared, text_keys=keys)
    value = info_nce(batch, 0.5, comparison=Comparison(("query_to_doc", "doc_to_query")))

    def exponential(first, second):
        dot = sum(x * y for x, y in zip(first.tolist(), second.tolist(), strict=True))
        return math.exp(dot / math.hypot(*first) / math.hypot(*second) / 0.5)

    present = [negatives[i, n] for i in range(7) for n in range(2) if (i, n) not in missing]
    total = 0.0
    for anchor, positive in zip(anchors, positives, strict=True):
        terms = [exponential(anchor, candidate) for candidate in (*positives, *present, *shared)]
        terms += [exponential(positive, other) for other in anchors]
        total -= math.log(exponential(anchor, positive) / sum(terms)) / 7
    assert value.item() == pytest.approx(total, abs=1e-9)
