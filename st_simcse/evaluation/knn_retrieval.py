"""Evaluation of a model on a corpus without scored pairs, from classes of texts or pairs of a query and a document."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from sklearn.neighbors import KNeighborsClassifier

from st_simcse.data.formats import Column
from st_simcse.data.reader import Name, Reader
from st_simcse.data.remedies import DataError
from st_simcse.data.scored_pairs import evaluator_name, split_options
from st_simcse.evaluation.base import RecordingEvaluator

__all__ = ["KNNEvaluator", "load_classes", "load_retrieval"]


class _ClassReader(Reader):
    """(text, class) rows."""

    usual = (("text", "label"), ("text", "class"), ("sentence", "label"), ("sentence", "class"))


class _QueryReader(Reader):
    """(query, document) rows."""

    usual = (("query", "document"), ("query", "answer"), ("title", "text"), ("anchor", "positive"))


class KNNEvaluator(RecordingEvaluator):
    """The share of texts whose class is the most frequent one among their k nearest neighbours, by cosine similarity.

    A text is not its own neighbour. If several classes are equally frequent, the first by name counts, as in
    scikit-learn.

    Args:
        texts: The texts. There must be more than k.
        classes: The class of each text.
        k: The number of neighbours.
        name: The prefix of the metric ``{name}_accuracy``.
        batch_size: The number of texts per forward pass.
        write_csv: Whether to append the metric to ``knn_{name}_results.csv`` in the output folder.

    Raises:
        ValueError: If the numbers of texts and classes differ, if there is only one class, or if there are not more
            than k texts.

    Example:
        >>> from st_simcse.demo import tiny_model
        >>> texts, classes = ["A dog runs.", "A cat sleeps."] * 2, ["dog", "cat"] * 2
        >>> KNNEvaluator(texts, classes, k=1, name="pets")(tiny_model(texts))
        {'pets_accuracy': 1.0}
    """

    def __init__(
        self,
        texts: Sequence[str],
        classes: Sequence[str],
        k: int = 10,
        name: str = "",
        batch_size: int = 64,
        write_csv: bool = True,
    ) -> None:
        super().__init__("knn", "accuracy", name, batch_size, write_csv)
        if len(texts) != len(classes):
            raise ValueError(f"every text needs a class, got {len(texts)} texts and {len(classes)} classes")
        if len(set(classes)) < 2 or not 1 <= k < len(texts):
            raise ValueError(
                f"got {len(texts)} texts of {len(set(classes))} class(es) and k={k}: pass at least two classes, a k of "
                "at least 1, and more texts than k"
            )
        self.texts, self.classes = list(texts), list(classes)
        self.k = k

    def measure(self, model: SentenceTransformer) -> dict[str, float]:
        encoded = model.encode(self.texts, batch_size=self.batch_size, show_progress_bar=False)
        embeddings = np.asarray(encoded, dtype=np.float32)
        if not np.isfinite(embeddings).all():
            return {"accuracy": math.nan}
        # If X is None, scikit-learn scores the texts of fit, and no text is its own neighbour.
        classifier = KNeighborsClassifier(self.k, metric="cosine").fit(embeddings, self.classes)
        return {"accuracy": float(classifier.score(None, self.classes))}


def load_classes(
    filename: Name,
    name: str | None = None,
    columns: Sequence[Column] | None = None,
    k: int = 10,
    split: str | None = None,
    **options: Any,
) -> KNNEvaluator:
    """Loads a table of texts and their classes as a :class:`KNNEvaluator`.

    Args:
        filename: A file or data set, see :func:`~st_simcse.load_sts`.
        name: The evaluator's name. The default is the same as in :func:`~st_simcse.load_sts`.
        columns: The columns of text and class, by name or number. If None, ``text`` or ``sentence``, and ``label`` or
            ``class``.
        k: The number of neighbours.
        split: The split to read if the table has several, see :func:`~st_simcse.load_sts`.
        **options: Arguments of :class:`~st_simcse.data.formats.FileFormat` that say how to read the file. Other
            arguments are passed to the evaluator, such as ``batch_size``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read, lacks a column or is empty, or if :class:`KNNEvaluator` refuses its
            texts and classes.

    Example:
        >>> from pathlib import Path
        >>> _ = Path("pets.csv").write_text("text,class\\nA dog runs.,dog\\nA cat sleeps.,cat\\nA dog barks.,dog\\n")
        >>> load_classes("pets.csv", k=1).classes
        ['dog', 'cat', 'dog']
    """
    how, evaluator_kwargs = split_options(options)
    texts, classes = zip(*_ClassReader(columns=columns, split=split, **how).read(filename), strict=True)
    if len(texts) <= k:
        problem = f"{filename}: {len(texts)} text(s) are too few to have {k} neighbours each"
        raise DataError(problem, f"pass more than {k} texts", "pass a smaller k=")
    if len(set(classes)) < 2:
        raise DataError(f"{filename}: all texts have the class {classes[0]}", "pass texts of at least two classes")
    return KNNEvaluator(texts, classes, k, evaluator_name(filename, name), **evaluator_kwargs)


def load_retrieval(
    filename: Name,
    name: str | None = None,
    columns: Sequence[Column] | None = None,
    split: str | None = None,
    **options: Any,
) -> InformationRetrievalEvaluator:
    """Loads a table of queries and documents, such as titles and texts, as ST's InformationRetrievalEvaluator.

    Each query has to find its document among the documents of all rows. Equal documents count as one. Rows with equal
    queries become one query with several relevant documents.

    Args:
        filename: A file or data set, see :func:`~st_simcse.load_sts`.
        name: The evaluator's name. The default is the same as in :func:`~st_simcse.load_sts`.
        columns: The columns of query and document, by name or number. If None, ``query`` with ``document`` or
            ``answer``, ``title`` with ``text``, or ``anchor`` with ``positive``.
        split: The split to read if the table has several, see :func:`~st_simcse.load_sts`.
        **options: Arguments of :class:`~st_simcse.data.formats.FileFormat` that say how to read the file. Other
            arguments are passed to the evaluator, such as ``batch_size``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read, lacks a column or is empty.

    Example:
        >>> from pathlib import Path
        >>> _ = Path("news.csv").write_text("title,text\\nDogs,A dog runs.\\nCats,A cat sleeps.\\nDogs,A dog barks.\\n")
        >>> evaluator = load_retrieval("news.csv")
        >>> len(evaluator.queries), len(evaluator.corpus)
        (2, 3)
    """
    how, evaluator_kwargs = split_options(options)
    relevant: dict[str, set[str]] = {}
    for query, document in _QueryReader(columns=columns, split=split, **how).read(filename):
        relevant.setdefault(query, set()).add(document)
    documents: dict[str, Any] = {document: document for found in relevant.values() for document in sorted(found)}
    defaults: dict[str, Any] = {"batch_size": 64, "name": evaluator_name(filename, name)}
    queries: dict[str, Any] = {query: query for query in relevant}
    return InformationRetrievalEvaluator(queries, documents, relevant, **defaults | evaluator_kwargs)
