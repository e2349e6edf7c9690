"""What our evaluators have in common: metrics under a name, in a csv file and in the model card, as ST's have them."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.evaluation import BaseEvaluator

from st_simcse.evaluation.table import append_row

__all__ = ["RecordingEvaluator"]


class RecordingEvaluator(BaseEvaluator):
    """An evaluator that measures, and records what it measured."""

    name: str
    write_csv: bool
    csv_file: str

    @abstractmethod
    def measure(self, model: SentenceTransformer) -> dict[str, float]:
        """The metrics of a model, without the evaluator's name."""

    def __call__(
        self, model: SentenceTransformer, output_path: str | None = None, epoch: int = -1, steps: int = -1
    ) -> dict[str, float]:
        metrics = self.measure(model)
        if output_path is not None and self.write_csv:
            append_row(Path(output_path, self.csv_file), {"epoch": epoch, "steps": steps, **metrics})
        metrics = self.prefix_name_to_metrics(metrics, self.name)
        self.store_metrics_in_model_card_data(model, metrics, epoch, steps)
        return metrics
