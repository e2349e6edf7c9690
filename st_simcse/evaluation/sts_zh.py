"""The five Chinese STS tasks of bojone/SimCSE, and their table."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator, SequentialEvaluator

from st_simcse.data.lengths import reading_at_most
from st_simcse.data.scored_pairs import STSReader, sts_evaluator
from st_simcse.data.senteval import STS_ZH_ROWS, check_rows
from st_simcse.evaluation.table import with_average

__all__ = ["STS_ZH_SPLITS", "STS_ZH_TASKS", "CutEvaluator", "sts_zh_evaluators", "sts_zh_scores"]

STS_ZH_TASKS = tuple(STS_ZH_ROWS)
STS_ZH_SPLITS = ("train", "valid", "test")

# The file names of a split in senteval_cn, and in the releases of LCQMC and of CNSD's STS-B.
_FILES = {
    split: (f"{{task}}.{split}.data", f"{released}.txt", f"{released}.tsv", f"cnsd-sts-{released}.txt")
    for split, released in (("train", "train"), ("valid", "dev"), ("test", "test"))
}


class CutEvaluator(EmbeddingSimilarityEvaluator):
    """ST's evaluator of scored pairs with a maximum length of texts. It applies if the model reads more tokens.

    Args:
        sentences1, sentences2: The texts of the pairs.
        scores: The score of each pair.
        max_length: The maximum number of tokens of a text, including special tokens.
        **options: Keyword arguments of :class:`EmbeddingSimilarityEvaluator`.

    Example:
        >>> from st_simcse.demo import tiny_model
        >>> model = tiny_model(["Two dogs run."])
        >>> evaluator = CutEvaluator(["Two dogs run."], ["Two dogs."], [5.0], max_length=4)
        >>> bool((evaluator.embed_inputs(model, "Two dogs run.") == model.encode("Two dogs")).all())
        True
    """

    def __init__(
        self, sentences1: list[str], sentences2: list[str], scores: list[float], max_length: int, **options: Any
    ) -> None:
        super().__init__(sentences1, sentences2, scores, **options)
        self.max_length = max_length

    def embed_inputs(self, model: SentenceTransformer, sentences: Any, **options: Any) -> Any:
        with reading_at_most(model, self.max_length):
            return super().embed_inputs(model, sentences, **options)


def sts_zh_evaluators(
    folder: str | os.PathLike[str],
    batch_size: int = 64,
    tasks: Sequence[str] | None = None,
    splits: Sequence[str] | None = None,
    max_length: int | None = None,
    allow_partial: bool = False,
) -> SequentialEvaluator:
    """The Chinese STS tasks and their splits as one evaluator. Its main score is the unweighted average.

    The tasks, the maximum lengths and the metric are those of bojone/SimCSE: Spearman's correlation of the cosine, with
    texts cut after 64 tokens, or 128 for PAWSX. It trains on a task's own sentences without labels, so it reports all
    three splits.

    Args:
        folder: A folder with a subfolder for each task, with files such as ``ATEC.train.data``, ``ATEC.valid.data`` and
            ``ATEC.test.data``. This is the layout of senteval_cn and of ``st-simcse data --sets sts_zh``: two sentences
            and a score, separated by tabs, without a header. LCQMC can also have the files ``train.txt`` and
            ``dev.tsv``, and STS-B files of CNSD such as ``cnsd-sts-dev.txt``.
        batch_size: The number of sentences per forward pass.
        tasks: The tasks, a subset of ``STS_ZH_TASKS``. If None, all of them.
        splits: The splits, a subset of ``STS_ZH_SPLITS``. If None, all splits that a task has.
        max_length: The maximum number of tokens of a text. If None, 64, or 128 for PAWSX.
        allow_partial: Whether files may have fewer pairs than the released ones, for sets that are meant to be smaller.

    Returns:
        An evaluator that returns ``{"ATEC-train_spearman_cosine": ..., "sequential_score": ...}`` for a model.

    Raises:
        FileNotFoundError: If the folder lacks tasks or splits. The message names them.
        ValueError: If a task or split is unknown, if a row cannot be read, with file and line, or if a file has an
            unexpected number of pairs.

    Example:
        >>> from st_simcse.demo import tiny_model
        >>> from pathlib import Path
        >>> Path("senteval_cn/BQ").mkdir(parents=True)
        >>> rows = "怎么还款\\t如何还钱\\t1\\n怎么还款\\t今天下雨\\t0\\n"
        >>> _ = Path("senteval_cn/BQ/BQ.test.data").write_text(rows, encoding="utf-8")
        >>> evaluator = sts_zh_evaluators("senteval_cn", tasks=["BQ"], allow_partial=True)
        >>> results = evaluator(tiny_model(["怎么如何还款钱今天下雨"]))
        >>> list(sts_zh_scores(results, evaluator))  # in percent, for format_table
        ['BQ-test', 'Avg.', 'Weighted avg.']
    """
    for what, asked, known in (("task", tasks, STS_ZH_TASKS), ("split", splits, STS_ZH_SPLITS)):
        if unknown := [name for name in asked or () if name not in known]:
            raise ValueError(f"there is no Chinese STS {what} {', '.join(unknown)}: choose from {', '.join(known)}")
    evaluators = []
    for (task, split), path in _paths(Path(folder), tasks, splits).items():
        reader = STSReader(delimiter="||" if path.name.startswith("cnsd-sts-") else "\t")
        pairs = sts_evaluator(reader, path, f"{task}-{split}", batch_size=batch_size)
        rows = len(pairs.scores) + sum(reader.skipped.values())
        check_rows(path, rows, STS_ZH_ROWS[task][split], allow_partial)
        limit = max_length or (128 if task == "PAWSX" else 64)
        texts = pairs.sentences1, pairs.sentences2, pairs.scores
        evaluators.append(CutEvaluator(*texts, limit, name=pairs.name, batch_size=batch_size, main_similarity="cosine"))
    return SequentialEvaluator(evaluators, main_score_function=fmean)


def _paths(folder: Path, tasks: Sequence[str] | None, splits: Sequence[str] | None) -> dict[tuple[str, str], Path]:
    """Returns the file of each wanted task and split. If ``splits`` is None, returns all files that exist."""
    tasks = STS_ZH_TASKS if tasks is None else tasks
    found = {
        (task, split): path
        for task in tasks
        for split in splits or STS_ZH_SPLITS
        for path in [_path(folder / task, task, split)]
        if path
    }
    if missing := [task for task in tasks if not any((task, split) in found for split in STS_ZH_SPLITS)]:
        raise FileNotFoundError(
            f"{folder} lacks {', '.join(missing)}. Each task needs a folder with files like "
            f"{_expected(missing[0], splits)}: download all five tasks with `st-simcse data --sets sts_zh`, or choose "
            "the available tasks with tasks= (--tasks)"
        )
    lacking = [
        f"{task}/{_expected(task, [split])}" for task in tasks for split in splits or () if (task, split) not in found
    ]
    if lacking:
        raise FileNotFoundError(f"{folder} lacks {', '.join(lacking)}")
    return found


def _path(folder: Path, task: str, split: str) -> Path | None:
    places = [folder / name.format(task=task) for name in _FILES[split]]
    return next((place for place in places if place.exists()), None)


def _expected(task: str, splits: Sequence[str] | None) -> str:
    return _FILES[(splits or STS_ZH_SPLITS[-1:])[0]][0].format(task=task)


def sts_zh_scores(results: Mapping[str, float], evaluator: SequentialEvaluator) -> dict[str, float]:
    """Returns a row of the table: Spearman × 100 by task and split, their average, and an average weighted by pairs.

    Args:
        results: The results of the evaluator.
        evaluator: The evaluator from :func:`sts_zh_evaluators`.
    """
    tasks: Sequence[Any] = evaluator.evaluators
    scores = {task.name: 100 * results[f"{task.name}_spearman_cosine"] for task in tasks}
    weighted = np.average(list(scores.values()), weights=[len(task.scores) for task in tasks])
    return with_average(scores) | {"Weighted avg.": float(weighted)}
