"""The unsupervised and the supervised loss of SimCSE."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from st_simcse.data.duplicates import text_keys
from st_simcse.losses.base import SimCSELoss
from st_simcse.models.dropout import dropout_remedy

__all__ = ["SupSimCSELoss", "UnsupSimCSELoss", "simcse_losses"]

logger = logging.getLogger(__name__)


class UnsupSimCSELoss(SimCSELoss):
    """Unsupervised SimCSE: a sentence and itself under another dropout mask are a positive pair (paper, equation 4).

    Args:
        model: The SentenceTransformer to train. Its dropout must be active, because it is the only augmentation.
        temperature: The softmax temperature τ > 0. ST's ``scale`` is 1/τ.
        options: Additions to the objective, at most one of each class; ``st_simcse.losses.OPTIONS`` lists the classes.
            Edits of the logits are applied in the given order.
        symmetric: If True, both views are anchors, and each is compared with the 2B - 1 other rows. If False, the first
            views are compared with the B second views, as in the paper.
        directions, partition_mode: Further comparisons, as in ST's MultipleNegativesRankingLoss; see
            :class:`~st_simcse.objective.Comparison`.
        projection_head: ``True`` trains a :class:`~st_simcse.ProjectionHead` together with the model ("MLP in training
            only", the paper's best setting for CLS pooling). You can also pass your own module, (B, d) to (B, d'). The
            head is not saved with the model.
        mini_batch_size: The number of rows to embed at a time with gradient caching. Memory then does not grow with the
            batch size. The gradients are the same, and every view keeps its own dropout mask.
        gather_across_devices: Whether the rows of all processes are negatives of each other, with gradients to all.
        mask_duplicates: Whether to exclude other rows with the same text from the negatives. Texts are compared by
            their tokens. If the processes' rows are gathered, duplicates are found in all of them.

    Inputs:
        +--------------------------------------------+--------+
        | Texts                                      | Labels |
        +============================================+========+
        | one column: the loss makes the two views   | none   |
        +--------------------------------------------+--------+
        | two identical columns (doubled sentences)  | none   |
        +--------------------------------------------+--------+

        A single column is tokenized once, and its views are embedded in one forward pass over 2B rows.

    Raises:
        ValueError: If the model is a SparseEncoder, the temperature or mini_batch_size is out of range, or options
            cannot be combined. ``forward`` raises it for three columns or more and for NaN or infinite embeddings.

    Example:
        >>> from st_simcse import build_model
        >>> model = build_model("bert-base-uncased", pooling="cls").train()
        >>> loss = UnsupSimCSELoss(model, projection_head=True)  # pass it to a trainer as loss=
        >>> loss([model.preprocess(["It's nice weather outside today.", "He drove to work."])]).backward()
        >>> bool(loss.projection_head.dense.weight.grad.any())
        True
    """

    name = "UnsupSimCSELoss"
    compares_views = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # The checks run in the first batch only.
        self._has_checked_views = self._has_checked_columns = False

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], *others: Any) -> Tensor:
        if not self._has_checked_views and embeddings[0].requires_grad:
            self._has_checked_views = True
            _warn_if_equal(embeddings[0].detach(), embeddings[1].detach(), self.model)
        return super().compute_loss_from_embeddings(embeddings, *others)

    def _columns(self, columns: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        if len(columns) not in (1, 2):
            raise ValueError(
                f"UnsupSimCSELoss takes one column of sentences or the same column twice, got {len(columns)} columns. "
                "Remove the others with dataset.select_columns, or use SupSimCSELoss for (anchor, positive, negative)."
            )
        if len(columns) == 2 and not self._has_checked_columns:
            self._has_checked_columns = True
            _warn_if_different(columns)
        return columns if len(columns) == 2 else columns * 2


def _warn_if_different(columns: list[dict[str, Tensor]]) -> None:
    first, second = map(text_keys, columns)
    if first is not None and second is not None and not torch.equal(first, second):
        logger.warning(
            "The two columns have different texts, but UnsupSimCSELoss treats them as two views of the same sentence. "
            "Use SupSimCSELoss for (anchor, positive) pairs, or keep one column with dataset.select_columns."
        )


def _warn_if_equal(first: Tensor, second: Tensor, model: nn.Module) -> None:
    # Dropout changes the cosine by more than a percent; rounding in bf16 changes it by about 1e-5.
    is_equal = (1 - F.cosine_similarity(first.float(), second.float())).max() < 1e-4
    if is_equal and not _is_dropout_hidden(model):
        logger.warning(
            "The two views of every sentence are equal, because no dropout is active. Unsupervised SimCSE has no "
            "positive pairs to learn from. %s.",
            dropout_remedy(model),
        )


def _is_dropout_hidden(model: nn.Module) -> bool:
    """Returns whether dropout is active but precedes weights that are 0 until the first step, such as LoRA's."""
    drops = any(isinstance(part, nn.Dropout) and part.training and part.p > 0 for part in model.modules())
    return drops and any(weight.requires_grad and weight.ndim > 1 and not weight.any() for weight in model.parameters())


class SupSimCSELoss(SimCSELoss):
    """Supervised SimCSE: anchors are classified against all positives and hard negatives of the batch (equation 5).

    Args:
        model: The SentenceTransformer to train.
        temperature: The softmax temperature τ > 0. ST's ``scale`` is 1/τ.
        options: As in :class:`UnsupSimCSELoss`. :class:`~st_simcse.OwnNegativeWeight` is the paper's α.
        symmetric, directions, partition_mode: As in :class:`UnsupSimCSELoss`. With ``symmetric=True`` a positive has
            the same hard negatives as its anchor.
        projection_head: As in :class:`UnsupSimCSELoss`. To keep the MLP at test time, as the paper does for supervised
            models, use ``build_model(..., dense=True)`` instead.
        mini_batch_size, gather_across_devices: As in :class:`UnsupSimCSELoss`.
        mask_duplicates: Whether to exclude false negatives: texts equal to a row's own anchor or positive, and the
            positives of the same anchor in other rows.

    Inputs:
        +-------------------------------------------------------+--------+
        | Texts                                                 | Labels |
        +=======================================================+========+
        | (anchor, positive)                                    | none   |
        +-------------------------------------------------------+--------+
        | (anchor, positive, hard negative)                     | none   |
        +-------------------------------------------------------+--------+
        | (anchor, positive, hard negative 1, ..., negative N)  | none   |
        +-------------------------------------------------------+--------+

    Raises:
        ValueError: If the model is a SparseEncoder, the temperature or mini_batch_size is out of range, or options
            cannot be combined. ``forward`` raises it for a single column and for NaN or infinite embeddings.

    Example:
        >>> from st_simcse import build_model
        >>> model = build_model("bert-base-uncased", pooling="cls").train()
        >>> anchors = model.preprocess(["Two dogs are running.", "A man plays a guitar."])
        >>> positives = model.preprocess(["There are animals outdoors.", "Someone makes music."])
        >>> negatives = model.preprocess(["The pets are sitting on a couch.", "A man is asleep."])
        >>> SupSimCSELoss(model)([anchors, positives, negatives]).shape  # pass the loss to a trainer as loss=
        torch.Size([])
    """

    name = "SupSimCSELoss"

    def _columns(self, columns: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        if len(columns) < 2:
            raise ValueError(
                "SupSimCSELoss takes (anchor, positive) or (anchor, positive, hard negative, ...) columns, got "
                f"{len(columns)}. Use UnsupSimCSELoss for single sentences."
            )
        return columns


def simcse_losses(loss: nn.Module) -> Iterator[SimCSELoss]:
    """Yields the losses of st_simcse in a trainer's loss, which may be a wrapper of ST or a sum of losses.

    Example:
        >>> from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss
        >>> from st_simcse.demo import tiny_model
        >>> model = tiny_model(["Two dogs run."])
        >>> [type(inner).__name__ for inner in simcse_losses(MatryoshkaLoss(model, UnsupSimCSELoss(model), [32]))]
        ['UnsupSimCSELoss']
    """
    return (part for part in loss.modules() if isinstance(part, SimCSELoss))
