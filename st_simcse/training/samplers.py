"""Batch samplers that give every process as many batches as the others."""

from __future__ import annotations

import heapq
import logging
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from sentence_transformers.base.sampler import (
    DefaultBatchSampler,
    GroupByLabelBatchSampler,
    MultiDatasetDefaultBatchSampler,
    NoDuplicatesBatchSampler,
)

from st_simcse.data.batching import LengthGroupedBatchSampler

__all__ = [
    "EvenBatchSampler",
    "RoundSampler",
]

logger = logging.getLogger(__name__)


class RoundSampler(DefaultBatchSampler):
    """Another batch sampler's batches in rounds: one batch for every process.

    Batches keep their rows and their order. Where the last round has fewer batches than there are processes they are
    halved, so that every row is used and no batch is larger than it was; what the sampler promises of a batch, such as
    no duplicates, stays true. Batches of ST's default sampler and of LengthGroupedBatchSampler promise nothing of the
    kind, so the rows of their last round are dealt out evenly. GroupByLabelBatchSampler's batches cannot be halved: its
    last, incomplete round is left out.

    Rows that NoDuplicatesBatchSampler draws again where it runs short are not used again. Rows that are left out for
    another reason than ``drop_last`` are logged.

    A round is a list of int64 arrays, one batch a process, so that ST's samplers of several datasets, which add where a
    dataset begins to every element of a batch, take rounds as they take batches.

    Args:
        batches: a batch sampler as ST makes it.
        processes: their number.

    Raises:
        ValueError: for fewer rows than processes.

    Example:
        >>> rounds = RoundSampler(DefaultBatchSampler(range(11), batch_size=4, drop_last=False), processes=2)
        >>> [[batch.tolist() for batch in batches] for batches in rounds]
        [[[0, 1, 2, 3], [4, 5, 6, 7]], [[8, 9], [10]]]
    """

    def __init__(self, batches: DefaultBatchSampler, processes: int) -> None:
        super().__init__(batches.sampler, batches.batch_size, batches.drop_last, seed=getattr(batches, "seed", 0))
        rows: Any = batches.sampler
        if len(rows) < processes:
            raise ValueError(f"{processes} processes need a row each, but the dataset has {len(rows)}")
        self.batches = batches
        self.processes = processes
        self.drop_last = batches.drop_last or isinstance(batches, GroupByLabelBatchSampler)

    def __iter__(self) -> Iterator[list[np.ndarray]]:
        batches = list(self.batches)
        if isinstance(self.batches, NoDuplicatesBatchSampler):
            batches = _without_repeats(batches)
        planned = len(self) * self.processes
        if left_out := sum(map(len, batches[planned:])):
            log = logger.info if self.batches.drop_last else logger.warning
            log("%d row(s) left out of this epoch, in batches beyond the planned ones", left_out)
        batches = _halved(batches[:planned], planned, planned - self.processes)
        whole = len(batches) // self.processes * self.processes
        if whole < planned:
            logger.warning("only %d of %d planned batches: the batch sampler has too few rows", whole, planned)
        rounds: list[Any] = [batches[begin : begin + self.processes] for begin in range(0, whole, self.processes)]
        if rounds and type(self.batches) in (DefaultBatchSampler, LengthGroupedBatchSampler):
            rounds[-1] = np.array_split(np.concatenate(rounds[-1]), self.processes)
        for batch in rounds:
            yield [np.asarray(rows) for rows in batch]

    def __len__(self) -> int:
        return len(self.batches) // self.processes if self.drop_last else -(-len(self.batches) // self.processes)

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        if hasattr(self.batches, "set_epoch"):
            self.batches.set_epoch(epoch)


def _without_repeats(batches: Iterable[list[int]]) -> list[list[int]]:
    seen: set[int] = set()
    fresh = []
    for batch in batches:
        if rows := [row for row in batch if row not in seen]:
            fresh.append(rows)
            seen.update(rows)
    return fresh


def _halved(batches: list[list[int]], number: int, last_round: int) -> list[list[int]]:
    """So many batches: the largest are halved until there are, those of the last round (from there on) first."""
    while missing := number - len(batches):
        sizes = [(i >= last_round and len(batch) > 1, len(batch), i) for i, batch in enumerate(batches)]
        largest = {i for *_, i in heapq.nlargest(missing, sizes)}
        halves = []
        for i, batch in enumerate(batches):
            half = (len(batch) + 1) // 2 if i in largest else len(batch)
            halves += [part for part in (batch[:half], batch[half:]) if part]
        if len(halves) == len(batches):
            break
        batches = halves
    return batches


class EvenBatchSampler(DefaultBatchSampler):
    """Deals rounds out: batch i goes to process i modulo their number, and all processes get equally many.

    Args:
        rounds: a :class:`RoundSampler`, or ST's sampler of several datasets over such. Then all processes draw the same
            dataset in a step, and their collective operations fit together.
        processes: their number.

    Raises:
        ValueError: on iterating, if a sampler of several datasets gives something else than the rounds of its samplers.

    Example:
        >>> batches = DefaultBatchSampler(range(11), batch_size=4, drop_last=False)
        >>> list(EvenBatchSampler(RoundSampler(batches, 2), 2))
        [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9], [10]]
    """

    def __init__(self, rounds: RoundSampler | MultiDatasetDefaultBatchSampler, processes: int) -> None:
        super().__init__(rounds.sampler, rounds.batch_size, rounds.drop_last)
        # Otherwise accelerate takes a round whose last batch is not full for the end of the epoch.
        self.batch_size = None  # type: ignore[assignment]
        self.rounds = rounds
        self.processes = processes

    def __iter__(self) -> Iterator[list[int]]:
        # As ST's other samplers do themselves; what accelerate has to do it for the default one does not reach here.
        if generator := getattr(self.rounds.sampler, "generator", None):
            generator.manual_seed(self.rounds.seed + self.epoch)
        batches: Any
        for batches in self.rounds:
            if len(batches) != self.processes or not all(isinstance(batch, np.ndarray) for batch in batches):
                raise ValueError(
                    f"{type(self.rounds).__name__} does not pass on the batches of its batch samplers: in several "
                    "processes a sampler of several datasets may only add where a dataset begins to their elements"
                )
            yield from (batch.tolist() for batch in batches)

    def __len__(self) -> int:
        return len(self.rounds) * self.processes

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self.rounds.set_epoch(epoch)
