"""Keys that are equal for equal texts of a batch, one per row."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from st_simcse.models.unwrapping import unwrapped
from st_simcse.objective.batch import MISSING_KEY

__all__ = ["MISSING", "TEXT_KEY", "keys_of_columns", "text_keys", "without_text_key"]

TEXT_KEY = "text_key"
# A feature (B,) bool of a column of hard negatives: True for rows without a text, which only fill the column.
MISSING = "missing"

# An arbitrary number that is odd, so that its powers modulo 2^64 never become 0.
_MULTIPLIER = 6364136223846793005


def text_keys(features: dict[str, Any], first_tokens: Collection[int | None] = ()) -> Tensor | None:
    """Returns a polynomial hash of each row's tokens without padding. It is the same in all batches and processes.

    A prompt of ``prompt_length`` tokens does not count, so a text has the same key with any prompt.

    Args:
        features: The features of a column from the model's tokenizer: ``input_ids`` (B, L) with an ``attention_mask``,
            flat ``input_ids`` with the ``offsets`` of a StaticEmbedding, or ``input_ids`` (1, tokens) flattened for
            flash attention with ``cu_seq_lens_q`` (B + 1,). Views have ``text_key``, the keys of the whole texts.
            Columns of hard negatives whose number varies have ``missing``, which is True for rows with fewer of them.
        first_tokens: The ids of tokens that a tokenizer puts before a text. ``prompt_length`` includes this token, so
            it does not count without a prompt either.

    Returns:
        The keys, (B,) int64, or None if the inputs are not rows of tokens.

    Example:
        >>> ids = torch.tensor([[5, 6, 0], [5, 6, 7], [0, 5, 6]])
        >>> keys = text_keys({"input_ids": ids, "attention_mask": (ids > 0).long()})
        >>> (keys == keys[0]).tolist()
        [True, False, True]
    """
    if MISSING in features:
        keys = text_keys({name: value for name, value in features.items() if name != MISSING}, first_tokens)
        return None if keys is None else keys.masked_fill(features[MISSING], MISSING_KEY)
    if TEXT_KEY in features:
        given: Tensor = features[TEXT_KEY]
        return given
    ids, mask, offsets = (features.get(name) for name in ("input_ids", "attention_mask", "offsets"))
    if ids is not None and "cu_seq_lens_q" in features:
        ids, offsets = ids[0], features["cu_seq_lens_q"][:-1]
    if ids is not None and ids.ndim == 2 and mask is not None:
        count, mask = len(ids), mask.bool()
        rows, positions, ids = mask.nonzero()[:, 0], (mask.cumsum(1) - 1)[mask], ids[mask]
    elif ids is not None and ids.ndim == 1 and offsets is not None:
        count, flat = len(offsets), torch.arange(len(ids), device=ids.device)
        offsets = offsets.to(flat.dtype)
        rows = torch.searchsorted(offsets, flat, right=True) - 1
        positions = flat - offsets[rows]
    else:
        return None
    prompt = features.get("prompt_length")
    length = int(prompt[0] if isinstance(prompt, Tensor) else prompt or 0)
    if prompt is None and first_tokens:
        length = int(int(ids[0]) in first_tokens)
    if length:
        prompts = ids[positions < length]
        # The prompts differ if the tokenizer merged the beginning of a text into the prompt. Then they stay.
        if len(prompts) == count * length and bool((prompts.view(count, -1) == prompts[:length]).all()):
            kept = positions >= length
            rows, positions, ids = rows[kept], positions[kept] - length, ids[kept]
    powers = torch.full((len(ids),), _MULTIPLIER, device=ids.device).cumprod(0)  # modulo 2^64
    return torch.zeros(count, dtype=torch.int64, device=ids.device).index_add(0, rows, (ids + 1) * powers[positions])


def keys_of_columns(model: nn.Module, columns: Sequence[dict[str, Any]], mask_duplicates: bool) -> list[Tensor]:
    """Returns the keys of each column, (B,) int64, which are equal for equal texts.

    The list is empty if duplicates are not masked, or if a column has no tokens.

    Raises:
        ValueError: If the number of hard negatives varies and duplicates are not masked.
    """
    if not mask_duplicates:
        if any(MISSING in column for column in columns):
            raise ValueError(
                "the number of hard negatives varies between rows: pass mask_duplicates=True, which masks the missing "
                "ones"
            )
        return []
    first_tokens: tuple[int | None, ...] = ()
    if any("prompt_length" in column for column in columns):
        tokenizer = unwrapped(model).tokenizer
        first_tokens = tuple(getattr(tokenizer, name, None) for name in ("cls_token_id", "bos_token_id"))
    keys = [text_keys(column, first_tokens) for column in columns]
    known = [key for key in keys if key is not None]
    return known if len(known) == len(keys) else []


def without_text_key(features: dict[str, Any]) -> dict[str, Any]:
    """Returns a copy of a column's features with only those that the model reads."""
    return {name: value for name, value in features.items() if name not in (MISSING, TEXT_KEY)}
