"""Scored sentence pairs as an evaluator, with checks that the scores are not classes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator

from st_simcse.data.formats import Column, FileOrDataset, FormatOptions, place
from st_simcse.data.hub_dataset import HubDataset
from st_simcse.data.reader import Name, Reader, Record, check_name
from st_simcse.data.readers import NLI_LABELS
from st_simcse.data.remedies import DataError

__all__ = ["STSReader", "check_score", "evaluator_name", "load_sts", "split_options", "sts_evaluator"]


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

    def _records(self, path: FileOrDataset) -> Iterator[Record]:
        scores: set[str] = set()
        for line, (sentence1, sentence2, score) in self._cells(path):
            check_score(path, line, self.found_columns[2], score)
            if len(scores) < 5:  # NLI has at most four labels
                scores.add(score)
            yield sentence1, sentence2, score
        looks_like_nli = scores - {"-1"} == {"0", "1", "2"} and self.found_columns[2] == "label"
        if looks_like_nli and self.columns is None and not self._class_names(path, 2):
            raise DataError(
                f"{path}: the column 'label' contains only 0, 1 and 2, which in NLI data mean entailment, neutral and "
                "contradiction",
                "read it with NLIReader",
                f"pass columns={list(self.found_columns)} if they are scores",
            )

    def _read_classes(self, path: FileOrDataset) -> None:
        """Raises a ValueError if the column of scores has classes that are not in the order of similarity."""
        names = [name.lower() for name in self._class_names(path, 2)]
        is_nli = not NLI_LABELS.keys().isdisjoint(names)
        # The second of two classes means similar, unless it negates the first (duplicate, not_duplicate).
        is_pair = len(names) == 2 and not names[1].endswith(names[0])
        if names and (is_nli or not (is_pair or _rise(names))):
            raise DataError(
                f"{path}: the numbers in the column {self.found_columns[2]!r} are classes ({', '.join(names)}), not "
                "scores",
                *(["read it with NLIReader"] if is_nli else []),
                "name a column of scores with columns=",
            )


def _rise(names: Sequence[str]) -> bool:
    """Returns whether the names are numbers in ascending order."""
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
    """Loads scored sentence pairs as ST's EmbeddingSimilarityEvaluator.

    Its main metric is Spearman's correlation between the scores and the cosine similarities.

    Args:
        filename: A ``.csv``, ``.tsv`` or ``.jsonl`` file, or a file of any name with such lines, which may be gzipped,
            or a ``.parquet`` file, or a :class:`~st_simcse.HubDataset`. The columns are ``sentence1, sentence2`` or
            ``text1, text2`` with ``score`` or ``label``, or the names in SICK's own file. Scores can have any scale,
            because only their order counts.
        name: The evaluator's name. If None, the file name without its endings, or the names of the data set and split.
        columns: Other columns, see :class:`Reader`.
        split: See :class:`Reader`. The file ``stsbenchmark.tsv.gz`` of sentence-transformers needs it.
        **options: Arguments of :class:`~st_simcse.data.formats.FileFormat` that say how to read the file. Other
            arguments are passed to the evaluator, such as ``batch_size``.

    Returns:
        The evaluator, with a batch size of 64 by default.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a column is missing, a score is not a number, the file is empty, or the rows belong to several
            splits and ``split`` is None. The message names file, line and column. Also if the scores look like
            classes. This is the case for a ``ClassLabel``, except with ascending numbers or two names like
            ``not_equivalent, equivalent``, and for a column ``label`` with only 0, 1 and 2 that ``columns`` does not
            name.

    Example:
        >>> from pathlib import Path
        >>> rows = "sentence1\\tsentence2\\tscore\\nA dog.\\tA hound.\\t4.5\\nA dog.\\tA car.\\t0.5\\n"
        >>> _ = Path("sts.tsv").write_text(rows)
        >>> load_sts("sts.tsv").scores
        [4.5, 0.5]
    """
    how, evaluator_kwargs = split_options(options)
    reader = STSReader(columns=columns, split=split, **how)
    return sts_evaluator(reader, filename, evaluator_name(filename, name), **evaluator_kwargs)


def split_options(options: dict[str, Any]) -> tuple[FormatOptions, dict[str, Any]]:
    """Splits options into those that say how to read a file, and all others."""
    how: Any = {name: value for name, value in options.items() if name in FormatOptions.__annotations__}
    return how, {name: value for name, value in options.items() if name not in how}


def evaluator_name(filename: Name, name: str | None) -> str:
    """Returns the name. If None, returns the file name without endings, or the names of the data set and split."""
    check_name(filename)
    if name is not None:
        return name
    if isinstance(filename, HubDataset):
        return f"{Path(filename.name).name}-{filename.split}"
    return Path(filename).name.lstrip(".").split(".")[0] or "pairs"


def sts_evaluator(reader: Reader, filename: Name, name: str, **evaluator_kwargs: Any) -> EmbeddingSimilarityEvaluator:
    """Returns an evaluator with the (sentence1, sentence2, score) records of a reader."""
    sentences1, sentences2, scores = zip(*reader.read(filename), strict=True)
    options: dict[str, Any] = {"batch_size": 64, "main_similarity": "cosine"} | evaluator_kwargs
    return EmbeddingSimilarityEvaluator(
        list(sentences1), list(sentences2), [float(score) for score in scores], name=name, **options
    )


def check_score(path: FileOrDataset, line: int, column: Column, score: str) -> None:
    """Raises a ValueError unless the score is a finite number."""
    try:
        finite = math.isfinite(float(score))
    except ValueError:
        finite = False
    if not finite and score.lower() in NLI_LABELS:
        raise DataError(
            f"{place(path, line)}, column {column!r}: {score!r} is an NLI label, not a score",
            "read it with NLIReader",
            "name a column of scores with columns=",
        )
    if not finite:
        raise ValueError(f"{place(path, line)}, column {column!r}: {score!r} is not a score, which must be a number")
