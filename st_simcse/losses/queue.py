"""A queue of negatives from earlier batches, embedded by a slow copy of the model."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from st_simcse.losses.collectives import gather_rows
from st_simcse.losses.heads import trained_dimension
from st_simcse.losses.options import SHARDED, Encoder, Source, SourceOption
from st_simcse.losses.st_internals import chunked_outputs

__all__ = ["MomentumQueue", "Queue"]

# The weights that the copies of the queues follow: the model's and the projection head's.
_leaders: WeakKeyDictionary[Queue, list[nn.Parameter]] = WeakKeyDictionary()


@cache
def _follow_optimizers() -> None:
    """From now on the queues hear of the steps of all optimizers."""
    register_optimizer_step_post_hook(_follow)


def _follow(optimizer: Optimizer, *arguments: Any) -> None:
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for queue, leaders in list(_leaders.items()):
        if any(id(parameter) in trained for parameter in leaders):
            queue.follow(leaders, 1 - queue.momentum)


@dataclass(frozen=True)
class MomentumQueue(SourceOption):
    r"""More negatives than the batch has, for little: momentum contrast as in ESimCSE (Wu et al., COLING 2022, 3.2).

    The sentences of earlier batches are negatives of every anchor. They were embedded without gradient and without
    dropout by a copy of the model whose weights follow those that are trained:

    .. math:: \theta_{copy} \leftarrow \lambda \theta_{copy} + (1 - \lambda) \theta

    The copy moves once a step of the optimizer, whatever optimizer that is and however many batches make a step. It is
    kept in float32 where the model is in half precision, which would round these small moves away. Weights that are
    frozen when the loss is made, such as all but LoRA's adapters, have no copy.

    Args:
        size: number of embeddings that are kept; ESimCSE's choice is 2.5 times the batch. With gather_across_devices
            they are the rows of all processes, else every process has a queue of its own.
        momentum: λ between 0 and 1.

    Raises:
        ValueError: for a size or momentum out of range.

    Example:
        >>> from st_simcse import UnsupSimCSELoss
        >>> from st_simcse.demo import tiny_model
        >>> model = tiny_model(["Two dogs run."]).train()
        >>> loss = UnsupSimCSELoss(model, options=[MomentumQueue(3)])
        >>> for _ in range(2):
        ...     _ = loss([model.preprocess(["Two dogs run.", "Two"])])
        >>> loss.sources["momentum_queue"].negatives()[0].shape
        torch.Size([3, 64])
    """

    size: int = field(metadata={"help": "Negatives from earlier batches: how many.", "least": 1})
    momentum: float = field(
        default=0.995, metadata={"help": "How slowly the copy that embeds them moves.", "least": 0, "most": 1}
    )
    # The queue has no embeddings of earlier layers, and its copy follows whole weights.
    incompatible: ClassVar[frozenset[str]] = frozenset({"AdaptiveLayerLoss", *SHARDED})
    citation: ClassVar[str] = """
@inproceedings{wu2022esimcse,
    title = {{ES}im{CSE}: Enhanced Sample Building Method for Contrastive Learning of Unsupervised Sentence Embedding},
    author = {Wu, Xing and Gao, Chaochen and Zang, Liangjun and Han, Jizhong and Wang, Zhongyuan and Hu, Songlin},
    booktitle = {International Conference on Computational Linguistics (COLING)},
    year = {2022},
}
"""

    def build(self, model: SentenceTransformer, head: nn.Module | None) -> Queue:
        return Queue(model, head, self.size, self.momentum)


class Queue(Source):
    """The embeddings and the copy of the model that makes them.

    Args:
        model: the SentenceTransformer that is trained.
        head: the projection head that is trained with it, or None.
        size, momentum: those of :class:`MomentumQueue`.
    """

    embeddings: Tensor
    keys: Tensor
    filled: Tensor

    def __init__(self, model: SentenceTransformer, head: nn.Module | None, size: int, momentum: float) -> None:
        super().__init__()
        # What is frozen, such as all but the adapters of LoRA, is shared.
        shared = {id(weight): weight for weight in model.parameters() if not weight.requires_grad}
        self.encoder = copy.deepcopy(model, dict(shared)).requires_grad_(False).eval()
        self.head = None if head is None else copy.deepcopy(head).requires_grad_(False).eval()
        self.momentum = momentum
        for tensor in (*self.parameters(), *self.buffers()):
            if tensor.is_floating_point() and id(tensor) not in shared:
                tensor.data = tensor.data.to(torch.promote_types(tensor.dtype, torch.float32))
        width = trained_dimension(model)
        if self.head is not None:
            zeros = torch.zeros(1, width, device=model.device, dtype=self.encoder.dtype)
            width = self._project(zeros).shape[-1]
        # Newest first. Buffers, so that a checkpoint holds them.
        self.register_buffer("embeddings", torch.zeros(size, width, device=model.device))
        self.register_buffer("keys", torch.zeros(size, dtype=torch.int64, device=model.device))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64, device=model.device))

    def train(self, mode: bool = True) -> Queue:
        """Stays without dropout whatever the loss around it does."""
        return super().train(False)

    def begin(self) -> None:
        # A copy, since the queue moves on before the last call for this batch.
        embeddings, keys = self.negatives()
        self._of_this_batch = embeddings.clone(), keys.clone()

    def shared_negatives(self) -> tuple[Tensor, Tensor]:
        return self._of_this_batch

    def negatives(self) -> tuple[Tensor, Tensor]:
        """The embeddings (M, d) and the text keys (M,) of at most ``size`` earlier sentences."""
        filled = int(self.filled)
        return self.embeddings[:filled], self.keys[:filled]

    @torch.no_grad()
    def follow(self, leaders: list[nn.Parameter], step: float) -> None:
        """Move the copy a share of the way to the weights of the model and of the head."""
        for follower, leader in zip(self.parameters(), leaders, strict=True):
            if follower is not leader:
                follower.lerp_(leader.detach().to(follower.dtype), step)

    @torch.no_grad()
    def finish(self, encoder: Encoder, features: dict[str, Tensor], keys: Tensor | None) -> None:
        """Embed the column with the copy and put the rows in front of the queue.

        With ``gather_across_devices`` the rows of all processes, so that their queues stay the same.
        """
        self._follow_weights_of(encoder.model, encoder.head)
        # At first the copy is the model: heads of several processes are made equal only when training begins.
        if self.filled == 0:
            self.follow(_leaders[self], 1.0)
        outputs = chunked_outputs(self.encoder, dict(features), encoder.mini_batch_size, task=None)
        rows = self._project(torch.cat([output["sentence_embedding"] for output in outputs]))
        if encoder.gather_across_devices:
            (rows, keys), _ = gather_rows(rows, keys)
        size = len(self.embeddings)
        self.filled.add_(len(rows)).clamp_(max=size)
        self.embeddings.copy_(torch.cat([rows.to(self.embeddings.dtype), self.embeddings])[:size])
        if keys is not None:
            self.keys.copy_(torch.cat([keys, self.keys])[:size])

    def _project(self, rows: Tensor) -> Tensor:
        # Shared weights give bfloat16 where they are, and the head is float32.
        return rows if self.head is None else self.head(rows.to(torch.promote_types(rows.dtype, torch.float32)))

    def _follow_weights_of(self, model: nn.Module, head: nn.Module | None) -> None:
        _follow_optimizers()
        _leaders[self] = [*model.parameters(), *([] if head is None else head.parameters())]
