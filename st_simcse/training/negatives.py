"""A column with lists of hard negatives, whose lengths may differ from row to row."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers.base.sampler import BatchSamplers, NoDuplicatesBatchSampler
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
from torch import nn

from st_simcse.data.duplicates import MISSING
from st_simcse.data.training_data import TEXT_TYPES
from st_simcse.losses import MaskedLanguageModel, SupSimCSELoss
from st_simcse.losses.simcse import simcse_losses

__all__ = ["NegativesCollator", "check_lists", "list_columns", "longest_list"]

# Fills the place of a negative that a row does not have. It is embedded, but compared with nothing.
_FILLER = "."


@dataclass
class NegativesCollator(SentenceTransformerDataCollator):
    """ST's data collator, which also accepts columns with lists of hard negatives.

    A column ``negatives`` becomes the columns ``negatives_1``, ``negatives_2``, and so on. Each of them has a feature
    ``missing``, a bool tensor of shape (B,), that is True for the rows whose list is shorter. The new columns use the
    prompt and the route of the column ``negatives``.

    Args:
        width: The minimum number of columns that a list column becomes.
        lists: The names of columns that hold lists even if all rows of a batch have None. Other list columns are
            recognized by their cells.

    Raises:
        ValueError: When called, if a hard negative is empty, or if a row has no anchor or no positive.

    Example:
        >>> from st_simcse.demo import tiny_model
        >>> collator = NegativesCollator(tiny_model(["Two dogs run."]).preprocess)
        >>> rows = [{"anchor": "Two", "positive": "dogs", "negatives": ["run"] * count} for count in (2, 1)]
        >>> collator(rows)["negatives_2_missing"]
        tensor([False,  True])
    """

    width: int = 0
    lists: tuple[str, ...] = ()

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        names = features[0] if features else ()
        lists = [name for name in names if _holds_lists((row[name] for row in features), name in self.lists)]
        features = [row | {name: row[name] or [] for name in lists} for row in features]
        self._refuse_empty(features)
        others = [{name: cell for name, cell in row.items() if name not in lists} for row in features]
        batch = super().__call__(others)
        for name in lists:
            columns = list(zip_longest(*(row[name] for row in features)))
            columns += [(None,) * len(features)] * (self.width - len(columns))
            for number, texts in enumerate(columns, start=1):
                column = super().__call__(
                    [
                        {key: row[key] for key in ("dataset_name",) if key in row} | {name: text or _FILLER}
                        for row, text in zip(features, texts, strict=True)
                    ]
                )
                numbered = f"{name}_{number}"
                batch |= {
                    f"{numbered}{key.removeprefix(name)}": value
                    for key, value in column.items()
                    if key.startswith(f"{name}_")
                }
                batch[f"{numbered}_{MISSING}"] = torch.tensor([text is None for text in texts])
        return batch

    def _refuse_empty(self, features: list[dict[str, Any]]) -> None:
        """Raises ValueError if a text is missing, as may happen in a stream, or if a hard negative is empty.

        An empty text would be a hard negative of every row of the batch.
        """
        others = {*self.valid_label_columns, "dataset_name"}
        for number, name in enumerate(name for name in (features[0] if features else ()) if name not in others):
            for row in features:
                if number < 2 and row[name] is None:
                    text = textwrap.shorten(str(row), 200, placeholder=" ...")
                    raise ValueError(
                        f"The column {name!r} has no text (None) in the row {text}. Fill the text in, or drop the row."
                    )
                cells = row[name] if isinstance(row[name], list) else [row[name]]
                if number >= 2 and any(cell in ("", None) for cell in cells):
                    raise ValueError(
                        f"The column {name!r} has an empty text, which would be a hard negative of every row. If rows "
                        "have different numbers of hard negatives, put them into one column of lists, such as "
                        "'negatives', without the empty texts."
                    )


def _holds_lists(cells: Iterable[Any], without_cells: bool) -> bool:
    """Returns whether cells are lists of texts, and not of tokens, or ``without_cells`` if all cells are None."""
    known = [cell for cell in cells if cell is not None]
    if not known:
        return without_cells
    return all(isinstance(cell, list) and all(isinstance(one, str) for one in cell) for cell in known)


def list_columns(dataset: Any) -> list[str]:
    """Returns the columns of a Dataset or IterableDataset that hold lists of texts.

    Example:
        >>> list_columns(Dataset.from_dict({"anchor": ["Two"], "negatives": [["dogs", "run"]]}))
        ['negatives']
    """
    features = getattr(dataset, "features", None) or {}
    inner = {name: getattr(feature, "feature", None) for name, feature in features.items()}
    return [name for name, feature in inner.items() if getattr(feature, "dtype", None) in TEXT_TYPES]


def longest_list(datasets: Sequence[Any], columns: Sequence[str]) -> int:
    """Returns the largest number of hard negatives in a row, which is the number of columns with several processes.

    Raises:
        ValueError: If a dataset is a stream, because its longest list is not known in advance.
    """
    if not all(isinstance(dataset, Dataset) for dataset in datasets):
        raise ValueError(
            "With several processes, lists of hard negatives cannot come from a stream, because the length of the "
            "longest list must be known in advance. Read the stream into a Dataset, or use a fixed number of columns "
            "negative_1, negative_2, ..."
        )
    return max(len(cell or []) for dataset in datasets for name in columns for cell in dataset[name])


def check_lists(
    loss: nn.Module, columns: Sequence[str], lists: Sequence[str], collator: Any, batch_sampler: Any
) -> None:
    """Checks that a loss, a data collator and the ``batch_sampler`` argument work with lists of hard negatives.

    Raises:
        ValueError: If one of them does not. The message says what to do.
    """
    ours = next(simcse_losses(loss), None)
    named = f"The column {lists[0]!r} with lists of hard negatives"
    if lists[0] in columns[:2]:
        raise ValueError(
            f"{named} must come after the anchor and the positive. Reorder the columns with dataset.select_columns."
        )
    if not isinstance(collator, NegativesCollator):
        raise ValueError(f"{named} needs the default collator of SimCSETrainer. Do not pass data_collator.")
    if _keeps_duplicates_apart(batch_sampler):  # it compares a list as a whole
        raise ValueError(
            f"{named} does not work with batch_sampler='no_duplicates', which does not look into lists. Leave "
            "batch_sampler at its default: the loss does not use equal texts of a batch as negatives of each other."
        )
    if not isinstance(ours, SupSimCSELoss):
        raise ValueError(f"{named} needs SupSimCSELoss, got {type(loss).__name__}")
    if not ours.mask_duplicates:
        raise ValueError(f"{named} needs mask_duplicates=True, which also masks the negatives that shorter lists lack")
    for option in ours.options:
        if getattr(option, "needs_teacher", False) or isinstance(option, MaskedLanguageModel):
            raise ValueError(
                f"{named} does not work with {type(option).__name__}. Leave that option out, or use columns with one "
                "text per cell."
            )


def _keeps_duplicates_apart(batch_sampler: Any) -> bool:
    if isinstance(batch_sampler, type):
        return issubclass(batch_sampler, NoDuplicatesBatchSampler)
    return batch_sampler in (BatchSamplers.NO_DUPLICATES, BatchSamplers.NO_DUPLICATES_HASHED)
