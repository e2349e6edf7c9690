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
    "with shared lower layers this model's embeddings are others, or none: what lies between its layers or after them, "
    "such as a pooling of several layers, does not go with that. Leave SharedLayers (--shared_layers) out"
)


@dataclass(frozen=True)
class SharedLayers(EncoderOption):
    """Both views of a sentence go through the lower layers once, with one dropout mask; only those above have two.

    With half of the layers shared a step computes a quarter less and needs a quarter less memory. With dropout off the
    loss and its gradients are the same.

    Args:
        layers: how many of the transformer's layers are shared, or as a number below 1 which share of them.

    Raises:
        ValueError: for a number that is neither; in a loss, if none or all layers would be shared, for a model whose
            layers cannot be, an odd mini_batch_size, and in ``forward`` for two columns of different texts.

    Example:
        >>> from st_simcse import UnsupSimCSELoss
        >>> from st_simcse.demo import tiny_model
        >>> model = tiny_model(["Two dogs run."], layers=4).train()
        >>> loss = UnsupSimCSELoss(model, options=[SharedLayers(0.5)])
        >>> loss([model.preprocess(["Two dogs run.", "Two"])]).shape
        torch.Size([])
    """

    layers: float = field(
        metadata={"help": "Lower layers that both views go through once: how many, or below 1 which share of them."}
    )
    # Nothing can be shared of texts that differ, and in a shared layer the views are equal.
    incompatible: ClassVar[frozenset[str]] = frozenset({"SupSimCSELoss", "AdaptiveLayerLoss", "views"})

    def __post_init__(self) -> None:
        if not (0 < self.layers < 1 or (self.layers >= 1 and self.layers % 1 == 0)):
            raise ValueError(
                f"shared layers are a whole number from 1 on or a share between 0 and 1, got {self.layers}: to share "
                "none, leave the option out"
            )

    def build(self, model: SentenceTransformer) -> partial[SharedEncoder]:
        layers = transformer_layers(model, "SharedLayers (--shared_layers)")
        shared = int(self.layers) if self.layers >= 1 else round(self.layers * len(layers))
        if not 0 < shared < len(layers):
            raise ValueError(
                f"{self.layers} shared of {len(layers)} layers are {shared}, and both views need at least one that is "
                f"shared and one that is not: choose from 1 to {len(layers) - 1}"
            )
        return partial(SharedEncoder, sharing=SharedPass(layers, shared))


class SharedPass(AbstractContextManager["SharedPass"]):
    """While it is open, the lower layers take the rows of a forward pass as pairs of equal neighbours.

    Args:
        layers: the model's.
        shared: how many of them.

    Attributes:
        lower: the shared ones.
    """

    def __init__(self, layers: nn.ModuleList, shared: int) -> None:
        self.layers = layers
        # Kept, since a compiled model is compiled anew for modules that it does not know.
        self.lower = [_OncePerPair(layer) for layer in layers[:shared]]

    def __enter__(self) -> SharedPass:
        # In the list rather than by hooks, which recomputation in gradient checkpointing may or may not repeat.
        for index, once in enumerate(self.lower):
            once.layer = self.layers[index]
            self.layers[index] = once
        return self

    def __exit__(self, *error: object) -> None:
        for index, once in enumerate(self.lower):
            self.layers[index] = once.layer


@dataclass
class SharedEncoder(BatchEncoder):
    """Embeds each sentence's two views as neighbours, with shared lower layers.

    Args:
        sharing: open while the views are embedded.
    """

    sharing: SharedPass = field(kw_only=True)

    @torch.no_grad()
    def check(self) -> None:
        """Whether embeddings without dropout stay as they are, which no list of known architectures could tell."""
        super().check()
        if self.mini_batch_size is not None and self.mini_batch_size % 2:
            raise ValueError(
                "with SharedLayers both views of a sentence are in one mini-batch: mini_batch_size has to be even, got "
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
        # Rounding to half precision changes a vector by some percents, another text or layer by far more.
        tolerance = 1e-3 if expected.dtype in (torch.float32, torch.float64) else 0.1
        if ((shared - expected).norm(dim=1) > tolerance * expected.norm(dim=1)).any():
            raise ValueError(_UNSHARABLE)

    def arrange(self, columns: list[dict[str, Tensor]]) -> TokenizedBatch:
        """Every row of the first column twice, as neighbours.

        Raises:
            ValueError: if a text is not one row, or the columns hold different texts.
        """
        first, second = columns
        if first.get("input_ids") is not second.get("input_ids"):  # a single column is both
            keys, others = text_keys(first), text_keys(second)
            if keys is not None and others is not None and not torch.equal(keys, others):
                raise ValueError(
                    "the two columns hold different texts, and with SharedLayers only the first would be read: keep "
                    "one column with dataset.select_columns, or leave SharedLayers (--shared_layers) out"
                )
        single = super().arrange([first])
        if single.places is None:
            raise ValueError(
                "SharedLayers needs texts in padded rows of tokens that a pass may order and cut as it likes: with "
                "flash attention set model[0].unpad_inputs = False, else leave SharedLayers (--shared_layers) out"
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
    """A layer that computes the first row of each pair, and gives what comes out to both."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:  # what models ask their layers, such as for their kind of attention
            return getattr(super().__getattr__("layer"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        hidden = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        rows, width = hidden.shape[:2]

        def first(value: Tensor) -> Tensor:
            is_mask = value.ndim == 2 and value.shape[1] == width and not value.is_floating_point()
            if len(value) != rows or not (value.ndim > 2 or is_mask):
                return value  # the same for all rows, such as DeBERTa's embeddings of distances
            # Else each of query, key and value would keep a copy.
            return value[::2].contiguous() if value.ndim == 3 else value[::2]

        def both(value: Tensor) -> Tensor:
            has_rows = value.ndim > 1 and len(value) == rows // 2
            return torch.stack((value, value), dim=1).flatten(0, 1) if has_rows else value

        args, kwargs = recursively_apply(first, (args, kwargs))
        return recursively_apply(both, self.layer(*args, **kwargs))
