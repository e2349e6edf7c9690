"""The seven STS tasks, and their table."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import SequentialEvaluator

from st_simcse.data.formats import Column, FileFormat, FormatOptions
from st_simcse.data.scored_pairs import STSReader, sts_evaluator
from st_simcse.data.senteval import STS_DEV_ROWS, STS_ROWS, SentEvalReader, check_rows, senteval_tasks
from st_simcse.evaluation.table import with_average

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["mteb_scores", "sts_evaluators", "sts_scores"]

STS_TASKS = {
    "STS12": "STS12",
    "STS13": "STS13",
    "STS14": "STS14",
    "STS15": "STS15",
    "STS16": "STS16",
    "STS-B": "STSB-test",
    "SICK-R": "SICKR-test",
}

_MTEB_TASKS = STS_TASKS | {"STS-B": "STSBenchmark", "SICK-R": "SICK-R"}
# Tasks by ISO 639-3 code. The code zho is Chinese, and MTEB's cmn is Mandarin Chinese.
MTEB_LANGUAGES = {
    "eng": _MTEB_TASKS,
    "zho": {name: name for name in ("ATEC", "BQ", "LCQMC", "PAWSX")}
    | {"STS-B": "STSB", "AFQMC": "AFQMC", "QBQTC": "QBQTC"},
}

# The tasks with a dev set.
STS_DEV_TASKS = {"STS-B": "STSB-dev", "SICK-R": "SICKR-dev"}
_SENTEVAL_DEV = {"STS-B": "sts-dev.csv", "SICK-R": "SICK_trial.txt"}


def sts_evaluators(
    folder: str | os.PathLike[str],
    batch_size: int = 64,
    tasks: Sequence[str] | None = None,
    dev: bool = False,
    columns: Sequence[Column] | None = None,
    allow_partial: bool = False,
    split: str | None = None,
    **how: Unpack[FormatOptions],
) -> SequentialEvaluator:
    """The seven STS tasks as one evaluator. Its main score is their average.

    The score of a task is Spearman's correlation over all of its pairs. This is the "all" setting of the paper
    (appendix on the STS evaluation protocol), which concatenates the subsets of a task.

    Args:
        folder: A folder with STS12.tsv to STS16.tsv, STSB-test.tsv and SICKR-test.tsv, with the columns sentence1,
            sentence2 and score, or SentEval's own data in a layout that
            :func:`~st_simcse.data.senteval.senteval_tasks` finds. Pairs of SentEval's data without a gold score are
            skipped, counted and logged.
        batch_size: The number of sentences per forward pass.
        tasks: The tasks, a subset of ``STS_TASKS``. If None, all of them.
        dev: Whether to use the dev sets, STSB-dev.tsv and SICKR-dev.tsv. Only STS-B and SICK-R have one.
        columns: The columns of the tables if they have other names, see :func:`~st_simcse.load_sts`.
        allow_partial: Whether a task may have fewer pairs than the released one, for sets that are meant to be
            smaller.
        split: The split to read if the tables have several, such as those in the column ``SemEval_set`` of SICK's own
            file, see :func:`~st_simcse.load_sts`.
        **how: The format of the tables, as arguments of :class:`~st_simcse.data.formats.FileFormat`. Only ``encoding``
            and ``max_row_bytes`` apply to SentEval's files.

    Returns:
        An evaluator that returns ``{"STS12_spearman_cosine": ..., ..., "sequential_score": ...}`` for a model.

    Raises:
        FileNotFoundError: If the folder lacks tasks. The message names their files.
        ValueError: If a task is unknown, if a file cannot be read (see :func:`~st_simcse.load_sts`), or if a task has
            an unexpected number of pairs, because its score would not be comparable.

    Example:
        >>> from st_simcse.demo import tiny_model
        >>> evaluator = sts_evaluators("sts", tasks=["STS-B"], allow_partial=True)
        >>> results = evaluator(tiny_model(["A dog runs."]))
        >>> list(sts_scores(results))  # in percent, for format_table
        ['STS-B', 'Avg.']
    """
    stems = STS_DEV_TASKS if dev else STS_TASKS
    tasks = list(stems) if tasks is None else list(tasks)
    if unknown := [task for task in tasks if task not in stems]:
        what = "dev set of an STS task" if dev else "STS task"
        raise ValueError(f"there is no {what} {', '.join(unknown)}: choose from {', '.join(stems)}")
    paths = {task: Path(folder, f"{stems[task]}.tsv") for task in tasks}
    senteval = {} if any(path.exists() for path in paths.values()) else senteval_tasks(folder)
    if senteval:
        names = _SENTEVAL_DEV if dev else {}
        paths = {task: senteval[task].with_name(names.get(task, senteval[task].name)) for task in tasks}
    if missing := [path.name for path in paths.values() if not path.exists()]:
        raise FileNotFoundError(
            f"{folder} lacks {', '.join(missing)}"
            + ("" if senteval else ", and has no SentEval data (STS/STS12-en-test)")
        )
    reader = (
        _senteval_reader(folder, columns, split, how) if senteval else STSReader(columns=columns, split=split, **how)
    )
    evaluators = []
    for task, path in paths.items():
        evaluator = sts_evaluator(reader, path, task, batch_size=batch_size)
        rows = (STS_DEV_ROWS if dev else STS_ROWS)[task]
        check_rows(path, len(evaluator.scores), (rows,), allow_partial)
        evaluators.append(evaluator)
    return SequentialEvaluator(evaluators, main_score_function=fmean)


def _senteval_reader(
    folder: str | os.PathLike[str], columns: Sequence[Column] | None, split: str | None, how: FormatOptions
) -> SentEvalReader:
    layout = [given for given in FileFormat(**how).given if not given.startswith("encoding=")]
    layout += ["columns="] if columns is not None else []
    layout += [f"split={split!r}"] if split is not None else []
    if layout:
        raise ValueError(
            f"{folder} holds SentEval's data, whose files have a fixed layout and no columns to choose: leave "
            f"{' and '.join(layout)} out"
        )
    return SentEvalReader(**how)


def sts_scores(results: Mapping[str, float]) -> dict[str, float]:
    """Returns a row of the paper's table: Spearman × 100 by task from :func:`sts_evaluators`, and the average.

    Example:
        >>> results = {f"{task}_spearman_cosine": 0.5 for task in STS_TASKS}
        >>> sts_scores(results)["Avg."]
        50.0
    """
    scores = {task: 100 * results[key] for task in STS_TASKS if (key := f"{task}_spearman_cosine") in results}
    return with_average(scores)


def mteb_scores(model: SentenceTransformer, language: str = "eng") -> dict[str, float]:
    """Evaluates the STS tasks of a language with MTEB, on the data that the mteb package downloads.

    Args:
        model: The model.
        language: ``eng`` for the tasks of :func:`sts_scores` (MTEB's SICK-R has all splits), or ``zho`` for the seven
            Chinese STS tasks of C-MTEB (the benchmark ``MTEB(cmn, v1)``) on the benchmark's splits.

    Returns:
        The main score × 100 of each task, and the average.

    Raises:
        ImportError: If the mteb package is not installed.
        ValueError: If the language is unknown.
    """
    if language not in MTEB_LANGUAGES:
        raise ValueError(f"MTEB's STS tasks are not supported for {language!r}: choose {' or '.join(MTEB_LANGUAGES)}")
    try:
        import mteb
    except ImportError as error:
        raise ImportError('the mteb package is not installed: pip install "st_simcse[mteb]"') from error

    names = MTEB_LANGUAGES[language]
    if language == "eng":
        tasks = list(mteb.get_tasks(tasks=list(names.values()), languages=[language]))
    else:
        benchmark = mteb.get_benchmark("MTEB(cmn, v1)")
        tasks = [task for task in benchmark.tasks if task.metadata.name in names.values()]
    results = {result.task_name: result for result in mteb.evaluate(model, tasks, cache=None).task_results}
    scores = {task: 100 * results[name].get_score() for task, name in names.items()}
    return with_average(scores)
