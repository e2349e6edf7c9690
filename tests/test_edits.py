"""Edits against loops of their equations; FocalMargin, SimilarityThreshold and OwnNegativeWeight: test_functional."""

import math
from itertools import permutations

import pytest
import torch

from st_simcse.objective import Batch, cross_entropy, functional, info_nce, row_losses
from st_simcse.objective.edits import (
    AngularMargin,
    FocalMargin,
    HardnessWeighting,
    OwnNegativeWeight,
    SimilarityThreshold,
)
from tests.reference import finite_difference


def _angular_loop(anchors, positives, temperature, margin):
    losses = []
    for i, anchor in enumerate(anchors.tolist()):
        cosines = []
        for positive in positives.tolist():
            dot = sum(a * b for a, b in zip(anchor, positive, strict=True))
            cosines.append(dot / math.hypot(*anchor) / math.hypot(*positive))
        own = math.cos(math.acos(cosines[i]) + margin) / temperature
        others = [math.exp(cosine / temperature) for j, cosine in enumerate(cosines) if j != i]
        losses.append(math.log(math.exp(own) + sum(others)) - own)
    return sum(losses) / len(losses)


@pytest.mark.parametrize("tiled", [False, True])
def test_angular_margin(monkeypatch, tiled):
    if tiled:
        monkeypatch.setattr(cross_entropy, "EDITED_TILE_ROWS", 2)
    generator = torch.Generator().manual_seed(0)
    anchors, positives = (torch.randn(5, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    value = info_nce(Batch(anchors.requires_grad_(), positives), 0.5, [AngularMargin(0.3)])
    assert value.item() == pytest.approx(_angular_loop(anchors, positives, 0.5, 0.3), abs=1e-9)
    value.backward()
    expected = finite_difference(lambda moved: _angular_loop(moved, positives, 0.5, 0.3), anchors.detach())
    assert torch.allclose(anchors.grad, expected, atol=1e-6)


def test_equal_views_have_finite_gradients_under_an_angular_margin():
    rows = torch.eye(3, requires_grad=True)
    info_nce(Batch(rows, rows.detach()), 1.0, [AngularMargin(0.2)]).backward()
    assert torch.isfinite(rows.grad).all()


def test_edits_can_stand_in_any_order():
    generator = torch.Generator().manual_seed(0)
    columns = [torch.randn(4, 3, generator=generator, dtype=torch.float64) for _ in range(3)]
    edits = [
        FocalMargin(0.2),
        AngularMargin(0.1),
        HardnessWeighting(2.0),
        SimilarityThreshold(-0.9),  # leaves out also negatives whose similarity and margin are below 0
        OwnNegativeWeight(3.0),
    ]
    values = [info_nce(Batch(*columns), 0.5, order).item() for order in permutations(edits)]
    assert all(value == pytest.approx(values[0], abs=1e-12) for value in values)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AngularMargin(2.0), "AngularMargin needs a finite margin of at least 0 and below 1.57"),
        (lambda: HardnessWeighting(-1.0), "at least 0, got -1.0"),
        (lambda: HardnessWeighting(1.0, "easy"), "unknown hardness mode 'easy'"),
        (lambda: OwnNegativeWeight("1"), "needs a finite weight of at least 0, got '1'"),
        (lambda: OwnNegativeWeight(math.inf), "OwnNegativeWeight needs a finite weight of at least 0, got inf"),
    ],
)
def test_values_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_an_edit_of_a_user_may_keep_its_result_for_the_gradient(monkeypatch):
    """Places are left out of a copy: exp() needs its own result again in the backward pass."""
    rows = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    keys = [torch.tensor([0, 0, 1, 2]), torch.tensor([3, 4, 5, 6])]
    batch = Batch(rows, rows.detach().flip(0), text_keys=keys)
    losses = []
    for kernel in (functional.cross_entropy, lambda problem, edits: row_losses(problem.tile(), edits).mean()):
        monkeypatch.setattr(functional, "cross_entropy", kernel)
        losses.append(info_nce(batch, 1.0, [lambda logits, tile: logits.exp()]))
    gradients = [torch.autograd.grad(loss, rows)[0] for loss in losses]
    assert torch.allclose(*gradients)


def test_a_similarity_equal_to_the_threshold_is_kept():
    rows = torch.ones(2, 1)
    assert info_nce(Batch(rows, rows), 1.0, [SimilarityThreshold(1.0)]).item() == pytest.approx(math.log(2))


def test_an_edit_computes_in_float32_under_autocast():
    """Autocast would compute the edit's matrix products in bfloat16."""
    rows, dtypes = torch.eye(3), []

    def edit(logits, tile):
        dtypes.append((tile.similarities @ tile.similarities.T).dtype)
        return logits

    with torch.autocast("cpu", dtype=torch.bfloat16):
        info_nce(Batch(rows, rows), 1.0, [edit])
    assert dtypes == [torch.float32]
