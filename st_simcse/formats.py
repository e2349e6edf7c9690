"""Bytes to rows: what a file is, how its bytes are decoded, and how its lines become the cells of a table.

The readers know columns and what they mean; this module knows formats, separators and encodings.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
import stat
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow.parquet import ParquetFile

from st_simcse.hub import HubDataset

__all__ = [
    "LACKING",
    "MAX_ROW_BYTES",
    "Column",
    "Row",
    "Source",
    "csv_rows",
    "dataset_rows",
    "file_format",
    "json_rows",
    "parquet_rows",
    "place",
    "text_lines",
    "too_long",
]

Column = str | int
Source = Path | HubDataset
# The line a row begins on (in parquet files and data sets its number), and its cells by column name (or number,
# without a header).
Row = tuple[int, dict[Column, Any]]

# What a row has in a column of the header that lies behind its last cell.
LACKING: Any = object()

# Room for every document; a row beyond it is a mistake, such as a quote that is never closed.
MAX_ROW_BYTES = 2**24

# The csv module's own limit of 128 KiB a cell would refuse long documents; ours is that of the row.
csv.field_size_limit(min(sys.maxsize, 2**31 - 1))


def place(path: Source, line: int) -> str:
    """Where in the source a row is, for messages."""
    return f"{path}, {'row' if file_format(path) in ('dataset', 'parquet') else 'line'} {line}"


def file_format(path: Source) -> str:
    """What the source is read as: csv, tsv, jsonl, parquet, txt or, for a HubDataset, dataset."""
    if isinstance(path, HubDataset):
        return "dataset"
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    suffix = suffixes[-1] if suffixes else ""
    formats = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".json": "jsonl", ".parquet": "parquet"}
    return formats.get(suffix, "txt")


def _check_unchanged(path: Path, file: io.BufferedReader, before: os.stat_result) -> None:
    """ValueError if the open file was written to since: rows may be lost or torn."""
    after = os.fstat(file.fileno())
    written = (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns)
    if written and stat.S_ISREG(before.st_mode):
        sizes = f"from {before.st_size:,} to {after.st_size:,} bytes"
        raise ValueError(f"{path}: changed while it was read, {sizes}; read it when it is complete")


def too_long(path: Source, line: int, max_row_bytes: int) -> ValueError:
    return ValueError(
        f"{place(path, line)}: longer than {max_row_bytes:,} bytes; look for an unclosed quote or a file without line "
        "ends, or raise the reader's max_row_bytes"
    )


def text_lines(
    path: Path, max_row_bytes: int = MAX_ROW_BYTES, otherwise: str | None = None
) -> Iterator[tuple[int, str]]:
    """Line numbers and lines, line ends included; reads bytes so that a line can be named that does not decode.

    Where ``otherwise`` names an encoding, a line that is not UTF-8 is in that.
    """
    with path.open("rb") as raw:
        before = os.fstat(raw.fileno())
        number = 0
        try:
            file, head = raw, raw.peek()
            if path.suffix.lower() == ".gz" and (head.startswith(_GZIP) or not _foreign(head)):
                file = io.BufferedReader(gzip.GzipFile(fileobj=raw))
                head = file.peek()
            if foreign := _foreign(head):
                raise ValueError(f"{path}: not lines of UTF-8 text but {foreign}")
            for number, line in enumerate(iter(lambda: file.readline(max_row_bytes + 2), b""), start=1):
                if number == 1 and b"\n" not in line and b"\r" in line.rstrip(b"\r"):
                    raise ValueError(
                        f"{path}: its lines end in \\r alone, as on old Macs; convert it with tr '\\r' '\\n'"
                    )
                if len(line.rstrip(b"\r\n")) > max_row_bytes:
                    raise too_long(path, number, max_row_bytes)
                if not line.endswith(b"\n"):
                    _check_unchanged(path, raw, before)
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError:
                    if otherwise is None:
                        raise
                    text = line.decode(otherwise)
                yield number, text
            _check_unchanged(path, raw, before)
        except UnicodeDecodeError as error:
            # No other encoding of text has zero bytes.
            remedy = f"it may be {_UTF16}" if b"\0" in head else "convert it, for example with iconv -f LATIN1 -t UTF-8"
            raise ValueError(
                f"{path}, line {number}, byte {error.start + 1}: not UTF-8 ({error.reason}); {remedy}"
            ) from None
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{path}, after line {number}: damaged gzip file ({error})") from None


_GZIP = b"\x1f\x8b"
_UTF16 = "UTF-16 text: convert it with iconv -f UTF-16LE (or UTF-16BE) -t UTF-8"
# What begins so, and what to do with it.
_FOREIGN = {
    rb"\x1f\x8b": "gzip data: unpack it, or give it a name that ends in .gz",
    rb"PK(\x03\x04|\x05\x06)": "a zip archive, as .xlsx files are too: unpack it, or save the sheet as csv",
    rb"\xd0\xcf\x11\xe0": "an .xls file: save the sheet as csv",
    rb"BZh[1-9]1AY&SY": "bzip2 data: unpack it",
    rb"\xfd7zXZ\x00": "xz data: unpack it",
    rb"\x28\xb5\x2f\xfd": "zstandard data: unpack it",
    rb"7z\xbc\xaf\x27\x1c": "a 7z archive: unpack it",
    rb"(?s).{257}ustar": "a tar archive: unpack it",
    rb"PAR1\x15": "a parquet file: give it a name that ends in .parquet",
    rb"ARROW1\x00": "an Arrow file: save it as parquet",
    rb"\xff\xfe\x00\x00|\x00\x00\xfe\xff": "UTF-32 text: convert it with iconv -f UTF-32 -t UTF-8",
    rb"\xff\xfe|\xfe\xff": "UTF-16 text: convert it with iconv -f UTF-16 -t UTF-8",
}


def _foreign(head: bytes) -> str:
    """What a file with these first bytes is, and what to do with it, if it is no UTF-8 text; else empty."""
    for pattern, kind in _FOREIGN.items():
        if re.match(pattern, head):
            return kind
    # Western text in UTF-16 is half zeros; a stray zero in UTF-8 is a character like any other.
    return _UTF16 + ", if it is text" if head.count(0) > len(head) / 20 else ""


def dataset_rows(source: HubDataset) -> Iterator[dict[Column, Any]]:
    for batch in source.load().iter(batch_size=1000):
        for cells in zip(*batch.values(), strict=True):
            yield dict(zip(batch, cells, strict=True))


def parquet_rows(path: Path) -> Iterator[dict[Column, Any]]:
    with path.open("rb") as file:
        before = os.fstat(file.fileno())
        foreign = "" if file.peek().startswith(b"PAR1") else _foreign(file.peek())
        try:
            for batch in ParquetFile(file).iter_batches(batch_size=1000):
                yield from batch.to_pylist()
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(
                f"{path}: damaged or no parquet file ({error})" + (foreign and f" but {foreign}")
            ) from None
        _check_unchanged(path, file, before)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON value")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError(f"an object names one of {list(row)} more than once")
    return row


_JSON = json.JSONDecoder(parse_constant=_no_constant, object_pairs_hook=_unique)


def json_rows(path: Path, max_row_bytes: int) -> Iterator[Row]:
    for line, text in text_lines(path, max_row_bytes):
        if not text.strip():
            yield line, {}
            continue
        try:
            row = _JSON.decode(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {line}: not JSON ({error}); expected one object a line") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {line}: expected a JSON object a line, got {text.strip()[:40]!r}")
        yield line, row


def csv_rows(path: Path, numbered: bool, quoting: int | None, max_row_bytes: int) -> Iterator[Row]:
    comma = file_format(path) == "csv"
    quoting = quoting if quoting is not None else csv.QUOTE_MINIMAL if comma else csv.QUOTE_NONE
    line = size = 0

    def lines() -> Iterator[str]:
        nonlocal size
        for _, text in text_lines(path, max_row_bytes):
            size += len(text.encode())
            if size > max_row_bytes + 2:  # with the line's end
                raise too_long(path, line, max_row_bytes)
            yield text

    # strict, since a lenient parser lets one unbalanced quote swallow the rest of the file
    reader = csv.reader(lines(), delimiter="," if comma else "\t", quoting=quoting, strict=True)  # type: ignore[arg-type]
    header: list[str] | None = None
    while True:
        line, size = reader.line_num + 1, 0
        try:
            cells = next(reader, None)
        except csv.Error as error:
            # csv's own words on a lone \\r are meant for who calls it.
            told = "a line end \\r inside an unquoted cell" if "new-line" in str(error) else str(error)
            raise ValueError(
                f"{path}, line {line}: {told}; if quotes are ordinary characters in this file, pass "
                "quoting=csv.QUOTE_NONE"
            ) from None
        if cells is None:
            return
        if not any(cell.strip() for cell in cells):
            yield line, {}
        elif numbered:
            yield line, dict(enumerate(cells))
        elif header is None:
            header = [cell.strip() for cell in _without_empty_end(cells, 0)]
            if twice := [name for name, count in Counter(header).items() if count > 1]:
                raise ValueError(f"{path}, line {line}: the header names {twice} more than once")
        elif len(cells := _without_empty_end(cells, len(header))) > len(header):
            raise ValueError(
                f"{path}, line {line}: {len(cells)} cells, but the header has {len(header)} columns; if cells are "
                "quoted in this file, pass quoting=csv.QUOTE_MINIMAL"
            )
        else:
            yield line, dict(zip_longest(header, cells, fillvalue=LACKING))


def _without_empty_end(cells: list[str], width: int) -> list[str]:
    """The cells without empty ones behind the last column: spreadsheets write commas for them."""
    while len(cells) > width and not cells[-1].strip():
        cells.pop()
    return cells
