"""Which texts of a batch are the same, a number a row."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from st_simcse.models.unwrapping import unwrapped
from st_simcse.objective.batch import MISSING_KEY

__all__ = ["MISSING", "TEXT_KEY", "keys_of_columns", "text_keys", "without_text_key"]

TEXT_KEY = "text_key"
# A feature (B,) bool: which rows of a column of hard negatives are there only to fill it.
MISSING = "missing"

# Odd, so that its powers modulo 2^64 never become 0; otherwise arbitrary.
_MULTIPLIER = 6364136223846793005


def text_keys(features: dict[str, Any], first_tokens: Collection[int | None] = ()) -> Tensor | None:
    """A polynomial hash of every row's tokens, padding left out, alike in all batches and processes.

    A prompt of ``prompt_length`` tokens does not count, so that a text has the same key behind every prompt.

    Args:
        features: a column as the model's tokenizer gives it: ``input_ids`` (B, L) with an ``attention_mask``, or the
            flat ``input_ids`` and ``offsets`` of a StaticEmbedding, or flattened for flash attention, ``input_ids``
            (1, tokens) with ``cu_seq_lens_q`` (B + 1,). Views of texts come with ``text_key``, the keys of the texts;
            hard negatives of different numbers with ``missing``, true where a row has no further one.
        first_tokens: what a tokenizer puts before a text, which ``prompt_length`` counts: not counted without a prompt
            either.

    Returns:
        (B,) int64; None for inputs that are no rows of tokens.

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
        # Unless the tokenizer drew the beginning of the texts into the prompt.
        if len(prompts) == count * length and bool((prompts.view(count, -1) == prompts[:length]).all()):
            kept = positions >= length
            rows, positions, ids = rows[kept], positions[kept] - length, ids[kept]
    powers = torch.full((len(ids),), _MULTIPLIER, device=ids.device).cumprod(0)  # modulo 2^64
    return torch.zeros(count, dtype=torch.int64, device=ids.device).index_add(0, rows, (ids + 1) * powers[positions])


def keys_of_columns(model: nn.Module, columns: Sequence[dict[str, Any]], mask_duplicates: bool) -> list[Tensor]:
    """(B,) int64 a column, equal for equal texts; none if that does not matter or a column has no tokens.

    Raises:
        ValueError: for hard negatives of different numbers, if duplicates are not masked.
    """
    if not mask_duplicates:
        if any(MISSING in column for column in columns):
            raise ValueError("hard negatives of different numbers need mask_duplicates=True, which leaves some out")
        return []
    first_tokens: tuple[int | None, ...] = ()
    if any("prompt_length" in column for column in columns):
        tokenizer = unwrapped(model).tokenizer
        first_tokens = tuple(getattr(tokenizer, name, None) for name in ("cls_token_id", "bos_token_id"))
    keys = [text_keys(column, first_tokens) for column in columns]
    known = [key for key in keys if key is not None]
    return known if len(known) == len(keys) else []


def without_text_key(features: dict[str, Any]) -> dict[str, Any]:
    """A copy of a column's features with those alone that are the model's."""
    return {name: value for name, value in features.items() if name not in (MISSING, TEXT_KEY)}
