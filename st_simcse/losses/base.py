"""The base class of the losses: it embeds a batch, compares the embeddings and adds up named terms."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from st_simcse.data.duplicates import keys_of_columns, without_text_key
from st_simcse.data.teacher import teacher_embeddings
from st_simcse.losses.arguments import check_arguments, check_labels
from st_simcse.losses.collectives import check_in_step
from st_simcse.losses.columns import Columns
from st_simcse.losses.encoder import BatchEncoder, TokenizedBatch
from st_simcse.losses.heads import projection_head_of
from st_simcse.losses.options import EncoderOption, Option, Source, SourceOption, TermOption, built
from st_simcse.losses.precision import ObservedPrecision
from st_simcse.losses.wrappers import Wrappers
from st_simcse.models.unwrapping import unwrapped
from st_simcse.objective import Comparison, Direction, Edit, info_nce
from st_simcse.objective.functional import CITATION, check_temperature

__all__ = ["SimCSELoss"]


class SimCSELoss(nn.Module):
    """The base class of the two losses.

    It embeds a batch, compares the embeddings and returns the sum of the contrastive loss and the options' terms.

    Example:
        >>> from st_simcse import FocalMargin, UnsupSimCSELoss
        >>> from st_simcse.demo import tiny_model
        >>> loss = UnsupSimCSELoss(tiny_model(["Two dogs run."]), options=[FocalMargin(0.2)])
        >>> isinstance(loss, SimCSELoss), loss.get_config_dict()["options"]
        (True, ['FocalMargin(margin=0.2)'])
    """

    # Options list this name as incompatible if they do not support the loss.
    name: ClassVar[str]
    # True if anchors and positives are views of one text and share a teacher's embedding.
    compares_views: ClassVar[bool] = False

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
        check_arguments(self.name, model, options, mini_batch_size, unknown)
        check_temperature(temperature)
        plain = unwrapped(model)
        self.model = model
        self.options = list(options)
        self.temperature = temperature
        self.comparison = Comparison(tuple(directions), partition_mode, symmetric)
        self.projection_head = projection_head_of(model) if projection_head is True else projection_head or None
        self.mini_batch_size = mini_batch_size
        self.uses_gradient_cache = mini_batch_size is not None  # ST's wrappers read it
        self.gather_across_devices = gather_across_devices
        self.mask_duplicates = mask_duplicates
        self.needs_teacher = any(getattr(option, "needs_teacher", False) for option in self.options)
        self.sources: Any = nn.ModuleDict(built(self.options, SourceOption, plain, self.projection_head))
        self.terms: Any = nn.ModuleDict(built(self.options, TermOption, plain))
        self.reads_labels = self.needs_teacher or any(getattr(one, "reads_labels", False) for one in self.options)
        encoders = built(self.options, EncoderOption, plain).values()
        self._make_encoder: Callable[..., BatchEncoder] = next(iter(encoders), BatchEncoder)
        self._precision = ObservedPrecision()
        self.encoder.check()

    @property
    def encoder(self) -> BatchEncoder:
        """The encoder of a batch, with the current model, because a trainer may wrap the model later."""
        return self._make_encoder(self.model, self.projection_head, self.mini_batch_size, self.gather_across_devices)

    def forward(
        self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None
    ) -> Tensor | dict[str, Tensor]:
        """Computes the loss of one batch.

        Args:
            sentence_features: One dict of tokenized inputs per column, with B rows each.
            labels: The labels for terms that use them. The positives are known by their position in the batch.

        Returns:
            A float32 scalar, or a dict of the summands by name if the loss has terms; ST's trainer adds these up. With
            a wrapper around this loss or with ``mini_batch_size`` it is always a scalar.

        Raises:
            ValueError: If the loss cannot use the columns, the labels or a wrapper around it, if embeddings are NaN or
                infinite, or if it has trainable weights in several processes without SimCSETrainer.
        """
        check_in_step(self, self.model)
        check_labels(self.name, labels, self.reads_labels)
        wrappers = Wrappers.around(self.model, self.calculate_loss)
        wrappers.check(self)
        labels = wrappers.whole(labels) if self.needs_teacher else labels
        if self.sources or self.terms:
            self._precision.watch(unwrapped(self.model)[0])
        given = list(sentence_features)
        columns = self._columns(given)
        # The keys are those of the texts before views are made: the two views of a sentence share one.
        keys = keys_of_columns(self.model, given, self.mask_duplicates) * (len(columns) // len(given))
        # The features are copied because a model writes its outputs into them. The last copy is for the sources.
        *copies, extra = wrappers.features_of_batch([without_text_key(column) for column in (*columns, columns[0])])
        encoder, sources = self.encoder, self._active_sources() if wrappers.is_first_call else []
        batch = replace(encoder.arrange(copies), texts=len(given), keys=keys or None, labels=labels)

        one_number = bool(wrappers) or self.mini_batch_size is not None
        for source in sources:
            source.begin()
        if self.mini_batch_size is not None:
            # MatryoshkaLoss replaces calculate_loss by a decorated function.
            summands = {"all": encoder.embed_cached(batch, self.calculate_loss)}
        else:
            embedded = encoder.embed(batch)
            for source in self.sources.values():
                embedded += [[column] for column in source.extra_embeddings(encoder, extra)]
            summands = self._summands(embedded, batch)
        if wrappers.is_first_call:
            with self._precision.autocast():
                for source in sources:
                    source.finish(encoder, without_text_key(columns[1]), keys[1] if keys else None)
                summands |= self._weighted({name: term.from_features(given) for name, term in self.terms.items()})
        return summands if len(summands) > 1 and not one_number else torch.stack(list(summands.values())).sum()

    def calculate_loss(self, reps: list[list[Tensor]], batch: TokenizedBatch, *, with_backward: bool = False) -> Tensor:
        """Returns the loss as a scalar, given a list of embeddings per column or one list for all merged columns."""
        loss = torch.stack(list(self._summands(reps, batch).values())).sum()
        if with_backward:
            with torch.autocast(loss.device.type, enabled=False):  # autocast would round in the backward pass
                loss.backward()
            loss = loss.detach()
        return loss

    def _summands(self, embedded: list[list[Tensor]], batch: TokenizedBatch) -> dict[str, Tensor]:
        columns = batch.columns([torch.cat(column) for column in embedded])
        teacher = None
        if self.needs_teacher:
            counts = (1, batch.texts) if self.compares_views else (batch.texts,)
            teacher = teacher_embeddings(batch.labels, len(columns[0]), batch.count, counts)
        contrastive = self.compute_loss_from_embeddings(columns, batch.keys, teacher)
        terms = {name: term.from_embeddings(columns[: batch.count], batch.labels) for name, term in self.terms.items()}
        return {"contrastive": contrastive} | self._weighted(terms)

    def _weighted(self, terms: dict[str, Tensor | None]) -> dict[str, Tensor]:
        """Returns the terms that were computed, multiplied by their weights."""
        return {name: self.terms[name].weight * value for name, value in terms.items() if value is not None}

    def compute_loss_from_embeddings(
        self, embeddings: list[Tensor], keys: list[Tensor] | None = None, teacher: list[Tensor] | None = None
    ) -> Tensor:
        """Computes the contrastive loss.

        Args:
            embeddings: (B, d) per column, after the projection head, followed by those of the sources.
            keys: A (B,) int64 tensor per column, equal for equal texts; or None.
            teacher: A (B, t) tensor per column, a teacher's embeddings of unit length; or None.
        """
        similarities = None
        for source in self.sources.values():
            embeddings, similarities = source.compare(embeddings, similarities)
        shared = [found for source in self._active_sources() if (found := source.shared_negatives()) is not None]
        columns = Columns(list(embeddings), similarities, keys, teacher)
        batch, share = columns.batch(shared, self.gather_across_devices)
        edits = [option for option in self.options if callable(option)]
        return share * info_nce(batch, self.temperature, edits, self.comparison)

    def get_config_dict(self) -> dict[str, Any]:
        described = {"temperature": self.temperature, "options": [repr(option) for option in self.options]}
        described |= dataclasses.asdict(self.comparison) | {"projection_head": self.projection_head is not None}
        others = ("mini_batch_size", "gather_across_devices", "mask_duplicates")
        return described | {name: getattr(self, name) for name in others}

    @property
    def citation(self) -> str:
        """The BibTeX entries of SimCSE and of the papers of all options in use."""
        papers = [CITATION, *(text for option in self.options if (text := getattr(option, "citation", "")))]
        return "\n".join(dict.fromkeys(papers))  # two options may come from one paper

    def _active_sources(self) -> list[Source]:
        return list(self.sources.values()) if self.model.training and torch.is_grad_enabled() else []

    def _columns(self, columns: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        raise NotImplementedError
