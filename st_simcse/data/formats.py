"""What a file is: its format as a caller says it or its name does, and where in it a row is."""

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

# The line a row begins on (in parquet files and data sets its number), and its cells by column name (or number,
# without a header).
Row = tuple[int, dict[Column, Any]]

# What a row has in a column of the header that lies behind its last cell.
LACKING: Any = object()

# Room for every document; a row beyond it is a mistake, such as a quote that is never closed.
MAX_ROW_BYTES = 2**24

# The csv module's own limit of 128 KiB a cell would refuse long documents; ours is that of the row.
csv.field_size_limit(min(sys.maxsize, 2**31 - 1))

Format = Literal["lines", "csv", "tsv", "jsonl"]

_BY_ENDING = {
    **{".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".parquet": "parquet"},
    **dict.fromkeys((".jsonl", ".json", ".ndjson", ".jsonlines"), "jsonl"),
}

# What a reader of sentences says to do about lines that it takes for a table.
AS_LINES = "pass format='lines' to read each line as a sentence"


class FormatOptions(TypedDict, total=False):
    """The arguments of :class:`FileFormat`, as the readers and :func:`~st_simcse.load_sts` take them."""

    format: Format | None
    delimiter: str | None
    encoding: str | None
    quoting: int | None
    max_row_bytes: int


@dataclass(frozen=True)
class FileFormat:
    """How the bytes of a file become rows. The file's name and its first lines say what is left out.

    Args:
        format: ``"lines"``, each of which is a sentence; ``"csv"`` or ``"tsv"``, cells with a separator between them;
            ``"jsonl"``, JSON objects, one a line or in an array.
        delimiter: what separates the cells, such as ``"\\t"`` or ``"||"``.
        encoding: the name of a codec of Python's, such as ``"gb18030"``; UTF-8 when left out.
        quoting: how quotes are read, a constant of the csv module. When left out, cells that commas or semicolons
            separate are quoted (``csv.QUOTE_MINIMAL``), and in others a quote is an ordinary character
            (``csv.QUOTE_NONE``).
        max_row_bytes: a row that is longer is refused.

    Raises:
        ValueError: for values that are unknown or do not go together.

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
            raise ValueError(f"format={self.format!r} is unknown: choose among lines, csv, tsv, jsonl")
        if self.format in ("lines", "jsonl") and self.delimiter is not None:
            raise ValueError(f"format={self.format!r} has no cells to separate: leave delimiter= out")
        if self.delimiter is not None and (not self.delimiter or set(self.delimiter) & set('\r\n"')):
            raise ValueError(f"delimiter={self.delimiter!r} separates no cells: expected such as '\\t', ',' or '||'")
        if len(self.delimiter or "") > 1 and self.quoting not in (None, csv.QUOTE_NONE):
            raise ValueError(f"quoting= goes with a delimiter of one character, got {self.delimiter!r}: leave it out")
        if self.encoding is not None:
            check_encoding(self.encoding)
        if self.max_row_bytes < 1:
            raise ValueError(f"max_row_bytes must be 1 or more, got {self.max_row_bytes}")

    @property
    def given(self) -> list[str]:
        """The arguments that say more than how long rows may be, as they are written in Python."""
        return [
            f"{option.name}=" if option.name == "quoting" else f"{option.name}={value!r}"
            for option in fields(self)
            if option.name != "max_row_bytes" and (value := getattr(self, option.name)) is not None
        ]

    @property
    def is_quoted(self) -> bool:
        """Whether cells may stand in quotes."""
        return self.delimiter in (",", ";") if self.quoting is None else self.quoting != csv.QUOTE_NONE


def file_format(path: FileOrDataset) -> str:
    """What the source's name says that it is: csv, tsv, jsonl, parquet, dataset, or, if nothing, txt."""
    if isinstance(path, HubDataset):
        return "dataset"
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    return _BY_ENDING.get(suffixes[-1] if suffixes else "", "txt")


def place(path: FileOrDataset, line: int) -> str:
    """Where in the source a row is, for messages."""
    return f"{path}, {'row' if file_format(path) in ('dataset', 'parquet') else 'line'} {line}"


def too_long(path: FileOrDataset, line: int, max_row_bytes: int) -> ValueError:
    """What to raise for a row of more bytes than a reader takes."""
    return DataError(
        f"{place(path, line)}: longer than {max_row_bytes:,} bytes",
        "look for an unclosed quote or a file without line ends",
        "raise max_row_bytes=",
    )
