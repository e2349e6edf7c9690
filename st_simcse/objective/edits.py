"""Edits: changes of the logits before the softmax, computed in float32 on a tile of the similarity matrix.

Each edit here adds a term to logits or excludes them from the softmax, so their order does not matter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from st_simcse.objective.bounds import Bounded
from st_simcse.objective.problem import Tile

__all__ = [
    "AngularMargin",
    "FocalMargin",
    "GuidedNegatives",
    "HardnessWeighting",
    "OwnNegativeWeight",
    "SimilarityThreshold",
]


@dataclass(frozen=True)
class FocalMargin(Bounded):
    r"""Focal-InfoNCE: more weight for hard negatives and less for easy ones (Hou and Li, Findings of EMNLP 2023).

    With s the cosine similarity, the logit of a positive is s² / τ and that of a negative is s (s + m) / τ.

    Args:
        margin: The margin m, for example 0.2.

    Raises:
        ValueError: If the margin is not finite.

    Example:
        >>> from st_simcse.objective import Problem, row_losses
        >>> rows = torch.eye(2)
        >>> row_losses(Problem(rows, rows, torch.arange(2), scale=1.0).tile(), [FocalMargin(0.2)])
        tensor([0.3133, 0.3133])
    """

    margin: float = field(metadata={"help": "The margin m of Focal-InfoNCE."})
    citation: ClassVar[str] = """
@inproceedings{hou2023focal,
    title = {Improving Contrastive Learning of Sentence Embeddings with Focal {InfoNCE}},
    author = {Hou, Pengyue and Li, Xingyu},
    booktitle = {Findings of the Association for Computational Linguistics: EMNLP},
    year = {2023},
}
"""

    def __call__(self, logits: Tensor, tile: Tile) -> Tensor:
        s = tile.similarities
        margins = torch.full_like(s, self.margin - 1).scatter_(1, tile.targets, -1.0)
        return torch.add(logits, s * (s + margins), alpha=tile.problem.scale)


@dataclass(frozen=True)
class SimilarityThreshold(Bounded):
    """A limit to the cosine similarity of negatives: more similar ones are excluded as likely false negatives.

    Args:
        threshold: The cosine similarity above which negatives are excluded.

    Raises:
        ValueError: If the threshold is not finite.

    Example:
        >>> from st_simcse.objective import Problem, row_losses
        >>> rows = torch.ones(2, 1)  # two equal rows
        >>> row_losses(Problem(rows, rows, torch.arange(2), scale=1.0).tile(), [SimilarityThreshold(0.9)])
        tensor([0., 0.])
    """

    threshold: float = field(metadata={"help": "Cosine similarity above which negatives are excluded."})

    def __call__(self, logits: Tensor, tile: Tile) -> Tensor:
        similar = (tile.similarities > self.threshold).scatter_(1, tile.targets, False)
        return logits.masked_fill(similar, -math.inf)


@dataclass(frozen=True)
class OwnNegativeWeight(Bounded):
    """A weight α for a row's own hard negatives in its softmax: log(α) is added to their logits (SimCSE, section 6.3).

    ``--hard_negative_weight`` of princeton-nlp/SimCSE is this logarithm: its 0 is a weight of 1 here.

    Args:
        weight: α ≥ 0. A weight of 0 excludes them.

    Raises:
        ValueError: If the weight is no number, negative or not finite.

    Example:
        >>> from st_simcse.objective import Problem, row_losses
        >>> rows, own = torch.eye(2), torch.tensor([[1], [0]])
        >>> row_losses(Problem(rows, rows, torch.arange(2), 1.0, own_negatives=own).tile(), [OwnNegativeWeight(0.0)])
        tensor([0., 0.])
    """

    weight: float = field(
        metadata={
            "help": "Weight α of a row's own hard negatives. The argument of princeton-nlp/SimCSE is log(α).",
            "least": 0,
        }
    )
    incompatible: ClassVar[frozenset[str]] = frozenset({"UnsupSimCSELoss"})  # it has no hard negatives

    def __call__(self, logits: Tensor, tile: Tile) -> Tensor:
        log_weight = math.log(self.weight) if self.weight else -math.inf
        return torch.where(tile.is_own_negative, logits + log_weight, logits)


@dataclass(frozen=True)
class AngularMargin(Bounded):
    r"""ArcCSE: an angular margin between the positive and the negatives (Zhang et al., ACL 2022, section 3.2).

    With θ the angle between an anchor and its positive, the positive's logit is cos(θ + m) / τ.

    Args:
        margin: The angle m in radians, at least 0 and below π / 2. The paper uses 10 degrees, 0.1745.

    Raises:
        ValueError: If the margin is out of range.

    Example:
        >>> from st_simcse.objective import Problem
        >>> rows = torch.eye(2)
        >>> AngularMargin(math.pi / 3)(rows, Problem(rows, rows, torch.arange(2), scale=1.0).tile())
        tensor([[0.5000, 0.0000],
                [0.0000, 0.5000]])
    """

    margin: float = field(
        metadata={
            "help": "ArcCSE's angular margin between the positive and the negatives, in radians.",
            "least": 0,
            "below": math.pi / 2,
        }
    )
    citation: ClassVar[str] = """
@inproceedings{zhang2022arccse,
    title = {A Contrastive Framework for Learning Sentence Representations from Pairwise and Triple-wise Perspective in
        Angular Space},
    author = {Zhang, Yuhao and Zhu, Hongji and Wang, Yongliang and Xu, Nan and Li, Xiaobo and Zhao, Binqiang},
    booktitle = {Association for Computational Linguistics (ACL)},
    year = {2022},
}
"""

    def __call__(self, logits: Tensor, tile: Tile) -> Tensor:
        cosine = tile.similarities
        # The sine has an infinite slope at an angle of 0. The clamp gives equal views a finite gradient.
        sine = (1 - cosine.square()).clamp_min(1e-12).sqrt()
        moved = cosine * math.cos(self.margin) - sine * math.sin(self.margin)
        return torch.where(tile.is_positive, logits + (moved - cosine) * tile.problem.scale, logits)


@dataclass(frozen=True)
class HardnessWeighting(Bounded):
    r"""More weight for similar negatives: α times their similarity, without gradient, is added to their logits.

    These are the ``hardness_mode`` and ``hardness_strength`` of ST's MultipleNegativesRankingLoss (Lan et al., LLaVE,
    2025, equation 5; EmbeddingGemma, 2025, for hard negatives only). This class weights the negatives of every
    direction that is compared, ST's loss only those of ``query_to_doc``.

    Args:
        strength: α ≥ 0; 9 in LLaVE, 5 in EmbeddingGemma.
        mode: The negatives to weight: those of other rows, a row's own hard negatives, or both.

    Raises:
        ValueError: If the strength is negative or the mode is unknown.

    Example:
        >>> from st_simcse.objective import Problem, row_losses
        >>> rows = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
        >>> row_losses(Problem(rows, rows, torch.arange(2), scale=1.0).tile(), [HardnessWeighting(5.0)])
        tensor([2.6716, 2.6716])
    """

    strength: float = field(metadata={"help": "Factor of the similarity that is added to the logits.", "least": 0})
    mode: Literal["in_batch_negatives", "hard_negatives", "all_negatives"] = field(
        default="in_batch_negatives", metadata={"help": "The negatives to weight."}
    )
    citation: ClassVar[str] = """
@misc{lan2025llave,
    title = {{LLaVE}: Large Language and Vision Embedding Models with Hardness-Weighted Contrastive Learning},
    author = {Lan, Zhibin and Niu, Liqiang and Meng, Fandong and Zhou, Jie and Su, Jinsong},
    year = {2025},
    eprint = {2503.04812},
    archivePrefix = {arXiv},
}
"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode not in ("in_batch_negatives", "hard_negatives", "all_negatives"):
            raise ValueError(
                f"unknown hardness mode {self.mode!r}: choose in_batch_negatives, hard_negatives or all_negatives"
            )

    def __call__(self, logits: Tensor, tile: Tile) -> Tensor:
        weighted = ~tile.is_positive
        if self.mode == "in_batch_negatives":
            weighted = weighted & ~tile.is_own_negative
        elif self.mode == "hard_negatives":
            weighted = tile.is_own_negative
        return logits + self.strength * tile.similarities.detach() * weighted


@dataclass(frozen=True)
class GuidedNegatives(Bounded):
    r"""GISTEmbed: negatives that a teacher finds more similar than the positive are excluded (Solatorio, 2024).

    With t the teacher's cosine similarities, negative j of row i is excluded if :math:`t_{ij}` is above
    :math:`t_{ii} - m` (``absolute``) or :math:`t_{ii} - m |t_{ii}|` (``relative``), as in ST's GISTEmbedLoss. If the
    dataset has one column of sentences, the two views have the similarity 1, so the threshold depends on m only. The
    negatives of a :class:`~st_simcse.MomentumQueue` are never excluded, because the teacher has not seen them. The
    labels must be the teacher's embeddings; see :func:`~st_simcse.add_teacher_embeddings`.

    Args:
        margin: m ≥ 0: a similarity if ``absolute``, a share of the positive's similarity if ``relative``.
        margin_strategy: ``absolute`` or ``relative``.

    Raises:
        ValueError: If the margin is negative or the strategy is unknown. A loss with this option raises it if the
            labels are not a teacher's embeddings.

    Example:
        >>> from st_simcse.objective import Problem, row_losses
        >>> rows, teacher = torch.eye(2), torch.ones(2, 1)  # the teacher finds both rows equal
        >>> problem = Problem(rows, rows, torch.arange(2), 1.0, teacher_queries=teacher, teacher_candidates=teacher)
        >>> row_losses(problem.tile(), [GuidedNegatives(0.1)])
        tensor([0., 0.])
    """

    margin: float = field(
        metadata={"help": "Exclude negatives above the teacher's similarity of the positive, less this.", "least": 0}
    )
    margin_strategy: Literal["absolute", "relative"] = field(
        default="absolute", metadata={"help": "Whether m is a similarity or a share of the positive's similarity."}
    )
    needs_teacher: ClassVar[bool] = True
    citation: ClassVar[str] = """
@misc{solatorio2024gistembed,
    title = {{GISTEmbed}: Guided In-sample Selection of Training Negatives for Text Embedding Fine-tuning},
    author = {Solatorio, Aivin V.},
    year = {2024},
    eprint = {2402.16829},
    archivePrefix = {arXiv},
}
"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.margin_strategy not in ("absolute", "relative"):
            raise ValueError(f"unknown margin strategy {self.margin_strategy!r}: choose absolute or relative")

    def __call__(self, logits: Tensor, tile: Tile) -> Tensor:
        similarities = tile.teacher_similarities
        positives = similarities.gather(1, tile.targets)
        margin = self.margin * (1.0 if self.margin_strategy == "absolute" else positives.abs())
        return logits.masked_fill((similarities > positives - margin) & ~tile.is_positive, -math.inf)
