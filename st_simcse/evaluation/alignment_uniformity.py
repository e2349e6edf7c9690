"""Alignment and uniformity of a model's embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator

from st_simcse.evaluation.base import RecordingEvaluator
from st_simcse.objective import alignment, uniformity

__all__ = ["AlignmentUniformityEvaluator"]


class AlignmentUniformityEvaluator(RecordingEvaluator):
    """Alignment and uniformity of a model on scored pairs, equations 2 and 3 of the paper. Lower is better for both.

    The positive pairs are those with a score above ``positive_threshold``. Uniformity is computed over all sentences.

    Args:
        sentences1: The first sentences of the pairs.
        sentences2: The second sentences of the pairs.
        scores: The similarities of the pairs. The default threshold is for the scale of the STS benchmark, 0 to 5.
        name: The prefix of the metrics ``{name}_alignment`` and ``{name}_uniformity``.
        batch_size: The number of sentences per forward pass.
        positive_threshold: The score above which pairs are positive. The paper uses 4.
        write_csv: Whether to append the metrics to ``alignment_uniformity_{name}_results.csv`` in the output folder.

    Raises:
        ValueError: If no pair has a score above the threshold, or if the numbers of sentences and scores differ.

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
        super().__init__("alignment_uniformity", "uniformity", name, batch_size, write_csv)
        if not len(sentences1) == len(sentences2) == len(scores):
            raise ValueError(
                f"got {len(sentences1)} first sentences, {len(sentences2)} second sentences and {len(scores)} scores: "
                "pass one of each for every pair"
            )
        self.positives = [index for index, score in enumerate(scores) if score > positive_threshold]
        if not self.positives:
            raise ValueError(
                f"no pair has a score above {positive_threshold}: pass a positive_threshold that fits the scale of the "
                "scores"
            )
        self.sentences1, self.sentences2 = list(sentences1), list(sentences2)
        self.greater_is_better = False

    @classmethod
    def from_sts(cls, evaluator: EmbeddingSimilarityEvaluator, **options: Any) -> AlignmentUniformityEvaluator:
        """Creates the evaluator from the pairs of another evaluator, such as one from :func:`~st_simcse.load_sts`."""
        given: dict[str, Any] = {"name": evaluator.name, "batch_size": evaluator.batch_size} | options
        return cls(evaluator.sentences1, evaluator.sentences2, evaluator.scores, **given)

    def measure(self, model: SentenceTransformer) -> dict[str, float]:
        texts = list(dict.fromkeys(self.sentences1 + self.sentences2))
        rows = {text: row for row, text in enumerate(texts)}
        embeddings = model.encode(texts, batch_size=self.batch_size, convert_to_tensor=True, show_progress_bar=False)
        first, second = (
            embeddings[[rows[side[index]] for index in self.positives]] for side in (self.sentences1, self.sentences2)
        )
        return {"alignment": float(alignment(first, second)), "uniformity": float(uniformity(embeddings))}
