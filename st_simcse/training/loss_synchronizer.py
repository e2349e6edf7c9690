"""A callback that keeps the weights of a loss equal in all processes during training."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch.distributed as dist
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState

from st_simcse.losses.collectives import is_distributed
from st_simcse.training.samplers import EvenBatchSampler

__all__ = [
    "LossSynchronizer",
]


class LossSynchronizer(TrainerCallback):
    """A callback that gives all processes the same loss weights and the same order of rows.

    When training begins, it copies the weights of the losses from rank 0 to all processes, because
    DistributedDataParallel only wraps the model. At the start of each epoch, it sets the epoch of the batch sampler,
    because accelerate does not do so for an epoch that training resumes in the middle.

    Args:
        parameters: A function that returns the parameters that belong to the losses and not to the model.
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
