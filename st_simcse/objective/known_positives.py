"""Candidates that are not negatives of a query, because they have the same text as one of its positives."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["KnownPositives"]


class KnownPositives:
    """The candidates that have the same text as a query or as one of its positives.

    The positives are stored as pairs of texts and expanded to places of the similarity matrix for a few rows at a time.
    Memory is therefore linear in the numbers of rows and candidates, however many of them are equal.

    Args:
        queries: (M,) int64 keys, equal for equal texts.
        candidates: (C,) int64 keys.
        pairs: (2, K) int64 keys of texts (first row) and of their positives (second row).

    Example:
        >>> pairs = torch.tensor([[1, 1, 2], [3, 4, 5]])  # 3 and 4 are positives of 1
        >>> KnownPositives(queries=pairs[0], candidates=pairs[1], pairs=pairs).mask().int()
        tensor([[1, 1, 0],
                [1, 1, 0],
                [0, 0, 1]], dtype=torch.int32)
    """

    def __init__(self, queries: Tensor, candidates: Tensor, pairs: Tensor) -> None:
        keys, numbers = torch.unique(torch.cat([queries, candidates, *pairs]), return_inverse=True)
        self.size = len(keys)
        self.queries, self.candidates, left, right = numbers.split(
            [len(queries), len(candidates), *[pairs.shape[1]] * 2]
        )
        # Every text is a positive of itself.
        left, right = (torch.cat([side, self.queries]) for side in (left, right))
        pairs = torch.unique(left * self.size + right)
        self.texts, self.positives = pairs // self.size, pairs % self.size

    def count(self) -> int:
        """Returns the number of places of the (M, C) matrix with a known positive."""
        queries, candidates = (numbers.bincount(minlength=self.size) for numbers in (self.queries, self.candidates))
        return int((queries[self.texts] * candidates[self.positives]).sum())

    def mask(self, rows: slice = slice(None)) -> Tensor:
        """Returns a new (rows, C) bool matrix, True if a candidate is a positive of the row's query."""
        texts, places = torch.unique(self.queries[rows], return_inverse=True)
        place_of_text = self.queries.new_full((self.size,), -1).index_copy(
            0, texts, torch.arange(len(texts), device=texts.device)
        )
        places_of_pairs = place_of_text[self.texts]
        known = torch.zeros(len(texts), self.size, dtype=torch.bool, device=texts.device)
        of_rows = places_of_pairs >= 0
        known[places_of_pairs[of_rows], self.positives[of_rows]] = True
        return known[:, self.candidates][places]
