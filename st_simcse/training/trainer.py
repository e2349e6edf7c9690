"""ST's trainer, which looks after a projection head, views, prompts, and several processes."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size
from datasets import Dataset, IterableDataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments
from sentence_transformers.base.data_collator import BaseDataCollator
from torch.distributed.tensor import DTensor
from torch.utils.data import BatchSampler, ConcatDataset
from transformers.trainer_utils import TrainOutput

from st_simcse.data.batching import token_collator, tokenize
from st_simcse.data.lengths import warn_of_cut_training_texts
from st_simcse.data.prompts import check_prompts
from st_simcse.data.teacher import check_teacher_columns
from st_simcse.data.training_data import LABEL_COLUMNS, as_dataset, check_texts
from st_simcse.data.views import Crops, ViewCallback, view_collator, whole_texts
from st_simcse.losses import SimCSELoss, SupSimCSELoss, UnsupSimCSELoss, check_wrappers
from st_simcse.losses.arguments import check_model
from st_simcse.losses.collectives import averaged_gradients
from st_simcse.losses.options import check_compatible
from st_simcse.losses.own_weights import own_weights
from st_simcse.losses.st_internals import chunked_outputs
from st_simcse.training.loss_synchronizer import LossSynchronizer
from st_simcse.training.model_card import ModelCardCallback
from st_simcse.training.negatives import NegativesCollator, check_lists, list_columns, longest_list
from st_simcse.training.resumable_trainer import ResumableTrainer
from st_simcse.training.run_folder import check_writable
from st_simcse.training.samplers import EvenBatchSampler, RoundSampler
from st_simcse.training.sharding import check_shardable
from st_simcse.training.start_average import StartAverage, check_start_weight
from st_simcse.training.trainable import check_negatives, check_pair_names, constant_columns
from st_simcse.training.training_arguments import SimCSETrainingArguments, limit_training_length

__all__ = ["SimCSETrainer"]

logger = logging.getLogger(__name__)


def _check_several_processes(args: SentenceTransformerTrainingArguments, train_dataset: Any) -> None:
    """Whether several processes get batches by the trainer's own rules, and of streams by accelerate's."""
    config: Any = args.accelerator_config
    if not isinstance(train_dataset, IterableDataset):
        for name in ("split_batches", "dispatch_batches"):
            if getattr(config, name, None):
                raise ValueError(
                    f"accelerator_config's {name} is not for SimCSETrainer, which deals the batches of several "
                    "processes out itself: leave it out; per_device_train_batch_size is what every process gets"
                )
    elif train_dataset.n_shards >= args.world_size:
        strategies = (args.save_strategy, args.eval_strategy, args.logging_strategy)
        if args.gradient_accumulation_steps > 1 or "epoch" in strategies:
            raise ValueError(
                f"{args.world_size} processes read the {train_dataset.n_shards} files of a stream each for itself, and "
                "come to their ends at different steps: save, evaluate and log by steps and without "
                "gradient_accumulation_steps, or make fewer files of it than there are processes"
            )
    if args.auto_find_batch_size:
        raise ValueError(
            "auto_find_batch_size is for one process, since one that runs out of memory would leave the others "
            "waiting: set per_device_train_batch_size, or the loss's mini_batch_size, which saves memory"
        )
    # Of streams accelerate would join the batches of all processes in the first one, which fails: their widths differ.
    if config.dispatch_batches is None:
        config.dispatch_batches = False


def _check_types(model: Any, args: Any, loss: Any, evaluator: Any) -> None:
    """ValueError for the name of a thing, or something else, where the thing itself is expected."""
    if model is not None:
        check_model(model)
    if isinstance(args, (str, os.PathLike)):
        raise ValueError(f"args is {str(args)!r}: pass SimCSETrainingArguments({str(args)!r})")
    if isinstance(args, Mapping):
        raise ValueError("args is a dictionary: pass SimCSETrainingArguments(**args)")
    for one in loss.values() if isinstance(loss, dict) else [loss]:
        if one is not None and not callable(one):
            raise ValueError(f"loss is {one!r}, expected a loss, such as UnsupSimCSELoss(model)")
    for one in evaluator if isinstance(evaluator, (list, tuple)) else [evaluator]:
        if isinstance(one, (str, os.PathLike)):
            raise ValueError(f"evaluator is {str(one)!r}: read the scored pairs with load_sts({str(one)!r})")
        if one is not None and not callable(one):
            raise ValueError(f"evaluator is {one!r}, expected one that load_sts makes, or another of ST's evaluators")


def _names(*datasets: Any) -> list[str]:
    """Of data sets the columns, and of several by name the names; empty where one does not know its columns."""
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
    """The different texts of a batch whose embeddings hold NaN or infinity, as the tokenizer gives them back.

    None of columns that are no padded rows of tokens, such as those of a StaticEmbedding or for flash attention.
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
        if weight.requires_grad and weight.dtype in (torch.bfloat16, torch.float16)
    }
    if half:
        logger.warning(
            "The model trains weights in %s, in which small steps round to nothing: call model.float() before you make "
            "the loss, or load the model with build_model. Mixed precision (bf16=True) goes with float32 weights",
            " and ".join(sorted(half)),
        )


class SimCSETrainer(ResumableTrainer):
    """SentenceTransformerTrainer that looks after the projection head, and after several processes.

    It saves the head with every checkpoint and resumes with it, clips its gradients together with the model's, keeps it
    equal in all processes, and deals batches out so that all processes do equally many steps. A checkpoint of the plain
    trainer holds the model alone, since that is what inference needs: resumed from it, a projection head starts anew
    while the optimizer goes on with the old one's moments. With ``tokenize_once`` in its arguments it tokenizes the
    training data beforehand. The evaluation loss of two dropout masks is computed with dropout, and a fixed seed.

    Takes what SentenceTransformerTrainer takes; data may also be a DataFrame, or a list of texts, of tuples of texts,
    of dicts or of InputExamples. Without ``args`` it trains with SimCSETrainingArguments' defaults. Without ``loss`` it
    takes UnsupSimCSELoss for one column of texts, and SupSimCSELoss for more that are named as pairs and hard negatives
    usually are, such as ``anchor``, ``positive``, ``negative_1``.

    Raises:
        FileNotFoundError: on resuming with a head from a checkpoint that has none.
        OSError: at once, if nothing can be written to ``output_dir``.
        ValueError: for a name in place of a model, data, arguments or an evaluator; for a row or column without texts;
            for data and batches in which no row has a negative; in ``train``, if no weight of the model is trained, or
            the optimizer lacks weights of the loss;
            for ``tokenize_once`` with data or a model that does not allow it; without ``loss``, for labels, and for
            several columns of other names;
            for an option of a loss that does not go with the MatryoshkaLoss or AdaptiveLayerLoss around it;
            with ``model_init``, for a loss that has weights of its own instead of a function that makes one; in several
            processes, for accelerate's own ways of dealing batches out, for a stream of several files with what counts
            its epochs, and for what does not go with FSDP or DeepSpeed.

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

    model_card_callback_class = ModelCardCallback
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
        *others: Any,
        **options: Any,
    ) -> None:
        args = SimCSETrainingArguments("tmp_trainer") if args is None else args
        _check_types(model, args, loss, options.get("evaluator"))
        train_dataset = as_dataset(train_dataset, "train_dataset")
        eval_dataset = as_dataset(eval_dataset, "eval_dataset")
        labels = getattr(options.get("data_collator"), "valid_label_columns", LABEL_COLUMNS)
        check_texts(train_dataset, "train_dataset", labels)
        check_texts(eval_dataset, "eval_dataset", labels)
        if args.output_dir:
            check_writable(args.output_dir)
        if args.world_size > 1:
            _check_several_processes(args, train_dataset)
        tokenize_once = getattr(args, "tokenize_once", False)
        if tokenize_once and not isinstance(train_dataset, Dataset):
            raise ValueError(f"tokenize_once needs a datasets.Dataset, got {type(train_dataset).__name__}")
        views = getattr(args, "views", None)
        constant = constant_columns(train_dataset)
        self._given_loss = loss
        self._given_data = train_dataset if tokenize_once else None
        super().__init__(model, args, train_dataset, eval_dataset, loss, *others, **options)
        _warn_of_half_precision(self.model)
        check_shardable(args, self.accelerator.state, self._losses().values(), self.model)
        self._start_weight: float = getattr(args, "start_weight", 0.0)
        check_start_weight(self._start_weight, self.model, self.accelerator.state, self.model_init is not None)
        self._take_lists_of_negatives()
        check_negatives(self._losses(), self._text_columns(), constant, args)
        max_length = getattr(self.args, "max_length", None)
        check_prompts(
            self.args.prompts,
            self.model,
            max_length if isinstance(max_length, int) else None,
            _names(self.train_dataset, self.eval_dataset),
        )
        check_teacher_columns(self.train_dataset, self.eval_dataset)
        # Crops of a text that is longer than training reads are shorter; the other views cut it.
        if views != "crops" and not isinstance(views, Crops):
            self._warn_of_cut_texts()
        if tokenize_once:
            if not isinstance(self.data_collator, BaseDataCollator):
                raise ValueError("tokenize_once needs a data collator of ST's kind: leave data_collator out")
            tokenizing = whole_texts(self.data_collator) if views else self.data_collator
            self.train_dataset = tokenize(self.train_dataset, self.model, tokenizing)
            self.data_collator = token_collator(self.model, self.data_collator)
        if views is not None:
            self._make_views(views)
        self._warn_of_other_batches_in_evaluation()
        if self.model_init is not None:
            self._check_trials_are_independent()
            self._make_losses_anew(self.model)
        self.add_callback(LossSynchronizer(self._loss_parameters))

    def train(self, *args: Any, **options: Any) -> TrainOutput:
        """As ST's trainer does, and then the average with the weights from before, if ``start_weight`` asks for it."""
        average = StartAverage(self.model, self._start_weight) if self._start_weight else None
        output = super().train(*args, **options)
        if average:
            average.apply(self.model)
        return output

    def _take_lists_of_negatives(self) -> None:
        given: list[Any] = [self.train_dataset, self.eval_dataset]
        several = [data if isinstance(data, dict) else {"": data} for data in given]
        for name, dataset in [item for data in several for item in data.items()]:
            if lists := list_columns(dataset):
                losses, columns = self._losses(), dataset.column_names
                loss = losses.get(name) or losses[""]
                check_lists(loss, columns, lists, self.data_collator, self.args.batch_sampler)
                self.data_collator.lists += tuple(lists)
                if self.args.world_size > 1:
                    self.data_collator.width = max(self.data_collator.width, longest_list([dataset], lists))

    def _warn_of_other_batches_in_evaluation(self) -> None:
        if isinstance(self.args, SimCSETrainingArguments) or None in (self.train_dataset, self.eval_dataset):
            return
        if (evaluated := self.args.eval_batch_size) != (trained := self.args.train_batch_size):
            logger.warning(
                "eval_loss counts the negatives of batches of %d, the loss in training those of %d: to compare them, "
                "set per_device_eval_batch_size to per_device_train_batch_size, as SimCSETrainingArguments does",
                evaluated,
                trained,
            )

    def _text_columns(self) -> dict[str, list[str]]:
        """The names of the training data's columns of texts by dataset; a single dataset has the empty name."""
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
        if not isinstance(self.data_collator, BaseDataCollator):
            raise ValueError("views need a data collator of ST's kind: leave data_collator out")
        if self.args.dataloader_persistent_workers:
            raise ValueError("views need to know the epoch, which workers that persist do not: let them end")
        for data in (self.train_dataset, self.eval_dataset):
            for dataset in data.values() if isinstance(data, dict) else [data]:
                texts = set(getattr(dataset, "column_names", None) or []) - set(self.data_collator.valid_label_columns)
                if len(texts) > 1:
                    raise ValueError(
                        f"views are made of one column of texts, the data has {', '.join(sorted(texts))}: keep one "
                        "with dataset.select_columns, or leave views out"
                    )
        self.data_collator = view_collator(self.model, self.data_collator, views, self.args.seed)
        self.add_callback(ViewCallback(self.data_collator))

    def get_data_collator(
        self, model: SentenceTransformer, args: SentenceTransformerTrainingArguments, *others: Any, **options: Any
    ) -> BaseDataCollator:
        limit_training_length(args, model)
        return super().get_data_collator(model, args, *others, **options)

    def call_model_init(self, trial: Any = None) -> SentenceTransformer:
        model: Any = super().call_model_init(trial)
        if hasattr(self, "loss"):  # not while ST's constructor is under way
            self._make_losses_anew(model)
        return model

    def _make_losses_anew(self, model: SentenceTransformer) -> None:
        """With every model that model_init makes come losses of its own, where functions are given that make them."""
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
                    f"this {type(loss).__name__} has weights of its own, which would go from the model of one trial to "
                    "that of the next: with model_init pass a function that makes the loss, such as "
                    "loss=lambda model: UnsupSimCSELoss(model, projection_head=True)"
                )

    def get_default_loss(self, model: SentenceTransformer) -> Any:
        """UnsupSimCSELoss for one column of texts and SupSimCSELoss for more; for several datasets one loss each."""
        dataset = self.train_dataset if self.train_dataset is not None else self.eval_dataset
        if isinstance(dataset, dict):
            return {name: self._default_loss(model, dataset[name]) for name in dataset}
        return super().get_default_loss(model) if dataset is None else self._default_loss(model, dataset)

    def _default_loss(self, model: SentenceTransformer, dataset: Any) -> torch.nn.Module:
        if labels := set(dataset.column_names) & set(self.data_collator.valid_label_columns):
            raise ValueError(
                f"SimCSE's losses do not use the column {', '.join(labels)}: pass a loss that does, or leave the "
                "column out with dataset.remove_columns"
            )
        if len(dataset.column_names) == 1:
            return UnsupSimCSELoss(model)
        check_pair_names(dataset.column_names)
        return SupSimCSELoss(model)

    def prepare_loss(self, loss: Any, model: SentenceTransformer) -> torch.nn.Module:
        loss = super().prepare_loss(loss, model)
        check_wrappers(loss, compiled_in_processes=self.args.torch_compile and self.args.world_size > 1)
        if getattr(self.args, "views", None) is not None:
            for part in loss.modules():
                check_compatible(part.options if isinstance(part, SimCSELoss) else [], "views")
        return loss

    def get_batch_sampler(
        self, dataset: Dataset, batch_size: int, drop_last: bool, **kwargs: Any
    ) -> BatchSampler | None:
        processes = self.args.world_size
        if processes == 1:
            return super().get_batch_sampler(dataset, batch_size, drop_last, **kwargs)
        drop_last = getattr(self.args, "drops_last_batches", drop_last)
        batches: Any = super().get_batch_sampler(dataset, batch_size, drop_last, **kwargs)
        return None if batches is None else EvenBatchSampler(RoundSampler(batches, processes), processes)

    def get_multi_dataset_batch_sampler(
        self, dataset: ConcatDataset[Any], batch_samplers: list[Any], **kwargs: Any
    ) -> BatchSampler:
        processes = self.args.world_size
        if processes == 1:
            return super().get_multi_dataset_batch_sampler(dataset, batch_samplers, **kwargs)
        # Of rounds, so that all processes draw the same dataset in a step.
        rounds = [sampler.rounds for sampler in batch_samplers]
        several: Any = super().get_multi_dataset_batch_sampler(dataset, rounds, **kwargs)
        return EvenBatchSampler(several, processes)

    def prediction_step(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As the plain trainer's; with dropout where two views are compared, which would be equal without it."""
        loss = self.loss[inputs["dataset_name"]] if isinstance(self.loss, dict) else self.loss
        if not any(isinstance(part, UnsupSimCSELoss) for part in loss.modules()):
            return super().prediction_step(model, inputs, *args, **kwargs)
        device = self.args.device
        with torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=device.type):
            torch.manual_seed(self.args.seed)
            self.model.train()
            try:
                return super().prediction_step(model, inputs, *args, **kwargs)
            finally:
                self.model.eval()

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As the plain trainer's; where embeddings are NaN or infinite, the error lists the texts."""
        try:
            return super().compute_loss(model, inputs, *args, **kwargs)
        except ValueError as error:
            if self._fsdp:  # whose forward passes need all processes
                raise
            texts = texts_without_embedding(self.model, self.collect_features(inputs)[0])
            if not texts:
                raise
            more = f" and {len(texts) - 5} more" if len(texts) > 5 else ""
            raise ValueError(f"{error}. The texts: {', '.join(map(repr, texts[:5]))}{more}") from error

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
                    f"memory does not suffice for step {step + 1}, and auto_find_batch_size would begin anew with "
                    "weights that are trained already: lower per_device_train_batch_size, or set the loss's "
                    "mini_batch_size, which keeps the batch size"
                ) from error

    # ST takes the batch size of the arguments, transformers keeps the one that auto_find_batch_size has come to here.
    def get_train_dataloader(self) -> Any:
        asked, found = self.args.per_device_train_batch_size, self._train_batch_size // max(1, self.args.n_gpu)
        if not self.args.auto_find_batch_size or found == asked:
            return super().get_train_dataloader()
        logger.warning(
            "batches of %d rows do not fit into memory, training begins with %d, which leaves a row fewer negatives: "
            "the loss's mini_batch_size keeps the batch size",
            asked,
            found,
        )
        self.args.per_device_train_batch_size = found
        try:
            return super().get_train_dataloader()
        finally:
            self.args.per_device_train_batch_size = asked

    # These two are transformers', which has no public place for it: max_grad_norm is of the head's gradients too, and
    # so is the grad_norm that is logged.
    def _clip_grad_norm(self, model: torch.nn.Module) -> torch.Tensor:
        return super()._clip_grad_norm(torch.nn.ModuleList([model, *self._losses().values()]))

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(torch.nn.ModuleList([model, *self._losses().values()]), grad_norm)
        self._check_gradients(norm)
        return norm

    def _check_gradients(self, norm: Any) -> None:
        """Stop before the optimizer spreads NaN over all weights, and say which summand of the loss gave it."""
        # In fp16 the scaler expects infinite gradients now and then, and leaves such a step out.
        if norm is None or getattr(self.accelerator, "scaler", None) is not None:
            return
        if math.isfinite(norm.full_tensor() if isinstance(norm, DTensor) else norm):
            return
        summands = [] if self._fsdp else self._summands_without_gradient()
        origin = f", which comes from the summand {' and '.join(summands)}" if summands else ""
        raise ValueError(
            f"the gradient of step {self.state.global_step + 1} is NaN or infinite{origin}: training stopped before "
            "this step changed the weights. Look for a division by zero, or a root or logarithm of zero, and add a "
            "small number there; a lower learning rate helps where embeddings have become very large"
        )

    def _summands_without_gradient(self) -> list[str]:
        """Those of the last batch whose gradients are not finite; empty where the loss is one number."""
        inputs: Any = self._prepare_inputs(self._step_inputs)
        loss = self.loss[inputs.pop("dataset_name")] if isinstance(self.loss, dict) else self.loss
        with self.compute_loss_context_manager():
            summands = loss(*self.collect_features(inputs))
        weights = [weight for weight in (*self.model.parameters(), *self._loss_parameters()) if weight.requires_grad]
        found = []
        for name, summand in summands.items() if isinstance(summands, dict) else ():
            gradients = torch.autograd.grad(summand, weights, retain_graph=True, allow_unused=True)
            if not all(gradient is None or gradient.isfinite().all() for gradient in gradients):
                found.append(name)
        return found
