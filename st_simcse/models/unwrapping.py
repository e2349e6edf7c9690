"""A module without what trains it in several processes or compiled."""

from __future__ import annotations

from typing import Any

from accelerate.utils import extract_model_from_parallel
from torch import nn

__all__ = ["unwrapped"]


def unwrapped(module: nn.Module) -> Any:
    """The module inside DistributedDataParallel, FSDP, DeepSpeed or torch.compile; any other module as it is.

    The wrappers pass on its methods and attributes, but they have no ``model[0]``, and are no SentenceTransformer.

    Example:
        >>> import torch
        >>> unwrapped(torch.compile(nn.Linear(2, 1)))
        Linear(in_features=2, out_features=1, bias=True)
    """
    return extract_model_from_parallel(module, keep_torch_compile=False)
