"""A loss's own weights, kept equal in all processes while the trainer runs."""

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
