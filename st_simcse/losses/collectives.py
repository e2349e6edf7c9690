"""Communication between processes: rows, flags and the gradients of a loss's own weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from sentence_transformers.util import all_gather, get_world_size
from torch import Tensor, nn

from st_simcse.losses.own_weights import own_parameters

__all__ = [
    "any_process",
    "averaged_gradients",
    "check_in_step",
    "gather_rows",
    "gradients_are_averaged",
    "is_distributed",
]


def is_distributed() -> bool:
    """Returns whether there are several processes."""
    return get_world_size() > 1


def any_process(flag: bool) -> bool:
    """Returns whether the flag is set in any process."""
    if is_distributed():
        on_device = torch.tensor(flag, dtype=torch.int, device=torch.accelerator.current_accelerator() or "cpu")
        dist.all_reduce(on_device, op=dist.ReduceOp.MAX)
        flag = bool(on_device)
    return flag


def gather_rows(first: Tensor, *others: Tensor | None) -> tuple[list[Any], slice]:
    """Gathers the rows of all processes, ordered by rank, and returns them with the slice of this process's rows.

    Gradients flow back to the process that a row came from. Processes may have different numbers of rows; the numbers
    are exchanged once for all tensors.

    Args:
        first: (B, ...), with the B of this process.
        *others: Further tensors with B rows. None stays None.

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
    """Returns whether :func:`averaged_gradients` is active."""
    return _inside.get()


def check_in_step(loss: nn.Module, model: nn.Module) -> None:
    """Checks that the weights of a loss stay equal in all processes.

    Raises:
        ValueError: If they would drift apart. The message says what to do.
    """
    drifts = is_distributed() and torch.is_grad_enabled() and not gradients_are_averaged()
    if drifts and own_parameters(loss, model):
        raise ValueError(
            "the loss has weights of its own, such as a projection head, which would drift apart between processes, "
            "because DistributedDataParallel wraps only the model. Train with SimCSETrainer, which keeps them equal."
        )


@contextmanager
def averaged_gradients(parameters: Iterable[nn.Parameter], now: bool = True) -> Iterator[None]:
    """Averages gradients over all processes at the end of the training step inside the ``with`` block.

    Args:
        parameters: The parameters outside the model. DistributedDataParallel averages those of the model.
        now: Pass False while gradients are accumulated.

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
    """Averages gradients over all processes. A process without a gradient counts as zero.

    A parameter without a gradient in every process keeps none. Optimizers then skip it, as they do in a single process.
    """
    if not is_distributed():
        return
    parameters = list(parameters)
    if not parameters:
        return
    used = torch.tensor([parameter.grad is not None for parameter in parameters], device=parameters[0].device).int()
    dist.all_reduce(used, op=dist.ReduceOp.MAX)
    for parameter, is_used in zip(parameters, used.tolist(), strict=True):
        if is_used:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()
