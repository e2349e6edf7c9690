"""Everything that the losses use from sentence-transformers' internals. Only this file imports its private names."""

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
        f"st_simcse embeds batches with internal functions of sentence-transformers' losses, and release "
        f"{sentence_transformers.__version__} does not have them in the expected place ({error}). Install "
        "sentence-transformers 6.2, or a newer st_simcse."
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
