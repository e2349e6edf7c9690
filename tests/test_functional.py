import math

import pytest
import torch

from st_simcse import sup_simcse_loss, unsup_simcse_loss
from st_simcse.objective import alignment, normalize, uniformity
from tests.contrast import contrast
from tests.reference import (
    alignment_loop,
    finite_difference,
    info_nce_loop,
    sup_loop,
    uniformity_loop,
    unsup_loop,
)


def _embeddings(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


CASES = {
    "paper": {},
    "symmetric": {"symmetric": True},
    "one hard negative": {"negatives": 1},
    "three hard negatives": {"negatives": 3},
    "weighted": {"negatives": 2, "weight": 2.5},
    "weight zero": {"negatives": 1, "weight": 0.0},
    "symmetric, weighted": {"negatives": 2, "weight": 0.5, "symmetric": True},
    "some rows": {"negatives": 2, "weight": 3.0, "rows": range(1, 4)},
    "some rows, symmetric": {"negatives": 1, "weight": 3.0, "rows": range(2, 5), "symmetric": True},
    # The keys of five anchors, of their positives, and of their hard negatives.
    "same sentences": {"keys": [[1, 2, 1, 3, 1], [1, 2, 1, 3, 1]], "symmetric": True},
    "same anchors and positives": {"keys": [[1, 1, 2, 3, 4], [5, 6, 7, 7, 1]]},
    "same texts everywhere": {
        "negatives": 2,
        "weight": 2.0,
        "keys": [[1, 1, 2, 3, 4], [5, 6, 7, 7, 1], [5, 1, 7, 8] * 2 + [2, 9]],
    },
    "same texts, some rows": {
        "negatives": 1,
        "rows": range(1, 4),
        "keys": [[1, 1, 2, 3, 4], [5, 6, 7, 7, 1], [5, 1, 7, 3, 9]],
    },
    "positives of equal anchors": {"negatives": 1, "keys": [[1, 1, 1, 2, 3], [4, 5, 6, 5, 7], [4, 6, 5, 6, 3]]},
    "anchors of equal positives, symmetric": {
        "negatives": 1,
        "symmetric": True,
        "keys": [[1, 2, 3, 4, 5], [6, 6, 6, 1, 7], [2, 4, 6, 8, 3]],
    },
    "focal": {"negatives": 1, "focal": 0.3},
    "focal, symmetric, weighted": {"negatives": 2, "focal": 0.1, "weight": 2.0, "symmetric": True},
    "threshold": {"negatives": 1, "threshold": 0.3},
    "threshold, symmetric, weighted": {"negatives": 2, "threshold": 0.2, "weight": 2.0, "symmetric": True},
}


def _both(anchors, positives, negatives, temperature, case):
    """The case's loss by the package and by the loop."""
    rows = case.get("rows")
    keys = [torch.tensor(column) for column in case["keys"]] if "keys" in case else None
    if keys and negatives is not None:
        keys[2] = keys[2].view(negatives.shape[:-1])
    ours = contrast(
        anchors,
        positives,
        negatives,
        temperature,
        case.get("weight", 1.0),
        case.get("symmetric", False),
        slice(rows.start, rows.stop) if rows else slice(None),
        keys,
        case.get("threshold"),
        focal=case.get("focal"),
    )
    loop = info_nce_loop(
        anchors,
        positives,
        negatives,
        temperature,
        case.get("weight", 1.0),
        case.get("symmetric", False),
        rows,
        keys,
        case.get("threshold", math.inf),
        case.get("focal"),
    )
    return ours, loop


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_info_nce_equals_the_loop_and_finite_differences(case, temperature):
    anchors, positives = _embeddings(5, 4), _embeddings(5, 4, seed=1)
    negatives = _embeddings(5, case["negatives"], 4, seed=2) if "negatives" in case else None
    inputs = [tensor for tensor in (anchors, positives, negatives) if tensor is not None]
    for tensor in inputs:
        tensor.requires_grad_()

    ours, loop = _both(anchors, positives, negatives, temperature, case)
    assert float(ours.detach()) == pytest.approx(loop, abs=1e-6)
    ours.backward()

    for position, tensor in enumerate(inputs):

        def moved_loop(moved, position=position):
            arguments = [value.detach() for value in inputs]
            arguments[position] = moved
            return _both(*arguments, *[None] * (3 - len(arguments)), temperature, case)[1]

        assert torch.allclose(tensor.grad, finite_difference(moved_loop, tensor.detach()), atol=1e-6)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("focal", [None, 0.3])
def test_positives_with_similarities_of_their_own(symmetric, focal):
    anchors, positives = _embeddings(5, 4), _embeddings(5, 4, seed=1)
    similarities = torch.linspace(-0.5, 0.9, 5, dtype=torch.float64, requires_grad=True)
    rows, keys = range(1, 4), [torch.tensor([1, 2, 1, 3, 4])] * 2

    def loop(similarities):
        options = {"rows": rows, "keys": keys, "focal": focal, "similarities": similarities}
        return info_nce_loop(anchors, positives, temperature=0.2, symmetric=symmetric, **options)

    value = contrast(
        anchors,
        positives,
        temperature=0.2,
        symmetric=symmetric,
        rows=slice(1, 4),
        keys=keys,
        focal=focal,
        similarities=similarities,
    )
    assert value.item() == pytest.approx(loop(similarities.detach()), abs=1e-9)
    value.backward()
    assert torch.allclose(similarities.grad, finite_difference(loop, similarities.detach()), atol=1e-6)
    with pytest.raises(ValueError, match=r"positive_similarities must have one value per row, got \(4,\) for 5 rows"):
        contrast(anchors, positives, similarities=similarities[1:])


def test_anchors_and_positives_may_swap_roles():
    """Rows that share a positive are as those that share an anchor."""
    anchors, positives = _embeddings(4, 6), _embeddings(4, 6, seed=1)
    keys = [torch.tensor([0, 1, 2, 3]), torch.tensor([4, 4, 5, 6])]
    value = contrast(anchors, positives, symmetric=True, keys=keys)
    assert value.item() == pytest.approx(contrast(positives, anchors, symmetric=True, keys=keys[::-1]).item())


def test_every_candidate_needs_a_key():
    anchors, positives, shared = (_embeddings(2, 4, seed=seed) for seed in range(3))
    negatives, keys = _embeddings(2, 3, 4, seed=3), torch.tensor([1, 2])
    with pytest.raises(
        ValueError, match=r"of shapes \[\(2,\), \(2,\), \(2, 3\), \(2,\)\]; got \[\(2,\), \(2,\), \(2,\)\]"
    ):
        contrast(anchors, positives, negatives, shared=shared, keys=[keys] * 3)
    with pytest.raises(ValueError, match="text_keys must be one tensor each for"):
        contrast(anchors, positives, keys=[keys, keys[:1]])


def test_alignment_and_uniformity_equal_the_loops():
    embeddings, positives = _embeddings(7, 4), _embeddings(7, 4, seed=1)
    assert float(alignment(embeddings, positives)) == pytest.approx(alignment_loop(embeddings, positives), abs=1e-9)
    assert float(uniformity(embeddings)) == pytest.approx(uniformity_loop(embeddings), abs=1e-9)
    with pytest.raises(ValueError, match="at least two rows"):
        uniformity(embeddings[:1])
    with pytest.raises(ValueError, match=r"must both be \(N, d\)"):
        alignment(embeddings, positives[:3])


@pytest.mark.parametrize("rows", [2, 4, 10])
def test_unsup_equals_the_loop(rows):
    embeddings = _embeddings(rows, 6)
    assert float(unsup_simcse_loss(embeddings)) == pytest.approx(unsup_loop(embeddings, 0.05), abs=1e-6)
    gradient = torch.autograd.grad(unsup_simcse_loss(embeddings.requires_grad_()), embeddings)[0]
    expected = finite_difference(lambda moved: unsup_loop(moved, 0.05), embeddings.detach())
    assert torch.allclose(gradient, expected, atol=1e-6)


@pytest.mark.parametrize("rows", [3, 6, 15])
def test_sup_equals_the_loop(rows):
    embeddings = _embeddings(rows, 6)
    assert float(sup_simcse_loss(embeddings)) == pytest.approx(sup_loop(embeddings, 0.05), abs=1e-6)
    gradient = torch.autograd.grad(sup_simcse_loss(embeddings.requires_grad_()), embeddings)[0]
    expected = finite_difference(lambda moved: sup_loop(moved, 0.05), embeddings.detach())
    assert torch.allclose(gradient, expected, atol=1e-6)


def test_weight_is_the_exponential_of_princetons_argument():
    anchors, positives, negatives = (_embeddings(4, 8, seed=seed) for seed in range(3))
    cosine = torch.nn.functional.cosine_similarity
    own_weight = 1.5  # princeton-nlp/SimCSE adds it to the diagonal of the anchor x negative logits
    logits = torch.cat([cosine(anchors[:, None], other[None], dim=-1) for other in (positives, negatives)], 1) / 0.05
    logits[:, 4:] += own_weight * torch.eye(4, dtype=torch.float64)
    expected = torch.nn.functional.cross_entropy(logits, torch.arange(4))
    ours = contrast(anchors, positives, negatives, weight=math.exp(own_weight))
    assert float(ours) == pytest.approx(float(expected), abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision_only_rounds_the_input(dtype):
    embeddings = _embeddings(12, 16, dtype=dtype).requires_grad_()
    loss = unsup_simcse_loss(embeddings)
    assert loss.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(unsup_loop(embeddings.detach(), 0.05), abs=1e-5)
    loss.backward()
    assert embeddings.grad.dtype == dtype
    assert torch.isfinite(embeddings.grad).all()


def test_autocast_does_not_lower_the_similarities():
    anchors, positives = _embeddings(16, 32, dtype=torch.float32), _embeddings(16, 32, dtype=torch.float32, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = contrast(anchors, positives)
    assert float(loss) == pytest.approx(info_nce_loop(anchors, positives), abs=1e-5)


def test_zero_vectors_have_similarity_zero_and_zero_gradient():
    anchors, positives = _embeddings(3, 4), _embeddings(3, 4, seed=1)
    anchors[1] = 0
    anchors.requires_grad_()
    loss = contrast(anchors, positives, temperature=1.0)
    others = anchors.detach()[[0, 2]]
    # the zero row's three logits are all 0, so its own loss is log 3
    logits = torch.nn.functional.cosine_similarity(others[:, None], positives[None], dim=-1)
    expected = (math.log(3) + float((logits.logsumexp(1) - logits[[0, 1], [0, 2]]).sum())) / 3
    assert float(loss) == pytest.approx(expected, abs=1e-9)
    loss.backward()
    assert anchors.grad[1].eq(0).all()
    assert torch.isfinite(anchors.grad).all()


def test_one_row_batches():
    row, negative = _embeddings(1, 4), _embeddings(1, 4, seed=1)
    for loss in (contrast(row, row.clone()), contrast(row, row.clone(), symmetric=True)):
        assert float(loss) == pytest.approx(0, abs=1e-12)
    assert float(contrast(row, row.clone(), negative)) == pytest.approx(info_nce_loop(row, row, negative[None]))


ROW = torch.ones(2, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: unsup_simcse_loss(torch.ones(3, 4)), "multiple of 2 rows"),
        (lambda: unsup_simcse_loss(torch.ones(0, 4)), "multiple of 2 rows"),
        (lambda: sup_simcse_loss(torch.ones(4, 4)), "multiple of 3 rows"),
        (lambda: sup_simcse_loss(torch.ones(3)), r"got shape \(3,\)"),
        (lambda: contrast(ROW, torch.ones(3, 4)), r"anchors \(2, 4\), positives \(3, 4\)"),
        (lambda: contrast(torch.ones(2), torch.ones(2)), r"must both be \(B, d\)"),
        (lambda: contrast(torch.ones(0, 4), torch.ones(0, 4)), "at least one row"),
        (lambda: contrast(ROW, ROW, torch.ones(2, 5)), "hard_negatives must be"),
        (lambda: contrast(ROW, ROW, torch.ones(3, 4)), "hard_negatives must be"),
        (lambda: contrast(ROW, ROW, torch.ones(2, 0, 4)), "hard_negatives must be"),
        (lambda: contrast(ROW.long(), ROW), "floating point"),
        (lambda: contrast(ROW, ROW, ROW.long()), r"floating point.*'torch.int64'\]"),
        (lambda: contrast(ROW, ROW, torch.ones(2, 6)), r"hard_negatives \(2, 6\)"),
        (lambda: unsup_simcse_loss(ROW, temperature=-1), "temperature must be a positive number"),
        (lambda: contrast(ROW, ROW, temperature=0), "temperature must be a positive number"),
        (lambda: contrast(ROW, ROW, temperature=-1), "temperature must be a positive number"),
        (lambda: contrast(ROW, ROW, temperature=math.inf), "temperature must be a positive number"),
        (lambda: contrast(ROW, ROW, temperature=math.nan), "temperature must be a positive number"),
        (lambda: contrast(ROW, ROW, ROW, weight=-0.5), "needs a finite weight of at least 0, got -0.5"),
        (lambda: contrast(ROW, torch.tensor([[1.0] * 4, [math.nan] * 4])), r"positives .* row\(s\) \[1\] of 2"),
        (lambda: contrast(torch.tensor([[math.inf] * 4, [1.0] * 4]), ROW), r"anchors .* row\(s\) \[0\] of 2"),
        (lambda: contrast(torch.full((2, 4), math.nan), ROW), r"anchors .* row\(s\) \[0, 1\] of 2"),
    ],
)
def test_bad_input_is_a_clear_value_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_gradcheck():
    anchors, positives = _embeddings(4, 3).requires_grad_(), _embeddings(4, 3, seed=1).requires_grad_()
    negatives = _embeddings(4, 2, 3, seed=2).requires_grad_()
    for symmetric in (False, True):
        assert torch.autograd.gradcheck(
            lambda *inputs, symmetric=symmetric: contrast(*inputs, 0.2, 1.7, symmetric), (anchors, positives, negatives)
        )


def test_normalize_takes_rows_in_any_number_of_dimensions():
    rows = _embeddings(2, 3, 4).requires_grad_()
    expected = [[[x / math.hypot(*row) for x in row] for row in matrix] for matrix in rows.tolist()]
    assert torch.allclose(normalize(rows, "rows"), torch.tensor(expected, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda rows: normalize(rows, "rows"), rows)
