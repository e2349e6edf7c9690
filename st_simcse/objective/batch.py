"""The embeddings of a batch, and which of them are compared with each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from st_simcse.objective.geometry import normalize
from st_simcse.objective.known_positives import KnownPositives
from st_simcse.objective.problem import Problem

__all__ = ["Batch", "Comparison", "Direction"]

Direction = Literal["query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc"]
# The text key of padding: rows with fewer hard negatives than others are filled up with it.
MISSING_KEY = torch.iinfo(torch.int64).min
_DIRECTIONS: tuple[Direction, ...] = get_args(Direction)


@dataclass(frozen=True)
class Comparison:
    """The choice of embeddings of a batch to compare with each other.

    The names follow ST's MultipleNegativesRankingLoss: a query is an anchor, a doc is a positive or a hard negative.

    Args:
        directions: The comparisons to make. ``query_to_doc`` compares anchors with positives and hard negatives and is
            required. ``query_to_query`` compares anchors with the other anchors, ``doc_to_query`` positives with
            anchors, and ``doc_to_doc`` positives with the positives and hard negatives of other rows. All four
            together are GTE's objective (Li et al., 2023).
        partition_mode: ``joint`` puts all directions of a row into one softmax. ``per_direction`` computes a softmax
            for each direction and averages the losses; it accepts ``query_to_doc`` and ``doc_to_query`` only, because
            the other two directions have no positive.
        symmetric: If True, the positives are anchors too. Each of the 2B rows is classified against the 2B - 1 other
            rows and the hard negatives, as in :func:`~st_simcse.unsup_simcse_loss`. Replaces ``directions`` and
            ``partition_mode``.

    Raises:
        ValueError: If a direction is unknown, ``query_to_doc`` is missing, or ``directions``, ``partition_mode`` and
            ``symmetric`` cannot be combined.

    Example:
        >>> Comparison(directions=("query_to_doc", "doc_to_query"), partition_mode="per_direction").symmetric
        False
    """

    directions: Sequence[Direction] = ("query_to_doc",)
    partition_mode: Literal["joint", "per_direction"] = "joint"
    symmetric: bool = False

    def __post_init__(self) -> None:
        if unknown := set(self.directions) - set(_DIRECTIONS):
            raise ValueError(f"unknown direction(s) {sorted(unknown)}: choose from {', '.join(_DIRECTIONS)}")
        if "query_to_doc" not in self.directions:
            raise ValueError("the direction query_to_doc contains the positive pairs: add it to directions")
        if self.partition_mode not in ("joint", "per_direction"):
            raise ValueError(f"partition_mode must be joint or per_direction, got {self.partition_mode!r}")
        if self.partition_mode == "per_direction" and {"query_to_query", "doc_to_doc"} & set(self.directions):
            raise ValueError(
                "query_to_query and doc_to_doc contain no positive, so they cannot have a softmax of their own. Pass "
                "partition_mode='joint'."
            )
        if self.symmetric and tuple(self.directions) != ("query_to_doc",):
            raise ValueError("symmetric=True already chooses what is compared: omit directions")
        if self.symmetric and self.partition_mode == "per_direction":
            raise ValueError(
                "symmetric=True already computes a softmax for each side: omit partition_mode. To compare anchors only "
                "with positives and vice versa, pass directions=('query_to_doc', 'doc_to_query') instead of symmetric."
            )


@dataclass(frozen=True)
class Batch:
    """The embeddings of a batch, of any floating dtype and on any device, and facts about their texts.

    Args:
        anchors: (B, d).
        positives: (B, d). Row i belongs to anchor i.
        hard_negatives: (B, d) or (B, N, d). Row i belongs to anchor i, and is an ordinary negative for other anchors.
        shared_negatives: (M, d), further negatives of every anchor, such as those of a queue.
        text_keys: int64 numbers, equal for equal texts: a tensor each for ``anchors``, ``positives``,
            ``hard_negatives`` and ``shared_negatives`` (those that are given), shaped like them without the last
            dimension. A candidate is excluded from the softmax of a query if it has the same text as the query or as
            one of the query's positives. The positives of a text are those of all rows with this anchor and, if
            positives are compared too, the anchors of all rows with this positive. Hard negatives with the key
            ``MISSING_KEY``, the smallest int64, are padding and are excluded as well.
        positive_similarities: (B,), the cosine similarity of each row's anchor and positive, if it must not be computed
            from ``anchors`` and ``positives`` because the pairs are embedded differently from the negatives.
        rows: The rows whose loss is averaged. The other rows serve as negatives only. If a batch is gathered from
            several processes, each process passes its own rows.
        teacher_embeddings: A teacher's embeddings of the texts, of unit length: a tensor each for ``anchors``,
            ``positives`` and ``hard_negatives`` (those that are given), shaped like them up to the last dimension.

    Raises:
        ValueError: If the shapes do not match, text keys are missing, the batch has no rows, or a dtype is an integer.

    Example:
        >>> Batch(torch.eye(2), torch.eye(3))
        Traceback (most recent call last):
        ...
        ValueError: anchors and positives must both be (B, d), got anchors (2, 2), positives (3, 3)
    """

    anchors: Tensor
    positives: Tensor
    hard_negatives: Tensor | None = None
    shared_negatives: Tensor | None = None
    text_keys: Sequence[Tensor] | None = None
    positive_similarities: Tensor | None = None
    rows: slice = field(default_factory=lambda: slice(None))
    teacher_embeddings: Sequence[Tensor] | None = None

    def __post_init__(self) -> None:
        _check_shapes(self.anchors, self.positives, self.hard_negatives)
        rows, shared = self.anchors.shape[:1], self.shared_negatives
        if self.positive_similarities is not None and self.positive_similarities.shape != rows:
            raise ValueError(
                f"positive_similarities must have one value per row, got {tuple(self.positive_similarities.shape)} for "
                f"{rows[0]} rows"
            )
        if shared is not None and (shared.ndim != 2 or shared.shape[1] != self.anchors.shape[1]):
            raise ValueError(
                f"shared_negatives must be (M, d) with the d of the anchors, got {tuple(shared.shape)} for anchors "
                f"{tuple(self.anchors.shape)}"
            )
        if self.teacher_embeddings is not None:
            _check_teacher(self.teacher_embeddings, self.anchors, self.positives, self.hard_negatives)
        if self.text_keys is not None:
            _check_keys(self.text_keys, self.anchors, self.positives, self.hard_negatives, shared)

    def problems(self, comparison: Comparison, scale: float) -> list[Problem]:
        """Returns the problems whose losses are averaged with equal weights.

        Raises:
            ValueError: If embeddings are NaN or infinite. The message lists the rows.
        """
        anchors, positives = normalize(self.anchors, "anchors"), normalize(self.positives, "positives")
        others = [
            normalize(tensor.flatten(0, -2), name)
            for name in ("hard_negatives", "shared_negatives")
            if (tensor := getattr(self, name)) is not None
        ]
        if comparison.partition_mode == "per_direction":
            problems = [self._problem(anchors, positives, others, Comparison(), scale)]
            if "doc_to_query" in comparison.directions:
                keys, teacher = (
                    None if columns is None else [columns[1], columns[0]]
                    for columns in (self.text_keys, self.teacher_embeddings)
                )
                turned = Batch(
                    positives,
                    anchors,
                    text_keys=keys,
                    teacher_embeddings=teacher,
                    positive_similarities=self.positive_similarities,
                    rows=self.rows,
                )
                problems.append(turned._problem(positives, anchors, [], Comparison(), scale))
            return problems
        return [self._problem(anchors, positives, others, comparison, scale)]

    def _problem(
        self, anchors: Tensor, positives: Tensor, others: list[Tensor], comparison: Comparison, scale: float
    ) -> Problem:
        directions = _DIRECTIONS if comparison.symmetric else comparison.directions
        with_anchors = set(directions) != {"query_to_doc"}  # the first candidates are the anchors
        anchor_columns = len(anchors) if with_anchors else 0
        # The queries are the anchors, or the anchors and positives alternately.
        query_groups = 1 if {"doc_to_query", "doc_to_doc"}.isdisjoint(directions) else 2
        own = torch.arange(len(anchors), device=anchors.device)[self.rows]
        of_positives = anchor_columns + own
        candidates = torch.cat([anchors, positives, *others] if with_anchors else [positives, *others])

        own_negatives = None
        if self.hard_negatives is not None:
            per_row = len(others[0]) // len(anchors)
            own_negatives = own[:, None] * per_row + torch.arange(per_row, device=own.device)
            own_negatives += anchor_columns + len(positives)
        own_columns = None
        if with_anchors:
            of_anchors, of_docs = own[:, None], of_positives[:, None]
            if own_negatives is not None and not comparison.symmetric:
                of_docs = torch.cat([of_docs, own_negatives], dim=1)
            own_columns = _interleaved([of_anchors.expand_as(of_docs), of_docs][:query_groups])
        similarities = self.positive_similarities
        if similarities is not None:
            similarities = _interleaved([similarities[self.rows].to(candidates.dtype)] * query_groups)
        teacher_queries = teacher_candidates = None
        if self.teacher_embeddings is not None:
            teacher = [one.flatten(0, -2) for one in self.teacher_embeddings]
            teacher_queries = _interleaved([one[self.rows] for one in teacher[:query_groups]])
            teacher_candidates = torch.cat(teacher if with_anchors else teacher[1:])
        return Problem(
            queries=_interleaved([anchors[self.rows], positives[self.rows]][:query_groups]),
            candidates=candidates,
            targets=_interleaved([of_positives, own][:query_groups]),
            scale=scale,
            own_columns=own_columns,
            known_positives=self._known_positives(with_anchors, query_groups),
            excluded=self._without_missing(_excluded(directions, query_groups, anchor_columns, candidates), candidates),
            own_negatives=None if own_negatives is None else _interleaved([own_negatives] * query_groups),
            positive_similarities=similarities,
            teacher_queries=teacher_queries,
            teacher_candidates=teacher_candidates,
            group=1 if comparison.symmetric else query_groups,
        )

    def _without_missing(self, excluded: Tensor | None, candidates: Tensor) -> Tensor | None:
        """Returns ``excluded`` with the columns of padding hard negatives added."""
        if self.hard_negatives is None or self.text_keys is None:
            return excluded
        missing = self.text_keys[2].flatten() == MISSING_KEY
        if not missing.any():
            return excluded
        if excluded is None:
            excluded = torch.zeros(1, len(candidates), dtype=torch.bool, device=candidates.device)
        others = 0 if self.shared_negatives is None else len(self.shared_negatives)
        end = len(candidates) - others
        excluded[:, end - len(missing) : end] |= missing
        return excluded

    def _known_positives(self, with_anchors: bool, query_groups: int) -> KnownPositives | None:
        """Returns None if there is nothing to exclude besides the targets and the queries themselves."""
        if self.text_keys is None:
            return None
        anchors, positives, *others = self.text_keys
        pairs = torch.stack([anchors, positives])
        pairs = torch.cat([pairs, pairs.flip(0)], dim=1) if query_groups == 2 else pairs
        queries = _interleaved([anchors[self.rows], positives[self.rows]][:query_groups])
        documents = [positives, *(keys.flatten() for keys in others)]
        candidates = torch.cat([anchors, *documents] if with_anchors else documents)
        known = KnownPositives(queries, candidates, pairs)
        expected = 2 if with_anchors else 1  # matches: a query's target and, among anchors, the query itself
        return known if known.count() > expected * len(queries) else None


def _interleaved(groups: Sequence[Tensor]) -> Tensor:
    """Alternates the rows of the groups, so that the rows of one softmax are next to each other."""
    return groups[0] if len(groups) == 1 else torch.stack(list(groups), dim=1).flatten(0, 1)


def _excluded(directions: Sequence[str], query_groups: int, anchor_columns: int, candidates: Tensor) -> Tensor | None:
    """Returns a (query_groups, C) bool mask of the columns that no direction compares with a group; None if empty.

    The anchors are the first columns.
    """
    of_anchors = ["query_to_query" not in directions, "doc_to_query" not in directions][:query_groups]
    of_docs = [False, "doc_to_doc" not in directions][:query_groups]
    if not (anchor_columns and any(of_anchors + of_docs)):
        return None
    excluded = torch.zeros(query_groups, len(candidates), dtype=torch.bool, device=candidates.device)
    for group in range(query_groups):
        excluded[group, :anchor_columns], excluded[group, anchor_columns:] = of_anchors[group], of_docs[group]
    return excluded


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
        raise ValueError(f"hard_negatives must be (B, d) or (B, N, d) with the B and d of the anchors, got {shapes}")


def _check_keys(text_keys: Sequence[Tensor], *embeddings: Tensor | None) -> None:
    expected = [tuple(tensor.shape[:-1]) for tensor in embeddings if tensor is not None]
    shapes = [tuple(keys.shape) for keys in text_keys]
    if shapes != expected:
        raise ValueError(
            "text_keys must be one tensor each for anchors, positives, hard_negatives and shared_negatives (those that "
            f"are given), of shapes {expected}; got {shapes}"
        )


def _check_teacher(teacher: Sequence[Tensor], *embeddings: Tensor | None) -> None:
    expected = [tuple(tensor.shape[:-1]) for tensor in embeddings if tensor is not None]
    if [tuple(one.shape[:-1]) for one in teacher] != expected or len({one.shape[-1] for one in teacher}) != 1:
        raise ValueError(
            "teacher_embeddings must be one tensor each for anchors, positives and hard_negatives (those that are "
            f"given), of shapes {expected} plus one dimension; got {[tuple(one.shape) for one in teacher]}"
        )
