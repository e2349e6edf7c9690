"""The projection head: trains with the loss and is left behind at inference."""

from __future__ import annotations

from torch import Tensor, nn

from st_simcse.initialisation import initialise

__all__ = ["ProjectionHead"]


class ProjectionHead(nn.Module):
    """Linear + Tanh on top of the sentence embedding: the MLP of the paper's ablation on pooling, section 6.3.

    Owned by a loss, it is trained by the same optimizer but is no part of the saved model, which is the paper's best
    unsupervised setting ("MLP in training only").

    Args:
        dimension: width d of the embeddings.

    Shape:
        (B, d) to (B, d), in the dtype of its parameters.

    Example:
        >>> import torch
        >>> ProjectionHead(8)(torch.zeros(2, 8)).shape
        torch.Size([2, 8])
    """

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.dense = nn.Linear(dimension, dimension)
        self.activation = nn.Tanh()
        initialise(self.dense)

    def forward(self, embeddings: Tensor) -> Tensor:
        projected: Tensor = self.activation(self.dense(embeddings.to(self.dense.weight.dtype)))
        return projected
