"""The base class of the evaluators, which records metrics in a csv file and in the model card like ST's evaluators."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.evaluation import BaseEvaluator

from st_simcse.evaluation.table import append_row

__all__ = ["RecordingEvaluator"]


class RecordingEvaluator(BaseEvaluator):
    """An evaluator that computes metrics of a model and records them."""

    def __init__(self, kind: str, primary_metric: str, name: str, batch_size: int, write_csv: bool) -> None:
        super().__init__()
        # ST adds the name only to a metric that does not begin with it, so not to dev_accuracy of the evaluator "dev".
        self.primary_metric = f"{name}_{primary_metric}" if name else primary_metric
        self.name = name
        self.batch_size = batch_size
        self.write_csv = write_csv
        self.csv_file = f"{kind}_{name}_results.csv" if name else f"{kind}_results.csv"

    @abstractmethod
    def measure(self, model: SentenceTransformer) -> dict[str, float]:
        """Returns the metrics of a model, without the evaluator's name."""

    def __call__(
        self, model: SentenceTransformer, output_path: str | None = None, epoch: int = -1, steps: int = -1
    ) -> dict[str, float]:
        metrics = self.measure(model)
        if output_path is not None and self.write_csv:
            append_row(Path(output_path, self.csv_file), {"epoch": epoch, "steps": steps, **metrics})
        metrics = self.prefix_name_to_metrics(metrics, self.name)
        self.store_metrics_in_model_card_data(model, metrics, epoch, steps)
        return metrics
