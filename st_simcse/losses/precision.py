"""The precision of a model's forward pass, for computations outside the model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from st_simcse.models.precision import HALF

__all__ = ["ObservedPrecision"]


class ObservedPrecision:
    """The autocast settings of a module's last forward pass.

    In mixed precision, accelerate wraps only the model's forward pass in autocast, and not the rest of a loss. This
    class records the autocast settings that the model's first module runs under, and applies them elsewhere.

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
        """Starts to record the settings of a module whose input is a dict with tensors."""
        if module is not self.module:
            module.register_forward_pre_hook(self._note)
            self.module = module

    def autocast(self) -> torch.autocast:
        """Returns an autocast context with the recorded precision. Half-precision weights count as autocast."""
        return torch.autocast(**self.options)

    def _note(self, module: nn.Module, inputs: tuple[dict[str, Any], ...]) -> None:
        device = next(value.device.type for value in inputs[0].values() if isinstance(value, Tensor))
        weights = next((parameter.dtype for parameter in module.parameters()), torch.float32)
        if torch.is_autocast_enabled(device):
            self.options = {"device_type": device, "dtype": torch.get_autocast_dtype(device)}
        elif weights in HALF:
            self.options = {"device_type": device, "dtype": weights}
        else:
            self.options = {"device_type": device, "enabled": False}
