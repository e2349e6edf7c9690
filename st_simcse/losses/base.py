"""A batch becomes embeddings, these a problem, and that a sum of named terms."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Literal
from weakref import WeakKeyDictionary

import torch
from sentence_transformers import SentenceTransformer, SparseEncoder
from sentence_transformers.sentence_transformer.losses import AdaptiveLayerLoss, MatryoshkaLoss
from sentence_transformers.sentence_transformer.losses.adaptive_layer import TransformerDecorator
from sentence_transformers.sentence_transformer.losses.matryoshka import CachedLossDecorator, ForwardDecorator
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import Tensor, nn
from transformers import PreTrainedModel

from st_simcse.distributed import gather_rows, gradients_are_averaged, is_distributed, world_size
from st_simcse.embedding import (
    CachedLossMixin,
    RandContext,
    chunked_outputs,
    has_static_embedding_input,
    merge_feature_batches,
    trained_dimension,
)
from st_simcse.losses.duplicates import MISSING, text_keys, without_text_key
from st_simcse.losses.heads import ProjectionHead
from st_simcse.losses.lookup import looked_up_once
from st_simcse.losses.options import Option, Source, SourceOption, Term, TermOption, option_name, refuse
from st_simcse.losses.precision import ObservedPrecision
from st_simcse.losses.shared_layers import SharedLayers
from st_simcse.objective import Batch, Comparison, Direction, Edit, info_nce
from st_simcse.objective.functional import check_temperature
from st_simcse.own_weights import own_parameters
from st_simcse.teacher import teacher_embeddings
from st_simcse.unwrapping import unwrapped

__all__ = ["SimCSELoss", "check_model", "check_wrappers"]

logger = logging.getLogger(__name__)

# Enough rows to keep the cores of a CPU busy, few enough to be of like length.
ROWS_PER_PASS = 48
# Cached mini-batches have few different widths: each leaves holes of its own in the heap, and caching saves memory.
CACHED_WIDTH_STEP = 16
# Architectures of transformers in which a text's embedding changes with the padding beside it, whatever the mask says.
READ_PADDING = ("canine", "convbert", "fnet", "nystromformer")

# AdaptiveLayerLoss calls a loss once a layer, and hands the layers over in the features that the model was given first.
_features_of_batch: WeakKeyDictionary[TransformerDecorator, list[dict[str, Tensor]]] = WeakKeyDictionary()


_CITATION = """
@inproceedings{gao2021simcse,
    title = {{SimCSE}: Simple Contrastive Learning of Sentence Embeddings},
    author = {Gao, Tianyu and Yao, Xingcheng and Chen, Danqi},
    booktitle = {Empirical Methods in Natural Language Processing (EMNLP)},
    year = {2021},
}
"""


@dataclass(frozen=True)
class Layout:
    """What a batch of B rows is besides its embeddings.

    Args:
        count: the number of its columns.
        texts: how many of texts it came in: one where both views are made here.
        places: (count, B) int64, where the columns' rows are in one matrix of all; None for a matrix a column.
        keys: (B,) int64 a column, equal for equal texts; None without mask_duplicates, or if a column has no tokens.
        labels: those of the dataset, or None.
    """

    count: int
    texts: int
    places: Tensor | None = None
    keys: list[Tensor] | None = None
    labels: Tensor | None = None

    def columns(self, embedded: list[Tensor]) -> list[Tensor]:
        """A matrix a column, out of one of all columns; what sources put behind it stays."""
        return embedded if self.places is None else [*embedded[0][self.places], *embedded[1:]]


def check_model(model: Any) -> None:
    """ValueError for a model's name, a model of transformers, or what is no model.

    Example:
        >>> check_model("bert-base-uncased")
        Traceback (most recent call last):
        ...
        ValueError: model is the name 'bert-base-uncased': pass the model itself, build_model('bert-base-uncased')
    """
    if isinstance(model, (str, os.PathLike)):
        raise ValueError(f"model is the name {str(model)!r}: pass the model itself, build_model({str(model)!r})")
    if isinstance(model, PreTrainedModel) or not isinstance(model, nn.Module):
        raise ValueError(
            f"model is of the type {type(model).__name__}, expected a SentenceTransformer: build_model makes one of a "
            "folder or of a name on the hub"
        )


def _check_arguments(loss: str, model: Any, options: Any, unknown: dict[str, Any]) -> None:
    """What people coming from other losses write, and a name or a single option where an object or a list belongs."""
    if isinstance(unknown.get("scale"), (int, float)):
        temperature = 1 / unknown["scale"] if unknown["scale"] else 0.05
        raise TypeError(f"{loss} has no scale: pass temperature={temperature:g}, which is one over it")
    if unknown:
        raise TypeError(f"{loss} has no argument {', '.join(unknown)}; options=[...] takes what changes the objective")
    check_model(model)
    if not isinstance(options, Sequence):
        raise ValueError(f"options={options!r} is no list: pass options=[{options!r}]")


class SimCSELoss(CachedLossMixin, nn.Module):
    """What the two losses share: a batch becomes embeddings, these a problem, and that a sum of named terms.

    Example:
        >>> from st_simcse import FocalMargin, UnsupSimCSELoss
        >>> from st_simcse.demo import tiny_model
        >>> loss = UnsupSimCSELoss(tiny_model(["Two dogs run."]), options=[FocalMargin(0.2)])
        >>> isinstance(loss, SimCSELoss), loss.get_config_dict()["options"]
        (True, ['FocalMargin(margin=0.2)'])
    """

    # "unsupervised" or "supervised": the attribute by which an option says that it goes with this loss.
    _kind: ClassVar[str]

    def __init__(
        self,
        model: SentenceTransformer,
        temperature: float = 0.05,
        options: Sequence[Edit | Option] = (),
        *,
        symmetric: bool = False,
        directions: Sequence[Direction] = ("query_to_doc",),
        partition_mode: Literal["joint", "per_direction"] = "joint",
        projection_head: bool | nn.Module = False,
        mini_batch_size: int | None = None,
        gather_across_devices: bool = False,
        mask_duplicates: bool = True,
        **unknown: Any,
    ) -> None:
        super().__init__()
        _check_arguments(type(self).__name__, model, options, unknown)
        plain: SentenceTransformer = unwrapped(model)
        if isinstance(plain, SparseEncoder):
            raise ValueError(
                f"{type(self).__name__} is for dense embeddings, a SparseEncoder needs a loss that keeps it sparse: "
                "use sentence_transformers' SpladeLoss around its SparseMultipleNegativesRankingLoss, with the "
                "sentences in two equal columns where there are no pairs"
            )
        check_temperature(temperature)
        if mini_batch_size is not None and not (isinstance(mini_batch_size, int) and mini_batch_size >= 1):
            raise ValueError(f"mini_batch_size must be a whole number of at least 1 or None, got {mini_batch_size}")
        if mini_batch_size is not None and has_static_embedding_input(plain):
            raise ValueError(
                "a StaticEmbedding model cannot be cut into mini-batches, and its activations are small: leave "
                "mini_batch_size out and raise the batch size instead"
            )
        if mini_batch_size is not None and (architecture := _reads_padding(plain[0])):
            raise ValueError(
                f"the architecture {architecture} reads padding, so that its embeddings would be others in "
                "mini-batches, which are of other widths: leave mini_batch_size out, and lower the batch size or use "
                "gradient_checkpointing instead"
            )
        self.options = list(options)
        for option in self.options:
            if isinstance(option, type) or not (
                callable(option) or isinstance(option, (SourceOption, TermOption, SharedLayers))
            ):
                raise ValueError(f"{option!r} is no option: pass an instance of one of st_simcse.losses.OPTIONS")
        if twice := [kind.__name__ for kind, count in Counter(map(type, self.options)).items() if count > 1]:
            raise ValueError(f"an option counts once: {', '.join(twice)} is there more than once")
        refuse(self.options, self._kind, type(self).__name__)
        if mini_batch_size is not None:
            refuse(self.options, "cached", "mini_batch_size")
        self.model = model
        self.temperature = temperature
        self.comparison = Comparison(tuple(directions), partition_mode, symmetric)
        if projection_head is True:
            # Of the precision of what is trained: LoRA's adapters are float32 beside weights in bfloat16.
            dtype = next((weight.dtype for weight in model.parameters() if weight.requires_grad), model.dtype)
            projection_head = ProjectionHead(trained_dimension(model)).to(model.device, dtype)
        self.projection_head = projection_head or None
        self.mini_batch_size = mini_batch_size  # type: ignore[assignment]  # None where nothing is cached
        self.uses_gradient_cache = mini_batch_size is not None
        self.gather_across_devices = gather_across_devices
        self.mask_duplicates = mask_duplicates
        self.edits = [option for option in self.options if callable(option)]
        sources = {
            option_name(o): o.build(plain, self.projection_head) for o in self.options if isinstance(o, SourceOption)
        }
        terms = {option_name(o): o.build(plain) for o in self.options if isinstance(o, TermOption)}
        # A ModuleDict is as good as a dict.
        self.sources: dict[str, Source] = nn.ModuleDict(sources)  # type: ignore[assignment]
        self.terms: dict[str, Term] = nn.ModuleDict(terms)  # type: ignore[assignment]
        # Open while both views are embedded.
        self.sharing: AbstractContextManager[Any] = next(
            (option.build(plain) for option in self.options if isinstance(option, SharedLayers)), nullcontext()
        )
        self._precision = ObservedPrecision()

    def forward(
        self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None
    ) -> Tensor | dict[str, Tensor]:
        """The loss of one batch.

        Args:
            sentence_features: one dict of tokenized inputs a column, B rows each.
            labels: for terms that use them; the positives are known by their place in the batch.

        Returns:
            A float32 scalar. With terms a dict of the summands by name, which ST's trainer adds up and logs, unless
            there is a wrapper around this loss or ``mini_batch_size``, which need one number.

        Raises:
            ValueError: for a number of columns that the loss cannot use, labels that differ where no option reads them,
                non-finite embeddings, an option that does not go with a wrapper around this loss, and weights of its
                own without SimCSETrainer in several processes.
        """
        drifts = is_distributed() and torch.is_grad_enabled() and not gradients_are_averaged()
        if drifts and own_parameters(self, self.model):
            raise ValueError(
                "in several processes the weights of a loss, such as a projection head's, would drift apart, since "
                "DistributedDataParallel wraps the model alone: train with SimCSETrainer, which keeps them equal"
            )
        self._check_labels(labels)
        transformer = unwrapped(self.model)[0]
        if self.sources or self.terms:
            self._precision.watch(transformer)
        # What a MatryoshkaLoss and an AdaptiveLayerLoss around this loss put in place of forward passes meanwhile.
        matryoshka = self.model.forward if isinstance(self.model.forward, ForwardDecorator) else None
        adaptive = transformer.forward if isinstance(transformer.forward, TransformerDecorator) else None
        truncates = matryoshka is not None or isinstance(self.calculate_loss, CachedLossDecorator)
        self.check_wrapper(truncates, adaptive is not None)
        one_number = truncates or adaptive is not None or self.mini_batch_size is not None
        # A wrapper's first call is for the last layer and the largest dimension; the others are about the same batch.
        is_first_call = not (matryoshka and matryoshka.cache) and (adaptive is None or adaptive.layer_idx is None)
        if is_first_call:
            for source in self._active_sources():
                source.begin()

        given = list(sentence_features)
        columns = self._columns(given)
        # Of the texts as they came: a single column of sentences is both of its views.
        keys = self._text_keys(given) * (len(columns) // len(given))
        # Copies, because a model writes its outputs into the features it is given; the last one is for the sources.
        copies = [without_text_key(column) for column in (*columns, columns[0])]
        if adaptive is not None:
            copies = _features_of_batch.setdefault(adaptive, copies)
        rows, places = self._sort_by_length(copies[:-1])
        layout = Layout(len(columns), len(given), places, keys or None, labels)
        if self.mini_batch_size is not None:
            parts = {"contrastive": self.forward_cached(rows, layout)}  # type: ignore[arg-type]  # for calculate_loss
        else:
            with self.sharing:
                embedded = [self._embed(column, places is not None) for column in rows]
            for source in self.sources.values():
                embedded += [[column] for column in source.more_columns(self, copies[-1])]
            # The method that MatryoshkaLoss decorates.
            parts = (
                {"contrastive": self.calculate_loss(embedded, layout)} if one_number else self._parts(embedded, layout)
            )
        if is_first_call:
            with self._precision.autocast():
                for source in self._active_sources():
                    source.finish(self, without_text_key(columns[1]), keys[1] if keys else None)
                for name, term in self.terms.items():
                    if (value := term.of_texts(given)) is not None:
                        parts[name] = term.weight * value
        return parts if len(parts) > 1 and not one_number else torch.stack(list(parts.values())).sum()

    @property
    def reads_labels(self) -> bool:
        """Whether an option may use the labels of the data; the objective itself does not."""
        return bool(self.sources or self.terms) or any(getattr(o, "needs_teacher", False) for o in self.options)

    def _check_labels(self, labels: Tensor | None) -> None:
        """Refuse labels that tell rows apart where nothing reads them; ``model.fit`` gives every row the label 0."""
        if labels is None or self.reads_labels or not labels.numel() or bool((labels == labels.flatten()[0]).all()):
            return
        raise ValueError(
            f"{type(self).__name__} takes every row as a positive pair and does not read the labels of the data, which "
            "differ: keep the rows that are positive pairs and remove the column of labels or scores, or train scored "
            "pairs with a loss for them, such as sentence_transformers' CoSENTLoss"
        )

    def check_wrapper(self, matryoshka: bool, adaptive: bool) -> None:
        """Whether this loss can be inside a MatryoshkaLoss or an AdaptiveLayerLoss; a Matryoshka2dLoss is both.

        Raises:
            ValueError: if it cannot; says which option to leave out.
        """
        if matryoshka:
            refuse(self.options, "matryoshka", "MatryoshkaLoss")
            if self.projection_head is not None:
                raise ValueError(
                    "MatryoshkaLoss truncates the embeddings that are trained, so that a projection head on top of "
                    "them cannot be of one width: leave projection_head out"
                )
        if adaptive:
            refuse(self.options, "adaptive_layer", "AdaptiveLayerLoss")
            if self.mini_batch_size is not None:
                raise ValueError(
                    "AdaptiveLayerLoss needs the layers of the whole batch at once: leave mini_batch_size out, and "
                    "lower the batch size or use gradient_checkpointing instead"
                )

    def check_sharded(self, name: str) -> None:
        """Whether this loss goes with what shards the model or its optimizer.

        Args:
            name: FSDP or DeepSpeed.

        Raises:
            ValueError: if it does not; says which option to leave out.
        """
        refuse(self.options, "sharded", name)
        if self.mini_batch_size is not None:
            raise ValueError(
                f"{name} exchanges weights or gradients with every mini-batch, of which processes may have different "
                "numbers: leave mini_batch_size out, and lower the batch size or use gradient_checkpointing instead"
            )

    def embed_minibatch(
        self,
        sentence_feature: dict[str, Tensor],
        begin: int,
        end: int,
        with_grad: bool,
        copy_random_state: bool,
        random_state: RandContext | None = None,
    ) -> tuple[Tensor, RandContext | None]:
        # The head belongs to the replayed part of GradCache, so that gradient accumulation and loss scaling reach it.
        with self.sharing:
            embeddings, random_state = super().embed_minibatch(
                sentence_feature, begin, end, with_grad, copy_random_state, random_state
            )
        with nullcontext() if with_grad else torch.no_grad():
            return self._project(embeddings), random_state

    def calculate_loss(self, reps: list[list[Tensor]], layout: Layout, *, with_backward: bool = False) -> Tensor:
        """The loss of a list of embeddings a column, or of one list for all columns that were merged."""
        loss = torch.stack(list(self._parts(reps, layout).values())).sum()
        if with_backward:
            with torch.autocast(loss.device.type, enabled=False):  # would round the backward pass's products
                loss.backward()
            loss = loss.detach()
        return loss

    def _parts(self, embedded: list[list[Tensor]], layout: Layout) -> dict[str, Tensor]:
        columns = layout.columns([torch.cat(column) for column in embedded])
        teacher = None
        if any(getattr(option, "needs_teacher", False) for option in self.options):
            counts = (1, layout.texts) if self._kind == "unsupervised" else (layout.texts,)
            teacher = teacher_embeddings(layout.labels, len(columns[0]), layout.count, counts)
        parts = {"contrastive": self.compute_loss_from_embeddings(columns, layout.keys, teacher)}
        for name, term in self.terms.items():
            if (value := term.of_embeddings(columns[: layout.count], layout.labels)) is not None:
                parts[name] = term.weight * value
        return parts

    def compute_loss_from_embeddings(
        self, embeddings: list[Tensor], keys: list[Tensor] | None = None, teacher: list[Tensor] | None = None
    ) -> Tensor:
        """The contrastive loss of one (B, d) embedding matrix a column, the projection head already applied.

        It is this process's part of the loss over the rows of all, if these are gathered; the mean over processes is
        the loss of all rows.

        Args:
            embeddings: the columns, and behind them what the sources put there.
            keys: (B,) int64 a column, equal for equal texts.
            teacher: (B, t) a column, a teacher's embeddings of unit length.
        """
        similarities = None
        for source in self.sources.values():
            embeddings, similarities = source.compare(embeddings, similarities)
        columns, rows = list(embeddings), slice(0, len(embeddings[0]))
        if self.gather_across_devices:
            gathered, rows = gather_rows(*columns, similarities, *(keys or []), *(teacher or []))
            columns, (similarities, *others) = gathered[: len(columns)], gathered[len(columns) :]
            keys, teacher = keys and others[: len(keys)], teacher and others[len(keys or []) :]
        anchors, positives, *negatives = _negatives_together(columns)
        keys, teacher = keys and _negatives_together(keys), teacher and _negatives_together(teacher)
        shared = [found for source in self._active_sources() if (found := source.shared_negatives()) is not None]
        if keys is not None and shared:
            keys = [*keys, torch.cat([shared_keys for _, shared_keys in shared])]
        batch = Batch(
            anchors,
            positives,
            hard_negatives=negatives[0] if negatives else None,
            # MatryoshkaLoss truncates the anchors.
            shared_negatives=torch.cat([found[:, : anchors.shape[1]] for found, _ in shared]) if shared else None,
            text_keys=keys,
            positive_similarities=similarities,
            rows=rows,
            teacher_embeddings=teacher,
        )
        # Processes count alike in the mean over them, however many rows each has.
        share = (rows.stop - rows.start) * world_size() / len(anchors) if self.gather_across_devices else 1.0
        return share * info_nce(batch, self.temperature, self.edits, self.comparison)

    def get_config_dict(self) -> dict[str, Any]:
        return {
            "temperature": self.temperature,
            "options": [repr(option) for option in self.options],
            **dataclasses.asdict(self.comparison),
            "projection_head": self.projection_head is not None,
            "mini_batch_size": self.mini_batch_size,
            "gather_across_devices": self.gather_across_devices,
            "mask_duplicates": self.mask_duplicates,
        }

    @property
    def citation(self) -> str:
        """BibTeX of SimCSE, and of the papers of the options used."""
        papers = [_CITATION, *(text for option in self.options if (text := getattr(option, "citation", "")))]
        return "\n".join(dict.fromkeys(papers))  # two options may be of one

    def _text_keys(self, columns: list[dict[str, Tensor]]) -> list[Tensor]:
        """(B,) int64 a column, equal for equal texts; none if that does not matter or a column has no tokens."""
        if not self.mask_duplicates:
            if any(MISSING in column for column in columns):
                raise ValueError("hard negatives of different numbers need mask_duplicates=True, which leaves some out")
            return []
        first_tokens: tuple[int | None, ...] = ()
        if any("prompt_length" in column for column in columns):
            tokenizer = unwrapped(self.model).tokenizer
            first_tokens = tuple(getattr(tokenizer, name, None) for name in ("cls_token_id", "bos_token_id"))
        keys = [text_keys(column, first_tokens) for column in columns]
        known = [key for key in keys if key is not None]
        return known if len(known) == len(keys) else []

    def _active_sources(self) -> list[Source]:
        return list(self.sources.values()) if self.model.training and torch.is_grad_enabled() else []

    def _columns(self, columns: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        raise NotImplementedError

    def _sort_by_length(self, columns: list[dict[str, Tensor]]) -> tuple[list[dict[str, Tensor]], Tensor | None]:
        """The rows of all columns as one, the longest first, and where the columns' rows (columns, B) are now.

        Rows of like length share a forward pass, which saves most of the padding. Columns that are no rows of tokens,
        such as a StaticEmbedding's, stay as they are, and so do those that a wrapper wants to find unmerged, or whose
        padding the transformer reads.
        """
        can_be_merged = _can_be_widened(columns) and not _reads_padding(unwrapped(self.model)[0])
        alike = columns
        if not _leaves_out_prompts(self.model):  # then those whose prompts are of different lengths can be merged
            alike = [{name: column[name] for name in column if name != "prompt_length"} for column in columns]
        rows = merge_feature_batches(alike) if can_be_merged else None
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
        several = on_cpu and len(features["attention_mask"]) > ROWS_PER_PASS and "input_ids" in features
        # Around all passes: the autocast of each would cast every weight anew.
        with (
            torch.autocast("cpu", enabled=torch.is_autocast_enabled("cpu")),
            looked_up_once(self.model, features["input_ids"]) if several else nullcontext(),
        ):
            outputs = chunked_outputs(self.model, features, ROWS_PER_PASS if on_cpu else None, task=None)
        return [self._project(output["sentence_embedding"]) for output in outputs]

    def embed_without_dropout(self, features: dict[str, Tensor]) -> Tensor:
        """The projected embeddings (B, d) of a column, as the model gives them in evaluation, with gradients."""
        (rows,), places = self._sort_by_length([features])
        with _evaluation_mode(self):
            embeddings = torch.cat(self._embed(rows, places is not None))
        return embeddings if places is None else embeddings[places[0]]

    def _project(self, embeddings: Tensor) -> Tensor:
        if self.projection_head is None:
            return embeddings
        # Of FSDP in mixed precision they come in half precision, and its autocast is not for the head.
        weight = next(self.projection_head.parameters(), embeddings)
        projected: Tensor = self.projection_head(embeddings.to(weight.dtype))
        return projected


def check_wrappers(loss: nn.Module, compiled_in_processes: bool = False) -> None:
    """Whether every loss of ours goes with the wrappers around it, and these with a model compiled in each process.

    Raises:
        ValueError: if one does not; says which option to leave out.
    """
    for wrapper in loss.modules():
        if compiled_in_processes and isinstance(wrapper, AdaptiveLayerLoss):
            raise ValueError(
                "in several processes torch_compile does not go with AdaptiveLayerLoss or Matryoshka2dLoss, of which "
                "DistributedDataParallel sees a compiled model's parameters used several times: leave torch_compile out"
            )
        if isinstance(wrapper, (MatryoshkaLoss, AdaptiveLayerLoss)):
            for inner in wrapper.modules():
                if isinstance(inner, SimCSELoss):
                    inner.check_wrapper(isinstance(wrapper, MatryoshkaLoss), isinstance(wrapper, AdaptiveLayerLoss))


def _negatives_together(columns: list[Tensor]) -> list[Tensor]:
    """Those of anchors and positives, and of all hard negatives one with another dimension behind the first."""
    return columns if len(columns) == 2 else [*columns[:2], torch.stack(columns[2:], dim=1)]


def _reads_padding(transformer: nn.Module) -> str | None:
    """The transformer's architecture, if it is one whose embeddings change with the padding."""
    architecture = getattr(getattr(getattr(transformer, "model", None), "config", None), "model_type", None)
    return architecture if architecture in READ_PADDING else None


def _can_be_widened(columns: list[dict[str, Any]]) -> bool:
    """Whether rows have padding on one side alone when the narrower columns get theirs, on the right."""
    masks = [column["attention_mask"] for column in columns if "attention_mask" in column]
    widths = {mask.shape[1] for mask in masks}
    return len(widths) < 2 or all(bool(mask[:, 0].all()) for mask in masks)


def _leaves_out_prompts(model: nn.Module) -> bool:
    """Whether a pooling may need to know how long the prompt is; without ST's own, another module may."""
    poolings = [part for part in model.modules() if isinstance(part, Pooling)]
    return not poolings or not all(pooling.include_prompt for pooling in poolings)


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
