"""What the readers share: a table's columns are found, its rows become records, and these examples or a Dataset.

A reader never drops a row in silence: what it skips it counts in ``skipped`` and logs, and what it cannot read is a
ValueError that names the file, the line and the column.
"""

from __future__ import annotations

import logging
import math
import os
import tempfile
from collections import Counter
from collections.abc import Collection, Container, Iterator, Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from datasets import Dataset, Features, IterableDataset, Value
from datasets.exceptions import DatasetGenerationError
from sentence_transformers import InputExample

from st_simcse.data.formats import (
    LACKING,
    Column,
    FileFormat,
    FileOrDataset,
    FormatOptions,
    Row,
    file_format,
    place,
    too_long,
)
from st_simcse.data.hub_dataset import HubDataset, class_names
from st_simcse.data.remedies import DataError
from st_simcse.data.rows import open_rows
from st_simcse.data.splits import Splits

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["READERS", "Name", "Reader", "Record", "cell_text", "check_name"]

logger = logging.getLogger(__name__)

Record = tuple[str, ...]

Name = str | os.PathLike[str] | HubDataset

# Those of training data by what they read.
READERS: dict[str, type[Reader]] = {}


class Reader:
    """What the readers share: finding the file, the columns, duplicates, counting, and the three ways out.

    Args:
        dataset_folder: file names are relative to it.
        columns: the columns to read, by name (the file has a header) or by number from 0 (it has none); found by
            their usual names when left out.
        drop_duplicates: skip, and count, what was read before.
        split: which split is read, of a table that has several and a column (``split``, ``partition``, ``set``,
            ``SemEval_set``; without a header the first) that says which; upper and lower case are the same.
        **how: how the files' bytes become rows, the arguments of :class:`~st_simcse.data.formats.FileFormat`:
            ``format``, ``delimiter``, ``encoding``, ``quoting`` and ``max_row_bytes``. A row that is longer than the
            latter is refused before more of it is in memory (in parquet files, JSON arrays and data sets, once it is
            loaded).
            A row is a line, in csv files all the lines of its quoted cells.

    Attributes:
        skipped: the reasons for which the last file's rows were skipped, with their counts.
        found_columns: the columns that were read of the last table.
        usual: the column sets to look for, of which the first that the file has is taken.
        optional: how many of the last ones it may lack; those that the user names it must have.
        argument: what the reader calls the columns that the user names.
        of_pairs: what is read of a scored pair without a header, whose last three columns are sentence, sentence and
            score; None refuses such a file.
        takes_lines: whether a file may hold a sentence a line instead of a table.
        as_lines: what messages say to do about lines that are sentences; None for readers of scores and classes.
        scores: which of the wanted columns, by their places, have numbers; true is 1 there, and false 0.

    Raises:
        ValueError: for fewer or more columns than the reader takes, and as :class:`~st_simcse.data.formats.FileFormat`.
    """

    usual: ClassVar[Sequence[Sequence[Column]]] = ()
    optional: ClassVar[int] = 0
    argument: ClassVar[str] = "columns"
    of_pairs: ClassVar[slice | None] = None
    takes_lines: ClassVar[bool] = False
    as_lines: ClassVar[str | None] = None
    scores: ClassVar[Container[int]] = ()

    def __init_subclass__(cls, kind: str | None = None) -> None:
        if kind is not None:
            READERS[kind] = cls

    def __init__(
        self,
        dataset_folder: str | os.PathLike[str] = "",
        columns: Sequence[Column] | None = None,
        *,
        drop_duplicates: bool = False,
        split: str | None = None,
        **how: Unpack[FormatOptions],
    ) -> None:
        if columns is not None and (isinstance(columns, str) or not self._takes(len(columns))):
            expected = " or ".join(str(list(usual)) for usual in self.usual)
            hint = "; SentenceReader reads one column" if len(columns) == 1 and self._trains() else ""
            raise ValueError(f"expected a list as long as {expected} for columns=, got {columns!r}{hint}")
        self.dataset_folder = dataset_folder
        self.columns = columns
        self.drop_duplicates = drop_duplicates
        self.how = FileFormat(**how)
        self.split = split
        self.skipped: Counter[str] = Counter()
        self.found_columns: Sequence[Column] = ()

    def get_examples(self, filename: Name, max_examples: int = 0) -> list[InputExample]:
        """The file as InputExamples, for ``model.fit``.

        Args:
            filename: path of the file, relative to ``dataset_folder``; or a :class:`~st_simcse.HubDataset`.
            max_examples: stop after so many examples; 0 reads them all.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it cannot be read as it should, or has no row to give; names file, line and column.
        """
        return [
            InputExample(guid=f"{Path(str(filename)).name}-{index}", texts=list(self._texts(record)))
            for index, record in enumerate(islice(self._read(filename), max_examples or None))
        ]

    def get_dataset(self, filename: Name) -> Dataset:
        """The file as a Dataset, for ``SentenceTransformerTrainer``.

        Rows stream through Arrow into a temporary file that is deleted when the program ends, so that memory does not
        grow with the file. Raises what :meth:`get_examples` raises.
        """
        try:
            # The folder is new every time: a cached table would hide both a changed file and what was skipped.
            return Dataset.from_generator(
                self._read_dicts, gen_kwargs={"filenames": [filename]}, cache_dir=tempfile.mkdtemp(dir=_scratch().name)
            )
        except DatasetGenerationError as error:
            raise (error.__cause__ or error) from None

    def get_iterable_dataset(self, *filenames: Name) -> IterableDataset:
        """Files that are read while training goes on, for data that is too large to copy.

        Every file is a shard; ``.shuffle(seed, buffer_size)`` shuffles the files and, within a buffer, their rows. The
        trainer needs ``max_steps``, because nobody has counted the rows. What is skipped is logged file by file.
        Raises what :meth:`get_examples` raises, at once for each file's first row, later when it comes to the row; and
        ValueError for files of different width, for none, and for pipes, which can be read but once.
        """
        if not filenames:
            raise ValueError("no file to read: pass one file name or more")
        for name in filenames:
            check_name(name)
        paths = {str(name): Path(self.dataset_folder, name) for name in filenames if not isinstance(name, HubDataset)}
        if missing := [name for name, path in paths.items() if not path.exists()]:
            raise FileNotFoundError(f"no such file(s): {', '.join(missing)}")
        if pipes := [name for name, path in paths.items() if path.is_fifo()]:
            raise ValueError(f"{', '.join(pipes)}: a pipe can be read but once; use get_dataset")
        columns = {str(name): list(self._names(len(next(self._read(name))))) for name in filenames}
        names = columns[str(filenames[0])]
        if any(other != names for other in columns.values()):
            raise ValueError(
                "the files give different columns: "
                + ", ".join(f"{file} {found}" for file, found in columns.items())
                + "; read them apart, or name the columns that all of them have"
            )
        return IterableDataset.from_generator(
            self._read_dicts,
            features=Features({name: Value("string") for name in names}),
            gen_kwargs={"filenames": list(filenames)},
        )

    def _read_dicts(self, filenames: list[Name]) -> Iterator[dict[str, str]]:
        for filename in filenames:
            for record in self._read(filename):
                yield dict(zip(self._names(len(record)), record, strict=True))

    def _read(self, filename: Name) -> Iterator[Record]:
        """The records of a file, of which there is one at least; what is skipped is counted, and logged at the end."""
        check_name(filename)
        path = filename if isinstance(filename, HubDataset) else Path(self.dataset_folder, filename)
        if isinstance(path, Path) and not path.exists():
            raise FileNotFoundError(f"there is no file {path}: check its name and the folder, {path.absolute().parent}")
        self.skipped = Counter()
        seen: set[int] = set()  # hashes: the texts of a large file would fill the memory
        count = 0
        for record in self._records(path):
            if self.drop_duplicates:
                key = hash(record)
                if key in seen:
                    self.skipped["duplicate"] += 1
                    continue
                seen.add(key)
            count += 1
            yield record
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in self.skipped.items())
        if not count:
            raise ValueError(f"{path}: nothing to read" + (f", all rows were skipped: {reasons}" if reasons else ""))
        if reasons:
            logger.warning("%s: %s read, skipped %s", path, f"{count:,}", reasons)

    def _cells(self, path: FileOrDataset) -> Iterator[tuple[int, Record]]:
        """The line and the stripped text of the wanted columns of each row; rows with an empty cell are skipped."""
        wanted: Sequence[Column] = ()
        names: Collection[Column] = ()
        splits: Splits | None = None
        for line, row in self._rows(path):
            if not row:
                self.skipped["blank"] += 1
                continue
            if not wanted:
                self.found_columns = wanted = self._choose_columns(path, line, row)
                self._read_classes(path)
                names = row.keys()
                splits = Splits(path, line, row, wanted, self.split)
            elif self.columns is None and row.keys() != names and len(self.usual_columns(row)) > len(wanted):
                raise ValueError(f"{place(path, line)}: the row has {list(row)}, the first one only {list(names)}")
            if splits and (other := splits.foreign(line, row)):
                self.skipped[f"of the split {other!r}"] += 1
                continue
            for cells in self._choices(path, line, row, wanted):
                texts = tuple(text for _, text in cells)
                if sum(map(len, texts)) > self.how.max_row_bytes:
                    raise too_long(path, line, self.how.max_row_bytes)
                empty = [column for column, text in cells if not text]
                if len(empty) == len(cells):
                    self.skipped["blank"] += 1
                elif empty:
                    self.skipped[f"with an empty {empty[0]!r}"] += 1
                else:
                    yield line, texts

    def _choices(
        self, path: FileOrDataset, line: int, row: dict[Column, Any], wanted: Sequence[Column]
    ) -> Iterator[list[tuple[Column, str]]]:
        """The wanted columns and texts of each record that the row gives: of the one."""
        yield [
            (column, cell_text(path, line, row, column, index in self.scores)) for index, column in enumerate(wanted)
        ]

    def _rows(self, path: FileOrDataset) -> Iterator[Row]:
        """The rows with the line they begin on; blank lines are empty rows."""
        numbered = None if self.columns is None else all(isinstance(column, int) for column in self.columns)
        kind, rows = open_rows(path, self.how, numbered, self.as_lines)
        if kind == "lines" and not self.takes_lines:
            raise DataError(
                f"{path}: its lines are no table; expected a .csv, .tsv, .jsonl or .parquet file (or one of the first "
                "three with .gz), or lines of JSON objects or of cells with tabs or || between them",
                "pass delimiter= if another separates its cells",
                *filter(None, [self.as_lines]),
            )
        if kind == "lines" and self.split is not None:
            raise DataError(f"{path}: a text file has a sentence a line and no column of splits", "leave split= out")
        if kind == "lines" and self.columns is not None:
            raise DataError(
                f"{path}: a text file has a sentence a line and no column {self.columns[0]!r} to choose",
                "pass delimiter= if its lines have cells",
            )
        yield from rows

    @classmethod
    def usual_columns(cls, names: Container[Column]) -> Sequence[Column]:
        """Those of the usual columns that a file with these has; none if it lacks some."""
        for usual in cls.usual:
            for wanted in (usual, usual[: len(usual) - cls.optional]):
                if all(column in names for column in wanted):
                    return wanted
        return []

    def _choose_columns(self, path: FileOrDataset, line: int, row: dict[Column, Any]) -> Sequence[Column]:
        wanted: Sequence[Column]
        if self.columns is None and self.of_pairs and all(isinstance(column, int) for column in row):
            wanted = list(row)[self.of_pairs]
            logger.info("%s holds scored pairs and no header: the columns %s are read, from 0", path, wanted)
            return wanted
        if self.columns is not None:
            # Where columns have names, a number is one.
            wanted = [column if column in row or str(column) not in row else str(column) for column in self.columns]
            lacking = str([column for column in wanted if column not in row])
        else:
            wanted, lacking = self.usual_columns(row), " or ".join(str(list(columns)) for columns in self.usual)
        if not wanted or not all(column in row for column in wanted):
            problem = f"{place(path, line)}: no column(s) {lacking}, found {list(row)}"
            if self.columns is None and all(isinstance(name, str) and _is_text(name) for name in row):
                number: int | list[int] = 0 if self.argument == "column" else list(range(len(row)))
                raise DataError(
                    f"{problem}, which are texts, so that the file seems to have no header",
                    f"pass {self.argument}={number!r}, or other numbers from 0, to read it without one",
                )
            raise DataError(problem, *self._column_remedies(path, row))
        unread = [column for column in row if column not in wanted]
        if unread and self.columns is None and len(wanted) < len(self.usual[0]):
            logger.warning("%s: only the columns %s are read, not %s", path, list(wanted), unread)
        return wanted

    def _read_classes(self, path: FileOrDataset) -> None:
        """For readers of classes: what the source says of them, once the columns are found."""

    def _class_names(self, path: FileOrDataset, column: int) -> list[str]:
        """What the source itself says of the numbers in one of the found columns."""
        has_features = file_format(path) in ("dataset", "parquet")
        return class_names(path).get(str(self.found_columns[column]), []) if has_features else []

    def _column_remedies(self, path: FileOrDataset, row: dict[Column, Any]) -> list[str]:
        """What to do about a table that lacks the wanted columns."""
        remedies = []
        other = next((name for name, reader in READERS.items() if reader.usual_columns(row)), None)
        if self.columns is None and all(isinstance(name, int) for name in row):
            other = "sentences"  # without a header, so that scored pairs were found
        if other and self._trains() and not self.columns:
            remedies.append(f"{READERS[other].__name__} reads such a file")
        elif self._trains() and len(row) == 1 and not self._takes(1):
            remedies.append(f"SentenceReader(column={next(iter(row))!r}) reads its one column")
        if any(map(self._takes, range(len(row) + 1))):
            remedies.append(
                f"name the columns to read with {self.argument}=, by their header or, for a file without one, by "
                "number from 0"
            )
        if self.as_lines and file_format(path) == "txt":  # its lines were found to be a table's
            remedies.append(self.as_lines)
        return remedies

    @classmethod
    def _trains(cls) -> bool:
        """Whether it reads training data, of which there are several kinds."""
        return cls in READERS.values()

    @classmethod
    def _takes(cls, columns: int) -> bool:
        """Whether the user may name so many columns."""
        return columns in map(len, cls.usual)

    def _records(self, path: FileOrDataset) -> Iterator[Record]:
        """What the rows of a source give, before duplicates are dropped."""
        for _, record in self._cells(path):
            yield record

    def _names(self, width: int) -> Sequence[str]:
        """Names of the Dataset's columns, of records with so many texts."""
        raise NotImplementedError

    def _texts(self, record: Record) -> Record:
        """The texts of a record's InputExample."""
        return record


def _is_text(cell: str) -> bool:
    """Whether it reads like a sentence or a number, and not like the name of a column."""
    return len(cell.split()) > 2 or cell[-1:] in (".", "!", "?", "。") or cell.replace(".", "", 1).isdecimal()


def cell_text(path: FileOrDataset, line: int, row: dict[Column, Any], column: Column, is_score: bool = False) -> str:
    """The stripped text of a cell; ValueError, with its place, for what is neither text nor a number."""
    cell = row.get(column, LACKING)
    if cell is LACKING:
        found = [name for name, cell in row.items() if cell is not LACKING]
        raise ValueError(f"{place(path, line)}: no column {column!r}, the row has {found}")
    # Labels and scores may be JSON numbers; a null is an empty cell.
    if cell is None:
        return ""
    if is_score and (isinstance(cell, bool) or str(cell).strip().lower() in ("true", "false")):
        return str(int(str(cell).strip().lower() == "true"))
    number = isinstance(cell, int) or (isinstance(cell, float) and math.isfinite(cell))
    if isinstance(cell, bool) or not (number or isinstance(cell, str)):
        raise ValueError(f"{place(path, line)}, column {column!r}: expected text or a number, got {cell!r}")
    text = str(cell).strip()
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start]
        raise ValueError(
            f"{place(path, line)}, column {column!r}: {half!r} is one half of a character (a lone surrogate); delete it"
        ) from None
    return text


@cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder that is deleted when the program ends."""
    return tempfile.TemporaryDirectory(prefix="st_simcse_", ignore_cleanup_errors=True)


def check_name(filename: Any) -> None:
    """ValueError for data in place of the name of a file."""
    if not isinstance(filename, (str, os.PathLike, HubDataset)):
        raise ValueError(
            f"expected the name of a file or a HubDataset, got data of the type {type(filename).__name__}: "
            "SimCSETrainer takes lists and DataFrames as they are (train_dataset=), EmbeddingSimilarityEvaluator lists "
            "of sentences and scores"
        )
