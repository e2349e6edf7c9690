"""Readers of training data: sentences, triplets and NLI rows."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from datasets import Dataset

from st_simcse.data.formats import AS_LINES, LACKING, Column, FileOrDataset, FormatOptions, place
from st_simcse.data.reader import READERS, Reader, Record, cell_text
from st_simcse.data.remedies import DataError

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["NLI_LABELS", "READERS", "NLIReader", "Reader", "SentenceReader", "TripletReader"]

_WITH_SENTENCE_READER = "read each line as a sentence with SentenceReader(format='lines')"

# Spellings are in lower case. There are no numbers, because data sets differ in the meaning of 0, 1 and 2.
NLI_LABELS = {
    **dict.fromkeys(("entailment", "e"), "entailment"),
    **dict.fromkeys(("neutral", "n"), "neutral"),
    **dict.fromkeys(("contradiction", "contradictory", "c"), "contradiction"),
    **dict.fromkeys(("-", "-1"), "without a gold label"),
}
_FLOAT = re.compile(r"^(-?\d+)\.0$")


def texts_of(dataset: Dataset) -> Iterator[str]:
    """Yields the texts of a data set that SentenceReader made, read in batches to save memory.

    Example:
        >>> list(texts_of(Dataset.from_dict({"sentence": ["Two dogs run.", "A cat sleeps."]})))
        ['Two dogs run.', 'A cat sleeps.']
    """
    for rows in dataset.iter(1000):
        yield from rows["sentence"]


class SentenceReader(Reader, kind="sentences"):
    """Single sentences for :class:`~st_simcse.UnsupSimCSELoss`.

    Text files (``.txt`` or an unknown ending) hold one sentence per line. Tables hold sentences in the column
    ``sentence`` or ``text``, or in the columns that you name. Tables are ``.csv``, ``.tsv``, ``.jsonl`` and
    ``.parquet`` files, data sets of the hub, and text files whose first lines are all JSON objects or all have the same
    number of tabs or ``||``. A table of scored pairs without a header has two sentences per row. All files except
    parquet may be gzipped (``.gz``).

    Each example has its sentence twice, ``texts=[s, s]``, as ``fit`` needs it. The Dataset has the single column
    ``sentence``.

    Args:
        dataset_folder: The folder that file names are relative to.
        column: The name or number of the column.
        columns: Several columns instead. Each cell is a sentence.
        drop_duplicates: Whether to skip (and count) sentences that were read before.
        split: See :class:`Reader`.
        **how: See :class:`Reader`. With ``format="lines"``, every line is a sentence, even if it looks like a row of a
            table.

    Raises:
        ValueError: If both ``column`` and ``columns`` are passed, or as for :class:`Reader`.

    Example:
        >>> from pathlib import Path
        >>> _ = Path("corpus.txt").write_text("A man plays a guitar.\\n\\nTwo dogs run.\\n")
        >>> reader = SentenceReader()
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
        self, path: FileOrDataset, line: int, row: dict[Column, Any], wanted: Sequence[Column]
    ) -> Iterator[list[tuple[Column, str]]]:
        for column in wanted:
            yield [(column, cell_text(path, line, row, column))]

    def _names(self, width: int) -> Sequence[str]:
        return ["sentence"]

    def _texts(self, record: Record) -> Record:
        return record * 2


class TripletReader(Reader, kind="triplets"):
    """(anchor, positive, hard negative) rows for :class:`~st_simcse.SupSimCSELoss`.

    Reads ``.csv``, ``.tsv`` and ``.jsonl`` files, which may be gzipped, ``.parquet`` files, and data sets of the hub.
    The columns are ``sent0, sent1, hard_neg`` (the layout of the paper's ``nli_for_simcse.csv``), ``anchor, positive,
    negative``, ``origin, entailment, contradiction`` or ``query, pos, neg``. A file without the third column has
    pairs. Pass ``columns`` for other names, for column numbers of a file without a header, and for several hard
    negatives. If cells are lists, as in FlagEmbedding's files, each positive of a row makes a record with all of the
    row's negatives.

    Example:
        >>> from pathlib import Path
        >>> _ = Path("nli.csv").write_text('sent0,sent1,hard_neg\\n"Hi, you.",Hello.,Bye.\\n')
        >>> TripletReader().get_dataset("nli.csv")[0]
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

    def _records(self, path: FileOrDataset) -> Iterator[Record]:
        width = 0
        for line, record in self._cells(path):
            width = width or len(record)
            if len(record) != width:
                raise DataError(
                    f"{place(path, line)}: the row has {len(record) - 2} negative(s), but the first row has "
                    f"{width - 2}, and all rows need the same number",
                    "shorten the longer lists",
                    "pass SimCSETrainer train_dataset= with one column of lists, as in "
                    'Dataset.from_list([{"anchor": ..., "positive": ..., "negatives": [...]}])',
                )
            yield record

    def _choices(
        self, path: FileOrDataset, line: int, row: dict[Column, Any], wanted: Sequence[Column]
    ) -> Iterator[list[tuple[Column, str]]]:
        anchor = wanted[0], cell_text(path, line, row, wanted[0])
        positives, *negatives = (_listed(path, line, row, column) for column in wanted[1:])
        for positive in positives:
            yield [anchor, positive, *chain.from_iterable(negatives)]

    def _names(self, width: int) -> Sequence[str]:
        negatives = ["negative"] if width == 3 else [f"negative_{index + 1}" for index in range(width - 2)]
        return ["anchor", "positive", *negatives]


class NLIReader(Reader, kind="nli"):
    """Triplets from (premise, hypothesis, label) rows: a premise with an entailment and a contradiction.

    The entailments of a premise are paired with its contradictions in file order, as in the paper's
    ``nli_for_simcse.csv``. Unpaired hypotheses, neutral hypotheses and rows without a gold label are skipped and
    counted. The columns are ``premise, hypothesis, label``, ``sentence1, sentence2, gold_label`` (SNLI, MNLI),
    ``sentence1, sentence2, label``, or the names in SICK's own file.

    Labels are ``entailment``, ``neutral``, ``contradiction`` (or ``contradictory``) or their first letters, in any
    case. ``-`` and -1 mean that the annotators did not agree. Data sets differ in their numbers, so the data set's own
    ``ClassLabel`` or the argument ``labels`` gives the meaning of a number.

    The whole file is held in memory, because rows with the same premise may be far apart.

    Args:
        *others: See :class:`Reader`.
        labels: The meanings of the numbers 0, 1, ... in this order, such as ``("entailment", "neutral",
            "contradiction")``, or a mapping of numbers and words to meanings, such as
            ``{"not_entailment": "contradiction"}``.
        **options: See :class:`Reader`.

    Raises:
        ValueError: If ``labels`` has an unknown meaning, or as for :class:`Reader`.

    Example:
        >>> from pathlib import Path
        >>> rows = ["premise\\thypothesis\\tlabel", "A dog runs.\\tAn animal moves.\\tentailment"]
        >>> _ = Path("nli.tsv").write_text("\\n".join([*rows, "A dog runs.\\tA dog sleeps.\\tcontradiction"]))
        >>> NLIReader().get_examples("nli.tsv")[0].texts
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
        pairs = labels.items() if isinstance(labels, Mapping) else enumerate(labels or ())
        given = {str(label): str(meaning).lower() for label, meaning in pairs}
        if isinstance(labels, str) or not all(meaning in NLI_LABELS for meaning in given.values()):
            raise ValueError(f"labels= must be entailment, neutral, contradiction, or - for no label, got {labels!r}")
        self._meanings: dict[str, str] = {}
        self._given = {_spelled(label): NLI_LABELS[meaning] for label, meaning in given.items()}

    def _records(self, path: FileOrDataset) -> Iterator[Record]:
        premises: dict[str, dict[str, list[str]]] = {}
        for line, (premise, hypothesis, cell) in self._cells(path):
            label = self._meanings.get(_spelled(cell))
            if label is None:
                raise self._unknown_label(path, line, re.sub(_FLOAT, r"\1", cell))
            if label in ("neutral", "without a gold label"):
                self.skipped[label] += 1
                continue
            hypotheses = premises.setdefault(premise, {"entailment": [], "contradiction": []})
            hypotheses[label].append(hypothesis)
        for premise, hypotheses in premises.items():
            positives, negatives = hypotheses["entailment"], hypotheses["contradiction"]
            if unpaired := abs(len(positives) - len(negatives)):
                self.skipped["unpaired entailments or contradictions"] += unpaired
            for positive, negative in zip(positives, negatives, strict=False):
                yield premise, positive, negative

    def _read_classes(self, path: FileOrDataset) -> None:
        """Sets the meanings of the source's labels, which are keyed by their spelling in lower case.

        Raises:
            ValueError: If ``labels`` contradicts the class names that the source declares.
        """
        words = NLI_LABELS | self._given
        names = {str(number): name.lower() for number, name in enumerate(self._class_names(path, 2))}
        declared = {number: words[name] for number, name in names.items() if name in words}
        for number, meaning in declared.items():
            if self._given.get(number, meaning) != meaning:
                raise ValueError(
                    f"{path}: the data set declares the label {number} as {meaning}, but labels= says "
                    f"{self._given[number]}: leave labels= out"
                )
        self._meanings = words | declared

    def _unknown_label(self, path: FileOrDataset, line: int, spelled: str) -> ValueError:
        remedy = "pass labels= if it means one of these"
        if not spelled.isdecimal():
            told = f"unknown label {spelled!r}"
        elif names := self._class_names(path, 2)[int(spelled) :]:
            told = f"unknown label {names[0]!r}"
        else:
            told = f"the meaning of the label {spelled} is unknown, because data sets differ in their numbers"
            remedy = "pass labels= with the meanings in the order of the numbers"
        expected = "expected entailment, neutral, contradiction, or - for no label"
        return DataError(f"{place(path, line)}: {told}; {expected}", remedy)

    def _names(self, width: int) -> Sequence[str]:
        return ["anchor", "positive", "negative"]


def _spelled(label: str) -> str:
    """Returns the key of a label: lower case, and 0 for the 0.0 that tables with missing labels have."""
    return re.sub(_FLOAT, r"\1", label.lower())


def _listed(path: FileOrDataset, line: int, row: dict[Column, Any], column: Column) -> list[tuple[Column, str]]:
    """Returns the column and the text of its cell, or one entry for each text if the cell is a list."""
    cell = row.get(column, LACKING)
    rows = [{column: text} for text in cell or [""]] if isinstance(cell, list) else [row]
    return [(column, cell_text(path, line, row, column)) for row in rows]
