"""Transformers that give the states of all layers, as averages of layers need them, in other processes."""

from __future__ import annotations

import copyreg
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from transformers import PretrainedConfig

__all__ = ["make_picklable"]


def make_picklable(model: SentenceTransformer) -> None:
    """Let a model that averages layers be pickled and copied, and embed alike where it is opened.

    transformers collects the layers' states by hooks that it registers in the first forward pass and that cannot be
    pickled. Which states these are is known in a process only once a model of the class was made there, so that the
    average would silently be the last layer.

    Example:
        >>> import pickle
        >>> from st_simcse.demo import tiny_model
        >>> model = tiny_model(["Two dogs run."], pooling="last2_avg")
        >>> before = model.encode("Two dogs.")
        >>> bool((pickle.loads(pickle.dumps(model)).encode("Two dogs.") == before).all())
        True
    """
    transformer: Any = model.transformers_model
    if getattr(getattr(transformer, "config", None), "output_hidden_states", False):
        copyreg.pickle(type(transformer), _reduce)


def _reduce(transformer: Any) -> tuple[Any, ...]:
    """Without the hooks, which the next forward pass registers anew, here and there."""
    for module in transformer.modules():
        module.__dict__.pop("_output_capturing_hooks_installed", None)
        for number, hook in list(module._forward_hooks.items()):  # torch has no public list of a module's hooks
            if getattr(hook, "__module__", "") == "transformers.utils.output_capturing":
                del module._forward_hooks[number]
    return _restore, (type(transformer), transformer.config), transformer.__dict__


def _restore(kind: Any, config: PretrainedConfig) -> Any:
    """A model of the class, to be filled; that it is made lets transformers know the class."""
    copyreg.pickle(kind, _reduce)
    with torch.device("meta"):
        return kind(config)
