"""Options of a loss besides edits of its logits. They add negatives, pairs or terms, or change how it embeds."""

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

# The methods that shard a model or its optimizer.
SHARDED = frozenset({"FSDP", "DeepSpeed"})


class Encoder(Protocol):
    """The view that a source has of the loss's encoder, a :class:`~st_simcse.losses.encoder.BatchEncoder`."""

    model: Any
    head: nn.Module | None
    mini_batch_size: int | None
    gather_across_devices: bool

    def embed_without_dropout(self, features: dict[str, Tensor]) -> Tensor:
        """Returns projected embeddings (B, d) of a column in evaluation mode, with gradients."""


class Option(Bounded):
    """The base class of options, with the attributes that describe them.

    Edits of the logits may have the same attributes without deriving from this class.

    Options are frozen dataclasses, and their fields are flags of the command line. The flag of the first field has the
    name of the class. The flags of the other fields have the name of the class as a prefix. ``metadata={"help": ...}``
    explains a field, and also holds the bounds of numbers; see :class:`~st_simcse.objective.bounds.Bounded`.

    Attributes:
        citation: The BibTeX entry of the paper.
        incompatible: The names of the things that the option cannot be combined with. They may be the losses
            ``UnsupSimCSELoss`` and ``SupSimCSELoss``, the wrappers ``MatryoshkaLoss`` and ``AdaptiveLayerLoss``,
            ``mini_batch_size``, the training argument ``views``, which makes two texts from one, ``FSDP`` and
            ``DeepSpeed``.
        needs_teacher: Whether the labels must be a teacher's embeddings.

    Example:
        >>> from st_simcse import DropoutFreeNegatives
        >>> sorted(DropoutFreeNegatives.incompatible)
        ['SupSimCSELoss', 'mini_batch_size']
    """

    citation: ClassVar[str] = ""
    incompatible: ClassVar[frozenset[str]] = frozenset()
    needs_teacher: ClassVar[bool] = False


class SourceOption(Option):
    """An option that builds a :class:`Source` for the loss.

    Example:
        >>> from st_simcse import DropoutFreeNegatives
        >>> isinstance(DropoutFreeNegatives(), SourceOption)
        True
    """

    def build(self, model: SentenceTransformer, head: nn.Module | None) -> Source:
        """Builds the source for the model and the projection head that are trained."""
        raise NotImplementedError


class EncoderOption(Option):
    """An option that changes how a loss embeds a batch.

    Example:
        >>> from st_simcse import SharedLayers
        >>> issubclass(SharedLayers, EncoderOption)
        True
    """

    def build(self, model: SentenceTransformer) -> Callable[..., Any]:
        """Returns a replacement of :class:`~st_simcse.losses.encoder.BatchEncoder`, called with the same arguments."""
        raise NotImplementedError


class TermOption(Option):
    """An option that adds a term to a loss, computed by one of two methods.

    Attributes:
        weight: The factor of the term.
        reads_labels: Whether the term uses labels that are not a teacher's embeddings. Without such a term, a loss
            refuses labels that differ between rows.

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
    reads_labels: ClassVar[bool] = False

    def build(self, model: SentenceTransformer) -> Term:
        """Builds the term for the model that is trained: this option's methods, or a :class:`Term` with weights."""
        return Term(self)

    def from_features(self, columns: list[dict[str, Any]]) -> Tensor | None:
        """Computes a scalar from the tokenized columns of the batch, once per batch."""
        return None

    def from_embeddings(self, columns: list[Tensor], labels: Tensor | None) -> Tensor | None:
        """Computes a scalar from the embeddings (B, d) of all columns of this process and the dataset's labels."""
        return None


class Source(nn.Module):
    """Chooses the embeddings to compare. Each hook does nothing unless a subclass overrides it.

    A wrapper such as MatryoshkaLoss calls a loss several times per batch, but ``begin`` and ``finish`` only once.

    Example:
        >>> from st_simcse import MomentumQueue
        >>> from st_simcse.demo import tiny_model
        >>> queue = MomentumQueue(4).build(tiny_model(["Two dogs run."]), None)
        >>> queue.begin()
        >>> [tensor.shape for tensor in queue.shared_negatives()]  # the queue is empty before the first batch
        [torch.Size([0, 64]), torch.Size([0])]
    """

    def begin(self) -> None:
        """Runs before a batch is embedded, in training."""

    def extra_embeddings(self, encoder: Encoder, features: dict[str, Tensor]) -> list[Tensor]:
        """Returns further embeddings (B, d) of the first column's texts, appended to those of the columns."""
        return []

    def compare(self, columns: list[Tensor], similarities: Tensor | None) -> tuple[list[Tensor], Tensor | None]:
        """Returns the columns to compare, and the positive pairs' similarities (B,), or None to compute them."""
        return columns, similarities

    def shared_negatives(self) -> tuple[Tensor, Tensor] | None:
        """Returns further negatives (M, d) of every anchor, with their text keys (M,)."""
        return None

    def finish(self, encoder: Encoder, features: dict[str, Tensor], keys: Tensor | None) -> None:
        """Runs after a batch, in training.

        Args:
            encoder: The encoder of the loss.
            features: The column of the positives, as the model's tokenizer returns it.
            keys: The text keys (B,) of the column, int64; or None.
        """


class Term(nn.Module):
    """A term of a loss. A term with weights of its own is a subclass with these weights.

    Args:
        option: The option that holds the weight and computes the term.

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
    """Returns the products of all options of one kind, by the options' names."""
    return {option_name(option): option.build(*arguments) for option in options if isinstance(option, kind)}


def check_compatible(options: Sequence[Any], other: str) -> None:
    """Raises a ValueError if an option cannot be combined with ``other``, a name in its ``incompatible``."""
    for option in options:
        if other in getattr(option, "incompatible", ()):
            raise ValueError(f"{type(option).__name__} cannot be combined with {other}: remove one of the two")


def option_name(option: object) -> str:
    """Returns the name of an option or its class, as used by logs and the command line.

    Example:
        >>> option_name(SourceOption)
        'source_option'
    """
    kind = option if isinstance(option, type) else type(option)
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind.__name__).lower()
