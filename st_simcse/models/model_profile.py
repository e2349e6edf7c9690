"""What a model is: whether its pooling was trained, whether it has dropout, how wide and how long it is."""

from __future__ import annotations

import os
from dataclasses import dataclass

from sentence_transformers import SentenceTransformer

from st_simcse.models.dropout import model_dropout
from st_simcse.models.model_files import cached_file
from st_simcse.models.modeling import PoolingMode, load_pooled
from st_simcse.models.whitening import is_whitened

__all__ = ["ModelProfile", "profile_model"]


@dataclass(frozen=True)
class ModelProfile:
    """What :func:`profile_model` finds.

    Args:
        is_pooled: it was saved as a SentenceTransformer, and embeds as it did then.
        has_dropout: something is dropped in training.
        is_whitened: it ends in a whitening, behind which there can be no other.
        width: d, the dimensions of an embedding.
        reads: tokens of a text that it reads; None if it knows no limit.

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
    """The model, and what it is.

    Args:
        name_or_path: as in :func:`~st_simcse.build_model`.
        pooling: as in :func:`~st_simcse.build_model`.

    Raises:
        ValueError, OSError: as :func:`~st_simcse.build_model`.

    Example:
        >>> profile_model("sentence-transformers/all-MiniLM-L6-v2")[1]
        ModelProfile(is_pooled=True, has_dropout=True, is_whitened=False, width=384, reads=256)
    """
    model = load_pooled(name_or_path, pooling)
    is_pooled = cached_file(name_or_path, "modules.json") is not None
    if is_pooled and pooling is not None:
        saved = load_pooled(name_or_path)
        is_pooled = list(map(repr, list(saved)[1:])) == list(map(repr, list(model)[1:]))
    width = model.get_embedding_dimension()
    assert width is not None
    has_dropout = any(model_dropout(model).values())
    return model, ModelProfile(is_pooled, has_dropout, is_whitened(model), width, model.max_seq_length)
