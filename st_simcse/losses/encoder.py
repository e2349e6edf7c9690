"""Embedding of a batch's columns: sorted by length, in mini-batches with gradient caching, or without dropout."""

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

# These are enough rows to keep the cores of a CPU busy, and few enough to have similar lengths.
ROWS_PER_PASS = 48
# Cached mini-batches have few different widths. Each width fragments the heap, and caching is there to save memory.
CACHED_WIDTH_STEP = 16


@dataclass(frozen=True)
class TokenizedBatch:
    """The tokens of a batch of B rows as inputs of the model, with further data about the batch.

    Args:
        inputs: One dict of features for the rows of all columns, or one dict per column.
        count: The number of columns.
        places: (count, B) int64, the places of the columns' rows in the single dict; None with one dict per column.
        texts: The number of columns in the dataset: one if both views come from the same column.
        keys: A (B,) int64 tensor per column, equal for equal texts. None if duplicates are not masked or a column has
            no tokens.
        labels: The labels of the dataset, or None.
    """

    inputs: list[dict[str, Tensor]]
    count: int
    places: Tensor | None = None
    texts: int = 0
    keys: list[Tensor] | None = None
    labels: Tensor | None = None

    def columns(self, embedded: list[Tensor]) -> list[Tensor]:
        """Splits one matrix per dict into a (B, d) matrix per column. Further matrices of a source stay at the end."""
        return embedded if self.places is None else [*embedded[0][self.places], *embedded[1:]]


@dataclass
class BatchEncoder(CachedLossMixin):
    """Embeds the columns of a batch with a model and a projection head.

    A loss makes a new encoder for each batch, because a trainer may replace the loss's model by a wrapped one.

    Args:
        model: The SentenceTransformer to train, or a wrapper around it.
        head: The projection head, or None.
        mini_batch_size: The number of rows per mini-batch with gradient caching; None for no caching.
        gather_across_devices: Whether the rows of all processes form one batch.

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
    mini_batch_size: int | None = None  # type: ignore[assignment]  # None disables caching
    gather_across_devices: bool = False

    def check(self) -> None:
        """Checks whether the model can be embedded in mini-batches, if these are requested.

        Raises:
            ValueError: If its batches cannot be split into mini-batches.
        """
        if self.mini_batch_size is None:
            return
        if any(isinstance(part, nn.BatchNorm1d | nn.SyncBatchNorm) for part in (self.head or nn.Identity()).modules()):
            raise ValueError(
                "the projection head has batch normalization, which would normalize each mini-batch instead of the "
                "batch. Omit mini_batch_size, or use nn.LayerNorm in the head."
            )
        plain = unwrapped(self.model)
        if has_static_embedding_input(plain):
            raise ValueError(
                "a StaticEmbedding model cannot be embedded in mini-batches, and its activations are small. Omit "
                "mini_batch_size and raise the batch size instead."
            )
        if architecture := reads_padding(plain[0]):
            raise ValueError(
                f"the architecture {architecture} reads padding, so its embeddings would differ in mini-batches, which "
                "are padded to other widths. Omit mini_batch_size, and lower the batch size or use "
                "gradient_checkpointing instead."
            )

    def arrange(self, columns: list[dict[str, Tensor]]) -> TokenizedBatch:
        """Merges the rows of all columns into one batch, longest first.

        Rows of similar length share a forward pass, which saves most of the padding. The columns stay separate if they
        are not rows of tokens (StaticEmbedding), if a wrapper needs them unmerged, or if the transformer reads padding.
        """
        can_be_merged = _can_be_widened(columns) and not reads_padding(unwrapped(self.model)[0])
        alike = columns
        if not _leaves_out_prompts(self.model):  # the prompts' lengths are unused; if they differ, they prevent a merge
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
        """Returns projected embeddings: for each dict of inputs, the outputs of one or several passes."""
        return [self._passes(features, batch.places is not None) for features in batch.inputs]

    def embed_cached(self, batch: TokenizedBatch, calculate_loss: Callable[..., Tensor]) -> Tensor:
        """Computes the loss ``calculate_loss(embeddings, batch)`` with gradient caching.

        The embeddings are those of :meth:`embed`. The backward pass embeds every mini-batch again.
        """
        self.calculate_loss = calculate_loss  # type: ignore[method-assign]
        return self.forward_cached(batch.inputs, batch)  # type: ignore[arg-type]  # for calculate_loss

    def embed_without_dropout(self, features: dict[str, Tensor]) -> Tensor:
        """Returns projected embeddings (B, d) of a column in evaluation mode, with gradients."""
        batch = BatchEncoder.arrange(self, [features])
        with evaluation_mode(self.model, self.head):
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
        # The head is in the part that GradCache replays, so gradient accumulation and loss scaling include it.
        # It is also in the random context, so its dropout draws the same mask again.
        with random_state or nullcontext(), nullcontext() if with_grad else torch.no_grad():
            embeddings, state = super().embed_minibatch(sentence_feature, begin, end, with_grad, copy_random_state)
            return self._project(embeddings), state

    def _passes(self, features: dict[str, Tensor], is_sorted: bool) -> list[Tensor]:
        """Runs rows that are sorted by length in several small passes on a CPU, and everything else in one pass."""
        on_cpu = is_sorted and features["attention_mask"].device.type == "cpu"
        several = on_cpu and len(features["attention_mask"]) > ROWS_PER_PASS and "input_ids" in features
        # One autocast context for all passes keeps its cache of cast weights. One per pass would cast them again.
        with (
            torch.autocast("cpu", enabled=torch.is_autocast_enabled("cpu")),
            looked_up_once(self.model, features["input_ids"]) if several else nullcontext(),
        ):
            outputs = chunked_outputs(self.model, features, ROWS_PER_PASS if on_cpu else None, task=None)
        # A head with batch normalization must see the whole batch, as it does on a GPU.
        return [self._project(torch.cat([output["sentence_embedding"] for output in outputs]))]

    def _project(self, embeddings: Tensor) -> Tensor:
        if self.head is None:
            return embeddings
        # Under FSDP's mixed precision the embeddings have half precision, and its autocast does not include the head.
        weight = next(self.head.parameters(), embeddings)
        projected: Tensor = self.head(embeddings.to(weight.dtype))
        return projected


def _can_be_widened(columns: Sequence[dict[str, Any]]) -> bool:
    """Returns whether padding the narrower columns on the right leaves all rows with padding on one side only."""
    masks = [column["attention_mask"] for column in columns if "attention_mask" in column]
    widths = {mask.shape[1] for mask in masks}
    return len(widths) < 2 or all(bool(mask[:, 0].all()) for mask in masks)


def _leaves_out_prompts(model: nn.Module) -> bool:
    """Returns whether a pooling may need the length of the prompt. Without ST's own pooling, another module may."""
    poolings = [part for part in model.modules() if isinstance(part, Pooling)]
    return not poolings or not all(pooling.include_prompt for pooling in poolings)


def _has_rows(value: Any, order: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape[:1] == order.shape


@contextmanager
def evaluation_mode(*modules: nn.Module | None) -> Iterator[None]:
    """Turns dropout off in modules that are in training mode, and restores their mode afterwards.

    Modules in evaluation mode, such as frozen ones, stay in it.
    """
    training = [part for module in modules if module is not None for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True
