"""Scored sentence pairs as an evaluator; classes are not taken for scores."""

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

    def _read_classes(self, path: FileOrDataset) -> None:
        """ValueError if the source declares classes in the column of scores whose order is not that of similarity."""
        names = [name.lower() for name in self._class_names(path, 2)]
        is_nli = not NLI_LABELS.keys().isdisjoint(names)
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
        **options: how the file is read, the arguments of :class:`~st_simcse.data.formats.FileFormat`; any other is for
            the evaluator, such as ``batch_size``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a missing column, a score that is no number, an empty file, and rows of several splits without
            ``split``; names file, line and column. For classes in place of scores: where a ``ClassLabel`` has other
            names than numbers that rise or two like ``not_equivalent, equivalent``, and for a column ``label`` of 0, 1
            and 2 alone, unless ``columns`` names it.

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
    """Those that say how a file is read, and the others."""
    how: Any = {name: value for name, value in options.items() if name in FormatOptions.__annotations__}
    return how, {name: value for name, value in options.items() if name not in how}


def evaluator_name(filename: Name, name: str | None) -> str:
    """The name, or when left out the file's without endings, or those of data set and split."""
    check_name(filename)
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


def check_score(path: FileOrDataset, line: int, column: Column, score: str) -> None:
    """ValueError unless it is a finite number."""
    try:
        finite = math.isfinite(float(score))
    except ValueError:
        finite = False
    if not finite and score.lower() in NLI_LABELS:
        raise DataError(
            f"{place(path, line)}, column {column!r}: {score!r} is an NLI label, no score",
            "NLIReader reads such a file",
            "name a column of scores with columns=",
        )
    if not finite:
        raise ValueError(f"{place(path, line)}, column {column!r}: {score!r} is not a score, expected a number")
