"""The list of a transformer's layers, and truncation of a transformer to its lowest layers."""

from __future__ import annotations

from typing import Any

from sentence_transformers import SentenceTransformer
from torch import nn

__all__ = ["keep_layers", "reads_padding", "transformer_layers"]

# Architectures of transformers whose embedding of a text depends on the padding next to it, despite the mask.
READ_PADDING = ("canine", "convbert", "fnet", "nystromformer")


def reads_padding(transformer: nn.Module) -> str | None:
    """Returns the transformer's architecture if its embeddings depend on the padding, else None."""
    architecture = getattr(getattr(getattr(transformer, "model", None), "config", None), "model_type", None)
    return architecture if architecture in READ_PADDING else None


def transformer_layers(model: SentenceTransformer, needed_by: str) -> nn.ModuleList:
    """Returns the transformer's layers: the outermost list with as many modules as the configuration has layers.

    Args:
        model: A model whose first module is the transformer.
        needed_by: The option that needs the layers, for the error message.

    Raises:
        ValueError: If there is no such list, or several.
    """
    config = getattr(model.transformers_model, "config", None)
    count = getattr(config.get_text_config(), "num_hidden_layers", None) if config is not None else None
    lists: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        is_inside = any(name.startswith(f"{outer}.") for outer in lists)
        if isinstance(module, nn.ModuleList) and len(module) == count and not is_inside:
            lists[name] = module
    if len(lists) != 1:
        kind = type(model.transformers_model or model[0]).__name__
        raise ValueError(
            f"{needed_by} needs a transformer whose layers are one list, but {kind} has {len(lists)} such lists. Omit "
            "this option."
        )
    return next(iter(lists.values()))


def keep_layers(model: SentenceTransformer, count: int) -> None:
    """Removes all layers of the transformer but its lowest ones, and updates its configuration.

    Raises:
        ValueError: If ``count`` is below 1 or above the number of layers, or the layers are not one list.

    Example:
        >>> from st_simcse.demo import tiny_model
        >>> model = tiny_model(["Two dogs run."], layers=4)
        >>> keep_layers(model, 1)
        >>> len(transformer_layers(model, "layers"))
        1
    """
    layers = transformer_layers(model, "layers (--layers)")
    if not 0 < count <= len(layers):
        raise ValueError(f"layers={count} (--layers) is out of range: choose from 1 to {len(layers)}")
    del layers[count:]
    transformer: Any = model.transformers_model
    config = transformer.config.get_text_config()
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:count]
    config.num_hidden_layers = count
