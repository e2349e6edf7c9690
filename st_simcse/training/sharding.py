"""FSDP2 and DeepSpeed: what they train as one process does; and of FSDP2 the weights of a loss, which stay whole."""

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
from st_simcse.models.lora import adapters

__all__ = ["UnshardedWeights", "check_shardable", "with_weights", "without_weights"]

WHOLE_OPTIMIZER_NAME = "loss_optimizer.pt"


def check_shardable(
    args: SentenceTransformerTrainingArguments,
    state: AcceleratorState,
    losses: Iterable[nn.Module],
    model: SentenceTransformer,
) -> None:
    """Whether FSDP or DeepSpeed, if one is asked for, gives the weights that training in one process gives.

    Args:
        args: of the training.
        state: accelerate's.
        losses: with their wrappers.
        model: the one that is trained.

    Raises:
        ValueError: if it does not, or if FSDP is asked for and accelerate leaves it out; says what to do.
    """
    fsdp, deepspeed = (getattr(state, f"{name}_plugin", None) for name in ("fsdp", "deepspeed"))
    if fsdp is not None:
        _check_fsdp(fsdp)
    elif args.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        raise ValueError(
            "accelerate does not shard on this device, and would train with DistributedDataParallel instead: leave "
            "fsdp out"
        )
    if deepspeed is not None and deepspeed.zero_stage not in (1, 2):
        raise ValueError(f"DeepSpeed's ZeRO stage {deepspeed.zero_stage} has not been tried: use stage 1 or 2, or FSDP")
    if fsdp is None and deepspeed is None:
        return
    name = "DeepSpeed" if fsdp is None else "FSDP"
    if adapters(model):
        raise ValueError(f"LoRA has not been tried with {name}: leave one of the two out")
    if args.torch_compile:
        raise ValueError(f"torch_compile does not go with {name}: leave one of the two out")
    for loss in losses:
        if deepspeed is not None and own_parameters(loss, model):
            raise ValueError(
                "DeepSpeed trains the model's weights alone, not those of a loss, such as a projection head's: leave "
                "it out, use FSDP, or make it a part of the model with build_model(..., dense=True)"
            )
        for part in loss.modules():
            if isinstance(part, SimCSELoss):
                _check_loss(part, name)


def _check_loss(loss: SimCSELoss, name: str) -> None:
    check_compatible(loss.options, name)
    if loss.mini_batch_size is not None:
        raise ValueError(
            f"{name} exchanges weights or gradients with every mini-batch, of which processes may have different "
            "numbers: leave mini_batch_size out, and lower the batch size or use gradient_checkpointing instead"
        )


def _check_fsdp(plugin: FullyShardedDataParallelPlugin) -> None:
    if plugin.fsdp_version != 2:
        raise ValueError('FSDP1 is not for SimCSETrainer: fsdp_config={"version": 2} (--fsdp_version 2)')
    if "FULL_STATE_DICT" not in str(plugin.state_dict_type):
        raise ValueError(
            f"{plugin.state_dict_type} would save no model that can be loaded: fsdp_config="
            '{"state_dict_type": "FULL_STATE_DICT"} (--fsdp_state_dict_type FULL_STATE_DICT)'
        )


class UnshardedWeights:
    """The parameters outside the model in an optimizer whose other parameters are sharded.

    Accelerate knows the model's parameters alone, so that it must not see the others when it exchanges the optimizer's
    for sharded ones, or saves and loads their state. They are in groups of their own, since no kernel takes both kinds.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.ids = {id(parameter) for parameter in parameters}
        self.groups: list[dict[str, Any]] = []

    def take_out(self, optimizer: Optimizer) -> None:
        """Leave the model's parameters in the optimizer."""
        for group in optimizer.param_groups:
            if own := [parameter for parameter in group["params"] if id(parameter) in self.ids]:
                self.groups.append({**group, "params": own})
                group["params"] = [parameter for parameter in group["params"] if id(parameter) not in self.ids]
        optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]

    def put_back(self, optimizer: Optimizer) -> None:
        """Add what was taken out."""
        while self.groups:
            optimizer.add_param_group(self.groups.pop(0))

    @contextmanager
    def saving(self, optimizer: Optimizer, model: nn.Module, folder: str | None) -> Iterator[None]:
        """While accelerate saves the state of the others; ``folder`` is None where another process saves this."""
        # Torch does not load the state of a model of which a parameter has none, such as an unused pooler's.
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
        """While accelerate loads the state of the others; raises FileNotFoundError if :meth:`saving` has not saved."""
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
    """A copy of a model before it is sharded, which shares its card; its weights have no memory.

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
    """A copy of what :func:`without_weights` gives, with these weights."""
    model = without_weights(bare)
    model.load_state_dict(weights, assign=True)
    return model
