"""A column of lists of hard negatives, as many for a row as it has."""

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
from st_simcse.losses import MaskedLanguageModel, SimCSELoss, SupSimCSELoss

__all__ = ["NegativesCollator", "check_lists", "list_columns", "longest_list"]

# Where a row has no further negative. It is embedded, as short as it is, and compared with nothing.
_FILLER = "."


@dataclass
class NegativesCollator(SentenceTransformerDataCollator):
    """ST's collator, which also takes a column of lists of hard negatives of any number.

    The column ``negatives`` becomes ``negatives_1``, ``negatives_2``, ...; a feature ``missing`` (B,) bool says which
    rows have fewer. Prompts and routes are those of the column ``negatives``.

    Args:
        width: so many columns a batch has at least.
        lists: columns that hold lists also where all rows of a batch have None; others are known by their cells.

    Raises:
        ValueError: on a batch, for an empty hard negative, and a row without an anchor or positive.

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
        """An empty text is no negative, but would be one of every row; a row of a stream may lack a text altogether."""
        others = {*self.valid_label_columns, "dataset_name"}
        for number, name in enumerate(name for name in (features[0] if features else ()) if name not in others):
            for row in features:
                if number < 2 and row[name] is None:
                    text = textwrap.shorten(str(row), 200, placeholder=" ...")
                    raise ValueError(f"column {name!r}: no text (None) in the row {text}: fill it in or drop the row")
                cells = row[name] if isinstance(row[name], list) else [row[name]]
                if number >= 2 and any(cell in ("", None) for cell in cells):
                    raise ValueError(
                        f"the column {name} has an empty text, which would be a hard negative of every row: where rows "
                        "have different numbers of hard negatives, put them into one column of lists, such as "
                        "negatives, and leave empty ones out"
                    )


def _holds_lists(cells: Iterable[Any], without_cells: bool) -> bool:
    """Whether cells are lists of texts; those of tokens are not. ``without_cells`` is the answer where all are None."""
    known = [cell for cell in cells if cell is not None]
    if not known:
        return without_cells
    return all(isinstance(cell, list) and all(isinstance(one, str) for one in cell) for cell in known)


def list_columns(dataset: Any) -> list[str]:
    """The columns of a Dataset or IterableDataset that hold lists of texts.

    Example:
        >>> list_columns(Dataset.from_dict({"anchor": ["Two"], "negatives": [["dogs", "run"]]}))
        ['negatives']
    """
    features = getattr(dataset, "features", None) or {}
    inner = {name: getattr(feature, "feature", None) for name, feature in features.items()}
    return [name for name, feature in inner.items() if getattr(feature, "dtype", None) in ("string", "large_string")]


def longest_list(datasets: Sequence[Any], columns: Sequence[str]) -> int:
    """The largest number of hard negatives of a row; in several processes all batches have so many columns.

    Raises:
        ValueError: for a stream, whose rows nobody has seen.
    """
    if not all(isinstance(dataset, Dataset) for dataset in datasets):
        raise ValueError(
            "in several processes the lists of hard negatives of a stream are of unknown lengths: read it into a "
            "Dataset, or spread them over columns negative_1, negative_2, ... of one number"
        )
    return max(len(cell or []) for dataset in datasets for name in columns for cell in dataset[name])


def check_lists(
    loss: nn.Module, columns: Sequence[str], lists: Sequence[str], collator: Any, batch_sampler: Any
) -> None:
    """Whether a loss, a collator and a batch sampler, as ST's arguments name it, go with lists of hard negatives.

    Raises:
        ValueError: if they do not; says what to do.
    """
    ours = [part for part in loss.modules() if isinstance(part, SimCSELoss)]
    named = f"the column {lists[0]} of lists of hard negatives"
    if lists[0] in columns[:2]:
        raise ValueError(f"{named} stands behind anchor and positive: order them with dataset.select_columns")
    if not isinstance(collator, NegativesCollator):
        raise ValueError(f"{named} needs SimCSETrainer's own collator: leave data_collator out")
    if _keeps_duplicates_apart(batch_sampler):  # it compares a list as a whole
        raise ValueError(
            f"{named} does not go with batch_sampler='no_duplicates', which does not look into lists: leave it out, "
            "since equal texts of a batch are no negatives of each other here"
        )
    if not ours or not isinstance(ours[0], SupSimCSELoss):
        raise ValueError(f"{named} goes with SupSimCSELoss, got {type(loss).__name__}")
    if not ours[0].mask_duplicates:
        raise ValueError(f"{named} needs mask_duplicates=True, which also leaves out the ones that a row lacks")
    for option in ours[0].options:
        if getattr(option, "needs_teacher", False) or isinstance(option, MaskedLanguageModel):
            raise ValueError(
                f"{named} does not go with {type(option).__name__}: leave that out, or use one text a cell"
            )


def _keeps_duplicates_apart(batch_sampler: Any) -> bool:
    if isinstance(batch_sampler, type):
        return issubclass(batch_sampler, NoDuplicatesBatchSampler)
    return batch_sampler in (BatchSamplers.NO_DUPLICATES, BatchSamplers.NO_DUPLICATES_HASHED)
