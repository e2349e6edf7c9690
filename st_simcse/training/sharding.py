"""Support for FSDP2 and DeepSpeed: a check of what they can train, and loss weights that FSDP2 does not shard."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import FullyShardedDataParallelPlugin
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments
from torch import Tensor, nn
from torch.optim import Optimizer

from st_simcse.losses.base import SimCSELoss
from st_simcse.losses.options import check_compatible
from st_simcse.losses.own_weights import own_parameters
from st_simcse.losses.simcse import simcse_losses
from st_simcse.models.lora import adapters

__all__ = ["UnshardedWeights", "check_shardable", "with_weights", "without_weights"]

WHOLE_OPTIMIZER_NAME = "loss_optimizer.pt"


def check_shardable(
    args: SentenceTransformerTrainingArguments,
    state: AcceleratorState,
    losses: Iterable[nn.Module],
    model: SentenceTransformer,
) -> None:
    """Checks that training with FSDP or DeepSpeed gives the same weights as training in a single process.

    Args:
        args: The training arguments.
        state: The state of accelerate, which has the plugin of FSDP or DeepSpeed if one is used.
        losses: The losses, including their wrappers.
        model: The model to train.

    Raises:
        ValueError: If the weights would differ, or if FSDP is requested but accelerate does not use it. The message
            says what to do.
    """
    fsdp, deepspeed = (getattr(state, f"{name}_plugin", None) for name in ("fsdp", "deepspeed"))
    if fsdp is not None:
        _check_fsdp(fsdp)
    elif args.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        raise ValueError(
            "Accelerate does not shard on this device and would train with DistributedDataParallel instead. Leave out "
            "fsdp."
        )
    if deepspeed is not None and deepspeed.zero_stage not in (1, 2):
        raise ValueError(
            f"DeepSpeed's ZeRO stage {deepspeed.zero_stage} has not been tested with SimCSETrainer. Use stage 1 or 2, "
            "or FSDP."
        )
    if fsdp is None and deepspeed is None:
        return
    name = "DeepSpeed" if fsdp is None else "FSDP"
    if adapters(model):
        raise ValueError(f"LoRA has not been tested with {name}. Leave out one of the two.")
    if args.torch_compile:
        raise ValueError(f"torch_compile does not work with {name}. Leave out one of the two.")
    for loss in losses:
        if deepspeed is not None and own_parameters(loss, model):
            raise ValueError(
                "DeepSpeed only trains the weights of the model, not those of a loss, such as a projection head. Leave "
                "out the head, use FSDP, or make it part of the model with build_model(..., dense=True)."
            )
        for inner in simcse_losses(loss):
            _check_loss(inner, name)


def _check_loss(loss: SimCSELoss, name: str) -> None:
    check_compatible(loss.options, name)
    if loss.mini_batch_size is not None:
        raise ValueError(
            f"{name} exchanges weights or gradients in every mini-batch, but the number of mini-batches may differ "
            "between processes. Leave out mini_batch_size, and lower the batch size or use gradient_checkpointing "
            "instead."
        )


def _check_fsdp(plugin: FullyShardedDataParallelPlugin) -> None:
    if plugin.fsdp_version != 2:
        raise ValueError(
            'SimCSETrainer does not support FSDP1. Pass fsdp_config={"version": 2} (--fsdp_version 2) to use FSDP2.'
        )
    if "FULL_STATE_DICT" not in str(plugin.state_dict_type):
        raise ValueError(
            f"With {plugin.state_dict_type}, the saved model could not be loaded. Pass fsdp_config="
            '{"state_dict_type": "FULL_STATE_DICT"} (--fsdp_state_dict_type FULL_STATE_DICT).'
        )


class UnshardedWeights:
    """The loss's parameters in an optimizer whose other parameters are sharded.

    Accelerate only knows the parameters of the model. It must not see those of the loss when it replaces the
    optimizer's parameters by sharded ones, or when it saves and loads their state. The parameters of the loss are in
    separate groups, because no kernel handles both kinds.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.ids = {id(parameter) for parameter in parameters}
        self.groups: list[dict[str, Any]] = []

    def take_out(self, optimizer: Optimizer) -> None:
        """Removes the loss's parameters from the optimizer, so that only the model's parameters are left."""
        for group in optimizer.param_groups:
            if own := [parameter for parameter in group["params"] if id(parameter) in self.ids]:
                self.groups.append({**group, "params": own})
                group["params"] = [parameter for parameter in group["params"] if id(parameter) not in self.ids]
        optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]

    def put_back(self, optimizer: Optimizer) -> None:
        """Adds the removed parameters to the optimizer again."""
        while self.groups:
            optimizer.add_param_group(self.groups.pop(0))

    @contextmanager
    def saving(self, optimizer: Optimizer, model: nn.Module, folder: str | None) -> Iterator[None]:
        """Hides these parameters while accelerate saves the optimizer's state, and saves their state afterwards.

        ``folder`` is None in processes that do not save.
        """
        # Torch cannot load the state if a parameter of the model has none, such as the weights of an unused pooler.
        idle = [name for name, parameter in model.named_parameters() if not optimizer.state.get(parameter)]
        with self._aside(optimizer, model, idle):
            yield
        if folder is not None:
            groups = [
                {**group, "params": [optimizer.state.get(parameter, {}) for parameter in group["params"]]}
                for group in self._own(optimizer)
            ]
            torch.save({"groups": groups, "idle": idle}, Path(folder, WHOLE_OPTIMIZER_NAME))

    @contextmanager
    def loading(self, optimizer: Optimizer, model: nn.Module, folder: str) -> Iterator[None]:
        """Hides these parameters while accelerate loads the optimizer's state, and loads their state afterwards.

        Raises:
            FileNotFoundError: If :meth:`saving` has not saved their state to the folder.
        """
        saved = torch.load(Path(folder, WHOLE_OPTIMIZER_NAME), weights_only=True)
        with self._aside(optimizer, model, saved["idle"]):
            yield
        for group, settings in zip(self._own(optimizer), saved["groups"], strict=True):
            for parameter, state in zip(group["params"], settings.pop("params"), strict=True):
                optimizer.state[parameter] = state
            group.update(settings)

    @contextmanager
    def _aside(self, optimizer: Optimizer, model: nn.Module, idle: list[str]) -> Iterator[None]:
        names = set(idle)
        aside = self.ids | {id(parameter) for name, parameter in model.named_parameters() if name in names}
        groups = [(group, group["params"]) for group in optimizer.param_groups]
        states = {parameter: state for parameter, state in optimizer.state.items() if id(parameter) in aside}
        for parameter in states:
            del optimizer.state[parameter]
        for group, parameters in groups:
            group["params"] = [parameter for parameter in parameters if id(parameter) not in aside]
        optimizer.param_groups[:] = [group for group, _ in groups if group["params"]]
        try:
            yield
        finally:
            others = iter(optimizer.param_groups[:])  # loading makes new ones
            optimizer.param_groups[:] = [next(others) if group["params"] else group for group, _ in groups]
            for restored, (_, parameters) in zip(optimizer.param_groups, groups, strict=True):
                restored["params"] = parameters
            optimizer.state.update(states)

    def _own(self, optimizer: Optimizer) -> list[dict[str, Any]]:
        return [group for group in optimizer.param_groups if id(group["params"][0]) in self.ids]


def without_weights(model: SentenceTransformer) -> SentenceTransformer:
    """Returns a copy of an unsharded model that takes no memory for weights, and that shares the model card.

    Example:
        >>> from st_simcse.demo import tiny_model
        >>> model = tiny_model(["Two dogs run."])
        >>> bare = without_weights(model)
        >>> bare.device.type
        'meta'
        >>> with_weights(bare, model.state_dict()).encode("Two dogs run.").shape
        (64,)
    """
    bare = {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in model.parameters()}
    card = model.model_card_data
    return copy.deepcopy(model, {**bare, id(card): card})


def with_weights(bare: SentenceTransformer, weights: dict[str, Tensor]) -> SentenceTransformer:
    """Returns a copy of a model from :func:`without_weights` that has these weights."""
    model = without_weights(bare)
    model.load_state_dict(weights, assign=True)
    return model
