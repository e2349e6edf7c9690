"""Several processes: gather the rows of all, deal batches out evenly, keep the weights of the loss in step."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from sentence_transformers.base.sampler import DefaultBatchSampler
from sentence_transformers.util import all_gather
from torch import Tensor, nn
from transformers import TrainerCallback

__all__ = ["EvenBatchSampler", "LossSynchronizer", "any_process", "gather_rows", "is_distributed"]

logger = logging.getLogger(__name__)


def is_distributed() -> bool:
    """Whether this is one of several processes."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process."""
    if is_distributed():
        on_device = torch.tensor(flag, dtype=torch.int, device=torch.accelerator.current_accelerator() or "cpu")
        dist.all_reduce(on_device, op=dist.ReduceOp.MAX)
        flag = bool(on_device)
    return flag


def gather_rows(tensor: Tensor) -> tuple[Tensor, slice]:
    """The rows of all processes in order of rank, and which of them are this process's.

    Gradients flow back to the process that a row came from. Processes may have different numbers of rows.

    Args:
        tensor: (B, ...), B of this process's own.

    Example:
        >>> gathered, own = gather_rows(torch.ones(3, 2))  # a single process gathers its own rows
        >>> gathered.shape, own
        (torch.Size([3, 2]), slice(0, 3, None))
    """
    if not is_distributed():
        return tensor, slice(0, len(tensor))
    own_size = torch.tensor([len(tensor)], device=tensor.device)
    sizes = [torch.empty_like(own_size) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, own_size)
    counts = [int(size) for size in sizes]
    padding = [0, 0] * (tensor.ndim - 1) + [0, max(counts) - len(tensor)]
    padded = F.pad(tensor, padding)
    parts = all_gather(padded, with_grad=padded.is_floating_point()).split(max(counts))
    begin = sum(counts[: dist.get_rank()])
    rows = torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
    return rows, slice(begin, begin + len(tensor))


class EvenBatchSampler(DefaultBatchSampler):
    """Another batch sampler's batches, as many for every process, so that no process waits for one that is done.

    The batches left over after the last whole round are cut into equal parts, one a process. With ``drop_last`` they
    are dropped; and if they hold fewer rows than there are processes these rows are left out, and logged.

    Args:
        batches: a batch sampler as ST makes it.
        processes: their number; batch i goes to process i modulo that number.

    Example:
        >>> batches = DefaultBatchSampler(range(11), batch_size=4, drop_last=False)
        >>> list(EvenBatchSampler(batches, processes=2))
        [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9], [10]]
    """

    def __init__(self, batches: DefaultBatchSampler, processes: int) -> None:
        super().__init__(batches.sampler, batches.batch_size, batches.drop_last)
        self.batches = batches
        self.processes = processes

    def __iter__(self) -> Iterator[list[int]]:
        group: list[list[int]] = []
        for batch in self.batches:
            group.append(batch)
            if len(group) == self.processes and len(batch) == self.batch_size:
                yield from group
                group = []
        rows = [row for batch in group for row in batch]
        if self.drop_last or not rows:
            return
        if len(rows) < self.processes:
            logger.warning("%d row(s) left out of this epoch: fewer than the %d processes", len(rows), self.processes)
            return
        size, larger = divmod(len(rows), self.processes)
        for process in range(self.processes):
            begin = process * size + min(process, larger)
            yield rows[begin : begin + size + (process < larger)]

    def __len__(self) -> int:
        rounds, rest = divmod(len(self.batches.sampler), self.processes * self.batch_size)
        return self.processes * (rounds + (rest >= self.processes and not self.drop_last))

    def set_epoch(self, epoch: int) -> None:
        self.batches.set_epoch(epoch)


class LossSynchronizer(TrainerCallback):
    """Keeps parameters that belong to losses, not to the model, equal in all processes.

    DistributedDataParallel wraps the model alone. Loss parameters start as those of rank 0, and their gradients are
    averaged before every optimizer step.
    """

    def __init__(self, losses: Iterable[nn.Module]) -> None:
        self.losses = list(losses)
        for loss in self.losses:
            loss.is_synchronized = True

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        for parameter in self._parameters():
            dist.broadcast(parameter.data, src=0)

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        for parameter in self._parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()

    def _parameters(self) -> list[nn.Parameter]:
        if not is_distributed():
            return []
        return [
            parameter
            for loss in self.losses
            for name, parameter in loss.named_parameters()
            if not name.startswith("model.") and parameter.requires_grad
        ]
