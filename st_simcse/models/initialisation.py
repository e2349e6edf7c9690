"""Initialization of new layers, as in BERT."""

from __future__ import annotations

from torch import nn

__all__ = ["initialise"]


def initialise(linear: nn.Linear) -> None:
    """Draws weights from N(0, 0.02) and zeroes the bias, as BERT does and the paper's code does for every new layer.

    Example:
        >>> linear = nn.Linear(8, 8)
        >>> initialise(linear)
        >>> linear.bias.abs().sum().item()
        0.0
    """
    nn.init.normal_(linear.weight, std=0.02)
    nn.init.zeros_(linear.bias)
