"""What a loss is given, checked: its arguments when it is made, and the labels of each batch."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

from sentence_transformers import SparseEncoder
from torch import Tensor, nn
from transformers import PreTrainedModel

from st_simcse.losses.options import EncoderOption, SourceOption, TermOption, check_compatible
from st_simcse.models.unwrapping import unwrapped

__all__ = ["check_arguments", "check_labels", "check_model"]


def check_arguments(loss: str, model: Any, options: Any, mini_batch_size: int | None, unknown: dict[str, Any]) -> None:
    """What people coming from other losses write, and what does not go together.

    Args:
        loss: the name of the loss's class.
        model, options, mini_batch_size: the loss's own arguments.
        unknown: those that it does not have.

    Raises:
        TypeError: for an argument that it does not have.
        ValueError: for a model or options that it cannot use; says what to pass.
    """
    if isinstance(unknown.get("scale"), (int, float)):
        temperature = 1 / unknown["scale"] if unknown["scale"] else 0.05
        raise TypeError(f"{loss} has no scale: pass temperature={temperature:g}, which is one over it")
    if unknown:
        raise TypeError(f"{loss} has no argument {', '.join(unknown)}; options=[...] takes what changes the objective")
    check_model(model)
    if isinstance(unwrapped(model), SparseEncoder):
        raise ValueError(
            f"{loss} is for dense embeddings, a SparseEncoder needs a loss that keeps it sparse: "
            "use sentence_transformers' SpladeLoss around its SparseMultipleNegativesRankingLoss, with the "
            "sentences in two equal columns where there are no pairs"
        )
    if mini_batch_size is not None and not (isinstance(mini_batch_size, int) and mini_batch_size >= 1):
        raise ValueError(f"mini_batch_size must be a whole number of at least 1 or None, got {mini_batch_size}")
    if not isinstance(options, Sequence):
        raise ValueError(f"options={options!r} is no list: pass options=[{options!r}]")
    for option in options:
        is_option = callable(option) or isinstance(option, (EncoderOption, SourceOption, TermOption))
        if isinstance(option, type) or not is_option:
            raise ValueError(f"{option!r} is no option: pass an instance of one of st_simcse.losses.OPTIONS")
    if twice := [kind.__name__ for kind, count in Counter(map(type, options)).items() if count > 1]:
        raise ValueError(f"an option counts once: {', '.join(twice)} is there more than once")
    encoders = [type(option).__name__ for option in options if isinstance(option, EncoderOption)]
    if len(encoders) > 1:
        raise ValueError(f"{' and '.join(encoders)} change how a batch is embedded: leave one of the two out")
    check_compatible(options, loss)
    if mini_batch_size is not None:
        check_compatible(options, "mini_batch_size")


def check_model(model: Any) -> None:
    """ValueError for a model's name, a model of transformers, or what is no model.

    Example:
        >>> check_model("bert-base-uncased")
        Traceback (most recent call last):
        ...
        ValueError: model is the name 'bert-base-uncased': pass the model itself, build_model('bert-base-uncased')
    """
    if isinstance(model, (str, os.PathLike)):
        raise ValueError(f"model is the name {str(model)!r}: pass the model itself, build_model({str(model)!r})")
    if isinstance(model, PreTrainedModel) or not isinstance(model, nn.Module):
        raise ValueError(
            f"model is of the type {type(model).__name__}, expected a SentenceTransformer: build_model makes one of a "
            "folder or of a name on the hub"
        )


def check_labels(loss: str, labels: Tensor | None, are_read: bool) -> None:
    """Refuse labels that tell rows apart, for a loss that reads none; ``model.fit`` gives every row the label 0."""
    if labels is None or are_read or not labels.numel() or bool((labels == labels.flatten()[0]).all()):
        return
    raise ValueError(
        f"{loss} takes every row as a positive pair and does not read the labels of the data, which differ: keep the "
        "rows that are positive pairs and remove the column of labels or scores, or train scored pairs with a loss for "
        "them, such as sentence_transformers' CoSENTLoss"
    )
