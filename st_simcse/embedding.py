"""What the losses borrow of sentence-transformers' own machinery; the only file that imports its private names.

What releases before 6.2 lack is made up for here, or refused with a message that says what to do.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import sentence_transformers
import torch
import torch.nn.functional as F
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from st_simcse.distributed import gradients_are_averaged
from st_simcse.own_weights import own_parameters

try:
    from sentence_transformers.base import trainer
    from sentence_transformers.base.losses import (
        CachedLossMixin,
        RandContext,
        gradcache,
        has_static_embedding_input,
    )
    from sentence_transformers.base.losses.gradcache import _create_minibatch, _minibatch_ranges
except ImportError as error:
    raise ImportError(
        f"st_simcse shares the embedding of batches with sentence-transformers' own losses, and release "
        f"{sentence_transformers.__version__} does not have it where it is known to be ({error}): install "
        "sentence-transformers 5.7 to 6.2, or a newer st_simcse"
    ) from error
try:
    from sentence_transformers.base.losses.merged_forward import _chunked_outputs as chunked_outputs
    from sentence_transformers.base.losses.merged_forward import merge_feature_batches
except ImportError:  # before 6.0

    def merge_feature_batches(  # type: ignore[misc]  # as much of it as is used here
        columns: list[dict[str, Any]],
    ) -> dict[str, Any] | None:
        """The rows of all columns as one batch of one width; None if the columns are not alike."""
        first, *others = columns
        if "attention_mask" not in first or any(column.keys() != first.keys() for column in others):
            return None
        width = max(column["attention_mask"].shape[1] for column in columns)
        merged = {}
        for key, value in first.items():
            if all(getattr(column[key], "shape", None) == column["attention_mask"].shape for column in columns):
                merged[key] = torch.cat([F.pad(column[key], (0, width - column[key].shape[1])) for column in columns])
            elif isinstance(value, Tensor) or any(column[key] != value for column in others):
                return None
            else:
                merged[key] = value
        return merged

    def chunked_outputs(  # type: ignore[misc]
        model: nn.Module, features: dict[str, Any], mini_batch_size: int | None, task: None
    ) -> list[dict[str, Any]]:
        """What the model gives for each mini-batch of the rows, or for all of them at once."""
        ranges = _minibatch_ranges(features, mini_batch_size) if mini_batch_size is not None else []
        if len(ranges) < 2:
            return [model(features)]
        return [model(_create_minibatch(features, begin, end)) for begin, end in ranges]


__all__ = [
    "GradientCache",
    "RandContext",
    "chunked_outputs",
    "has_static_embedding_input",
    "merge_feature_batches",
    "refuse_stale_gradients",
    "trained_dimension",
]

# Both since 6.2.
CLEARS_LOSS_GRADIENTS = hasattr(trainer, "_OptimizerZeroGradCallback")
SYNCHRONIZES_ONCE = hasattr(gradcache, "_ddp_replay_context")


class GradientCache(CachedLossMixin):
    """ST's gradient caching, whose gradients processes exchange once a step, after the last mini-batch.

    Exchanged after each, processes with different numbers of mini-batches would wait for each other forever.
    """

    if not SYNCHRONIZES_ONCE:

        def embed_minibatch_iter(
            self, *args: Any, with_grad: bool, ranges: list[tuple[int, int]], **kwargs: Any
        ) -> Iterator[tuple[Tensor, RandContext | None]]:
            options: Any = {"with_grad": with_grad, "ranges": ranges, **kwargs}
            minibatches = super().embed_minibatch_iter(*args, **options)
            model = getattr(self.model, "_orig_mod", self.model)
            if not (with_grad and isinstance(model, DistributedDataParallel) and model.require_backward_grad_sync):
                yield from minibatches
                return
            try:
                for index in range(len(ranges)):
                    model.require_backward_grad_sync = index == len(ranges) - 1
                    yield next(minibatches)
            finally:
                model.require_backward_grad_sync = True


def refuse_stale_gradients(loss: nn.Module) -> None:
    """Before ST 6.2 its trainer clears the gradients of the model alone, not those of a loss's own weights.

    Raises:
        ValueError: if the loss's own weights have gradients left from a step before, which would be added up.
    """
    if CLEARS_LOSS_GRADIENTS or gradients_are_averaged():
        return
    model: Any = loss.model
    cleared = all(parameter.grad is None for parameter in model.parameters())
    if cleared and any(parameter.grad is not None for parameter in own_parameters(loss, model)):
        raise ValueError(
            "the gradients of the model have been cleared, but not those of the loss's own weights, such as a "
            "projection head's: train with SimCSETrainer, which clears them, or install sentence-transformers 6.2, "
            "whose trainer does; in a loop of your own call zero_grad on the optimizer or the loss"
        )


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
