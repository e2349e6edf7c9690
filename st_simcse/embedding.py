"""What the losses borrow of sentence-transformers' own machinery; the only file that imports its private names."""

from __future__ import annotations

from sentence_transformers.base.losses.gradcache import CachedLossMixin, RandContext, has_static_embedding_input
from sentence_transformers.base.losses.merged_forward import _chunked_outputs as chunked_outputs
from sentence_transformers.base.losses.merged_forward import merge_feature_batches

__all__ = ["CachedLossMixin", "RandContext", "chunked_outputs", "has_static_embedding_input", "merge_feature_batches"]
