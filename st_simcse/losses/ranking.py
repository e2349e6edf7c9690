"""Losses of how a sentence ranks the other sentences of its batch: as a teacher does, or the same in both views."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from st_simcse.data.teacher import teacher_embeddings
from st_simcse.losses.options import TermOption
from st_simcse.objective import normalize

__all__ = ["RankConsistency", "RankDistillation"]

_CITATION = """
@inproceedings{liu2023rankcse,
    title = {{RankCSE}: Unsupervised Sentence Representations Learning via Learning to Rank},
    author = {Liu, Jiduan and Liu, Jiahao and Wang, Qifan and Wang, Jingang and Wu, Wei and Xian, Yunsen and Zhao,
        Dongyan and Chen, Kai and Yan, Rui},
    booktitle = {Association for Computational Linguistics (ACL)},
    year = {2023},
}
"""


@dataclass(frozen=True)
class RankDistillation(TermOption):
    r"""RankCSE's distillation of a teacher's ranking of the other sentences in the batch (Liu et al., ACL 2023).

    Let :math:`s_{ij}` be the cosine similarity of anchor i and positive j (of the two views), :math:`t_{ij}` the
    teacher's, and π the other rows sorted from nearest to farthest by the teacher. ``listnet`` is the cross-entropy of
    two softmaxes over the other rows (Cao et al., ICML 2007):

    .. math:: -\sum_{j \ne i} \frac{e^{t_{ij}/τ_3}}{\sum_{k \ne i} e^{t_{ik}/τ_3}}
        \log \frac{e^{s_{ij}/τ_2}}{\sum_{k \ne i} e^{s_{ik}/τ_2}}

    ``listmle`` is the negative log-likelihood of the teacher's order (Xia et al., ICML 2008). It is divided by the
    number of other rows, so that it does not grow with the batch:

    .. math:: -\frac{1}{B-1} \sum_{k} \log \frac{e^{s_{iπ(k)}/τ_2}}{\sum_{l \ge k} e^{s_{iπ(l)}/τ_2}}

    Both are averaged over the rows. A row's own positive is not part of the ranking, because the contrastive loss
    already ranks it first. The term uses the rows of this process's batch, also with ``gather_across_devices``. Its
    memory grows with the square of their number. The labels must be the teacher's embeddings; see
    :func:`~st_simcse.add_teacher_embeddings`.

    Args:
        weight: The weight of the term, RankCSE's γ.
        method: ``listmle`` or ``listnet``.
        temperature: The temperature τ₂ of the similarities that are trained.
        teacher_temperature: The temperature τ₃ of the teacher's similarities, for ``listnet``. RankCSE uses τ₂ / 2.

    Raises:
        ValueError: If the weight or a temperature is out of range or the method is unknown. A loss with this option
            raises it if the labels are not a teacher's embeddings.

    Example:
        >>> from st_simcse import UnsupSimCSELoss
        >>> from st_simcse.demo import tiny_model
        >>> texts = ["Two dogs run.", "A cat sleeps.", "Two cats run."]
        >>> model, teacher = tiny_model(texts).train(), tiny_model(texts, width=32)
        >>> loss = UnsupSimCSELoss(model, options=[RankDistillation(1.0)])
        >>> sorted(loss([model.preprocess(texts)], labels=teacher.encode(texts, convert_to_tensor=True)))
        ['contrastive', 'rank_distillation']
    """

    weight: float = field(metadata={"help": "Weight of the loss that distills a teacher's ranking.", "least": 0})
    method: Literal["listmle", "listnet"] = field(default="listmle", metadata={"help": "Ranking loss."})
    temperature: float = field(
        default=0.05, metadata={"help": "Temperature of the similarities that are trained.", "above": 0}
    )
    teacher_temperature: float = field(
        default=0.025, metadata={"help": "Temperature of the teacher's similarities, for listnet.", "above": 0}
    )
    needs_teacher: ClassVar[bool] = True
    citation: ClassVar[str] = _CITATION

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in ("listmle", "listnet"):
            raise ValueError(f"unknown method {self.method!r}: choose listmle or listnet")

    def from_embeddings(self, columns: list[Tensor], labels: Tensor | None) -> Tensor:
        anchors, positives = teacher_embeddings(labels, len(columns[0]), len(columns))[:2]
        with torch.autocast(anchors.device.type, enabled=False):
            teacher = _without_diagonal(anchors @ positives.T)
            logits = _without_diagonal(_similarities(columns)) / self.temperature
        if self.method == "listnet":
            shares = (teacher.to(logits.dtype) / self.teacher_temperature).softmax(1)
            return -(shares * logits.log_softmax(1)).sum(1).mean()
        farthest_first = logits.gather(1, teacher.argsort(dim=1, stable=True))
        return (farthest_first.logcumsumexp(1) - farthest_first).sum(1).mean() / max(1, logits.shape[1])


@dataclass(frozen=True)
class RankConsistency(TermOption):
    r"""RankCSE's consistency: both views of a sentence rank the batch the same way (Liu et al., ACL 2023).

    Let P be the softmax of a first view's similarities to all second views, Q that of its second view's similarities to
    all first views, and M their mean. The similarities are divided by the temperature. The term is the Jensen-Shannon
    divergence, averaged over the rows:

    .. math:: \frac{1}{2} KL(P \| M) + \frac{1}{2} KL(Q \| M)

    The term uses the rows of this process's batch, also with ``gather_across_devices``. It needs no teacher.

    Args:
        weight: The weight of the term, RankCSE's β.
        temperature: The temperature of the similarities.

    Raises:
        ValueError: If the weight or temperature is out of range.

    Example:
        >>> option = RankConsistency(1.0)
        >>> option.from_embeddings([torch.eye(3), torch.eye(3)], None)  # both views give the same ranking
        tensor(0.)
    """

    weight: float = field(metadata={"help": "Weight of the loss that makes both views rank alike.", "least": 0})
    temperature: float = field(default=0.05, metadata={"help": "Temperature of the similarities.", "above": 0})
    incompatible: ClassVar[frozenset[str]] = frozenset({"SupSimCSELoss"})  # its pairs are not views of one text
    citation: ClassVar[str] = _CITATION

    def from_embeddings(self, columns: list[Tensor], labels: Tensor | None) -> Tensor:
        logits = _similarities(columns) / self.temperature
        first, second = logits.log_softmax(1), logits.T.log_softmax(1)
        mean = torch.logaddexp(first, second) - math.log(2)
        divergences = [(one.exp() * (one - mean)).sum(1).mean() for one in (first, second)]
        return torch.stack(divergences).mean()


def _similarities(columns: list[Tensor]) -> Tensor:
    first, second = (normalize(column, "embeddings") for column in columns[:2])
    with torch.autocast(first.device.type, enabled=False):
        return first @ second.T


def _without_diagonal(matrix: Tensor) -> Tensor:
    """Removes the diagonal: returns (B, B - 1), each row without its own column."""
    other = ~torch.eye(len(matrix), dtype=torch.bool, device=matrix.device)
    return matrix[other].view(len(matrix), -1)
