"""The README that ST writes into a saved model's folder, without texts of the data unless they are asked for."""

from __future__ import annotations

from typing import Any

from sentence_transformers.sentence_transformer.model_card import SentenceTransformerModelCardCallback

__all__ = ["ModelCardCallback"]


class ModelCardCallback(SentenceTransformerModelCardCallback):
    """As ST's; but a model goes to others, and its training data may not.

    ST's shows some twenty texts of the training data: as samples of the data, as examples for the hub's widget, and in
    the code that shows how the model is used. ``args.texts_in_model_card`` lets it.
    """

    def on_init_end(self, args: Any, *others: Any, **kwargs: Any) -> None:
        if getattr(args, "texts_in_model_card", False):
            super().on_init_end(args, *others, **kwargs)
            return
        card = kwargs["model"].model_card_data
        given = card.widget
        card.widget = given or [{}]  # ST takes texts of the data where there are none
        super().on_init_end(args, *others, **kwargs)
        card.widget = given
        for dataset in (*card.train_datasets, *card.eval_datasets):
            for key in ("examples", "examples_table"):
                dataset.pop(key, None)
