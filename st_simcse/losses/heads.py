"""The projection head, which is used in training and discarded at inference."""

from __future__ import annotations

from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from st_simcse.models.initialisation import initialise, trained_dimension

__all__ = ["ProjectionHead", "projection_head_of"]


class ProjectionHead(nn.Module):
    """A linear layer and Tanh on top of the sentence embedding: the MLP of the paper's pooling ablation, section 6.3.

    A loss owns the head. It is trained by the same optimizer but is not saved with the model. This is the paper's best
    unsupervised setting ("MLP in training only").

    Args:
        dimension: The width d of the embeddings.

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


def projection_head_of(model: SentenceTransformer) -> ProjectionHead:
    """Returns a new projection head on the model's device, as wide as its embeddings.

    It has the dtype of the trained weights. For example, LoRA's adapters are float32 even if the model is bfloat16.
    """
    dtype = next((weight.dtype for weight in model.parameters() if weight.requires_grad), model.dtype)
    return ProjectionHead(trained_dimension(model)).to(model.device, dtype)
