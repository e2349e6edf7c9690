"""Whitening: the mean and covariance of a stream of embeddings, and the linear map that evens out their spread."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Moments", "whitening"]


class Moments:
    """Mean and covariance of all rows that were added, in float64 and in the memory of one batch.

    Batches are joined by the update of Chan et al. (1979), which loses no digits where the mean is large.

    Args:
        width: d, the number of columns.

    Attributes:
        count: N, the number of rows so far.
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
        """Count these rows too.

        Args:
            embeddings: (n, d), any floating dtype and device.

        Raises:
            ValueError: for NaN or infinite values.
        """
        rows = embeddings.detach().to("cpu", torch.float64)
        if not rows.isfinite().all():
            raise ValueError("some embeddings have NaN or infinite values, so that they have no covariance")
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
        """(d, d), float64, divided by N - 1.

        Raises:
            ValueError: for fewer than two rows.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs two embeddings at least, got {self.count}")
        return self._scatter / (self.count - 1)


def whitening(moments: Moments, power: float = 1.0, dimensions: int | None = None) -> tuple[Tensor, Tensor]:
    r"""Weight and bias of the map that subtracts the mean and divides each principal direction by its spread.

    .. math:: y = \Lambda^{-p/2} U^\top (x - \mu), \qquad \Sigma = U \Lambda U^\top

    Whitening with p = 1 (Su et al., 2021, arXiv:2103.15316, section 3, equations 6 to 8): the covariance of y is the
    identity. A smaller p evens the spread out in part, and p = 0 leaves it as it is, so that only the mean is
    subtracted. The directions are sorted, those of the largest spread first. Where embeddings do not vary but for
    rounding, as behind a LayerNorm in one direction at least, a power above 0 gives 0.

    Args:
        moments: of N embeddings of width d.
        power: p, 0 or more.
        dimensions: k, how many directions are kept; all d when left out.

    Returns:
        Weight (k, d) and bias (k,), float64.

    Raises:
        ValueError: for numbers out of range, embeddings that are all equal, and with a power above 0 for fewer than
            k + 1 of them, which never vary in k directions.

    Example:
        >>> moments = Moments(2)
        >>> moments.add(torch.tensor([[0.0, 1.0], [4.0, 1.0], [2.0, 0.0], [2.0, 2.0]]))
        >>> weight, bias = whitening(moments, dimensions=1)
        >>> (weight @ torch.tensor([4.0, 1.0]).double() + bias).abs()
        tensor([1.2247], dtype=torch.float64)
    """
    width = len(moments.mean)
    kept = width if dimensions is None else dimensions
    if not 1 <= kept <= width:
        raise ValueError(f"dimensions must be between 1 and {width}, the width of the embeddings, got {dimensions}")
    if not 0 <= power < float("inf"):
        raise ValueError(f"power must be 0 or more, got {power}")
    values, vectors = torch.linalg.eigh(moments.covariance)
    values, vectors = values.flip(0), vectors.flip(1)
    # The model computes in float32, in which a smaller spread than this is rounding.
    epsilon = torch.finfo(torch.float32).eps
    if values[0] <= (epsilon * moments.mean.norm()) ** 2:
        raise ValueError(
            f"all {moments.count} embeddings are equal, so that they have no spread: pass texts that differ"
        )
    if power > 0 and kept >= moments.count:
        raise ValueError(
            f"{moments.count} texts are too few for {kept} dimensions, which need {kept + 1} at least, and several "
            f"thousand at best: pass more texts, or dimensions={moments.count - 1} or fewer"
        )
    varies = values > epsilon * values[0]
    scale = torch.where(varies, values, torch.inf)
    weight = vectors[:, :kept].T * scale[:kept, None].pow(-power / 2)
    return weight, -weight @ moments.mean
