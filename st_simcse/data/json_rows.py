"""The rows of a file of JSON objects, one per line or in an array."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from st_simcse.data.formats import Column, FileFormat, Row, too_long
from st_simcse.data.lines import decoded_lines
from st_simcse.data.remedies import DataError

__all__ = ["json_rows"]

# A JSON array is read into memory whole. It may be this many times as long as the longest row.
_ARRAY_ROWS = 16

# The text before the first element of an array, and before any other element. The group is the end of the array.
_OPENING = re.compile(r"\s*\[(\s*\])?\s*")

_FOLLOWING = re.compile(r"\s*(?:,|(\]))\s*")


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError(f"an object has one of the names {list(row)} more than once")
    return row


_JSON = json.JSONDecoder(parse_constant=_no_constant, object_pairs_hook=_unique)


def json_rows(path: Path, how: FileFormat, pieces: Iterator[bytes]) -> Iterator[Row]:
    """Yields the objects, with the lines that they begin on. Blank lines are empty rows."""
    first = b""
    head: list[bytes] = []
    for piece in pieces:
        head.append(piece)
        if first := piece.removeprefix(b"\xef\xbb\xbf").strip():
            break
    pieces = chain(head, pieces)
    yield from _array_rows(path, how, pieces) if first.startswith(b"[") else _object_rows(path, how, pieces)


def _object_rows(path: Path, how: FileFormat, pieces: Iterator[bytes]) -> Iterator[Row]:
    for line, text in decoded_lines(path, how, pieces):
        if not text.strip():
            yield line, {}
            continue
        try:
            row = _JSON.decode(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{path}, line {line}: not JSON ({error}); expected one object per line, or an array of objects"
            ) from None
        yield line, _checked(path, line, row, text)


def _checked(path: Path, line: int, row: Any, text: str) -> dict[Column, Any]:
    if not isinstance(row, dict):
        raise ValueError(
            f"{path}, line {line}: expected one JSON object per line, or an array of objects, got {text.strip()[:40]!r}"
        )
    return row


def _array_rows(path: Path, how: FileFormat, pieces: Iterator[bytes]) -> Iterator[Row]:
    """Yields the objects of a JSON array, with the lines that they begin on. Reads the whole array into memory."""
    content = bytearray()
    limit = _ARRAY_ROWS * how.max_row_bytes
    for piece in pieces:
        content += piece
        if len(content) > limit:
            raise DataError(
                f"{path}: the file is a JSON array of more than {limit:,} bytes, and arrays are read into memory whole",
                "write one object per line instead, for example with jq -c '.[]'",
                "raise max_row_bytes=",
            )
    text = "".join(
        text for _, text in decoded_lines(path, replace(how, max_row_bytes=limit), iter(io.BytesIO(content)))
    )
    line, end, mark = 1, 0, _OPENING
    while found := mark.match(text, end):
        line += text.count("\n", end, found.end())
        end = found.end()
        if found[1]:  # the end of the array
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
        raise ValueError(f"{path}, line {line}: not JSON, expected ',' or the end of the array, got {rest[:40]!r}")
