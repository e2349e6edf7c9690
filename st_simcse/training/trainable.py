"""Checks that training can learn something: there are negatives in the data, and trained weights in the model."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from transformers.trainer_pt_utils import LayerWiseDummyOptimizer

from st_simcse.data.lengths import rows_unknown, spaced
from st_simcse.losses import MomentumQueue, SimCSELoss
from st_simcse.losses.own_weights import own_parameters
from st_simcse.losses.simcse import simcse_losses

__all__ = [
    "check_model",
    "check_negatives",
    "check_optimizer",
    "check_pair_names",
    "check_rows",
    "constant_columns",
]

logger = logging.getLogger(__name__)

SAMPLE = 256  # texts

# The column names of the readers and of ST's datasets.
_PAIR_NAMES = re.compile(
    "anchor|positive|negatives?(_[0-9]+)?|sent[01]|hard_neg(ative)?s?(_?[0-9]+)?|sentence_?[12AB]|query|question|answer|"
    "response|passage|document|premise|hypothesis|entailment|contradiction"
)

_OF_THE_LOSS = (
    "Create it from loss.parameters(), which include those of the model, such as "
    "optimizers=(torch.optim.AdamW(loss.parameters(), lr=3e-5), None)"
)


def check_pair_names(columns: Sequence[str]) -> None:
    """Checks that the column names are typical of anchors, positives and hard negatives.

    Raises:
        ValueError: If a name is not, because the column may hold something other than texts to learn from.

    Example:
        >>> check_pair_names(["anchor", "positive", "negative_1"])
        >>> check_pair_names(["sentence", "source"])
        Traceback (most recent call last):
        ...
        ValueError: Without a loss, the columns sentence, source must be anchors, positives and hard negatives, but ...
    """
    if unknown := [name for name in columns if not _PAIR_NAMES.fullmatch(name)]:
        raise ValueError(
            f"Without a loss, the columns {', '.join(columns)} must be anchors, positives and hard negatives, but the "
            f"name {', '.join(unknown)} does not say so. Keep one column of sentences with "
            f"dataset.select_columns({columns[0]!r}), or pass loss=SupSimCSELoss(model) if the columns are anchors, "
            "positives and hard negatives in this order."
        )


def constant_columns(data: Any) -> dict[str, dict[str, str]]:
    """Returns the columns that have the same text in all rows, with that text, by dataset.

    A single dataset has the empty name. Streams and datasets with a transform are left out.

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


def check_rows(data: Any, texts: Mapping[str, Sequence[str]], model: SentenceTransformer, args: Any) -> None:
    """Checks that each dataset has rows that training uses, and texts that the model can tell apart.

    Args:
        data: The training data, a dataset or several by name. Streams are not checked.
        texts: The names of the text columns by dataset.
        model: The model to train.
        args: The training arguments.

    Raises:
        ValueError: If incomplete batches are dropped and a dataset has fewer rows than a step of all processes. If the
            tokenizer knows none of the texts, which a sample shows.
    """
    drops = getattr(args, "drops_last_batches", args.dataloader_drop_last)
    for name, dataset in (data if isinstance(data, Mapping) else {"": data}).items():
        if not isinstance(dataset, Dataset):
            continue
        rows = args.train_batch_size * args.world_size
        if drops and len(dataset) < rows:
            raise ValueError(
                f"dataloader_drop_last (--dataloader_drop_last) drops all {len(dataset)} rows of train_dataset"
                f"{f'[{name!r}]' * bool(name)}, because a step needs {rows}. Leave it out, or lower "
                "per_device_train_batch_size (--per_device_train_batch_size)."
            )
        if dataset.format["type"] != "custom" and texts.get(name):
            columns = dataset.select_columns(list(texts[name]))
            _check_known([*columns.select(spaced(len(dataset), SAMPLE))], model)


def _check_known(rows: Sequence[Mapping[str, Any]], model: SentenceTransformer) -> None:
    some = [text for row in rows for text in row.values() if isinstance(text, str)]
    if some and len(rows_unknown(model, some)) == len(some):
        raise ValueError(
            f"The model's tokenizer does not know any word or character of {len(some)} texts of the training data, "
            f"such as {some[0][:50]!r}, so the model cannot tell them apart. Choose a model for this language, or "
            "check the encoding of the file."
        )


def check_negatives(
    losses: Mapping[str, torch.nn.Module], texts: Mapping[str, Sequence[str]], constant: Mapping[str, Any], args: Any
) -> None:
    """Checks that there are negatives, because without them the contrastive loss is 0.

    Args:
        losses: The losses by dataset. A single loss for all datasets has the empty name.
        texts: The names of the text columns by dataset.
        constant: The constant columns as returned by :func:`constant_columns`.
        args: The training arguments.

    Raises:
        ValueError: If no row has a negative, or if nothing distinguishes it from the positive. If the loss has another
            term that still trains, such as a masked language model, this is logged as a warning instead.
    """
    for dataset, columns in texts.items():
        ours = next(simcse_losses(losses.get(dataset) or losses[""]), None)
        if ours is None or len(columns) > 2:  # a row's own hard negatives
            continue
        found = {column: text for column, text in constant.get(dataset, {}).items() if column in columns}
        if message := _without_negatives(ours, found, args):
            if not ours.terms:
                raise ValueError(message)
            logger.warning("%s Only %s trains.", message, ", ".join(ours.terms))


def _without_negatives(loss: SimCSELoss, constant: Mapping[str, str], args: Any) -> str | None:
    rows = args.train_batch_size * (args.world_size if loss.gather_across_devices else 1)
    if rows < 2 and not any(isinstance(option, MomentumQueue) for option in loss.options):
        return (
            f"per_device_train_batch_size (--per_device_train_batch_size) {args.per_device_train_batch_size} leaves no "
            "negatives, because the negatives of a row are the other rows of its batch. Use 2 or more."
        )
    if constant:
        column, text = next(iter(constant.items()))
        effect = "no row has a negative" if loss.mask_duplicates else "nothing tells a positive from its negatives"
        return (
            f"All rows of the training data have the same {column}, {text!r}, so {effect}. Add rows with a different "
            f"{column}."
        )
    return None


def check_model(model: torch.nn.Module) -> None:
    """Checks that at least some weights of the model are trained.

    Raises:
        ValueError: If all of them are frozen. The message says what to do.
    """
    if not any(weight.requires_grad for weight in model.parameters()):
        raise ValueError(
            "All weights of the model are frozen (requires_grad is False), so training would not change the model. "
            "Weights of the loss, such as a projection head, are not part of the saved model. Unfreeze layers with "
            "requires_grad_(True), or add a layer to the model with build_model(..., dense=True)."
        )


def check_optimizer(model: torch.nn.Module, losses: Mapping[str, torch.nn.Module], optimizer: Any) -> None:
    """Checks that an optimizer has trained weights of the model and all trained weights of the losses.

    Raises:
        ValueError: If it does not. The message says what to do.
    """
    if isinstance(optimizer, LayerWiseDummyOptimizer):  # each layer has an optimizer of its own
        return
    known = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
    of_losses = [weight for loss in losses.values() for weight in own_parameters(loss, model)]
    if not any(weight.requires_grad and id(weight) in known for weight in model.parameters()):
        raise ValueError(f"The optimizer has none of the model's trained weights. {_OF_THE_LOSS}.")
    if not all(id(weight) in known for weight in of_losses):
        raise ValueError(
            "The optimizer does not have all weights of the loss, such as those of its projection head, so they would "
            f"stay at their initial values. {_OF_THE_LOSS}. Do not pass optimizer_cls_and_kwargs."
        )
