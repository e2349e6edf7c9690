"""Conversion of columns of embeddings to a batch, with the rows of this process or of all processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from sentence_transformers.util import get_world_size
from torch import Tensor

from st_simcse.losses.collectives import gather_rows
from st_simcse.objective import Batch

__all__ = ["Columns"]


@dataclass(frozen=True)
class Columns:
    """Anchors, positives and hard negatives of the B rows of this process.

    Args:
        embeddings: A (B, d) tensor per column.
        similarities: (B,), the similarities of the positive pairs, or None to compute them from the embeddings.
        keys: A (B,) int64 tensor per column, equal for equal texts; or None.
        teacher: A (B, t) tensor per column, a teacher's embeddings of unit length; or None.
    """

    embeddings: list[Tensor]
    similarities: Tensor | None = None
    keys: list[Tensor] | None = None
    teacher: list[Tensor] | None = None

    def batch(self, shared: Sequence[tuple[Tensor, Tensor]], gather_across_devices: bool) -> tuple[Batch, float]:
        """Returns the batch, and a factor of its loss that makes the mean over processes the mean over all rows.

        Args:
            shared: Further negatives (M, d) of every anchor, with their text keys (M,).
            gather_across_devices: Whether the rows of all processes are compared.
        """
        columns, rows, share = self, slice(0, len(self.embeddings[0])), 1.0
        if gather_across_devices:
            columns, rows = self._gathered()
            # The mean over processes gives each the same weight, however many rows it has.
            share = (rows.stop - rows.start) * get_world_size() / len(columns.embeddings[0])
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
        """Returns the columns of all processes and the slice of this process's rows."""
        count, keys = len(self.embeddings), len(self.keys or [])
        gathered, rows = gather_rows(*self.embeddings, self.similarities, *(self.keys or []), *(self.teacher or []))
        embeddings, (similarities, *others) = gathered[:count], gathered[count:]
        return Columns(embeddings, similarities, self.keys and others[:keys], self.teacher and others[keys:]), rows


def _negatives_together(columns: list[Tensor]) -> list[Tensor]:
    """Returns the columns with all hard negatives stacked into one tensor along a new second dimension."""
    return columns if len(columns) == 2 else [*columns[:2], torch.stack(columns[2:], dim=1)]
