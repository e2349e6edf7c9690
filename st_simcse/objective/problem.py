"""Who is compared with whom, and who is left out; a tile is some of it, while its similarities exist."""

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
        scale: the inverse temperature.
        own_columns: (M, K) int64, columns of each row that are left out, such as the row itself; or None.
        known_positives: what else is left out, the targets excepted; or None.
        excluded: (group, C) bool, columns that are left out for the first, second, ... row of a group; or None.
        own_negatives: (M, N) int64, the columns of a row's own hard negatives; or None.
        positive_similarities: (M,), same dtype, in place of the products at the targets; or None.
        teacher_queries: (M, t) of unit length, what a teacher says of the queries; or None.
        teacher_candidates: (K, t) of unit length, what it says of the first K candidates; or None.
        group: so many consecutive rows share one softmax, whose positive is that of the first of them.

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
        """Some rows of the similarity matrix, computed here unless they are given."""
        if similarities is None:
            with torch.autocast(self.queries.device.type, enabled=False):
                similarities = self.queries[rows] @ self.candidates.T
            if self.positive_similarities is not None:
                similarities = similarities.scatter(1, self.targets[rows, None], self.positive_similarities[rows, None])
        return Tile(self, rows, similarities)

    def leave_out_(self, logits: Tensor, rows: slice) -> Tensor:
        """-inf, in place, where a candidate of these rows does not count."""
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
    """Rows of a problem with their similarities (m, C), as an edit sees them."""

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
        """(m, C): the cosine similarities that a teacher sees; -inf for candidates that it has not seen.

        Raises:
            ValueError: if there is no teacher.
        """
        queries, candidates = self.problem.teacher_queries, self.problem.teacher_candidates
        if queries is None or candidates is None:
            raise ValueError("there is no teacher: pass Batch(..., teacher_embeddings=...)")
        with torch.autocast(queries.device.type, enabled=False):
            seen = queries[self.rows] @ candidates.T
        return F.pad(seen, (0, len(self.problem.candidates) - len(candidates)), value=-torch.inf)


Edit = Callable[[Tensor, Tile], Tensor]
"""What changes the logits of a tile before the softmax; see :mod:`st_simcse.objective.edits`."""
