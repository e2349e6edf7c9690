"""A model that embeds each different text once, however often it is asked to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import InputModule
from sentence_transformers.sentence_transformer.modules import Normalize

__all__ = ["embed_once"]


class _Remembered(InputModule):
    """The embeddings of a model, computed where they are not known yet."""

    def __init__(self, model: SentenceTransformer) -> None:
        super().__init__()
        self.model = model
        self.has_tasks = "task" in model.get_model_kwargs()
        self.known: dict[tuple[str, Any, str], torch.Tensor] = {}

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **options: Any) -> dict[str, Any]:
        task = options.get("task") if self.has_tasks else None
        keys = [(prompt or "", task, text) for text in inputs]
        new = list(dict.fromkeys(key for key in keys if key not in self.known))
        if new:
            texts = [text for _, _, text in new]
            embeddings = self.model.encode(
                texts,
                prompt=prompt or "",
                batch_size=len(texts),
                show_progress_bar=False,
                convert_to_tensor=True,
                **options,
            )
            self.known.update(zip(new, embeddings, strict=True))
        return {"sentence_embedding": torch.stack([self.known[key] for key in keys])}

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        return features

    def save(self, output_path: str, *args: Any, **options: Any) -> None:
        raise NotImplementedError("this is a model to measure: save the one that it was made of")


def embed_once(model: SentenceTransformer) -> SentenceTransformer:
    """The same model, whose embeddings stay in memory; a whitening of it needs no second embedding either.

    A ``Normalize`` at the end stays behind what is remembered, so that
    :func:`~st_simcse.whiten` puts its layer between them.

    Args:
        model: the model, which stays as it is and must not change any more. One that comes from here already shares
            what it remembers with the new one.

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
        rest = [_Remembered(SentenceTransformer(modules=rest, device=str(model.device)))]
    prompts: Any = model.prompts
    return SentenceTransformer(
        modules=[*rest, *ends],
        device=str(model.device),
        prompts=prompts,
        default_prompt_name=model.default_prompt_name,
        similarity_fn_name=model.similarity_fn_name,
        truncate_dim=model.truncate_dim,
    )
