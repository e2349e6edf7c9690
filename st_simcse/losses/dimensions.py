"""SimCSE++'s contrast of dimensions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from st_simcse.losses.dropout_free import DropoutFreeNegatives
from st_simcse.losses.options import TermOption

__all__ = ["DimensionContrast"]


@dataclass(frozen=True)
class DimensionContrast(TermOption):
    r"""The second half of SimCSE++: a dimension must correlate with itself in the other view and with no other.

    This is the dimension-wise contrastive learning of Xu et al. (EMNLP 2023). Let :math:`ρ_{ck}` be the correlation,
    over the rows of the batch, of dimension c of the anchors (first views) with dimension k of the positives (second
    views). The term is the mean over the dimensions of

    .. math:: -\log \frac{e^{ρ_{cc}/τ}}{\sum_k e^{ρ_{ck}/τ}}

    The variances have 1e-5 added, as in the authors' code. The correlations use the rows of this process's batch, also
    with ``gather_across_devices``. The first half of SimCSE++ is :class:`~st_simcse.DropoutFreeNegatives`.

    Args:
        weight: The weight of the term. The authors' scripts use 0.1.
        temperature: τ. The authors' scripts use 5.

    Raises:
        ValueError: If the weight or temperature is out of range.

    Example:
        >>> views = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> term = DimensionContrast(0.1, temperature=1.0).build(None)
        >>> term.from_embeddings([views, views], None)  # log(e^1 + e^0) - 1
        tensor(0.3133)
    """

    weight: float = field(metadata={"help": "Weight of SimCSE++'s contrast of dimensions.", "least": 0})
    temperature: float = field(default=5.0, metadata={"help": "Temperature of the correlations.", "above": 0})
    citation: ClassVar[str] = DropoutFreeNegatives.citation

    def from_embeddings(self, columns: list[Tensor], labels: Tensor | None) -> Tensor:
        columns = [column.to(torch.promote_types(column.dtype, torch.float32)).T for column in columns[:2]]
        rows = columns[0].shape[1]
        with torch.autocast(columns[0].device.type, enabled=False):
            # Each dimension is a row here, so this standardizes it over the batch, with the epsilon of the authors.
            first, second = (F.layer_norm(column, [rows]) for column in columns)
            logits = first @ second.T / (rows * self.temperature)
        return (logits.logsumexp(1) - logits.diagonal()).mean()
