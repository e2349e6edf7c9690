"""ST's trainer with the model card and the training length of this package, for SimCSE and for baselines."""

from __future__ import annotations

from typing import Any

from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.base.data_collator import BaseDataCollator

from st_simcse.training.model_card import ModelCardCallback
from st_simcse.training.training_arguments import limit_training_length

__all__ = ["PlainTrainer"]


class PlainTrainer(SentenceTransformerTrainer):
    """A SentenceTransformerTrainer whose model card shows no texts, and that reads no more tokens than the model."""

    model_card_callback_class = ModelCardCallback

    def get_data_collator(
        self, model: SentenceTransformer, args: SentenceTransformerTrainingArguments, *others: Any, **options: Any
    ) -> BaseDataCollator:
        limit_training_length(args, model)
        return super().get_data_collator(model, args, *others, **options)
