"""What can be added to a loss besides edits of its logits: who is compared (Source), another summand (Term)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, ClassVar

from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from st_simcse.objective.bounds import Bounded

if TYPE_CHECKING:
    from st_simcse.losses.base import SimCSELoss

__all__ = ["Option", "Source", "SourceOption", "Term", "TermOption", "option_name", "refuse"]


class Option(Bounded):
    """What an option of a loss may say of itself; edits say it with the same names, without this class.

    Options are frozen dataclasses. Their fields are flags of the command line: the first is called as the class is, the
    others have the class's name before their own; ``metadata={"help": ...}`` explains them, and says the bounds of
    numbers, see :class:`~st_simcse.objective.bounds.Bounded`.

    Attributes:
        citation: BibTeX of the paper.
        unsupervised, supervised: whether it goes with UnsupSimCSELoss, and with SupSimCSELoss.
        cached: whether it goes with ``mini_batch_size``.
        matryoshka, adaptive_layer: whether the loss can be inside a MatryoshkaLoss, an AdaptiveLayerLoss.
        views: whether it goes with ``views`` of the training arguments, which make two texts of one.
        needs_teacher: whether the labels have to be a teacher's embeddings.
        sharded: whether it goes with FSDP and DeepSpeed.

    Example:
        >>> from st_simcse import MomentumQueue
        >>> MomentumQueue.supervised, MomentumQueue.adaptive_layer
        (True, False)
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
    """An option that a loss builds a :class:`Source` of.

    Example:
        >>> from st_simcse import DropoutFreeNegatives
        >>> isinstance(DropoutFreeNegatives(), SourceOption)
        True
    """

    def build(self, model: SentenceTransformer, head: nn.Module | None) -> Source:
        """The source, for the model that is trained and the projection head that is trained with it."""
        raise NotImplementedError


class TermOption(Option):
    """An option that a loss builds a :class:`Term` of.

    Example:
        >>> class TinyVectors(TermOption):
        ...     def build(self, model):
        ...         return VectorLength(weight=0.1)
        >>> class VectorLength(Term):
        ...     def of_embeddings(self, columns, labels):
        ...         return columns[0].norm(dim=1).mean()
        >>> from st_simcse import UnsupSimCSELoss
        >>> from st_simcse.demo import tiny_model
        >>> model = tiny_model(["Two dogs run."]).train()
        >>> sorted(UnsupSimCSELoss(model, options=[TinyVectors()])([model.preprocess(["Two dogs run."])]))
        ['contrastive', 'tiny_vectors']
    """

    def build(self, model: SentenceTransformer) -> Term:
        """The term, for the model that is trained."""
        raise NotImplementedError


class Source(nn.Module):
    """Says who is compared with whom. Each hook does nothing unless a subclass says otherwise.

    A wrapper such as MatryoshkaLoss calls a loss several times for one batch; ``begin`` and ``finish`` are called once.

    Example:
        >>> from st_simcse import MomentumQueue
        >>> from st_simcse.demo import tiny_model
        >>> queue = MomentumQueue(4).build(tiny_model(["Two dogs run."]), None)
        >>> queue.begin()
        >>> [tensor.shape for tensor in queue.shared_negatives()]  # none before the first batch
        [torch.Size([0, 64]), torch.Size([0])]
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
        """After a batch, in training.

        Args:
            loss: the one that embeds.
            features: the positives' column, as the model's tokenizer gives it.
            keys: (B,) int64, its text keys, or None where there are none.
        """


class Term(nn.Module):
    """Another summand of a loss. It has one of the two methods.

    Args:
        weight: its factor.

    Example:
        >>> from st_simcse import DimensionContrast
        >>> term = DimensionContrast(0.1).build(None)
        >>> term.weight, term.of_texts([])
        (0.1, None)
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
