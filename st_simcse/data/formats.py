"""File formats, from the caller's arguments or the file name, and the places of rows in a file."""

from __future__ import annotations

import csv
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypedDict

from st_simcse.data.encodings import check_encoding
from st_simcse.data.hub_dataset import HubDataset
from st_simcse.data.remedies import DataError

__all__ = [
    "AS_LINES",
    "LACKING",
    "MAX_ROW_BYTES",
    "Column",
    "FileFormat",
    "FileOrDataset",
    "FormatOptions",
    "Row",
    "file_format",
    "place",
    "too_long",
]

Column = str | int

FileOrDataset = Path | HubDataset

# The line that a row begins on, or its number in a parquet file or data set. Its cells are keyed by column name, or by
# column number if there is no header.
Row = tuple[int, dict[Column, Any]]

# The value of a header's column in a row that ends before it.
LACKING: Any = object()

# Large enough for any document. A longer row is a mistake, such as an unclosed quote.
MAX_ROW_BYTES = 2**24

# The csv module's limit of 128 KiB per cell would reject long documents. The readers limit the row instead.
csv.field_size_limit(min(sys.maxsize, 2**31 - 1))

Format = Literal["lines", "csv", "tsv", "jsonl"]

_BY_ENDING = {
    **{".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".parquet": "parquet"},
    **dict.fromkeys((".jsonl", ".json", ".ndjson", ".jsonlines"), "jsonl"),
}

# Python 3.12 has more of them than 3.11.
_QUOTINGS = [value for name, value in vars(csv).items() if name.startswith("QUOTE_")]

# SentenceReader's remedy for lines that look like a table.
AS_LINES = "pass format='lines' to read each line as a sentence"


class FormatOptions(TypedDict, total=False):
    """The arguments of :class:`FileFormat` that the readers and :func:`~st_simcse.load_sts` accept."""

    format: Format | None
    delimiter: str | None
    encoding: str | None
    quoting: int | None
    max_row_bytes: int


@dataclass(frozen=True)
class FileFormat:
    """The format of a file, which determines how its bytes become rows.

    Format and delimiter are detected from the file's name and first lines if they are None.

    Args:
        format: ``"lines"`` for one sentence per line, ``"csv"`` or ``"tsv"`` for cells with a separator between them,
            or ``"jsonl"`` for JSON objects, one per line or in an array.
        delimiter: The separator of the cells, such as ``"\\t"`` or ``"||"``.
        encoding: The name of a Python codec, such as ``"gb18030"``. If None, UTF-8.
        quoting: A constant of the csv module that says how quotes are read. All but ``csv.QUOTE_NONE`` mean that cells
            may be quoted. If None, cells separated by commas or semicolons may be quoted (``csv.QUOTE_MINIMAL``), and
            with other separators a quote is an ordinary character (``csv.QUOTE_NONE``).
        max_row_bytes: The maximum length of a row in bytes. Longer rows raise an error.

    Raises:
        ValueError: If a value is unknown, or if the values do not fit together.

    Example:
        >>> FileFormat(delimiter="||").delimiter
        '||'
    """

    format: Format | None = None
    delimiter: str | None = None
    encoding: str | None = None
    quoting: int | None = None
    max_row_bytes: int = MAX_ROW_BYTES

    def __post_init__(self) -> None:
        if self.format not in (None, "lines", "csv", "tsv", "jsonl"):
            raise ValueError(f"format={self.format!r} is unknown: choose lines, csv, tsv or jsonl")
        if self.format in ("lines", "jsonl") and self.delimiter is not None:
            raise ValueError(f"format={self.format!r} has no cells to separate: leave delimiter= out")
        if self.quoting not in (None, *_QUOTINGS):
            raise ValueError(
                f"quoting={self.quoting!r} is unknown: pass csv.QUOTE_MINIMAL if cells may be quoted, or "
                "csv.QUOTE_NONE if quotes are ordinary characters"
            )
        if self.format in ("lines", "jsonl") and self.quoting not in (None, csv.QUOTE_NONE):
            raise ValueError("lines and JSON objects have no cells in quotes: leave quoting= out")
        if self.delimiter is not None and (not self.delimiter or set(self.delimiter) & set('\r\n"')):
            raise ValueError(f"delimiter={self.delimiter!r} cannot separate cells: pass one like '\\t', ',' or '||'")
        if len(self.delimiter or "") > 1 and self.quoting not in (None, csv.QUOTE_NONE):
            raise ValueError(f"quoting= needs a delimiter of one character, got {self.delimiter!r}: leave quoting= out")
        if self.encoding is not None:
            check_encoding(self.encoding)
        if self.max_row_bytes < 1:
            raise ValueError(f"max_row_bytes must be 1 or more, got {self.max_row_bytes}")

    @property
    def given(self) -> list[str]:
        """The arguments that were passed, except ``max_row_bytes``, as they are written in Python."""
        return [
            f"{option.name}=" if option.name == "quoting" else f"{option.name}={value!r}"
            for option in fields(self)
            if option.name != "max_row_bytes" and (value := getattr(self, option.name)) is not None
        ]

    @property
    def is_quoted(self) -> bool:
        """True if cells may be quoted."""
        return self.delimiter in (",", ";") if self.quoting is None else self.quoting != csv.QUOTE_NONE


def file_format(path: FileOrDataset) -> str:
    """Returns the format from the source's name: csv, tsv, jsonl, parquet, dataset, or txt for all other names."""
    if isinstance(path, HubDataset):
        return "dataset"
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    return _BY_ENDING.get(suffixes[-1] if suffixes else "", "txt")


def place(path: FileOrDataset, line: int) -> str:
    """Returns the place of a row in the source, for messages."""
    return f"{path}, {'row' if file_format(path) in ('dataset', 'parquet') else 'line'} {line}"


def too_long(path: FileOrDataset, line: int, max_row_bytes: int) -> ValueError:
    """Returns the error for a row that is longer than ``max_row_bytes``."""
    return DataError(
        f"{place(path, line)}: longer than {max_row_bytes:,} bytes",
        "look for an unclosed quote or missing line ends",
        "raise max_row_bytes=",
    )
