"""LoRA (Hu et al., ICLR 2022) with peft: adapters are trained, and the model's own weights stay unchanged."""

from __future__ import annotations

import copy
import os
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
from transformers.utils import (
    ADAPTER_CONFIG_NAME,
    ADAPTER_SAFE_WEIGHTS_NAME,
    CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
)
from transformers.utils.peft_utils import check_peft_version

if TYPE_CHECKING:
    from peft import PeftConfig

__all__ = [
    "adapter_settings",
    "adapters",
    "add_lora",
    "check_adapter_is_whole",
    "check_peft",
    "loaded_under_its_name",
    "merge_adapters",
    "merge_lora",
    "remove_outdated",
    "restore_adapter",
    "train_adapter",
]

# The files by which transformers recognizes a model or an adapter.
MODEL_FILES = (CONFIG_NAME, SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)
ADAPTER_FILES = (ADAPTER_CONFIG_NAME, ADAPTER_SAFE_WEIGHTS_NAME)


def check_peft() -> None:
    """Checks that peft is installed in a release that transformers supports.

    Raises:
        ImportError: If peft is missing, or older than transformers requires.

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
            f"peft {peft.__version__} is too old for transformers {transformers.__version__}, which requires peft "
            f'{minimum} or later. pip install "st_simcse[lora]" installs compatible releases.'
        ) from error


def adapters(model: SentenceTransformer) -> dict[str, PeftConfig]:
    """Returns the configurations of a model's adapters by name. The result is empty if there are none.

    Example:
        >>> from st_simcse.demo import tiny_model
        >>> adapters(tiny_model(["Two dogs run."]))
        {}
    """
    return getattr(model.transformers_model, "peft_config", None) or {}


def adapter_settings(model: SentenceTransformer) -> list[Any]:
    """Returns the settings of a model's adapters that change its embeddings, for each layer in order.

    They are the layer's name, the active adapters, whether they are disabled, and the factor of each adapter.

    Example:
        >>> from peft import LoraConfig
        >>> from st_simcse import build_model
        >>> model = build_model("sentence-transformers/all-MiniLM-L6-v2", lora=LoraConfig(r=4, lora_alpha=8))
        >>> adapter_settings(model)[0]
        ['encoder.layer.0.attention.self.query', ['default'], False, {'default': 2.0}]
    """
    if not adapters(model):
        return []
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = cast(nn.Module, model.transformers_model).named_modules()
    return [
        [name, layer.active_adapters, layer.disable_adapters, getattr(layer, "scaling", {})]
        for name, layer in layers
        if isinstance(layer, BaseTunerLayer)
    ]


def add_lora(model: SentenceTransformer, config: PeftConfig) -> None:
    r"""Freezes the transformer and adds adapters to its layers, :math:`W + \frac{\alpha}{r} B A`.

    The adapters are float32 even if the transformer is bfloat16, because bfloat16 would round the steps of a small
    learning rate to nothing.

    Raises:
        ImportError: If peft is missing, or older than transformers requires.
        ValueError: If the model already has adapters, or none of the layers that the configuration names.
    """
    check_peft()
    if adapters(model):
        raise ValueError(
            "the model already has an adapter. Omit lora to train this adapter further. For a new adapter, merge this "
            "one with merge_lora(model).save_pretrained(folder), and build the model from this folder."
        )
    model.add_adapter(copy.deepcopy(config))  # peft writes the model's name into the configuration
    _train_in_float32(model)


def train_adapter(model: SentenceTransformer, weights: Path | None) -> None:
    """Makes the adapter of a loaded model trainable, because peft loads adapters frozen.

    Args:
        model: A model with an adapter, loaded by SentenceTransformer.
        weights: The file ``adapter_model.safetensors`` of the model, or None.
    """
    model.set_adapter(model.active_adapters())
    saved = _in_adapter_file(model)
    for name, parameter in _parameters(model):
        if name.endswith("bias") and parameter.data_ptr() in saved:  # set_adapter ignores LoraConfig(bias=...)
            parameter.requires_grad_(True)
    _train_in_float32(model)
    if weights is not None:
        restore_adapter(model, weights)


def restore_adapter(model: SentenceTransformer, weights: Path) -> None:
    """Restores an adapter's weights exactly as they were saved.

    transformers rounds them to the transformer's precision, and does not load the magnitudes of DoRA.

    Raises:
        ValueError: If the file lacks a weight, except one of a pooler.
    """
    saved = load_file(weights)
    prefix = cast(Any, model.transformers_model).base_model_prefix
    with torch.no_grad():
        for name, tensor in model.get_adapter_state_dict().items():
            # An adapter of a model with a head has the transformer's name too, and such a model may have no pooler.
            names = (f"base_model.model.{name}", f"base_model.model.{prefix}.{name}")
            known = next((saved[full] for full in names if full in saved), None)
            if known is not None:
                tensor.copy_(known)
            elif "pooler" not in name:
                raise ValueError(
                    f"{weights} has no weights for {name}: the adapter belongs to another model. Check "
                    "base_model_name_or_path in its adapter_config.json."
                )


@contextmanager
def loaded_under_its_name(model: SentenceTransformer) -> Iterator[None]:
    """Loads a checkpoint's weights inside the ``with`` block under the current name of the model's adapter.

    The name is not saved: the adapter of a folder is always called ``default`` when it is loaded.
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
    """Adds a model's adapters to its weights, in place. The model then loads without peft.

    Merge after training only, because a loss's queue may share the weights.

    Returns:
        The same model.

    Raises:
        ValueError: If the model has no adapters.

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
        raise ValueError("the model has no adapters to merge")
    merge_adapters(model.transformers_model)
    return model


def merge_adapters(transformer: Any) -> None:
    """Merges like :func:`merge_lora`, but takes a model of transformers."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    replaced: list[str] = []
    for name, layer in list(transformer.named_modules()):
        merged: nn.Module
        if name.startswith(tuple(replaced)):  # a layer within a merged layer, such as that of trained tokens
            continue
        if hasattr(layer, "unload_and_optionally_merge_module"):  # layers with their own method, modules_to_save
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
    # transformers records how it renamed the weights of the last file that it read, which is the adapter's, and reverts
    # this when it saves. Without the record it uses the architecture's own names.
    vars(transformer).pop("_weight_conversions", None)


def remove_outdated(folder: str | os.PathLike[str], is_adapter: bool) -> None:
    """Removes what an earlier save of the other kind left in the folder that a model was saved to.

    If a folder has both an adapter and a whole model, transformers loads both, and so applies an old adapter to new
    weights.

    Args:
        folder: The folder that the model was saved to.
        is_adapter: Whether an adapter was saved. Otherwise, it was a whole model.
    """
    for name in MODEL_FILES if is_adapter else ADAPTER_FILES:
        (Path(folder) / name).unlink(missing_ok=True)


def check_adapter_is_whole(model: SentenceTransformer) -> None:
    """Checks that the file of a model's adapter contains all trained weights of the transformer.

    Raises:
        ValueError: If it does not. The message names the weights that would be lost.
    """
    if not adapters(model):
        return
    saved = _in_adapter_file(model)
    lost = [name for name, weight in _parameters(model) if weight.requires_grad and weight.data_ptr() not in saved]
    if lost:
        more = f" and {len(lost) - 5} more" if len(lost) > 5 else ""
        raise ValueError(
            f"these weights are trained but would not be saved with the adapter: {', '.join(lost[:5])}{more}. Freeze "
            "them with requires_grad_(False), or name their modules in LoraConfig(modules_to_save=[...])."
        )


def _parameters(model: SentenceTransformer) -> list[tuple[str, nn.Parameter]]:
    return list(cast(nn.Module, model.transformers_model).named_parameters())


def _in_adapter_file(model: SentenceTransformer) -> set[int]:
    """Returns the addresses of the tensors that are saved with an adapter."""
    return {tensor.data_ptr() for tensor in model.get_adapter_state_dict().values()}


def _train_in_float32(model: SentenceTransformer) -> None:
    """Converts all weights that are not frozen to float32, whatever the precision of the rest."""
    for _, parameter in _parameters(model):
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
