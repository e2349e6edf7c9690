"""Access to a module inside the wrappers of distributed training and compilation."""

from __future__ import annotations

from typing import Any

from accelerate.utils import extract_model_from_parallel
from torch import nn

__all__ = ["unwrapped"]


def unwrapped(module: nn.Module) -> Any:
    """Returns the module inside DistributedDataParallel, FSDP, DeepSpeed or torch.compile, or the module itself.

    The wrappers forward methods and attributes, but they do not support ``model[0]`` and are not SentenceTransformers.

    Example:
        >>> import torch
        >>> unwrapped(torch.compile(nn.Linear(2, 1)))
        Linear(in_features=2, out_features=1, bias=True)
    """
    return extract_model_from_parallel(module, keep_torch_compile=False)
