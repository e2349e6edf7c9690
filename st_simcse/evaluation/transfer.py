"""The seven transfer tasks: a logistic regression on a model's embeddings, with SentEval's protocol."""

from __future__ import annotations

import math
import os
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, Literal

import numpy as np
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.evaluation import SequentialEvaluator
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.model_selection import GridSearchCV, PredefinedSplit, StratifiedKFold, cross_validate

from st_simcse.data.senteval import TRANSFER_FILES, Example, transfer_examples
from st_simcse.evaluation.base import RecordingEvaluator
from st_simcse.evaluation.table import with_average

__all__ = ["TRANSFER_TASKS", "Mode", "TransferEvaluator", "transfer_evaluators", "transfer_scores"]

Array = np.ndarray[Any, np.dtype[Any]]
Mode = Literal["test", "fasttest", "dev"]

TRANSFER_TASKS = tuple(TRANSFER_FILES)
# The "kfold" of the modes in princeton-nlp/SimCSE's evaluation.py.
FOLDS: dict[Mode, int] = {"test": 10, "fasttest": 5, "dev": 5}
# SentEval's values of scikit-learn's C, the inverse regularization strength. Tasks with train but no dev have others.
STRENGTHS = [2.0**power for power in range(-2, 4)]
STRENGTHS_OF_TRAIN = [2.0**power for power in range(-1, 6)]


def transfer_evaluators(
    folder: str | os.PathLike[str],
    tasks: Sequence[str] = TRANSFER_TASKS,
    mode: Mode = "test",
    batch_size: int = 64,
    seed: int = 1111,
    allow_partial: bool = False,
) -> SequentialEvaluator:
    """The transfer tasks as one evaluator. Its main score is the average of their main metrics.

    Args:
        folder: SentEval's data. Download it with ``st-simcse data --sets sts``.
        tasks: The tasks, a subset of ``TRANSFER_TASKS``.
        mode, batch_size, seed: See :class:`TransferEvaluator`.
        allow_partial: Whether files may have fewer examples than the released ones, for sets that are meant to be
            smaller.

    Returns:
        An evaluator that returns ``{"MR_accuracy": ..., "MRPC_f1": ..., "sequential_score": ...}`` for a model.

    Raises:
        FileNotFoundError: If the folder lacks a task. The message names its file.
        ValueError: If a task or mode is unknown, if a file cannot be read, with file and line, or if a file has an
            unexpected number of examples.

    Example:
        >>> from st_simcse.demo import tiny_model
        >>> evaluator = transfer_evaluators("senteval", ["SST2"], allow_partial=True)
        >>> results = evaluator(tiny_model(["A dog runs."]))
        >>> sorted(results)
        ['SST2_accuracy', 'SST2_dev_accuracy', 'SST2_f1', 'sequential_score']
        >>> list(transfer_scores(results))  # in percent, for format_table
        ['SST2', 'Avg.']
    """
    if unknown := [task for task in tasks if task not in TRANSFER_TASKS]:
        raise ValueError(f"there is no transfer task {', '.join(unknown)}: choose from {', '.join(TRANSFER_TASKS)}")
    examples = {task: transfer_examples(folder, task, allow_partial) for task in tasks}
    evaluators = [TransferEvaluator(splits, task, mode, batch_size, seed) for task, splits in examples.items()]
    return SequentialEvaluator(evaluators, main_score_function=fmean)


def transfer_scores(results: Mapping[str, float], mode: Mode = "test") -> dict[str, float]:
    """Returns a row of the paper's table: accuracy × 100 by task and the average. ``dev`` uses the dev accuracies.

    Example:
        >>> transfer_scores({"CR_accuracy": 0.875, "MR_accuracy": 0.625, "sequential_score": 0.75})
        {'MR': 62.5, 'CR': 87.5, 'Avg.': 75.0}
    """
    metric = "dev_accuracy" if mode == "dev" else "accuracy"
    scores = {task: 100 * results[key] for task in TRANSFER_TASKS if (key := f"{task}_{metric}") in results}
    return with_average(scores)


class TransferEvaluator(RecordingEvaluator):
    r"""Accuracy of a logistic regression on a model's frozen embeddings (SentEval, Conneau and Kiela, LREC 2018).

    The features of a text are its embedding u. The features of a pair of texts are :math:`(|u - v|, u * v)`. The
    strength of the :math:`L_2` regularization is chosen from SentEval's values on data that is not in the test set:

    - A single split: k folds for testing. In each, k folds of the rest choose the strength. The dev accuracy is the
      mean of the best accuracies of these searches.
    - ``train`` and ``test``: k folds of ``train`` choose the strength.
    - ``train``, ``dev`` and ``test``: The strength with the best accuracy on ``dev`` is chosen. Only ``train`` is
      trained on.

    The authors of SentEval and SimCSE train the same classifier with PyTorch, Adam and early stopping, so their numbers
    differ by tenths of a point. The folds and their order are SentEval's.

    Args:
        splits: The examples by split. An example is a tuple of one or two texts, and a class. A single split may have
            any name.
        name: The prefix of the metrics ``{name}_accuracy``, ``{name}_dev_accuracy`` and, for two classes and a separate
            test set, ``{name}_f1``.
        mode: ``test`` uses 10 folds, and ``fasttest`` and ``dev`` use 5. The main metric of ``dev`` is the dev
            accuracy.
        batch_size: The number of texts per forward pass.
        seed: The seed of the folds. The default is SentEval's.
        write_csv: Whether to append the metrics to ``transfer_{name}_results.csv`` in the output folder.

    Raises:
        ValueError: If the mode is unknown, if the splits have other names, if a split is empty, if examples have
            different numbers of texts or more than two, if a class occurs only outside of the training data, if there
            is only one class, or if a class has too few examples for the folds.

    Example:
        >>> from st_simcse.demo import tiny_model
        >>> examples = [(("A dog runs.",), "dog"), (("A cat sleeps.",), "cat")] * 20
        >>> evaluator = TransferEvaluator({"all": examples}, "pets", mode="fasttest")
        >>> evaluator(tiny_model(["A dog runs.", "A cat sleeps."]))
        {'pets_accuracy': 1.0, 'pets_dev_accuracy': 1.0}
    """

    def __init__(
        self,
        splits: Mapping[str, Sequence[Example]],
        name: str = "",
        mode: Mode = "test",
        batch_size: int = 64,
        seed: int = 1111,
        write_csv: bool = True,
    ) -> None:
        super().__init__("transfer", "dev_accuracy" if mode == "dev" else "accuracy", name, batch_size, write_csv)
        if mode not in FOLDS:
            raise ValueError(f"mode={mode!r} is unknown: choose one of {', '.join(FOLDS)}")
        if len(splits) > 1 and set(splits) not in ({"train", "test"}, {"train", "dev", "test"}):
            raise ValueError(
                f"got the splits {', '.join(splits)}: pass one split, train and test, or train, dev and test"
            )
        # SentEval's order, which gives the same folds.
        self.splits = {split: sorted(examples, key=_order) for split, examples in splits.items()}
        self.texts = list(dict.fromkeys(text for rows in splits.values() for texts, _ in rows for text in texts))
        self.mode, self.seed = mode, seed
        self._check_classes()

    def _check_classes(self) -> None:
        training = next(iter(self.splits.values())) if len(self.splits) == 1 else self.splits["train"]
        counts = Counter(label for _, label in training)
        numbers = sorted({len(texts) for rows in self.splits.values() for texts, _ in rows})
        if numbers not in ([], [1], [2]):
            raise ValueError(
                f"{self.name}: the examples have {' or '.join(map(str, numbers))} texts, but all need one text, or all "
                "need two"
            )
        for split, rows in self.splits.items():
            if not rows:
                raise ValueError(f"{self.name}: {split} has no examples")
            if unknown := {label for _, label in rows} - counts.keys():
                raise ValueError(f"{self.name}: {split} has the class {min(unknown)}, but no training example has it")
        if len(counts) < 2:
            raise ValueError(f"{self.name}: a classifier needs at least two classes, got {', '.join(counts) or 'none'}")
        # With a single split, the search makes folds within each fold.
        least = FOLDS[self.mode] + (len(self.splits) == 1)
        rarest = min(counts, key=lambda label: counts[label])
        if "dev" not in self.splits and counts[rarest] < least:
            raise ValueError(
                f"{self.name}: the class {rarest} has {counts[rarest]} example(s), but {FOLDS[self.mode]} folds need "
                f"at least {least}"
            )

    @property
    def work(self) -> int:
        """The number of training rows, summed over all trained classifiers.

        The running time of a task is roughly proportional to it.

        Example:
            >>> TransferEvaluator({"all": [(("A dog runs.",), "dog"), (("A cat sleeps.",), "cat")] * 50}).work
            48600
        """
        folds = FOLDS[self.mode]
        if len(self.splits) == 1:  # every fold trains on the rest, within the rest of another fold
            rows = len(next(iter(self.splits.values())))
            return rows * (folds - 1) ** 2 * len(STRENGTHS)
        rows = len(self.splits["train"])
        return rows * len(STRENGTHS) if "dev" in self.splits else rows * (folds - 1) * len(STRENGTHS_OF_TRAIN)

    @property
    def _has_f1(self) -> bool:
        return "test" in self.splits and len({label for _, label in self.splits["train"]}) == 2

    def measure(self, model: SentenceTransformer) -> dict[str, float]:
        embeddings = model.encode(self.texts, batch_size=self.batch_size, show_progress_bar=False)
        return self._metrics(np.asarray(embeddings))

    def _metrics(self, embeddings: Array) -> dict[str, float]:
        """Returns all metrics for the embeddings (N, d) of ``texts``, or nan if an embedding is not finite."""
        if not np.isfinite(embeddings).all():
            names = ["accuracy", "dev_accuracy", *(["f1"] if self._has_f1 else [])]
            return dict.fromkeys(names, math.nan)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return self._classify(embeddings)

    def _classify(self, embeddings: Array) -> dict[str, float]:
        rows = {text: row for row, text in enumerate(self.texts)}
        features: dict[str, Array] = {}
        labels: dict[str, Array] = {}
        for split, examples in self.splits.items():
            columns = [
                embeddings[[rows[text] for text in side]] for side in zip(*(t for t, _ in examples), strict=True)
            ]
            features[split] = columns[0] if len(columns) == 1 else pair_features(*columns)
            labels[split] = np.array([label for _, label in examples])
        if len(features) == 1:
            return self._in_folds(*features.values(), *labels.values())
        if "dev" in features:
            x, y = (np.concatenate([part["train"], part["dev"]]) for part in (features, labels))
            is_dev = np.r_[np.full(len(labels["train"]), -1), np.zeros(len(labels["dev"]), int)]
            search = _search(STRENGTHS, PredefinedSplit(is_dev), refit=False).fit(x, y)
            classifier = LogisticRegression(**search.best_params_).fit(features["train"], labels["train"])
        else:
            search = classifier = _search(STRENGTHS_OF_TRAIN, self._folds()).fit(features["train"], labels["train"])
        predicted = classifier.predict(features["test"])
        accuracy = float(accuracy_score(labels["test"], predicted))
        metrics = {"accuracy": accuracy, "dev_accuracy": float(search.best_score_)}
        if self._has_f1:
            metrics["f1"] = float(f1_score(labels["test"], predicted, pos_label=max(labels["train"])))
        return metrics

    def _in_folds(self, features: Array, labels: Array) -> dict[str, float]:
        search = _search(STRENGTHS, self._folds())
        options: dict[str, Any] = {"cv": self._folds(), "return_estimator": True, "error_score": "raise"}
        found = cross_validate(search, features, labels, **options)
        dev_accuracies = [fold.best_score_ for fold in found["estimator"]]
        return {"accuracy": float(np.mean(found["test_score"])), "dev_accuracy": float(np.mean(dev_accuracies))}

    def _folds(self) -> StratifiedKFold:
        return StratifiedKFold(FOLDS[self.mode], shuffle=True, random_state=self.seed)


def pair_features(first: Array, second: Array) -> Array:
    """Returns the features of pairs of embeddings (N, d), which are absolute differences and products (N, 2d).

    Example:
        >>> pair_features(np.array([[1.0, 2.0]]), np.array([[3.0, 2.0]])).tolist()
        [[2.0, 0.0, 3.0, 4.0]]
    """
    return np.concatenate([np.abs(first - second), first * second], axis=1)


def _order(example: Example) -> tuple[list[int], str]:
    texts, label = example
    return [len(text.split()) for text in texts], label


def _search(strengths: list[float], splits: Any, refit: bool = True) -> GridSearchCV:
    """Returns a search for the C with the best average accuracy over the splits. In a tie, the smallest C wins."""
    # At most 100 steps, the default of scikit-learn and SentEval. If run to convergence, TREC differs by 3 of 500.
    return GridSearchCV(LogisticRegression(), {"C": strengths}, cv=splits, refit=refit)
