"""ST's trainer with support for a projection head, views, prompts and several processes."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size
from datasets import Dataset, IterableDataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments
from sentence_transformers.base.data_collator import BaseDataCollator
from sentence_transformers.base.sampler import BatchSamplers
from torch.distributed.tensor import DTensor
from torch.utils.data import BatchSampler, ConcatDataset
from transformers.trainer_utils import TrainOutput

from st_simcse.data.batching import token_collator, tokenize
from st_simcse.data.lengths import warn_of_cut_training_texts
from st_simcse.data.prompts import check_prompts
from st_simcse.data.teacher import check_teacher_columns
from st_simcse.data.training_data import LABEL_COLUMNS, as_dataset, check_texts
from st_simcse.data.views import Crops, ViewCallback, evaluation_collator, view_collator, whole_texts
from st_simcse.losses import SupSimCSELoss, UnsupSimCSELoss, check_wrappers
from st_simcse.losses.arguments import check_model
from st_simcse.losses.collectives import averaged_gradients
from st_simcse.losses.encoder import evaluation_mode
from st_simcse.losses.options import check_compatible
from st_simcse.losses.own_weights import own_weights
from st_simcse.losses.simcse import simcse_losses
from st_simcse.losses.st_internals import chunked_outputs
from st_simcse.models.precision import HALF
from st_simcse.training.loss_synchronizer import LossSynchronizer
from st_simcse.training.model_card import own_card
from st_simcse.training.negatives import NegativesCollator, check_lists, list_columns, longest_list
from st_simcse.training.resumable_trainer import ResumableTrainer
from st_simcse.training.run_folder import check_writable
from st_simcse.training.samplers import EvenBatchSampler, RoundSampler
from st_simcse.training.sharding import check_shardable
from st_simcse.training.start_average import StartAverage, check_start_weight
from st_simcse.training.trainable import check_negatives, check_pair_names, check_rows, constant_columns
from st_simcse.training.training_arguments import SimCSETrainingArguments

__all__ = ["SimCSETrainer"]

logger = logging.getLogger(__name__)


def _check_several_processes(args: SentenceTransformerTrainingArguments, train_dataset: Any) -> None:
    """Checks that the trainer can distribute the batches of a Dataset, and accelerate those of a stream."""
    config: Any = args.accelerator_config
    if not isinstance(train_dataset, IterableDataset):
        for name in ("split_batches", "dispatch_batches"):
            if getattr(config, name, None):
                raise ValueError(
                    f"SimCSETrainer does not support {name} of accelerator_config, because it distributes the batches "
                    f"over the processes itself. Leave out {name}, and set the batch size of each process with "
                    "per_device_train_batch_size."
                )
    elif train_dataset.n_shards >= args.world_size:
        strategies = (args.save_strategy, args.eval_strategy, args.logging_strategy)
        if args.gradient_accumulation_steps > 1 or "epoch" in strategies:
            raise ValueError(
                f"The {args.world_size} processes read the {train_dataset.n_shards} files of the stream separately and "
                "reach the end of their files at different steps. Save, evaluate and log by steps and leave out "
                "gradient_accumulation_steps, or use fewer files than processes."
            )
    if args.auto_find_batch_size:
        raise ValueError(
            "auto_find_batch_size only works in a single process: if one of several runs out of memory, the others "
            "wait for it forever. Set per_device_train_batch_size, or save memory with the loss's mini_batch_size."
        )
    # For a stream, accelerate would join the batches of all processes in the first process. This fails, because their
    # widths differ.
    if config.dispatch_batches is None:
        config.dispatch_batches = False


def _check_types(model: Any, args: Any, loss: Any, evaluator: Any) -> None:
    """Raises ValueError for arguments of the wrong type, such as the name of a file instead of an evaluator."""
    if model is not None:
        check_model(model)
    if isinstance(args, (str, os.PathLike)):
        raise ValueError(f"args is {str(args)!r}. Pass SimCSETrainingArguments({str(args)!r}) instead.")
    if isinstance(args, Mapping):
        raise ValueError("args is a dictionary. Pass SimCSETrainingArguments(**args) instead.")
    for one in loss.values() if isinstance(loss, dict) else [loss]:
        if one is not None and not callable(one):
            raise ValueError(f"loss is {one!r}. Pass a loss, such as UnsupSimCSELoss(model).")
    for one in evaluator if isinstance(evaluator, (list, tuple)) else [evaluator]:
        if isinstance(one, (str, os.PathLike)):
            raise ValueError(f"evaluator is {str(one)!r}. Pass load_sts({str(one)!r}), which reads scored pairs.")
        if one is not None and not callable(one):
            raise ValueError(f"evaluator is {one!r}. Pass an evaluator of ST, such as the one that load_sts returns.")


def _names(*datasets: Any) -> list[str]:
    """Returns the columns of all datasets and the names of several datasets, or nothing if some columns are unknown."""
    several = [data for data in datasets if isinstance(data, dict)]
    single = [data for data in datasets if data is not None and not isinstance(data, dict)]
    columns: list[Any] = [
        getattr(data, "column_names", None)
        for data in (*single, *(inner for data in several for inner in data.values()))
    ]
    if None in columns:
        return []
    return list(dict.fromkeys(name for names in (*several, *columns) for name in names))


@torch.no_grad()
def texts_without_embedding(model: SentenceTransformer, columns: list[dict[str, torch.Tensor]]) -> list[str]:
    """Returns the distinct texts of a batch whose embeddings have NaN or infinite values, decoded from their tokens.

    Columns that are not padded rows of tokens are left out, such as those of a StaticEmbedding or for flash attention.
    """
    texts = []
    for column in columns:
        if not {"input_ids", "attention_mask"} <= column.keys():
            continue
        outputs = chunked_outputs(model, dict(column), 64, task=None)
        embeddings = torch.cat([output["sentence_embedding"] for output in outputs])
        rows = column["input_ids"][~embeddings.isfinite().all(dim=1)]
        texts += [model.tokenizer.decode(row, skip_special_tokens=True) for row in rows]
    return list(dict.fromkeys(texts))


def _warn_of_half_precision(model: torch.nn.Module) -> None:
    half = {
        str(weight.dtype).removeprefix("torch.")
        for weight in model.parameters()
        if weight.requires_grad and weight.dtype in HALF
    }
    if half:
        logger.warning(
            "The trained weights of the model are in %s, where small updates are rounded to zero. Call model.float() "
            "before you create the loss, or load the model with build_model. Mixed precision (bf16=True) works with "
            "float32 weights.",
            " and ".join(sorted(half)),
        )


class SimCSETrainer(ResumableTrainer):
    """A SentenceTransformerTrainer that also trains a projection head, and that trains in several processes.

    The trainer saves the projection head with every checkpoint and restores it when training resumes. It clips the
    gradients of the head together with those of the model, keeps the head equal in all processes, and distributes the
    batches so that all processes do the same number of steps. In contrast, a checkpoint of SentenceTransformerTrainer
    only has the model, which is enough for inference. If training resumed from it, the head would start again at random
    while the optimizer continued with the state of the old head.

    With ``tokenize_once`` in its arguments, the trainer tokenizes the training data in advance. The evaluation loss of
    :class:`~st_simcse.UnsupSimCSELoss` is computed with dropout, a fixed seed and, with ``views``, the
    same views every time.

    The parameters are those of SentenceTransformerTrainer. The data may also be a DataFrame, or a list of texts, of
    tuples of texts, of dicts or of InputExamples. Without ``args``, the trainer uses the defaults of
    :class:`~st_simcse.SimCSETrainingArguments`. Without ``loss``, it uses UnsupSimCSELoss for one column of texts, and
    SupSimCSELoss for several columns with typical names of pairs and hard negatives, such as ``anchor``, ``positive``
    and ``negative_1``.

    Raises:
        FileNotFoundError: If training with a projection head resumes from a checkpoint without one.
        OSError: If nothing can be written to ``output_dir``. This is checked before training.
        ValueError: If a name is passed instead of a model, data, arguments or an evaluator.
            If a row or a column has no texts, if no row of a batch has a negative, if all batches would be dropped, or
            if the tokenizer knows none of the texts.
            If a dataset lacks the embeddings of a teacher that an option of its loss needs.
            If no weight of the model is trained, or if the optimizer does not have all weights of the loss (in
            ``train``).
            If ``tokenize_once`` does not work with the data, the model or the data collator.
            If there are labels, or several columns with other names, but no ``loss``.
            If an option of a loss does not work with the MatryoshkaLoss or AdaptiveLayerLoss around it.
            If ``model_init`` comes with a loss that has its own weights instead of a function that creates the loss.
            With several processes, if accelerate is configured to distribute the batches, if a stream of several files
            is used with settings that depend on the end of an epoch, or if a setting does not work with FSDP or
            DeepSpeed.

    Example:
        >>> from datasets import Dataset
        >>> from st_simcse import SimCSETrainingArguments
        >>> from st_simcse.demo import tiny_model
        >>> texts = ["Two dogs run.", "A cat sleeps."]
        >>> args = SimCSETrainingArguments("output", bf16=False)
        >>> trainer = SimCSETrainer(tiny_model(texts), args, Dataset.from_dict({"sentence": texts}))
        >>> type(trainer.loss).__name__
        'UnsupSimCSELoss'
    """

    data_collator_class = NegativesCollator
    data_collator: Any
    loss: Any

    def __init__(
        self,
        model: SentenceTransformer | None = None,
        args: SentenceTransformerTrainingArguments | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        loss: Any = None,
        evaluator: Any = None,
        data_collator: Any = None,
        *others: Any,
        **options: Any,
    ) -> None:
        args = SimCSETrainingArguments("tmp_trainer") if args is None else args
        _check_types(model, args, loss, evaluator)
        train_dataset = as_dataset(train_dataset, "train_dataset")
        eval_dataset = as_dataset(eval_dataset, "eval_dataset")
        labels = getattr(data_collator, "valid_label_columns", LABEL_COLUMNS)
        check_texts(train_dataset, "train_dataset", labels)
        check_texts(eval_dataset, "eval_dataset", labels)
        if args.output_dir:
            check_writable(args.output_dir)
        if args.world_size > 1:
            _check_several_processes(args, train_dataset)
        tokenize_once = getattr(args, "tokenize_once", False)
        if tokenize_once and not isinstance(train_dataset, Dataset):
            raise ValueError(
                f"tokenize_once needs a datasets.Dataset as train_dataset, got {type(train_dataset).__name__}"
            )
        views = getattr(args, "views", None)
        constant = constant_columns(train_dataset)
        self._given_loss = loss
        self._given_data = train_dataset if tokenize_once else None
        super().__init__(model, args, train_dataset, eval_dataset, loss, evaluator, data_collator, *others, **options)
        _warn_of_half_precision(self.model)
        check_shardable(args, self.accelerator.state, self._losses().values(), self.model)
        self._start_weight: float = getattr(args, "start_weight", 0.0)
        check_start_weight(self._start_weight, self.model, self.accelerator.state, self.model_init is not None)
        self._take_lists_of_negatives()
        check_negatives(self._losses(), self._text_columns(), constant, args)
        check_rows(self.train_dataset, self._text_columns(), self.model, args)
        max_length = getattr(self.args, "max_length", None)
        check_prompts(
            self.args.prompts,
            self.model,
            max_length if isinstance(max_length, int) else None,
            _names(self.train_dataset, self.eval_dataset),
        )
        check_teacher_columns(self.train_dataset, self.eval_dataset)
        self._check_teacher()
        # Crops of a long text are shorter than it and may fit into max_length. Other views are truncated.
        if views != "crops" and not isinstance(views, Crops):
            self._warn_of_cut_texts()
        if tokenize_once:
            self._tokenize_once(bool(views))
        if views is not None:
            self._make_views(views)
        self._warn_of_other_batches_in_evaluation()
        if self.model_init is not None:
            self._check_trials_are_independent()
            self._make_losses_anew(self.model)
        self.add_callback(LossSynchronizer(self._loss_parameters))

    def train(self, *args: Any, **options: Any) -> TrainOutput:
        """Trains like ST's trainer, and then averages with the weights before training if ``start_weight`` is not 0."""
        average = StartAverage(self.model, self._start_weight) if self._start_weight else None
        output = super().train(*args, **options)
        if average:
            average.apply(self.model)
            own_card(self.model).eval_results_dict = {}  # the results of the weights before the average
        return output

    def _check_data_collator(self, needs: str) -> None:
        if not isinstance(self.data_collator, BaseDataCollator):
            raise ValueError(
                f"{needs} a data collator of ST, got {type(self.data_collator).__name__}. Leave out data_collator."
            )

    def _tokenize_once(self, has_views: bool) -> None:
        self._check_data_collator("tokenize_once needs")
        tokenizing = whole_texts(self.data_collator) if has_views else self.data_collator
        self.train_dataset = tokenize(self.train_dataset, self.model, tokenizing)
        self.data_collator = token_collator(self.model, self.data_collator)

    def _take_lists_of_negatives(self) -> None:
        for _, dataset, loss in self._datasets():
            if lists := list_columns(dataset):
                check_lists(loss, dataset.column_names, lists, self.data_collator, self.args.batch_sampler)
                self.data_collator.lists += tuple(lists)
                if self.args.world_size > 1:
                    self.data_collator.width = max(self.data_collator.width, longest_list([dataset], lists))

    def _datasets(self) -> Iterator[tuple[str, Any, torch.nn.Module]]:
        """Yields the name of the argument, the dataset and its loss for all datasets for training and evaluation."""
        losses = self._losses()
        given: dict[str, Any] = {"train_dataset": self.train_dataset, "eval_dataset": self.eval_dataset}
        for argument, data in given.items():
            for name, dataset in data.items() if isinstance(data, dict) else [("", data)]:
                if dataset is not None:
                    yield f"{argument}[{name!r}]" if name else argument, dataset, losses.get(name) or losses[""]

    def _check_teacher(self) -> None:
        labels = set(getattr(self.data_collator, "valid_label_columns", LABEL_COLUMNS))
        for argument, dataset, loss in self._datasets():
            needing = {
                type(option).__name__
                for inner in simcse_losses(loss)
                for option in inner.options
                if getattr(option, "needs_teacher", False)
            }
            columns = getattr(dataset, "column_names", None)
            if needing and self.args.batch_sampler == BatchSamplers.GROUP_BY_LABEL:
                raise ValueError(
                    "batch_sampler='group_by_label' groups rows by classes, but the column label has the embeddings of "
                    f"a teacher, which {' and '.join(sorted(needing))} needs. Leave batch_sampler out."
                )
            if needing and columns and labels.isdisjoint(columns):
                raise ValueError(
                    f"{' and '.join(sorted(needing))} needs the embeddings of a teacher, but {argument} has no column "
                    f"label. Pass add_teacher_embeddings({argument}, teacher) as {argument} (--teacher)."
                )

    def _warn_of_other_batches_in_evaluation(self) -> None:
        if isinstance(self.args, SimCSETrainingArguments) or None in (self.train_dataset, self.eval_dataset):
            return
        if (evaluated := self.args.eval_batch_size) != (trained := self.args.train_batch_size):
            logger.warning(
                "eval_loss uses batches of %d rows, but the training loss uses batches of %d, so they have different "
                "numbers of negatives. To compare the losses, set per_device_eval_batch_size to "
                "per_device_train_batch_size, or use SimCSETrainingArguments, which does so by default.",
                evaluated,
                trained,
            )

    def _text_columns(self) -> dict[str, list[str]]:
        """Returns the names of the text columns of the training data by dataset, or under the empty name."""
        data = self.train_dataset if isinstance(self.train_dataset, dict) else {"": self.train_dataset}
        others = {*getattr(self.data_collator, "valid_label_columns", ()), "dataset_name"}
        columns = {name: getattr(dataset, "column_names", None) for name, dataset in data.items()}
        return {name: [one for one in known if one not in others] for name, known in columns.items() if known}

    def _warn_of_cut_texts(self) -> None:
        if isinstance(self.data_collator, BaseDataCollator) and self.is_world_process_zero():
            data: Any = self.train_dataset
            named: dict[Any, Any] = data if isinstance(data, dict) else {None: data}
            warn_of_cut_training_texts(self.model, self.data_collator, named)

    def _make_views(self, views: Any) -> None:
        self._check_data_collator("views need")
        if self.args.dataloader_persistent_workers:
            raise ValueError(
                "views need to know the epoch, which persistent workers do not. Leave out "
                "dataloader_persistent_workers."
            )
        for _, dataset, _ in self._datasets():
            texts = set(getattr(dataset, "column_names", None) or []) - set(self.data_collator.valid_label_columns)
            if len(texts) > 1:
                raise ValueError(
                    f"views need a single column of texts, but the data has {', '.join(sorted(texts))}. Keep one "
                    "column with dataset.select_columns, or leave out views."
                )
        self.data_collator = view_collator(self.model, self.data_collator, views, self.args.seed)
        self.add_callback(ViewCallback(self.data_collator))

    def call_model_init(self, trial: Any = None) -> SentenceTransformer:
        model: Any = super().call_model_init(trial)
        if hasattr(self, "loss"):  # not during ST's constructor
            self._make_losses_anew(model)
        return model

    def _make_losses_anew(self, model: SentenceTransformer) -> None:
        """Creates new losses for a new model of ``model_init``, if functions that create losses were passed."""
        if self.place_model_on_device:
            model.to(self.args.device)
        if isinstance(self._given_loss, dict):
            for name, loss in self._given_loss.items():
                if not isinstance(loss, torch.nn.Module):
                    self.loss[name] = self.prepare_loss(loss, model)
        elif self._given_loss is not None and not isinstance(self._given_loss, torch.nn.Module):
            self.loss = self.prepare_loss(self._given_loss, model)

    def _check_trials_are_independent(self) -> None:
        given = self._given_loss.values() if isinstance(self._given_loss, dict) else [self._given_loss]
        for loss in given:
            if isinstance(loss, torch.nn.Module) and own_weights(loss, getattr(loss, "model", self.model)):
                raise ValueError(
                    f"This {type(loss).__name__} has its own weights, which would carry over from one trial to the "
                    "next. With model_init, pass a function that creates the loss, such as "
                    "loss=lambda model: UnsupSimCSELoss(model, projection_head=True)."
                )

    def get_default_loss(self, model: SentenceTransformer) -> Any:
        """Returns UnsupSimCSELoss for one column of texts, SupSimCSELoss for more, and one loss per dataset."""
        dataset = self.train_dataset if self.train_dataset is not None else self.eval_dataset
        if isinstance(dataset, dict):
            return {name: self._default_loss(model, dataset[name]) for name in dataset}
        return super().get_default_loss(model) if dataset is None else self._default_loss(model, dataset)

    def _default_loss(self, model: SentenceTransformer, dataset: Any) -> torch.nn.Module:
        if labels := set(dataset.column_names) & set(self.data_collator.valid_label_columns):
            raise ValueError(
                f"SimCSE's losses do not use the column {', '.join(labels)}. Pass a loss that does, or remove the "
                "column with dataset.remove_columns."
            )
        if len(dataset.column_names) == 1:
            return UnsupSimCSELoss(model)
        check_pair_names(dataset.column_names)
        return SupSimCSELoss(model)

    def prepare_loss(self, loss: Any, model: SentenceTransformer) -> torch.nn.Module:
        loss = super().prepare_loss(loss, model)
        check_wrappers(loss, compiled_in_processes=self.args.torch_compile and self.args.world_size > 1)
        if getattr(self.args, "views", None) is not None:
            for inner in simcse_losses(loss):
                check_compatible(inner.options, "views")
        return loss

    def _data_seed(self) -> dict[str, int]:
        """Returns the seed of the batch samplers if it is not the general one. ST does not read ``data_seed``."""
        return {} if self.args.data_seed is None else {"seed": self.args.data_seed}

    def get_batch_sampler(
        self, dataset: Dataset, batch_size: int, drop_last: bool, **kwargs: Any
    ) -> BatchSampler | None:
        processes = self.args.world_size
        kwargs |= self._data_seed()
        if processes == 1:
            return super().get_batch_sampler(dataset, batch_size, drop_last, **kwargs)
        drop_last = getattr(self.args, "drops_last_batches", drop_last)
        batches: Any = super().get_batch_sampler(dataset, batch_size, drop_last, **kwargs)
        return None if batches is None else EvenBatchSampler(RoundSampler(batches, processes), processes)

    def get_multi_dataset_batch_sampler(
        self, dataset: ConcatDataset[Any], batch_samplers: list[Any], **kwargs: Any
    ) -> BatchSampler:
        processes = self.args.world_size
        kwargs |= self._data_seed()
        if processes == 1:
            return super().get_multi_dataset_batch_sampler(dataset, batch_samplers, **kwargs)
        # ST's sampler draws from rounds, so all processes use the same dataset in a step.
        rounds = [sampler.rounds for sampler in batch_samplers]
        several: Any = super().get_multi_dataset_batch_sampler(dataset, rounds, **kwargs)
        return EvenBatchSampler(several, processes)

    def prediction_step(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Evaluates a batch like ST's trainer, but with the loss in evaluation mode.

        The model has dropout for UnsupSimCSELoss, so that the two views differ.
        """
        loss = self.loss[inputs["dataset_name"]] if isinstance(self.loss, dict) else self.loss
        if not any(isinstance(inner, UnsupSimCSELoss) for inner in simcse_losses(loss)):
            with evaluation_mode(loss):
                return super().prediction_step(model, inputs, *args, **kwargs)
        device = self.args.device
        random_states = torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=device.type)
        with random_states, evaluation_mode(loss):
            torch.manual_seed(self.args.seed)
            self.model.train()
            self.model.training = False  # ST logs the terms of the loss as those of an evaluation
            try:
                return super().prediction_step(model, inputs, *args, **kwargs)
            finally:
                self.model.eval()

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Computes the loss like ST's trainer, but adds the texts to the error if embeddings are NaN or infinite."""
        try:
            return super().compute_loss(model, inputs, *args, **kwargs)
        except ValueError as error:
            if self._fsdp:  # its forward passes need all processes
                raise
            texts = texts_without_embedding(self.model, self.collect_features(inputs)[0])
            if not texts:
                raise
            more = f" and {len(texts) - 5} more" if len(texts) > 5 else ""
            raise ValueError(f"{error}\nThe texts: {', '.join(map(repr, texts[:5]))}{more}") from error

    def training_step(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        self._step_inputs = inputs
        with averaged_gradients(self._loss_parameters(), now=self.accelerator.sync_gradients):
            try:
                return super().training_step(model, inputs, *args, **kwargs)
            except RuntimeError as error:
                step = self.state.global_step
                if not (self.args.auto_find_batch_size and should_reduce_batch_size(error) and step):
                    raise
                raise RuntimeError(
                    f"Step {step + 1} ran out of memory, and auto_find_batch_size would start again with weights that "
                    "are already trained. Lower per_device_train_batch_size, or set the loss's mini_batch_size, which "
                    "does not change the batch size."
                ) from error

    def get_eval_dataloader(self, *args: Any, **options: Any) -> Any:
        training = self.data_collator
        self.data_collator = evaluation_collator(training)
        try:
            return super().get_eval_dataloader(*args, **options)
        finally:
            self.data_collator = training

    # ST uses the batch size of the arguments, but auto_find_batch_size of transformers stores its result elsewhere.
    def get_train_dataloader(self) -> Any:
        asked, found = self.args.per_device_train_batch_size, self._train_batch_size // max(1, self.args.n_gpu)
        if not self.args.auto_find_batch_size or found == asked:
            return super().get_train_dataloader()
        logger.warning(
            "Batches of %d rows do not fit into memory, so training uses batches of %d, with fewer negatives per row. "
            "Set the loss's mini_batch_size to keep the batch size.",
            asked,
            found,
        )
        self.args.per_device_train_batch_size = found
        try:
            return super().get_train_dataloader()
        finally:
            self.args.per_device_train_batch_size = asked

    # These two methods override private ones of transformers, which has no public place for this: max_grad_norm and the
    # logged grad_norm include the gradients of the projection head.
    def _clip_grad_norm(self, model: torch.nn.Module) -> torch.Tensor:
        return super()._clip_grad_norm(torch.nn.ModuleList([model, *self._losses().values()]))

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(torch.nn.ModuleList([model, *self._losses().values()]), grad_norm)
        self._check_gradients(norm)
        return norm

    def _check_gradients(self, norm: Any) -> None:
        """Raises ValueError before a NaN gradient reaches the weights, and names the term of the loss it comes from."""
        # In fp16, infinite gradients occur now and then, and the scaler skips such a step.
        if norm is None or getattr(self.accelerator, "scaler", None) is not None:
            return
        if math.isfinite(norm.full_tensor() if isinstance(norm, DTensor) else norm):
            return
        summands = [] if self._fsdp else self._summands_without_gradient()
        origin = f", caused by the loss term {' and '.join(summands)}" if summands else ""
        raise ValueError(
            f"The gradient of step {self.state.global_step + 1} is NaN or infinite{origin}. Training stopped before "
            "this step changed the weights. Look for a division by zero, or for a root or logarithm of zero, and add a "
            "small number there. If the embeddings have become very large, lower the learning rate."
        )

    def _summands_without_gradient(self) -> list[str]:
        """Returns the loss terms of the last batch whose gradients are not finite, if the loss has named terms."""
        inputs: Any = self._prepare_inputs(self._step_inputs)
        loss = self.loss[inputs.pop("dataset_name")] if isinstance(self.loss, dict) else self.loss
        # The gradients are only looked at, so the processes need not average them.
        with averaged_gradients([], now=False), self.compute_loss_context_manager():
            summands = loss(*self.collect_features(inputs))
        weights = [weight for weight in (*self.model.parameters(), *self._loss_parameters()) if weight.requires_grad]
        found = []
        for name, summand in summands.items() if isinstance(summands, dict) else ():
            gradients = torch.autograd.grad(summand, weights, retain_graph=True, allow_unused=True)
            if not all(gradient is None or gradient.isfinite().all() for gradient in gradients):
                found.append(name)
        return found
