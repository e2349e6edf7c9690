"""Dropout of a whole model, whatever its architecture calls it; in training alone, and not in what is saved."""

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

# Fields that leave out whole layers or blocks.
_OTHER_KINDS = ("layerdrop", "drop_path", "droppath")


def set_dropout(model: SentenceTransformer, dropout: float) -> None:
    """Train with another dropout than the checkpoint's, everywhere where its architecture has one.

    What is saved keeps the configuration that it came with. A model whose configuration has no dropout that does
    anything gets sentence-transformers' Dropout module behind the pooling, which is saved with 0.

    Args:
        model: changed in place.
        dropout: the probability p that a value is dropped, 0 <= p < 1; 0 turns it off.

    Raises:
        ValueError: for another p.

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
            if isinstance(module, nn.Identity):  # what ModernBERT makes of a dropout of 0
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
    """What is dropped in training, by the configuration's names; ``Dropout`` is sentence-transformers' module.

    Fields of the configuration that change nothing in this model, such as a classifier's, are left out.

    Example:
        >>> from st_simcse.demo import tiny_model
        >>> model_dropout(tiny_model(["Two dogs run."]))
        {'hidden_dropout_prob': 0.1, 'attention_probs_dropout_prob': 0.1}
    """
    return {name: active for name, active, _ in _settings(model)}


def unsaved_dropout(model: nn.Module) -> dict[str, float]:
    """Of :func:`model_dropout` what the saved model does not have, because :func:`set_dropout` was here.

    Example:
        >>> from st_simcse.demo import tiny_model
        >>> unsaved_dropout(tiny_model(["Two dogs run."]))
        {}
    """
    return {name: active for name, active, saved in _settings(model) if active != saved}


def dropout_remedy(model: nn.Module) -> str:
    """What to do for two different views of a text where there is but one, in words.

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
    """Name, what is dropped in training, and what is saved."""
    for transformer in _transformers(model):
        for field, places in _places(transformer).items():
            # ModernBERT has an Identity in the place of a dropout of 0.
            active = max(getattr(transformer.get_submodule(name), attribute, 0.0) for name, attribute in places)
            parts = _with_parts(transformer.config)
            yield field, active, next(getattr(part, field) for part in parts if hasattr(part, field)) or 0.0
    for module in model.modules():
        if isinstance(module, Dropout):
            yield "Dropout", module.dropout_layer.p, module.dropout


def _is_training(model: nn.Module) -> bool:
    """What is loaded is in training mode outside, and in evaluation mode inside."""
    return all(module.training for module in model.modules())


def _transformers(model: nn.Module) -> Iterator[PreTrainedModel]:
    for module in model.modules():
        if isinstance(module, Transformer) and isinstance(module.model, PreTrainedModel):
            yield module.model


def _places(transformer: PreTrainedModel) -> dict[str, list[tuple[str, str]]]:
    """By field of the configuration, the submodules and their attributes where its value ends up.

    Asked of the architecture: in a twin without weights, made from the same configuration with a value of its own in
    every field, the values are looked for.
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
    """The configuration, and those of the models in it."""
    yield config
    for name in config.sub_configs:
        if isinstance(part := getattr(config, name, None), PretrainedConfig):
            yield from _with_parts(part)
