"""Readers: text, csv, tsv, jsonl and parquet files, and data sets of the hub, to InputExamples, a datasets.Dataset on
disk, or an STS evaluator.

A reader never drops a row in silence: what it skips it counts in ``skipped`` and logs, and what it cannot read is a
ValueError that names the file, the line and the column.
"""

from __future__ import annotations

import logging
import math
import os
import tempfile
from collections import Counter
from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from functools import cache
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from datasets import Dataset, Features, IterableDataset, Value
from datasets.exceptions import DatasetGenerationError
from sentence_transformers import InputExample
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator

from st_simcse.formats import (
    AS_LINES,
    LACKING,
    Column,
    FileFormat,
    FormatOptions,
    Row,
    Source,
    file_format,
    place,
    too_long,
)
from st_simcse.hub import HubDataset, class_names
from st_simcse.remedies import DataError
from st_simcse.rows import open_rows

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["NLIReader", "SentenceReader", "TripletReader", "load_sts"]

logger = logging.getLogger(__name__)

Record = tuple[str, ...]
Name = str | os.PathLike[str] | HubDataset

# The columns that say which split a row belongs to, and the splits, in lower case.
_SPLIT_COLUMNS = {"split", "splits", "partition", "set", "subset", "semeval_set"}
_SPLITS = {"train", "training", "dev", "development", "valid", "validation", "val", "test", "testing", "trial"}

_WITH_SENTENCE_READER = "read each line as a sentence with SentenceReader(format='lines')"

# By their spelling in lower case. Data sets differ in what they number 0, 1 and 2.
_NLI_LABELS = {
    **dict.fromkeys(("entailment", "e"), "entailment"),
    **dict.fromkeys(("neutral", "n"), "neutral"),
    **dict.fromkeys(("contradiction", "contradictory", "c"), "contradiction"),
    **dict.fromkeys(("-", "-1"), "without a gold label"),
}


class Reader:
    """What the readers share: finding the file, the columns, duplicates, counting, and the three ways out.

    Args:
        dataset_folder: file names are relative to it.
        columns: the columns to read, by name (the file has a header) or by number from 0 (it has none); found by
            their usual names when left out.
        drop_duplicates: skip, and count, what was read before.
        split: which split is read, of a table that has several and a column (``split``, ``partition``, ``set``,
            ``SemEval_set``; without a header the first) that says which; upper and lower case are the same.
        **how: how the files' bytes become rows, the arguments of :class:`~st_simcse.formats.FileFormat`: ``format``,
            ``delimiter``, ``encoding``, ``quoting`` and ``max_row_bytes``. A row that is longer than the latter is
            refused before more of it is in memory (in parquet files, JSON arrays and data sets, once it is loaded).
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
        ValueError: for fewer or more columns than the reader takes, and as :class:`~st_simcse.formats.FileFormat`.
    """

    usual: ClassVar[Sequence[Sequence[Column]]] = ()
    optional: ClassVar[int] = 0
    argument: ClassVar[str] = "columns"
    of_pairs: ClassVar[slice | None] = None
    takes_lines: ClassVar[bool] = False
    as_lines: ClassVar[str | None] = None
    scores: ClassVar[Container[int]] = ()

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

    def _cells(self, path: Source) -> Iterator[tuple[int, Record]]:
        """The line and the stripped text of the wanted columns of each row; rows with an empty cell are skipped."""
        wanted: Sequence[Column] = ()
        names: Collection[Column] = ()
        splits: _Splits | None = None
        for line, row in self._rows(path):
            if not row:
                self.skipped["blank"] += 1
                continue
            if not wanted:
                self.found_columns = wanted = self._choose_columns(path, line, row)
                self._read_classes(path)
                names = row.keys()
                splits = _Splits(path, line, row, wanted, self.split)
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
        self, path: Source, line: int, row: dict[Column, Any], wanted: Sequence[Column]
    ) -> Iterator[list[tuple[Column, str]]]:
        """The wanted columns and texts of each record that the row gives: of the one."""
        yield [(column, _text(path, line, row, column, index in self.scores)) for index, column in enumerate(wanted)]

    def _rows(self, path: Source) -> Iterator[Row]:
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

    def _choose_columns(self, path: Source, line: int, row: dict[Column, Any]) -> Sequence[Column]:
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

    def _read_classes(self, path: Source) -> None:
        """For readers of classes: what the source says of them, once the columns are found."""

    def _class_names(self, path: Source, column: int) -> list[str]:
        """What the source itself says of the numbers in one of the found columns."""
        has_features = file_format(path) in ("dataset", "parquet")
        return class_names(path).get(str(self.found_columns[column]), []) if has_features else []

    def _column_remedies(self, path: Source, row: dict[Column, Any]) -> list[str]:
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

    def _records(self, path: Source) -> Iterator[Record]:
        """What the rows of a source give, before duplicates are dropped."""
        for _, record in self._cells(path):
            yield record

    def _names(self, width: int) -> Sequence[str]:
        """Names of the Dataset's columns, of records with so many texts."""
        raise NotImplementedError

    def _texts(self, record: Record) -> Record:
        """The texts of a record's InputExample."""
        return record


class _Splits:
    """The column of a table that says which split a row belongs to, if it has one.

    Raises:
        ValueError: if a split is asked for and there is no such column.
    """

    def __init__(
        self, path: Source, line: int, row: dict[Column, Any], wanted: Sequence[Column], split: str | None
    ) -> None:
        columns = [name for name in row if name not in wanted and _may_name_splits(name)]
        named = [name for name in columns if _split_name(row, name).lower() in _SPLITS]
        if split is not None and not columns:
            told = f"no column of splits (split, partition, set or SemEval_set), found {list(row)}"
            raise DataError(f"{place(path, line)}: {told}", "leave split= out")
        self.path, self.split = path, split
        self.columns = (named or columns)[:1] if split is not None else columns
        self.first: dict[Column, str] = {}

    def foreign(self, line: int, row: dict[Column, Any]) -> str:
        """The row's split, if it is another than the one that is asked for; ValueError if none is, and rows differ."""
        for column in self.columns:
            name = _split_name(row, column)
            if self.split is not None:
                return "" if name.lower() == self.split.lower() else name or "(none)"
            if name.lower() in _SPLITS and self.first.setdefault(column, name) != name:
                raise DataError(
                    f"{place(self.path, line)}: a row of the split {name!r} (column {column!r}) behind rows of the "
                    f"split {self.first[column]!r}",
                    "pass split= to choose one",
                    "keep one split in a file of its own",
                )
        return ""


def _may_name_splits(column: Column) -> bool:
    return column == 0 or str(column).lower() in _SPLIT_COLUMNS


def _split_name(row: dict[Column, Any], column: Column) -> str:
    cell = row.get(column)
    return cell.strip() if isinstance(cell, str) else ""


class SentenceReader(Reader):
    """Single sentences for :class:`~st_simcse.UnsupSimCSELoss`.

    Text files (``.txt``, or any other name) hold one sentence a line. Tables (``.csv``, ``.tsv``, ``.jsonl``,
    ``.parquet``, data sets of the hub, and text files in which all of the first lines are JSON objects or have the same
    number of tabs or ``||``) hold it in the column ``sentence`` or ``text``, or in those given. A table of scored pairs
    without a header gives both texts of each row. Each but parquet may be gzipped (``.gz``). Examples come doubled,
    ``texts=[s, s]``, as ``fit`` needs them; the Dataset has the single column ``sentence``.

    Args:
        dataset_folder: file names are relative to it.
        column: name or number of the column.
        columns: several of them instead, each cell of which is a sentence.
        drop_duplicates: skip, and count, sentences that were read before.
        split: see :class:`Reader`.
        **how: see :class:`Reader`; ``format="lines"`` reads a sentence a line, whatever is in it.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> _ = (folder / "corpus.txt").write_text("A man plays a guitar.\\n\\nTwo dogs run.\\n")
        >>> reader = SentenceReader(folder)
        >>> [example.texts for example in reader.get_examples("corpus.txt")]
        [['A man plays a guitar.', 'A man plays a guitar.'], ['Two dogs run.', 'Two dogs run.']]
        >>> reader.skipped
        Counter({'blank': 1})
    """

    usual = (("sentence",), ("text",))
    of_pairs = slice(-3, -1)
    argument = "column"
    takes_lines = True
    as_lines = AS_LINES

    def __init__(
        self,
        dataset_folder: str | os.PathLike[str] = "",
        column: Column | None = None,
        *,
        columns: Sequence[Column] | None = None,
        drop_duplicates: bool = False,
        split: str | None = None,
        **how: Unpack[FormatOptions],
    ) -> None:
        if column is not None and columns is not None:
            raise ValueError(f"pass column={column!r} or columns={columns!r}, not both")
        columns = columns if column is None else [column]
        super().__init__(dataset_folder, columns, drop_duplicates=drop_duplicates, split=split, **how)

    @classmethod
    def _takes(cls, columns: int) -> bool:
        return columns >= 1

    def _choices(
        self, path: Source, line: int, row: dict[Column, Any], wanted: Sequence[Column]
    ) -> Iterator[list[tuple[Column, str]]]:
        for column in wanted:
            yield [(column, _text(path, line, row, column))]

    def _names(self, width: int) -> Sequence[str]:
        return ["sentence"]

    def _texts(self, record: Record) -> Record:
        return record * 2


class TripletReader(Reader):
    """(anchor, positive, hard negative) rows for :class:`~st_simcse.SupSimCSELoss`.

    Reads ``.csv``, ``.tsv`` and ``.jsonl`` files, each also gzipped, ``.parquet`` files and data sets of the hub. The
    header says ``sent0, sent1, hard_neg`` (the layout of the paper's ``nli_for_simcse.csv``), ``anchor, positive,
    negative``, ``origin, entailment, contradiction`` or ``query, pos, neg``; a file without the third column gives
    pairs. Other names, numbers for a file without a header, and several hard negatives go into ``columns``. Where a
    cell is a list, as in FlagEmbedding's files, each positive of a row has a record, with all of the row's negatives.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> _ = (folder / "nli.csv").write_text('sent0,sent1,hard_neg\\n"Hi, you.",Hello.,Bye.\\n')
        >>> TripletReader(folder).get_dataset("nli.csv")[0]
        {'anchor': 'Hi, you.', 'positive': 'Hello.', 'negative': 'Bye.'}
    """

    usual = (
        ("sent0", "sent1", "hard_neg"),
        ("anchor", "positive", "negative"),
        ("origin", "entailment", "contradiction"),
        ("query", "pos", "neg"),
    )
    optional = 1
    as_lines = _WITH_SENTENCE_READER

    @classmethod
    def _takes(cls, columns: int) -> bool:
        return columns >= 2

    def _records(self, path: Source) -> Iterator[Record]:
        width = 0
        for line, record in self._cells(path):
            width = width or len(record)
            if len(record) != width:
                raise DataError(
                    f"{place(path, line)}: {len(record) - 2} negatives, but the first row has {width - 2}, and every "
                    "row needs as many",
                    "cut the longer lists",
                    "pass SimCSETrainer train_dataset= with one column of lists, as in "
                    'Dataset.from_list([{"anchor": ..., "positive": ..., "negatives": [...]}])',
                )
            yield record

    def _choices(
        self, path: Source, line: int, row: dict[Column, Any], wanted: Sequence[Column]
    ) -> Iterator[list[tuple[Column, str]]]:
        anchor = wanted[0], _text(path, line, row, wanted[0])
        positives, *negatives = (_listed(path, line, row, column) for column in wanted[1:])
        for positive in positives:
            yield [anchor, positive, *chain.from_iterable(negatives)]

    def _names(self, width: int) -> Sequence[str]:
        negatives = ["negative"] if width == 3 else [f"negative_{index + 1}" for index in range(width - 2)]
        return ["anchor", "positive", *negatives]


class NLIReader(Reader):
    """Triplets from premise, hypothesis, label rows: the hypotheses of a premise become positive and hard negative.

    The entailments of a premise are paired with its contradictions in file order, as in the paper's
    ``nli_for_simcse.csv``; those left over, neutral hypotheses and rows without a gold label are skipped and counted.
    The header says ``premise, hypothesis, label`` or ``sentence1, sentence2, gold_label`` (SNLI, MNLI), ``sentence1,
    sentence2, label`` or SICK's own names. Labels are ``entailment``, ``neutral``, ``contradiction`` (or
    ``contradictory``) or their first letters, in any case; ``-`` and -1 mean that the annotators did not agree. Data
    sets differ in the order of their numbers: a number means what the data set's own ``ClassLabel`` says, or
    ``labels``. The whole file is held in memory, because a premise's rows may lie apart.

    Args:
        *others: as for :class:`Reader`.
        labels: the meanings of the numbers 0, 1, ... in their order, such as ``("entailment", "neutral",
            "contradiction")``, or of numbers and words by name, such as ``{"not_entailment": "contradiction"}``.
        **options: as for :class:`Reader`.

    Raises:
        ValueError: for ``labels`` that name another meaning than these.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> rows = ["premise\\thypothesis\\tlabel", "A dog runs.\\tAn animal moves.\\tentailment"]
        >>> _ = (folder / "nli.tsv").write_text("\\n".join([*rows, "A dog runs.\\tA dog sleeps.\\tcontradiction"]))
        >>> NLIReader(folder).get_examples("nli.tsv")[0].texts
        ['A dog runs.', 'An animal moves.', 'A dog sleeps.']
    """

    usual = (
        ("premise", "hypothesis", "label"),
        ("sentence1", "sentence2", "gold_label"),
        ("sentence1", "sentence2", "label"),
        ("sentence_A", "sentence_B", "entailment_label"),
        ("sentence_A", "sentence_B", "entailment_judgment"),
    )
    as_lines = _WITH_SENTENCE_READER

    def __init__(
        self, *others: Any, labels: Sequence[str] | Mapping[str | int, str] | None = None, **options: Any
    ) -> None:
        super().__init__(*others, **options)
        given: dict[Any, str] = dict(labels) if isinstance(labels, Mapping) else dict(enumerate(labels or ()))
        if isinstance(labels, str) or not all(str(meaning).lower() in _NLI_LABELS for meaning in given.values()):
            raise ValueError(f"expected entailment, neutral, contradiction, or - for none, in labels=, got {labels!r}")
        self._meanings: dict[str, str] = {}
        self._given = {str(spelled).lower(): _NLI_LABELS[meaning.lower()] for spelled, meaning in given.items()}

    def _records(self, path: Source) -> Iterator[Record]:
        premises: dict[str, dict[str, list[str]]] = {}
        for line, (premise, hypothesis, spelled) in self._cells(path):
            label = self._meanings.get(spelled.lower())
            if label is None:
                raise self._unknown_label(path, line, spelled)
            if label in ("neutral", "without a gold label"):
                self.skipped[label] += 1
                continue
            hypotheses = premises.setdefault(premise, {"entailment": [], "contradiction": []})
            hypotheses[label].append(hypothesis)
        for premise, hypotheses in premises.items():
            positives, negatives = hypotheses["entailment"], hypotheses["contradiction"]
            if unpaired := abs(len(positives) - len(negatives)):
                self.skipped["entailments or contradictions of a premise that lacks the other"] += unpaired
            for positive, negative in zip(positives, negatives, strict=False):
                yield premise, positive, negative

    def _read_classes(self, path: Source) -> None:
        """What the labels of the source mean, by their spelling in lower case."""
        words = _NLI_LABELS | self._given
        names = {str(number): name.lower() for number, name in enumerate(self._class_names(path, 2))}
        declared = {number: words[name] for number, name in names.items() if name in words}
        for number, meaning in declared.items():
            if self._given.get(number, meaning) != meaning:
                raise ValueError(
                    f"{path}: the data set says that the label {number} is {meaning}, and labels= says "
                    f"{self._given[number]}: leave it out"
                )
        self._meanings = words | declared

    def _unknown_label(self, path: Source, line: int, spelled: str) -> ValueError:
        remedy = "say so with labels= if it means one of these"
        if not spelled.replace(".", "", 1).isdecimal():
            told = f"unknown label {spelled!r}"
        elif names := self._class_names(path, 2)[int(float(spelled)) :]:
            told = f"unknown label {names[0]!r}"
        else:
            told = f"nothing says what the label {spelled} means, since data sets differ in their numbers"
            remedy = "pass labels= with the meanings in the order of the numbers"
        expected = "expected entailment, neutral, contradiction, or - for none"
        return DataError(f"{place(path, line)}: {told}; {expected}", remedy)

    def _names(self, width: int) -> Sequence[str]:
        return ["anchor", "positive", "negative"]


READERS: dict[str, type[Reader]] = {"sentences": SentenceReader, "triplets": TripletReader, "nli": NLIReader}


class STSReader(Reader):
    """(sentence1, sentence2, score) rows, for :func:`load_sts`."""

    usual = (
        ("sentence1", "sentence2", "score"),
        ("sentence1", "sentence2", "label"),
        ("text1", "text2", "score"),
        ("text1", "text2", "label"),
        ("sentence_A", "sentence_B", "relatedness_score"),
    )
    of_pairs = slice(-3, None)
    scores = (2,)

    def _records(self, path: Source) -> Iterator[Record]:
        scores: set[str] = set()
        for line, (sentence1, sentence2, score) in self._cells(path):
            check_score(path, line, self.found_columns[2], score)
            if len(scores) < 5:  # more are no NLI labels
                scores.add(score)
            yield sentence1, sentence2, score
        looks_like_nli = scores - {"-1"} == {"0", "1", "2"} and self.found_columns[2] == "label"
        if looks_like_nli and self.columns is None and not self._class_names(path, 2):
            raise DataError(
                f"{path}: the column 'label' has the numbers 0, 1 and 2 alone, as NLI data have them for entailment, "
                "neutral and contradiction",
                "NLIReader reads such a file",
                f"pass columns={list(self.found_columns)} if they are scores",
            )

    def _read_classes(self, path: Source) -> None:
        """ValueError if the source declares classes in the column of scores whose order is not that of similarity."""
        names = [name.lower() for name in self._class_names(path, 2)]
        is_nli = not _NLI_LABELS.keys().isdisjoint(names)
        # Of two, the second is the similar pairs' unless it denies the first: not_duplicate.
        is_pair = len(names) == 2 and not names[1].endswith(names[0])
        if names and (is_nli or not (is_pair or _rise(names))):
            raise DataError(
                f"{path}: the numbers in the column {self.found_columns[2]!r} are classes ({', '.join(names)}), no "
                "scores",
                *(["NLIReader reads such a file"] if is_nli else []),
                "name a column of scores with columns=",
            )


def _rise(names: Sequence[str]) -> bool:
    """Whether they are numbers, each above the one before."""
    try:
        numbers = [float(name) for name in names]
    except ValueError:
        return False
    return all(lower < upper for lower, upper in pairwise(numbers))


def load_sts(
    filename: Name,
    name: str | None = None,
    columns: Sequence[Column] | None = None,
    split: str | None = None,
    **options: Any,
) -> EmbeddingSimilarityEvaluator:
    """Scored sentence pairs as ST's EmbeddingSimilarityEvaluator with Spearman's correlation of the cosine.

    Args:
        filename: a ``.csv``, ``.tsv`` or ``.jsonl`` file or another with such lines, also gzipped, a ``.parquet`` file
            or a :class:`~st_simcse.HubDataset`, with the columns ``sentence1, sentence2`` or ``text1, text2`` and
            ``score`` or ``label``, or SICK's own names. Scores may be on any scale, since only their order counts.
        name: the evaluator's name; when left out the file's name without endings, or those of data set and split.
        columns: other columns, see :class:`Reader`.
        split: see :class:`Reader`; sentence-transformers' ``stsbenchmark.tsv.gz`` needs it.
        **options: how the file is read, the arguments of :class:`~st_simcse.formats.FileFormat`; any other is for the
            evaluator, such as ``batch_size``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a missing column, a score that is no number, an empty file, and rows of several splits without
            ``split``; names file, line and column. For classes in place of scores: where a ``ClassLabel`` has other
            names than numbers that rise or two like ``not_equivalent, equivalent``, and for a column ``label`` of 0, 1
            and 2 alone, unless ``columns`` names it.

    Example:
        >>> path = getfixture("tmp_path") / "sts.tsv"
        >>> _ = path.write_text("sentence1\\tsentence2\\tscore\\nA dog.\\tA hound.\\t4.5\\nA dog.\\tA car.\\t0.5\\n")
        >>> load_sts(path).scores
        [4.5, 0.5]
    """
    how, evaluator_kwargs = split_options(options)
    reader = STSReader(columns=columns, split=split, **how)
    return sts_evaluator(reader, filename, evaluator_name(filename, name), **evaluator_kwargs)


def split_options(options: dict[str, Any]) -> tuple[FormatOptions, dict[str, Any]]:
    """Those that say how a file is read, and the others."""
    how: Any = {name: value for name, value in options.items() if name in FormatOptions.__annotations__}
    return how, {name: value for name, value in options.items() if name not in how}


def evaluator_name(filename: Name, name: str | None) -> str:
    """The name, or when left out the file's without endings, or those of data set and split."""
    if name is not None:
        return name
    if isinstance(filename, HubDataset):
        return f"{Path(filename.name).name}-{filename.split}"
    return Path(filename).name.split(".")[0]


def sts_evaluator(reader: Reader, filename: Name, name: str, **evaluator_kwargs: Any) -> EmbeddingSimilarityEvaluator:
    """The (sentence1, sentence2, score) records of a reader as an evaluator."""
    sentences1, sentences2, scores = zip(*reader._read(filename), strict=True)
    options: dict[str, Any] = {"batch_size": 64, "main_similarity": "cosine"} | evaluator_kwargs
    return EmbeddingSimilarityEvaluator(
        list(sentences1), list(sentences2), [float(score) for score in scores], name=name, **options
    )


def check_score(path: Source, line: int, column: Column, score: str) -> None:
    """ValueError unless it is a finite number."""
    try:
        finite = math.isfinite(float(score))
    except ValueError:
        finite = False
    if not finite and score.lower() in _NLI_LABELS:
        raise DataError(
            f"{place(path, line)}, column {column!r}: {score!r} is an NLI label, no score",
            "NLIReader reads such a file",
            "name a column of scores with columns=",
        )
    if not finite:
        raise ValueError(f"{place(path, line)}, column {column!r}: {score!r} is not a score, expected a number")


def _is_text(cell: str) -> bool:
    """Whether it reads like a sentence or a number, and not like the name of a column."""
    return len(cell.split()) > 2 or cell[-1:] in (".", "!", "?", "。") or cell.replace(".", "", 1).isdecimal()


def _listed(path: Source, line: int, row: dict[Column, Any], column: Column) -> list[tuple[Column, str]]:
    """The column and the text of its cell, or of each in a list."""
    cell = row.get(column, LACKING)
    rows = [{column: text} for text in cell or [""]] if isinstance(cell, list) else [row]
    return [(column, _text(path, line, row, column)) for row in rows]


def _text(path: Source, line: int, row: dict[Column, Any], column: Column, is_score: bool = False) -> str:
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
