"""What a MatryoshkaLoss or an AdaptiveLayerLoss around a loss does to it: each calls it several times for one batch."""

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

# The wrappers of ST by their names: the class, the argument of a loss that it does not go with, and why.
WRAPPERS: dict[str, tuple[type[nn.Module], str, str]] = {
    "MatryoshkaLoss": (
        MatryoshkaLoss,
        "projection_head",
        "MatryoshkaLoss truncates the embeddings that are trained, so that a projection head on top of them cannot be "
        "of one width: leave projection_head out",
    ),
    "AdaptiveLayerLoss": (
        AdaptiveLayerLoss,
        "mini_batch_size",
        "AdaptiveLayerLoss needs the layers of the whole batch at once: leave mini_batch_size out, and lower the batch "
        "size or use gradient_checkpointing instead",
    ),
}

# AdaptiveLayerLoss calls a loss once a layer, and hands the layers over in the features that the model was given first.
_features_of_batch: WeakKeyDictionary[TransformerDecorator, list[dict[str, Tensor]]] = WeakKeyDictionary()


@runtime_checkable
class WrappedLoss(Protocol):
    """What matters of a loss inside a wrapper."""

    options: list[Any]
    projection_head: nn.Module | None
    mini_batch_size: int | None


@dataclass(frozen=True)
class Wrappers:
    """Those that are calling a loss, and true if there is one; a Matryoshka2dLoss is both.

    Attributes:
        names: which of them.
        is_first_call: whether this is the first call for a batch, for the last layer and the largest dimension.
        decorator: what an AdaptiveLayerLoss has put in place of the transformer's forward pass; or None.
    """

    names: frozenset[str] = frozenset()
    is_first_call: bool = True
    decorator: TransformerDecorator | None = None

    @classmethod
    def around(cls, model: nn.Module, calculate_loss: Any) -> Wrappers:
        """Those that have put something in place of a model's forward pass, or of a loss's ``calculate_loss``."""
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
        """The features that the model is given: in an AdaptiveLayerLoss those of the first call."""
        return columns if self.decorator is None else _features_of_batch.setdefault(self.decorator, columns)

    def check(self, loss: WrappedLoss) -> None:
        """Whether a loss can be inside these wrappers.

        Raises:
            ValueError: if it cannot; says which option to leave out.
        """
        for name, (_, argument, reason) in WRAPPERS.items():
            if name in self.names:
                check_compatible(loss.options, name)
                if getattr(loss, argument) is not None:
                    raise ValueError(reason)


def check_wrappers(loss: nn.Module, compiled_in_processes: bool = False) -> None:
    """Whether every loss of ours goes with the wrappers around it, and these with a model compiled in each process.

    Raises:
        ValueError: if one does not; says which option to leave out.
    """
    for wrapper in loss.modules():
        if compiled_in_processes and isinstance(wrapper, AdaptiveLayerLoss):
            raise ValueError(
                "in several processes torch_compile does not go with AdaptiveLayerLoss or Matryoshka2dLoss, of which "
                "DistributedDataParallel sees a compiled model's parameters used several times: leave torch_compile out"
            )
        if names := frozenset(name for name, (kind, *_) in WRAPPERS.items() if isinstance(wrapper, kind)):
            wrappers = Wrappers(names)
            for inner in wrapper.modules():
                if isinstance(inner, WrappedLoss):
                    wrappers.check(inner)
