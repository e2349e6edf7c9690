"""ST's trainer, which looks after a projection head, views, prompts, and several processes."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset, IterableDataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments
from sentence_transformers.base.data_collator import BaseDataCollator
from torch.utils.data import BatchSampler, ConcatDataset

from st_simcse.batching import token_collator, tokenize
from st_simcse.distributed import EvenBatchSampler, LossSynchronizer, RoundSampler, averaged_gradients
from st_simcse.embedding import chunked_outputs
from st_simcse.losses import SimCSELoss, SupSimCSELoss, UnsupSimCSELoss, check_wrappers
from st_simcse.losses.options import refuse
from st_simcse.model_card import ModelCardCallback
from st_simcse.own_weights import own_weights
from st_simcse.prompts import check_prompts
from st_simcse.resumable_trainer import ResumableTrainer
from st_simcse.run_folder import check_writable
from st_simcse.sharding import check_shardable
from st_simcse.training_arguments import SimCSETrainingArguments, limit_training_length
from st_simcse.views import ViewCallback, view_collator, whole_texts

__all__ = ["SimCSETrainer"]


def _check_dealing(args: SentenceTransformerTrainingArguments, train_dataset: Any) -> None:
    """Whether several processes get their batches by the trainer's own rules; streams by accelerate's."""
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
    # Of streams accelerate would join the batches of all processes in the first one, which fails: their widths differ.
    if config.dispatch_batches is None:
        config.dispatch_batches = False


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


class SimCSETrainer(ResumableTrainer):
    """SentenceTransformerTrainer that looks after the projection head, and after several processes.

    It saves the head with every checkpoint and resumes with it, clips its gradients together with the model's, keeps it
    equal in all processes, and deals batches out so that all processes do equally many steps. A checkpoint of the plain
    trainer holds the model alone, since that is what inference needs: resumed from it, a projection head starts anew
    while the optimizer goes on with the old one's moments. With ``tokenize_once`` in its arguments it tokenizes the
    training data beforehand. The evaluation loss of two dropout masks is computed with dropout, and a fixed seed.

    Takes what SentenceTransformerTrainer takes. Without ``args`` it trains with SimCSETrainingArguments' defaults,
    without ``loss`` with UnsupSimCSELoss on one column of texts and SupSimCSELoss on more.

    Raises:
        FileNotFoundError: on resuming with a head from a checkpoint that has none.
        OSError: at once, if nothing can be written to ``output_dir``.
        ValueError: for ``tokenize_once`` with data or a model that does not allow it; without ``loss``, for labels;
            for an option of a loss that does not go with the MatryoshkaLoss or AdaptiveLayerLoss around it;
            with ``model_init``, for a loss that has weights of its own instead of a function that makes one; in several
            processes, for accelerate's own ways of dealing batches out, for a stream of several files with what counts
            its epochs, and for what does not go with FSDP or DeepSpeed.

    Example:
        >>> from st_simcse.demo import tiny_model
        >>> texts = ["Two dogs run.", "A cat sleeps."]
        >>> trainer = SimCSETrainer(tiny_model(texts), SimCSETrainingArguments(getfixture("tmp_path"), bf16=False),
        ...     Dataset.from_dict({"sentence": texts}))
        >>> type(trainer.loss).__name__
        'UnsupSimCSELoss'
    """

    model_card_callback_class = ModelCardCallback
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
        if args.output_dir:
            check_writable(args.output_dir)
        if args.world_size > 1:
            _check_dealing(args, train_dataset)
        tokenize_once = getattr(args, "tokenize_once", False)
        if tokenize_once and not isinstance(train_dataset, Dataset):
            raise ValueError(f"tokenize_once needs a datasets.Dataset, got {type(train_dataset).__name__}")
        views = getattr(args, "views", None)
        self._given_loss = loss
        self._given_data = train_dataset if tokenize_once else None
        super().__init__(model, args, train_dataset, eval_dataset, loss, *others, **options)
        check_shardable(args, self.accelerator.state, self._losses().values(), self.model)
        max_length = getattr(self.args, "max_length", None)
        check_prompts(
            self.args.prompts,
            self.model,
            max_length if isinstance(max_length, int) else None,
            _names(self.train_dataset, self.eval_dataset),
        )
        if tokenize_once:
            if not isinstance(self.data_collator, BaseDataCollator):
                raise ValueError("tokenize_once needs a data collator of ST's kind: leave data_collator out")
            tokenizing = whole_texts(self.data_collator) if views else self.data_collator
            self.train_dataset = tokenize(self.train_dataset, self.model, tokenizing)
            self.data_collator = token_collator(self.model, self.data_collator)
        if views is not None:
            self._make_views(views)
        if self.model_init is not None:
            self._check_trials_are_independent()
            self._make_losses_anew(self.model)
        self.add_callback(LossSynchronizer(self._loss_parameters))

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
        return UnsupSimCSELoss(model) if len(dataset.column_names) == 1 else SupSimCSELoss(model)

    def prepare_loss(self, loss: Any, model: SentenceTransformer) -> torch.nn.Module:
        loss = super().prepare_loss(loss, model)
        check_wrappers(loss, compiled_in_processes=self.args.torch_compile and self.args.world_size > 1)
        if getattr(self.args, "views", None) is not None:
            for part in loss.modules():
                refuse(part.options if isinstance(part, SimCSELoss) else [], "views", "views")
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
        with torch.random.fork_rng([self.args.device] if self.args.device.type == "cuda" else []):
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

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        with averaged_gradients(self._loss_parameters(), now=self.accelerator.sync_gradients):
            return super().training_step(*args, **kwargs)

    # These two are transformers', which has no public place for it: max_grad_norm is of the head's gradients too, and
    # so is the grad_norm that is logged.
    def _clip_grad_norm(self, model: torch.nn.Module) -> torch.Tensor:
        return super()._clip_grad_norm(torch.nn.ModuleList([model, *self._losses().values()]))

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        return super()._get_grad_norm(torch.nn.ModuleList([model, *self._losses().values()]), grad_norm)
