"""Columns of tokens become embeddings: sorted by length, in mini-batches with gradient caching, or without dropout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import Tensor, nn

from st_simcse.losses.lookup import looked_up_once
from st_simcse.losses.st_internals import (
    CachedLossMixin,
    RandContext,
    chunked_outputs,
    has_static_embedding_input,
    merge_feature_batches,
)
from st_simcse.models.layers import reads_padding
from st_simcse.models.unwrapping import unwrapped

__all__ = ["BatchEncoder", "TokenizedBatch"]

# Enough rows to keep the cores of a CPU busy, few enough to be of like length.
ROWS_PER_PASS = 48
# Cached mini-batches have few different widths: each leaves holes of its own in the heap, and caching saves memory.
CACHED_WIDTH_STEP = 16


@dataclass(frozen=True)
class TokenizedBatch:
    """The tokens of a batch of B rows as the model reads them, and what else is known of it.

    Args:
        inputs: one dict of features for the rows of all columns, or one a column.
        count: the number of the columns.
        places: (count, B) int64, where the columns' rows are in the single dict; None for one a column.
        texts: how many columns of texts it came in: one where both views are made of it.
        keys: (B,) int64 a column, equal for equal texts; None if that does not matter or a column has no tokens.
        labels: those of the dataset, or None.
    """

    inputs: list[dict[str, Tensor]]
    count: int
    places: Tensor | None = None
    texts: int = 0
    keys: list[Tensor] | None = None
    labels: Tensor | None = None

    def columns(self, embedded: list[Tensor]) -> list[Tensor]:
        """A matrix (B, d) a column, out of one a dict; further matrices of a source stay behind them."""
        return embedded if self.places is None else [*embedded[0][self.places], *embedded[1:]]


@dataclass
class BatchEncoder(CachedLossMixin):
    """Embeds the columns of a batch with a model and a projection head.

    A loss makes one a batch, since a trainer exchanges the loss's model for a wrapped one.

    Args:
        model: the SentenceTransformer that is trained, or what wraps it.
        head: the projection head, or None.
        mini_batch_size: rows at a time with gradient caching; None for no caching.
        gather_across_devices: whether the rows of all processes are one batch.

    Example:
        >>> from st_simcse.demo import tiny_model
        >>> model = tiny_model(["Two dogs run.", "No."])
        >>> encoder = BatchEncoder(model)
        >>> batch = encoder.arrange([model.preprocess(["No.", "Two dogs run."])])
        >>> batch.inputs[0]["attention_mask"].sum(1).tolist(), batch.places.tolist()  # the longest first
        ([6, 4], [[1, 0]])
        >>> (column,) = batch.columns([torch.cat(passes) for passes in encoder.embed(batch)])
        >>> column.shape
        torch.Size([2, 64])
    """

    model: Any
    head: nn.Module | None = None
    mini_batch_size: int | None = None  # type: ignore[assignment]  # None where nothing is cached
    gather_across_devices: bool = False

    def check(self) -> None:
        """Whether the model can be embedded so.

        Raises:
            ValueError: if its batches cannot be cut into mini-batches.
        """
        if self.mini_batch_size is None:
            return
        plain = unwrapped(self.model)
        if has_static_embedding_input(plain):
            raise ValueError(
                "a StaticEmbedding model cannot be cut into mini-batches, and its activations are small: leave "
                "mini_batch_size out and raise the batch size instead"
            )
        if architecture := reads_padding(plain[0]):
            raise ValueError(
                f"the architecture {architecture} reads padding, so that its embeddings would be others in "
                "mini-batches, which are of other widths: leave mini_batch_size out, and lower the batch size or use "
                "gradient_checkpointing instead"
            )

    def arrange(self, columns: list[dict[str, Tensor]]) -> TokenizedBatch:
        """The rows of all columns as one, the longest first.

        Rows of like length share a forward pass, which saves most of the padding. Columns that are no rows of tokens,
        such as a StaticEmbedding's, stay as they are, and so do those that a wrapper wants to find unmerged, or whose
        padding the transformer reads.
        """
        can_be_merged = _can_be_widened(columns) and not reads_padding(unwrapped(self.model)[0])
        alike = columns
        if not _leaves_out_prompts(self.model):  # then those whose prompts are of different lengths can be merged
            alike = [{name: column[name] for name in column if name != "prompt_length"} for column in columns]
        rows = merge_feature_batches(alike) if can_be_merged else None
        if rows is None or "attention_mask" not in rows:
            return TokenizedBatch(columns, len(columns))
        lengths = rows["attention_mask"].sum(1)
        if self.mini_batch_size is not None:
            lengths = (lengths - 1) // CACHED_WIDTH_STEP
        order = lengths.argsort(descending=True, stable=True)
        features = {key: value[order] if _has_rows(value, order) else value for key, value in rows.items()}
        return TokenizedBatch([features], len(columns), order.argsort().view(len(columns), -1))

    def embed(self, batch: TokenizedBatch) -> list[list[Tensor]]:
        """Projected embeddings, the outputs of one pass or several for each dict of its inputs."""
        return [self._passes(features, batch.places is not None) for features in batch.inputs]

    def embed_cached(self, batch: TokenizedBatch, calculate_loss: Callable[..., Tensor]) -> Tensor:
        """The loss with gradient caching: ``calculate_loss(embedded, batch)`` of what :meth:`embed` gives.

        Its backward pass embeds every mini-batch again.
        """
        self.calculate_loss = calculate_loss  # type: ignore[method-assign]
        return self.forward_cached(batch.inputs, batch)  # type: ignore[arg-type]  # for calculate_loss

    def embed_without_dropout(self, features: dict[str, Tensor]) -> Tensor:
        """The projected embeddings (B, d) of a column, as the model gives them in evaluation, with gradients."""
        batch = BatchEncoder.arrange(self, [features])
        with _evaluation_mode(self.model, self.head):
            embedded = torch.cat(self._passes(batch.inputs[0], batch.places is not None))
        return batch.columns([embedded])[0]

    def embed_minibatch(
        self,
        sentence_feature: dict[str, Tensor],
        begin: int,
        end: int,
        with_grad: bool,
        copy_random_state: bool,
        random_state: RandContext | None = None,
    ) -> tuple[Tensor, RandContext | None]:
        # The head belongs to the replayed part of GradCache, so that gradient accumulation and loss scaling reach it.
        embeddings, random_state = super().embed_minibatch(
            sentence_feature, begin, end, with_grad, copy_random_state, random_state
        )
        with nullcontext() if with_grad else torch.no_grad():
            return self._project(embeddings), random_state

    def _passes(self, features: dict[str, Tensor], is_sorted: bool) -> list[Tensor]:
        """Rows sorted by length in several passes of few rows on a CPU, all else in one."""
        on_cpu = is_sorted and features["attention_mask"].device.type == "cpu"
        several = on_cpu and len(features["attention_mask"]) > ROWS_PER_PASS and "input_ids" in features
        # Around all passes: the autocast of each would cast every weight anew.
        with (
            torch.autocast("cpu", enabled=torch.is_autocast_enabled("cpu")),
            looked_up_once(self.model, features["input_ids"]) if several else nullcontext(),
        ):
            outputs = chunked_outputs(self.model, features, ROWS_PER_PASS if on_cpu else None, task=None)
        return [self._project(output["sentence_embedding"]) for output in outputs]

    def _project(self, embeddings: Tensor) -> Tensor:
        if self.head is None:
            return embeddings
        # Of FSDP in mixed precision they come in half precision, and its autocast is not for the head.
        weight = next(self.head.parameters(), embeddings)
        projected: Tensor = self.head(embeddings.to(weight.dtype))
        return projected


def _can_be_widened(columns: Sequence[dict[str, Any]]) -> bool:
    """Whether rows have padding on one side alone when the narrower columns get theirs, on the right."""
    masks = [column["attention_mask"] for column in columns if "attention_mask" in column]
    widths = {mask.shape[1] for mask in masks}
    return len(widths) < 2 or all(bool(mask[:, 0].all()) for mask in masks)


def _leaves_out_prompts(model: nn.Module) -> bool:
    """Whether a pooling may need to know how long the prompt is; without ST's own, another module may."""
    poolings = [part for part in model.modules() if isinstance(part, Pooling)]
    return not poolings or not all(pooling.include_prompt for pooling in poolings)


def _has_rows(value: Any, order: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape[:1] == order.shape


@contextmanager
def _evaluation_mode(*modules: nn.Module | None) -> Iterator[None]:
    """No dropout in what is in training mode, and afterwards as it was; what is frozen stays so."""
    training = [part for module in modules if module is not None for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True
