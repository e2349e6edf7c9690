"""The embeddings to compare and the exclusions (a problem), and some of its rows with similarities (a tile)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from st_simcse.objective.known_positives import KnownPositives

__all__ = ["Edit", "Problem", "Tile"]


@dataclass(frozen=True)
class Problem:
    """Softmaxes over cosine similarities, each with one positive.

    Args:
        queries: (M, d) of unit length, float32 or float64.
        candidates: (C, d) of unit length, same dtype.
        targets: (M,) int64, the column of each row's positive.
        scale: The inverse temperature.
        own_columns: (M, K) int64, the columns to exclude for each row, such as the row itself; or None.
        known_positives: Further places to exclude, except the targets; or None.
        excluded: (group, C) bool, the columns to exclude for the first, second, ... row of a group; (1, C) for all
            rows; or None.
        own_negatives: (M, N) int64, the columns of a row's own hard negatives; or None.
        positive_similarities: (M,), same dtype, used as the similarities at the targets; or None to compute them.
        teacher_queries: (M, t) of unit length, a teacher's embeddings of the queries; or None.
        teacher_candidates: (K, t) of unit length, a teacher's embeddings of the first K candidates; or None.
        group: The number of consecutive rows that share a softmax. Its positive is that of the first row.

    Example:
        >>> rows = torch.eye(3)
        >>> problem = Problem(rows, rows, targets=torch.arange(3), scale=20.0)
        >>> problem.tile(slice(0, 2)).is_positive.int()
        tensor([[1, 0, 0],
                [0, 1, 0]], dtype=torch.int32)
    """

    queries: Tensor
    candidates: Tensor
    targets: Tensor
    scale: float
    own_columns: Tensor | None = None
    known_positives: KnownPositives | None = None
    excluded: Tensor | None = None
    own_negatives: Tensor | None = None
    positive_similarities: Tensor | None = None
    teacher_queries: Tensor | None = None
    teacher_candidates: Tensor | None = None
    group: int = 1

    def tile(self, rows: slice = slice(None), similarities: Tensor | None = None) -> Tile:
        """Returns some rows of the similarity matrix. Computes the similarities unless they are given."""
        if similarities is None:
            with torch.autocast(self.queries.device.type, enabled=False):
                similarities = self.queries[rows] @ self.candidates.T
            if self.positive_similarities is not None:
                similarities = similarities.scatter(1, self.targets[rows, None], self.positive_similarities[rows, None])
        return Tile(self, rows, similarities)

    def leave_out_(self, logits: Tensor, rows: slice) -> Tensor:
        """Sets the logits of excluded candidates to -inf, in place."""
        if self.known_positives is not None:
            known = self.known_positives.mask(rows).scatter_(1, self.targets[rows, None], False)
            logits.masked_fill_(known, -torch.inf)
        if self.own_columns is not None:
            logits.scatter_(1, self.own_columns[rows], -torch.inf)
        if self.excluded is not None:
            logits.view(-1, *self.excluded.shape).masked_fill_(self.excluded, -torch.inf)
        return logits


@dataclass(frozen=True)
class Tile:
    """Some rows of a problem with their similarities (m, C), the input of an edit."""

    problem: Problem
    rows: slice
    similarities: Tensor

    @property
    def targets(self) -> Tensor:
        """(m, 1) int64: the column of each row's positive."""
        return self.problem.targets[self.rows, None]

    @cached_property
    def is_positive(self) -> Tensor:
        """(m, C) bool: each row's positive."""
        places = torch.zeros_like(self.similarities, dtype=torch.bool)
        return places.scatter_(1, self.targets, True)

    @cached_property
    def is_own_negative(self) -> Tensor:
        """(m, C) bool: each row's own hard negatives."""
        places = torch.zeros_like(self.similarities, dtype=torch.bool)
        own = self.problem.own_negatives
        return places if own is None else places.scatter_(1, own[self.rows], True)

    @cached_property
    def teacher_similarities(self) -> Tensor:
        """(m, C): the teacher's cosine similarities; -inf for candidates that the teacher has not embedded.

        Raises:
            ValueError: If there are no teacher embeddings.
        """
        queries, candidates = self.problem.teacher_queries, self.problem.teacher_candidates
        if queries is None or candidates is None:
            raise ValueError("the batch has no teacher embeddings: pass Batch(..., teacher_embeddings=...)")
        with torch.autocast(queries.device.type, enabled=False):
            seen = queries[self.rows] @ candidates.T
        return F.pad(seen, (0, len(self.problem.candidates) - len(candidates)), value=-torch.inf)


Edit = Callable[[Tensor, Tile], Tensor]
"""A function that changes the logits of a tile before the softmax; see :mod:`st_simcse.objective.edits`."""
