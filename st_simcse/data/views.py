"""Two views of a text that differ by more than dropout. They are new in every batch."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, Protocol

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.data_collator import BaseDataCollator
from transformers import TrainerCallback

from st_simcse.data.batching import pad, token_ids
from st_simcse.data.duplicates import TEXT_KEY, text_keys
from st_simcse.models.unwrapping import unwrapped
from st_simcse.objective.bounds import Bounded

__all__ = [
    "VIEWS",
    "Crops",
    "TokenCutoff",
    "View",
    "ViewCallback",
    "WordRepetition",
    "evaluation_collator",
    "view_collator",
    "whole_texts",
]

# More tokens than any text has. Views are made from the whole text and cut afterwards.
NO_LIMIT = 2**20


class View(Protocol):
    """A function that makes two views from the tokens of a text, without a prompt and without special tokens."""

    def __call__(self, tokens: list[int], rng: random.Random) -> tuple[list[int], list[int]]:
        """Returns the tokens of both views. ``rng`` is the only source of randomness."""


@dataclass(frozen=True)
class Crops(Bounded):
    """Two random spans of the text, which may overlap. Each has a random share of its tokens.

    Crops are for texts of several sentences. Two crops of an abstract are a better pair than one text with two dropout
    masks (González-Márquez et al., TMLR 2026, with crops of two whole sentences, mean pooling, a batch size of 64, a
    learning rate of 2e-5 and two epochs). Spans of random length are the independent cropping of Contriever (Izacard et
    al., TMLR 2022). The default shares are those of its scripts.

    Args:
        shortest, longest: The range that shares are drawn from uniformly, 0 < shortest ≤ longest ≤ 1.
        least: The minimum number of tokens in a crop, if the text has that many.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> Crops(least=2)(list(range(20)), random.Random(0))
        ([6, 7, 8, 9, 10, 11, 12, 13, 14], [16, 17])
    """

    shortest: float = field(default=0.1, metadata={"above": 0, "help": "Smallest share of a text in a crop."})
    longest: float = field(default=0.5, metadata={"most": 1, "help": "Largest share of a text in a crop."})
    least: int = field(default=8, metadata={"least": 1, "help": "Minimum number of tokens in a crop."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shortest > self.longest:
            raise ValueError(f"Crops needs a shortest share that is not larger than the longest, got {self}")

    def __call__(self, tokens: list[int], rng: random.Random) -> tuple[list[int], list[int]]:
        return self._crop(tokens, rng), self._crop(tokens, rng)

    def _crop(self, tokens: list[int], rng: random.Random) -> list[int]:
        length = max(round(rng.uniform(self.shortest, self.longest) * len(tokens)), self.least)
        begin = rng.randint(0, max(0, len(tokens) - length))
        return tokens[begin : begin + length]


@dataclass(frozen=True)
class WordRepetition(Bounded):
    """The text, and the text with some of its tokens repeated, as in ESimCSE (Wu et al., COLING 2022, section 3.1).

    Without repetition both views always have the same length, and the model learns that texts of the same length are
    similar. The number of repeated tokens is drawn uniformly from 0 to max(2, share N), where N is the number of
    tokens.

    Args:
        share: The largest share of repeated tokens, from 0 to below 1. ESimCSE uses 0.32.

    Raises:
        ValueError: If the share is out of range.

    Example:
        >>> WordRepetition()([5, 6, 7, 8, 9], random.Random(0))
        ([5, 6, 7, 8, 9], [5, 6, 7, 8, 8, 9])
    """

    share: float = field(default=0.32, metadata={"least": 0, "below": 1, "help": "Largest share of repeated tokens."})

    def __call__(self, tokens: list[int], rng: random.Random) -> tuple[list[int], list[int]]:
        most = min(len(tokens), max(2, int(self.share * len(tokens))))
        twice = set(rng.sample(range(len(tokens)), rng.randint(0, most)))
        repeated = [token for place, token in enumerate(tokens) for _ in range(1 + (place in twice))]
        return tokens, repeated


@dataclass(frozen=True)
class TokenCutoff(Bounded):
    """The text twice, each time without a random share of its tokens. At least one token stays.

    This is the token cutoff of ConSERT (Yan et al., ACL 2021), which sets the embeddings of the tokens to zero instead.

    Args:
        share: The share of tokens that are removed, from 0 to below 1.

    Raises:
        ValueError: If the share is out of range.

    Example:
        >>> TokenCutoff(0.4)([5, 6, 7, 8, 9], random.Random(0))
        ([5, 8, 9], [6, 7, 8])
    """

    share: float = field(default=0.15, metadata={"least": 0, "below": 1, "help": "Share of removed tokens."})

    def __call__(self, tokens: list[int], rng: random.Random) -> tuple[list[int], list[int]]:
        return self._cut(tokens, rng), self._cut(tokens, rng)

    def _cut(self, tokens: list[int], rng: random.Random) -> list[int]:
        left = max(min(1, len(tokens)), len(tokens) - round(self.share * len(tokens)))
        return [tokens[place] for place in sorted(rng.sample(range(len(tokens)), left))]


# The names for the training argument `views`.
VIEWS: dict[str, type[Any]] = {"crops": Crops, "word_repetition": WordRepetition, "token_cutoff": TokenCutoff}


class ViewMaker:
    """Makes two padded views of each text, from texts or from the token ids of whole texts.

    Randomness depends only on the seed, the epoch, the text and its place in the batch. So resumed runs, workers and
    other processes do not need the state of a random generator.

    Args:
        model: The model that the views are for.
        view: The function that makes the views.
        seed: The seed of the run.
    """

    def __init__(self, model: SentenceTransformer, view: View, seed: int) -> None:
        self.model = model
        self.view = view
        self.seed = seed
        self.epoch = 0

    def __call__(self, rows: list[Any], **options: Any) -> dict[str, Any]:
        """Returns the features of both views, with the prefixes ``first_`` and ``second_``.

        Both have the keys of the whole texts. A view keeps the tokens before and after the text, which belong to the
        prompt and the tokenizer.
        """
        whole = options | {"max_length": NO_LIMIT}
        ids: list[list[int]] = rows if isinstance(rows[0], list) else token_ids(self.model, rows, **whole)
        empty, point = token_ids(self.model, ["", "."], **whole)
        before = _begin_alike(empty, point)
        after = _begin_alike(empty[before:][::-1], point[before:][::-1])
        longest = (options.get("max_length") or self.model.max_seq_length or NO_LIMIT) - before - after
        if longest < 1:
            raise ValueError(
                f"views of {longest + before + after} tokens have no room for the text, because every text has "
                f"{before + after} tokens of the prompt and the tokenizer: raise max_length (--max_seq_length) to "
                f"{before + after + 1} or more"
            )
        keys = _keys(ids)
        views: list[list[list[int]]] = [[], []]
        for place, (row, key) in enumerate(zip(ids, keys.tolist(), strict=True)):
            rng = random.Random(f"{self.seed} {self.epoch} {place} {key}")
            end = len(row) - after
            for made, tokens in zip(views, self.view(row[before:end], rng), strict=True):
                made.append([*row[:before], *tokens[:longest], *row[end:]])
        features: dict[str, Any] = {}
        for name, made in zip(("first", "second"), views, strict=True):
            features |= {f"{name}_{key}": value for key, value in pad(self.model, made, **options).items()}
            features[f"{name}_{TEXT_KEY}"] = keys
        return features


def _begin_alike(one: list[int], other: list[int]) -> int:
    """Returns the number of tokens that both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (first, second) in pairs if first != second), min(len(one), len(other)))


def _keys(ids: list[list[int]]) -> torch.Tensor:
    flat = torch.tensor([token for row in ids for token in row], dtype=torch.int64)
    offsets = torch.tensor([0, *accumulate(len(row) for row in ids)][:-1])
    keys = text_keys({"input_ids": flat, "offsets": offsets})
    assert keys is not None
    return keys


def view_collator(
    model: SentenceTransformer, collator: BaseDataCollator, view: View | str, seed: int
) -> BaseDataCollator:
    """Returns a copy of the collator that turns a column of texts, or of token ids of whole texts, into two views.

    Args:
        model: The model that the views are for.
        collator: The data collator, which determines the prompt, route and maximum length of the column.
        view: The function that makes the views, or its name in ``VIEWS``.
        seed: The seed of the run.

    Raises:
        ValueError: If the name is unknown, if the model's inputs are not rows of tokens, or if the maximum length
            leaves no room for a token of the text.

    Example:
        >>> from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
        >>> from st_simcse.demo import tiny_model
        >>> model = tiny_model(["Two dogs run in the park."])
        >>> collator = view_collator(model, SentenceTransformerDataCollator(model.preprocess), Crops(least=3), seed=0)
        >>> [(name, ids.tolist()) for name, ids in collator([{"sentence": "Two dogs run in the park."}]).items()
        ...     if name.endswith("input_ids")]
        [('sentence_first_input_ids', [[2, 11, 6, 9, 3]]), ('sentence_second_input_ids', [[2, 10, 8, 5, 3]])]
    """
    if isinstance(view, str) and view not in VIEWS:
        raise ValueError(f"views={view!r} is unknown: choose one of {', '.join(VIEWS)}")
    made: View = VIEWS[view]() if isinstance(view, str) else view
    maker = ViewMaker(unwrapped(model), made, seed)
    limit = {"max_length": collator.max_length} if isinstance(collator.max_length, int) else {}
    maker(["."], **limit)  # raises errors now and not at the first batch
    return replace(collator, preprocess_fn=maker)


def evaluation_collator(collator: Any) -> Any:
    """Returns a copy of a collator of views that stays in epoch 0, or the collator itself if it makes no views."""
    maker = getattr(collator, "preprocess_fn", None)
    if not isinstance(maker, ViewMaker):
        return collator
    return replace(collator, preprocess_fn=ViewMaker(maker.model, maker.view, maker.seed))


def whole_texts(collator: BaseDataCollator) -> BaseDataCollator:
    """Returns a copy of the collator without a limit on the length of texts."""
    return replace(collator, max_length=NO_LIMIT)


class ViewCallback(TrainerCallback):
    """A callback that sets the epoch of the collator."""

    def __init__(self, collator: BaseDataCollator) -> None:
        self.maker: Any = collator.preprocess_fn

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.has_begun = False

    def on_epoch_begin(self, args: Any, state: Any, *others: Any, **kwargs: Any) -> None:
        # state.epoch is unreliable for streams, because the length of an epoch is unknown, so epochs are counted here.
        self.maker.epoch = self.maker.epoch + 1 if self.has_begun else int(state.epoch or 0)
        self.has_begun = True
