"""Properties of a model: whether its pooling was trained, whether it has dropout, its width and its length."""

from __future__ import annotations

import os
from dataclasses import dataclass

from sentence_transformers import SentenceTransformer

from st_simcse.models.dropout import model_dropout
from st_simcse.models.initialisation import trained_dimension
from st_simcse.models.model_files import cached_file
from st_simcse.models.modeling import PoolingMode, load_pooled
from st_simcse.models.whitening import is_whitened

__all__ = ["ModelProfile", "profile_model"]


@dataclass(frozen=True)
class ModelProfile:
    """The properties that :func:`profile_model` finds.

    Args:
        is_pooled: Whether the model was saved as a SentenceTransformer and still has that pooling.
        has_dropout: Whether dropout is above 0 in training.
        is_whitened: Whether the model ends in a whitening layer. It then cannot be whitened again.
        width: The dimension d of an embedding, which ``truncate_dim`` does not affect.
        reads: The number of tokens of a text that the model reads; None if it has no known limit.

    Example:
        >>> ModelProfile(is_pooled=True, has_dropout=True, is_whitened=False, width=384, reads=256).width
        384
    """

    is_pooled: bool
    has_dropout: bool
    is_whitened: bool
    width: int
    reads: int | None


def profile_model(
    name_or_path: str | os.PathLike[str], pooling: PoolingMode | None = None
) -> tuple[SentenceTransformer, ModelProfile]:
    """Returns the model and its properties.

    Args:
        name_or_path: As in :func:`~st_simcse.build_model`.
        pooling: As in :func:`~st_simcse.build_model`.

    Raises:
        ValueError, OSError: As in :func:`~st_simcse.build_model`. Also if none of the modules defines the width.

    Example:
        >>> profile_model("sentence-transformers/all-MiniLM-L6-v2")[1]
        ModelProfile(is_pooled=True, has_dropout=True, is_whitened=False, width=384, reads=256)
    """
    model = load_pooled(name_or_path, pooling)
    is_pooled = cached_file(name_or_path, "modules.json") is not None
    if is_pooled and pooling is not None:
        saved = load_pooled(name_or_path)
        is_pooled = list(map(repr, list(saved)[1:])) == list(map(repr, list(model)[1:]))
    width = trained_dimension(model)
    has_dropout = any(model_dropout(model).values())
    return model, ModelProfile(is_pooled, has_dropout, is_whitened(model), width, model.max_seq_length)
