"""Bytes to rows: what a file is, how its bytes are decoded, and how its lines become the cells of a table.

The readers know columns and what they mean; this module knows formats and separators, and ``encodings`` knows bytes.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import logging
import os
import re
import stat
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, Literal, TypedDict

import pyarrow
from pyarrow.parquet import ParquetFile

from st_simcse.encodings import check_encoding, fitting_encodings, is_utf8, reads_as_utf8
from st_simcse.hub import HubDataset
from st_simcse.remedies import DataError

__all__ = [
    "LACKING",
    "MAX_ROW_BYTES",
    "Column",
    "FileFormat",
    "FormatOptions",
    "Row",
    "Source",
    "file_format",
    "found_format",
    "open_rows",
    "place",
    "text_lines",
    "too_long",
]

logger = logging.getLogger(__name__)

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

Format = Literal["lines", "csv", "tsv", "jsonl"]
_BY_ENDING = {
    **{".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".parquet": "parquet"},
    **dict.fromkeys((".jsonl", ".json", ".ndjson", ".jsonlines"), "jsonl"),
}
_SEPARATORS = {"\t": "tabs", "||": "||", ",": "commas", ";": "semicolons"}

# The column that a line is, where lines are sentences.
LINE = "sentence"

# What a reader of sentences says to do about lines that it takes for a table.
AS_LINES = "pass format='lines' to read each line as a sentence"

# What is looked at to find a file's format: so many lines with text, and no more than so many bytes.
_HEAD_LINES, _HEAD_BYTES = 20, 2**20
_PIECE_BYTES = 2**16
# A JSON array is in memory as a whole; it may be as large as so many of the longest rows.
_ARRAY_ROWS = 16

# By two of these names, or by these names alone, a first row is known as a header.
_NAMES = (
    "id idx index pair_id pairid captionid split filename genre year source subset sentence sentence0 sentence1 "
    "sentence2 sentence_a sentence_b sent0 sent1 sent2 hard_neg text text1 text2 text_a text_b anchor positive "
    "negative premise hypothesis label labels gold_label score similarity similarity_score relatedness_score "
    "entailment_judgment query pos neg document answer question question1 question2 title class quality origin"
)
_COLUMN_NAMES = frozenset(_NAMES.split())


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
        """What it says of the file, besides how long rows may be, as it would be written in Python."""
        return [
            f"{option.name}={value!r}"
            for option in fields(self)
            if option.name != "max_row_bytes" and (value := getattr(self, option.name)) is not None
        ]

    @property
    def is_quoted(self) -> bool:
        """Whether cells may stand in quotes."""
        return self.delimiter in (",", ";") if self.quoting is None else self.quoting != csv.QUOTE_NONE


def place(path: Source, line: int) -> str:
    """Where in the source a row is, for messages."""
    return f"{path}, {'row' if file_format(path) in ('dataset', 'parquet') else 'line'} {line}"


def file_format(path: Source) -> str:
    """What the source's name says that it is: csv, tsv, jsonl, parquet, dataset, or, if nothing, txt."""
    if isinstance(path, HubDataset):
        return "dataset"
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    return _BY_ENDING.get(suffixes[-1] if suffixes else "", "txt")


def open_rows(path: Source, how: FileFormat, numbered: bool | None, as_lines: str | None) -> tuple[str, Iterator[Row]]:
    """What the source is found to be, and its rows; blank lines are empty rows.

    Args:
        path: the file or data set.
        how: what is known of the file.
        numbered: the rows of a csv or tsv file go by the numbers of their cells; else its first row is a header. None
            leaves it to the first row, which is no header if it is a scored pair between tabs or ``||``.
        as_lines: for messages, what to do if the lines are sentences; None where nobody takes them for that.

    Returns:
        ``lines``, ``csv`` (any separator), ``jsonl``, ``parquet`` or ``dataset``, and the rows.

    Raises:
        ValueError: for content that is ambiguous or contradicts the name, with what to pass; the rows raise for
            what they cannot read, naming file and line.
    """
    kind = file_format(path)
    if isinstance(path, HubDataset) or kind == "parquet":
        if how.given:
            raise ValueError(f"{path}: {' and '.join(how.given)} is for text files: leave it out")
        return kind, enumerate(_dataset_rows(path) if isinstance(path, HubDataset) else _parquet_rows(path), start=1)
    found, pieces = _open(path, how, as_lines)
    if found.format == "jsonl":
        return "jsonl", _json_rows(path, found, pieces)
    if found.format == "lines":
        return "lines", ((n, {LINE: text} if text.strip() else {}) for n, text in _decoded(path, found, pieces))
    return "csv", _csv_rows(path, found, pieces, numbered, as_lines)


def found_format(path: Path, how: FileFormat) -> str:
    """As :func:`open_rows`; of a pipe, which can be read but once, and of no file, what the name says."""
    named = file_format(path)
    if named in ("dataset", "parquet") or not path.is_file():
        return "lines" if named == "txt" else named
    found = _open(path, how, AS_LINES)[0].format
    return "csv" if found == "tsv" else str(found)


def _open(path: Path, how: FileFormat, as_lines: str | None) -> tuple[FileFormat, Iterator[bytes]]:
    """Format and delimiter, and the file's lines; long ones in pieces."""
    pieces = _pieces(path)
    head: list[bytes] = []
    size = filled = 0
    for piece in pieces:
        head.append(piece)
        size += len(piece)
        filled += piece.endswith(b"\n") and bool(piece.strip())
        if filled == _HEAD_LINES or size > _HEAD_BYTES:
            break
    content = b"".join(head)
    if how.encoding and reads_as_utf8(content) and not is_utf8(how.encoding):
        logger.warning("%s is UTF-8, by its first lines, and is read as %s", path, how.encoding)
    text = content.decode(how.encoding or "utf-8-sig", errors="replace")
    lines = text.split("\n")
    if size > _HEAD_BYTES:
        lines = lines[:-1]  # of which the end is not there
    found = _find(path, [line.rstrip("\r") for line in lines if line.strip()], text, how, as_lines)
    return found, chain(head, pieces)


def _find(path: Path, lines: Sequence[str], text: str, how: FileFormat, as_lines: str | None) -> FileFormat:
    """What the file is by its first lines; ValueError if that is ambiguous or contradicts its name."""
    named = file_format(path)
    if how.format is None and how.delimiter is None and named == "txt":
        found = _by_content(path, lines, text, as_lines)
        if found.format != "lines":
            what = "JSON objects" if found.format == "jsonl" else f"cells separated by {_named(found.delimiter)}"
            logger.info("%s is read as %s", path, what)
        return replace(how, format=found.format, delimiter=found.delimiter)
    kind: Any = how.format or ("csv" if how.delimiter else named)
    if kind not in ("csv", "tsv"):
        return replace(how, format=kind)
    delimiter = how.delimiter or ("," if kind == "csv" else "\t")
    if how.format is None and how.delimiter is None:
        _check_separator(path, lines, delimiter)
    return replace(how, format=kind, delimiter=delimiter)


def _by_content(path: Path, lines: Sequence[str], text: str, as_lines: str | None) -> FileFormat:
    if _is_markup(lines):
        remedies = ["extract the sentences", *filter(None, [as_lines])]
        raise DataError(f"{path}: its lines are XML or HTML, which no reader takes", *remedies)
    if _ARRAY.match(text):
        return FileFormat("jsonl")
    shares = {"JSON objects": sum(map(_is_object, lines)) / max(1, len(lines))}
    uniform = []
    for delimiter in ("\t", "||"):
        shares[_named(delimiter)] = sum(delimiter in line.strip() for line in lines) / max(1, len(lines))
        if _is_uniform(lines, delimiter):
            uniform.append(delimiter)
    if shares["JSON objects"] == 1:
        return FileFormat("jsonl")
    uniform += [mark for mark in (",", ";") if lines and mark in lines[0] and _is_header(lines[0].split(mark))]
    if len(uniform) == 1:
        return FileFormat("csv", uniform[0])
    mostly = [what for what, share in shares.items() if share > 0.5] if not uniform else [*map(_named, uniform)]
    if mostly:
        passed = [f"delimiter={mark!r}" for mark, name in _SEPARATORS.items() if name in mostly]
        passed += ["format='jsonl'"] if "JSON objects" in mostly else []
        raise DataError(
            f"{path}: most of its first {len(lines)} lines have {' and '.join(mostly)}, but not all of them alike, so "
            "that it may be sentences or a table",
            *filter(None, [as_lines]),
            *(f"pass {argument} to read it as a table" for argument in passed),
        )
    return FileFormat("lines")


def _check_separator(path: Path, lines: Sequence[str], delimiter: str) -> None:
    """ValueError if the name promises cells that this delimiter separates, and the lines have others."""
    if lines and all(map(_is_object, lines)):
        raise DataError(f"{path}: its lines are JSON objects", "name it .jsonl", "pass format='jsonl'")
    try:
        widths = {len(cells) for cells in csv.reader(lines, delimiter=delimiter)}
    except csv.Error:  # which the rows will raise with their line
        return
    if len(widths) == 1 and widths != {1}:
        return
    for other in _SEPARATORS.keys() - {delimiter}:
        # Commas and semicolons are in sentences too; in one line, or by chance in as many of a few.
        least = 1 if other in ("\t", "||") else 2
        if len(lines) >= least and _is_uniform(lines, other) and not (other in ",;" and delimiter in "".join(lines)):
            ending = {"\t": ".tsv", ",": ".csv"}.get(other)
            raise DataError(
                f"{path}: the cells of its lines are separated by {_named(other)}, not by {_named(delimiter)}",
                *([f"name it {ending}"] if ending else []),
                f"pass delimiter={other!r}",
            )


def _is_uniform(lines: Sequence[str], delimiter: str) -> bool:
    """Whether all lines have the same number of it, and not just at their ends."""
    counts = {line.count(delimiter) for line in lines}
    return len(counts) == 1 and counts != {0} and any(delimiter in line.strip() for line in lines)


def _is_object(line: str) -> bool:
    try:
        return line.lstrip().startswith("{") and isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _is_header(cells: Sequence[str]) -> bool:
    known = sum(cell.strip().strip('"').lower() in _COLUMN_NAMES for cell in cells)
    return known >= 2 or 0 < known == len(cells)


_ARRAY = re.compile(r"\s*\[\s*\{\s*[\"}]")


def _is_markup(lines: Sequence[str]) -> bool:
    if not lines:
        return False
    first = lines[0].strip()
    if re.match(r"<(\?xml|!doctype)\b", first, re.IGNORECASE):
        return True
    opened = re.match(r"<([A-Za-z][\w:.-]*)(\s[^<>]*)?>", first)
    return bool(opened) and all(re.fullmatch(r"\s*<.*>\s*", line) for line in lines)


def _named(delimiter: str | None) -> str:
    return _SEPARATORS.get(str(delimiter), repr(delimiter))


def _check_unchanged(path: Path, file: io.BufferedReader, before: os.stat_result) -> None:
    """ValueError if the open file was written to since: rows may be lost or torn."""
    after = os.fstat(file.fileno())
    written = (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns)
    if written and stat.S_ISREG(before.st_mode):
        sizes = f"from {before.st_size:,} to {after.st_size:,} bytes"
        raise ValueError(f"{path}: changed while it was read, {sizes}; read it when it is complete")


def too_long(path: Source, line: int, max_row_bytes: int) -> ValueError:
    return DataError(
        f"{place(path, line)}: longer than {max_row_bytes:,} bytes",
        "look for an unclosed quote or a file without line ends",
        "raise max_row_bytes=",
    )


def text_lines(path: Path, how: FileFormat = FileFormat(), otherwise: str | None = None) -> Iterator[tuple[int, str]]:
    """Line numbers and lines, line ends included; reads bytes so that a line can be named that does not decode.

    Where ``otherwise`` names an encoding, a line that is not UTF-8 is in that.
    """
    return _decoded(path, how, _pieces(path), otherwise)


def _pieces(path: Path) -> Iterator[bytes]:
    """The lines of a file that may be gzipped, line ends included; long lines in pieces."""
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
            while piece := file.readline(_PIECE_BYTES):
                if piece.endswith(b"\n"):
                    number += 1
                else:
                    _check_unchanged(path, raw, before)
                yield piece
            _check_unchanged(path, raw, before)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{path}, after line {number}: damaged gzip file ({error})") from None


def _whole_lines(path: Path, pieces: Iterator[bytes], max_row_bytes: int) -> Iterator[tuple[int, bytes]]:
    number, parts, size = 1, list[bytes](), 0
    for piece in chain(pieces, [b""]):
        parts.append(piece)
        size += len(piece)
        complete = piece.endswith(b"\n") or not piece
        if not (complete or size > max_row_bytes + 2) or not size:
            continue
        line = b"".join(parts)
        if number == 1 and b"\n" not in line and b"\r" in line.rstrip(b"\r"):
            raise ValueError(f"{path}: its lines end in \\r alone, as on old Macs; convert it with tr '\\r' '\\n'")
        if len(line.rstrip(b"\r\n")) > max_row_bytes:
            raise too_long(path, number, max_row_bytes)
        if complete:
            yield number, line
            number, parts, size = number + 1, [], 0


def _decoded(
    path: Path, how: FileFormat, pieces: Iterator[bytes], otherwise: str | None = None
) -> Iterator[tuple[int, str]]:
    encoding = how.encoding or "utf-8"
    utf8 = is_utf8(encoding)
    had_others = False  # letters that are not ASCII, and could be decoded
    lines = _whole_lines(path, pieces, how.max_row_bytes)
    for number, line in lines:
        try:
            text = line.decode("utf-8-sig" if number == 1 and utf8 else encoding)
        except UnicodeDecodeError as error:
            if otherwise is None:
                raise _undecodable(path, number, error, [line, *_next_bytes(lines)], had_others) from None
            text = line.decode(otherwise)
        had_others = had_others or not text.isascii()
        yield number, text


def _next_bytes(lines: Iterator[tuple[int, bytes]]) -> Iterator[bytes]:
    """The lines that follow, as far as they can be read and as many as say what the encoding is."""
    size = 0
    try:
        for _, line in lines:
            yield line
            size += len(line)
            if size > _PIECE_BYTES:
                return
    except ValueError:  # the error to report is another
        return


def _undecodable(
    path: Path, number: int, error: UnicodeDecodeError, lines: Sequence[bytes], had_others: bool
) -> ValueError:
    utf8 = is_utf8(error.encoding)
    name = "UTF-8" if utf8 else error.encoding
    problem = f"{path}, line {number}, byte {error.start + 1}: not {name} ({error.reason})"
    if b"\0" in b"".join(lines):  # no other encoding of text has zero bytes
        return DataError(problem, f"it may be {_UTF16}")
    if utf8 and had_others:
        told = "the lines before it are, with letters beyond ASCII, so that this one is damaged"
        return DataError(f"{problem}; {told}", "mend or delete it")
    if fitting := fitting_encodings(lines):
        first = next(iter(fitting))
        described = " or ".join(f"{name} ({language})" for name, language in fitting.items())
        remedies = [f"pass encoding={first!r}", f"convert it with iconv -f {first.upper()} -t UTF-8"]
        return DataError(f"{problem}; its bytes fit {described}", *remedies)
    remedies = ["find out which it is and pass encoding=", "convert it with iconv -t UTF-8"]
    return DataError(f"{problem}; no encoding that is known here fits", *remedies)


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


def _dataset_rows(source: HubDataset) -> Iterator[dict[Column, Any]]:
    for batch in source.load().iter(batch_size=1000):
        for cells in zip(*batch.values(), strict=True):
            yield dict(zip(batch, cells, strict=True))


def _parquet_rows(path: Path) -> Iterator[dict[Column, Any]]:
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


def _json_rows(path: Path, how: FileFormat, pieces: Iterator[bytes]) -> Iterator[Row]:
    first = b""
    head: list[bytes] = []
    for piece in pieces:
        head.append(piece)
        if first := piece.removeprefix(b"\xef\xbb\xbf").strip():
            break
    pieces = chain(head, pieces)
    yield from _array_rows(path, how, pieces) if first.startswith(b"[") else _object_rows(path, how, pieces)


def _object_rows(path: Path, how: FileFormat, pieces: Iterator[bytes]) -> Iterator[Row]:
    for line, text in _decoded(path, how, pieces):
        if not text.strip():
            yield line, {}
            continue
        try:
            row = _JSON.decode(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{path}, line {line}: not JSON ({error}); expected one object a line, or an array of objects"
            ) from None
        yield line, _checked(path, line, row, text)


def _checked(path: Path, line: int, row: Any, text: str) -> dict[Column, Any]:
    if not isinstance(row, dict):
        raise ValueError(
            f"{path}, line {line}: expected a JSON object a line, or an array of objects, got {text.strip()[:40]!r}"
        )
    return row


# Before the first and before any other element of an array; the group is the array's end.
_OPENING = re.compile(r"\s*\[(\s*\])?\s*")
_FOLLOWING = re.compile(r"\s*(?:,|(\]))\s*")


def _array_rows(path: Path, how: FileFormat, pieces: Iterator[bytes]) -> Iterator[Row]:
    """The objects of a JSON array, and the lines that they begin on. All of the array is in memory."""
    content = bytearray()
    limit = _ARRAY_ROWS * how.max_row_bytes
    for piece in pieces:
        content += piece
        if len(content) > limit:
            raise DataError(
                f"{path}: a JSON array of more than {limit:,} bytes, which is read at once",
                "write an object a line instead, for example with jq -c '.[]'",
                "raise max_row_bytes=",
            )
    text = "".join(text for _, text in _decoded(path, replace(how, max_row_bytes=limit), iter(io.BytesIO(content))))
    line, end, mark = 1, 0, _OPENING
    while found := mark.match(text, end):
        line += text.count("\n", end, found.end())
        end = found.end()
        if found[1]:  # the array's end
            break
        try:
            row, stop = _JSON.raw_decode(text, end)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {line}: not JSON ({error}); expected an array of objects") from None
        if len(text[end:stop].encode()) > how.max_row_bytes:
            raise too_long(path, line, how.max_row_bytes)
        yield line, _checked(path, line, row, text[end:stop])
        line += text.count("\n", end, stop)
        end, mark = stop, _FOLLOWING
    if not found or text[end:].strip():
        rest = text[end:].lstrip()
        line += text.count("\n", end, len(text) - len(rest))
        raise ValueError(f"{path}, line {line}: not JSON, expected ',' or the array's end, got {rest[:40]!r}")


def _csv_rows(
    path: Path, how: FileFormat, pieces: Iterator[bytes], numbered: bool | None, as_lines: str | None
) -> Iterator[Row]:
    """The rows under a header, or by the numbers of their cells."""
    header: list[str] | None = None
    first: list[str] | None = None
    any_row = False
    check_quotes = _quote_checker(path, how)
    for line, cells in _split(path, how, pieces):
        if not any(cell.strip() for cell in cells):
            any_row = any_row or header is not None
            yield line, {}
            continue
        check_quotes(line, cells)
        if numbered is None:
            numbered = _is_scored_pair(cells, how)
        if numbered:
            if first is None and _is_header(cells):
                logger.warning("%s, line %d: %s is skipped as a header; columns go by number", path, line, cells)
                first = cells
                continue
            first = first or cells
            _check_width(path, line, cells, first, how)
            yield line, dict(enumerate(cells))
        elif header is None:
            header = [cell.strip() for cell in _without_empty_end(cells, 0)]
            if twice := [name for name, count in Counter(header).items() if count > 1]:
                raise ValueError(f"{path}, line {line}: the header names {twice} more than once")
        elif len(cells := _without_empty_end(cells, len(header))) > len(header):
            problem = f"{path}, line {line}: {len(cells)} cells, but the header has {len(header)} columns"
            raise DataError(problem, _for_separators_in_cells(how))
        else:
            any_row = True
            yield line, dict(zip_longest(header, cells, fillvalue=LACKING))
    if header is not None and not any_row:
        raise DataError(
            f"{path}: nothing to read below the header {header}, the cells of its only line, separated by "
            f"{_named(how.delimiter)}",
            "name the columns by number from 0 if this is no header",
            *filter(None, [as_lines]),
        )


def _for_separators_in_cells(how: FileFormat) -> str:
    """What to do about a row with more cells than it should have."""
    if how.is_quoted:
        return "put quotes around a cell that contains the separator"
    return "pass quoting=csv.QUOTE_MINIMAL if cells are quoted in this file"


def _is_scored_pair(cells: Sequence[str], how: FileFormat) -> bool:
    """Whether a row is sentence, sentence and score, perhaps behind an id such as 2012test-0001: no header is."""
    if how.delimiter not in ("\t", "||") or not all(cell.strip() for cell in cells) or _is_header(cells):
        return False
    *others, score = (cell.strip() for cell in cells)
    has_id = len(others) == 3 and bool(re.fullmatch(r"[!-~]*[0-9][!-~]*", others[0]))
    return bool(re.fullmatch(r"[0-9]+(\.[0-9]+)?", score)) and (has_id or len(others) == 2)


def _split(path: Path, how: FileFormat, pieces: Iterator[bytes]) -> Iterator[tuple[int, list[str]]]:
    """The cells of each row, and the line that it begins on."""
    delimiter = str(how.delimiter)
    if len(delimiter) > 1:  # the csv module takes one character
        for line, text in _decoded(path, how, pieces):
            yield line, text.rstrip("\n").split(delimiter)
        return
    line = size = 0

    def lines() -> Iterator[str]:
        nonlocal size
        for _, text in _decoded(path, how, pieces):
            size += len(text.encode())
            if size > how.max_row_bytes + 2:  # with the line's end
                raise too_long(path, line, how.max_row_bytes)
            yield text

    quoting = how.quoting if how.quoting is not None else csv.QUOTE_MINIMAL if how.is_quoted else csv.QUOTE_NONE
    # strict, since a lenient parser lets one unbalanced quote swallow the rest of the file
    reader = csv.reader(lines(), delimiter=delimiter, quoting=quoting, strict=True)  # type: ignore[arg-type]
    while True:
        line, size = reader.line_num + 1, 0
        try:
            cells = next(reader, None)
        except csv.Error as error:
            # csv's own words on a lone \\r are meant for who calls it.
            told = "a line end \\r inside an unquoted cell" if "new-line" in str(error) else str(error)
            remedy = "pass quoting=csv.QUOTE_NONE if quotes are ordinary characters in this file"
            raise DataError(f"{path}, line {line}: {told}", *([remedy] if how.is_quoted else [])) from None
        if cells is None:
            return
        yield line, cells


def _check_width(path: Path, line: int, cells: list[str], first: list[str], how: FileFormat) -> None:
    """ValueError for a row with more or fewer cells than the first; empty ones at the end count for nothing."""
    least, most = len(_without_empty_end(list(first), 1)), len(first)
    if len(_without_empty_end(list(cells), most)) > most or len(cells) < least:
        raise DataError(
            f"{path}, line {line}: {len(cells)} cells, but the first row has {len(first)}, separated by "
            f"{_named(how.delimiter)}",
            _for_separators_in_cells(how),
            "pass delimiter= if another separates them",
        )


def _quote_checker(path: Path, how: FileFormat) -> Callable[[int, list[str]], None]:
    """Refuses rows whose first cell with quotes is as csv writers put it: in quotes, with those inside doubled."""
    undecided = how.quoting is None and not how.is_quoted

    def check(line: int, cells: list[str]) -> None:
        nonlocal undecided
        for cell in cells if undecided else ():
            inner = cell[1:-1]
            if '"' in cell and not (cell[0] == cell[-1] == '"' and '"' not in inner.replace('""', "")):
                undecided = False  # a writer would have quoted it
            elif '""' in inner:
                raise DataError(
                    f"{path}, line {line}: the cell {cell[:60]!r} has doubled quotes, as pandas and spreadsheets write "
                    "them",
                    "pass quoting=csv.QUOTE_MINIMAL if the file's cells are quoted",
                    "quoting=csv.QUOTE_NONE if quotes are ordinary characters in it",
                )

    return check


def _without_empty_end(cells: list[str], width: int) -> list[str]:
    """The cells without empty ones behind the last column: spreadsheets write commas for them."""
    while len(cells) > width and not cells[-1].strip():
        cells.pop()
    return cells
