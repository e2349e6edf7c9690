"""What the processes of a run exchange: rows, flags, and the gradients of a loss's own weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from sentence_transformers.util import all_gather
from torch import Tensor, nn

from st_simcse.losses.own_weights import own_parameters

__all__ = [
    "any_process",
    "averaged_gradients",
    "check_in_step",
    "gather_rows",
    "gradients_are_averaged",
    "is_distributed",
    "world_size",
]


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
