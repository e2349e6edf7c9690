"""Batches of rows of similar length, and tokenization once for all epochs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.data_collator import BaseDataCollator
from sentence_transformers.base.modules import Router
from sentence_transformers.base.sampler import DefaultBatchSampler
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
from transformers.trainer_pt_utils import get_length_grouped_indices

from st_simcse.models.unwrapping import unwrapped

__all__ = ["LengthGroupedBatchSampler", "pad", "token_collator", "token_ids", "tokenize"]


class LengthGroupedBatchSampler(DefaultBatchSampler):
    """Batches of rows of similar length in random order, for ST's ``batch_sampler`` argument.

    Batches need less padding, and length alone no longer distinguishes a positive from the in-batch negatives.

    Rows are drawn at random in groups of up to 50 batches and sorted by their number of characters within each group.
    The batches are then shuffled. A batch that is not full comes last. The arguments are those that ST passes to every
    batch sampler.

    Example:
        >>> dataset = Dataset.from_dict({"sentence": ["Ah.", "One two three."] * 16})
        >>> sampler = LengthGroupedBatchSampler(dataset, batch_size=4, drop_last=False)
        >>> sorted(row for batch in sampler for row in batch) == list(range(32))
        True
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        drop_last: bool,
        valid_label_columns: list[str] | None = None,
        generator: torch.Generator | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(dataset, batch_size, drop_last, valid_label_columns, generator, seed)
        columns = [name for name in dataset.column_names if name not in (valid_label_columns or [])]
        self.lengths = [0] * len(dataset)
        for name in columns:
            self.lengths = [total + _length(cell) for total, cell in zip(self.lengths, dataset[name], strict=True)]

    def __iter__(self) -> Iterator[list[int]]:
        generator = self.generator or torch.Generator()
        generator.manual_seed(self.seed + self.epoch)
        indices = get_length_grouped_indices(self.lengths, self.batch_size, generator=generator)
        batches = [indices[begin : begin + self.batch_size] for begin in range(0, len(indices), self.batch_size)]
        rest = [batches.pop()] if batches and len(batches[-1]) < self.batch_size else []
        for batch in torch.randperm(len(batches), generator=generator).tolist():
            yield batches[batch]
        if not self.drop_last:
            yield from rest


def _length(cell: Any) -> int:
    """Returns the number of characters or tokens of a cell. A cell may be a list of texts."""
    is_list = isinstance(cell, list) and bool(cell) and isinstance(cell[0], str)
    return sum(map(len, cell)) if is_list else len(cell or ())


def tokenize(dataset: Dataset, model: SentenceTransformer, collator: BaseDataCollator | None = None) -> Dataset:
    """Replaces the texts of a Dataset with token ids, so that they are tokenized once and not in every epoch.

    Use :func:`token_collator` to collate the result. The token ids are stored on disk, as the texts were. Labels do not
    change.

    Args:
        dataset: A Dataset with columns of texts and possibly a label.
        model: The model that the texts are for.
        collator: The data collator. It determines the prompt of each column and the route of a Router. If None, ST's
            own collator is used, without prompts or routes.

    Returns:
        The Dataset with a list of token ids in place of each text.

    Raises:
        ValueError: If the model's inputs are not one row of tokens per text, as for a StaticEmbedding, or if the routes
            of a Router pad differently.

    Example:
        >>> from st_simcse.demo import tiny_model
        >>> tokenize(Dataset.from_dict({"sentence": ["Two dogs"]}), tiny_model(["Two dogs"]))[0]
        {'sentence': [2, 6, 5, 3]}
    """
    routers = [part for part in unwrapped(model) if isinstance(part, Router)]
    routes: list[Any] = [modules for router in routers for modules in router.sub_modules.values()]
    tokenizers = [modules[0].tokenizer for modules in routes]
    if len({(tokenizer.pad_token_id, tokenizer.padding_side) for tokenizer in tokenizers}) > 1:
        raise ValueError("the routes of this model pad differently, so its texts cannot be tokenized in advance")

    def ids(texts: list[str], **options: Any) -> dict[str, list[list[int]]]:
        return {"ids": token_ids(model, texts, **options)}

    # ST's collator knows which columns hold texts, and their prompts and routes.
    collator = replace(collator or SentenceTransformerDataCollator(model.preprocess), preprocess_fn=ids)

    def rows(batch: dict[str, list[Any]]) -> dict[str, list[list[int]]]:
        columns = collator([dict(zip(batch, cells, strict=True)) for cells in zip(*batch.values(), strict=True)])
        return {name: columns[f"{name}_ids"] for name in batch if f"{name}_ids" in columns}

    return dataset.map(rows, batched=True, desc="Tokenizing")


def token_ids(model: SentenceTransformer, texts: list[str], **options: Any) -> list[list[int]]:
    """Returns the token ids of each text, as the model's tokenizer produces them.

    Args:
        model: The model that the texts are for.
        texts: The texts.
        **options: Keyword arguments of ``model.preprocess``.

    Raises:
        ValueError: If the model's inputs are not one row of tokens per text, or if its tokens have types.
    """
    tokens = model.preprocess(texts, **options)
    if "attention_mask" not in tokens:
        raise ValueError(
            "this model has no attention mask, and only the inputs of a transformer can be tokenized in advance"
        )
    if tokens.get("token_type_ids", torch.zeros(())).any():
        raise ValueError("this model's tokens have types, so its texts cannot be tokenized in advance")
    masks = tokens["attention_mask"].bool()
    return [row[mask].tolist() for row, mask in zip(tokens["input_ids"], masks, strict=True)]


def pad(model: SentenceTransformer, rows: list[list[int]], **options: Any) -> dict[str, Any]:
    """Returns the features of tokenized texts, equal to those that ``model.preprocess`` returns for the texts."""
    # Features besides the tokens, such as the route and the length of the prompt that the ids begin with.
    features = model.preprocess(["."], **options)
    types = {"token_type_ids"} & features.keys()
    tokens = model.tokenizer.pad({"input_ids": rows}, return_tensors="pt")
    return {**features, **tokens, **{name: torch.zeros_like(tokens["input_ids"]) for name in types}}


def token_collator(model: SentenceTransformer, collator: BaseDataCollator | None = None) -> BaseDataCollator:
    """Returns a copy of the collator that pads the token ids of :func:`tokenize`. It accepts texts as well.

    Example:
        >>> from st_simcse.demo import tiny_model
        >>> token_collator(tiny_model(["Two dogs"]))([{"sentence": [2, 6, 5, 3]}])["sentence_input_ids"]
        tensor([[2, 6, 5, 3]])
    """
    features = _Features(unwrapped(model))
    return replace(collator or SentenceTransformerDataCollator(model.preprocess), preprocess_fn=features)


@dataclass(frozen=True)
class _Features:
    """A model's features of texts or token ids. This is a class because spawned workers receive it pickled."""

    model: SentenceTransformer

    def __call__(self, rows: list[Any], **options: Any) -> dict[str, Any]:
        is_tokenized = isinstance(rows[0], list)
        return pad(self.model, rows, **options) if is_tokenized else self.model.preprocess(rows, **options)
