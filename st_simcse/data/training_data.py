"""Conversion of lists and DataFrames to a datasets.Dataset, and checks that its cells are texts."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from datasets import ClassLabel, Dataset, DatasetDict, IterableDataset, IterableDatasetDict, Value
from sentence_transformers import InputExample
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator

from st_simcse.data.readers import TripletReader

__all__ = ["LABEL_COLUMNS", "TEXT_TYPES", "as_dataset", "check_texts"]

# The label columns of ST's data collator.
LABEL_COLUMNS: list[str] = SentenceTransformerDataCollator(preprocess_fn=dict).valid_label_columns
# The types of Arrow columns of texts.
TEXT_TYPES = ("string", "large_string", "string_view")


def as_dataset(data: Any, argument: str) -> Any:
    """Converts data to what a trainer accepts: a Dataset or IterableDataset, or several by name.

    Args:
        data: A Dataset, an IterableDataset, a DataFrame, or a list of texts, tuples of texts, dicts or InputExamples.
            Other sequences work like lists, such as a column of a table. It can also be a dict of several by name. None
            stays None.
        argument: The caller's name for the data, for errors.

    Returns:
        The data as a Dataset or IterableDataset, or a dict of several by name.

    Raises:
        ValueError: If the data is a file name or an object of another type, if a list is empty or its items are not
            supported or not alike, if a column mixes types, or if a dict holds the columns of one dataset.

    Example:
        >>> as_dataset([("A dog.", "A hound."), ("A cat.", "A feline.")], "train_dataset")[0]
        {'anchor': 'A dog.', 'positive': 'A hound.'}
    """
    if data is None or isinstance(data, (Dataset, IterableDataset, DatasetDict, IterableDatasetDict)):
        return data
    if isinstance(data, Mapping):
        names = TripletReader.usual_columns(data)
        if names and all(_are_texts(data[name]) for name in names):
            raise ValueError(
                f"{argument} is a dict, which names several datasets, but {', '.join(map(str, names))} are names of "
                "columns: pass Dataset.from_dict(...) with this dict, or give the datasets other names"
            )
        return {name: as_dataset(part, f"{argument}[{name!r}]") for name, part in data.items()}
    if isinstance(data, pd.DataFrame):
        return _from_columns(data, argument)
    if isinstance(data, (str, os.PathLike)):
        raise ValueError(
            f"{argument} is {str(data)!r}, but must be data: read the file with SentenceReader().get_dataset"
            f"({str(data)!r}), or with TripletReader or NLIReader if it is a table"
        )
    if hasattr(data, "column_names"):
        return data
    if isinstance(data, (pd.Series, np.ndarray)):
        data = data.tolist()
    if isinstance(data, Sequence):
        return _from_list(list(data), argument)
    raise ValueError(
        f"{argument} has the type {type(data).__name__}: pass a datasets.Dataset, a DataFrame, or a list of texts or "
        "tuples of texts"
    )


def _are_texts(data: Any) -> bool:
    is_list = isinstance(data, (Sequence, pd.Series, np.ndarray)) and not isinstance(data, str)
    return is_list and isinstance(next(iter(data), None), str)


def _from_list(items: list[Any], argument: str) -> Dataset:
    if not items:
        raise ValueError(f"{argument} is empty: pass at least one text")
    first = items[0]
    for row, item in enumerate(items):
        if type(item) is not type(first) or (isinstance(item, (tuple, list)) and len(item) != len(first)):
            raise ValueError(f"{argument}: item {row} is {item!r}, but item 0 is {first!r}: make all items alike")
    if isinstance(first, str):
        return Dataset.from_dict({"sentence": items})
    if isinstance(first, Mapping):
        names = dict.fromkeys(name for item in items for name in item)
        return _from_columns({name: [item.get(name) for item in items] for name in names}, argument)
    if isinstance(first, InputExample):
        columns = _columns([example.texts for example in items], argument)
        labels = [example.label for example in items]
        # An InputExample without a label has the label 0.
        return _from_columns(columns | ({"label": labels} if any(labels) else {}), argument)
    if isinstance(first, (tuple, list)):
        return _from_columns(_columns(items, argument), argument)
    raise ValueError(f"{argument}: item 0 is {first!r}, expected a text, a tuple of texts, a dict or an InputExample")


def _from_columns(columns: pd.DataFrame | Mapping[str, Sequence[Any]], argument: str) -> Dataset:
    try:
        if isinstance(columns, pd.DataFrame):
            return Dataset.from_pandas(columns, preserve_index=False)
        return Dataset.from_dict(dict(columns))
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        for name, cells in columns.items():
            _check_alike(cells, f"column {name!r}", argument)
        raise


def _check_alike(cells: Iterable[Any], column: str, argument: str) -> None:
    """Raises a ValueError for the first cell whose type differs from the first cell's. None fits any type."""
    first = None
    for row, cell in enumerate(cells):
        first = cell if first is None else first
        if cell is not None and type(cell) is not type(first):
            raise ValueError(
                f"{argument}, row {row}, {column}: the cell is {cell!r}, but an earlier one is {first!r}: make all of "
                "them texts"
            ) from None


def _columns(rows: list[Any], argument: str) -> dict[str, list[Any]]:
    width = len(rows[0])
    for row, texts in enumerate(rows):
        if len(texts) != width:
            raise ValueError(
                f"{argument}: item {row} has {len(texts)} texts, but item 0 has {width}: give all items the same number"
            )
    names = ["sentence"] if width == 1 else TripletReader()._names(width)
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))


def check_texts(data: Any, argument: str, label_columns: Collection[str]) -> None:
    """Checks that the columns of a dataset hold texts or lists of texts. Columns of other media are not checked.

    Args:
        data: The result of :func:`as_dataset`. The rows of streams are not checked.
        argument: The caller's name for the data, for errors.
        label_columns: The columns that may hold numbers.

    Raises:
        ValueError: If there are no rows, if a column holds numbers, or if a row has no text. The message names the
            column, the row and the remedy.

    Example:
        >>> check_texts(Dataset.from_dict({"sentence": ["A dog.", None]}), "train_dataset", [])
        Traceback (most recent call last):
        ...
        ValueError: train_dataset, row 1, column 'sentence': there is no text (None): fill it in or drop the row
    """
    if isinstance(data, Mapping):
        for name, part in data.items():
            check_texts(part, f"{argument}[{name!r}]", label_columns)
    if not isinstance(data, (Dataset, IterableDataset)):
        return
    if isinstance(data, Dataset) and not len(data):
        raise ValueError(f"{argument} has no rows: pass at least one")
    for name, feature in (data.features or {}).items():
        inner = getattr(feature, "feature", feature)  # of a list
        if name in label_columns or not isinstance(inner, (Value, ClassLabel)):
            continue
        if inner.dtype not in (*TEXT_TYPES, "null"):
            kind = "values" if inner is feature else "lists"
            raise ValueError(
                f"{argument}, column {name!r}: expected texts, found {inner.dtype} {kind}: remove the column with "
                f"dataset.remove_columns({name!r}), or rename it to label if a loss reads it"
            )
        # The table may still have rows that are no longer in the dataset.
        if inner is feature and isinstance(data, Dataset) and data.data.column(name).null_count:
            empty = next((row for row, text in enumerate(data[name]) if text is None), None)
            if empty is not None:
                raise ValueError(
                    f"{argument}, row {empty}, column {name!r}: there is no text (None): fill it in or drop the row"
                )
