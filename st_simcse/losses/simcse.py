"""The two losses: which columns they take, and what is said of them."""

from __future__ import annotations

import logging
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from st_simcse.data.duplicates import text_keys
from st_simcse.losses.base import SimCSELoss
from st_simcse.models.dropout import dropout_remedy

__all__ = ["SupSimCSELoss", "UnsupSimCSELoss"]

logger = logging.getLogger(__name__)


class UnsupSimCSELoss(SimCSELoss):
    """Unsupervised SimCSE: a sentence and itself under another dropout mask are a positive pair (paper, equation 4).

    Args:
        model: the SentenceTransformer to train. Dropout is the only augmentation, so it must be active.
        temperature: softmax temperature τ > 0; ST's ``scale`` is 1/τ.
        options: what else to do, each once; ``st_simcse.losses.OPTIONS`` lists the classes. Edits of the logits apply
            in the order given.
        symmetric: both views are anchors, each against the 2B - 1 other rows, instead of the first views against the
            B second views as in the paper.
        directions, partition_mode: who else is compared, as in ST's MultipleNegativesRankingLoss; see
            :class:`~st_simcse.objective.Comparison`.
        projection_head: ``True`` trains a :class:`~st_simcse.ProjectionHead` along with the model ("MLP in
            training only", the paper's best setting for CLS pooling); or a module of your own, (B, d) to (B, d'). It
            never becomes part of the saved model.
        mini_batch_size: embed this many rows at a time with gradient caching, so that memory no longer grows with the
            batch size; the gradients are the same, and every view keeps its own dropout mask.
        gather_across_devices: the rows of all processes are negatives of each other, with gradients to all of them.
        mask_duplicates: the same text in another row of the batch is no negative; by its tokens, and in the rows of
            all processes if they are gathered.

    Inputs:
        +--------------------------------------------+--------+
        | Texts                                      | Labels |
        +============================================+========+
        | one column: the two views are made here    | none   |
        +--------------------------------------------+--------+
        | two identical columns (doubled sentences)  | none   |
        +--------------------------------------------+--------+

        One column is tokenized once and embedded in a single forward pass over 2B rows.

    Raises:
        ValueError: for a SparseEncoder, a temperature or mini_batch_size out of range, and options that do not go
            together; in ``forward``, for three columns or more and for non-finite embeddings.

    Example:
        >>> from st_simcse import build_model
        >>> model = build_model("bert-base-uncased", pooling="cls").train()
        >>> loss = UnsupSimCSELoss(model, projection_head=True)  # a trainer takes it as loss=, and does the rest
        >>> loss([model.preprocess(["It's nice weather outside today.", "He drove to work."])]).backward()
        >>> bool(loss.projection_head.dense.weight.grad.any())
        True
    """

    name = "UnsupSimCSELoss"
    compares_views = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Looked at in the first batch alone.
        self._has_checked_views = self._has_checked_columns = False

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], *others: Any) -> Tensor:
        if not self._has_checked_views and embeddings[0].requires_grad:
            self._has_checked_views = True
            _warn_if_equal(embeddings[0].detach(), embeddings[1].detach(), self.model)
        return super().compute_loss_from_embeddings(embeddings, *others)

    def _columns(self, columns: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        if len(columns) not in (1, 2):
            raise ValueError(
                f"UnsupSimCSELoss takes one column of sentences or the same column twice, got {len(columns)} columns: "
                "drop the others with dataset.select_columns, or use SupSimCSELoss for (anchor, positive, negative)"
            )
        if len(columns) == 2 and not self._has_checked_columns:
            self._has_checked_columns = True
            _warn_if_different(columns)
        return columns if len(columns) == 2 else columns * 2


def _warn_if_different(columns: list[dict[str, Tensor]]) -> None:
    first, second = map(text_keys, columns)
    if first is not None and second is not None and not torch.equal(first, second):
        logger.warning(
            "The two columns hold different texts, which UnsupSimCSELoss takes for two views of the same sentence: "
            "use SupSimCSELoss for (anchor, positive) pairs, or keep one column with dataset.select_columns"
        )


def _warn_if_equal(first: Tensor, second: Tensor, model: nn.Module) -> None:
    # Dropout turns a vector by whole percents; rounding in bf16 by about 1e-5.
    is_equal = (1 - F.cosine_similarity(first.float(), second.float())).max() < 1e-4
    if is_equal and not _is_dropout_hidden(model):
        logger.warning(
            "The two views of every sentence are equal: no dropout is active, so unsupervised SimCSE has no "
            "positive pairs to learn from. %s.",
            dropout_remedy(model),
        )


def _is_dropout_hidden(model: nn.Module) -> bool:
    """Whether there is dropout, but in front of weights that are 0 until the first step, as LoRA's."""
    drops = any(isinstance(part, nn.Dropout) and part.training and part.p > 0 for part in model.modules())
    return drops and any(weight.requires_grad and weight.ndim > 1 and not weight.any() for weight in model.parameters())


class SupSimCSELoss(SimCSELoss):
    """Supervised SimCSE: anchors against all positives and hard negatives of the batch (paper, equation 5).

    Args:
        model: the SentenceTransformer to train.
        temperature: softmax temperature τ > 0; ST's ``scale`` is 1/τ.
        options: as in :class:`UnsupSimCSELoss`; also :class:`~st_simcse.OwnNegativeWeight`, the paper's α.
        symmetric, directions, partition_mode: as in :class:`UnsupSimCSELoss`. A symmetric positive has the hard
            negatives of its anchor.
        projection_head: as in :class:`UnsupSimCSELoss`. Where the paper keeps the MLP at test time, build the model
            with ``build_model(..., dense=True)`` instead.
        mini_batch_size, gather_across_devices: as in :class:`UnsupSimCSELoss`.
        mask_duplicates: the positives of an anchor that stands in several rows, and texts equal to a row's own anchor
            or positive, are no negatives of it.

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
        ValueError: for a SparseEncoder, a temperature or mini_batch_size out of range, and options that do not go
            together; in ``forward``, for a single column and for non-finite embeddings.

    Example:
        >>> from st_simcse import build_model
        >>> model = build_model("bert-base-uncased", pooling="cls").train()
        >>> anchors = model.preprocess(["Two dogs are running.", "A man plays a guitar."])
        >>> positives = model.preprocess(["There are animals outdoors.", "Someone makes music."])
        >>> negatives = model.preprocess(["The pets are sitting on a couch.", "A man is asleep."])
        >>> SupSimCSELoss(model)([anchors, positives, negatives]).shape  # a trainer takes it as loss=
        torch.Size([])
    """

    name = "SupSimCSELoss"

    def _columns(self, columns: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        if len(columns) < 2:
            raise ValueError(
                "SupSimCSELoss takes (anchor, positive) or (anchor, positive, hard negative, ...) columns, got "
                f"{len(columns)}: use UnsupSimCSELoss for single sentences"
            )
        return columns
