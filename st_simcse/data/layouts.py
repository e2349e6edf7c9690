"""Detection of a text file's layout from its first lines: sentences, JSON objects, or cells and their separator."""

from __future__ import annotations

import csv
import json
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from st_simcse.data.encodings import is_utf8, reads_as_utf8
from st_simcse.data.formats import AS_LINES, FileFormat, file_format
from st_simcse.data.lines import line_pieces
from st_simcse.data.remedies import DataError

__all__ = ["found_format", "is_header", "open_file", "separator_name"]

logger = logging.getLogger(__name__)

_SEPARATORS = {"\t": "tabs", "||": "||", ",": "commas", ";": "semicolons"}

# The part of a file that is read to detect its format: this many non-blank lines, or about this many bytes.
_HEAD_LINES, _HEAD_BYTES = 20, 2**20

# A first row is a header if it has at least two of these names, or nothing else.
_NAMES = (
    "id idx index pair_id pairid captionid split filename genre year source subset sentence sentence0 sentence1 "
    "sentence2 sentence_a sentence_b sent0 sent1 sent2 hard_neg text text1 text2 text_a text_b anchor positive "
    "negative premise hypothesis label labels gold_label score similarity similarity_score relatedness_score "
    "entailment_judgment query pos neg document answer question question1 question2 title class quality origin"
)

_COLUMN_NAMES = frozenset(_NAMES.split())

_ARRAY = re.compile(r"\s*\[\s*\{\s*[\"}]")


def found_format(path: Path, how: FileFormat) -> str:
    """Returns ``lines``, ``csv`` (any separator), ``jsonl``, ``parquet`` or ``dataset``.

    A pipe can be read only once, so its name decides. The name also decides for a file that does not exist. In these
    two cases the result can be ``tsv``.
    """
    named = file_format(path)
    if named in ("dataset", "parquet") or not path.is_file():
        return "lines" if named == "txt" else named
    found = open_file(path, how, AS_LINES)[0].format
    return "csv" if found == "tsv" else str(found)


def open_file(path: Path, how: FileFormat, as_lines: str | None) -> tuple[FileFormat, Iterator[bytes]]:
    """Returns the file's format, with the delimiter, and an iterator over its lines. Long lines come in pieces."""
    pieces = line_pieces(path)
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
        logger.warning("The first lines of %s are valid UTF-8, but the file is read as %s", path, how.encoding)
    # utf-8-sig is UTF-8 without the byte order mark, if there is one.
    codec = how.encoding if how.encoding and not is_utf8(how.encoding) else "utf-8-sig"
    text = content.decode(codec, errors="replace")
    lines = text.split("\n")
    if size > _HEAD_BYTES:
        lines = lines[:-1]  # the last one is incomplete
    found = _find(path, [line.rstrip("\r") for line in lines if line.strip()], text, how, as_lines)
    return found, chain(head, pieces)


def _find(path: Path, lines: Sequence[str], text: str, how: FileFormat, as_lines: str | None) -> FileFormat:
    """Detects the format from the first lines. Raises a ValueError if it is ambiguous or contradicts the file name."""
    named = file_format(path)
    if how.format is None and how.delimiter is None and named == "txt":
        found = _by_content(path, lines, text, as_lines)
        if found.format != "lines":
            cells = f"cells separated by {separator_name(found.delimiter)}"
            logger.info("%s is read as %s", path, "JSON objects" if found.format == "jsonl" else cells)
        return _settled(path, how, found.format, found.delimiter)
    kind: Any = how.format or ("csv" if how.delimiter else named)
    if kind not in ("csv", "tsv"):
        return _settled(path, how, kind)
    delimiter = how.delimiter or ("," if kind == "csv" else "\t")
    if how.format is None and how.delimiter is None:
        _check_separator(path, lines, delimiter)
    return _settled(path, how, kind, delimiter)


def _settled(path: Path, how: FileFormat, kind: Any, delimiter: str | None = None) -> FileFormat:
    """Returns the format with the detected values. Raises a ValueError if the others do not fit them."""
    try:
        return replace(how, format=kind, delimiter=delimiter)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _by_content(path: Path, lines: Sequence[str], text: str, as_lines: str | None) -> FileFormat:
    if _is_markup(lines):
        remedies = ["extract the sentences", *filter(None, [as_lines])]
        raise DataError(f"{path}: the lines are XML or HTML, which no reader supports", *remedies)
    if _ARRAY.match(text):
        return FileFormat("jsonl")
    shares = {"JSON objects": sum(map(_is_object, lines)) / max(1, len(lines))}
    uniform = []
    for delimiter in ("\t", "||"):
        shares[separator_name(delimiter)] = sum(delimiter in line.strip() for line in lines) / max(1, len(lines))
        if _is_uniform(lines, delimiter):
            uniform.append(delimiter)
    if shares["JSON objects"] == 1:
        return FileFormat("jsonl")
    uniform += [mark for mark in (",", ";") if lines and mark in lines[0] and is_header(lines[0].split(mark))]
    if len(uniform) == 1:
        return FileFormat("csv", uniform[0])
    mostly = [what for what, share in shares.items() if share > 0.5] if not uniform else [*map(separator_name, uniform)]
    if mostly:
        passed = [f"delimiter={mark!r}" for mark, name in _SEPARATORS.items() if name in mostly]
        passed += ["format='jsonl'"] if "JSON objects" in mostly else []
        raise DataError(
            f"{path}: most of the first {len(lines)} lines contain {' and '.join(mostly)}, but their layout is "
            "ambiguous: the file may hold sentences or a table",
            *filter(None, [as_lines]),
            *(f"pass {argument} to read it as a table" for argument in passed),
        )
    return FileFormat("lines")


def _check_separator(path: Path, lines: Sequence[str], delimiter: str) -> None:
    """Raises a ValueError if the file name implies this delimiter, but the lines hold JSON or use another delimiter."""
    if lines and all(map(_is_object, lines)):
        raise DataError(
            f"{path}: the lines are JSON objects, not cells", "rename the file to .jsonl", "pass format='jsonl'"
        )
    try:
        widths = {len(cells) for cells in csv.reader(lines, delimiter=delimiter)}
    except csv.Error:  # reading the rows raises it again, with the line
        return
    if len(widths) == 1 and widths != {1}:
        return
    for other in _SEPARATORS.keys() - {delimiter}:
        # Sentences contain commas and semicolons too: in a single line, or by chance equally many in a few lines.
        least = 1 if other in ("\t", "||") else 2
        is_plain = other in ("\t", "||") or delimiter not in "".join(lines) or is_header(lines[0].split(other))
        if len(lines) >= least and _is_uniform(lines, other) and is_plain:
            ending = {"\t": ".tsv", ",": ".csv"}.get(other)
            raise DataError(
                f"{path}: the cells of the lines are separated by {separator_name(other)}, not by "
                f"{separator_name(delimiter)}",
                *([f"rename the file to {ending}"] if ending else []),
                f"pass delimiter={other!r}",
            )


def _is_uniform(lines: Sequence[str], delimiter: str) -> bool:
    """Returns whether all lines contain the delimiter equally often, and not only at their ends."""
    counts = {line.count(delimiter) for line in lines}
    return len(counts) == 1 and counts != {0} and any(delimiter in line.strip() for line in lines)


def _is_object(line: str) -> bool:
    try:
        return line.lstrip().startswith("{") and isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def is_header(cells: Sequence[str]) -> bool:
    """Returns whether the cells are column names."""
    known = sum(cell.strip().strip('"').lower() in _COLUMN_NAMES for cell in cells)
    return known >= 2 or 0 < known == len(cells)


def _is_markup(lines: Sequence[str]) -> bool:
    if not lines:
        return False
    first = lines[0].strip()
    if re.match(r"<(\?xml|!doctype)\b", first, re.IGNORECASE):
        return True
    opened = re.match(r"<([A-Za-z][\w:.-]*)(\s[^<>]*)?>", first)
    return bool(opened) and all(re.fullmatch(r"\s*<.*>\s*", line) for line in lines)


def separator_name(delimiter: str | None) -> str:
    """Returns the delimiter's name in messages."""
    return _SEPARATORS.get(str(delimiter), repr(delimiter))
