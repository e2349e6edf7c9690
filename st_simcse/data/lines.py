"""Lines of text from files: decompression, decoding, and errors that name the format of a file that is not text."""

from __future__ import annotations

import gzip
import io
import os
import re
import stat
import zlib
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from st_simcse.data.encodings import fitting_encodings, is_utf8
from st_simcse.data.formats import FileFormat, too_long
from st_simcse.data.remedies import DataError

__all__ = ["check_unchanged", "decoded_lines", "foreign_kind", "line_pieces", "text_lines"]

_PIECE_BYTES = 2**16

_GZIP = b"\x1f\x8b"

_UTF16 = "UTF-16 text: convert it with iconv -f UTF-16LE (or UTF-16BE) -t UTF-8"

# Formats by the bytes that they begin with, and what to do with each.
_FOREIGN = {
    rb"\x1f\x8b": "gzip data: unpack it, or give it a name that ends in .gz",
    rb"PK(\x03\x04|\x05\x06)": "a zip archive, as .xlsx files are: unpack it, or save the sheet as csv",
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


def text_lines(path: Path, how: FileFormat, otherwise: str | None = None) -> Iterator[tuple[int, str]]:
    """Yields line numbers and lines, with their line ends.

    Lines are read as bytes, so that an error can name the line that does not decode. If ``otherwise`` is an encoding,
    lines that are not UTF-8 are decoded with it.
    """
    return decoded_lines(path, how, line_pieces(path), otherwise)


def line_pieces(path: Path) -> Iterator[bytes]:
    """Yields the lines of a file, which may be gzipped, with their line ends. Long lines come in pieces."""
    with path.open("rb") as raw:
        before = os.fstat(raw.fileno())
        number = 0
        try:
            file, head = raw, raw.peek()
            if path.suffix.lower() == ".gz" and (head.startswith(_GZIP) or not foreign_kind(head)):
                file = io.BufferedReader(gzip.GzipFile(fileobj=raw))
                head = file.peek()
            if foreign := foreign_kind(head):
                raise ValueError(f"{path}: expected lines of UTF-8 text, found {foreign}")
            while piece := file.readline(_PIECE_BYTES):
                if piece.endswith(b"\n"):
                    number += 1
                else:
                    check_unchanged(path, raw, before)
                yield piece
            check_unchanged(path, raw, before)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{path}, after line {number}: the gzip file is damaged ({error})") from None


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
            raise ValueError(f"{path}: the lines end in \\r only, as on old Macs; convert it with tr '\\r' '\\n'")
        if len(line.rstrip(b"\r\n")) > max_row_bytes:
            raise too_long(path, number, max_row_bytes)
        if complete:
            yield number, line
            number, parts, size = number + 1, [], 0


def decoded_lines(
    path: Path, how: FileFormat, pieces: Iterator[bytes], otherwise: str | None = None
) -> Iterator[tuple[int, str]]:
    """Yields line numbers and lines like :func:`text_lines`, from the pieces of :func:`line_pieces`."""
    encoding = how.encoding or "utf-8"
    utf8 = is_utf8(encoding)
    had_others = False  # whether an earlier line had non-ASCII letters
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
    """Yields the following lines that can be read, until there are enough of them to guess the encoding."""
    size = 0
    try:
        for _, line in lines:
            yield line
            size += len(line)
            if size > _PIECE_BYTES:
                return
    except ValueError:  # the caller reports the first error
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
        told = "earlier lines with non-ASCII letters are UTF-8, so this line is damaged"
        return DataError(f"{problem}; {told}", "repair or delete it")
    if fitting := fitting_encodings(lines):
        first = next(iter(fitting))
        described = " or ".join(f"{name} ({language})" for name, language in fitting.items())
        remedies = [f"pass encoding={first!r}", f"convert it with iconv -f {first.upper()} -t UTF-8"]
        return DataError(f"{problem}; its bytes fit {described}", *remedies)
    remedies = ["find out the file's encoding and pass encoding=", "convert it with iconv -t UTF-8"]
    return DataError(f"{problem}; its bytes fit none of the known encodings", *remedies)


def foreign_kind(head: bytes) -> str:
    """Returns the format of a file with these first bytes and what to do with it, or "" if it may be UTF-8 text."""
    for pattern, kind in _FOREIGN.items():
        if re.match(pattern, head):
            return kind
    # Half of the bytes of Western text in UTF-16 are zero. In UTF-8, a stray zero is a character like any other.
    return _UTF16 + ", if it is text" if head.count(0) > len(head) / 20 else ""


def check_unchanged(path: Path, file: io.BufferedReader, before: os.stat_result) -> None:
    """Raises a ValueError if the open file was written to since ``before``, because rows may be lost or cut off."""
    after = os.fstat(file.fileno())
    written = (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns)
    if written and stat.S_ISREG(before.st_mode):
        sizes = f"from {before.st_size:,} to {after.st_size:,} bytes"
        raise ValueError(f"{path}: the file changed while it was read, {sizes}; read it when it is complete")
