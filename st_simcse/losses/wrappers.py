"""Support for MatryoshkaLoss and AdaptiveLayerLoss around a loss. Each calls the loss several times per batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

from sentence_transformers.sentence_transformer.losses import AdaptiveLayerLoss, MatryoshkaLoss
from torch import Tensor, nn

from st_simcse.losses.options import check_compatible
from st_simcse.losses.st_internals import CachedLossDecorator, ForwardDecorator, TransformerDecorator
from st_simcse.models.unwrapping import unwrapped

__all__ = ["WRAPPERS", "Wrappers", "check_wrappers"]

# The wrappers of ST by name: the class, the argument of a loss that it cannot be combined with, and the message.
WRAPPERS: dict[str, tuple[type[nn.Module], str, str]] = {
    "MatryoshkaLoss": (
        MatryoshkaLoss,
        "projection_head",
        "MatryoshkaLoss truncates the embeddings to several widths, but a projection head accepts only one width. "
        "Omit projection_head.",
    ),
    "AdaptiveLayerLoss": (
        AdaptiveLayerLoss,
        "mini_batch_size",
        "AdaptiveLayerLoss needs the layers of the whole batch at once. Omit mini_batch_size, and lower the batch size "
        "or use gradient_checkpointing instead.",
    ),
}

# AdaptiveLayerLoss calls a loss once per layer, and returns the layers in the features passed to the model first.
_features_of_batch: WeakKeyDictionary[TransformerDecorator, list[dict[str, Tensor]]] = WeakKeyDictionary()


@runtime_checkable
class WrappedLoss(Protocol):
    """The attributes of a loss that matter inside a wrapper."""

    options: list[Any]
    projection_head: nn.Module | None
    mini_batch_size: int | None


@dataclass(frozen=True)
class Wrappers:
    """The wrappers that are calling a loss. True if there are any. A Matryoshka2dLoss counts as both.

    Attributes:
        names: The names of the wrappers.
        is_first_call: Whether this is the first call for a batch, with the last layer and the largest dimension.
        decorator: The replacement of the transformer's forward pass by an AdaptiveLayerLoss; or None.
    """

    names: frozenset[str] = frozenset()
    is_first_call: bool = True
    decorator: TransformerDecorator | None = None

    @classmethod
    def around(cls, model: nn.Module, calculate_loss: Any) -> Wrappers:
        """Returns the wrappers that have replaced a model's forward pass or a loss's ``calculate_loss``."""
        transformer = unwrapped(model)[0].forward
        truncating = model.forward if isinstance(model.forward, ForwardDecorator) else None
        decorator = transformer if isinstance(transformer, TransformerDecorator) else None
        calling = {
            "MatryoshkaLoss": truncating is not None or isinstance(calculate_loss, CachedLossDecorator),
            "AdaptiveLayerLoss": decorator is not None,
        }
        return cls(
            frozenset(name for name, calls in calling.items() if calls),
            is_first_call=not (truncating and truncating.cache) and (decorator is None or decorator.layer_idx is None),
            decorator=decorator,
        )

    def __bool__(self) -> bool:
        return bool(self.names)

    def features_of_batch(self, columns: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        """Returns the features to pass to the model. Inside an AdaptiveLayerLoss they are those of the first call."""
        return columns if self.decorator is None else _features_of_batch.setdefault(self.decorator, columns)

    def whole(self, labels: Tensor | None) -> Tensor | None:
        """Returns a teacher's embeddings in full width. MatryoshkaLoss cuts labels that are as wide as the model's.

        The cut labels are a view, so their rows are still as far apart in memory as the full rows are wide.
        """
        if labels is None or labels.ndim < 2 or "MatryoshkaLoss" not in self.names:
            return labels
        width = max(labels.stride(-2), labels.shape[-1])
        return labels.as_strided((*labels.shape[:-1], width), labels.stride())

    def check(self, loss: WrappedLoss) -> None:
        """Checks that a loss can be inside these wrappers.

        Raises:
            ValueError: If it cannot. The message says which option to omit.
        """
        for name, (_, argument, reason) in WRAPPERS.items():
            if name in self.names:
                check_compatible(loss.options, name)
                if getattr(loss, argument) is not None:
                    raise ValueError(reason)


def check_wrappers(loss: nn.Module, compiled_in_processes: bool = False) -> None:
    """Checks that the losses of st_simcse support the wrappers around them, and these a compiled model.

    Args:
        loss: The loss of a trainer, possibly with wrappers around losses of st_simcse.
        compiled_in_processes: Whether there are several processes, each with a compiled model.

    Raises:
        ValueError: If a combination is not supported. The message says which option to omit.
    """
    for wrapper in loss.modules():
        if compiled_in_processes and isinstance(wrapper, AdaptiveLayerLoss):
            raise ValueError(
                "AdaptiveLayerLoss and Matryoshka2dLoss use the model's parameters several times per step, which "
                "DistributedDataParallel does not support for a compiled model. Omit torch_compile."
            )
        if names := frozenset(name for name, (kind, *_) in WRAPPERS.items() if isinstance(wrapper, kind)):
            wrappers = Wrappers(names)
            for inner in wrapper.modules():
                if isinstance(inner, WrappedLoss):
                    wrappers.check(inner)
