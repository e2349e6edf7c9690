"""Whether training will learn something: from negatives in the data, with weights that are trained and kept."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from transformers.trainer_pt_utils import LayerWiseDummyOptimizer

from st_simcse.losses import MomentumQueue, SimCSELoss
from st_simcse.losses.own_weights import own_parameters

__all__ = ["check_model", "check_negatives", "check_optimizer", "check_pair_names", "constant_columns"]

logger = logging.getLogger(__name__)

# Those of the readers, and of ST's data sets.
_PAIR_NAMES = re.compile(
    "anchor|positive|negatives?(_[0-9]+)?|sent[01]|hard_neg(ative)?s?(_?[0-9]+)?|sentence_?[12AB]|query|question|answer|"
    "response|passage|document|premise|hypothesis|entailment|contradiction"
)

_OF_THE_LOSS = (
    "make it of loss.parameters(), which include the model's, as in "
    "optimizers=(torch.optim.AdamW(loss.parameters(), lr=3e-5), None)"
)


def check_pair_names(columns: Sequence[str]) -> None:
    """Whether columns are known by their names to be anchors, positives and hard negatives.

    Raises:
        ValueError: if one is not; it may hold something else than texts to learn from.

    Example:
        >>> check_pair_names(["anchor", "positive", "negative_1"])
        >>> check_pair_names(["sentence", "source"])
        Traceback (most recent call last):
        ...
        ValueError: without a loss nobody knows whether the columns sentence, source are anchors, positives and hard ...
    """
    if unknown := [name for name in columns if not _PAIR_NAMES.fullmatch(name)]:
        raise ValueError(
            f"without a loss nobody knows whether the columns {', '.join(columns)} are anchors, positives and hard "
            f"negatives, since {', '.join(unknown)} says nothing of the kind: keep one column of sentences with "
            f"dataset.select_columns({columns[0]!r}), or pass loss=SupSimCSELoss(model) if they are, in this order"
        )


def constant_columns(data: Any) -> dict[str, dict[str, str]]:
    """The columns of which all rows are one text, and the text, by dataset; a single dataset has the empty name.

    Streams, and what is transformed on the fly, are not looked at.

    Example:
        >>> constant_columns(Dataset.from_dict({"sentence": ["Two dogs.", "A cat."], "lang": ["en", "en"]}))
        {'': {'lang': 'en'}}
    """
    datasets = data if isinstance(data, Mapping) else {"": data}
    return {name: _constant(one) for name, one in datasets.items() if isinstance(one, Dataset) and len(one)}


def _constant(dataset: Dataset) -> dict[str, str]:
    if dataset.format["type"] == "custom":
        return {}
    constant = {}
    for column in dataset.column_names:
        texts = iter(dataset[column])
        first = next(texts)
        if isinstance(first, str) and all(text == first for text in texts):
            constant[column] = first
    return constant


def check_negatives(
    losses: Mapping[str, torch.nn.Module], texts: Mapping[str, Sequence[str]], constant: Mapping[str, Any], args: Any
) -> None:
    """Whether some row has a negative, without which the contrastive loss is 0.

    Args:
        losses: by dataset, or a single one for all under the empty name.
        texts: the names of the text columns by dataset.
        constant: of :func:`constant_columns`.
        args: of the training.

    Raises:
        ValueError: if none has; where a term of the loss, such as a masked language model, still trains, this is logged
            as a warning instead.
    """
    for dataset, columns in texts.items():
        loss = losses.get(dataset, losses.get(""))
        ours = [part for part in loss.modules() if isinstance(part, SimCSELoss)] if loss is not None else []
        if not ours or len(columns) > 2:  # a row's own hard negatives
            continue
        found = {column: text for column, text in constant.get(dataset, {}).items() if column in columns}
        if message := _without_negatives(ours[0], found, args):
            if not ours[0].terms:
                raise ValueError(message)
            logger.warning("%s. Only %s trains", message, ", ".join(ours[0].terms))


def _without_negatives(loss: SimCSELoss, constant: Mapping[str, str], args: Any) -> str | None:
    rows = args.train_batch_size * (args.world_size if loss.gather_across_devices else 1)
    if rows < 2 and not any(isinstance(option, MomentumQueue) for option in loss.options):
        return (
            f"per_device_train_batch_size (--per_device_train_batch_size) {args.per_device_train_batch_size} leaves no "
            "negatives, which are the other rows of a batch: 2 is the least"
        )
    if constant:
        column, text = next(iter(constant.items()))
        return (
            f"all rows of the training data have one and the same {column}, {text!r}, so that no row has a negative: "
            "two different texts are the least"
        )
    return None


def check_model(model: torch.nn.Module) -> None:
    """Whether weights of the model are trained.

    Raises:
        ValueError: if all are frozen; says what to do.
    """
    if not any(weight.requires_grad for weight in model.parameters()):
        raise ValueError(
            "no weight of the model is trained, since all are frozen (requires_grad is False), and what belongs to the "
            "loss, such as a projection head, is not part of the saved model: unfreeze layers with "
            "requires_grad_(True), or put a layer into the model with build_model(..., dense=True)"
        )


def check_optimizer(model: torch.nn.Module, losses: Mapping[str, torch.nn.Module], optimizer: Any) -> None:
    """Whether an optimizer has weights of the model, and all trained weights that belong to the losses.

    Raises:
        ValueError: if it does not; says what to do.
    """
    if isinstance(optimizer, LayerWiseDummyOptimizer):  # each layer has an optimizer of its own
        return
    known = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
    of_losses = [weight for loss in losses.values() for weight in own_parameters(loss, model)]
    if not any(weight.requires_grad and id(weight) in known for weight in model.parameters()):
        raise ValueError(f"the optimizer has none of the model's trained weights: {_OF_THE_LOSS}")
    if not all(id(weight) in known for weight in of_losses):
        raise ValueError(
            "the optimizer lacks weights of the loss, such as its projection head's, which would stay as they were "
            f"drawn: {_OF_THE_LOSS}, without optimizer_cls_and_kwargs"
        )
