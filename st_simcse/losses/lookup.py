"""One gradient of the vocabulary's size for all forward passes of a batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.utils import has_compiled_regions, is_compiled_module
from torch import Tensor, nn

from st_simcse.models.unwrapping import unwrapped

__all__ = ["looked_up_once"]


@contextmanager
def looked_up_once(model: nn.Module, token_ids: Tensor) -> Iterator[None]:
    """While it is open, the embeddings of these tokens come from one lookup, and their gradient is computed once.

    The gradient of a lookup is as large as the whole vocabulary, and zeros nearly everywhere: one a batch is enough.
    A vocabulary is left alone if it is frozen, sharded, or of another class than ``nn.Embedding``, and if it has hooks,
    ``scale_grad_by_freq``, ``sparse`` or ``max_norm``. So is a compiled model, and all where no gradients are computed.

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
    table = _trained_table(model) if torch.is_grad_enabled() else None
    if table is None or token_ids.max() >= table.num_embeddings:  # ids of another tokenizer of a Router
        yield
        return
    known = torch.unique(token_ids)
    rows = table(known)

    def take(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        if not inputs:  # given by keyword
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
    if is_compiled or is_compiled_module(model) or has_compiled_regions(model):
        return None
    transformer = unwrapped(model).transformers_model
    try:
        table = transformer.get_input_embeddings()
    except (AttributeError, NotImplementedError):  # no transformer, or one that does not say
        return None
    # What is sharded has weights of another type, and a subclass may do more than look up, such as drop out.
    if type(table) is not nn.Embedding or type(table.weight) is not nn.Parameter or "forward" in vars(table):
        return None
    # A hook, such as one that adds noise, is for every place of a text, and so are these options.
    hooks = (table._forward_pre_hooks, table._forward_hooks, table._backward_pre_hooks, table._backward_hooks)
    counts = table.scale_grad_by_freq or table.sparse or table.max_norm is not None
    return None if any(hooks) or counts or not table.weight.requires_grad else table
