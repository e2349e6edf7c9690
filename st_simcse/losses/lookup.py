"""A shared vocabulary lookup, so that one gradient of the vocabulary's size serves all forward passes of a batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.utils import has_compiled_regions
from torch import Tensor, nn

from st_simcse.models.unwrapping import unwrapped

__all__ = ["looked_up_once"]


@contextmanager
def looked_up_once(model: nn.Module, token_ids: Tensor) -> Iterator[None]:
    """Looks up the embeddings of these tokens once, for all forward passes inside the ``with`` block.

    The gradient of a lookup is as large as the vocabulary and almost everywhere zero, so it is computed once per batch.
    Forward passes are left unchanged if gradients are disabled, if the model is compiled, and if the vocabulary is
    frozen, sharded, not exactly an ``nn.Embedding``, or has hooks, ``scale_grad_by_freq``, ``sparse`` or ``max_norm``.

    Args:
        model: A SentenceTransformer, or a wrapper around one.
        token_ids: Integers of any shape. The model may also look up other tokens.

    Example:
        >>> from st_simcse.demo import tiny_model
        >>> model = tiny_model(["Two dogs run."])
        >>> features = model.preprocess(["Two dogs run."])
        >>> with looked_up_once(model, features["input_ids"]):
        ...     embedding = model(features)["sentence_embedding"]
        >>> torch.equal(embedding[0], model.encode("Two dogs run.", convert_to_tensor=True))
        True
    """
    table = _trained_table(model) if torch.is_grad_enabled() else None
    if table is None or token_ids.max() >= table.num_embeddings:  # a Router may have ids of another tokenizer
        yield
        return
    known = torch.unique(token_ids)
    rows = table(known)

    def take(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        if not inputs:  # the ids were passed by keyword
            return output
        places = torch.searchsorted(known, inputs[0].contiguous()).clamp_(max=len(known) - 1)
        return F.embedding(places, rows) if torch.equal(known[places], inputs[0]) else output

    handle = table.register_forward_hook(take)
    try:
        yield
    finally:
        handle.remove()


def _trained_table(model: nn.Module) -> nn.Embedding | None:
    is_compiled = any(part._compiled_call_impl is not None for part in model.modules())
    if is_compiled or has_compiled_regions(model):
        return None
    transformer = unwrapped(model).transformers_model
    try:
        table = transformer.get_input_embeddings()
    except (AttributeError, NotImplementedError):  # there is no transformer, or it does not expose its embeddings
        return None
    # Sharded weights have another type, and a subclass may do more than look up, for example apply dropout.
    if type(table) is not nn.Embedding or type(table.weight) is not nn.Parameter or "forward" in vars(table):
        return None
    # Hooks, for example for noise, and these settings apply to each occurrence of a token.
    hooks = (table._forward_pre_hooks, table._forward_hooks, table._backward_pre_hooks, table._backward_hooks)
    counts = table.scale_grad_by_freq or table.sparse or table.max_norm is not None
    return None if any(hooks) or counts or not table.weight.requires_grad else table
