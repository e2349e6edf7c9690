"""Tables with several splits: the column that names the split of each row, and the split to read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from st_simcse.data.formats import Column, FileOrDataset, place
from st_simcse.data.remedies import DataError

__all__ = ["Splits"]

# The names of columns that hold the split of a row, and the names of splits, in lower case.
_SPLIT_COLUMNS = {"split", "splits", "partition", "set", "subset", "semeval_set"}

_SPLITS = {"train", "training", "dev", "development", "valid", "validation", "val", "test", "testing", "trial"}


class Splits:
    """The column of a table that names the split of each row, if there is one.

    Raises:
        ValueError: If a split is wanted and there is no such column.
    """

    def __init__(
        self, path: FileOrDataset, line: int, row: dict[Column, Any], wanted: Sequence[Column], split: str | None
    ) -> None:
        columns = [name for name in row if name not in wanted and _may_name_splits(name)]
        named = [name for name in columns if _split_name(row, name).lower() in _SPLITS]
        if split is not None and not columns:
            told = f"there is no column of splits (split, partition, set or SemEval_set), found {list(row)}"
            raise DataError(f"{place(path, line)}: {told}", "leave split= out")
        self.path, self.split = path, split
        self.columns = (named or columns)[:1] if split is not None else columns
        self.first: dict[Column, str] = {}

    def foreign(self, line: int, row: dict[Column, Any]) -> str:
        """Returns the row's split if it is not the wanted one, or else an empty string.

        Raises:
            ValueError: If no split was chosen and the rows belong to different splits.
        """
        for column in self.columns:
            name = _split_name(row, column)
            if self.split is not None:
                return "" if name.lower() == self.split.lower() else name or "(none)"
            if name.lower() in _SPLITS and self.first.setdefault(column, name).lower() != name.lower():
                raise DataError(
                    f"{place(self.path, line)}: the row belongs to the split {name!r} (column {column!r}), but earlier "
                    f"rows belong to {self.first[column]!r}",
                    "pass split= to choose one",
                    "write each split to its own file",
                )
        return ""


def _may_name_splits(column: Column) -> bool:
    return column == 0 or str(column).lower() in _SPLIT_COLUMNS


def _split_name(row: dict[Column, Any], column: Column) -> str:
    cell = row.get(column)
    return cell.strip() if isinstance(cell, str) else ""
