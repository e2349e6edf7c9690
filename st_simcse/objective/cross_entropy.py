"""The one equation, over the whole similarity matrix or a tile of its rows at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from st_simcse.objective.problem import Edit, Problem, Tile

__all__ = ["cross_entropy", "row_losses"]

# Rows of a tile; fewer where that many rows of the matrix would take more than the given number of elements.
TILE_ROWS = 1024
TILE_ELEMENTS = 2**25
# With edits autograd keeps several matrices as large as the tile.
EDITED_TILE_ROWS = 256


def cross_entropy(problem: Problem, edits: Sequence[Edit] = ()) -> Tensor:
    """The mean of :func:`row_losses` over all softmaxes of a problem; a large matrix never exists whole.

    Args:
        problem: who is compared with whom.
        edits: what changes the logits, in this order.

    Returns:
        A scalar in the dtype of the problem's embeddings. Differentiable once; ``row_losses(problem.tile()).mean()``,
        which holds the whole matrix, any number of times.

    Example:
        >>> rows = torch.eye(3)
        >>> cross_entropy(Problem(rows, rows, torch.arange(3), scale=1.0))  # log(e^1 + 2 e^0) - 1
        tensor(0.5514)
    """
    inputs = problem.queries, problem.candidates, problem.positive_similarities
    loss: Tensor = _TiledCrossEntropy.apply(*inputs, problem, tuple(edits))
    return loss


def row_losses(tile: Tile, edits: Sequence[Edit] = ()) -> Tensor:
    r"""The cross-entropy of each softmax of a tile, in nats.

    With l the edited logits, scale times similarity before the edits, of the columns that are not left out,

    .. math:: \log \sum_j e^{l_{ij}} - l_{i, target(i)}

    where the sum goes over all columns of all rows of a group.

    Returns:
        (m / group,), in the tile's dtype.

    Example:
        >>> rows = torch.eye(3)
        >>> row_losses(Problem(rows, rows, torch.arange(3), scale=1.0).tile(slice(0, 2)))  # log(e^1 + 2 e^0) - 1
        tensor([0.5514, 0.5514])
    """
    problem = tile.problem
    logits = _edited(tile, edits)
    # A copy, since an edit may have kept its result for the gradient.
    logits = problem.leave_out_(logits.clone() if edits else logits, tile.rows)
    first_of_groups = tile.targets[:: problem.group]
    positives = logits[:: problem.group].gather(1, first_of_groups).squeeze(1)
    return logits.reshape(len(positives), -1).logsumexp(1) - positives


def _edited(tile: Tile, edits: Sequence[Edit]) -> Tensor:
    logits = tile.similarities * tile.problem.scale
    for edit in edits:
        logits = edit(logits, tile)
    return logits


class _TiledCrossEntropy(torch.autograd.Function):
    """:func:`row_losses` and their gradients a tile of rows at a time.

    The softmax of a tile is in memory anyway when its loss is known, so its gradients are computed at once and the tile
    is overwritten by the next: three matrix products in all, as few as with the whole matrix, and memory that grows
    with the number of candidates instead of its square.
    """

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        candidates: Tensor,
        positive_similarities: Tensor | None,
        problem: Problem,
        edits: tuple[Edit, ...],
    ) -> Tensor:
        wants_queries, wants_candidates, wants_positives = ctx.needs_input_grad[:3]
        # Where rows are compared among themselves, one gradient is both.
        shared = queries is candidates
        queries_grad = torch.zeros_like(queries) if wants_queries else None
        candidates_grad = queries_grad if shared else torch.zeros_like(candidates) if wants_candidates else None
        positives_grad = torch.empty_like(positive_similarities) if positive_similarities is not None else None
        rows = min(EDITED_TILE_ROWS if edits else TILE_ROWS, TILE_ELEMENTS // len(candidates))
        rows = max(1, rows // problem.group) * problem.group
        softmaxes = len(queries) // problem.group
        buffer = queries.new_empty(min(rows, len(queries)), len(candidates))
        total = queries.new_zeros(())
        gradients = _edited_gradients if edits else _plain_gradients
        with torch.autocast(queries.device.type, enabled=False):
            for begin in range(0, len(queries), rows):
                part = slice(begin, min(begin + rows, len(queries)))
                losses, tile, factor = gradients(problem, part, edits, buffer[: part.stop - begin])
                total += losses.sum()
                factor /= softmaxes  # as the gradient of their mean wants it
                if positives_grad is not None:
                    target = problem.targets[part, None]
                    positives_grad[part] = tile.gather(1, target).squeeze(1) * factor
                    tile.scatter_(1, target, 0.0)
                if queries_grad is not None:
                    queries_grad[part].addmm_(tile, candidates, alpha=factor)
                if candidates_grad is not None:
                    candidates_grad.addmm_(tile.T, queries[part], alpha=factor)
        ctx.save_for_backward(
            queries_grad, None if shared else candidates_grad, positives_grad if wants_positives else None
        )
        return total / softmaxes

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        return *(None if grad is None else grad * grad_output for grad in ctx.saved_tensors), None, None


def _plain_gradients(
    problem: Problem, rows: slice, edits: Sequence[Edit], buffer: Tensor
) -> tuple[Tensor, Tensor, float]:
    """The losses of a tile, and their gradients with respect to its similarities: a matrix, and a factor for it."""
    torch.addmm(buffer, problem.queries[rows], problem.candidates.T, beta=0, alpha=problem.scale, out=buffer)
    if problem.positive_similarities is not None:
        buffer.scatter_(1, problem.targets[rows, None], problem.positive_similarities[rows, None] * problem.scale)
    return _losses_and_gradients_(problem, rows, buffer), buffer, problem.scale


def _edited_gradients(
    problem: Problem, rows: slice, edits: Sequence[Edit], buffer: Tensor
) -> tuple[Tensor, Tensor, float]:
    """The same with edits, through which autograd goes."""
    similarities = problem.tile(rows).similarities.detach().requires_grad_()
    with torch.enable_grad():
        logits = _edited(problem.tile(rows, similarities), edits)
    losses = _losses_and_gradients_(problem, rows, buffer.copy_(logits.detach()))
    (gradient,) = torch.autograd.grad(logits, similarities, buffer)
    return losses, gradient, 1.0


def _losses_and_gradients_(problem: Problem, rows: slice, logits: Tensor) -> Tensor:
    """The losses of a tile; its logits become their gradients: the probability, less one for the positive."""
    first_of_groups = problem.targets[rows, None][:: problem.group]
    positives = logits[:: problem.group].gather(1, first_of_groups).squeeze(1)
    softmaxes = problem.leave_out_(logits, rows).view(len(positives), -1)
    largest = softmaxes.amax(1)
    torch.softmax(softmaxes, 1, out=softmaxes)
    # The largest probability is e^largest / sum, and never underflows as the others may.
    losses = largest - softmaxes.amax(1).log() - positives
    softmaxes.scatter_add_(1, first_of_groups, softmaxes.new_full(first_of_groups.shape, -1.0))
    return losses
