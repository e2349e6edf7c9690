"""InfoNCE on matrices of embeddings.

The equations are those of Gao et al., *SimCSE: Simple Contrastive Learning of Sentence Embeddings*, EMNLP 2021.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor

from st_simcse.objective.batch import Batch, Comparison
from st_simcse.objective.cross_entropy import cross_entropy
from st_simcse.objective.geometry import normalize
from st_simcse.objective.problem import Edit, Problem

__all__ = ["CITATION", "check_temperature", "info_nce", "sup_simcse_loss", "unsup_simcse_loss"]

CITATION = """
@inproceedings{gao2021simcse,
    title = {{SimCSE}: Simple Contrastive Learning of Sentence Embeddings},
    author = {Gao, Tianyu and Yao, Xingcheng and Chen, Danqi},
    booktitle = {Empirical Methods in Natural Language Processing (EMNLP)},
    year = {2021},
}
"""


def unsup_simcse_loss(embeddings: Tensor, temperature: float = 0.05) -> Tensor:
    """Computes the loss of unsupervised SimCSE on interleaved views, with both views of a sentence as anchors.

    Row ``i`` is classified against all other rows, and its label is row ``i ^ 1``: rows 0 and 1 are each other's
    positives, as are rows 2 and 3, and so on. The result equals :func:`info_nce` with ``Comparison(symmetric=True)`` on
    the even and the odd rows.

    Args:
        embeddings: ``[a0, a0', a1, a1', ...]`` of shape (2B, d), any floating dtype.
        temperature: The softmax temperature τ > 0. A Keras-style ``scale`` of 20 is a temperature of 0.05.

    Returns:
        The mean cross-entropy over the 2B anchors, in nats: a float32 scalar (float64 for float64 input).

    Raises:
        ValueError: If the number of rows is odd, or for the reasons of :func:`info_nce`.

    Example:
        >>> views = torch.eye(2).repeat_interleave(2, dim=0)  # two sentences, each with two equal views
        >>> unsup_simcse_loss(views, temperature=1.0)  # log(e^1 + 2 e^0) - 1
        tensor(0.5514)
    """
    _check_interleaved(embeddings, 2, "[a0, a0', a1, a1', ...]")
    check_temperature(temperature)
    views = normalize(embeddings, "embeddings")
    rows = torch.arange(len(views), device=views.device)
    return cross_entropy(Problem(views, views, rows ^ 1, 1 / temperature, own_columns=rows[:, None]))


def sup_simcse_loss(embeddings: Tensor, temperature: float = 0.05) -> Tensor:
    """Computes the loss of supervised SimCSE on interleaved triplets: equation 5 of the paper.

    Every anchor is classified against all positives and all hard negatives of the batch. The result equals
    :func:`info_nce` with one hard negative per row.

    Args:
        embeddings: ``[anchor0, positive0, negative0, anchor1, ...]`` of shape (3B, d), any floating dtype.
        temperature: The softmax temperature τ > 0.

    Returns:
        The mean cross-entropy over the B anchors, in nats: a float32 scalar (float64 for float64 input).

    Raises:
        ValueError: If the number of rows is not a multiple of three, or for the reasons of :func:`info_nce`.

    Example:
        >>> triplet = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> sup_simcse_loss(triplet, temperature=1.0)  # log(e^1 + e^0) - 1
        tensor(0.3133)
    """
    _check_interleaved(embeddings, 3, "[anchor0, positive0, negative0, anchor1, ...]")
    return info_nce(Batch(embeddings[0::3], embeddings[1::3], embeddings[2::3]), temperature)


def info_nce(
    batch: Batch, temperature: float = 0.05, edits: Sequence[Edit] = (), comparison: Comparison | None = None
) -> Tensor:
    r"""Computes InfoNCE on cosine similarities with in-batch negatives: equations 1, 4 and 5 of the paper.

    With sim the cosine similarity, τ the temperature and N hard negatives per row, the loss of row i is

    .. math::
        -\log \frac{e^{sim(h_i, h_i^+)/τ}}
        {\sum_j \left(e^{sim(h_i, h_j^+)/τ} + \sum_n e^{sim(h_i, h_{jn}^-)/τ}\right)}

    Without hard negatives this is equation 1, or equation 4 if the positive is the same sentence under another dropout
    mask. With hard negatives it is equation 5.

    Similarities and the log-sum-exp are computed in float32 (float64 for float64 input), also under autocast. The
    similarity matrix of a large batch is never held in memory as a whole, so memory grows with B and not with B².

    A zero vector has the similarity 0 with every vector and a gradient of zero. A single row without hard negatives has
    no negatives, so its loss is 0.

    Args:
        batch: The embeddings, and facts about their texts.
        temperature: τ > 0.
        edits: Changes of the logits before the softmax, applied in this order; see :mod:`st_simcse.objective.edits`.
        comparison: Which embeddings are compared. If None, every anchor is compared with the positives and hard
            negatives.

    Returns:
        The mean cross-entropy in nats: a float32 scalar (float64 for float64 input).

    Raises:
        ValueError: If the temperature is out of range, or embeddings are NaN or infinite. The message lists their rows.

    Example:
        >>> from st_simcse import OwnNegativeWeight
        >>> anchors = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> info_nce(Batch(anchors, positives=anchors), temperature=1.0)  # log(e^1 + e^0) - 1
        tensor(0.3133)
        >>> info_nce(Batch(anchors, anchors, hard_negatives=anchors.flip(0)), 1.0, [OwnNegativeWeight(0.0)])
        tensor(0.8620)
        >>> keys = [torch.tensor([7, 7]), torch.tensor([8, 9])]  # one anchor, two positives: neither is a negative
        >>> info_nce(Batch(anchors, anchors, text_keys=keys), temperature=1.0)
        tensor(0.)
    """
    check_temperature(temperature)
    losses = [cross_entropy(problem, edits) for problem in batch.problems(comparison or Comparison(), 1 / temperature)]
    return losses[0] if len(losses) == 1 else torch.stack(losses).mean()


def check_temperature(temperature: float) -> None:
    """Raises a ValueError if the temperature is not a positive number."""
    if not isinstance(temperature, Real) or not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be a positive number, got {temperature!r}")


def _check_interleaved(embeddings: Tensor, views: int, layout: str) -> None:
    if embeddings.ndim != 2 or len(embeddings) % views or not len(embeddings):
        raise ValueError(
            f"expected the layout {layout} and the shape ({views}B, d) with a multiple of {views} rows, got shape "
            f"{tuple(embeddings.shape)}"
        )
