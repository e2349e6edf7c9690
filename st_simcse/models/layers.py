"""The list of a transformer's layers, and a shallower transformer of its lowest ones."""

from __future__ import annotations

from typing import Any

from sentence_transformers import SentenceTransformer
from torch import nn

__all__ = ["keep_layers", "reads_padding", "transformer_layers"]

# Architectures of transformers in which a text's embedding changes with the padding beside it, whatever the mask says.
READ_PADDING = ("canine", "convbert", "fnet", "nystromformer")


def reads_padding(transformer: nn.Module) -> str | None:
    """The transformer's architecture, if it is one whose embeddings change with the padding."""
    architecture = getattr(getattr(getattr(transformer, "model", None), "config", None), "model_type", None)
    return architecture if architecture in READ_PADDING else None


def transformer_layers(model: SentenceTransformer, needed_by: str) -> nn.ModuleList:
    """The transformer's layers: the outermost list of as many modules as its configuration says.

    Args:
        model: whose first module is the transformer.
        needed_by: the option that a model without them has to leave out, for the error.

    Raises:
        ValueError: if there is none, or several.
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
            f"a transformer whose layers are one list is needed, and {kind} has {len(lists)} of them: "
            f"leave {needed_by} out"
        )
    return next(iter(lists.values()))


def keep_layers(model: SentenceTransformer, count: int) -> None:
    """Leave the transformer its lowest layers alone, in its configuration too.

    Raises:
        ValueError: for more layers than there are, none, and a transformer whose layers are not one list.

    Example:
        >>> from st_simcse.demo import tiny_model
        >>> model = tiny_model(["Two dogs run."], layers=4)
        >>> keep_layers(model, 1)
        >>> len(transformer_layers(model, "layers"))
        1
    """
    layers = transformer_layers(model, "layers (--layers)")
    if not 0 < count <= len(layers):
        raise ValueError(f"layers={count} (--layers) of a transformer that has {len(layers)}: choose from 1 to that")
    del layers[count:]
    transformer: Any = model.transformers_model
    config = transformer.config.get_text_config()
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:count]
    config.num_hidden_layers = count
