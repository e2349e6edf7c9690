"""The cross-entropy of contrastive learning, computed on the whole similarity matrix or on tiles of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from st_simcse.objective.problem import Edit, Problem, Tile

__all__ = ["cross_entropy", "row_losses"]

# The rows of a tile. A tile has fewer rows if it would exceed the number of elements.
TILE_ROWS = 1024
TILE_ELEMENTS = 2**25
# With edits, autograd keeps several matrices of the size of a tile.
EDITED_TILE_ROWS = 256


def cross_entropy(problem: Problem, edits: Sequence[Edit] = ()) -> Tensor:
    """Computes the mean of :func:`row_losses` over all softmaxes of a problem, one tile of rows at a time.

    Args:
        problem: The embeddings to compare.
        edits: Changes of the logits, applied in this order.

    Returns:
        A scalar in the dtype of the problem's embeddings. It can be differentiated once. To differentiate several
        times, use ``row_losses(problem.tile()).mean()``, which holds the whole matrix in memory.

    Example:
        >>> rows = torch.eye(3)
        >>> cross_entropy(Problem(rows, rows, torch.arange(3), scale=1.0))  # log(e^1 + 2 e^0) - 1
        tensor(0.5514)
    """
    inputs = problem.queries, problem.candidates, problem.positive_similarities
    loss: Tensor = _TiledCrossEntropy.apply(*inputs, problem, tuple(edits))
    return loss


def row_losses(tile: Tile, edits: Sequence[Edit] = ()) -> Tensor:
    r"""Computes the cross-entropy of each softmax of a tile, in nats.

    .. math:: \log \sum_j e^{l_{ij}} - l_{i, target(i)}

    Here l are the logits: the similarities times the scale, changed by the edits. The sum includes all columns that are
    not excluded, of all rows of a group.

    Returns:
        (m / group,), in the tile's dtype.

    Example:
        >>> rows = torch.eye(3)
        >>> row_losses(Problem(rows, rows, torch.arange(3), scale=1.0).tile(slice(0, 2)))  # log(e^1 + 2 e^0) - 1
        tensor([0.5514, 0.5514])
    """
    problem = tile.problem
    logits = _edited(tile, edits)
    # The in-place exclusion needs a copy, because autograd may have kept an edit's result.
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
    """The mean of :func:`row_losses` and its gradients, computed for one tile of rows at a time.

    The gradients of a tile are computed together with its loss, while its softmax is in memory. The next tile
    overwrites it. This takes three matrix products in all, as many as with the whole matrix, but memory grows with the
    number of candidates and not with its square.
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
        # If rows are compared among themselves, they have one gradient for both roles.
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
                factor /= softmaxes  # the result is the mean
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
    """Returns a tile's losses and their gradients with respect to the similarities, as a matrix and a factor for it."""
    torch.addmm(buffer, problem.queries[rows], problem.candidates.T, beta=0, alpha=problem.scale, out=buffer)
    if problem.positive_similarities is not None:
        buffer.scatter_(1, problem.targets[rows, None], problem.positive_similarities[rows, None] * problem.scale)
    return _losses_and_gradients_(problem, rows, buffer), buffer, problem.scale


def _edited_gradients(
    problem: Problem, rows: slice, edits: Sequence[Edit], buffer: Tensor
) -> tuple[Tensor, Tensor, float]:
    """Returns the same as :func:`_plain_gradients`, computed by autograd because the edits are arbitrary functions."""
    similarities = problem.tile(rows).similarities.detach().requires_grad_()
    with torch.enable_grad():
        logits = _edited(problem.tile(rows, similarities), edits)
    losses = _losses_and_gradients_(problem, rows, buffer.copy_(logits.detach()))
    (gradient,) = torch.autograd.grad(logits, similarities, buffer)
    return losses, gradient, 1.0


def _losses_and_gradients_(problem: Problem, rows: slice, logits: Tensor) -> Tensor:
    """Returns the losses of a tile and overwrites its logits with the gradients: probability minus one-hot target."""
    first_of_groups = problem.targets[rows, None][:: problem.group]
    positives = logits[:: problem.group].gather(1, first_of_groups).squeeze(1)
    softmaxes = problem.leave_out_(logits, rows).view(len(positives), -1)
    largest = softmaxes.amax(1)
    torch.softmax(softmaxes, 1, out=softmaxes)
    # The largest probability is e^largest / sum. Unlike the others it cannot underflow.
    losses = largest - softmaxes.amax(1).log() - positives
    softmaxes.scatter_add_(1, first_of_groups, softmaxes.new_full(first_of_groups.shape, -1.0))
    return losses
