"""ST's trainer with the loss's own weights in its checkpoints, and training arguments with SimCSE's defaults."""

from __future__ import annotations

import dataclasses
import logging
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar, Literal

import torch
from accelerate.utils import load_fsdp_model
from datasets import Dataset, IterableDataset
from safetensors.torch import load_file, save_file
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.base.data_collator import BaseDataCollator
from sentence_transformers.base.sampler import DefaultBatchSampler
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import BatchSampler, ConcatDataset
from transformers import TrainerCallback, TrainerControl
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import (
    ADAPTER_CONFIG_NAME,
    ADAPTER_SAFE_WEIGHTS_NAME,
    CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
)

from st_simcse.batching import LengthGroupedBatchSampler, token_collator, tokenize
from st_simcse.distributed import EvenBatchSampler, LossSynchronizer, RoundSampler, any_process, averaged_gradients
from st_simcse.embedding import chunked_outputs
from st_simcse.lora import adapters, restore_adapter
from st_simcse.losses import SimCSELoss, SupSimCSELoss, UnsupSimCSELoss, check_wrappers
from st_simcse.losses.options import refuse
from st_simcse.model_card import ModelCardCallback
from st_simcse.own_weights import own_parameters, own_weights
from st_simcse.prompts import check_prompts
from st_simcse.resume import RECORD_NAME, check_resumable, describe_run, write_record
from st_simcse.run_folder import (
    UNFINISHED,
    check_writable,
    checkpoint_folders,
    last_complete_checkpoint,
    publish,
    rotate,
    sole_run,
    step_of,
)
from st_simcse.sharding import WholeWeights, check_shardable, filled, skeleton
from st_simcse.views import ViewCallback, view_collator, whole_texts

__all__ = ["SimCSETrainer", "SimCSETrainingArguments"]

logger = logging.getLogger(__name__)

LOSS_WEIGHTS_NAME = "loss.safetensors"
# What transformers takes for a model, and for an adapter.
MODEL_FILES = (CONFIG_NAME, SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)
ADAPTER_FILES = (ADAPTER_CONFIG_NAME, ADAPTER_SAFE_WEIGHTS_NAME)


@dataclass
class SimCSETrainingArguments(SentenceTransformerTrainingArguments):
    """ST's training arguments with the paper's values as defaults, and bf16 where the hardware computes in it.

    Args:
        bf16: None turns mixed precision on where it is fast (Ampere and later GPUs, CPUs with AVX512-bf16 or AMX), and
            says so; False keeps float32.
        save_total_limit: so many checkpoints are kept, the last and the best among them; 0 or None keeps all.
        max_length: training sees so many tokens of a text, 32 as in the authors' scripts; None as many as the model
            reads. The model itself goes on reading what it did, in evaluation and once it is saved. ST's own trainer
            heeds it too.
        views: how the two views of one column of texts differ besides dropout, made afresh in every epoch: ``crops``,
            ``word_repetition`` or ``token_cutoff``, or an object such as :class:`~st_simcse.Crops` with other settings.
        tokenize_once: prepare the token ids before training instead of in every epoch.
        group_by_length: make batches with :class:`~st_simcse.batching.LengthGroupedBatchSampler`.
        texts_in_model_card: let the README of the saved model show texts of the training data, as ST's does.
        resume_with_changes: resume also where data, objective or settings are others than the checkpoint's.

    Example:
        >>> SimCSETrainingArguments(bf16=False, tokenize_once=True).learning_rate
        3e-05
    """

    _argument_group_name: ClassVar[str] = "training"  # where HfArgumentParser lists them

    output_dir: str | None = field(default="output", metadata={"help": "Where the model and checkpoints go."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Passes over the training data."})
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Rows a batch and device."})
    learning_rate: float = field(default=3e-5, metadata={"help": "Peak learning rate."})
    save_total_limit: int | None = field(
        default=2, metadata={"help": "Checkpoints to keep: the last, and where one is told the best. 0: all."}
    )
    max_length: int | None = field(
        default=32,
        metadata={
            "help": "Tokens of a text that training sees; those that the model reads are not changed.",
            "aliases": ["--max_seq_length", "--max-seq-length"],
        },
    )
    # nargs and const let the command line say `--bf16`, as it does for ST's arguments.
    bf16: bool | None = field(
        default=None,
        metadata={"help": "Mixed precision; by default where it is fast. False: off.", "nargs": "?", "const": True},
    )
    views: Literal["crops", "word_repetition", "token_cutoff"] | None = field(
        default=None, metadata={"help": "How the two views of a text differ besides dropout; crops are for paragraphs."}
    )
    tokenize_once: bool = field(default=False, metadata={"help": "Tokenize before training, not in every epoch."})
    group_by_length: bool = field(default=False, metadata={"help": "Make batches of texts of like length."})
    texts_in_model_card: bool = field(
        default=False, metadata={"help": "The saved model's README shows some texts of the training data."}
    )
    resume_with_changes: bool = field(
        default=False, metadata={"help": "Resume although data, objective or settings are others than before."}
    )

    def __post_init__(self) -> None:
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        if self.bf16 is None:
            self.bf16 = not self.fp16 and computes_in_bf16(self.use_cpu)
            if self.bf16:
                logger.warning("Training in bf16, which is fast here; bf16=False (--bf16 false) keeps float32")
        elif self.bf16 and self.use_cpu and not computes_in_bf16(use_cpu=True):
            logger.warning("This CPU has to emulate bf16, many times slower than float32: bf16=False (--bf16 false)")
        if self.group_by_length:
            self.batch_sampler = LengthGroupedBatchSampler
        # In several processes ST drops the last batches, which need not be equal; SimCSETrainer deals them out evenly.
        self.drops_last_batches = self.dataloader_drop_last
        super().__post_init__()

    def to_dict(self) -> dict[str, Any]:
        values: dict[str, Any] = super().to_dict()
        return values | {"views": repr(self.views)} if dataclasses.is_dataclass(self.views) else values


def computes_in_bf16(use_cpu: bool) -> bool:
    """Whether the device multiplies matrices in bf16 faster than in float32."""
    if not use_cpu and torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return use_cpu and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _check_dealing(args: SentenceTransformerTrainingArguments, train_dataset: Any) -> None:
    """Whether several processes get their batches by the trainer's own rules; streams by accelerate's."""
    config = args.accelerator_config
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
    columns = [
        getattr(data, "column_names", None)
        for data in (*single, *(inner for data in several for inner in data.values()))
    ]
    if None in columns:
        return []
    return list(dict.fromkeys(name for names in (*several, *columns) for name in names))


@contextmanager
def _naming_damage(checkpoint: str | None, part: str = "", *misfits: type[Exception]) -> Iterator[None]:
    """Errors of loading, of which ``misfits`` come from another ``part``, say which checkpoint and what to do."""
    try:
        yield
    except misfits as error:
        raise ValueError(f"{checkpoint} is of another {part}, whose state does not fit this one ({error})") from error
    except Exception as error:
        raise ValueError(
            f"{checkpoint} cannot be read and is probably damaged ({error}): resume from an earlier checkpoint"
        ) from error


def limit_training_length(args: SentenceTransformerTrainingArguments, model: SentenceTransformer) -> None:
    """Say what ``max_length`` cuts off; lower it to what the model reads.

    Raises:
        ValueError: for a length below 1.
    """
    length, reads = getattr(args, "max_length", None), model.max_seq_length
    if isinstance(length, int) and length < 1:
        raise ValueError(f"max_length (--max_seq_length) must be at least 1, got {length}")
    if not isinstance(length, int) or not isinstance(reads, int) or length == reads:
        return
    if length < reads:
        logger.warning(
            "Training sees the first %d tokens of a text, the model reads %d: max_length (--max_seq_length) is for "
            "longer texts",
            length,
            reads,
        )
    else:
        logger.warning("max_length is %d instead of %d: the model reads no more", reads, length)
        args.max_length = reads


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
        texts += model.tokenizer.batch_decode(rows, skip_special_tokens=True)
    return list(dict.fromkeys(texts))


class StopOnSignal(TrainerCallback):
    """SIGTERM and Ctrl-C end the training after the step that is under way, with a checkpoint, instead of at once.

    It listens as a context manager; a second Ctrl-C is a KeyboardInterrupt. Unlike the just-in-time checkpoint of
    transformers it never falls between a step's backward pass and its update, so the resumed run is the same as an
    undisturbed one.
    """

    def __init__(self) -> None:
        self.requested = self.has_stopped = False

    def __enter__(self) -> StopOnSignal:
        self.previous = {number: signal.signal(number, self._request) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        if any_process(self.requested):
            control.should_save = control.should_training_stop = self.has_stopped = True

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True


class SimCSETrainer(SentenceTransformerTrainer):
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
        self._untokenized = train_dataset if tokenize_once else None
        self._unfinished: str | None = None  # where a checkpoint is being written
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

    @property
    def _fsdp(self) -> Any:
        return getattr(self.accelerator.state, "fsdp_plugin", None)

    def get_data_collator(
        self, model: SentenceTransformer, args: SentenceTransformerTrainingArguments, *others: Any, **options: Any
    ) -> BaseDataCollator:
        limit_training_length(args, model)
        return super().get_data_collator(model, args, *others, **options)

    def call_model_init(self, trial: Any = None) -> SentenceTransformer:
        model = super().call_model_init(trial)
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
    ) -> DefaultBatchSampler | None:
        kwargs.setdefault("seed", self.args.seed)  # as ST's trainer passes it since 6.2
        processes = self.args.world_size
        if processes == 1:
            return super().get_batch_sampler(dataset, batch_size, drop_last, **kwargs)
        drop_last = getattr(self.args, "drops_last_batches", drop_last)
        batches = super().get_batch_sampler(dataset, batch_size, drop_last, **kwargs)
        return None if batches is None else EvenBatchSampler(RoundSampler(batches, processes), processes)

    def get_multi_dataset_batch_sampler(
        self, dataset: ConcatDataset, batch_samplers: list[Any], **kwargs: Any
    ) -> BatchSampler:
        processes = self.args.world_size
        if processes == 1:
            return super().get_multi_dataset_batch_sampler(dataset, batch_samplers, **kwargs)
        rounds = [sampler.rounds for sampler in batch_samplers]
        # Of rounds, so that all processes draw the same dataset in a step.
        return EvenBatchSampler(super().get_multi_dataset_batch_sampler(dataset, rounds, **kwargs), processes)

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

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer(model)
        if self._fsdp:
            if not isinstance(self.model, FSDPModule):
                self._skeleton = skeleton(self.model)
            self._whole_weights = WholeWeights(self._loss_parameters())
            self._whole_weights.take_out(optimizer)
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if self._fsdp:  # accelerate has sharded the model since create_optimizer
            assert self.optimizer is not None
            self._whole_weights.put_back(self.optimizer)
        return super().create_scheduler(num_training_steps, optimizer)

    # An underscored method with a comment above it is transformers', which has no public place for what that says.

    # max_grad_norm is of the head's gradients too, and so is the grad_norm that is logged.
    def _clip_grad_norm(self, model: torch.nn.Module) -> torch.Tensor:
        return super()._clip_grad_norm(torch.nn.ModuleList([model, *self._losses().values()]))

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        return super()._get_grad_norm(torch.nn.ModuleList([model, *self._losses().values()]), grad_norm)

    def train(self, resume_from_checkpoint: str | bool | None = None, trial: Any = None, **kwargs: Any) -> Any:
        """As the plain trainer does; ``resume_from_checkpoint=True`` takes the last checkpoint that is complete.

        Raises:
            FileNotFoundError: if the checkpoint to resume from is not there.
            OSError: if a checkpoint cannot be saved, or another run is writing to the folder.
            ValueError: if the checkpoint to resume from is damaged, not complete, beyond the last step, or of a run
                with other data, objective or settings; with ``resume_with_changes`` in the training arguments only if
                its model is another one, or its optimizer. If none is complete.
        """
        folder = self._get_output_dir(trial=trial)
        with sole_run(folder, self.args.should_save):
            data = self.train_dataset if self._untokenized is None else self._untokenized
            self._run = describe_run(self.args, self.model, self._losses(), data)
            if self._fsdp or self.is_deepspeed_enabled:  # their optimizers' states are files of other kinds
                self._run["arguments"]["sharding"] = self.accelerator.distributed_type.value
            if resume_from_checkpoint is True:
                resume_from_checkpoint = last_complete_checkpoint(folder)
            if resume_from_checkpoint:
                check_resumable(resume_from_checkpoint, self._run, self._resumes_with_changes())
            return super().train(resume_from_checkpoint, trial, **kwargs)

    def _resumes_with_changes(self) -> bool:
        return getattr(self.args, "resume_with_changes", False)

    # A checkpoint is written beside its name, and has it when all is there.
    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial=trial) if self._unfinished is None else self._unfinished

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """As the plain trainer's, but a checkpoint has its name only when all of it is there."""
        folder = Path(self._get_output_dir(trial=trial))
        path = folder / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        written = folder / UNFINISHED / path.name
        self._unfinished = str(written.parent)
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.state.best_model_checkpoint == str(written):
                self.state.best_model_checkpoint = str(path)
            if self.args.should_save:
                self.state.save_to_json(str(written / TRAINER_STATE_NAME))
                write_record(written, self._run)
                publish(written)
        except Exception as error:
            shutil.rmtree(written.parent, ignore_errors=True)
            raise OSError(
                f"could not save {path}: {error}. {self._room(folder, is_checkpoint=True)} What there was of it has "
                "been removed; earlier checkpoints are as they were, and training can resume from them once there is "
                "room to write"
            ) from error
        finally:
            self._unfinished = None
        if self.args.should_save:
            rotate(path, self.state.best_model_checkpoint, self.args.save_total_limit)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(path))

    # Nor is it pushed before.
    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._unfinished is None:
            super()._push_from_checkpoint(checkpoint_folder)

    def _room(self, folder: Path, is_checkpoint: bool) -> str:
        """What a checkpoint takes, or the model alone, and what is free."""
        frozen = {name for name, weight in self.model.named_parameters() if not weight.requires_grad}
        left_out = frozen if adapters(self.model) else set()
        tensors = [tensor for name, tensor in self.model.state_dict().items() if name not in left_out]
        if is_checkpoint:
            tensors += self._loss_weights().values()
            for state in self.optimizer.state.values() if self.optimizer is not None else ():
                tensors += [value for value in state.values() if isinstance(value, torch.Tensor)]
        needed = sum(tensor.nbytes for tensor in tensors) / 1e6
        return f"It takes about {needed:.1f} MB, and {shutil.disk_usage(folder).free / 1e6:.1f} MB are free."

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As the plain trainer's; what was in the folder is replaced when all of the model is written.

        Raises:
            OSError: if it cannot be saved; says which checkpoint has the weights, or else where they were saved.
        """
        super().save_model(output_dir, _internal_call)
        if _internal_call and output_dir is not None:  # a checkpoint, not the model that leaves here
            self._save_loss_weights(Path(output_dir))

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        # transformers leaves it to this method that only the main process writes, and ST's lets all of them.
        if not self.args.should_save:
            return
        if self._unfinished is not None:
            self._save_whole(output_dir, state_dict)
            return
        folder = Path(output_dir or str(self.args.output_dir))
        written = folder / UNFINISHED
        if adapters(self.model) and getattr(self.model.transformers_model.config, "is_causal", True) is False:
            logger.warning(
                "The adapter that goes to %s does not say that attention is bidirectional: load it with "
                "build_model(..., bidirectional=True), or save merge_lora(model) instead",
                folder,
            )
        try:
            self._save_whole(str(written), state_dict)
            # Of an adapter and whole weights in one folder transformers would load both.
            for name in MODEL_FILES if (written / ADAPTER_CONFIG_NAME).exists() else ADAPTER_FILES:
                (folder / name).unlink(missing_ok=True)
            for path in written.iterdir():
                if path.is_dir():
                    shutil.rmtree(folder / path.name, ignore_errors=True)
                path.replace(folder / path.name)
        except Exception as error:
            shutil.rmtree(written, ignore_errors=True)
            message = f"could not save the model to {folder}: {error}. {self._room(folder, is_checkpoint=False)}"
            raise OSError(f"{message} {self._save_elsewhere(state_dict)}") from error
        shutil.rmtree(written, ignore_errors=True)

    def _save_whole(self, folder: str | None, weights: dict[str, Any] | None) -> None:
        if not weights or not isinstance(self.model, FSDPModule):
            super()._save(folder, weights)
            return
        # ST saves what the model itself holds, and embeds a text for the model's card, in the main process alone.
        sharded, card = self.model, self.model.model_card_data
        self.model = filled(self._skeleton, weights)
        card.register_model(self.model)
        try:
            super()._save(folder, weights)
        finally:
            self.model = sharded
            card.register_model(sharded)

    def _save_elsewhere(self, state_dict: dict[str, Any] | None) -> str:
        """Where the weights of now are, so that training is not lost for want of room."""
        best = self.state.best_model_checkpoint if self.args.load_best_model_at_end else None
        saved = [
            str(path)
            for path in checkpoint_folders(str(self.args.output_dir))
            if step_of(path) == self.state.global_step
        ]
        if path := best or next(iter(saved), None):
            return f"No weights are lost: {path} is complete and has them"
        elsewhere = tempfile.mkdtemp(prefix="st_simcse-")
        try:
            self._save_whole(elsewhere, state_dict)
        except Exception as error:
            shutil.rmtree(elsewhere, ignore_errors=True)
            return f"No checkpoint has these weights, and {elsewhere} did not take them either ({error})"
        return f"No checkpoint has these weights, so they were saved to {elsewhere}"

    def _save_loss_weights(self, folder: Path) -> None:
        weights = {name: tensor.detach() for name, tensor in self._loss_weights().items()}
        if weights and self.args.should_save:
            save_file(weights, folder / LOSS_WEIGHTS_NAME)
        if (buffers := self._loss_buffers()) and self.args.process_index > 0:
            folder.mkdir(parents=True, exist_ok=True)
            save_file(buffers, folder / self._own_buffers_name())
        # No checkpoint counts as complete before all have written.
        self.accelerator.wait_for_everyone()

    # The loss's weights and the record of the run are for resuming alone.
    def _checkpoint_push_skip_names(self, checkpoint_folder: str) -> set[str]:
        own = {path.name for path in Path(checkpoint_folder).glob(f"{Path(LOSS_WEIGHTS_NAME).stem}*.safetensors")}
        return super()._checkpoint_push_skip_names(checkpoint_folder) | own | {RECORD_NAME}

    # Accelerate saves and loads the states of the model's weights alone where these are sharded.
    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        assert self.optimizer is not None
        folder = output_dir if self.args.should_save else None
        with self._whole_weights.saving(self.optimizer, self.model, folder) if self._fsdp else nullcontext():
            super()._save_optimizer_and_scheduler(output_dir)

    # Resuming restores the loss's weights with the model's, and says which file is damaged.
    def _load_from_checkpoint(self, checkpoint_path: str, model: Any = None) -> None:
        weights = self._loss_weights()
        files = [Path(checkpoint_path, LOSS_WEIGHTS_NAME)] if weights else []
        if self._loss_buffers() and self.args.process_index > 0:
            files.append(Path(checkpoint_path, self._own_buffers_name()))
        for path in files:
            if not path.exists():
                raise FileNotFoundError(
                    f"{path} is missing: the loss has weights of its own, but the checkpoint was saved without them, "
                    "or by fewer processes. Train with SimCSETrainer from the start, resume with as many processes, or "
                    "drop resume_from_checkpoint and load the checkpoint as a model"
                )
        with _naming_damage(checkpoint_path, "model", RuntimeError):
            if self._fsdp:
                load_fsdp_model(self._fsdp, self.accelerator, self.model, checkpoint_path)
            else:
                super()._load_from_checkpoint(checkpoint_path)
                if adapters(self.model):
                    restore_adapter(self.model, Path(checkpoint_path, ADAPTER_SAFE_WEIGHTS_NAME))
        with _naming_damage(checkpoint_path, "loss", RuntimeError, KeyError), torch.no_grad():
            for path in files:
                for name, saved in load_file(path).items():
                    weights[name].copy_(saved)

    # Another optimizer's state, or another length of training, would go unnoticed.
    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if self.state.global_step > self.state.max_steps:
            raise ValueError(
                f"{checkpoint} is of step {self.state.global_step}, beyond the {self.state.max_steps} that this run "
                "takes: resume from an earlier one, or raise max_steps or num_train_epochs"
            )
        assert self.optimizer is not None
        settings = [{name: group[name] for name in group if name != "params"} for group in self.optimizer.param_groups]
        is_sharded = self._fsdp and checkpoint is not None
        with (
            _naming_damage(checkpoint, "optimizer", ValueError),
            self._whole_weights.loading(self.optimizer, self.model, str(checkpoint)) if is_sharded else nullcontext(),
        ):
            super()._load_optimizer_and_scheduler(checkpoint)
        if any(set(new) - set(group) for new, group in zip(settings, self.optimizer.param_groups, strict=True)):
            raise ValueError(
                f"{checkpoint} is of another optimizer than {self.args.optim}, whose state does not fit this one"
            )
        if checkpoint is not None and self._resumes_with_changes():
            self._take_over(settings)

    def _take_over(self, settings: list[dict[str, Any]]) -> None:
        """Learning rate, weight decay and the like of this run, where the loaded optimizer has the earlier run's."""
        assert self.optimizer is not None
        assert self.lr_scheduler is not None
        for new, group in zip(settings, self.optimizer.param_groups, strict=True):
            share = group["lr"] / group["initial_lr"] if group.get("initial_lr") else 1.0
            group.update(new, lr=share * new.get("initial_lr", new["lr"]))
        if hasattr(self.lr_scheduler, "base_lrs"):
            self.lr_scheduler.base_lrs = [new["initial_lr"] for new in settings]

    # A damaged file is named here too.
    def _load_rng_state(self, checkpoint: str | None) -> None:
        with _naming_damage(checkpoint):
            super()._load_rng_state(checkpoint)

    def _loss_weights(self) -> dict[str, torch.Tensor]:
        return {
            f"{dataset}.{name}".lstrip("."): tensor
            for dataset, loss in self._losses().items()
            for name, tensor in own_weights(loss, self.model).items()
        }

    def _loss_buffers(self) -> dict[str, torch.Tensor]:
        """What every process has its own of, such as the queue of its rows."""
        weights = self._loss_weights().items()
        return {name: weight for name, weight in weights if not isinstance(weight, torch.nn.Parameter)}

    def _own_buffers_name(self) -> str:
        return LOSS_WEIGHTS_NAME.replace(".", f"_{self.args.process_index}.")

    def _loss_parameters(self) -> list[torch.nn.Parameter]:
        return [weight for loss in self._losses().values() for weight in own_parameters(loss, self.model)]

    def _losses(self) -> dict[str, torch.nn.Module]:
        return self.loss if isinstance(self.loss, dict) else {"": self.loss}
