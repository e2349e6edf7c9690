"""The seven STS tasks, and their table."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import SequentialEvaluator

from st_simcse.data.formats import Column, FileFormat, FormatOptions
from st_simcse.data.scored_pairs import STSReader, sts_evaluator
from st_simcse.data.senteval import STS_DEV_ROWS, STS_ROWS, SentEvalReader, check_rows, senteval_tasks

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

MTEB_TASKS = STS_TASKS | {"STS-B": "STSBenchmark", "SICK-R": "SICK-R"}
# By the code of ISO 639-3, zho for Chinese, of which MTEB's cmn is Mandarin.
MTEB_LANGUAGES = {
    "eng": MTEB_TASKS,
    "zho": {name: name for name in ("ATEC", "BQ", "LCQMC", "PAWSX")}
    | {"STS-B": "STSB", "AFQMC": "AFQMC", "QBQTC": "QBQTC"},
}

# Those that have a dev set.
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
    """The seven STS tasks as one evaluator whose main score is their average.

    Each task is Spearman's correlation over all its pairs at once: the "all" setting of the paper (appendix on the STS
    evaluation protocol), in which a task's subsets are concatenated.

    Args:
        folder: holds STS12.tsv to STS16.tsv, STSB-test.tsv and SICKR-test.tsv with the columns sentence1, sentence2,
            score; or SentEval's own data as :func:`~st_simcse.data.senteval.senteval_tasks` finds it, in which pairs
            without a gold score are left out, counted and logged.
        batch_size: sentences a forward pass.
        tasks: some of ``STS_TASKS`` instead of all.
        dev: the dev sets instead, which STS-B and SICK-R alone have: STSB-dev.tsv and SICKR-dev.tsv.
        columns: of the tables, where they have other names; as for :func:`~st_simcse.load_sts`.
        allow_partial: whether a task may have fewer pairs than the released one, for sets that are meant to be
            smaller.
        split: which split of the tables, where a column says it, such as ``SemEval_set`` in SICK's own file; as for
            :func:`~st_simcse.load_sts`.
        **how: how the tables are read, the arguments of :class:`~st_simcse.data.formats.FileFormat`. SentEval's files
            have ``encoding`` alone.

    Returns:
        An evaluator; called with a model it gives ``{"STS12_spearman_cosine": ..., ..., "sequential_score": ...}``.

    Raises:
        FileNotFoundError: naming the tasks that the folder lacks.
        ValueError: for a file that cannot be read, as :func:`~st_simcse.load_sts` raises it, for a task with another
            number of pairs than it must have, whose score could not be compared, and for an unknown task.

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
        raise ValueError(f"no {what} is {', '.join(unknown)}: choose among {', '.join(stems)}")
    paths = {task: Path(folder, f"{stems[task]}.tsv") for task in tasks}
    senteval = {} if any(path.exists() for path in paths.values()) else senteval_tasks(folder)
    if senteval:
        names = _SENTEVAL_DEV if dev else {}
        paths = {task: senteval[task].with_name(names.get(task, senteval[task].name)) for task in tasks}
    if missing := [path.name for path in paths.values() if not path.exists()]:
        raise FileNotFoundError(
            f"{folder} lacks {', '.join(missing)}" + ("" if senteval else ", and has no STS/STS12-en-test of SentEval")
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
    return SequentialEvaluator(evaluators, main_score_function=lambda scores: sum(scores) / len(scores))


def _senteval_reader(
    folder: str | os.PathLike[str], columns: Sequence[Column] | None, split: str | None, how: FormatOptions
) -> SentEvalReader:
    layout = [given for given in FileFormat(**how).given if not given.startswith("encoding=")]
    layout += ["columns="] if columns is not None else []
    layout += [f"split={split!r}"] if split is not None else []
    if layout:
        raise ValueError(
            f"{folder} is SentEval's, whose files have a layout of their own and no columns to choose: leave "
            f"{' and '.join(layout)} out"
        )
    return SentEvalReader(**how)


def sts_scores(results: Mapping[str, float]) -> dict[str, float]:
    """A row of the paper's table: Spearman × 100 by task, and the average, as :func:`sts_evaluators` measures them.

    Example:
        >>> results = {f"{task}_spearman_cosine": 0.5 for task in STS_TASKS}
        >>> sts_scores(results)["Avg."]
        50.0
    """
    scores = {task: 100 * results[key] for task in STS_TASKS if (key := f"{task}_spearman_cosine") in results}
    return scores | {"Avg.": sum(scores.values()) / len(scores)}


def mteb_scores(model: SentenceTransformer, language: str = "eng") -> dict[str, float]:
    """The STS tasks of a language as MTEB computes them, with the data that the package mteb downloads.

    Args:
        model: the model.
        language: ``eng``, the same row as :func:`sts_scores` (its SICK-R has all splits), or ``zho``, the seven Chinese
            STS tasks of C-MTEB (the benchmark ``MTEB(cmn, v1)``) on the splits that it has chosen.

    Raises:
        ImportError: without the package mteb.
        ValueError: for another language.
    """
    if language not in MTEB_LANGUAGES:
        raise ValueError(f"no STS tasks of MTEB are known here for {language!r}: choose {' or '.join(MTEB_LANGUAGES)}")
    try:
        import mteb
    except ImportError as error:
        raise ImportError('MTEB needs its package: pip install "st_simcse[mteb]"') from error

    names = MTEB_LANGUAGES[language]
    if language == "eng":
        tasks = list(mteb.get_tasks(tasks=list(names.values()), languages=[language]))
    else:
        benchmark = mteb.get_benchmark("MTEB(cmn, v1)")
        tasks = [task for task in benchmark.tasks if task.metadata.name in names.values()]
    results = {result.task_name: result for result in mteb.evaluate(model, tasks, cache=None).task_results}
    scores = {task: 100 * results[name].get_score() for task, name in names.items()}
    return scores | {"Avg.": sum(scores.values()) / len(scores)}
