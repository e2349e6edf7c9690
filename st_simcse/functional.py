"""InfoNCE over embedding matrices: tensors in, a scalar out. Knows no model and no file.

The equations are those of Gao et al., *SimCSE: Simple Contrastive Learning of Sentence Embeddings*, EMNLP 2021.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from st_simcse.duplicates import KnownPositives
from st_simcse.tiled import TiledCrossEntropy

__all__ = ["alignment", "info_nce", "sup_simcse_loss", "uniformity", "unsup_simcse_loss"]

# A similarity matrix of more elements than this is computed in tiles.
DENSE_ELEMENTS = 2**18


def unsup_simcse_loss(embeddings: Tensor, temperature: float = 0.05) -> Tensor:
    """Unsupervised SimCSE over interleaved views, both views of a sentence being anchors.

    Row ``i`` is classified against all other rows; its label is ``i ^ 1`` (0 and 1 are each other's positive, 2 and 3,
    and so on). It is :func:`info_nce` with ``symmetric=True`` on the even and the odd rows.

    Args:
        embeddings: ``[a0, a0', a1, a1', ...]`` of shape (2B, d), any floating dtype.
        temperature: softmax temperature τ > 0; a Keras-style ``scale`` of 20 is a temperature of 0.05.

    Returns:
        The mean cross-entropy over the 2B anchors, in nats: a float32 scalar (float64 for float64 input).

    Raises:
        ValueError: for an odd row count, and as :func:`info_nce` does.

    Example:
        >>> views = torch.eye(2).repeat_interleave(2, dim=0)  # two sentences, each with two equal views
        >>> unsup_simcse_loss(views, temperature=1.0)  # log(e^1 + 2 e^0) - 1
        tensor(0.5514)
    """
    _check_interleaved(embeddings, 2, "[a0, a0', a1, a1', ...]")
    _check_temperature(temperature)
    views = normalize(embeddings, "embeddings")
    rows = torch.arange(len(views), device=views.device)
    return _cross_entropy(views, views, rows ^ 1, rows, None, None, 0.0, 1 / temperature, *[None] * 3)


def sup_simcse_loss(embeddings: Tensor, temperature: float = 0.05) -> Tensor:
    """Supervised SimCSE over interleaved triplets: equation 5 of the paper.

    Every anchor is classified against all positives and all hard negatives of the batch. It is :func:`info_nce` with
    one hard negative a row.

    Args:
        embeddings: ``[anchor0, positive0, negative0, anchor1, ...]`` of shape (3B, d), any floating dtype.
        temperature: softmax temperature τ > 0.

    Returns:
        The mean cross-entropy over the B anchors, in nats: a float32 scalar (float64 for float64 input).

    Raises:
        ValueError: for a row count that is no multiple of three, and as :func:`info_nce` does.

    Example:
        >>> triplet = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> sup_simcse_loss(triplet, temperature=1.0)  # log(e^1 + e^0) - 1
        tensor(0.3133)
    """
    _check_interleaved(embeddings, 3, "[anchor0, positive0, negative0, anchor1, ...]")
    return info_nce(embeddings[0::3], embeddings[1::3], embeddings[2::3], temperature=temperature)


def info_nce(
    anchors: Tensor,
    positives: Tensor,
    hard_negatives: Tensor | None = None,
    temperature: float = 0.05,
    hard_negative_weight: float = 1.0,
    symmetric: bool = False,
    anchor_rows: slice = slice(None),
    text_keys: Sequence[Tensor] | None = None,
    false_negative_threshold: float | None = None,
    shared_negatives: Tensor | None = None,
    focal_margin: float | None = None,
    positive_similarities: Tensor | None = None,
) -> Tensor:
    r"""InfoNCE over cosine similarities with in-batch negatives: equations 1, 4 and 5 of the paper.

    With sim the cosine similarity, τ the temperature, α the ``hard_negative_weight`` and N hard negatives a row, the
    loss of row i is

    .. math::
        -\log \frac{e^{sim(h_i, h_i^+)/τ}}
        {\sum_j \left(e^{sim(h_i, h_j^+)/τ} + \sum_n α^{1[i=j]} e^{sim(h_i, h_{jn}^-)/τ}\right)}

    Without hard negatives this is equation 1 (and 4, where the positive is the same sentence under another dropout
    mask); with them equation 5, where α is the weight of the own hard negative in the ablation of section 6.3. The
    weight enters as log(α) added to the logit. princeton-nlp/SimCSE's ``--hard_negative_weight`` *is* that logarithm:
    its 0 is our 1.

    Similarities and the log-sum-exp are computed in float32 (float64 for float64 input), also under autocast. A matrix
    of more than ``DENSE_ELEMENTS`` similarities is never held whole: memory then grows with B, not with its square.

    A zero vector has similarity 0 with everything and gets a zero gradient. A single row without hard negatives has
    nothing to be told apart from: its loss is 0.

    Args:
        anchors: (B, d), any floating dtype, any device.
        positives: (B, d); row i belongs to anchor i.
        hard_negatives: (B, d) or (B, N, d); row i belongs to anchor i, and is an ordinary negative for the others.
        temperature: τ > 0.
        hard_negative_weight: α ≥ 0; 0 leaves out a row's own hard negatives.
        symmetric: the positives are anchors too. Each of the 2B rows is classified against the 2B - 1 other rows (and
            the hard negatives), so the two anchors share one loss as in :func:`unsup_simcse_loss`.
        anchor_rows: the rows whose loss is averaged; the others serve as negatives only. Of a batch gathered from
            several processes each process takes its own rows.
        text_keys: int64 numbers that say which texts are the same: one tensor for ``anchors``, ``positives``,
            ``hard_negatives`` and ``shared_negatives`` each, as far as these are given, in their shapes without the
            last dimension. A candidate is no negative of a query whose positives include the same text, or that is the
            same text, and is left out of the sum. The positives of a text are those of all rows with that anchor; if
            ``symmetric``, also the anchors of all rows with that positive.
        false_negative_threshold: leave out the negatives whose cosine similarity to the anchor exceeds this.
        shared_negatives: (M, d), further negatives of every anchor, such as those of a queue.
        focal_margin: the m of Focal-InfoNCE (Hou and Li, Findings of EMNLP 2023): a positive's similarity s counts as
            s², a negative's as s (s + m), which weighs hard negatives up and easy ones down.
        positive_similarities: (B,), the cosine similarities of the rows with their positives, where these are not to
            be ``anchors`` times ``positives``: for pairs that are embedded otherwise than the negatives are.

    Returns:
        The mean cross-entropy in nats: a float32 scalar (float64 for float64 input).

    Raises:
        ValueError: for shapes that do not fit, text keys missing, no rows, an integer dtype, a temperature or weight
            out of range, and NaN or infinite embeddings (the message lists the rows).

    Example:
        >>> anchors = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> info_nce(anchors, positives=anchors, temperature=1.0)  # log(e^1 + e^0) - 1
        tensor(0.3133)
        >>> info_nce(anchors, anchors, hard_negatives=anchors.flip(0), temperature=1.0, hard_negative_weight=0.0)
        tensor(0.8620)
        >>> keys = [torch.tensor([7, 7]), torch.tensor([8, 9])]  # one anchor, two positives: neither is a negative
        >>> info_nce(anchors, anchors, temperature=1.0, text_keys=keys)
        tensor(0.)
    """
    _check_temperature(temperature)
    if not 0 <= hard_negative_weight < math.inf:
        raise ValueError(
            f"hard_negative_weight is the factor α of the own hard negative and must be at least 0, got "
            f"{hard_negative_weight} (princeton-nlp/SimCSE's argument is log(α): pass its exponential)"
        )
    _check_shapes(anchors, positives, hard_negatives)
    if positive_similarities is not None and positive_similarities.shape != anchors.shape[:1]:
        raise ValueError(
            f"positive_similarities must be one a row, got {tuple(positive_similarities.shape)} for {len(anchors)} rows"
        )
    if shared_negatives is not None and (shared_negatives.ndim != 2 or shared_negatives.shape[1] != anchors.shape[1]):
        raise ValueError(
            f"shared_negatives must be (M, d) with the anchors' d, got {tuple(shared_negatives.shape)} for anchors "
            f"{tuple(anchors.shape)}"
        )
    if text_keys is not None:
        _check_keys(text_keys, anchors, positives, hard_negatives, shared_negatives)

    anchors, positives = normalize(anchors, "anchors"), normalize(positives, "positives")
    first = torch.arange(len(anchors), device=anchors.device)[anchor_rows]
    if symmetric:
        views = torch.cat([anchors, positives])
        rows, targets = torch.cat([first, first + len(anchors)]), torch.cat([first + len(anchors), first])
        candidates, queries = [views], views if len(rows) == len(views) else views[rows]
    else:
        candidates, queries, rows, targets = [positives], anchors[anchor_rows], None, first
    own_negatives = None
    if hard_negatives is not None:
        candidates.append(normalize(hard_negatives.flatten(0, -2), "hard_negatives"))
        if hard_negative_weight != 1:
            per_row = len(candidates[-1]) // len(anchors)
            begin = sum(map(len, candidates[:-1])) + first * per_row
            own_negatives = begin[:, None] + torch.arange(per_row, device=first.device)
            own_negatives = own_negatives.repeat(2 if symmetric else 1, 1)

    if shared_negatives is not None:
        candidates.append(normalize(shared_negatives, "shared_negatives"))

    columns = torch.cat(candidates) if len(candidates) > 1 else candidates[0]
    if positive_similarities is not None:
        positive_similarities = positive_similarities[anchor_rows].repeat(2 if symmetric else 1).to(columns.dtype)
    log_weight = math.log(hard_negative_weight) if hard_negative_weight else -math.inf
    return _cross_entropy(
        queries,
        columns,
        targets,
        rows,
        None if text_keys is None else _known_positives(text_keys, first, symmetric),
        own_negatives,
        log_weight,
        1 / temperature,
        false_negative_threshold,
        focal_margin,
        positive_similarities,
    )


def alignment(embeddings: Tensor, positives: Tensor) -> Tensor:
    r"""How far positive pairs lie apart on the unit sphere: equation 2 of the paper. Smaller is better.

    .. math:: \ell_{align} = E_{(x, x^+)} \lVert f(x) - f(x^+) \rVert^2

    Args:
        embeddings: (N, d), any floating dtype; normalized here.
        positives: (N, d).

    Returns:
        A float32 scalar (float64 for float64 input) between 0 and 4.

    Raises:
        ValueError: for shapes that differ, no rows, and NaN or infinite embeddings.

    Example:
        >>> alignment(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 3.0]]))  # a right angle
        tensor(2.)
    """
    _check_shapes(embeddings, positives, None)
    difference = normalize(embeddings, "embeddings") - normalize(positives, "positives")
    return difference.square().sum(1).mean()


def uniformity(embeddings: Tensor) -> Tensor:
    r"""How evenly embeddings are spread over the unit sphere: equation 3 of the paper. Smaller is better.

    .. math:: \ell_{uniform} = \log E_{x, y} e^{-2 \lVert f(x) - f(y) \rVert^2}

    The mean is over all pairs of different rows; memory grows with their number.

    Args:
        embeddings: (N, d), any floating dtype; normalized here.

    Returns:
        A float32 scalar (float64 for float64 input), at most 0.

    Raises:
        ValueError: for fewer than two rows, and NaN or infinite embeddings.

    Example:
        >>> uniformity(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))  # log(e^(-2 * 4))
        tensor(-8.)
    """
    if embeddings.ndim != 2 or len(embeddings) < 2:
        raise ValueError(f"uniformity needs (N, d) with at least two rows, got {tuple(embeddings.shape)}")
    squared_distances = torch.pdist(normalize(embeddings, "embeddings")).square()
    return squared_distances.mul(-2).exp().mean().log()


def _known_positives(text_keys: Sequence[Tensor], first: Tensor, symmetric: bool) -> KnownPositives | None:
    """None if no place of the similarity matrix but the targets and the rows themselves is to be left out."""
    anchors, positives, *others = text_keys
    pairs = torch.stack([anchors, positives])
    queries, candidates = [anchors[first]], [positives, *(keys.flatten() for keys in others)]
    if symmetric:
        pairs = torch.cat([pairs, pairs.flip(0)], dim=1)
        queries, candidates = [*queries, positives[first]], [anchors, *candidates]
    known = KnownPositives(torch.cat(queries), torch.cat(candidates), pairs)
    own_places = 2 if symmetric else 1
    return known if known.count() > own_places * len(known.queries) else None


def _cross_entropy(queries: Tensor, candidates: Tensor, *options: Any) -> Tensor:
    large = len(queries) * len(candidates) > DENSE_ELEMENTS
    return (TiledCrossEntropy.apply if large else _dense_cross_entropy)(queries, candidates, *options)


def _dense_cross_entropy(
    queries: Tensor,
    candidates: Tensor,
    targets: Tensor,
    own_columns: Tensor | None,
    known_positives: KnownPositives | None,
    own_negatives: Tensor | None,
    log_weight: float,
    scale: float,
    threshold: float | None,
    focal_margin: float | None,
    positive_similarities: Tensor | None,
) -> Tensor:
    """:class:`~st_simcse.tiled.TiledCrossEntropy` in the open: the whole matrix, differentiable any number of times."""
    with torch.autocast(queries.device.type, enabled=False):
        similarities = queries @ candidates.T
    if positive_similarities is not None:
        similarities = similarities.scatter(1, targets[:, None], positive_similarities[:, None])
    logits = similarities * scale
    is_target = torch.zeros_like(similarities, dtype=torch.bool).scatter(1, targets[:, None], True)
    if focal_margin is not None:
        logits = logits * torch.where(is_target, similarities, similarities + focal_margin)
    if threshold is not None:
        logits = logits.masked_fill((similarities > threshold) & ~is_target, -math.inf)
    if known_positives is not None:
        logits = logits.masked_fill(known_positives.mask() & ~is_target, -math.inf)
    if own_columns is not None:
        logits = logits.scatter(1, own_columns[:, None], -math.inf)
    if own_negatives is not None:
        logits = logits.scatter_add(1, own_negatives, torch.full_like(own_negatives, log_weight, dtype=logits.dtype))
    return F.cross_entropy(logits, targets)


def normalize(embeddings: Tensor, name: str) -> Tensor:
    """Rows of unit length in float32 or float64; zero rows stay zero, with a zero gradient.

    Args:
        embeddings: (..., d), any floating dtype.
        name: what the error calls them.

    Returns:
        The same shape in float32 (float64 for float64 input).

    Raises:
        ValueError: for NaN or infinite embeddings; the message lists the rows.

    Example:
        >>> normalize(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), "rows")
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    embeddings = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
    norms = torch.linalg.vector_norm(embeddings, dim=-1, keepdim=True)
    if not torch.isfinite(norms).all():
        rows = (~torch.isfinite(norms).squeeze(-1)).nonzero().squeeze(-1).tolist()
        raise ValueError(
            f"{name} has NaN or infinite values in row(s) {rows} of {len(embeddings)}: look at these sentences, lower "
            "the learning rate, or train in bf16 or float32 instead of fp16"
        )
    # Dividing by infinity, not by a small epsilon, keeps a zero row's gradient at zero instead of 1/epsilon.
    return embeddings / norms.masked_fill(norms == 0, math.inf)


def _check_temperature(temperature: float) -> None:
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be a positive number, got {temperature}")


def _check_shapes(anchors: Tensor, positives: Tensor, hard_negatives: Tensor | None) -> None:
    shapes = f"anchors {tuple(anchors.shape)}, positives {tuple(positives.shape)}"
    tensors = [anchors, positives]
    if hard_negatives is not None:
        shapes += f", hard_negatives {tuple(hard_negatives.shape)}"
        tensors.append(hard_negatives)
    if not all(tensor.is_floating_point() for tensor in tensors):
        raise ValueError(f"embeddings must be floating point, got {[str(tensor.dtype) for tensor in tensors]}")
    if anchors.ndim != 2 or anchors.shape != positives.shape:
        raise ValueError(f"anchors and positives must both be (B, d), got {shapes}")
    if 0 in anchors.shape:
        raise ValueError(f"a batch needs at least one row and one dimension, got {shapes}")
    if hard_negatives is not None and (
        hard_negatives.ndim not in (2, 3)
        or (len(hard_negatives), hard_negatives.shape[-1]) != tuple(anchors.shape)
        or 0 in hard_negatives.shape
    ):
        raise ValueError(f"hard_negatives must be (B, d) or (B, N, d) with the anchors' B and d, got {shapes}")


def _check_keys(text_keys: Sequence[Tensor], *embeddings: Tensor | None) -> None:
    expected = [tuple(tensor.shape[:-1]) for tensor in embeddings if tensor is not None]
    shapes = [tuple(keys.shape) for keys in text_keys]
    if shapes != expected:
        raise ValueError(
            "text_keys must be one tensor for anchors, positives, hard_negatives and shared_negatives each, as far as "
            f"these are given, of shapes {expected}; got {shapes}"
        )


def _check_interleaved(embeddings: Tensor, views: int, layout: str) -> None:
    if embeddings.ndim != 2 or len(embeddings) % views or not len(embeddings):
        raise ValueError(
            f"expected {layout} of shape ({views}B, d), that is a multiple of {views} rows, got shape "
            f"{tuple(embeddings.shape)}"
        )
