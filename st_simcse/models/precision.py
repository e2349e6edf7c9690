"""The precision of a model's computations, and whether the hardware is faster in bf16."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch

__all__ = ["HALF", "Precision", "computes_in_bf16", "computing_in", "resolved"]

Precision = Literal["auto", "float32", "bfloat16", "float16"]
HALF = (torch.float16, torch.bfloat16)


def computes_in_bf16(use_cpu: bool) -> bool:
    """Returns whether the device multiplies matrices in bf16 faster than in float32."""
    if not use_cpu and torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return use_cpu and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def resolved(precision: Precision, device: torch.device | None, weights: torch.dtype | None) -> str:
    """Returns the precision that models compute in: ``auto`` is bfloat16 where it is faster, or that of the weights.

    Args:
        precision: As in :func:`computing_in`.
        device: As in :func:`computing_in`, or None if autocast is not used.
        weights: As in :func:`computing_in`.

    Example:
        >>> resolved("auto", torch.device("cpu"), torch.float16), resolved("float32", None, None)
        ('float16', 'float32')
    """
    if precision != "auto":
        return precision
    is_faster = device is not None and _is_faster_in_bf16(device, weights)
    return "bfloat16" if is_faster else str(weights or torch.float32).removeprefix("torch.")


def _is_faster_in_bf16(device: torch.device, weights: torch.dtype | None) -> bool:
    is_known = device.type in ("cpu", "cuda") and weights == torch.float32
    return is_known and computes_in_bf16(use_cpu=device.type == "cpu")


def computing_in(
    precision: Precision, device: torch.device, weights: torch.dtype | None = torch.float32
) -> AbstractContextManager[Any]:
    """Returns a context in which models on the device compute in a precision, by autocast.

    Args:
        precision: ``auto`` is bf16 if the device is faster in it and the weights are float32; otherwise it changes
            nothing. ``float32`` turns autocast off.
        device: The device of the model.
        weights: The dtype of the model's weights.

    Example:
        >>> with computing_in("bfloat16", torch.device("cpu")):
        ...     (torch.ones(1, 1) @ torch.ones(1, 1)).dtype
        torch.bfloat16
    """
    if precision == "float32":
        has_autocast = torch.amp.is_autocast_available(device.type)
        return torch.autocast(device.type, enabled=False) if has_autocast else nullcontext()
    if precision == "auto":
        is_faster = _is_faster_in_bf16(device, weights)
        return torch.autocast(device.type, torch.bfloat16) if is_faster else nullcontext()
    return torch.autocast(device.type, getattr(torch, precision))
