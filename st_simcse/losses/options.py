"""What can be added to a loss besides edits of its logits: who is compared (Source), another summand (Term)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, ClassVar

from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

if TYPE_CHECKING:
    from st_simcse.losses.base import SimCSELoss

__all__ = ["Option", "Source", "SourceOption", "Term", "TermOption", "option_name", "refuse"]


class Option:
    """What an option of a loss may say of itself; edits say it with the same names, without this class.

    Options are frozen dataclasses. Their fields are flags of the command line: the first is called as the class is, the
    others have the class's name before their own; ``metadata={"help": ...}`` explains them.

    Attributes:
        citation: BibTeX of the paper.
        unsupervised, supervised: whether it goes with UnsupSimCSELoss, and with SupSimCSELoss.
        cached: whether it goes with ``mini_batch_size``.
        matryoshka, adaptive_layer: whether the loss can be inside a MatryoshkaLoss, an AdaptiveLayerLoss.
        views: whether it goes with ``views`` of the training arguments, which make two texts of one.
        needs_teacher: whether the labels have to be a teacher's embeddings.
        sharded: whether it goes with FSDP and DeepSpeed.
    """

    citation: ClassVar[str] = ""
    unsupervised: ClassVar[bool] = True
    supervised: ClassVar[bool] = True
    cached: ClassVar[bool] = True
    matryoshka: ClassVar[bool] = True
    adaptive_layer: ClassVar[bool] = True
    views: ClassVar[bool] = True
    needs_teacher: ClassVar[bool] = False
    sharded: ClassVar[bool] = True


class SourceOption(Option):
    """An option that a loss builds a :class:`Source` of."""

    def build(self, model: SentenceTransformer, head: nn.Module | None) -> Source:
        """The source, for the model that is trained and the projection head that is trained with it."""
        raise NotImplementedError


class TermOption(Option):
    """An option that a loss builds a :class:`Term` of."""

    def build(self, model: SentenceTransformer) -> Term:
        """The term, for the model that is trained."""
        raise NotImplementedError


class Source(nn.Module):
    """Says who is compared with whom. Each hook does nothing unless a subclass says otherwise.

    A wrapper such as MatryoshkaLoss calls a loss several times for one batch; ``begin`` and ``finish`` are called once.
    """

    def begin(self) -> None:
        """Before a batch is embedded, in training."""

    def more_columns(self, loss: SimCSELoss, features: dict[str, Tensor]) -> list[Tensor]:
        """More embeddings (B, d) of the first column's texts, put behind those of the columns."""
        return []

    def compare(self, columns: list[Tensor], similarities: Tensor | None) -> tuple[list[Tensor], Tensor | None]:
        """The columns that are compared, and the similarities (B,) of the positive pairs, if other than theirs."""
        return columns, similarities

    def shared_negatives(self) -> tuple[Tensor, Tensor] | None:
        """Further negatives (M, d) of every anchor and their text keys (M,)."""
        return None

    def finish(self, loss: SimCSELoss, features: dict[str, Tensor], keys: Tensor | None) -> None:
        """After a batch, in training: the positives' column and its text keys."""


class Term(nn.Module):
    """Another summand of a loss. It has one of the two methods.

    Args:
        weight: its factor.
    """

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def of_texts(self, columns: list[dict[str, Any]]) -> Tensor | None:
        """Of the batch's tokenized columns, once a batch: a scalar."""
        return None

    def of_embeddings(self, columns: list[Tensor], labels: Tensor | None) -> Tensor | None:
        """Of the embeddings (B, d) of all columns, of this process, and the dataset's labels: a scalar."""
        return None


def refuse(options: list[Any], what: str, name: str) -> None:
    """ValueError if one of the options does not go with something; what an option does not say, it goes with.

    Args:
        options: a loss's options.
        what: an attribute of :class:`Option`.
        name: what the user calls it.
    """
    for option in options:
        if not getattr(option, what, True):
            raise ValueError(f"{type(option).__name__} does not go with {name}: leave one of the two out")


def option_name(option: object) -> str:
    """The name of an option, or of its class, as logs and the command line write it.

    Example:
        >>> option_name(SourceOption)
        'source_option'
    """
    kind = option if isinstance(option, type) else type(option)
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind.__name__).lower()
