"""Cross-entropy of a similarity matrix that never exists whole: loss and gradients a tile of rows at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from st_simcse.duplicates import KnownPositives

__all__ = ["TiledCrossEntropy"]

# Rows of a tile; fewer where that many rows of the matrix would take more than the given number of elements.
TILE_ROWS = 1024
TILE_ELEMENTS = 2**25


class TiledCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of ``scale * queries @ candidates.T``, row i against column ``targets[i]``.

    The softmax of a tile is in memory anyway when its loss is known, so its gradients are computed at once and the tile
    is overwritten by the next: three matrix products in all, as few as with the whole matrix, and memory that grows
    with the number of candidates instead of its square. Differentiable once.

    Args of ``apply``:
        queries: (M, d), float32 or float64.
        candidates: (C, d), same dtype.
        targets: (M,) int64, a column of each row.
        own_columns: (M,) int64, a column of each row to leave out, or None.
        known_positives: what else to leave out, the targets excepted, or None.
        own_negatives: (M, N) int64, columns whose logit gets ``log_weight`` added, or None.
        log_weight: may be -inf.
        scale: the inverse temperature.
        threshold: leave out what is more similar than this and not the target, or None.
        focal_margin: the m by which a similarity s becomes s (s + m), the target's s², or None.
        positive_similarities: (M,), same dtype, in place of the products at the targets, or None.

    Returns:
        A scalar in the inputs' dtype.

    Example:
        >>> rows = torch.eye(3)
        >>> weight_and_scale = 0.0, 1.0
        >>> TiledCrossEntropy.apply(rows, rows, torch.arange(3), *[None] * 3, *weight_and_scale, *[None] * 3)
        tensor(0.5514)
    """

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        candidates: Tensor,
        targets: Tensor,
        own_columns: Tensor | None,
        known_positives: KnownPositives | None,
        own_negatives: Tensor | None,
        log_weight: float,
        scale: float,
        threshold: float | None,
        focal_margin: float | None,
        positive_similarities: Tensor | None,
    ) -> Tensor:
        # A mean's gradient wants every product divided by the number of rows.
        mean_scale = scale / len(queries)
        # Scaled by the product itself where nothing needs the similarities as they are.
        raw = threshold is not None or focal_margin is not None
        product_scale = 1 if raw else scale
        rows = max(1, min(TILE_ROWS, TILE_ELEMENTS // len(candidates)))
        wants_queries, wants_candidates = ctx.needs_input_grad[:2]
        queries_grad = torch.empty_like(queries) if wants_queries else None
        candidates_grad = torch.zeros_like(candidates) if wants_candidates else None
        positives_grad = None if positive_similarities is None else torch.empty_like(positive_similarities)
        losses = queries.new_empty(len(queries))
        buffer = queries.new_empty(min(rows, len(queries)), len(candidates))
        with torch.autocast(queries.device.type, enabled=False):
            for begin in range(0, len(queries), rows):
                part = slice(begin, begin + rows)
                query, target = queries[part], targets[part, None]
                tile = buffer[: len(query)]
                torch.addmm(tile, query, candidates.T, beta=0, alpha=product_scale, out=tile)
                if positive_similarities is not None:
                    tile.scatter_(1, target, positive_similarities[part, None] * product_scale)
                similar = None if threshold is None else (tile > threshold).scatter_(1, target, False)
                positive = tile.gather(1, target)
                if focal_margin is not None:
                    slopes = (2 * tile).add_(focal_margin).scatter_(1, target, 2 * positive)
                    positive.square_()
                    tile.mul_(tile + focal_margin).scatter_(1, target, positive)
                if raw:
                    positive *= scale
                    tile *= scale
                if similar is not None:
                    tile.masked_fill_(similar, -torch.inf)
                if known_positives is not None:
                    tile.masked_fill_(known_positives.mask(part).scatter_(1, target, False), -torch.inf)
                if own_columns is not None:
                    tile.scatter_(1, own_columns[part, None], -torch.inf)
                if own_negatives is not None:
                    own = own_negatives[part]
                    tile.scatter_add_(1, own, tile.new_full(own.shape, log_weight))
                largest = tile.amax(1)
                torch.softmax(tile, 1, out=tile)
                # The largest probability is e^largest / sum, and never underflows as the others may.
                losses[part] = largest - tile.amax(1).log() - positive.squeeze(1)
                tile.scatter_add_(1, target, tile.new_full(target.shape, -1.0))
                if focal_margin is not None:
                    tile *= slopes
                if positives_grad is not None:
                    positives_grad[part] = mean_scale * tile.gather(1, target).squeeze(1)
                    tile.scatter_(1, target, 0.0)
                if queries_grad is not None:
                    torch.addmm(query, tile, candidates, beta=0, alpha=mean_scale, out=queries_grad[part])
                if candidates_grad is not None:
                    candidates_grad.addmm_(tile.T, query, alpha=mean_scale)
        ctx.save_for_backward(queries_grad, candidates_grad, positives_grad)
        return losses.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        queries_grad, candidates_grad, positives_grad = (
            None if grad is None else grad * grad_output for grad in ctx.saved_tensors
        )
        return queries_grad, candidates_grad, *[None] * 8, positives_grad
