"""Lower layers that both views of a sentence share."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from accelerate.utils import recursively_apply
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import batch_to_device
from torch import Tensor, nn

from st_simcse.data.duplicates import text_keys
from st_simcse.losses.encoder import BatchEncoder, TokenizedBatch
from st_simcse.losses.options import EncoderOption
from st_simcse.models.layers import transformer_layers

__all__ = ["SharedEncoder", "SharedLayers", "SharedPass"]

_UNSHARABLE = (
    "SharedLayers would change or break this model's embeddings, because something lies between or after its layers, "
    "such as a pooling of several layers. Remove SharedLayers (--shared_layers)."
)


@dataclass(frozen=True)
class SharedLayers(EncoderOption):
    """Lower layers that both views of a sentence share: they run once, with one dropout mask for both views.

    If half of the layers are shared, a step computes a quarter less and needs a quarter less memory. Without dropout
    the loss and its gradients do not change.

    Args:
        layers: The number of the transformer's layers to share, or their share as a number below 1.

    Raises:
        ValueError: If ``layers`` is neither. A loss with this option raises it if none or all layers would be shared,
            if the model's layers cannot be shared, and if mini_batch_size is odd. Its ``forward`` raises it if two
            columns have different texts.

    Example:
        >>> from st_simcse import UnsupSimCSELoss
        >>> from st_simcse.demo import tiny_model
        >>> model = tiny_model(["Two dogs run."], layers=4).train()
        >>> loss = UnsupSimCSELoss(model, options=[SharedLayers(0.5)])
        >>> loss([model.preprocess(["Two dogs run.", "Two"])]).shape
        torch.Size([])
    """

    layers: float = field(
        metadata={
            "help": "Lower layers that both views share: their number, or below 1 their share of all layers.",
            "above": 0,
        }
    )
    # Different texts can share nothing, and in a shared layer the two views are equal.
    incompatible: ClassVar[frozenset[str]] = frozenset({"SupSimCSELoss", "AdaptiveLayerLoss", "views"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers > 1 and self.layers % 1:
            raise ValueError(
                f"the number of shared layers must be an integer of at least 1 or a share between 0 and 1, got "
                f"{self.layers}. To share none, omit the option."
            )

    def build(self, model: SentenceTransformer) -> partial[SharedEncoder]:
        layers = transformer_layers(model, "SharedLayers (--shared_layers)")
        shared = int(self.layers) if self.layers >= 1 else round(self.layers * len(layers))
        if not 0 < shared < len(layers):
            raise ValueError(
                f"{self.layers} would share {shared} of {len(layers)} layers, but at least one must be shared and one "
                f"must not. Choose from 1 to {len(layers) - 1}."
            )
        return partial(SharedEncoder, sharing=SharedPass(layers, shared))


class SharedPass(AbstractContextManager[None]):
    """A context that runs the lower layers once per pair of rows, for batches in which neighbouring rows are equal.

    Args:
        layers: The layers of the model.
        shared: The number of lower layers to share.

    Attributes:
        lower: The shared layers.
    """

    def __init__(self, layers: nn.ModuleList, shared: int) -> None:
        self.layers = layers
        # These are created once, because torch.compile compiles a model again for modules that it does not know.
        self.lower = [_OncePerPair(layer) for layer in layers[:shared]]

    def __enter__(self) -> None:
        # Layers are replaced in the list. Gradient checkpointing may or may not repeat hooks when it recomputes.
        for index, once in enumerate(self.lower):
            once.layer = self.layers[index]
            self.layers[index] = once

    def __exit__(self, *error: object) -> None:
        for index, once in enumerate(self.lower):
            self.layers[index] = once.layer


@dataclass
class SharedEncoder(BatchEncoder):
    """Embeds each sentence's two views in neighbouring rows, with shared lower layers.

    Args:
        sharing: The context in which the views are embedded.
    """

    sharing: SharedPass = field(kw_only=True)

    @torch.no_grad()
    def check(self) -> None:
        """Checks by a test that sharing keeps embeddings without dropout, which no list of architectures could tell."""
        super().check()
        if self.mini_batch_size is not None and self.mini_batch_size % 2:
            raise ValueError(
                "SharedLayers puts both views of a sentence into one mini-batch, so mini_batch_size must be even, got "
                f"{self.mini_batch_size}"
            )
        texts = ["A man plays a guitar on the street.", "Two dogs run.", "No."]
        features = batch_to_device(self.model.preprocess(texts), self.model.device)
        (pairs,) = self.arrange([features, features]).inputs
        expected = self.embed_without_dropout(pairs)
        try:
            with self.sharing:
                shared = self.embed_without_dropout(pairs)
        except Exception as error:
            raise ValueError(_UNSHARABLE) from error
        # Rounding to half precision changes a vector by a few percent, another text or layer by much more.
        tolerance = 1e-3 if expected.dtype in (torch.float32, torch.float64) else 0.1
        if ((shared - expected).norm(dim=1) > tolerance * expected.norm(dim=1)).any():
            raise ValueError(_UNSHARABLE)

    def arrange(self, columns: list[dict[str, Tensor]]) -> TokenizedBatch:
        """Repeats every row of the first column, so that the two copies are neighbours.

        Raises:
            ValueError: If texts are not separate rows, or the columns have different texts.
        """
        first, second = columns
        if first.get("input_ids") is not second.get("input_ids"):  # a single column is used for both views
            keys, others = text_keys(first), text_keys(second)
            if keys is not None and others is not None and not torch.equal(keys, others):
                raise ValueError(
                    "the two columns have different texts, but SharedLayers would read only the first. Keep one column "
                    "with dataset.select_columns, or remove SharedLayers (--shared_layers)."
                )
        single = super().arrange([first])
        if single.places is None:
            raise ValueError(
                "SharedLayers needs texts as padded rows of tokens that can be sorted and split. With flash attention, "
                "set model[0].unpad_inputs = False. Otherwise remove SharedLayers (--shared_layers)."
            )
        pairs = {
            name: value.repeat_interleave(2, dim=0) if isinstance(value, Tensor) and value.ndim else value
            for name, value in single.inputs[0].items()
        }
        return TokenizedBatch([pairs], 2, torch.cat([2 * single.places, 2 * single.places + 1]))

    def embed(self, batch: TokenizedBatch) -> list[list[Tensor]]:
        with self.sharing:
            return super().embed(batch)

    def embed_minibatch(self, *args: Any, **kwargs: Any) -> Any:
        with self.sharing:
            return super().embed_minibatch(*args, **kwargs)


class _OncePerPair(nn.Module):
    """A layer that runs on the first row of each pair and returns the output for both rows."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:  # models read attributes of their layers, such as the kind of attention
            return getattr(super().__getattr__("layer"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        hidden = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        rows, width = hidden.shape[:2]

        def first(value: Tensor) -> Tensor:
            is_mask = value.ndim == 2 and value.shape[1] == width and not value.is_floating_point()
            if len(value) != rows or not (value.ndim > 2 or is_mask):
                return value  # it is the same for all rows, such as DeBERTa's embeddings of distances
            # Without contiguous, each of query, key and value would keep a copy.
            return value[::2].contiguous() if value.ndim == 3 else value[::2]

        def both(value: Tensor) -> Tensor:
            has_rows = value.ndim > 1 and len(value) == rows // 2
            return torch.stack((value, value), dim=1).flatten(0, 1) if has_rows else value

        args, kwargs = recursively_apply(first, (args, kwargs))
        return recursively_apply(both, self.layer(*args, **kwargs))
