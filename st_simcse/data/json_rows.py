"""Lines to rows that are JSON objects, one a line or in an array."""

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

# A JSON array is in memory as a whole; it may be as large as so many of the longest rows.
_ARRAY_ROWS = 16

# Before the first and before any other element of an array; the group is the array's end.
_OPENING = re.compile(r"\s*\[(\s*\])?\s*")

_FOLLOWING = re.compile(r"\s*(?:,|(\]))\s*")


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON value")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError(f"an object names one of {list(row)} more than once")
    return row


_JSON = json.JSONDecoder(parse_constant=_no_constant, object_pairs_hook=_unique)


def json_rows(path: Path, how: FileFormat, pieces: Iterator[bytes]) -> Iterator[Row]:
    """The objects, and the lines they begin on; blank lines are empty rows."""
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
                f"{path}, line {line}: not JSON ({error}); expected one object a line, or an array of objects"
            ) from None
        yield line, _checked(path, line, row, text)


def _checked(path: Path, line: int, row: Any, text: str) -> dict[Column, Any]:
    if not isinstance(row, dict):
        raise ValueError(
            f"{path}, line {line}: expected a JSON object a line, or an array of objects, got {text.strip()[:40]!r}"
        )
    return row


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
    text = "".join(
        text for _, text in decoded_lines(path, replace(how, max_row_bytes=limit), iter(io.BytesIO(content)))
    )
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
