"""LoRA (Hu et al., ICLR 2022) with peft: adapters are trained, the model's own weights are left as they are."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import transformers
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from torch import nn
from transformers.integrations import peft as transformers_peft
from transformers.utils.peft_utils import check_peft_version

if TYPE_CHECKING:
    from peft import PeftConfig

__all__ = [
    "adapters",
    "add_lora",
    "check_adapter_is_whole",
    "check_peft",
    "loaded_under_its_name",
    "merge_adapters",
    "merge_lora",
    "restore_adapter",
    "train_adapter",
]


def check_peft() -> None:
    """Refuse an installation in which transformers cannot use peft.

    Raises:
        ImportError: without peft, or with a release that is older than transformers asks for.

    Example:
        >>> check_peft()
    """
    try:
        import peft
    except ModuleNotFoundError as error:
        raise ImportError('LoRA needs peft: pip install "st_simcse[lora]"') from error
    minimum = transformers_peft.MIN_PEFT_VERSION
    try:
        check_peft_version(min_version=minimum)
    except ValueError as error:
        raise ImportError(
            f"peft {peft.__version__} does not go with transformers {transformers.__version__}, which asks for peft "
            f'{minimum} or later: pip install "st_simcse[lora]" installs releases of both that go together'
        ) from error


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
        ImportError: for a peft that transformers does not take.
        ValueError: for a model that has adapters, or none of the layers that the configuration names.
    """
    check_peft()
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


@contextmanager
def loaded_under_its_name(model: SentenceTransformer) -> Iterator[None]:
    """An adapter's name, which is not saved, stays what it was while a checkpoint's weights are loaded.

    A folder's adapter is called ``default`` when it is loaded.
    """
    names = list(adapters(model))

    def rename(module: nn.Module, weights: dict[str, Any], *others: Any) -> None:
        if module is model and len(names) == 1:
            for key in list(weights):
                weights[re.sub(r"\.default(?=\.|$)", f".{names[0]}", key)] = weights.pop(key)

    hook = model.register_load_state_dict_pre_hook(rename)
    try:
        yield
    finally:
        hook.remove()


def merge_lora(model: SentenceTransformer) -> SentenceTransformer:
    """Add a model's adapters to its weights, in place, after which it is one that loads without peft.

    Do it after training: a loss's queue may share the weights.

    Returns:
        The same model.

    Raises:
        ValueError: for a model without adapters.

    Example:
        >>> from peft import LoraConfig
        >>> from sentence_transformers import SentenceTransformer
        >>> from st_simcse import build_model
        >>> model = build_model("sentence-transformers/all-MiniLM-L6-v2", lora=LoraConfig(r=4))
        >>> # ... train it ...
        >>> merge_lora(model).save_pretrained("output")
        >>> SentenceTransformer("output").encode("Two dogs run.").shape
        (384,)
    """
    if not adapters(model):
        raise ValueError("the model has no adapters that could be merged")
    merge_adapters(model.transformers_model)
    return model


def merge_adapters(transformer: Any) -> None:
    """What :func:`merge_lora` does, for a model of transformers."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    replaced: list[str] = []
    for name, layer in list(transformer.named_modules()):
        merged: nn.Module
        if name.startswith(tuple(replaced)):  # layers within a layer, as those of trained tokens, which it has merged
            continue
        if hasattr(layer, "unload_and_optionally_merge_module"):  # layers with a way of their own, modules_to_save
            merged = layer.unload_and_optionally_merge_module(merge=True, safe_merge=True, adapter_names=None)
        elif isinstance(layer, BaseTunerLayer):
            layer.merge(safe_merge=True)
            merged = layer.get_base_layer()
        else:
            continue
        transformer.set_submodule(name, merged)
        replaced.append(f"{name}.")
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
