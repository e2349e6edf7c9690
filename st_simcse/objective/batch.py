"""Embeddings of a batch, and who of them is compared with whom."""

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
# The text key of a hard negative that is not there, where rows have different numbers of them.
MISSING_KEY = torch.iinfo(torch.int64).min
_DIRECTIONS: tuple[Direction, ...] = get_args(Direction)


@dataclass(frozen=True)
class Comparison:
    """Who is compared with whom. The names are those of ST's MultipleNegativesRankingLoss: a query is an anchor.

    Args:
        directions: ``query_to_doc`` compares anchors with positives and hard negatives, and has to be there;
            ``query_to_query`` with the other anchors; ``doc_to_query`` positives with anchors; ``doc_to_doc`` positives
            with the positives and hard negatives of other rows. All four are GTE's objective (Li et al., 2023).
        partition_mode: one softmax over a row's directions (``joint``), or one each, whose losses are averaged
            (``per_direction``: for the two directions that hold a positive).
        symmetric: the positives are anchors too. Each of the 2B rows is classified against the 2B - 1 other rows and
            the hard negatives, as in :func:`~st_simcse.unsup_simcse_loss`. Stands in place of the directions.

    Raises:
        ValueError: for directions that do not exist, lack ``query_to_doc`` or do not go with the partition mode.

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
            raise ValueError("the direction query_to_doc holds the positive pair and cannot be left out")
        if self.partition_mode not in ("joint", "per_direction"):
            raise ValueError(f"partition_mode is joint or per_direction, got {self.partition_mode!r}")
        if self.partition_mode == "per_direction" and {"query_to_query", "doc_to_doc"} & set(self.directions):
            raise ValueError(
                "query_to_query and doc_to_doc hold no positive, so that they have no loss of their own: pass "
                "partition_mode='joint'"
            )
        if self.symmetric and tuple(self.directions) != ("query_to_doc",):
            raise ValueError("symmetric=True says who is compared with whom: leave directions out")


@dataclass(frozen=True)
class Batch:
    """Embeddings of any floating dtype on any device, and what is known of their texts.

    Args:
        anchors: (B, d).
        positives: (B, d); row i belongs to anchor i.
        hard_negatives: (B, d) or (B, N, d); row i belongs to anchor i, and is an ordinary negative for the others.
        shared_negatives: (M, d), further negatives of every anchor, such as those of a queue.
        text_keys: int64 numbers that say which texts are the same: one tensor for ``anchors``, ``positives``,
            ``hard_negatives`` and ``shared_negatives`` each, as far as these are given, in their shapes without the
            last dimension. A candidate is no negative of a query whose positives include the same text, or that is the
            same text, and is left out of the sum. The positives of a text are those of all rows with that anchor; if
            positives are compared too, also the anchors of all rows with that positive. Hard negatives with the key
            ``MISSING_KEY``, the least int64, are not there.
        positive_similarities: (B,), the cosine similarities of the rows with their positives, where these are not to
            be ``anchors`` times ``positives``: for pairs that are embedded otherwise than the negatives are.
        rows: the rows whose loss is averaged; the others serve as negatives only. Of a batch gathered from several
            processes each process takes its own rows.
        teacher_embeddings: what a teacher says of the texts, of unit length: one tensor for ``anchors``, ``positives``
            and ``hard_negatives`` each, as far as these are given, in their shapes but for the last dimension.

    Raises:
        ValueError: for shapes that do not fit, text keys missing, no rows, and an integer dtype.

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
                f"positive_similarities must be one a row, got {tuple(self.positive_similarities.shape)} for {rows[0]} "
                "rows"
            )
        if shared is not None and (shared.ndim != 2 or shared.shape[1] != self.anchors.shape[1]):
            raise ValueError(
                f"shared_negatives must be (M, d) with the anchors' d, got {tuple(shared.shape)} for anchors "
                f"{tuple(self.anchors.shape)}"
            )
        if self.teacher_embeddings is not None:
            _check_teacher(self.teacher_embeddings, self.anchors, self.positives, self.hard_negatives)
        if self.text_keys is not None:
            _check_keys(self.text_keys, self.anchors, self.positives, self.hard_negatives, shared)

    def problems(self, comparison: Comparison, scale: float) -> list[Problem]:
        """The softmaxes to average over: a Problem for each that is to count alike.

        Raises:
            ValueError: for NaN or infinite embeddings; the message lists the rows.
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
        with_anchors = set(directions) != {"query_to_doc"}  # among the candidates, in front
        anchor_columns = len(anchors) if with_anchors else 0
        # Anchors alone, or anchors and positives in turn.
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
            excluded=self._without_missing(
                _excluded(directions, query_groups, anchor_columns, candidates), query_groups, candidates
            ),
            own_negatives=None if own_negatives is None else _interleaved([own_negatives] * query_groups),
            positive_similarities=similarities,
            teacher_queries=teacher_queries,
            teacher_candidates=teacher_candidates,
            group=1 if comparison.symmetric else query_groups,
        )

    def _without_missing(self, excluded: Tensor | None, query_groups: int, candidates: Tensor) -> Tensor | None:
        """The same columns left out, and those of hard negatives that are not there."""
        if self.hard_negatives is None or self.text_keys is None:
            return excluded
        missing = self.text_keys[2].flatten() == MISSING_KEY
        if not missing.any():
            return excluded
        if excluded is None:
            excluded = torch.zeros(query_groups, len(candidates), dtype=torch.bool, device=candidates.device)
        others = 0 if self.shared_negatives is None else len(self.shared_negatives)
        end = len(candidates) - others
        excluded[:, end - len(missing) : end] |= missing
        return excluded

    def _known_positives(self, with_anchors: bool, query_groups: int) -> KnownPositives | None:
        """None if no place but the targets and the rows themselves is to be left out."""
        if self.text_keys is None:
            return None
        anchors, positives, *others = self.text_keys
        pairs = torch.stack([anchors, positives])
        pairs = torch.cat([pairs, pairs.flip(0)], dim=1) if query_groups == 2 else pairs
        queries = _interleaved([anchors[self.rows], positives[self.rows]][:query_groups])
        documents = [positives, *(keys.flatten() for keys in others)]
        candidates = torch.cat([anchors, *documents] if with_anchors else documents)
        known = KnownPositives(queries, candidates, pairs)
        expected = 2 if with_anchors else 1  # a query's target, and the query itself
        return known if known.count() > expected * len(queries) else None


def _interleaved(groups: Sequence[Tensor]) -> Tensor:
    """The first rows of all groups, then the second ones, so that the rows of one softmax lie together."""
    return groups[0] if len(groups) == 1 else torch.stack(list(groups), dim=1).flatten(0, 1)


def _excluded(directions: Sequence[str], query_groups: int, anchor_columns: int, candidates: Tensor) -> Tensor | None:
    """(query_groups, C) bool: the columns, anchors first, that no direction of a group has; None if there are none."""
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
        raise ValueError(f"hard_negatives must be (B, d) or (B, N, d) with the anchors' B and d, got {shapes}")


def _check_keys(text_keys: Sequence[Tensor], *embeddings: Tensor | None) -> None:
    expected = [tuple(tensor.shape[:-1]) for tensor in embeddings if tensor is not None]
    shapes = [tuple(keys.shape) for keys in text_keys]
    if shapes != expected:
        raise ValueError(
            "text_keys must be one tensor for anchors, positives, hard_negatives and shared_negatives each, as far as "
            f"these are given, of shapes {expected}; got {shapes}"
        )


def _check_teacher(teacher: Sequence[Tensor], *embeddings: Tensor | None) -> None:
    expected = [tuple(tensor.shape[:-1]) for tensor in embeddings if tensor is not None]
    if [tuple(one.shape[:-1]) for one in teacher] != expected or len({one.shape[-1] for one in teacher}) != 1:
        raise ValueError(
            "teacher_embeddings must be one tensor for anchors, positives and hard_negatives each, as far as these are "
            f"given, of shapes {expected} and one more dimension; got {[tuple(one.shape) for one in teacher]}"
        )
