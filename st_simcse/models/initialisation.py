"""The width of new layers, and their initialization as in BERT."""

from __future__ import annotations

from sentence_transformers import SentenceTransformer
from torch import nn

__all__ = ["initialise", "trained_dimension"]


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


def trained_dimension(model: SentenceTransformer) -> int:
    """Returns the width of the embeddings in training, which ``truncate_dim`` does not affect.

    Raises:
        ValueError: If none of the model's modules defines it.
    """
    with model.truncate_embeddings(None):
        dimension = model.get_embedding_dimension()
    if dimension is None:
        raise ValueError(
            "the width of the embeddings is unknown, but a projection head, an MLP, a queue and adapt need it. Give "
            "the model's last module a method get_embedding_dimension."
        )
    return dimension
