"""Dropout of a model, whatever its architecture calls it. It changes in training only, and is not saved."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator
from itertools import chain

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dropout, Pooling, Transformer
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

__all__ = ["dropout_remedy", "model_dropout", "set_dropout", "unsaved_dropout"]

# Parts of the names of fields that drop whole layers or blocks.
_OTHER_KINDS = ("layerdrop", "drop_path", "droppath")


def set_dropout(model: SentenceTransformer, dropout: float) -> None:
    """Replaces the checkpoint's dropout in training, everywhere the architecture has dropout.

    The saved model keeps its original configuration. If the configuration has no effective dropout field, the model
    gets sentence-transformers' Dropout module after the pooling, which is saved with a dropout of 0.

    Args:
        model: The model, which is changed in place.
        dropout: The probability p that a value is dropped, 0 <= p < 1. 0 turns dropout off.

    Raises:
        ValueError: If p is out of range.

    Example:
        >>> from st_simcse.demo import tiny_model
        >>> model = tiny_model(["Two dogs run."])
        >>> set_dropout(model, 0.2)
        >>> model_dropout(model)
        {'hidden_dropout_prob': 0.2, 'attention_probs_dropout_prob': 0.2}
        >>> model.transformers_model.config.hidden_dropout_prob
        0.1
    """
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be at least 0 and below 1, got {dropout}")
    is_found = False
    for transformer in _transformers(model):
        for name, attribute in chain.from_iterable(_places(transformer).values()):
            is_found = True
            module = transformer.get_submodule(name)
            if isinstance(module, nn.Identity):  # ModernBERT replaces a dropout of 0 by an Identity
                transformer.set_submodule(name, nn.Dropout(dropout).train(module.training))
            else:
                setattr(module, attribute, dropout)
    modules = [module for module in model.modules() if isinstance(module, Dropout)]
    if not (is_found or modules or dropout == 0):
        modules = [Dropout(0.0).train(_is_training(model))]
        model.insert(1 + max((i for i, module in enumerate(model) if isinstance(module, Pooling)), default=0), *modules)
    for module in modules:
        module.dropout_layer.p = dropout


def model_dropout(model: nn.Module) -> dict[str, float]:
    """Returns the dropout probabilities in training by their names in the configuration.

    ``Dropout`` is sentence-transformers' module. Fields without effect in this model, such as a classifier's, are
    omitted.

    Example:
        >>> from st_simcse.demo import tiny_model
        >>> model_dropout(tiny_model(["Two dogs run."]))
        {'hidden_dropout_prob': 0.1, 'attention_probs_dropout_prob': 0.1}
    """
    return {name: active for name, active, _ in _settings(model)}


def unsaved_dropout(model: nn.Module) -> dict[str, float]:
    """Returns the part of :func:`model_dropout` that :func:`set_dropout` has changed and the saved model does not have.

    Example:
        >>> from st_simcse.demo import tiny_model
        >>> unsaved_dropout(tiny_model(["Two dogs run."]))
        {}
    """
    return {name: active for name, active, saved in _settings(model) if active != saved}


def dropout_remedy(model: nn.Module) -> str:
    """Returns an instruction for making two views of a text differ if they are equal.

    Example:
        >>> from st_simcse.demo import tiny_model
        >>> dropout_remedy(tiny_model(["Two dogs run."]).eval())
        'Call model.train()'
    """
    is_active = any(model_dropout(model).values())
    if is_active and not _is_training(model):
        return "Call model.train()"
    fields = {field: 0.1 for transformer in _transformers(model) for field in _places(transformer)}
    if is_active or not fields:
        return "Append sentence_transformers' Dropout(0.1) module to the model"
    return f"Load the model with build_model(..., dropout=0.1), or with config_kwargs={fields}"


def _settings(model: nn.Module) -> Iterator[tuple[str, float, float]]:
    """Yields the name, the dropout in training and the saved dropout of each setting."""
    for transformer in _transformers(model):
        for field, places in _places(transformer).items():
            # ModernBERT has an Identity instead of a dropout of 0.
            active = max(getattr(transformer.get_submodule(name), attribute, 0.0) for name, attribute in places)
            parts = _with_parts(transformer.config)
            yield field, active, next(getattr(part, field) for part in parts if hasattr(part, field)) or 0.0
    for module in model.modules():
        if isinstance(module, Dropout):
            yield "Dropout", module.dropout_layer.p, module.dropout


def _is_training(model: nn.Module) -> bool:
    """Returns whether all modules are in training mode. In a loaded model only the outer module is."""
    return all(module.training for module in model.modules())


def _transformers(model: nn.Module) -> Iterator[PreTrainedModel]:
    for module in model.modules():
        if isinstance(module, Transformer) and isinstance(module.model, PreTrainedModel):
            yield module.model


def _places(transformer: PreTrainedModel) -> dict[str, list[tuple[str, str]]]:
    """Maps each field of the configuration to the submodules and attributes that hold its value.

    The places are found with a twin of the model without weights. Its configuration has a unique value in every field,
    and the twin's modules are searched for these values.
    """
    config = copy.deepcopy(transformer.config)
    fields: dict[float, str] = {}
    for part in _with_parts(config):
        for field, value in part.to_dict().items():
            is_number = value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))
            if "drop" in field and is_number and not any(kind in field for kind in _OTHER_KINDS):
                mark = 0.5 + (len(fields) + 1) / 4099
                fields[mark] = field
                setattr(part, field, mark)
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        twin = type(transformer)(config)
    places = defaultdict(list)
    for name, module in twin.named_modules():
        for attribute, value in vars(module).items():
            if isinstance(value, float) and value in fields:
                places[fields[value]].append((name, attribute))
    return dict(places)


def _with_parts(config: PretrainedConfig) -> Iterator[PretrainedConfig]:
    """Yields the configuration and those of the models inside it."""
    yield config
    for name in config.sub_configs:
        if isinstance(part := getattr(config, name, None), PretrainedConfig):
            yield from _with_parts(part)
