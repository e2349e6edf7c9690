"""Several processes: gather the rows of all, deal batches out evenly, keep the weights of the loss in step."""

from __future__ import annotations

import heapq
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from sentence_transformers.base.sampler import (
    DefaultBatchSampler,
    GroupByLabelBatchSampler,
    MultiDatasetDefaultBatchSampler,
    NoDuplicatesBatchSampler,
)
from sentence_transformers.util import all_gather
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState

from st_simcse.batching import LengthGroupedBatchSampler
from st_simcse.own_weights import own_parameters

__all__ = [
    "EvenBatchSampler",
    "LossSynchronizer",
    "RoundSampler",
    "any_process",
    "averaged_gradients",
    "check_in_step",
    "gather_rows",
    "gradients_are_averaged",
    "is_distributed",
    "world_size",
]

logger = logging.getLogger(__name__)


def is_distributed() -> bool:
    """Whether this is one of several processes."""
    return world_size() > 1


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process."""
    if is_distributed():
        on_device = torch.tensor(flag, dtype=torch.int, device=torch.accelerator.current_accelerator() or "cpu")
        dist.all_reduce(on_device, op=dist.ReduceOp.MAX)
        flag = bool(on_device)
    return flag


def gather_rows(first: Tensor, *others: Tensor | None) -> tuple[list[Any], slice]:
    """The rows of all processes in order of rank, and which of them are this process's.

    Gradients flow back to the process that a row came from. Processes may have different numbers of rows; they are
    told each other once for all tensors.

    Args:
        first: (B, ...), B of this process's own.
        *others: the same; None stays None.

    Example:
        >>> (gathered,), own = gather_rows(torch.ones(3, 2))  # a single process gathers its own rows
        >>> gathered.shape, own
        (torch.Size([3, 2]), slice(0, 3, None))
    """
    own = len(first)
    if not is_distributed():
        return [first, *others], slice(0, own)
    counts = all_gather(torch.tensor([own], device=first.device)).tolist()
    begin = sum(counts[: dist.get_rank()])

    def gathered(tensor: Tensor) -> Tensor:
        padded = F.pad(tensor, [0, 0] * (tensor.ndim - 1) + [0, max(counts) - own])
        parts = all_gather(padded, with_grad=padded.is_floating_point()).split(max(counts))
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    return [None if tensor is None else gathered(tensor) for tensor in (first, *others)], slice(begin, begin + own)


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


_inside: ContextVar[bool] = ContextVar("_inside", default=False)


def gradients_are_averaged() -> bool:
    """Whether this is inside of :func:`averaged_gradients`."""
    return _inside.get()


def check_in_step(loss: nn.Module, model: nn.Module) -> None:
    """Whether the weights that belong to a loss stay equal in all processes.

    Raises:
        ValueError: if they would drift apart; says what to do.
    """
    drifts = is_distributed() and torch.is_grad_enabled() and not gradients_are_averaged()
    if drifts and own_parameters(loss, model):
        raise ValueError(
            "in several processes the weights of a loss, such as a projection head's, would drift apart, since "
            "DistributedDataParallel wraps the model alone: train with SimCSETrainer, which keeps them equal"
        )


@contextmanager
def averaged_gradients(parameters: Iterable[nn.Parameter], now: bool = True) -> Iterator[None]:
    """Around a training step, after which gradients are the means over all processes.

    Args:
        parameters: those outside the model, which alone DistributedDataParallel wraps.
        now: False while gradients are accumulated.

    Example:
        >>> with averaged_gradients([]):
        ...     gradients_are_averaged()
        True
    """
    token = _inside.set(True)
    try:
        yield
    finally:
        _inside.reset(token)
    if now:
        _average_gradients(parameters)


def _average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """A process without a gradient counts as zero.

    What has none in any process keeps none, so that optimizers pass over it as they do in a single process.
    """
    parameters = list(parameters)
    if not is_distributed() or not parameters:
        return
    used = torch.tensor([parameter.grad is not None for parameter in parameters], device=parameters[0].device).int()
    dist.all_reduce(used, op=dist.ReduceOp.MAX)
    for parameter, is_used in zip(parameters, used.tolist(), strict=True):
        if is_used:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()


class LossSynchronizer(TrainerCallback):
    """What a Trainer of several processes has to be told: the weights of its losses start as those of rank 0.

    DistributedDataParallel wraps the model alone. And an epoch that training resumes in the middle of is drawn in the
    order of that epoch, since accelerate passes the epoch on to whole ones only.

    Args:
        parameters: gives the parameters that belong to losses and not to the model.
    """

    def __init__(self, parameters: Callable[[], Iterable[nn.Parameter]]) -> None:
        self.parameters = parameters

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        if is_distributed():
            for parameter in self.parameters():
                dist.broadcast(parameter.data, src=0)

    def on_epoch_begin(
        self, args: Any, state: TrainerState, control: TrainerControl, train_dataloader: Any = None, **kwargs: Any
    ) -> None:
        sampler = getattr(getattr(train_dataloader, "batch_sampler", None), "batch_sampler", None)
        if isinstance(sampler, EvenBatchSampler):
            sampler.set_epoch(int(state.epoch))
