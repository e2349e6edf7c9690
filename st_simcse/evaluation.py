"""The seven STS tasks of the paper as ST evaluators, in the "all" setting, and their table."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from sentence_transformers.sentence_transformer.evaluation import SequentialEvaluator

from st_simcse.readers import load_sts

__all__ = ["format_sts_table", "sts_evaluators"]

STS_TASKS = {
    "STS12": "STS12",
    "STS13": "STS13",
    "STS14": "STS14",
    "STS15": "STS15",
    "STS16": "STS16",
    "STS-B": "STSB-test",
    "SICK-R": "SICKR-test",
}


def sts_evaluators(folder: str | os.PathLike[str], batch_size: int = 64) -> SequentialEvaluator:
    """The seven STS tasks as one evaluator whose main score is their average.

    Each task is Spearman's correlation over all its pairs at once: the "all" setting of the paper (appendix on the STS
    evaluation protocol), in which a task's subsets are concatenated.

    Args:
        folder: holds STS12.tsv to STS16.tsv, STSB-test.tsv and SICKR-test.tsv with the columns sentence1, sentence2,
            score.
        batch_size: sentences a forward pass.

    Returns:
        An evaluator; called with a model it gives ``{"STS12_spearman_cosine": ..., ..., "sequential_score": ...}``.

    Raises:
        FileNotFoundError: naming the tasks that the folder lacks.
        ValueError: for a file that :func:`~st_simcse.load_sts` cannot read.

    Example:
        ::

            results = sts_evaluators("sts")(model)
            print(format_sts_table({"my model": results}))
    """
    paths = {task: Path(folder, f"{stem}.tsv") for task, stem in STS_TASKS.items()}
    if missing := [path.name for path in paths.values() if not path.exists()]:
        raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}")
    evaluators = [load_sts(path, name=task, batch_size=batch_size) for task, path in paths.items()]
    return SequentialEvaluator(evaluators, main_score_function=lambda scores: sum(scores) / len(scores))


def format_sts_table(results: Mapping[str, Mapping[str, float]]) -> str:
    """The paper's table as Markdown: a row a model, Spearman times 100, and the average.

    Args:
        results: what :func:`sts_evaluators` returned, by model name.

    Example:
        >>> scores = {f"{task}_spearman_cosine": 0.5 for task in STS_TASKS}
        >>> print(format_sts_table({"half": scores | {"sequential_score": 0.5}}))
        | model | STS12 | STS13 | STS14 | STS15 | STS16 | STS-B | SICK-R | Avg. |
        | --- | --- | --- | --- | --- | --- | --- | --- | --- |
        | half | 50.00 | 50.00 | 50.00 | 50.00 | 50.00 | 50.00 | 50.00 | 50.00 |
    """
    rows = [["model", *STS_TASKS, "Avg."], ["---"] * (len(STS_TASKS) + 2)]
    for model, scores in results.items():
        values = [scores[f"{task}_spearman_cosine"] for task in STS_TASKS] + [scores["sequential_score"]]
        rows.append([model, *(f"{100 * value:.2f}" for value in values)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
