"""Checks of a loss's arguments when it is built, and of the labels of each batch."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from functools import partial
from inspect import isroutine
from typing import Any

from sentence_transformers import SparseEncoder
from torch import Tensor, nn
from transformers import PreTrainedModel

from st_simcse.losses.options import EncoderOption, SourceOption, TermOption, check_compatible
from st_simcse.models.unwrapping import unwrapped

__all__ = ["check_arguments", "check_labels", "check_model"]


def check_arguments(loss: str, model: Any, options: Any, mini_batch_size: int | None, unknown: dict[str, Any]) -> None:
    """Refuses wrong arguments, those of other losses and combinations that are not supported.

    Args:
        loss: The name of the loss class.
        model, options, mini_batch_size: The arguments of the loss.
        unknown: Further arguments, which the loss does not accept.

    Raises:
        TypeError: If there are further arguments.
        ValueError: If the loss cannot use the model or the options. The message says what to pass.
    """
    if isinstance(unknown.get("scale"), (int, float)):
        temperature = 1 / unknown["scale"] if unknown["scale"] else 0.05
        raise TypeError(f"{loss} has no scale: pass temperature={temperature:g}, which is 1 / scale")
    if unknown:
        raise TypeError(f"{loss} has no argument {', '.join(unknown)}. Changes of the objective go into options=[...].")
    check_model(model)
    if isinstance(unwrapped(model), SparseEncoder):
        raise ValueError(
            f"{loss} is for dense embeddings, but a SparseEncoder needs a loss that keeps it sparse. Use "
            "sentence_transformers' SpladeLoss around its SparseMultipleNegativesRankingLoss. If you have no pairs, "
            "pass the sentences in two equal columns."
        )
    if mini_batch_size is not None and not (isinstance(mini_batch_size, int) and mini_batch_size >= 1):
        raise ValueError(f"mini_batch_size must be an integer of at least 1 or None, got {mini_batch_size}")
    if not isinstance(options, Sequence):
        raise ValueError(f"options={options!r} is not a list: pass options=[{options!r}]")
    for option in options:
        is_option = callable(option) or isinstance(option, (EncoderOption, SourceOption, TermOption))
        if isinstance(option, type) or not is_option:
            raise ValueError(f"{option!r} is not an option: pass an instance of a class in st_simcse.losses.OPTIONS")
    kinds = Counter(type(option) for option in options if not (isroutine(option) or isinstance(option, partial)))
    if twice := [kind.__name__ for kind, count in kinds.items() if count > 1]:
        raise ValueError(f"options contains {', '.join(twice)} more than once: pass each option once")
    encoders = [type(option).__name__ for option in options if isinstance(option, EncoderOption)]
    if len(encoders) > 1:
        raise ValueError(f"{' and '.join(encoders)} both change how a batch is embedded: pass only one of them")
    check_compatible(options, loss)
    if mini_batch_size is not None:
        check_compatible(options, "mini_batch_size")


def check_model(model: Any) -> None:
    """Raises a ValueError if the model is a name, a model of transformers or not a model at all.

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
            f"the model is a {type(model).__name__}, expected a SentenceTransformer: load one with "
            "build_model(folder or name on the Hub)"
        )


def check_labels(loss: str, labels: Tensor | None, are_read: bool) -> None:
    """Refuses labels that differ between rows if the loss ignores labels.

    Equal labels are accepted, because ``model.fit`` gives every row the label 0.
    """
    if labels is None or are_read or not labels.numel() or bool((labels == labels.flatten()[0]).all()):
        return
    raise ValueError(
        f"{loss} treats every row as a positive pair and ignores labels, but the labels of the data differ. Keep "
        "the rows that are positive pairs and remove the column of labels or scores, or train scored pairs with a "
        "loss that uses the scores, such as sentence_transformers' CoSENTLoss. A TermOption of your own that uses them "
        "sets reads_labels = True."
    )
