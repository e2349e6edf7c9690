"""The rows of a table of cells, with a header or numbered columns. A row may span several lines."""

from __future__ import annotations

import csv
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

from st_simcse.data.formats import LACKING, FileFormat, Row, too_long
from st_simcse.data.layouts import is_header, separator_name
from st_simcse.data.lines import decoded_lines
from st_simcse.data.remedies import DataError

__all__ = ["cell_rows"]

logger = logging.getLogger(__name__)

# The remedies for a file whose quotes may be those of a csv writer or part of the texts.
_QUOTED_OR_NOT = (
    "pass quoting=csv.QUOTE_MINIMAL if the file's cells are quoted",
    "quoting=csv.QUOTE_NONE if quotes are ordinary characters",
)


def cell_rows(
    path: Path, how: FileFormat, pieces: Iterator[bytes], numbered: bool | None, as_lines: str | None
) -> Iterator[Row]:
    """Yields the rows, with cells keyed by the names of the header or, if ``numbered``, by their numbers."""
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
            if first is None and (is_header(cells) or _is_numbered_header(cells)):
                logger.warning("%s, line %d: skipped the header %s because columns are numbered", path, line, cells)
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
            problem = f"{path}, line {line}: the row has {len(cells)} cells, but the header has {len(header)} columns"
            raise DataError(problem, _for_separators_in_cells(how))
        else:
            any_row = True
            yield line, dict(zip_longest(header, cells, fillvalue=LACKING))
    if header is not None and not any_row:
        raise DataError(
            f"{path}: there is nothing to read below the header {header} (cells separated by "
            f"{separator_name(how.delimiter)})",
            "pass column numbers from 0 if this line is not a header",
            *filter(None, [as_lines]),
        )


def _is_numbered_header(cells: Sequence[str]) -> bool:
    """Returns whether the cells are the header that pandas writes for unnamed columns, possibly with an index."""
    names = [cell.strip() for cell in cells]
    unnamed = names[1:] if names[0] == "" else names
    return unnamed == [str(number) for number in range(len(unnamed))]


def _for_separators_in_cells(how: FileFormat) -> str:
    """Returns the remedy for a row with too many cells."""
    if len(str(how.delimiter)) > 1:
        return f"remove {separator_name(how.delimiter)} from the texts"
    if how.is_quoted:
        return "put quotes around a cell that contains the separator"
    return "pass quoting=csv.QUOTE_MINIMAL if cells are quoted in this file"


def _is_scored_pair(cells: Sequence[str], how: FileFormat) -> bool:
    """Returns whether a row has two sentences and a score, possibly after an id such as 2012test-0001.

    A header never looks like this.
    """
    if how.delimiter not in ("\t", "||") or not all(cell.strip() for cell in cells) or is_header(cells):
        return False
    *others, score = (cell.strip() for cell in cells)
    has_id = len(others) == 3 and bool(re.fullmatch(r"[!-~]*[0-9][!-~]*", others[0]))
    return bool(re.fullmatch(r"[0-9]+(\.[0-9]+)?", score)) and (has_id or len(others) == 2)


def _split(path: Path, how: FileFormat, pieces: Iterator[bytes]) -> Iterator[tuple[int, list[str]]]:
    """Yields the cells of each row, with the line that it begins on."""
    delimiter = str(how.delimiter)
    if len(delimiter) > 1:  # the csv module takes one character
        for line, text in decoded_lines(path, how, pieces):
            yield line, text.rstrip("\n").split(delimiter)
        return
    line = size = 0

    def lines() -> Iterator[str]:
        nonlocal size
        for _, text in decoded_lines(path, how, pieces):
            size += len(text.encode())
            if size > how.max_row_bytes + 2:  # 2 for the line's end
                raise too_long(path, line, how.max_row_bytes)
            yield text

    # Other ways of quoting only differ when cells are written, or make numbers of cells.
    quoting = csv.QUOTE_MINIMAL if how.is_quoted else csv.QUOTE_NONE
    # strict, because otherwise one unbalanced quote swallows the rest of the file
    reader = csv.reader(lines(), delimiter=delimiter, quoting=quoting, strict=True)  # type: ignore[arg-type]
    while True:
        line, size = reader.line_num + 1, 0
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise _unreadable(path, line, how, str(error)) from None
        if cells is None:
            return
        yield line, cells


def _unreadable(path: Path, line: int, how: FileFormat, told: str) -> DataError:
    """Returns the error for a row that the csv module refuses with this message."""
    if "new-line" in told:  # the csv module's message is written for its callers, not for users
        remedies = ["remove it, for example with tr -d '\\r'", *["put quotes around the cell"] * how.is_quoted]
        return DataError(f"{path}, line {line}: an unquoted cell contains the line end \\r", *remedies)
    remedies = ["pass quoting=csv.QUOTE_NONE if quotes are ordinary characters in this file"] * how.is_quoted
    return DataError(f"{path}, line {line}: {told}", *remedies)


def _check_width(path: Path, line: int, cells: list[str], first: list[str], how: FileFormat) -> None:
    """Raises a ValueError if a row has more or fewer cells than the first. Empty cells at the end do not count."""
    least, most = len(_without_empty_end(list(first), 1)), len(first)
    if len(_without_empty_end(list(cells), most)) > most or len(cells) < least:
        raise DataError(
            f"{path}, line {line}: the row has {len(cells)} cells, but the first row has {len(first)} (separated by "
            f"{separator_name(how.delimiter)})",
            _for_separators_in_cells(how),
            "pass delimiter= if the file has a different separator",
        )


def _quote_checker(path: Path, how: FileFormat) -> Callable[[int, list[str]], None]:
    """Returns a check that refuses files whose cells are quoted as csv writers do it.

    In such files, all cells of the first row are in quotes, or cells in quotes have doubled quotes inside. The first
    cells with quotes decide. The check applies only if the caller has not said how to read quotes.
    """
    # No csv writer separates cells by several characters.
    undecided = how.quoting is None and not how.is_quoted and len(str(how.delimiter)) == 1
    is_first = True

    def check(line: int, cells: list[str]) -> None:
        nonlocal undecided, is_first
        if undecided and is_first and all(map(_is_in_quotes, cells)):
            told = f"all cells of the row are in quotes, such as {cells[0][:60]!r}, as R and other programs write them"
            raise DataError(f"{path}, line {line}: {told}", *_QUOTED_OR_NOT)
        is_first = False
        for cell in cells if undecided else ():
            if '"' in cell and not _is_in_quotes(cell):
                undecided = False  # a csv writer would have quoted this cell
            elif '""' in cell[1:-1]:
                raise DataError(
                    f"{path}, line {line}: the cell {cell[:60]!r} has doubled quotes, like cells that pandas or a "
                    "spreadsheet has quoted",
                    *_QUOTED_OR_NOT,
                )

    return check


def _is_in_quotes(cell: str) -> bool:
    """Returns whether a csv writer may have put quotes around the cell, which doubles quotes inside."""
    return len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in cell[1:-1].replace('""', "")


def _without_empty_end(cells: list[str], width: int) -> list[str]:
    """Removes empty cells after the last column, because spreadsheets write commas for them."""
    while len(cells) > width and not cells[-1].strip():
        cells.pop()
    return cells
