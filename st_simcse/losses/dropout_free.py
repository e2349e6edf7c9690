"""SimCSE++'s negatives without dropout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from st_simcse.losses.options import Encoder, Source, SourceOption
from st_simcse.objective import normalize

__all__ = ["DropoutFreeNegatives"]


@dataclass(frozen=True)
class DropoutFreeNegatives(SourceOption):
    """SimCSE++'s negatives without dropout, which is noise to them (Xu et al., EMNLP 2023). Positive pairs keep it.

    The two views of a sentence are compared with each other. The negatives are compared in the embeddings of another
    forward pass without dropout.

    Example:
        >>> from st_simcse import UnsupSimCSELoss
        >>> from st_simcse.demo import tiny_model
        >>> model = tiny_model(["Two dogs run."]).train()
        >>> loss = UnsupSimCSELoss(model, options=[DropoutFreeNegatives()])
        >>> loss([model.preprocess(["Two dogs run.", "Two"])]).shape
        torch.Size([])
    """

    # It needs two views of one text, and its forward pass embeds the whole batch at once.
    incompatible: ClassVar[frozenset[str]] = frozenset({"SupSimCSELoss", "mini_batch_size"})
    citation: ClassVar[str] = """
@inproceedings{xu2023simcseplusplus,
    title = {{SimCSE++}: Improving Contrastive Learning for Sentence Embeddings from Two Perspectives},
    author = {Xu, Jiahao and Shao, Wei and Chen, Lihui and Liu, Lemao},
    booktitle = {Empirical Methods in Natural Language Processing (EMNLP)},
    year = {2023},
}
"""

    def build(self, model: SentenceTransformer, head: nn.Module | None) -> Source:
        return _DropoutFree()


class _DropoutFree(Source):
    def extra_embeddings(self, encoder: Encoder, features: dict[str, Tensor]) -> list[Tensor]:
        return [encoder.embed_without_dropout(features)]

    def compare(self, columns: list[Tensor], similarities: Tensor | None) -> tuple[list[Tensor], Tensor]:
        first, second, dropout_free = columns
        pairs = normalize(first, "the first views") * normalize(second, "the second views")
        return [dropout_free, dropout_free], pairs.sum(1)
