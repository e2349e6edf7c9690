"""Training data as users hold it, lists and DataFrames, as a datasets.Dataset; a cell that is no text is named."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import Any

import pandas as pd
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict, Value
from sentence_transformers import InputExample
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator

from st_simcse.readers import TripletReader

__all__ = ["LABEL_COLUMNS", "as_dataset", "check_texts"]

# The columns that ST's data collator takes for labels.
LABEL_COLUMNS: list[str] = SentenceTransformerDataCollator(preprocess_fn=dict).valid_label_columns


def as_dataset(data: Any, argument: str) -> Any:
    """What a trainer takes for its data: a Dataset or IterableDataset, or several by name.

    Args:
        data: that; or a DataFrame, a list of texts, of tuples of texts, of dicts, or of InputExamples; or several of
            these by name. None stays None.
        argument: how the caller names it, for errors.

    Raises:
        ValueError: for the name of a file, for a list of other or of different items, and for other objects.

    Example:
        >>> as_dataset([("A dog.", "A hound."), ("A cat.", "A feline.")], "train_dataset")[0]
        {'anchor': 'A dog.', 'positive': 'A hound.'}
    """
    if data is None or isinstance(data, (Dataset, IterableDataset, DatasetDict, IterableDatasetDict)):
        return data
    if isinstance(data, Mapping):
        return {name: as_dataset(part, f"{argument}[{name!r}]") for name, part in data.items()}
    if isinstance(data, pd.DataFrame):
        return Dataset.from_pandas(data, preserve_index=False)
    if isinstance(data, (list, tuple)) and data:
        return _from_list(list(data), argument)
    if isinstance(data, (str, os.PathLike)):
        raise ValueError(
            f"{argument} is {str(data)!r}, expected data: read the file with SentenceReader().get_dataset"
            f"({str(data)!r}), or with TripletReader or NLIReader if it is a table"
        )
    if hasattr(data, "column_names"):
        return data
    raise ValueError(
        f"{argument} is of the type {type(data).__name__}: pass a datasets.Dataset, a DataFrame, or a list of texts or "
        "of tuples of texts that is not empty"
    )


def _from_list(items: list[Any], argument: str) -> Dataset:
    first = items[0]
    for row, item in enumerate(items):
        if type(item) is not type(first) or (isinstance(item, (tuple, list)) and len(item) != len(first)):
            raise ValueError(f"{argument}: item {row} is {item!r}, and item 0 is {first!r}: make all of them alike")
    if isinstance(first, str):
        return Dataset.from_dict({"sentence": items})
    if isinstance(first, Mapping):
        return Dataset.from_list(items)
    if isinstance(first, InputExample):
        columns = _columns([example.texts for example in items], argument)
        labels = [example.label for example in items]
        # InputExample labels what has no label with 0.
        return Dataset.from_dict(columns | ({"label": labels} if any(labels) else {}))
    if isinstance(first, (tuple, list)):
        return Dataset.from_dict(_columns(items, argument))
    raise ValueError(f"{argument}: item 0 is {first!r}, expected a text, a tuple of texts, a dict or an InputExample")


def _columns(rows: list[Any], argument: str) -> dict[str, list[Any]]:
    width = len(rows[0])
    for row, texts in enumerate(rows):
        if len(texts) != width:
            raise ValueError(f"{argument}: item {row} has {len(texts)} texts, and item 0 has {width}")
    names = ["sentence"] if width == 1 else TripletReader()._names(width)
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))


def check_texts(data: Any, argument: str, label_columns: Collection[str]) -> None:
    """Whether the columns of a dataset hold texts; columns of lists and of other media are not looked at.

    Args:
        data: what :func:`as_dataset` returns. The rows of streams are not known yet.
        argument: how the caller names it, for errors.
        label_columns: the columns that may hold numbers.

    Raises:
        ValueError: for a column of numbers, and a row without a text; names column, row and remedy.

    Example:
        >>> check_texts(Dataset.from_dict({"sentence": ["A dog.", None]}), "train_dataset", [])
        Traceback (most recent call last):
        ...
        ValueError: train_dataset, row 1, column 'sentence': no text (None): fill it in or drop the row
    """
    if isinstance(data, Mapping):
        for name, part in data.items():
            check_texts(part, f"{argument}[{name!r}]", label_columns)
    if not isinstance(data, Dataset):
        return
    for name, feature in data.features.items():
        if name in label_columns or not isinstance(feature, Value):
            continue
        if feature.dtype not in ("string", "large_string", "string_view", "null"):
            raise ValueError(
                f"{argument}, column {name!r}: {feature.dtype} values, expected texts: remove the column with "
                f"dataset.remove_columns({name!r}), or call it label if a loss reads it"
            )
        # The table may have rows that were selected out of the dataset.
        if data.data.column(name).null_count:
            empty = next((row for row, text in enumerate(data[name]) if text is None), None)
            if empty is not None:
                raise ValueError(
                    f"{argument}, row {empty}, column {name!r}: no text (None): fill it in or drop the row"
                )
