"""The rows of any source: a text file of any layout, a parquet file, or a data set of the hub."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow.parquet import ParquetFile

from st_simcse.data.cells import cell_rows
from st_simcse.data.formats import Column, FileFormat, FileOrDataset, Row, file_format
from st_simcse.data.hub_dataset import HubDataset
from st_simcse.data.json_rows import json_rows
from st_simcse.data.layouts import open_file
from st_simcse.data.lines import check_unchanged, decoded_lines, foreign_kind

__all__ = ["open_rows"]

# The column name of a line in a file of sentences.
LINE = "sentence"


def open_rows(
    path: FileOrDataset, how: FileFormat, numbered: bool | None, as_lines: str | None
) -> tuple[str, Iterator[Row]]:
    """Returns the format of the source and an iterator over its rows. Blank lines are empty rows.

    Args:
        path: The file or data set.
        how: The format of the file, as far as it is known.
        numbered: Whether the columns of a csv or tsv file are numbered. If False, its first row is the header. If None,
            the first row is the header unless it is a scored pair separated by tabs or ``||``.
        as_lines: The remedy in messages for lines that are sentences. None if the reader does not read sentences.

    Returns:
        ``lines``, ``csv`` (any separator), ``jsonl``, ``parquet`` or ``dataset``, and the rows.

    Raises:
        ValueError: If the content is ambiguous or contradicts the file name. The message says what to pass. The
            iterator raises it for rows that it cannot read, with file and line.
    """
    kind = file_format(path)
    if isinstance(path, HubDataset) or kind == "parquet":
        if how.given:
            raise ValueError(f"{path} is not a text file and has a fixed layout: leave {' and '.join(how.given)} out")
        return kind, enumerate(_dataset_rows(path) if isinstance(path, HubDataset) else _parquet_rows(path), start=1)
    found, pieces = open_file(path, how, as_lines)
    if found.format == "jsonl":
        return "jsonl", json_rows(path, found, pieces)
    if found.format == "lines":
        return "lines", ((n, {LINE: text} if text.strip() else {}) for n, text in decoded_lines(path, found, pieces))
    return "csv", cell_rows(path, found, pieces, numbered, as_lines)


def _dataset_rows(source: HubDataset) -> Iterator[dict[Column, Any]]:
    for batch in source.load().iter(batch_size=1000):
        for cells in zip(*batch.values(), strict=True):
            yield dict(zip(batch, cells, strict=True))


def _parquet_rows(path: Path) -> Iterator[dict[Column, Any]]:
    with path.open("rb") as file:
        before = os.fstat(file.fileno())
        foreign = "" if file.peek().startswith(b"PAR1") else foreign_kind(file.peek())
        try:
            for batch in ParquetFile(file).iter_batches(batch_size=1000):
                yield from batch.to_pylist()
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(
                f"{path}: the file is damaged or not a parquet file ({error})" + (foreign and f" but {foreign}")
            ) from None
        check_unchanged(path, file, before)
