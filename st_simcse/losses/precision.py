"""The precision that a model computes in, for what runs beside it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["ObservedPrecision"]


class ObservedPrecision:
    """The autocast that a module last ran under.

    For mixed precision accelerate wraps the forward pass of the model alone, so that nothing else which a loss runs is
    under autocast. This notes what the model's first module sees, and repeats it.

    Example:
        >>> module, precision = nn.Identity(), ObservedPrecision()
        >>> precision.watch(module)
        >>> with torch.autocast("cpu", dtype=torch.bfloat16):
        ...     _ = module({"input_ids": torch.zeros(1, 1)})
        >>> with precision.autocast():
        ...     (torch.ones(1, 1) @ torch.ones(1, 1)).dtype
        torch.bfloat16
    """

    def __init__(self) -> None:
        self.module: nn.Module | None = None
        self.options: dict[str, Any] = {"device_type": "cpu", "enabled": False}

    def watch(self, module: nn.Module) -> None:
        """Observe a module that takes a dict with tensors, from its next forward pass on."""
        if module is not self.module:
            module.register_forward_pre_hook(self._note)
            self.module = module

    def autocast(self) -> torch.autocast:
        """A context with the observed precision; weights in half precision count as autocast to it."""
        return torch.autocast(**self.options)

    def _note(self, module: nn.Module, inputs: tuple[dict[str, Any], ...]) -> None:
        device = next(value.device.type for value in inputs[0].values() if isinstance(value, Tensor))
        weights = next((parameter.dtype for parameter in module.parameters()), torch.float32)
        if torch.is_autocast_enabled(device):
            self.options = {"device_type": device, "dtype": torch.get_autocast_dtype(device)}
        elif weights in (torch.float16, torch.bfloat16):
            self.options = {"device_type": device, "dtype": weights}
        else:
            self.options = {"device_type": device, "enabled": False}
