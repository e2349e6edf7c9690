"""A model that embeds each distinct text once, however often it is asked to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import InputModule
from sentence_transformers.sentence_transformer.modules import Normalize

from st_simcse.models.fast_encode import FastModel, fast_encode
from st_simcse.models.precision import HALF, Precision

__all__ = ["Remembering", "embed_once"]


class _Remembered(InputModule):
    """Embeddings of a model, computed for new texts and remembered."""

    def __init__(self, model: SentenceTransformer, precision: Precision, batch_size: int) -> None:
        super().__init__()
        self.model = fast_encode(model, precision)
        self.batch_size = batch_size
        self.has_tasks = _has_tasks(model)
        self.rows: dict[tuple[Any, ...], int] = {}
        self.embeddings = torch.empty(0)

    @property
    def max_seq_length(self) -> int | None:
        """The model's max_seq_length. Embeddings are remembered for each value."""
        return self.model.max_seq_length

    @max_seq_length.setter
    def max_seq_length(self, limit: int | None) -> None:
        self.model.max_seq_length = limit

    def remember(self, inputs: Sequence[Any], prompt: str | None = None, **options: Any) -> list[int]:
        """Embeds the texts that are new, and returns the row of each text in ``embeddings``."""
        task = options.get("task") if self.has_tasks else None
        keys = [(prompt or "", task, self.max_seq_length, text) for text in inputs]
        new = list(dict.fromkeys(key for key in keys if key not in self.rows))
        if new:
            found = self.model.encode(
                [text for *_, text in new],
                prompt=prompt or "",
                batch_size=self.batch_size,
                show_progress_bar=False,
                convert_to_tensor=True,
                **options,
            )
            if self.model.dtype in HALF:  # the modules after this one compute in it, but fast_encode returns float32
                found = found.to(self.model.dtype)
            self.embeddings = torch.cat([self.embeddings, found]) if self.rows else found
            self.rows.update((key, row) for row, key in enumerate(new, start=len(self.rows)))
        return [self.rows[key] for key in keys]

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **options: Any) -> dict[str, Any]:
        rows = self.remember(inputs, prompt, **options)
        return {"sentence_embedding": self.embeddings[rows]}

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        return features

    def save(self, output_path: str, *args: Any, **options: Any) -> None:
        raise NotImplementedError("this model is for measurements only: save the model that it was made from")


def _has_tasks(model: SentenceTransformer) -> bool:
    """Returns whether queries and documents may have different embeddings: by routes, chat templates or lengths."""
    settings = ("query_length", "document_length", "query_expansion")
    return (
        "task" in model.get_model_kwargs()
        or any(getattr(module, name, None) is not None for module in model.modules() for name in settings)
        or any("message" in getattr(module, "modality_config", ()) for module in model.modules())
    )


class Remembering(SentenceTransformer):
    """A model that passes all texts at once, so that new texts are embedded in batches of similar length."""

    def remember(self, texts: Sequence[str]) -> None:
        """Embeds texts with the default prompt. Later calls of ``encode`` find their embeddings."""
        memory: Any = self[0]
        memory.remember(texts, self.prompts.get(self.default_prompt_name or ""))

    def encode(self, inputs: Any, *args: Any, **options: Any) -> Any:
        """Embeds texts as ``SentenceTransformer.encode`` does, which documents the arguments."""
        if not args and not self.is_singular_input(inputs):
            inputs = list(inputs)
            options["batch_size"] = max(1, len(inputs))
        return super().encode(inputs, *args, **options)


def embed_once(model: SentenceTransformer, precision: Precision = "auto", batch_size: int = 64) -> Remembering:
    """Returns the model with a memory of its embeddings. A whitening of it reuses the embeddings too.

    A ``Normalize`` at the end of the model stays outside of the memory, so :func:`~st_simcse.whiten` can insert its
    layer before it.

    Args:
        model: The model. It is not changed, and must not change any more. If it comes from this function already, the
            new model shares its memory.
        precision, batch_size: As in :func:`~st_simcse.fast_encode`, which embeds the texts. A model from that function
            keeps its precision.

    Example:
        >>> from st_simcse.demo import tiny_model
        >>> model = tiny_model(["A dog runs."])
        >>> embed_once(model).encode("A dog runs.").shape == model.encode("A dog runs.").shape
        True
    """
    modules = list(model)
    ends = modules[-1:] if isinstance(modules[-1], Normalize) else []
    rest = modules[: len(modules) - len(ends)]
    if not isinstance(rest[0], _Remembered):
        alone = SentenceTransformer(modules=rest, device=str(model.device))
        precision = model.compute if precision == "auto" and isinstance(model, FastModel) else precision
        rest = [_Remembered(alone, precision, batch_size)]
    prompts: Any = model.prompts
    return Remembering(
        modules=[*rest, *ends],
        device=str(model.device),
        prompts=prompts,
        default_prompt_name=model.default_prompt_name,
        similarity_fn_name=model.similarity_fn_name,
        truncate_dim=model.truncate_dim,
    )
