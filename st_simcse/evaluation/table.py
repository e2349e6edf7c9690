"""Tables of scores by model, and rows of a csv file during training."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean

__all__ = ["append_row", "check_defined", "format_table", "with_average"]


def format_table(rows: Mapping[str, Mapping[str, float | str]], corner: str = "model") -> str:
    """Formats rows of numbers as a Markdown table with two decimals.

    A ``|`` in a name is escaped. Line ends and other control characters become spaces.

    Args:
        rows: The numbers or texts by row and column. All rows have the same columns.
        corner: The header of the column of names.

    Example:
        >>> print(format_table({"half": {"STS-B": 50.0, "Avg.": 50.0}}))
        | model | STS-B | Avg. |
        | --- | --- | --- |
        | half | 50.00 | 50.00 |
    """
    header = [corner, *next(iter(rows.values()))]
    cells = [header, ["---"] * len(header)]
    cells += [
        [name, *(value if isinstance(value, str) else f"{value:.2f}" for value in row.values())]
        for name, row in rows.items()
    ]
    return "\n".join("| " + " | ".join(map(_one_line, row)) + " |" for row in cells)


def with_average(scores: Mapping[str, float]) -> dict[str, float]:
    """Returns a row of a table with its average as the last column.

    Example:
        >>> with_average({"MR": 62.5, "CR": 87.5})
        {'MR': 62.5, 'CR': 87.5, 'Avg.': 75.0}
    """
    return {**scores, "Avg.": fmean(scores.values())}


def _one_line(cell: str) -> str:
    return re.sub(r"[\x00-\x1f\x7f-\x9f]+", " ", cell).replace("|", r"\|")


def check_defined(rows: Mapping[str, Mapping[str, float]]) -> None:
    """Checks that all scores are numbers.

    Raises:
        ValueError: If scores are nan. The message names their rows and columns.

    Example:
        >>> check_defined({"collapsed": {"STS-B": math.nan}})
        Traceback (most recent call last):
        ...
        ValueError: no score for collapsed on STS-B: the embeddings contain NaN, or all similarities or ...
    """
    undefined = [
        f"{name} on {', '.join(columns)}"
        for name, row in rows.items()
        if (columns := [column for column, value in row.items() if math.isnan(value)])
    ]
    if undefined:
        raise ValueError(
            f"no score for {'; '.join(undefined)}: the embeddings contain NaN, or all similarities or all gold scores "
            "are equal"
        )


def append_row(path: Path, row: Mapping[str, float]) -> None:
    """Appends a row to a csv file. A new file is created with its folder and a header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([list(row)] * is_new + [list(row.values())])
