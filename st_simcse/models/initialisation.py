"""How new layers begin: as BERT's do."""

from __future__ import annotations

from torch import nn

__all__ = ["initialise"]


def initialise(linear: nn.Linear) -> None:
    """Weights from N(0, 0.02), no bias: BERT's own initialisation, which the paper's code gives to every new layer.

    Example:
        >>> linear = nn.Linear(8, 8)
        >>> initialise(linear)
        >>> linear.bias.abs().sum().item()
        0.0
    """
    nn.init.normal_(linear.weight, std=0.02)
    nn.init.zeros_(linear.bias)
