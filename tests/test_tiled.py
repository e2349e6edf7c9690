import pytest
import torch
from torch.overrides import TorchFunctionMode

from st_simcse.objective import Batch, Comparison, Problem, cross_entropy, functional, info_nce, row_losses
from st_simcse.objective.batch import MISSING_KEY
from tests.contrast import contrast


def _inputs(rows, width, negatives, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = [(rows, width), (rows, width)] + ([(rows, negatives, width)] if negatives else [])
    return [torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def _whole(problem, edits=()):
    """The whole matrix at once, by autograd."""
    return row_losses(problem.tile(), edits).mean()


def _value_and_gradients(inputs, *options, autocast=False):
    anchors, positives, *negatives = inputs
    # A backward pass belongs outside autocast, which would round its matrix products.
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        loss = contrast(anchors, positives, negatives[0] if negatives else None, *options)
    return loss, torch.autograd.grad(loss * 3.0, inputs)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("negatives", "weight"), [(0, 1.0), (1, 1.0), (3, 2.5), (1, 0.0)])
@pytest.mark.parametrize("rows", [slice(None), slice(100, 250)], ids=["all rows", "a process's rows"])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(("threshold", "focal"), [(None, None), (0.1, None), (0.1, 0.3)])
def test_tiled_equals_dense(monkeypatch, symmetric, negatives, weight, rows, autocast, threshold, focal):
    # Few different texts in 300 rows: many places of the matrix are left out.
    generator = torch.Generator().manual_seed(1)
    keys = [
        torch.randint(100, (300, *shape), generator=generator)
        for shape in [(), (), (negatives,)][: 2 + (negatives > 0)]
    ]
    # float64 but under autocast, which lowers no float64: there is no rounding to hide behind.
    dtype, tolerance = (torch.float32, 1e-5) if autocast else (torch.float64, 1e-12)
    inputs, options = _inputs(300, 48, negatives, dtype), (0.05, weight, symmetric, rows, keys, threshold, None, focal)
    with monkeypatch.context() as patched:
        patched.setattr(functional, "cross_entropy", _whole)
        dense, dense_gradients = _value_and_gradients(inputs, *options, autocast=autocast)
    monkeypatch.setattr(cross_entropy, "EDITED_TILE_ROWS", 64)
    monkeypatch.setattr(cross_entropy, "TILE_ROWS", 64)  # does not divide 300
    value, gradients = _value_and_gradients(inputs, *options, autocast=autocast)
    assert type(value.grad_fn).__name__ == "_TiledCrossEntropyBackward"
    assert type(dense.grad_fn).__name__ != "_TiledCrossEntropyBackward"
    assert torch.allclose(value, dense, rtol=tolerance, atol=tolerance)
    for gradient, expected in zip(gradients, dense_gradients, strict=True):
        assert torch.allclose(gradient, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("focal", [None, 0.3])
def test_gradcheck(monkeypatch, symmetric, focal):
    monkeypatch.setattr(cross_entropy, "EDITED_TILE_ROWS", 64)
    monkeypatch.setattr(cross_entropy, "TILE_ROWS", 2)
    inputs = _inputs(5, 3, 2, torch.float64)
    assert torch.autograd.gradcheck(lambda *inputs: contrast(*inputs, 0.2, 1.7, symmetric, focal=focal), inputs)
    similarities = torch.linspace(-0.5, 0.9, 5, dtype=torch.float64, requires_grad=True)

    def with_similarities(*inputs):
        *embeddings, similarities = inputs
        options = {"focal": focal, "similarities": similarities}
        return contrast(*embeddings, 0.2, 1.7, symmetric, **options)

    assert torch.autograd.gradcheck(with_similarities, (*inputs, similarities))
    value = with_similarities(*inputs, similarities)
    monkeypatch.setattr(functional, "cross_entropy", _whole)
    assert value.item() == pytest.approx(with_similarities(*inputs, similarities).item(), abs=1e-9)


def test_low_temperatures_do_not_underflow():
    """A positive 200 nats below the largest logit has a probability of 0 in float32, yet a finite loss."""
    rows = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    value = cross_entropy.cross_entropy(Problem(rows, rows.flip(0), torch.arange(2), scale=100.0))
    assert value.item() == pytest.approx(200.0)


def test_backward_twice_and_no_gradient_wanted():
    anchors, positives = _inputs(8, 4, 0)
    loss = contrast(anchors, positives)
    first = torch.autograd.grad(loss, anchors, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(loss, anchors)[0])
    constant = contrast(anchors.detach(), positives)
    constant.backward()
    assert anchors.grad is None
    assert positives.grad.abs().sum() > 0
    with torch.no_grad():
        assert contrast(anchors, positives) == loss


class _LargestTensor(TorchFunctionMode):
    """Notes the bytes of the largest tensor that any call of torch returns."""

    bytes = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.bytes = max(self.bytes, tensor.numel() * tensor.element_size())
        return result


@pytest.mark.parametrize("symmetric", [False, True])
def test_memory_for_equal_texts_is_linear_in_their_number(monkeypatch, symmetric):
    monkeypatch.setattr(cross_entropy, "EDITED_TILE_ROWS", 64)
    monkeypatch.setattr(cross_entropy, "TILE_ROWS", 16)
    largest = []
    for rows in (500, 1000):
        # One anchor with many positives, some of them equal: every candidate is a positive of every anchor.
        keys = [torch.zeros(rows, dtype=torch.int64), torch.arange(rows) // 2]
        with _LargestTensor() as watched:
            value = contrast(*_inputs(rows, 4, 0), symmetric=symmetric, keys=keys)
        largest.append(watched.bytes)
        assert symmetric or value.item() == 0
    assert largest[1] <= 2 * largest[0]


@pytest.mark.parametrize(
    ("limits", "rows"),
    [
        ({"TILE_ELEMENTS": 1}, 1),  # one softmax at a time
        ({"TILE_ELEMENTS": 200}, 5),
        ({"TILE_ELEMENTS": 200, "TILE_ROWS": 4}, 5),
        ({"EDITED_TILE_ROWS": 4}, 4),
    ],
)
def test_edited_tiles_have_the_rows_that_the_limits_allow(monkeypatch, limits, rows):
    """The similarity matrix has 40 rows and columns."""
    for name, value in limits.items():
        monkeypatch.setattr(cross_entropy, name, value)
    anchors, positives = _inputs(40, 3, 0)
    tiles = []

    def edit(logits, tile):
        tiles.append((tile.rows.start, tile.rows.stop))
        return logits

    info_nce(Batch(anchors, positives), edits=[edit])
    assert tiles == [(begin, begin + rows) for begin in range(0, 40, rows)]


@pytest.mark.parametrize(
    ("limits", "rows"), [({"TILE_ELEMENTS": 200}, 5), ({"TILE_ROWS": 7, "EDITED_TILE_ROWS": 4}, 7)]
)
def test_tiles_have_the_rows_that_the_limits_allow(monkeypatch, limits, rows):
    for name, value in limits.items():
        monkeypatch.setattr(cross_entropy, name, value)
    anchors, positives = _inputs(40, 1, 0)
    with _LargestTensor() as watched:
        contrast(anchors, positives)
    assert watched.bytes == 40 * rows * anchors.element_size()


def test_a_tile_holds_whole_groups(monkeypatch):
    """Two rows share a softmax here, so a limit of five rows means four."""
    monkeypatch.setattr(cross_entropy, "TILE_ROWS", 5)
    rows = torch.ones(12, 1)
    problem = Problem(rows, rows, torch.arange(12), scale=1.0, group=2)
    with _LargestTensor() as watched:
        cross_entropy.cross_entropy(problem)
    assert watched.bytes == 4 * 12 * rows.element_size()


def test_a_tile_of_odd_rows_leaves_out_missing_negatives(monkeypatch):
    inputs = _inputs(6, 4, 2)
    keys = [torch.arange(6), torch.arange(6) + 6, torch.arange(12).view(6, 2) + 12]
    keys[2][0, 1] = MISSING_KEY
    batch, comparison = Batch(*inputs, text_keys=keys), Comparison(symmetric=True)
    expected = info_nce(batch, comparison=comparison)
    monkeypatch.setattr(cross_entropy, "TILE_ROWS", 5)
    assert info_nce(batch, comparison=comparison).item() == pytest.approx(expected.item(), abs=1e-5)
