"""UnsupSimCSELoss and SupSimCSELoss: embed the columns of a batch, then call :mod:`st_simcse.functional`."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from accelerate.utils import extract_model_from_parallel
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import AdaptiveLayerLoss, MatryoshkaLoss
from sentence_transformers.sentence_transformer.losses.adaptive_layer import TransformerDecorator
from sentence_transformers.sentence_transformer.losses.matryoshka import ForwardDecorator
from torch import Tensor, nn

from st_simcse.distributed import gather_rows, is_distributed, world_size
from st_simcse.duplicates import text_keys
from st_simcse.embedding import (
    GradientCache,
    RandContext,
    chunked_outputs,
    has_static_embedding_input,
    merge_feature_batches,
    refuse_stale_gradients,
    trained_dimension,
)
from st_simcse.functional import info_nce, normalize
from st_simcse.heads import ProjectionHead
from st_simcse.mlm import MaskedLanguageModel
from st_simcse.momentum import MomentumQueue
from st_simcse.precision import ObservedPrecision

__all__ = ["SupSimCSELoss", "UnsupSimCSELoss"]

logger = logging.getLogger(__name__)

# Enough rows to keep the cores of a CPU busy, few enough to be of like length.
ROWS_PER_PASS = 48
# Cached mini-batches have few different widths: each leaves holes of its own in the heap, and caching saves memory.
CACHED_WIDTH_STEP = 16

# AdaptiveLayerLoss calls a loss once a layer, and hands the layers over in the features that the model was given first.
_features_of_batch: WeakKeyDictionary[TransformerDecorator, list[dict[str, Tensor]]] = WeakKeyDictionary()


class SimCSELoss(GradientCache, nn.Module):
    """What the two losses share: embedding with a training-only head, in one pass or in cached mini-batches."""

    def __init__(
        self,
        model: SentenceTransformer,
        temperature: float,
        projection_head: bool | nn.Module,
        mini_batch_size: int | None,
        gather_across_devices: bool,
        mask_duplicates: bool,
        false_negative_threshold: float | None,
        mlm_weight: float,
        focal_margin: float | None,
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        if mini_batch_size is not None and mini_batch_size < 1:
            raise ValueError(f"mini_batch_size must be at least 1 or None, got {mini_batch_size}")
        if mini_batch_size is not None and has_static_embedding_input(model):
            raise ValueError(
                "a StaticEmbedding model cannot be cut into mini-batches, and its activations are small: leave "
                "mini_batch_size out and raise the batch size instead"
            )
        if not mlm_weight >= 0:
            raise ValueError(f"mlm_weight must be at least 0, got {mlm_weight}")
        if mlm_weight and mini_batch_size is not None:
            raise ValueError("mlm_weight does not go with mini_batch_size: its forward pass takes the whole batch")
        self.model = model
        self.temperature = temperature
        if projection_head is True:
            projection_head = ProjectionHead(trained_dimension(model)).to(model.device, model.dtype)
        self.projection_head = projection_head or None
        self.mini_batch_size = mini_batch_size
        self.uses_gradient_cache = mini_batch_size is not None
        self.gather_across_devices = gather_across_devices
        self.mask_duplicates = mask_duplicates
        self.false_negative_threshold = false_negative_threshold
        self.focal_margin = focal_margin
        self.mlm_weight = mlm_weight
        self.masked_language_model = MaskedLanguageModel(model) if mlm_weight else None
        self.queue: MomentumQueue | None = None
        self.dropout_free_negatives = False
        self._precision = ObservedPrecision()
        # Set by whatever keeps the head equal in several processes; see st_simcse.distributed.
        self.is_synchronized = False

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None) -> Tensor:
        """The loss of one batch.

        Args:
            sentence_features: one dict of tokenized inputs a column, B rows each.
            labels: ignored; the positives are known by their place in the batch.

        Returns:
            A float32 scalar.

        Raises:
            ValueError: for a number of columns that the loss cannot use, non-finite embeddings, an option that does not
                go with a wrapper around this loss, and a projection head without SimCSETrainer in several processes, or
                if its gradients are not cleared (ST before 6.2).
        """
        owns_weights = self.projection_head is not None or self.masked_language_model is not None
        if owns_weights and not self.is_synchronized and is_distributed():
            raise ValueError(
                "in several processes the weights of a loss, such as a projection head's, would drift apart, since "
                "DistributedDataParallel wraps the model alone: train with SimCSETrainer, which keeps them equal"
            )
        if owns_weights:
            refuse_stale_gradients(self)
        transformer = extract_model_from_parallel(self.model, keep_torch_compile=False)[0]
        if self.masked_language_model is not None or self.queue is not None:
            self._precision.watch(transformer)
        # What a MatryoshkaLoss and an AdaptiveLayerLoss around this loss put in place of forward passes meanwhile.
        dimensions = self.model.forward if isinstance(self.model.forward, ForwardDecorator) else None
        layers = transformer.forward if isinstance(transformer.forward, TransformerDecorator) else None
        self.check_wrapper(dimensions is not None or "calculate_loss" in vars(self), layers is not None)
        # A wrapper's first call is for the last layer and the largest dimension; the others are about the same batch.
        is_first_call = not (dimensions and dimensions.cache) and (layers is None or layers.layer_idx is None)

        queue = self._active_queue()
        if is_first_call and queue is not None:
            self._queued = [tensor.clone() for tensor in queue.negatives()]

        texts = list(sentence_features)
        columns = self._columns(texts)
        # Of the texts as they came: a single column of sentences is both of its views.
        keys = [text_keys(text) if self.mask_duplicates else None for text in texts] * (len(columns) // len(texts))
        # Copies, because a model writes its outputs into the features it is given.
        copies = [dict(column) for column in (*columns, *texts[: self.dropout_free_negatives])]
        if layers is not None:
            copies = _features_of_batch.setdefault(layers, copies)
        rows, places = self._sort_by_length(copies[: len(columns)])
        layout = (places, None if any(key is None for key in keys) else keys)
        if self.mini_batch_size is not None:
            loss = self.forward_cached(rows, layout)
        else:
            embedded = [self._embed(column, places is not None) for column in rows]
            if self.dropout_free_negatives:
                embedded.append(self._embed_without_dropout(copies[-1]))
            loss = self.calculate_loss(embedded, layout)
        if is_first_call:
            with self._precision.autocast():
                if queue is not None:
                    options = self.mini_batch_size, self.gather_across_devices
                    queue.enqueue(self.model, self.projection_head, texts[0], keys[0], *options)
                if self.masked_language_model is not None:
                    auxiliary = sum(self.masked_language_model(text) for text in texts)
                    loss = loss + self.mlm_weight / len(texts) * auxiliary
        return loss

    def check_wrapper(self, matryoshka: bool, adaptive: bool) -> None:
        """Whether this loss can be inside a MatryoshkaLoss or an AdaptiveLayerLoss; a Matryoshka2dLoss is both.

        Raises:
            ValueError: if it cannot; says which option to leave out.
        """
        if matryoshka and self.projection_head is not None:
            raise ValueError(
                "MatryoshkaLoss truncates the embeddings that are trained, so that a projection head on top of them "
                "cannot be of one width: leave projection_head out"
            )
        if adaptive and self.mini_batch_size is not None:
            raise ValueError(
                "AdaptiveLayerLoss needs the layers of the whole batch at once: leave mini_batch_size out, and lower "
                "the batch size or use gradient_checkpointing instead"
            )
        if adaptive and self.queue is not None:
            raise ValueError(
                "AdaptiveLayerLoss compares the embeddings of earlier layers, of which a queue has none: leave "
                "queue_size out"
            )

    def embed_minibatch(self, *args: Any, with_grad: bool, **kwargs: Any) -> tuple[Tensor, RandContext | None]:
        # The head belongs to the replayed part of GradCache, so that gradient accumulation and loss scaling reach it.
        embeddings, random_state = super().embed_minibatch(*args, with_grad=with_grad, **kwargs)
        with nullcontext() if with_grad else torch.no_grad():
            return self._project(embeddings), random_state

    def calculate_loss(
        self,
        reps: list[list[Tensor]],
        labels: tuple[Tensor | None, list[Tensor] | None] = (None, None),
        *,
        with_backward: bool = False,
    ) -> Tensor:
        """The loss of a list of embeddings a column; or of one list for all columns that were merged.

        ``labels`` says where the columns' rows are in that list, (columns, B), and which texts are the same.
        """
        columns = [torch.cat(column) for column in reps]
        places, keys = labels
        if places is not None:
            columns = [*columns[0][places], *columns[1:]]
        loss = self.compute_loss_from_embeddings(columns, keys)
        if with_backward:
            with torch.autocast(loss.device.type, enabled=False):  # would round the backward pass's products
                loss.backward()
            loss = loss.detach()
        return loss

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], keys: list[Tensor] | None = None) -> Tensor:
        """The loss of one (B, d) embedding matrix a column, the projection head already applied.

        ``keys`` are (B,) int64 a column, equal for equal texts.
        """
        raise NotImplementedError

    def get_config_dict(self) -> dict[str, Any]:
        return {
            "temperature": self.temperature,
            "projection_head": self.projection_head is not None,
            "mini_batch_size": self.mini_batch_size,
            "gather_across_devices": self.gather_across_devices,
            "mask_duplicates": self.mask_duplicates,
            "false_negative_threshold": self.false_negative_threshold,
            "mlm_weight": self.mlm_weight,
            "focal_margin": self.focal_margin,
        }

    @property
    def citation(self) -> str:
        return """
@inproceedings{gao2021simcse,
    title = {{SimCSE}: Simple Contrastive Learning of Sentence Embeddings},
    author = {Gao, Tianyu and Yao, Xingcheng and Chen, Danqi},
    booktitle = {Empirical Methods in Natural Language Processing (EMNLP)},
    year = {2021},
}
"""

    def _columns(self, columns: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        raise NotImplementedError

    def _sort_by_length(self, columns: list[dict[str, Tensor]]) -> tuple[list[dict[str, Tensor]], Tensor | None]:
        """The rows of all columns as one, the longest first, and where the columns' rows (columns, B) are now.

        Rows of like length share a forward pass, which saves most of the padding. Columns that are no rows of tokens,
        such as a StaticEmbedding's, stay as they are, and so do those that a wrapper wants to find unmerged.
        """
        # ST before 6.0 does not say that AdaptiveLayerLoss wants the columns unmerged.
        transformer = extract_model_from_parallel(self.model, keep_torch_compile=False)[0]
        can_be_merged = not isinstance(transformer.forward, TransformerDecorator) and _can_be_widened(columns)
        rows = merge_feature_batches(columns) if can_be_merged else None
        if rows is None or "attention_mask" not in rows:
            return columns, None
        lengths = rows["attention_mask"].sum(1)
        if self.mini_batch_size is not None:
            lengths = (lengths - 1) // CACHED_WIDTH_STEP
        order = lengths.argsort(descending=True, stable=True)
        features = {key: value[order] if _has_rows(value, order) else value for key, value in rows.items()}
        return [features], order.argsort().view(len(columns), -1)

    def _embed(self, features: dict[str, Tensor], is_sorted: bool) -> list[Tensor]:
        """Projected embeddings; rows sorted by length in several passes of few rows on a CPU, all else in one."""
        on_cpu = is_sorted and features["attention_mask"].device.type == "cpu"
        outputs = chunked_outputs(self.model, features, ROWS_PER_PASS if on_cpu else None, task=None)
        return [self._project(output["sentence_embedding"]) for output in outputs]

    def _embed_without_dropout(self, features: dict[str, Tensor]) -> list[Tensor]:
        (rows,), places = self._sort_by_length([features])
        with _evaluation_mode(self):
            embeddings = self._embed(rows, places is not None)
        return embeddings if places is None else [torch.cat(embeddings)[places[0]]]

    def _info_nce(
        self,
        anchors: Tensor,
        positives: Tensor,
        negatives: Tensor | None = None,
        keys: list[Tensor] | None = None,
        **options: Any,
    ) -> Tensor:
        """This process's part of the loss over the rows of all; the mean over processes is the loss of all rows."""
        options |= {
            "temperature": self.temperature,
            "false_negative_threshold": self.false_negative_threshold,
            "focal_margin": self.focal_margin,
        }
        queued_keys: list[Tensor] = []
        if self._active_queue() is not None:
            queued, *queued_keys = self._queued
            options["shared_negatives"] = queued[:, : anchors.shape[1]]  # MatryoshkaLoss truncates the anchors
        if not self.gather_across_devices:
            keys = keys and [*keys, *queued_keys]
            return info_nce(anchors, positives, negatives, text_keys=keys, **options)
        columns = [anchors, positives, negatives, options.pop("positive_similarities", None), *(keys or [])]
        (anchors, positives, negatives, similarities, *columns), rows = gather_rows(*columns)
        keys = keys and [*columns, *queued_keys]
        options["positive_similarities"] = similarities
        # Processes count alike in the mean over them, however many rows each has.
        share = (rows.stop - rows.start) * world_size() / len(anchors)
        return share * info_nce(anchors, positives, negatives, anchor_rows=rows, text_keys=keys, **options)

    def _active_queue(self) -> MomentumQueue | None:
        return self.queue if self.model.training and torch.is_grad_enabled() else None

    def _project(self, embeddings: Tensor) -> Tensor:
        return embeddings if self.projection_head is None else self.projection_head(embeddings)


def check_wrappers(loss: nn.Module) -> None:
    """Whether every loss of ours goes with the wrappers around it.

    Raises:
        ValueError: if one does not; says which option to leave out.
    """
    for wrapper in loss.modules():
        if isinstance(wrapper, (MatryoshkaLoss, AdaptiveLayerLoss)):
            for inner in wrapper.modules():
                if isinstance(inner, SimCSELoss):
                    inner.check_wrapper(isinstance(wrapper, MatryoshkaLoss), isinstance(wrapper, AdaptiveLayerLoss))


def _can_be_widened(columns: list[dict[str, Any]]) -> bool:
    """Whether padding on the right costs nothing once rows are sorted; rows that are padded on the left keep both."""
    masks = [column["attention_mask"] for column in columns if "attention_mask" in column]
    widths = {mask.shape[1] for mask in masks}
    return len(widths) < 2 or all(bool(mask[:, 0].all()) for mask in masks)


def _has_rows(value: Any, order: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape[:1] == order.shape


@contextmanager
def _evaluation_mode(module: nn.Module) -> Iterator[None]:
    """No dropout in what is in training mode, and afterwards as it was; what is frozen stays so."""
    training = [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


class UnsupSimCSELoss(SimCSELoss):
    """Unsupervised SimCSE: a sentence and itself under another dropout mask are a positive pair (paper, equation 4).

    Args:
        model: the SentenceTransformer to train. Dropout is the only augmentation, so it must be active.
        temperature: softmax temperature τ > 0; ST's ``scale`` is 1/τ.
        symmetric: both views are anchors, each against the 2B - 1 other rows, instead of the first views against the
            B second views as in the paper.
        projection_head: ``True`` trains a :class:`~st_simcse.heads.ProjectionHead` along with the model ("MLP in
            training only", the paper's best setting for CLS pooling); or a module of your own, (B, d) to (B, d'). It
            never becomes part of the saved model.
        mini_batch_size: embed this many rows at a time with gradient caching, so that memory no longer grows with the
            batch size; the gradients are the same, and every view keeps its own dropout mask.
        gather_across_devices: the rows of all processes are negatives of each other, with gradients to all of them.
        mask_duplicates: the same text in another row of the batch is no negative; by its tokens, and in the rows of
            all processes if they are gathered.
        false_negative_threshold: negatives whose cosine similarity to the anchor is above this are left out.
        mlm_weight: factor of the masked-language-model loss that is added (the paper's λ, 0.1 in its ablation); 15%
            of the tokens are to be predicted, see :class:`~st_simcse.mlm.MaskedLanguageModel`. 0 leaves it out. Within
            a MatryoshkaLoss or AdaptiveLayerLoss it counts once, with the weight of the largest dimension and the last
            layer.
        focal_margin: the m of Focal-InfoNCE, which weighs hard negatives up, see :func:`~st_simcse.info_nce`; 0.2, for
            example. None leaves it out.
        queue_size: so many sentences of earlier batches are negatives too, embedded by a
            :class:`~st_simcse.momentum.MomentumQueue` (ESimCSE: 2.5 times the batch). 0 leaves it out. With
            gather_across_devices it holds the rows of all processes, else every process has a queue of its own.
        dropout_free_negatives: dropout is noise to negatives, so as in SimCSE++ (Xu et al., EMNLP 2023) only positive
            pairs have it: the two views are compared with each other, and negatives are compared as embedded by one
            more forward pass without dropout.

    Inputs:
        +--------------------------------------------+--------+
        | Texts                                      | Labels |
        +============================================+========+
        | one column: the two views are made here    | none   |
        +--------------------------------------------+--------+
        | two identical columns (doubled sentences)  | none   |
        +--------------------------------------------+--------+

        One column is tokenized once and embedded in a single forward pass over 2B rows.

    Raises:
        ValueError: for a temperature or mini_batch_size out of range; in ``forward``, for three columns or more and
            for non-finite embeddings.

    Example:
        ::

            from datasets import Dataset
            from sentence_transformers import SentenceTransformerTrainer
            from st_simcse import UnsupSimCSELoss, build_model

            model = build_model("bert-base-uncased", pooling="cls")
            train_dataset = Dataset.from_dict({"sentence": ["It's nice weather outside today.", "He drove to work."]})
            loss = UnsupSimCSELoss(model, projection_head=True)
            SentenceTransformerTrainer(model=model, train_dataset=train_dataset, loss=loss).train()
    """

    def __init__(
        self,
        model: SentenceTransformer,
        temperature: float = 0.05,
        symmetric: bool = False,
        projection_head: bool | nn.Module = False,
        mini_batch_size: int | None = None,
        gather_across_devices: bool = False,
        mask_duplicates: bool = True,
        false_negative_threshold: float | None = None,
        mlm_weight: float = 0.0,
        focal_margin: float | None = None,
        queue_size: int = 0,
        dropout_free_negatives: bool = False,
    ) -> None:
        super().__init__(
            model,
            temperature,
            projection_head,
            mini_batch_size,
            gather_across_devices,
            mask_duplicates,
            false_negative_threshold,
            mlm_weight,
            focal_margin,
        )
        self.symmetric = symmetric
        self.queue_size = queue_size
        if queue_size:
            self.queue = MomentumQueue(model, self.projection_head, queue_size)
        if dropout_free_negatives and mini_batch_size is not None:
            raise ValueError(
                "dropout_free_negatives does not go with mini_batch_size: their forward pass takes the whole batch"
            )
        self.dropout_free_negatives = dropout_free_negatives
        self._compare_views = self._compare_columns = True

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], keys: list[Tensor] | None = None) -> Tensor:
        first, second, *dropout_free = embeddings
        if self._compare_views and first.requires_grad:
            self._compare_views = False
            self._warn_if_equal(first.detach(), second.detach())
        if not dropout_free:
            return self._info_nce(first, second, keys=keys, symmetric=self.symmetric)
        similarities = (normalize(first, "the first views") * normalize(second, "the second views")).sum(1)
        options: dict[str, Any] = {"keys": keys, "symmetric": self.symmetric, "positive_similarities": similarities}
        return self._info_nce(dropout_free[0], dropout_free[0], **options)

    def get_config_dict(self) -> dict[str, Any]:
        return super().get_config_dict() | {
            "symmetric": self.symmetric,
            "queue_size": self.queue_size,
            "dropout_free_negatives": self.dropout_free_negatives,
        }

    def _columns(self, columns: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        if len(columns) not in (1, 2):
            raise ValueError(
                f"UnsupSimCSELoss takes one column of sentences or the same column twice, got {len(columns)} columns: "
                "drop the others with dataset.select_columns, or use SupSimCSELoss for (anchor, positive, negative)"
            )
        if len(columns) == 2 and self._compare_columns:
            self._compare_columns = False
            self._warn_if_different(*map(text_keys, columns))
        return columns if len(columns) == 2 else columns * 2

    @staticmethod
    def _warn_if_different(first: Tensor | None, second: Tensor | None) -> None:
        if first is not None and second is not None and not torch.equal(first, second):
            logger.warning(
                "The two columns hold different texts, which UnsupSimCSELoss takes for two views of the same sentence: "
                "use SupSimCSELoss for (anchor, positive) pairs, or keep one column with dataset.select_columns"
            )

    @staticmethod
    def _warn_if_equal(first: Tensor, second: Tensor) -> None:
        # Dropout turns a vector by whole percents; rounding in bf16 by about 1e-5.
        if (1 - F.cosine_similarity(first.float(), second.float())).max() < 1e-4:
            logger.warning(
                "The two views of every sentence are equal: no dropout is active, so unsupervised SimCSE has no "
                "positive pairs to learn from. Call model.train(), load the transformer with a dropout above 0 (for "
                "BERT hidden_dropout_prob=0.1), or append sentence_transformers' Dropout(0.1) module to a model that "
                "has none, such as a StaticEmbedding."
            )


class SupSimCSELoss(SimCSELoss):
    """Supervised SimCSE: anchors against all positives and hard negatives of the batch (paper, equation 5).

    Args:
        model: the SentenceTransformer to train.
        temperature: softmax temperature τ > 0; ST's ``scale`` is 1/τ.
        hard_negative_weight: α ≥ 0, the weight of a row's own hard negatives in its softmax (section 6.3). 1 is the
            paper's choice; princeton-nlp/SimCSE's argument of this name is log(α).
        projection_head: as in :class:`UnsupSimCSELoss`. Where the paper keeps the MLP at test time, build the model
            with ``build_model(..., dense=True)`` instead.
        mini_batch_size, gather_across_devices, false_negative_threshold, mlm_weight, focal_margin: as in
            :class:`UnsupSimCSELoss`.
        mask_duplicates: the positives of an anchor that stands in several rows, and texts equal to a row's own anchor
            or positive, are no negatives of it.

    Inputs:
        +-------------------------------------------------------+--------+
        | Texts                                                 | Labels |
        +=======================================================+========+
        | (anchor, positive)                                    | none   |
        +-------------------------------------------------------+--------+
        | (anchor, positive, hard negative)                     | none   |
        +-------------------------------------------------------+--------+
        | (anchor, positive, hard negative 1, ..., negative N)  | none   |
        +-------------------------------------------------------+--------+

    Raises:
        ValueError: for a temperature, weight or mini_batch_size out of range; in ``forward``, for a single column and
            for non-finite embeddings.

    Example:
        ::

            from datasets import Dataset
            from sentence_transformers import SentenceTransformerTrainer
            from st_simcse import SupSimCSELoss, build_model

            model = build_model("bert-base-uncased", pooling="cls")
            train_dataset = Dataset.from_dict({
                "anchor": ["Two dogs are running.", "A man plays a guitar."],
                "positive": ["There are animals outdoors.", "Someone makes music."],
                "negative": ["The pets are sitting on a couch.", "A man is asleep."],
            })
            SentenceTransformerTrainer(model=model, train_dataset=train_dataset, loss=SupSimCSELoss(model)).train()
    """

    def __init__(
        self,
        model: SentenceTransformer,
        temperature: float = 0.05,
        hard_negative_weight: float = 1.0,
        projection_head: bool | nn.Module = False,
        mini_batch_size: int | None = None,
        gather_across_devices: bool = False,
        mask_duplicates: bool = True,
        false_negative_threshold: float | None = None,
        mlm_weight: float = 0.0,
        focal_margin: float | None = None,
    ) -> None:
        super().__init__(
            model,
            temperature,
            projection_head,
            mini_batch_size,
            gather_across_devices,
            mask_duplicates,
            false_negative_threshold,
            mlm_weight,
            focal_margin,
        )
        if not hard_negative_weight >= 0:
            raise ValueError(f"hard_negative_weight must be at least 0, got {hard_negative_weight}")
        self.hard_negative_weight = hard_negative_weight

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], keys: list[Tensor] | None = None) -> Tensor:
        anchors, positives, *negatives = embeddings
        if negatives and keys is not None:
            keys = [*keys[:2], torch.stack(keys[2:], dim=1)]
        stacked = torch.stack(negatives, dim=1) if negatives else None
        return self._info_nce(anchors, positives, stacked, keys=keys, hard_negative_weight=self.hard_negative_weight)

    def get_config_dict(self) -> dict[str, Any]:
        return super().get_config_dict() | {"hard_negative_weight": self.hard_negative_weight}

    def _columns(self, columns: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        if len(columns) < 2:
            raise ValueError(
                "SupSimCSELoss takes (anchor, positive) or (anchor, positive, hard negative, ...) columns, got "
                f"{len(columns)}: use UnsupSimCSELoss for single sentences"
            )
        return columns
