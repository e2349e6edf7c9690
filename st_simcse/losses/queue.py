"""A queue of negatives from earlier batches, embedded by a slowly moving copy of the model."""

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
from st_simcse.losses.options import SHARDED, Encoder, Source, SourceOption
from st_simcse.losses.st_internals import chunked_outputs
from st_simcse.models.initialisation import trained_dimension

__all__ = ["MomentumQueue", "Queue"]

# For each queue, the weights that its copy follows: the model's and the projection head's.
_leaders: WeakKeyDictionary[Queue, list[nn.Parameter]] = WeakKeyDictionary()


@cache
def _follow_optimizers() -> None:
    """Makes the queues follow the steps of all optimizers from now on."""
    register_optimizer_step_post_hook(_follow)


def _follow(optimizer: Optimizer, *arguments: Any) -> None:
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for queue, leaders in list(_leaders.items()):
        # An empty queue begins as the model of its first batch.
        if any(id(parameter) in trained for parameter in leaders) and queue.filled:
            queue.follow(leaders, 1 - queue.momentum)


@dataclass(frozen=True)
class MomentumQueue(SourceOption):
    r"""Negatives from earlier batches: momentum contrast, as in ESimCSE (Wu et al., COLING 2022, section 3.2).

    The sentences of earlier batches are negatives of every anchor. They were embedded without gradient and without
    dropout by a copy of the model. The weights of the copy follow the trained weights θ:

    .. math:: \theta_{copy} \leftarrow \lambda \theta_{copy} + (1 - \lambda) \theta

    The copy moves once per optimizer step, with any optimizer and any number of batches per step. If the model is in
    half precision, the copy is in float32, because half precision would round these small moves away. Weights that are
    frozen when the loss is built, such as all but LoRA's adapters, are shared and not copied.

    Args:
        size: The number of embeddings to keep. ESimCSE uses 2.5 times the batch size. With ``gather_across_devices``
            the queue holds the rows of all processes; otherwise every process has its own queue.
        momentum: λ, from 0 to 1.

    Raises:
        ValueError: If the size or momentum is out of range.

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

    size: int = field(metadata={"help": "Number of negatives to keep from earlier batches.", "least": 1})
    momentum: float = field(
        default=0.995, metadata={"help": "Momentum λ of the copy that embeds them.", "least": 0, "most": 1}
    )
    # The queue has no embeddings of earlier layers, and its copy cannot follow sharded weights.
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
    """A queue's embeddings, and the copy of the model that computes them.

    Args:
        model: The SentenceTransformer to train.
        head: The projection head to train with it, or None.
        size, momentum: As in :class:`MomentumQueue`.
    """

    embeddings: Tensor
    keys: Tensor
    filled: Tensor

    def __init__(self, model: SentenceTransformer, head: nn.Module | None, size: int, momentum: float) -> None:
        super().__init__()
        # Frozen weights, such as all but the adapters of LoRA, are shared with the model.
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
        # The newest embeddings come first. They are buffers so that a checkpoint contains them.
        self.register_buffer("embeddings", torch.zeros(size, width, device=model.device))
        self.register_buffer("keys", torch.zeros(size, dtype=torch.int64, device=model.device))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64, device=model.device))
        # The queue follows before its next batch, because a run may resume between the batches of its dataset.
        self._follow_weights_of(model, head)

    def train(self, mode: bool = True) -> Queue:
        """Keeps evaluation mode, so the copy has no dropout when the loss is set to training mode."""
        return super().train(False)

    def begin(self) -> None:
        # These are copies, because a wrapper calls the loss for this batch again after the queue has moved on.
        embeddings, keys = self.negatives()
        self._of_this_batch = embeddings.clone(), keys.clone()

    def shared_negatives(self) -> tuple[Tensor, Tensor]:
        return self._of_this_batch

    def negatives(self) -> tuple[Tensor, Tensor]:
        """Returns the embeddings (M, d) and the text keys (M,) of at most ``size`` earlier sentences."""
        filled = int(self.filled)
        return self.embeddings[:filled], self.keys[:filled]

    @torch.no_grad()
    def follow(self, leaders: list[nn.Parameter], step: float) -> None:
        """Moves the copy towards the weights of the model and the head by a share of the difference."""
        for follower, leader in zip(self.parameters(), leaders, strict=True):
            if follower is not leader:
                follower.lerp_(leader.detach().to(follower.dtype), step)

    @torch.no_grad()
    def finish(self, encoder: Encoder, features: dict[str, Tensor], keys: Tensor | None) -> None:
        """Embeds the column with the copy and puts the rows at the front of the queue.

        With ``gather_across_devices`` it adds the rows of all processes, so that all processes have the same queue.
        """
        self._follow_weights_of(encoder.model, encoder.head)
        # The copy starts as the current model, because the heads of several processes become equal only in training.
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
        # With shared bfloat16 weights the rows are bfloat16, but the head is float32.
        return rows if self.head is None else self.head(rows.to(torch.promote_types(rows.dtype, torch.float32)))

    def _follow_weights_of(self, model: nn.Module, head: nn.Module | None) -> None:
        _follow_optimizers()
        _leaders[self] = [*model.parameters(), *([] if head is None else head.parameters())]
