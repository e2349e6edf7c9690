"""What can be added to a loss besides edits of its logits: who is compared, another summand, how it embeds."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol

from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from st_simcse.objective.bounds import Bounded

__all__ = [
    "SHARDED",
    "Encoder",
    "EncoderOption",
    "Option",
    "Source",
    "SourceOption",
    "Term",
    "TermOption",
    "built",
    "check_compatible",
    "option_name",
]

# What shards a model or its optimizer.
SHARDED = frozenset({"FSDP", "DeepSpeed"})


class Encoder(Protocol):
    """What a source may know of how the loss embeds: a :class:`~st_simcse.losses.encoder.BatchEncoder`."""

    model: Any
    head: nn.Module | None
    mini_batch_size: int | None
    gather_across_devices: bool

    def embed_without_dropout(self, features: dict[str, Tensor]) -> Tensor:
        """The projected embeddings (B, d) of a column, as the model gives them in evaluation, with gradients."""


class Option(Bounded):
    """What an option of a loss may say of itself; edits say it with the same names, without this class.

    Options are frozen dataclasses. Their fields are flags of the command line: the first is called as the class is, the
    others have the class's name before their own; ``metadata={"help": ...}`` explains them, and says the bounds of
    numbers, see :class:`~st_simcse.objective.bounds.Bounded`.

    Attributes:
        citation: BibTeX of the paper.
        incompatible: what it does not go with: the losses ``UnsupSimCSELoss`` and ``SupSimCSELoss``, the wrappers
            ``MatryoshkaLoss`` and ``AdaptiveLayerLoss``, ``mini_batch_size``, the training argument ``views``, which
            makes two texts of one, and ``FSDP`` and ``DeepSpeed``.
        needs_teacher: whether the labels have to be a teacher's embeddings.

    Example:
        >>> from st_simcse import DropoutFreeNegatives
        >>> sorted(DropoutFreeNegatives.incompatible)
        ['SupSimCSELoss', 'mini_batch_size']
    """

    citation: ClassVar[str] = ""
    incompatible: ClassVar[frozenset[str]] = frozenset()
    needs_teacher: ClassVar[bool] = False


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


class EncoderOption(Option):
    """An option that changes how a loss embeds a batch.

    Example:
        >>> from st_simcse import SharedLayers
        >>> issubclass(SharedLayers, EncoderOption)
        True
    """

    def build(self, model: SentenceTransformer) -> Callable[..., Any]:
        """What takes the place of the class :class:`~st_simcse.losses.encoder.BatchEncoder`, with its arguments."""
        raise NotImplementedError


class TermOption(Option):
    """An option that adds a summand to a loss, computed by one of two methods.

    Attributes:
        weight: the summand's factor.

    Example:
        >>> class TinyVectors(TermOption):
        ...     weight = 0.1
        ...     def from_embeddings(self, columns, labels):
        ...         return columns[0].norm(dim=1).mean()
        >>> from st_simcse import UnsupSimCSELoss
        >>> from st_simcse.demo import tiny_model
        >>> model = tiny_model(["Two dogs run."]).train()
        >>> sorted(UnsupSimCSELoss(model, options=[TinyVectors()])([model.preprocess(["Two dogs run."])]))
        ['contrastive', 'tiny_vectors']
    """

    weight: float

    def build(self, model: SentenceTransformer) -> Term:
        """The summand for the model that is trained: this option's methods, or a :class:`Term` with weights."""
        return Term(self)

    def from_features(self, columns: list[dict[str, Any]]) -> Tensor | None:
        """Of the batch's tokenized columns, once a batch: a scalar."""
        return None

    def from_embeddings(self, columns: list[Tensor], labels: Tensor | None) -> Tensor | None:
        """Of the embeddings (B, d) of all columns, of this process, and the dataset's labels: a scalar."""
        return None


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

    def extra_embeddings(self, encoder: Encoder, features: dict[str, Tensor]) -> list[Tensor]:
        """More embeddings (B, d) of the first column's texts, put behind those of the columns."""
        return []

    def compare(self, columns: list[Tensor], similarities: Tensor | None) -> tuple[list[Tensor], Tensor | None]:
        """The columns that are compared, and the similarities (B,) of the positive pairs, if other than theirs."""
        return columns, similarities

    def shared_negatives(self) -> tuple[Tensor, Tensor] | None:
        """Further negatives (M, d) of every anchor and their text keys (M,)."""
        return None

    def finish(self, encoder: Encoder, features: dict[str, Tensor], keys: Tensor | None) -> None:
        """After a batch, in training.

        Args:
            encoder: of the loss.
            features: the positives' column, as the model's tokenizer gives it.
            keys: (B,) int64, its text keys, or None where there are none.
        """


class Term(nn.Module):
    """A summand as a loss holds it. A term with weights of its own is a subclass that has them.

    Args:
        option: says the weight, and computes the summand.

    Example:
        >>> from st_simcse import DimensionContrast
        >>> term = DimensionContrast(0.1).build(None)
        >>> term.weight, term.from_features([])
        (0.1, None)
    """

    def __init__(self, option: TermOption) -> None:
        super().__init__()
        self.option = option
        self.weight = option.weight

    def from_features(self, columns: list[dict[str, Any]]) -> Tensor | None:
        """See :meth:`TermOption.from_features`."""
        return self.option.from_features(columns)

    def from_embeddings(self, columns: list[Tensor], labels: Tensor | None) -> Tensor | None:
        """See :meth:`TermOption.from_embeddings`."""
        return self.option.from_embeddings(columns, labels)


def built(options: Sequence[Any], kind: type[Any], *arguments: Any) -> dict[str, Any]:
    """By their names, what those of a loss's options that are of one kind build."""
    return {option_name(option): option.build(*arguments) for option in options if isinstance(option, kind)}


def check_compatible(options: Sequence[Any], other: str) -> None:
    """ValueError if one of a loss's options does not go with something else, by its name in ``incompatible``."""
    for option in options:
        if other in getattr(option, "incompatible", ()):
            raise ValueError(f"{type(option).__name__} does not go with {other}: leave one of the two out")


def option_name(option: object) -> str:
    """The name of an option, or of its class, as logs and the command line write it.

    Example:
        >>> option_name(SourceOption)
        'source_option'
    """
    kind = option if isinstance(option, type) else type(option)
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind.__name__).lower()
