"""Texts that are longer than what a model reads, and are cut, and those of which it reads nothing."""

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
    "texts_without_tokens",
    "warn_of_cut_texts",
    "warn_of_cut_training_texts",
]

logger = logging.getLogger(__name__)

# Of more rows a sample is tokenized: it takes seconds, however large the data are.
SAMPLE = 20_000
BATCH = 256


def count_longer(model: SentenceTransformer, texts: Sequence[str], limit: int, **options: Any) -> int:
    """How many of the texts have more than ``limit`` tokens, those of the prompt and of the tokenizer among them.

    Args:
        model: the model that the texts are for.
        texts: the texts.
        limit: tokens that are read.
        **options: of ``model.preprocess``, such as ``prompt``.

    Returns:
        The number; 0 for models whose inputs are no rows of tokens, which cut nothing.

    Example:
        >>> from st_simcse.demo import tiny_model
        >>> count_longer(tiny_model(["Two dogs run."]), ["Two dogs run.", "Two dogs"], limit=4)
        1
    """
    longer = 0
    for begin in range(0, len(texts), BATCH):
        # One token more than is read tells a text that is longer, and long ones take no memory.
        counts = _token_counts(model, texts[begin : begin + BATCH], **options | {"max_length": limit + 1})
        longer += sum(count > limit for count in counts)
    return longer


@contextmanager
def reading_at_most(model: SentenceTransformer, limit: int) -> Iterator[None]:
    """For a while, texts are cut after so many tokens, if the model reads more; static embeddings read all of them.

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
    """The texts that have no token, by their rows: the model fails on them, or embeds the padding.

    The empty text is one, and a text of nothing but what the tokenizer removes. There are none for a tokenizer that
    adds special tokens, for a prompt, and for models whose inputs are no rows of tokens.

    Args:
        model: the model that the texts are for.
        texts, prompt_names: as in :func:`warn_of_cut_texts`.
        **options: of ``model.preprocess``, such as ``task``.

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
    """The rows of texts of which the model's tokenizer knows no part, empty texts among them.

    A tokenizer reads characters that are not in its vocabulary, and words that are too long for it, as its unknown
    token. The model embeds all such texts alike, so that their similarities are high and mean nothing. Tokenizers that
    fall back to bytes know every text but the empty one.

    Args:
        model: the model that the texts are for.
        texts: the texts.

    Example:
        >>> from st_simcse.demo import tiny_model
        >>> rows_unknown(tiny_model(["Two dogs run."]), ["Dogs bark.", "\N{UMBRELLA}", " "])
        [1, 2]
    """
    return [row for row, text in enumerate(texts) if not (text.strip() and _is_known(model.tokenizer, text))]


def warn_of_cut_texts(
    model: SentenceTransformer, texts: Sequence[str] | Dataset, prompt_names: Sequence[str] = (), **options: Any
) -> None:
    """Say how many texts are longer than the tokens that the model reads, if any are.

    Args:
        model: the model that the texts are for.
        texts: the texts, or a Dataset of one column of them.
        prompt_names: the first of them that the model has is the prompt; its default if it has none.
        **options: of ``model.preprocess``, such as ``task``.
    """
    limit = _limit(model)
    if limit is None:
        return
    some = _take(texts, _sample(len(texts)))
    longer = count_longer(model, some, limit, prompt=_prompt(model, prompt_names), **options)
    _warn(longer, len(some), len(texts), f"{limit} tokens that the model reads (max_seq_length)")


def warn_of_cut_training_texts(
    model: SentenceTransformer, collator: BaseDataCollator, datasets: dict[str | None, Any]
) -> None:
    """Say how many texts of the training data are longer than what training reads, if any are.

    Args:
        model: the model to train.
        collator: knows the columns of texts, their prompts and their length.
        datasets: by name; None is that of a single one. Streams are not counted, since nobody has read them yet.
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
        texts = dataset.remove_columns(labels).select(_sample(len(dataset)))
        for batch in texts.iter(BATCH):
            rows = [dict(zip(batch, cells, strict=True)) for cells in zip(*batch.values(), strict=True)]
            found = counting([row if name is None else {"dataset_name": name, **row} for row in rows])
            counted += sum(value for key, value in found.items() if key.endswith("_rows"))
            longer += sum(value for key, value in found.items() if key.endswith("_longer"))
        total += len(dataset) * len(texts.column_names)
    _warn(longer, counted, total, f"{limit} tokens that training reads (max_length, --max_seq_length)")


def _take(texts: Sequence[str] | Dataset, rows: range) -> list[str]:
    """Some of the texts, of which a Dataset reads no others."""
    if isinstance(texts, Dataset):
        return list(texts.select(rows)[texts.column_names[0]])
    return [texts[row] for row in rows]


def _token_counts(model: SentenceTransformer, texts: Sequence[str], **options: Any) -> list[int]:
    """The tokens of each text; nothing for models whose inputs are no rows of tokens."""
    features = model.preprocess(list(texts), **options)
    return features["attention_mask"].sum(dim=1).tolist() if "attention_mask" in features else []


def _is_known(tokenizer: Any, text: str) -> bool:
    """Whether there is a token that stands for a part of the text; True for tokenizers that are none of text."""
    if isinstance(tokenizer, WordTokenizer):  # leaves unknown words out
        return bool(tokenizer.tokenize(text))
    if isinstance(tokenizer, Tokenizer):
        encoding = tokenizer.encode(text, add_special_tokens=False)
        unknown = getattr(tokenizer.model, "unk_token", None)
        # Unigram's unknown tokens have the text that they stand for.
        pairs = zip(encoding.tokens, encoding.ids, strict=True)
        tokens = [token for token, number in pairs if token != unknown and tokenizer.token_to_id(token) == number]
    elif isinstance(tokenizer, PreTrainedTokenizerBase):
        numbers = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        known = [number for number in numbers if number != tokenizer.unk_token_id]
        tokens = list(tokenizer.convert_ids_to_tokens(known))
    else:
        return True
    return any(token.strip("\u2581") for token in tokens)  # SentencePiece's sign of a space


def _prompt(model: SentenceTransformer, names: Sequence[str]) -> str | None:
    """What stands before a text: the prompt with the first of these names that the model has, or its default."""
    name = next((name for name in names if name in model.prompts), model.default_prompt_name)
    return None if name is None else model.prompts.get(name)


def _limit(model: SentenceTransformer) -> int | None:
    """Tokens of a text that the model reads; None without a limit, for which tokenizers have a huge number."""
    limit = model.max_seq_length
    return limit if isinstance(limit, int) and limit < 2**31 else None


def _sample(rows: int) -> range:
    """All rows, or of many as many as ``SAMPLE``, evenly spaced."""
    return range(rows) if rows <= SAMPLE else range(0, rows, -(-rows // SAMPLE))


def _warn(longer: int, counted: int, total: int, limit: str) -> None:
    if longer and counted == total:
        logger.warning("%s of %s texts are cut: they are longer than the %s", f"{longer:,}", f"{total:,}", limit)
    elif longer:
        logger.warning(
            "About %s of %s texts are cut, %s of a sample of %s: they are longer than the %s",
            *(f"{longer / counted:.1%}", f"{total:,}", f"{longer:,}", f"{counted:,}", limit),
        )
