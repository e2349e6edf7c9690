"""Pickling of transformers that return the states of all layers, which averages of layers need."""

from __future__ import annotations

import copyreg
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from transformers import PretrainedConfig

__all__ = ["make_picklable"]


def make_picklable(model: SentenceTransformer) -> None:
    """Makes a model that averages layers picklable and copyable, with the same embeddings in the process that loads it.

    transformers collects the layers' states by hooks, which it registers in the first forward pass and which cannot be
    pickled. A process knows which states to collect only after it has created a model of the class. Without this
    function the average would silently become the last layer.

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
    """Removes the hooks. The next forward pass registers them again in each process."""
    for module in transformer.modules():
        module.__dict__.pop("_output_capturing_hooks_installed", None)
        for number, hook in list(module._forward_hooks.items()):  # torch has no public list of a module's hooks
            if getattr(hook, "__module__", "") == "transformers.utils.output_capturing":
                del module._forward_hooks[number]
    return _restore, (type(transformer), transformer.config), transformer.__dict__


def _restore(kind: Any, config: PretrainedConfig) -> Any:
    """Returns an empty model of the class. Its creation makes transformers register the class."""
    copyreg.pickle(kind, _reduce)
    with torch.device("meta"):
        return kind(config)
