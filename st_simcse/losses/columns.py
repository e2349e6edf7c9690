"""Columns of embeddings become the batch that is compared: of this process, or of all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from st_simcse.losses.collectives import gather_rows, world_size
from st_simcse.objective import Batch

__all__ = ["Columns"]


@dataclass(frozen=True)
class Columns:
    """Anchors, positives and hard negatives of B rows of this process.

    Args:
        embeddings: (B, d) a column.
        similarities: (B,) of the positive pairs, if other than theirs; or None.
        keys: (B,) int64 a column, equal for equal texts; or None.
        teacher: (B, t) a column, a teacher's embeddings of unit length; or None.
    """

    embeddings: list[Tensor]
    similarities: Tensor | None = None
    keys: list[Tensor] | None = None
    teacher: list[Tensor] | None = None

    def batch(self, shared: Sequence[tuple[Tensor, Tensor]], gather_across_devices: bool) -> tuple[Batch, float]:
        """The batch, and the factor of its loss, by which the mean over processes is the loss of all rows.

        Args:
            shared: further negatives (M, d) of every anchor and their text keys (M,).
            gather_across_devices: whether the rows of all processes are compared.
        """
        columns, rows, share = self, slice(0, len(self.embeddings[0])), 1.0
        if gather_across_devices:
            columns, rows = self._gathered()
            # Processes count alike in the mean over them, however many rows each has.
            share = (rows.stop - rows.start) * world_size() / len(columns.embeddings[0])
        anchors, positives, *negatives = _negatives_together(columns.embeddings)
        keys = columns.keys and _negatives_together(columns.keys)
        if keys is not None and shared:
            keys = [*keys, torch.cat([shared_keys for _, shared_keys in shared])]
        batch = Batch(
            anchors,
            positives,
            hard_negatives=negatives[0] if negatives else None,
            # MatryoshkaLoss truncates the anchors.
            shared_negatives=torch.cat([found[:, : anchors.shape[1]] for found, _ in shared]) if shared else None,
            text_keys=keys,
            positive_similarities=columns.similarities,
            rows=rows,
            teacher_embeddings=columns.teacher and _negatives_together(columns.teacher),
        )
        return batch, share

    def _gathered(self) -> tuple[Columns, slice]:
        """The columns of all processes, and which of their rows are this process's."""
        count, keys = len(self.embeddings), len(self.keys or [])
        gathered, rows = gather_rows(*self.embeddings, self.similarities, *(self.keys or []), *(self.teacher or []))
        embeddings, (similarities, *others) = gathered[:count], gathered[count:]
        return Columns(embeddings, similarities, self.keys and others[:keys], self.teacher and others[keys:]), rows


def _negatives_together(columns: list[Tensor]) -> list[Tensor]:
    """Those of anchors and positives, and of all hard negatives one with another dimension behind the first."""
    return columns if len(columns) == 2 else [*columns[:2], torch.stack(columns[2:], dim=1)]
