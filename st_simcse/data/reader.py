"""The base class of the readers, which turns the rows of a table into records, and these into examples or a Dataset.

A reader never drops a row silently. It counts skipped rows in ``skipped`` and logs them. If it cannot read a row, it
raises a ValueError with the file, line and column.
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

# The maximum number of reasons for skipped rows in a message.
REASONS = 5

Record = tuple[str, ...]

Name = str | os.PathLike[str] | HubDataset

# The readers of training data by the kind of data.
READERS: dict[str, type[Reader]] = {}


class Reader:
    """The base class of the readers.

    It finds the file and its columns, skips duplicates, counts what it skips, and returns the records as examples, as a
    Dataset or as a stream.

    Args:
        dataset_folder: The folder that file names are relative to.
        columns: The columns to read, by name if the file has a header, or by number from 0 if it has none. If None, the
            reader looks for the usual names.
        drop_duplicates: Whether to skip (and count) records that were read before.
        split: The split to read from a table with several splits. The split of a row is in the column ``split``,
            ``partition``, ``set`` or ``SemEval_set``, or in the first column if there is no header. Case does not
            matter.
        **how: The format of the file, as arguments of :class:`~st_simcse.data.formats.FileFormat`: ``format``,
            ``delimiter``, ``encoding``, ``quoting`` and ``max_row_bytes``. A row that is longer than ``max_row_bytes``
            raises an error before more of it is read (in parquet files, JSON arrays and data sets, after it is loaded).
            A row is a line, or several lines if quoted cells of a csv file contain line ends.

    Attributes:
        skipped: The reasons why rows of the last file were skipped, with their counts.
        found_columns: The columns that were read from the last table.
        usual: The sets of column names to look for. The reader uses the first set that the file has.
        optional: The number of columns at the end of a set that the file may lack. Columns that the user names are
            never optional.
        argument: The name of the reader's argument for columns.
        of_pairs: The part to read of a scored pair without a header, whose last three columns are two sentences and a
            score. If None, the reader refuses such files.
        takes_lines: Whether a file may hold one sentence per line instead of a table.
        as_lines: The remedy in messages for lines that are sentences. None for readers of scores and classes.
        scores: The positions of wanted columns that hold numbers. In these, true is read as 1 and false as 0.

    Raises:
        ValueError: If there are fewer or more columns than the reader accepts, or if
            :class:`~st_simcse.data.formats.FileFormat` refuses the format.
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
            hint = "; SentenceReader reads a single column" if len(columns) == 1 and self._trains() else ""
            raise ValueError(f"columns= must be a list as long as {expected}, got {columns!r}{hint}")
        self.dataset_folder = dataset_folder
        self.columns = columns
        self.drop_duplicates = drop_duplicates
        self.how = FileFormat(**how)
        self.split = split
        self.skipped: Counter[str] = Counter()
        self.found_columns: Sequence[Column] = ()

    def get_examples(self, filename: Name, max_examples: int = 0) -> list[InputExample]:
        """Reads a file as InputExamples, for ``model.fit``.

        Args:
            filename: The path of the file, relative to ``dataset_folder``, or a :class:`~st_simcse.HubDataset`.
            max_examples: The maximum number of examples to read. Reads all of them if 0.

        Returns:
            The examples, each with the texts of one record.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file cannot be read, with file, line and column, or if it has no usable row.
        """
        return [
            InputExample(guid=f"{Path(str(filename)).name}-{index}", texts=list(self._texts(record)))
            for index, record in enumerate(islice(self.read(filename), max_examples or None))
        ]

    def get_dataset(self, filename: Name) -> Dataset:
        """Reads a file as a Dataset, for ``SentenceTransformerTrainer``.

        Rows stream through Arrow into a temporary file, so memory does not grow with the file. The temporary file is
        deleted when the program ends. The arguments and errors are those of :meth:`get_examples`.
        """
        try:
            # The folder is always new, because a cached table would hide changes of the file and the skipped rows.
            return Dataset.from_generator(
                self._read_dicts, gen_kwargs={"filenames": [filename]}, cache_dir=tempfile.mkdtemp(dir=_scratch().name)
            )
        except DatasetGenerationError as error:
            raise (error.__cause__ or error) from None

    def get_iterable_dataset(self, *filenames: Name) -> IterableDataset:
        """Streams files during training, for data that is too large to copy.

        Each file is a shard. ``.shuffle(seed, buffer_size)`` shuffles the files, and their rows within a buffer. The
        trainer needs ``max_steps``, because the number of rows is unknown. Skipped rows are logged for each file.

        The errors are those of :meth:`get_examples`. Errors in the first row of a file are raised at once, and errors
        in other rows when training reaches them.

        Args:
            *filenames: The paths of the files, relative to ``dataset_folder``, or :class:`~st_simcse.HubDataset`
                objects.

        Raises:
            ValueError: If there are no files, if the files have different columns, or if a file is a pipe, which can be
                read only once.
        """
        if not filenames:
            raise ValueError("no file to read: pass at least one file name")
        for name in filenames:
            check_name(name)
        paths = {str(name): Path(self.dataset_folder, name) for name in filenames if not isinstance(name, HubDataset)}
        if missing := [name for name, path in paths.items() if not path.exists()]:
            raise FileNotFoundError(f"these files do not exist: {', '.join(missing)}")
        if pipes := [name for name, path in paths.items() if path.is_fifo()]:
            raise ValueError(f"{', '.join(pipes)}: a pipe can be read only once; use get_dataset")
        columns = {str(name): list(self._names(len(next(self.read(name))))) for name in filenames}
        names = columns[str(filenames[0])]
        if any(other != names for other in columns.values()):
            raise ValueError(
                "the files have different columns: "
                + ", ".join(f"{file} {found}" for file, found in columns.items())
                + "; read them separately, or name columns that all files have"
            )
        return IterableDataset.from_generator(
            self._read_dicts,
            features=Features({name: Value("string") for name in names}),
            gen_kwargs={"filenames": list(filenames)},
        )

    def _read_dicts(self, filenames: list[Name]) -> Iterator[dict[str, str]]:
        for filename in filenames:
            for record in self.read(filename):
                yield dict(zip(self._names(len(record)), record, strict=True))

    def read(self, filename: Name) -> Iterator[Record]:
        """Yields the records of a file, each a tuple of texts. Counts skipped rows and logs them at the end.

        Args:
            filename: As in :meth:`get_examples`, which lists the errors too.

        Example:
            >>> _ = Path("pairs.csv").write_text("anchor,positive\\nTwo dogs run.,Dogs are running.\\n")
            >>> from st_simcse import TripletReader
            >>> list(TripletReader().read("pairs.csv"))
            [('Two dogs run.', 'Dogs are running.')]
        """
        check_name(filename)
        path = filename if isinstance(filename, HubDataset) else Path(self.dataset_folder, filename)
        if isinstance(path, Path) and not path.exists():
            raise FileNotFoundError(f"there is no file {path}: check its name and the folder {path.absolute().parent}")
        self.skipped = Counter()
        seen: set[int] = set()  # hashes, because the texts of a large file would fill the memory
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
        reasons = _listed_reasons(self.skipped)
        if not count:
            raise ValueError(
                f"{path}: there is nothing to read" + (f", all rows were skipped: {reasons}" if reasons else "")
            )
        if reasons:
            logger.warning("%s: read %s, skipped %s", path, f"{count:,}", reasons)

    def _cells(self, path: FileOrDataset) -> Iterator[tuple[int, Record]]:
        """Yields the line and the stripped texts of the wanted columns of each row. Skips rows with an empty cell."""
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
                raise ValueError(
                    f"{place(path, line)}: the row has the columns {list(row)}, but the first row only {list(names)}"
                )
            if splits and (other := splits.foreign(line, row)):
                self.skipped[f"from the split {other!r}"] += 1
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
        """Yields the wanted columns, with their texts, of each record in the row. By default a row is one record."""
        yield [
            (column, cell_text(path, line, row, column, index in self.scores)) for index, column in enumerate(wanted)
        ]

    def _rows(self, path: FileOrDataset) -> Iterator[Row]:
        """Yields the rows, with the lines that they begin on. Blank lines are empty rows."""
        if isinstance(path, Path) and path.is_dir():
            raise DataError(
                f"{path} is a folder, not a file",
                "pass one of its files",
                f"HubDataset(name={str(path)!r}) if the folder is a data set",
            )
        numbered = None if self.columns is None else all(isinstance(column, int) for column in self.columns)
        kind, rows = open_rows(path, self.how, numbered, self.as_lines)
        if kind == "lines" and not self.takes_lines:
            raise DataError(
                f"{path}: the lines are not a table, expected a .csv, .tsv, .jsonl or .parquet file (the first three "
                "also with .gz), or lines of JSON objects or of cells separated by tabs or ||",
                "pass delimiter= if the cells have a different separator",
                *filter(None, [self.as_lines]),
            )
        if kind == "lines" and self.split is not None:
            raise DataError(
                f"{path}: a text file has one sentence per line and no column of splits", "leave split= out"
            )
        if kind == "lines" and self.columns is not None:
            raise DataError(
                f"{path}: a text file has one sentence per line and no column {self.columns[0]!r}",
                "pass delimiter= if its lines have cells",
            )
        yield from rows

    @classmethod
    def usual_columns(cls, names: Container[Column]) -> Sequence[Column]:
        """Returns the usual columns that are among these names, or an empty list if some of them are missing."""
        for usual in cls.usual:
            for wanted in (usual, usual[: len(usual) - cls.optional]):
                if all(column in names for column in wanted):
                    return wanted
        return []

    def _choose_columns(self, path: FileOrDataset, line: int, row: dict[Column, Any]) -> Sequence[Column]:
        wanted: Sequence[Column]
        if self.columns is None and self.of_pairs and all(isinstance(column, int) for column in row):
            wanted = list(row)[self.of_pairs]
            logger.info("%s holds scored pairs without a header: reading the columns %s, from 0", path, wanted)
            return wanted
        if self.columns is not None:
            # If columns have names, a number is a name.
            wanted = [column if column in row or str(column) not in row else str(column) for column in self.columns]
            lacking = str([column for column in wanted if column not in row])
        else:
            wanted, lacking = self.usual_columns(row), " or ".join(str(list(columns)) for columns in self.usual)
        if not wanted or not all(column in row for column in wanted):
            problem = f"{place(path, line)}: there are no columns {lacking}, found {list(row)}"
            if self.columns is None and all(isinstance(name, str) and _is_text(name) for name in row):
                number: int | list[int] = 0 if self.argument == "column" else list(range(len(row)))
                raise DataError(
                    f"{problem}, which are texts, so the file seems to have no header",
                    f"pass {self.argument}={number!r}, or other numbers from 0, to read it without a header",
                )
            raise DataError(problem, *self._column_remedies(path, row))
        unread = [column for column in row if column not in wanted]
        if unread and self.columns is None and len(wanted) < len(self.usual[0]):
            logger.warning("%s: reading only the columns %s, not %s", path, list(wanted), unread)
        return wanted

    def _read_classes(self, path: FileOrDataset) -> None:
        """Reads the class names that the source declares, once the columns are found. For readers of classes."""

    def _class_names(self, path: FileOrDataset, column: int) -> list[str]:
        """Returns the class names that the source declares for one of the found columns, in the order of numbers."""
        has_features = file_format(path) in ("dataset", "parquet")
        return class_names(path).get(str(self.found_columns[column]), []) if has_features else []

    def _column_remedies(self, path: FileOrDataset, row: dict[Column, Any]) -> list[str]:
        """Returns the remedies for a table without the wanted columns."""
        remedies = []
        other = next((name for name, reader in READERS.items() if reader.usual_columns(row)), None)
        if self.columns is None and all(isinstance(name, int) for name in row):
            other = "sentences"  # there is no header, so these are scored pairs
        if other and self._trains() and not self.columns:
            remedies.append(f"read it with {READERS[other].__name__}")
        elif self._trains() and len(row) == 1 and not self._takes(1):
            remedies.append(f"read its only column with SentenceReader(column={next(iter(row))!r})")
        if any(map(self._takes, range(len(row) + 1))):
            remedies.append(
                f"name the columns to read with {self.argument}=, as in the header or, if the file has none, by number "
                "from 0"
            )
        if self.as_lines and file_format(path) == "txt":  # the lines looked like a table
            remedies.append(self.as_lines)
        return remedies

    @classmethod
    def _trains(cls) -> bool:
        """Returns whether this is a reader of training data."""
        return cls in READERS.values()

    @classmethod
    def _takes(cls, columns: int) -> bool:
        """Returns whether the user may name this number of columns."""
        return columns in map(len, cls.usual)

    def _records(self, path: FileOrDataset) -> Iterator[Record]:
        """Yields the records of a source, including duplicates."""
        for _, record in self._cells(path):
            yield record

    def _names(self, width: int) -> Sequence[str]:
        """Returns the names of the Dataset's columns for records with ``width`` texts."""
        raise NotImplementedError

    def _texts(self, record: Record) -> Record:
        """Returns the texts of a record's InputExample."""
        return record


def _is_text(cell: str) -> bool:
    """Returns whether a cell looks like a sentence or a number and not like a column name."""
    return len(cell.split()) > 2 or cell[-1:] in (".", "!", "?", "。") or cell.replace(".", "", 1).isdecimal()


def cell_text(path: FileOrDataset, line: int, row: dict[Column, Any], column: Column, is_score: bool = False) -> str:
    """Returns the stripped text of a cell.

    Raises:
        ValueError: If the row has no such column, or if the cell is neither text nor a number.
    """
    cell = row.get(column, LACKING)
    if cell is LACKING:
        found = [name for name, cell in row.items() if cell is not LACKING]
        raise ValueError(f"{place(path, line)}: there is no column {column!r}, found {found}")
    # Labels and scores may be JSON numbers. A null is an empty cell.
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
            f"{place(path, line)}, column {column!r}: {half!r} is half of a character (a lone surrogate); delete it"
        ) from None
    return text


def _listed_reasons(skipped: Counter[str]) -> str:
    """Returns the most common reasons why rows were skipped, with their numbers."""
    common = dict(skipped.most_common(REASONS))
    listed = [f"{number:,} {reason}" for reason, number in skipped.items() if reason in common]
    others = sum(skipped.values()) - sum(common.values())
    return ", ".join(listed + [f"{others:,} for other reasons"] * (others > 0))


@cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    """Returns a folder that is deleted when the program ends."""
    return tempfile.TemporaryDirectory(prefix="st_simcse_", ignore_cleanup_errors=True)


def check_name(filename: Any) -> None:
    """Raises a ValueError if data was passed instead of a file name."""
    if not isinstance(filename, (str, os.PathLike, HubDataset)):
        raise ValueError(
            f"expected a file name or a HubDataset, got data of the type {type(filename).__name__}: pass lists and "
            "DataFrames directly to SimCSETrainer (train_dataset=), and lists of sentences and scores to "
            "EmbeddingSimilarityEvaluator"
        )
