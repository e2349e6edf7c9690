"""What the losses borrow of sentence-transformers' own machinery; the only file that imports its private names."""

from __future__ import annotations

import sentence_transformers
from sentence_transformers import SentenceTransformer

try:
    from sentence_transformers.base.losses import CachedLossMixin, RandContext, has_static_embedding_input
    from sentence_transformers.base.losses.merged_forward import _chunked_outputs as chunked_outputs
    from sentence_transformers.base.losses.merged_forward import merge_feature_batches
except ImportError as error:
    raise ImportError(
        f"st_simcse shares the embedding of batches with sentence-transformers' own losses, and release "
        f"{sentence_transformers.__version__} does not have it where it is known to be ({error}): install "
        "sentence-transformers 6.2, or a newer st_simcse"
    ) from error

__all__ = [
    "CachedLossMixin",
    "RandContext",
    "chunked_outputs",
    "has_static_embedding_input",
    "merge_feature_batches",
    "trained_dimension",
]


def trained_dimension(model: SentenceTransformer) -> int:
    """The width of the embeddings in training, which ``truncate_dim`` does not cut.

    Raises:
        ValueError: if none of the model's modules knows it.
    """
    with model.truncate_embeddings(None):
        dimension = model.get_embedding_dimension()
    if dimension is None:
        raise ValueError(
            "a projection head and a queue need to know how wide the embeddings are: give the model's last module a "
            "method get_embedding_dimension"
        )
    return dimension
