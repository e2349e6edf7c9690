"""The paper's evaluation as ST evaluators: the seven STS tasks and their table, alignment and uniformity."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.evaluation import BaseEvaluator
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator, SequentialEvaluator

from st_simcse.data import SentEvalReader, senteval_tasks
from st_simcse.objective import alignment, uniformity
from st_simcse.readers import load_sts, sts_evaluator

__all__ = ["AlignmentUniformityEvaluator", "format_table", "mteb_scores", "sts_evaluators", "sts_scores"]

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


def sts_evaluators(folder: str | os.PathLike[str], batch_size: int = 64) -> SequentialEvaluator:
    """The seven STS tasks as one evaluator whose main score is their average.

    Each task is Spearman's correlation over all its pairs at once: the "all" setting of the paper (appendix on the STS
    evaluation protocol), in which a task's subsets are concatenated.

    Args:
        folder: holds STS12.tsv to STS16.tsv, STSB-test.tsv and SICKR-test.tsv with the columns sentence1, sentence2,
            score; or SentEval's own data as :func:`~st_simcse.data.senteval_tasks` finds it, in which pairs without
            a gold score are left out, counted and logged.
        batch_size: sentences a forward pass.

    Returns:
        An evaluator; called with a model it gives ``{"STS12_spearman_cosine": ..., ..., "sequential_score": ...}``.

    Raises:
        FileNotFoundError: naming the tasks that the folder lacks.
        ValueError: for a file that cannot be read, as :func:`~st_simcse.load_sts` raises it.

    Example:
        ::

            results = sts_evaluators("sts")(model)
            print(format_table({"my model": sts_scores(results)}))
    """
    paths = {task: Path(folder, f"{stem}.tsv") for task, stem in STS_TASKS.items()}
    senteval = {} if paths["STS12"].exists() else senteval_tasks(folder)
    paths = senteval or paths
    if missing := [path.name for path in paths.values() if not path.exists()]:
        raise FileNotFoundError(
            f"{folder} lacks {', '.join(missing)}" + ("" if senteval else ", and has no STS/STS12-en-test of SentEval")
        )
    evaluators = [
        sts_evaluator(SentEvalReader(), path, task, batch_size=batch_size)
        if senteval
        else load_sts(path, name=task, batch_size=batch_size)
        for task, path in paths.items()
    ]
    return SequentialEvaluator(evaluators, main_score_function=lambda scores: sum(scores) / len(scores))


def sts_scores(results: Mapping[str, float]) -> dict[str, float]:
    """A row of the paper's table: Spearman × 100 by task, and the average, from what :func:`sts_evaluators` returned.

    Example:
        >>> results = {f"{task}_spearman_cosine": 0.5 for task in STS_TASKS}
        >>> sts_scores(results)["Avg."]
        50.0
    """
    scores = {task: 100 * results[f"{task}_spearman_cosine"] for task in STS_TASKS}
    return scores | {"Avg.": sum(scores.values()) / len(scores)}


def mteb_scores(model: SentenceTransformer) -> dict[str, float]:
    """The same row as MTEB computes it, with the data that the package mteb downloads. Its SICK-R has all splits.

    Raises:
        ImportError: without the package mteb.
    """
    try:
        import mteb
    except ImportError as error:
        raise ImportError('MTEB needs its package: pip install "st_simcse[mteb]"') from error

    tasks = mteb.get_tasks(tasks=list(MTEB_TASKS.values()), languages=["eng"])
    results = {result.task_name: result for result in mteb.evaluate(model, tasks, cache=None).task_results}
    scores = {task: 100 * results[name].get_score() for task, name in MTEB_TASKS.items()}
    return scores | {"Avg.": sum(scores.values()) / len(scores)}


def format_table(rows: Mapping[str, Mapping[str, float]], corner: str = "model") -> str:
    """Rows of numbers by name as a Markdown table with two decimals; a ``|`` in a name is escaped.

    Args:
        rows: numbers by row and column, the same columns in every row.
        corner: what stands above the names.

    Example:
        >>> print(format_table({"half": {"STS-B": 50.0, "Avg.": 50.0}}))
        | model | STS-B | Avg. |
        | --- | --- | --- |
        | half | 50.00 | 50.00 |
    """
    header = [corner, *next(iter(rows.values()))]
    cells = [header, ["---"] * len(header)]
    cells += [[name, *(f"{value:.2f}" for value in row.values())] for name, row in rows.items()]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in cells)


def check_defined(rows: Mapping[str, Mapping[str, float]]) -> None:
    """ValueError that names the rows and columns without a correlation: those that are nan.

    Example:
        >>> check_defined({"collapsed": {"STS-B": math.nan}})
        Traceback (most recent call last):
        ...
        ValueError: no correlation for collapsed on STS-B: the embeddings hold NaN, or all similarities are equal
    """
    undefined = [
        f"{name} on {', '.join(columns)}"
        for name, row in rows.items()
        if (columns := [column for column, value in row.items() if math.isnan(value)])
    ]
    if undefined:
        raise ValueError(
            f"no correlation for {'; '.join(undefined)}: the embeddings hold NaN, or all similarities are equal"
        )


class AlignmentUniformityEvaluator(BaseEvaluator):
    """Alignment and uniformity of a model on scored pairs: equations 2 and 3 of the paper, for both less is better.

    Positive pairs are those with a score above ``positive_threshold``; uniformity is over all sentences.

    Args:
        sentences1: first sentences of the pairs.
        sentences2: second sentences.
        scores: their similarities; on the scale of the STS benchmark, 0 to 5, for the default threshold.
        name: prefix of the metrics, ``{name}_alignment`` and ``{name}_uniformity``.
        batch_size: sentences a forward pass.
        positive_threshold: the paper's is 4.
        write_csv: append the numbers to ``alignment_uniformity_{name}_results.csv`` in the output folder.

    Raises:
        ValueError: if no pair is scored above the threshold.

    Example:
        >>> from st_simcse.demo import tiny_model
        >>> pairs = ["A dog runs.", "A cat sleeps."], ["A hound runs.", "A train stops."], [4.8, 0.2]
        >>> evaluator = AlignmentUniformityEvaluator(*pairs, name="dev")
        >>> sorted(evaluator(tiny_model(["A dog runs."])))
        ['dev_alignment', 'dev_uniformity']
    """

    def __init__(
        self,
        sentences1: Sequence[str],
        sentences2: Sequence[str],
        scores: Sequence[float],
        name: str = "",
        batch_size: int = 64,
        positive_threshold: float = 4.0,
        write_csv: bool = True,
    ) -> None:
        super().__init__()
        self.positives = [index for index, score in enumerate(scores) if score > positive_threshold]
        if not self.positives:
            raise ValueError(
                f"no pair is scored above {positive_threshold}: pass a positive_threshold on the scale of these scores"
            )
        self.sentences1, self.sentences2 = list(sentences1), list(sentences2)
        self.name = name
        self.batch_size = batch_size
        self.write_csv = write_csv
        self.csv_file = f"alignment_uniformity{'_' + name if name else ''}_results.csv"
        self.greater_is_better = False
        self.primary_metric = "uniformity"

    @classmethod
    def from_sts(cls, evaluator: EmbeddingSimilarityEvaluator, **options: Any) -> AlignmentUniformityEvaluator:
        """The evaluator on the pairs of another, such as :func:`~st_simcse.load_sts` makes."""
        options = {"name": evaluator.name, "batch_size": evaluator.batch_size} | options
        return cls(evaluator.sentences1, evaluator.sentences2, evaluator.scores, **options)

    def __call__(
        self, model: SentenceTransformer, output_path: str | None = None, epoch: int = -1, steps: int = -1
    ) -> dict[str, float]:
        texts = list(dict.fromkeys(self.sentences1 + self.sentences2))
        rows = {text: row for row, text in enumerate(texts)}
        embeddings = model.encode(texts, batch_size=self.batch_size, convert_to_tensor=True, show_progress_bar=False)
        first, second = (
            embeddings[[rows[side[index]] for index in self.positives]] for side in (self.sentences1, self.sentences2)
        )
        metrics = {"alignment": float(alignment(first, second)), "uniformity": float(uniformity(embeddings))}
        if output_path is not None and self.write_csv:
            path = Path(output_path, self.csv_file)
            path.parent.mkdir(parents=True, exist_ok=True)
            is_new = not path.exists()
            with path.open("a", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerows([["epoch", "steps", *metrics]] * is_new + [[epoch, steps, *metrics.values()]])
        metrics = self.prefix_name_to_metrics(metrics, self.name)
        self.store_metrics_in_model_card_data(model, metrics, epoch, steps)
        return metrics
