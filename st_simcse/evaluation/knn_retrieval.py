"""What a corpus says of a model without scored pairs: classes of texts, and pairs of a query and its document."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from sklearn.neighbors import KNeighborsClassifier

from st_simcse.data.formats import Column, FormatOptions
from st_simcse.data.reader import Name, Reader
from st_simcse.data.scored_pairs import evaluator_name, split_options
from st_simcse.evaluation.base import RecordingEvaluator

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["KNNEvaluator", "load_classes", "load_retrieval"]


class _ClassReader(Reader):
    """(text, class) rows."""

    usual = (("text", "label"), ("text", "class"), ("sentence", "label"), ("sentence", "class"))


class _QueryReader(Reader):
    """(query, document) rows."""

    usual = (("query", "document"), ("query", "answer"), ("title", "text"), ("anchor", "positive"))


class KNNEvaluator(RecordingEvaluator):
    """The share of texts whose class is the most frequent among their k nearest other texts, by cosine similarity.

    Of classes that are equally frequent the first by name counts, as in scikit-learn.

    Args:
        texts: N texts, more than k.
        classes: the class of each.
        k: how many neighbours vote.
        name: prefix of the metric, ``{name}_accuracy``.
        batch_size: texts a forward pass.
        write_csv: append the numbers to ``knn_{name}_results.csv`` in the output folder.

    Raises:
        ValueError: for texts and classes of different number, one class, and no more than k texts.

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
                f"{len(texts)} texts of {len(set(classes))} class(es) and k={k}: two classes are the least, and more "
                "texts than k, which is 1 or more"
            )
        self.texts, self.classes = list(texts), list(classes)
        self.k = k

    def measure(self, model: SentenceTransformer) -> dict[str, float]:
        embeddings = model.encode(self.texts, batch_size=self.batch_size, show_progress_bar=False)
        return {"accuracy": self._accuracy(np.asarray(embeddings, dtype=np.float32))}

    def _accuracy(self, embeddings: np.ndarray[Any, Any]) -> float:
        """From the embeddings (N, d); nan where one of them is."""
        if not np.isfinite(embeddings).all():
            return math.nan
        # Without texts to score, scikit-learn scores those of fit and leaves each out of its own neighbours.
        classifier = KNeighborsClassifier(self.k, metric="cosine").fit(embeddings, self.classes)
        return float(classifier.score(None, self.classes))


def load_classes(
    filename: Name,
    name: str | None = None,
    columns: Sequence[Column] | None = None,
    k: int = 10,
    split: str | None = None,
    **how: Unpack[FormatOptions],
) -> KNNEvaluator:
    """A table of texts and their classes as a :class:`KNNEvaluator`.

    Args:
        filename: a file or data set, as for :func:`~st_simcse.load_sts`.
        name: the evaluator's; when left out as for :func:`~st_simcse.load_sts`.
        columns: of text and class, by name or number; ``text`` or ``sentence`` and ``label`` or ``class`` when left
            out.
        k: how many neighbours vote.
        split: which split, of a table of several, as for :func:`~st_simcse.load_sts`.
        **how: how the file is read, the arguments of :class:`~st_simcse.data.formats.FileFormat`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a missing column and an empty file, naming it, and what :class:`KNNEvaluator` refuses.

    Example:
        >>> from pathlib import Path
        >>> _ = Path("pets.csv").write_text("text,class\\nA dog runs.,dog\\nA cat sleeps.,cat\\nA dog barks.,dog\\n")
        >>> load_classes("pets.csv", k=1).classes
        ['dog', 'cat', 'dog']
    """
    texts, classes = zip(*_ClassReader(columns=columns, split=split, **how)._read(filename), strict=True)
    return KNNEvaluator(texts, classes, k, evaluator_name(filename, name))


def load_retrieval(
    filename: Name,
    name: str | None = None,
    columns: Sequence[Column] | None = None,
    split: str | None = None,
    **options: Any,
) -> InformationRetrievalEvaluator:
    """A table of queries and their documents, such as titles and texts, as ST's InformationRetrievalEvaluator.

    Each query looks for its document among those of all rows. Equal documents are one, and equal queries look for all
    of theirs.

    Args:
        filename: a file or data set, as for :func:`~st_simcse.load_sts`.
        name: the evaluator's; when left out as for :func:`~st_simcse.load_sts`.
        columns: of query and document, by name or number; ``query`` and ``document`` or ``answer``, ``title`` and
            ``text``, or ``anchor`` and ``positive`` when left out.
        split: which split, of a table of several, as for :func:`~st_simcse.load_sts`.
        **options: how the file is read, the arguments of :class:`~st_simcse.data.formats.FileFormat`; any other is for
            the evaluator, such as ``batch_size``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a missing column and an empty file, naming it.

    Example:
        >>> from pathlib import Path
        >>> _ = Path("news.csv").write_text("title,text\\nDogs,A dog runs.\\nCats,A cat sleeps.\\nDogs,A dog barks.\\n")
        >>> evaluator = load_retrieval("news.csv")
        >>> len(evaluator.queries), len(evaluator.corpus)
        (2, 3)
    """
    how, evaluator_kwargs = split_options(options)
    relevant: dict[str, set[str]] = {}
    for query, document in _QueryReader(columns=columns, split=split, **how)._read(filename):
        relevant.setdefault(query, set()).add(document)
    documents: dict[str, Any] = {document: document for found in relevant.values() for document in sorted(found)}
    defaults: dict[str, Any] = {"batch_size": 64, "name": evaluator_name(filename, name)}
    queries: dict[str, Any] = {query: query for query in relevant}
    return InformationRetrievalEvaluator(queries, documents, relevant, **defaults | evaluator_kwargs)
