"""Which texts of a batch are the same, a number a row, and which candidates are therefore no negatives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["KnownPositives", "text_keys"]

# Odd, so that its powers modulo 2^64 never become 0; otherwise arbitrary.
_MULTIPLIER = 6364136223846793005


def text_keys(features: dict[str, Any]) -> Tensor | None:
    """A polynomial hash of every row's tokens, padding left out, alike in all batches and processes.

    Args:
        features: a column as the model's tokenizer gives it: ``input_ids`` (B, L) with an ``attention_mask``, or the
            flat ``input_ids`` and ``offsets`` of a StaticEmbedding, or flattened for flash attention, ``input_ids``
            (1, tokens) with ``cu_seq_lens_q`` (B + 1,).

    Returns:
        (B,) int64; None for inputs that are no rows of tokens.

    Example:
        >>> ids = torch.tensor([[5, 6, 0], [5, 6, 7], [0, 5, 6]])
        >>> keys = text_keys({"input_ids": ids, "attention_mask": (ids > 0).long()})
        >>> (keys == keys[0]).tolist()
        [True, False, True]
    """
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
    powers = torch.full((len(ids),), _MULTIPLIER, device=ids.device).cumprod(0)  # modulo 2^64
    return torch.zeros(count, dtype=torch.int64, device=ids.device).index_add(0, rows, (ids + 1) * powers[positions])


class KnownPositives:
    """Which candidates are the same text as a query or as one of its positives.

    Memory is linear in the numbers of rows and candidates, however many of them are equal: which text is a positive of
    which is kept a pair of texts, and becomes places of the similarity matrix for some rows at a time.

    Args:
        queries: (M,) int64 keys, equal for equal texts.
        candidates: (C,) int64 keys.
        pairs: (2, K) int64 keys, of texts and of their positives.

    Example:
        >>> pairs = torch.tensor([[1, 1, 2], [3, 4, 5]])  # 3 and 4 are positives of 1
        >>> KnownPositives(queries=pairs[0], candidates=pairs[1], pairs=pairs).mask().int()
        tensor([[1, 1, 0],
                [1, 1, 0],
                [0, 0, 1]], dtype=torch.int32)
    """

    def __init__(self, queries: Tensor, candidates: Tensor, pairs: Tensor) -> None:
        keys, numbers = torch.cat([queries, candidates, *pairs]).unique(return_inverse=True)
        self.size = len(keys)
        self.queries, self.candidates, left, right = numbers.split(
            [len(queries), len(candidates), *[pairs.shape[1]] * 2]
        )
        # Every text is a positive of itself.
        left, right = (torch.cat([side, self.queries]) for side in (left, right))
        pairs = (left * self.size + right).unique()
        self.texts, self.positives = pairs // self.size, pairs % self.size

    def count(self) -> int:
        """How many places of the matrix there are."""
        queries, candidates = (numbers.bincount(minlength=self.size) for numbers in (self.queries, self.candidates))
        return int((queries[self.texts] * candidates[self.positives]).sum())

    def mask(self, rows: slice = slice(None)) -> Tensor:
        """A new bool matrix (rows, C), true where a candidate is a positive of the row's query."""
        texts, places = self.queries[rows].unique(return_inverse=True)
        place_of_text = self.queries.new_full((self.size,), -1).index_copy(
            0, texts, torch.arange(len(texts), device=texts.device)
        )
        places_of_pairs = place_of_text[self.texts]
        known = torch.zeros(len(texts), self.size, dtype=torch.bool, device=texts.device)
        of_rows = places_of_pairs >= 0
        known[places_of_pairs[of_rows], self.positives[of_rows]] = True
        return known[:, self.candidates][places]
