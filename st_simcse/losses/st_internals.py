"""All that the losses borrow of sentence-transformers' own machinery; the only file that imports its private names."""

from __future__ import annotations

import sentence_transformers

try:
    from sentence_transformers.base.losses import CachedLossMixin, RandContext, has_static_embedding_input
    from sentence_transformers.base.losses.merged_forward import _chunked_outputs as chunked_outputs
    from sentence_transformers.base.losses.merged_forward import merge_feature_batches
    from sentence_transformers.sentence_transformer.losses.adaptive_layer import TransformerDecorator
    from sentence_transformers.sentence_transformer.losses.matryoshka import CachedLossDecorator, ForwardDecorator
except ImportError as error:
    raise ImportError(
        f"st_simcse shares the embedding of batches with sentence-transformers' own losses, and release "
        f"{sentence_transformers.__version__} does not have it where it is known to be ({error}): install "
        "sentence-transformers 6.2, or a newer st_simcse"
    ) from error

__all__ = [
    "CachedLossDecorator",
    "CachedLossMixin",
    "ForwardDecorator",
    "RandContext",
    "TransformerDecorator",
    "chunked_outputs",
    "has_static_embedding_input",
    "merge_feature_batches",
]
