"""LoRA (Hu et al., ICLR 2022) with peft: adapters are trained, the model's own weights are left as they are."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from torch import nn

if TYPE_CHECKING:
    from peft import PeftConfig

__all__ = [
    "adapters",
    "add_lora",
    "check_adapter_is_whole",
    "merge_adapters",
    "merge_lora",
    "restore_adapter",
    "train_adapter",
]


def adapters(model: SentenceTransformer) -> dict[str, PeftConfig]:
    """The configurations of a model's adapters by name; empty where there are none.

    Example:
        >>> from st_simcse.demo import tiny_model
        >>> adapters(tiny_model(["Two dogs run."]))
        {}
    """
    return getattr(model.transformers_model, "peft_config", None) or {}


def add_lora(model: SentenceTransformer, config: PeftConfig) -> None:
    r"""Freeze the transformer and put adapters beside its layers, :math:`W + \frac{\alpha}{r} B A`.

    They are float32 also where the transformer is bfloat16, in which the steps of a small learning rate round to
    nothing.

    Raises:
        ValueError: for a model that has adapters, or none of the layers that the configuration names.
    """
    if adapters(model):
        raise ValueError(
            "the model has an adapter already: leave lora out to train that one on, or merge it, save the model with "
            "merge_lora(model).save_pretrained(folder), and build it from there"
        )
    model.add_adapter(copy.deepcopy(config))  # a copy, because the name of the model is written into it
    _train_in_float32(model)


def train_adapter(model: SentenceTransformer, weights: Path | None) -> None:
    """Train the adapter of a model that was loaded with one, which peft freezes then.

    Args:
        model: what SentenceTransformer made of the folder.
        weights: its file ``adapter_model.safetensors``, if there is one.
    """
    model.set_adapter(model.active_adapters())
    saved = _in_adapter_file(model)
    for name, parameter in _parameters(model):
        if name.endswith("bias") and parameter.data_ptr() in saved:  # LoraConfig(bias=...), which set_adapter forgets
            parameter.requires_grad_(True)
    _train_in_float32(model)
    if weights is not None:
        restore_adapter(model, weights)


def restore_adapter(model: SentenceTransformer, weights: Path) -> None:
    """An adapter's weights exactly as they were saved.

    transformers rounds them to the transformer's precision, and leaves the magnitudes of DoRA as they were initialised.
    """
    saved = load_file(weights)
    with torch.no_grad():
        for name, tensor in model.get_adapter_state_dict().items():
            tensor.copy_(saved[f"base_model.model.{name}"])


def merge_lora(model: SentenceTransformer) -> SentenceTransformer:
    """Add a model's adapters to its weights, in place, after which it is one that loads without peft.

    Do it after training: a loss's queue may share the weights.

    Returns:
        The same model.

    Raises:
        ValueError: for a model without adapters.

    Example:
        >>> from peft import LoraConfig
        >>> from st_simcse import build_model
        >>> model = build_model(getfixture("tiny_bert"), lora=LoraConfig(r=4))
        >>> # ... train it ...
        >>> merge_lora(model).save_pretrained(str(getfixture("tmp_path")))
        >>> SentenceTransformer(str(getfixture("tmp_path"))).encode("Two dogs run.").shape
        (32,)
    """
    if not adapters(model):
        raise ValueError("the model has no adapters that could be merged")
    merge_adapters(model.transformers_model)
    return model


def merge_adapters(transformer: Any) -> None:
    """What :func:`merge_lora` does, for a model of transformers."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, layer in list(transformer.named_modules()):
        merged: nn.Module
        if hasattr(layer, "unload_and_optionally_merge_module"):  # layers with a way of their own, modules_to_save
            merged = layer.unload_and_optionally_merge_module(merge=True, safe_merge=True, adapter_names=None)
        elif isinstance(layer, BaseTunerLayer):
            layer.merge(safe_merge=True)
            merged = layer.get_base_layer()
        else:
            continue
        transformer.set_submodule(name, merged)
    transformer.delete_adapter(list(transformer.peft_config))
    transformer.requires_grad_(True)
    # transformers notes how it renamed the weights of the file that it read last, the adapter's, and renames them back
    # in whatever it saves. Without the note it takes the architecture's own names.
    vars(transformer).pop("_weight_conversions", None)


def check_adapter_is_whole(model: SentenceTransformer) -> None:
    """Whether the file of a model's adapter holds all that is trained of the transformer.

    Raises:
        ValueError: names the weights that no file would hold.
    """
    if not adapters(model):
        return
    saved = _in_adapter_file(model)
    lost = [name for name, weight in _parameters(model) if weight.requires_grad and weight.data_ptr() not in saved]
    if lost:
        more = f" and {len(lost) - 5} more" if len(lost) > 5 else ""
        raise ValueError(
            f"{', '.join(lost[:5])}{more}: trained, but saved with no adapter, which would lose them. Freeze them with "
            "requires_grad_(False), or name their modules in LoraConfig(modules_to_save=[...])"
        )


def _parameters(model: SentenceTransformer) -> list[tuple[str, nn.Parameter]]:
    return list(cast(nn.Module, model.transformers_model).named_parameters())


def _in_adapter_file(model: SentenceTransformer) -> set[int]:
    """Where the tensors lie that are saved with an adapter."""
    return {tensor.data_ptr() for tensor in model.get_adapter_state_dict().values()}


def _train_in_float32(model: SentenceTransformer) -> None:
    """What is not frozen, whatever the precision of the rest."""
    for _, parameter in _parameters(model):
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
