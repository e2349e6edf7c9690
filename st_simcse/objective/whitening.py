"""Whitening: the mean and covariance of a stream of embeddings, and the linear map that equalizes their variances."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Moments", "kept_directions", "whitening"]


class Moments:
    """The mean and covariance of all rows added so far, in float64. Only one batch is in memory at a time.

    Batches are merged by the update of Chan et al. (1979), which loses no digits if the mean is large.

    Args:
        width: The number of columns d.

    Attributes:
        count: The number of rows N so far.
        mean: (d,), float64.

    Example:
        >>> moments = Moments(2)
        >>> moments.add(torch.tensor([[0.0, 1.0], [2.0, 1.0]]))
        >>> moments.add(torch.tensor([[4.0, 1.0]]))
        >>> moments.count, moments.mean.tolist(), moments.covariance.tolist()
        (3, [2.0, 1.0], [[4.0, 0.0], [0.0, 0.0]])
    """

    def __init__(self, width: int) -> None:
        self.count = 0
        self.mean = torch.zeros(width, dtype=torch.float64)
        self._scatter = torch.zeros(width, width, dtype=torch.float64)

    def add(self, embeddings: Tensor) -> None:
        """Adds rows to the mean and covariance.

        Args:
            embeddings: (n, d), any floating dtype and device.

        Raises:
            ValueError: If values are NaN or infinite.
        """
        rows = embeddings.detach().to("cpu", torch.float64)
        if not rows.isfinite().all():
            raise ValueError("some embeddings have NaN or infinite values, so their covariance is undefined")
        if not len(rows):
            return
        count = self.count + len(rows)
        mean = rows.mean(0)
        centred, shift = rows - mean, mean - self.mean
        self._scatter += centred.T @ centred + torch.outer(shift, shift) * (self.count * len(rows) / count)
        self.mean += shift * (len(rows) / count)
        self.count = count

    @property
    def covariance(self) -> Tensor:
        """(d, d) float64, the scatter matrix divided by N - 1.

        Raises:
            ValueError: If there are fewer than two rows.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs at least two embeddings, got {self.count}")
        return self._scatter / (self.count - 1)


def whitening(moments: Moments, power: float = 1.0, dimensions: float | None = None) -> tuple[Tensor, Tensor]:
    r"""Returns the map that subtracts the mean and divides each principal direction by its standard deviation.

    .. math:: y = \Lambda^{-p/2} U^\top (x - \mu), \qquad \Sigma = U \Lambda U^\top

    With p = 1 this is whitening (Su et al., 2021, arXiv:2103.15316, section 3, equations 6 to 8), and the covariance of
    y is the identity. A smaller p equalizes the variances partly. With p = 0 the variances stay and only the mean is
    subtracted. The directions are sorted by decreasing variance. With a power above 0, directions with no variance but
    rounding error are mapped to 0. The output of a LayerNorm has at least one such direction.

    Args:
        moments: The moments of N embeddings of width d.
        power: p, 0 or more.
        dimensions: The number k of directions to keep, or their share of d as a number below 1. Keeps all d if None.

    Returns:
        The weight (k, d) and bias (k,), float64.

    Raises:
        ValueError: If an argument is out of range or all embeddings are equal. Also if the power is above 0 and there
            are fewer than k + 1 embeddings, because these cannot vary in k directions.

    Example:
        >>> moments = Moments(2)
        >>> moments.add(torch.tensor([[0.0, 1.0], [4.0, 1.0], [2.0, 0.0], [2.0, 2.0]]))
        >>> weight, bias = whitening(moments, dimensions=1)
        >>> (weight @ torch.tensor([4.0, 1.0]).double() + bias).abs()
        tensor([1.2247], dtype=torch.float64)
    """
    width = len(moments.mean)
    kept = kept_directions(power, dimensions, width)
    values, vectors = torch.linalg.eigh(moments.covariance)
    values, vectors = values.flip(0), vectors.flip(1)
    # The model computes in float32, so a smaller variance than this is rounding error.
    epsilon = torch.finfo(torch.float32).eps
    if values[0] <= (epsilon * moments.mean.norm()) ** 2:
        raise ValueError(
            f"all {moments.count} embeddings are equal, so they cannot be whitened: pass texts that differ"
        )
    kept_directions(power, dimensions, width, moments.count)
    varies = values > epsilon * values[0]
    scale = torch.where(varies, values, torch.inf)
    weight = vectors[:, :kept].T * scale[:kept, None].pow(-power / 2)
    return weight, -weight @ moments.mean


def kept_directions(power: float, dimensions: float | None, width: int, count: int | None = None) -> int:
    """Checks the options of :func:`whitening`, which can be done before anything is embedded.

    Args:
        power: p, as in :func:`whitening`.
        dimensions: As in :func:`whitening`.
        width: The width d of the embeddings.
        count: The number N of embeddings, if it is known.

    Returns:
        The number k of directions to keep.

    Raises:
        ValueError: If an argument is out of range, or N embeddings are too few for k directions.

    Example:
        >>> kept_directions(1.0, 0.25, width=384), kept_directions(1.0, None, width=384, count=500)
        (96, 384)
    """
    if not 0 <= power < float("inf"):
        raise ValueError(f"power must be 0 or more, got {power}")
    if dimensions is None:
        kept = width
    elif 0 < dimensions < 1:
        kept = max(1, round(dimensions * width))
    elif not 1 <= dimensions <= width or dimensions != int(dimensions):
        raise ValueError(
            f"dimensions must be between 1 and {width}, the width of the embeddings, or a share of them below 1, got "
            f"{dimensions:g}"
        )
    else:
        kept = int(dimensions)
    if count is not None and power > 0 and kept >= count:
        raise ValueError(
            f"{count} texts are too few for {kept} dimensions, which need at least {kept + 1} texts and better "
            f"several thousand. Pass more texts, or dimensions={count - 1} or fewer."
        )
    return kept
