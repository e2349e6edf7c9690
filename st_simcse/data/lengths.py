"""Counts of texts that a model cuts because they are too long, and texts without any token that it knows."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.data_collator import BaseDataCollator
from sentence_transformers.sentence_transformer.modules.tokenizer import WordTokenizer
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

__all__ = [
    "count_longer",
    "reading_at_most",
    "rows_unknown",
    "spaced",
    "texts_without_tokens",
    "warn_of_cut_texts",
    "warn_of_cut_training_texts",
]

logger = logging.getLogger(__name__)

# At most this many rows are tokenized, so that the count takes seconds for data of any size.
SAMPLE = 20_000
BATCH = 256


def count_longer(model: SentenceTransformer, texts: Sequence[str], limit: int, **options: Any) -> int:
    """Counts the texts with more than ``limit`` tokens, including the tokens of the prompt and of the tokenizer.

    Args:
        model: The model that the texts are for.
        texts: The texts.
        limit: The maximum number of tokens.
        **options: Keyword arguments of ``model.preprocess``, such as ``prompt``.

    Returns:
        The number of longer texts. It is 0 for models whose inputs are not rows of tokens, because they cut nothing.

    Example:
        >>> from st_simcse.demo import tiny_model
        >>> count_longer(tiny_model(["Two dogs run."]), ["Two dogs run.", "Two dogs"], limit=4)
        1
    """
    longer = 0
    for begin in range(0, len(texts), BATCH):
        # One token more than the limit shows that a text is longer, and saves the memory for the rest.
        counts = _token_counts(model, texts[begin : begin + BATCH], **options | {"max_length": limit + 1})
        longer += sum(count > limit for count in counts)
    return longer


@contextmanager
def reading_at_most(model: SentenceTransformer, limit: int) -> Iterator[None]:
    """A context in which the model reads at most ``limit`` tokens of a text. Static embeddings still read all tokens.

    Example:
        >>> from st_simcse.demo import tiny_model
        >>> model = tiny_model(["Two dogs run."])
        >>> with reading_at_most(model, 32):
        ...     print(model.max_seq_length)
        32
        >>> model.max_seq_length
        64
    """
    before = model.max_seq_length
    if before is None or (isinstance(before, int) and before > limit):
        model.max_seq_length = limit
    try:
        yield
    finally:
        if model.max_seq_length != before:
            model.max_seq_length = before


def texts_without_tokens(
    model: SentenceTransformer, texts: Sequence[str] | Dataset, prompt_names: Sequence[str] = (), **options: Any
) -> dict[int, str]:
    """Finds the texts that have no token. The model fails on them, or embeds the padding.

    The empty text has no token, and neither has a text of characters that the tokenizer removes. Every text has a token
    if the tokenizer adds special tokens or if there is a prompt. Models whose inputs are not rows of tokens have no
    such texts.

    Args:
        model: The model that the texts are for.
        texts, prompt_names: See :func:`warn_of_cut_texts`.
        **options: Keyword arguments of ``model.preprocess``, such as ``task``.

    Returns:
        The texts, by their row.

    Example:
        >>> from st_simcse.demo import tiny_model
        >>> texts_without_tokens(tiny_model(["Two dogs run."]), ["Two dogs run.", ""])  # [CLS] and [SEP] are tokens
        {}
    """
    options["prompt"] = _prompt(model, prompt_names)
    found: dict[int, str] = {}
    if _token_counts(model, [""], **options) != [0]:
        return found
    for begin in range(0, len(texts), BATCH):
        rows = range(begin, min(begin + BATCH, len(texts)))
        batch = _take(texts, rows)
        counts = _token_counts(model, batch, max_length=1, **options)
        found |= {row: text for row, text, count in zip(rows, batch, counts, strict=True) if not count}
    return found


def rows_unknown(model: SentenceTransformer, texts: Sequence[str]) -> list[int]:
    """Returns the rows of texts that consist of unknown tokens only. Empty texts are among them.

    A tokenizer uses its unknown token for characters outside its vocabulary and for words that are too long. The model
    gives all such texts the same embedding, so their similarities are high but mean nothing. Tokenizers that fall back
    to bytes know every text except the empty one.

    Args:
        model: The model that the texts are for.
        texts: The texts.

    Example:
        >>> from st_simcse.demo import tiny_model
        >>> rows_unknown(tiny_model(["Two dogs run."]), ["Dogs bark.", "\N{UMBRELLA}", " "])
        [1, 2]
    """
    return [row for row, text in enumerate(texts) if not (text.strip() and _is_known(model.tokenizer, text))]


def warn_of_cut_texts(
    model: SentenceTransformer, texts: Sequence[str] | Dataset, prompt_names: Sequence[str] = (), **options: Any
) -> None:
    """Logs a warning with the number of texts that the model cuts, if there are any.

    Args:
        model: The model that the texts are for.
        texts: The texts, or a Dataset with a single column of texts.
        prompt_names: The names of prompts. The first one that the model has is used, or the model's default prompt.
        **options: Keyword arguments of ``model.preprocess``, such as ``task``.
    """
    limit = _limit(model)
    if limit is None:
        return
    some = _take(texts, spaced(len(texts), SAMPLE))
    longer = count_longer(model, some, limit, prompt=_prompt(model, prompt_names), **options)
    _warn(longer, len(some), len(texts), f"{limit} tokens that the model reads (max_seq_length)")


def warn_of_cut_training_texts(
    model: SentenceTransformer, collator: BaseDataCollator, datasets: dict[str | None, Any]
) -> None:
    """Logs a warning with the number of texts in the training data that training cuts, if there are any.

    Args:
        model: The model to train.
        collator: The data collator. It knows the columns of texts, their prompts and the maximum length.
        datasets: The datasets by name. The name of a single dataset is None. Streams are not counted, because they
            have not been read yet.
    """
    asked = getattr(collator, "max_length", None)
    limit = asked if isinstance(asked, int) else _limit(model)
    if limit is None:
        return

    def count(texts: Sequence[str], max_length: int | None = None, **options: Any) -> dict[str, int]:
        return {"rows": len(texts), "longer": count_longer(model, texts, max_length or limit, **options)}

    counting = replace(collator, preprocess_fn=count)
    longer = counted = total = 0
    for name, dataset in datasets.items():
        if not isinstance(dataset, Dataset):
            continue
        labels = [column for column in dataset.column_names if column in collator.valid_label_columns]
        texts = dataset.remove_columns(labels).select(spaced(len(dataset), SAMPLE))
        for batch in texts.iter(BATCH):
            rows = [dict(zip(batch, cells, strict=True)) for cells in zip(*batch.values(), strict=True)]
            found = counting([row if name is None else {"dataset_name": name, **row} for row in rows])
            counted += sum(value for key, value in found.items() if key.endswith("_rows"))
            longer += sum(value for key, value in found.items() if key.endswith("_longer"))
        total += len(dataset) * len(texts.column_names)
    _warn(longer, counted, total, f"{limit} tokens that training reads (max_length, --max_seq_length)")


def _take(texts: Sequence[str] | Dataset, rows: range) -> list[str]:
    """Returns the texts of these rows. Reads no other rows of a Dataset."""
    if isinstance(texts, Dataset):
        return list(texts.select(rows)[texts.column_names[0]])
    return [texts[row] for row in rows]


def _token_counts(model: SentenceTransformer, texts: Sequence[str], **options: Any) -> list[int]:
    """Returns the number of tokens of each text, or an empty list if the model's inputs are not rows of tokens."""
    features = model.preprocess(list(texts), **options)
    return features["attention_mask"].sum(dim=1).tolist() if "attention_mask" in features else []


def _is_known(tokenizer: Any, text: str) -> bool:
    """Returns whether any part of the text has a known token. Always True for tokenizers of other kinds."""
    if isinstance(tokenizer, WordTokenizer):  # drops unknown words
        return bool(tokenizer.tokenize(text))
    if isinstance(tokenizer, Tokenizer):
        encoding = tokenizer.encode(text, add_special_tokens=False)
        unknown = getattr(tokenizer.model, "unk_token", None)
        # Unigram's encoding names an unknown token by its text, not by the unknown token's name.
        pairs = zip(encoding.tokens, encoding.ids, strict=True)
        tokens = [token for token, number in pairs if token != unknown and tokenizer.token_to_id(token) == number]
    elif isinstance(tokenizer, PreTrainedTokenizerBase):
        numbers = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        known = [number for number in numbers if number != tokenizer.unk_token_id]
        tokens = list(tokenizer.convert_ids_to_tokens(known))
    else:
        return True
    return any(token.strip("\u2581") for token in tokens)  # SentencePiece's mark for a space


def _prompt(model: SentenceTransformer, names: Sequence[str]) -> str | None:
    """Returns the prompt with the first of these names that the model has, or the model's default prompt."""
    name = next((name for name in names if name in model.prompts), model.default_prompt_name)
    return None if name is None else model.prompts.get(name)


def _limit(model: SentenceTransformer) -> int | None:
    """Returns the number of tokens that the model reads of a text. None, or a huge number, means no limit."""
    limit = model.max_seq_length
    return limit if isinstance(limit, int) and limit < 2**31 else None


def spaced(rows: int, most: int) -> range:
    """Returns all rows, or at most ``most`` evenly spaced ones.

    Example:
        >>> list(spaced(3, 5)), list(spaced(11, 5))
        ([0, 1, 2], [0, 3, 6, 9])
    """
    return range(0, rows, max(1, -(-rows // most)))


def _warn(longer: int, counted: int, total: int, limit: str) -> None:
    if longer and counted == total:
        logger.warning("%s of %s texts are cut: they are longer than the %s", f"{longer:,}", f"{total:,}", limit)
    elif longer:
        logger.warning(
            "About %s of %s texts are cut, %s of a sample of %s: they are longer than the %s",
            *(f"{longer / counted:.1%}", f"{total:,}", f"{longer:,}", f"{counted:,}", limit),
        )
