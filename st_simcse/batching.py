"""How batches come about: rows of like length together, and tokenization once for all epochs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.sampler import DefaultBatchSampler
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
from transformers.trainer_pt_utils import get_length_grouped_indices

__all__ = ["LengthGroupedBatchSampler", "TokenCollator", "tokenize"]


class LengthGroupedBatchSampler(DefaultBatchSampler):
    """Batches of rows of like length in random order, for ST's ``batch_sampler`` argument.

    Batches need less padding, and a positive can no longer be told from the in-batch negatives by its length alone.
    Rows are drawn at random in groups of up to 50 batches, sorted by their number of characters within a group, and the
    batches are shuffled. Takes what ST passes to every batch sampler.

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
            self.lengths = [total + len(cell) for total, cell in zip(self.lengths, dataset[name], strict=True)]

    def __iter__(self) -> Iterator[list[int]]:
        generator = self.generator or torch.Generator()
        generator.manual_seed(self.seed + self.epoch)
        indices = get_length_grouped_indices(self.lengths, self.batch_size, generator=generator)
        batches = [indices[begin : begin + self.batch_size] for begin in range(0, len(indices), self.batch_size)]
        if self.drop_last and len(batches[-1]) < self.batch_size:
            batches.pop()
        for batch in torch.randperm(len(batches), generator=generator).tolist():
            yield batches[batch]


def tokenize(dataset: Dataset, model: SentenceTransformer) -> Dataset:
    """A Dataset whose text columns are token ids, so that every epoch finds the work done.

    Its columns are called ``{column}_input_ids``, and :class:`TokenCollator` makes batches of them. The ids lie on
    disk as the texts did.

    Raises:
        ValueError: if the model's inputs are not one row of tokens a text, as with a StaticEmbedding.

    Example:
        >>> from st_simcse.demo import tiny_model
        >>> tokenize(Dataset.from_dict({"sentence": ["Two dogs"]}), tiny_model(["Two dogs"]))[0]
        {'sentence_input_ids': [2, 6, 5, 3]}
    """
    if "attention_mask" not in model.preprocess(["."]):
        raise ValueError("only the inputs of a transformer can be tokenized once: this model has no attention mask")

    def rows(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        return {
            f"{name}_input_ids": [
                ids[mask].tolist()
                for ids, mask in zip(tokens["input_ids"], tokens["attention_mask"].bool(), strict=True)
            ]
            for name, tokens in ((name, model.preprocess(texts)) for name, texts in batch.items())
        }

    return dataset.map(rows, batched=True, remove_columns=dataset.column_names, desc="Tokenizing")


class TokenCollator(SentenceTransformerDataCollator):
    """Pads the columns that :func:`tokenize` made; every other column is tokenized as ST's own collator does."""

    def __init__(self, model: SentenceTransformer) -> None:
        super().__init__(preprocess_fn=model.preprocess)
        self.tokenizer = model.tokenizer

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        ready = [name for name in features[0] if name.endswith("_input_ids")]
        batch = super().__call__([{name: row[name] for name in row if name not in ready} for row in features])
        for name in ready:
            tokens = self.tokenizer.pad({"input_ids": [row[name] for row in features]}, return_tensors="pt")
            column = name.removesuffix("_input_ids")
            batch |= {f"{column}_{key}": value for key, value in tokens.items()}
        return batch
