"""A queue of negatives from earlier batches, embedded by a slow copy of the model."""

from __future__ import annotations

import copy
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from st_simcse.distributed import gather_rows
from st_simcse.embedding import chunked_outputs

__all__ = ["MomentumQueue"]


class MomentumQueue(nn.Module):
    r"""More negatives than the batch has, for little: momentum contrast as in ESimCSE (Wu et al., COLING 2022, 3.2).

    The sentences of earlier batches are negatives of every anchor. They were embedded without gradient and without
    dropout by a copy of the model whose weights follow those that are trained:

    .. math:: \theta_{copy} \leftarrow \lambda \theta_{copy} + (1 - \lambda) \theta

    Args:
        model: the SentenceTransformer that is trained.
        head: the projection head that is trained with it, or None.
        size: number of embeddings that are kept; ESimCSE's choice is 2.5 times the batch.
        momentum: λ between 0 and 1.

    Raises:
        ValueError: for a size or momentum out of range.

    Example:
        >>> from st_simcse.demo import tiny_model
        >>> model = tiny_model(["Two dogs run."])
        >>> queue = MomentumQueue(model, None, size=3)
        >>> for _ in range(2):
        ...     queue.enqueue(model, None, model.preprocess(["Two dogs run.", "Two"]), torch.arange(2))
        >>> queue.negatives()[0].shape, queue.negatives()[1].tolist()
        (torch.Size([3, 64]), [0, 1, 0])
    """

    def __init__(self, model: SentenceTransformer, head: nn.Module | None, size: int, momentum: float = 0.995) -> None:
        super().__init__()
        if size < 1 or not 0 <= momentum <= 1:
            raise ValueError(
                f"a queue needs a size of at least 1 and a momentum from 0 to 1, got {size} and {momentum}"
            )
        self.encoder = copy.deepcopy(model).requires_grad_(False).eval()
        self.head = None if head is None else copy.deepcopy(head).requires_grad_(False).eval()
        self.momentum = momentum
        width = model.get_embedding_dimension()
        if self.head is not None:
            width = self.head(torch.zeros(1, width, device=model.device, dtype=model.dtype)).shape[-1]
        # Newest first. Buffers, so that a checkpoint holds them.
        self.register_buffer("embeddings", torch.zeros(size, width, device=model.device))
        self.register_buffer("keys", torch.zeros(size, dtype=torch.int64, device=model.device))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64, device=model.device))

    def train(self, mode: bool = True) -> MomentumQueue:
        """Stays without dropout whatever the loss around it does."""
        return super().train(False)

    def negatives(self) -> tuple[Tensor, Tensor]:
        """The embeddings (M, d) and the text keys (M,) of at most ``size`` earlier sentences."""
        filled = int(self.filled)
        return self.embeddings[:filled], self.keys[:filled]

    @torch.no_grad()
    def enqueue(
        self,
        model: nn.Module,
        head: nn.Module | None,
        features: dict[str, Any],
        keys: Tensor | None,
        mini_batch_size: int | None = None,
        gather: bool = False,
    ) -> None:
        """Let the copy follow the model, then embed a column with it and put the rows in front of the queue.

        With ``gather`` the rows of all processes, so that their queues stay the same.
        """
        # At first the copy is the model: heads of several processes are made equal only when training begins.
        step = 1.0 if self.filled == 0 else 1 - self.momentum
        pairs = [(self.encoder, model)] + ([(self.head, head)] if self.head is not None else [])
        for followers, leaders in pairs:
            for follower, leader in zip(followers.parameters(), leaders.parameters(), strict=True):
                follower.lerp_(leader.detach(), step)
        outputs = chunked_outputs(self.encoder, dict(features), mini_batch_size, task=None)
        rows = torch.cat([output["sentence_embedding"] for output in outputs])
        rows = rows if self.head is None else self.head(rows)
        if gather:
            rows = gather_rows(rows)[0]
            keys = None if keys is None else gather_rows(keys)[0]
        size = len(self.embeddings)
        self.filled.add_(len(rows)).clamp_(max=size)
        self.embeddings.copy_(torch.cat([rows.to(self.embeddings.dtype), self.embeddings])[:size])
        if keys is not None:
            self.keys.copy_(torch.cat([keys, self.keys])[:size])
