"""Embeddings on the unit sphere: normalization, alignment and uniformity."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

__all__ = ["alignment", "normalize", "uniformity"]


def normalize(embeddings: Tensor, name: str) -> Tensor:
    """Scales rows to unit length in float32 or float64. Zero rows stay zero, with a gradient of zero.

    Args:
        embeddings: (..., d), any floating dtype.
        name: The name of the embeddings in the error message.

    Returns:
        The normalized rows in the same shape, float32 (float64 for float64 input).

    Raises:
        ValueError: If embeddings are NaN or infinite. The message lists the rows.

    Example:
        >>> normalize(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), "rows")
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    embeddings = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
    norms: Tensor = torch.linalg.vector_norm(embeddings.detach(), dim=-1, keepdim=True)
    if not math.isfinite(norms.sum()):
        rows = (~torch.isfinite(norms).squeeze(-1)).nonzero().squeeze(-1).tolist()
        raise ValueError(
            f"{name} has NaN or infinite values in row(s) {rows} of {len(embeddings)}. Inspect these sentences, lower "
            "the learning rate, or train in bf16 or float32 instead of fp16."
        )
    unit: Tensor = _Normalize.apply(embeddings, norms)
    return unit


class _Normalize(torch.autograd.Function):
    r"""u = x / |x| with the gradient :math:`(g - u (u \cdot g)) / |x|`, in half as many steps as autograd takes."""

    @staticmethod
    def forward(ctx: Any, embeddings: Tensor, norms: Tensor) -> Tensor:
        # The inverse of a zero row is set to 0, not 1 / epsilon, because it is also the factor of the gradient.
        inverse = norms.reciprocal().masked_fill_(norms == 0, 0.0)
        unit = embeddings * inverse
        ctx.save_for_backward(unit, inverse)
        return unit

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        unit, inverse = ctx.saved_tensors
        along = (unit * gradient).sum(-1, keepdim=True)
        return (gradient - unit * along) * inverse, None


def alignment(embeddings: Tensor, positives: Tensor) -> Tensor:
    r"""Computes the alignment: the mean squared distance of positive pairs on the unit sphere (paper, equation 2).

    Smaller is better.

    .. math:: \ell_{align} = E_{(x, x^+)} \lVert f(x) - f(x^+) \rVert^2

    Args:
        embeddings: (N, d), any floating dtype. Need not be normalized.
        positives: (N, d).

    Returns:
        A float32 scalar (float64 for float64 input) between 0 and 4.

    Raises:
        ValueError: If the shapes differ, there are no rows, or embeddings are NaN or infinite.

    Example:
        >>> alignment(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 3.0]]))  # a right angle
        tensor(2.)
    """
    if embeddings.ndim != 2 or embeddings.shape != positives.shape or not len(embeddings):
        raise ValueError(
            f"embeddings and positives must both be (N, d), got {tuple(embeddings.shape)} and {tuple(positives.shape)}"
        )
    difference = normalize(embeddings, "embeddings") - normalize(positives, "positives")
    return difference.square().sum(1).mean()


def uniformity(embeddings: Tensor) -> Tensor:
    r"""Computes the uniformity of embeddings on the unit sphere (paper, equation 3). Smaller is better.

    .. math:: \ell_{uniform} = \log E_{x, y} e^{-2 \lVert f(x) - f(y) \rVert^2}

    The mean is over all pairs of different rows, so memory grows with the square of N.

    Args:
        embeddings: (N, d), any floating dtype. Need not be normalized.

    Returns:
        A float32 scalar (float64 for float64 input), at most 0.

    Raises:
        ValueError: If there are fewer than two rows, or embeddings are NaN or infinite.

    Example:
        >>> uniformity(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))  # log(e^(-2 * 4))
        tensor(-8.)
    """
    if embeddings.ndim != 2 or len(embeddings) < 2:
        raise ValueError(f"uniformity needs (N, d) with at least two rows, got {tuple(embeddings.shape)}")
    squared_distances = torch.pdist(normalize(embeddings, "embeddings")).square()
    return squared_distances.mul(-2).exp().mean().log()
