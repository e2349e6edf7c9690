"""The token embeddings of a batch, looked up once for all of its forward passes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.utils import extract_model_from_parallel, has_compiled_regions, is_compiled_module
from torch import Tensor, nn

__all__ = ["looked_up_once"]


@contextmanager
def looked_up_once(model: nn.Module, token_ids: Tensor) -> Iterator[None]:
    """While it is open, the model takes the embeddings of these tokens from one lookup.

    The gradient of a lookup is as large as the whole vocabulary, and zeros nearly everywhere: one a batch is enough.
    A vocabulary that is frozen or sharded, and a compiled model, are left alone.

    Args:
        model: a SentenceTransformer, or what wraps one.
        token_ids: integers of any shape; others that the model looks up are no error.

    Example:
        >>> from st_simcse.demo import tiny_model
        >>> model = tiny_model(["Two dogs run."])
        >>> features = model.preprocess(["Two dogs run."])
        >>> with looked_up_once(model, features["input_ids"]):
        ...     embedding = model(features)["sentence_embedding"]
        >>> torch.equal(embedding[0], model.encode("Two dogs run.", convert_to_tensor=True))
        True
    """
    table = _trained_table(model)
    if table is None:
        yield
        return
    known = torch.unique(token_ids)
    rows = table(known)

    def take(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        places = torch.searchsorted(known, inputs[0].contiguous()).clamp_(max=len(known) - 1)
        return F.embedding(places, rows) if torch.equal(known[places], inputs[0]) else output

    handle = table.register_forward_hook(take)
    try:
        yield
    finally:
        handle.remove()


def _trained_table(model: nn.Module) -> nn.Embedding | None:
    if is_compiled_module(model) or has_compiled_regions(model):
        return None
    transformer = extract_model_from_parallel(model).transformers_model
    table = transformer.get_input_embeddings() if hasattr(transformer, "get_input_embeddings") else None
    # What is sharded has weights of another type.
    is_trained = isinstance(table, nn.Embedding) and type(table.weight) is nn.Parameter and table.weight.requires_grad
    return table if is_trained else None
