"""Batch samplers that give every process the same number of batches."""

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
    """A batch sampler that groups the batches of another one into rounds, with one batch for each process.

    Batches keep their rows and their order. If the last round has fewer batches than processes, its batches are halved.
    This way, every row is used, no batch grows, and guarantees of the sampler, such as no duplicates in a batch, still
    hold. ST's default sampler and LengthGroupedBatchSampler give no such guarantees, so the rows of their last round
    are spread evenly over the processes. The batches of GroupByLabelBatchSampler cannot be halved, so its last round is
    dropped if it is incomplete.

    NoDuplicatesBatchSampler draws some rows again when it runs out of rows. These repeats are dropped. Rows that are
    dropped for any reason other than ``drop_last`` are logged.

    A round is a list of int64 arrays, one batch per process. ST's samplers of several datasets add the offset of a
    dataset to every element of a batch, so they can handle rounds in the same way as batches.

    Args:
        batches: A batch sampler as created by ST.
        processes: The number of processes.

    Raises:
        ValueError: If there are fewer rows than processes.

    Example:
        >>> rounds = RoundSampler(DefaultBatchSampler(range(11), batch_size=4, drop_last=False), processes=2)
        >>> [[batch.tolist() for batch in batches] for batches in rounds]
        [[[0, 1, 2, 3], [4, 5, 6, 7]], [[8, 9], [10]]]
    """

    def __init__(self, batches: DefaultBatchSampler, processes: int) -> None:
        super().__init__(batches.sampler, batches.batch_size, batches.drop_last, seed=getattr(batches, "seed", 0))
        rows: Any = batches.sampler
        if len(rows) < processes:
            raise ValueError(
                f"{processes} processes need at least one row each, but the dataset has {len(rows)}. Start fewer "
                "processes, or add rows."
            )
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
            log("%d row(s) are not used in this epoch, because their batches exceed the planned number", left_out)
        batches = _halved(batches[:planned], planned, planned - self.processes)
        whole = len(batches) // self.processes * self.processes
        if whole < planned:
            logger.warning(
                "This epoch has only %d of %d planned batches, because the batch sampler has too few rows",
                whole,
                planned,
            )
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
    """Halves batches until there are ``number`` of them, if possible.

    Batches from index ``last_round`` on are halved first, and the largest of them before the others.
    """
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
    """A batch sampler that yields the batches of rounds one by one, the same number for every process.

    Batch i goes to process i modulo the number of processes.

    Args:
        rounds: A :class:`RoundSampler`, or ST's sampler of several datasets on top of several of them. In the latter
            case, all processes use the same dataset in a step, so their collective operations match.
        processes: The number of processes.

    Raises:
        ValueError: During iteration, if a sampler of several datasets does not yield the rounds of its samplers.

    Example:
        >>> batches = DefaultBatchSampler(range(11), batch_size=4, drop_last=False)
        >>> list(EvenBatchSampler(RoundSampler(batches, 2), 2))
        [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9], [10]]
    """

    def __init__(self, rounds: RoundSampler | MultiDatasetDefaultBatchSampler, processes: int) -> None:
        super().__init__(rounds.sampler, rounds.batch_size, rounds.drop_last)
        # With a batch size, accelerate would end the epoch after a round whose last batch is not full.
        self.batch_size = None  # type: ignore[assignment]
        self.rounds = rounds
        self.processes = processes

    def __iter__(self) -> Iterator[list[int]]:
        # ST's other samplers seed their generators themselves. Accelerate seeds the default sampler's, but not in here.
        if generator := getattr(self.rounds.sampler, "generator", None):
            generator.manual_seed(self.rounds.seed + self.epoch)
        batches: Any
        for batches in self.rounds:
            if len(batches) != self.processes or not all(isinstance(batch, np.ndarray) for batch in batches):
                raise ValueError(
                    f"{type(self.rounds).__name__} does not pass on the batches of its batch samplers. With several "
                    "processes, a sampler of several datasets may only add the offset of a dataset to their elements."
                )
            yield from (batch.tolist() for batch in batches)

    def __len__(self) -> int:
        return len(self.rounds) * self.processes

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self.rounds.set_epoch(epoch)
