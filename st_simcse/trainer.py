"""ST's trainer with the loss's own weights in its checkpoints, and training arguments with SimCSE's defaults."""

from __future__ import annotations

import logging
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.base.sampler import DefaultBatchSampler
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from st_simcse.batching import LengthGroupedBatchSampler, TokenCollator, tokenize
from st_simcse.distributed import EvenBatchSampler, LossSynchronizer, any_process
from st_simcse.losses import check_wrappers

__all__ = ["SimCSETrainer", "SimCSETrainingArguments"]

logger = logging.getLogger(__name__)

LOSS_WEIGHTS_NAME = "loss.safetensors"


@dataclass
class SimCSETrainingArguments(SentenceTransformerTrainingArguments):
    """ST's training arguments with the paper's values as defaults, and bf16 where the hardware computes in it.

    Args:
        bf16: None turns mixed precision on where it is fast (Ampere and later GPUs, CPUs with AVX512-bf16 or AMX), and
            says so; False keeps float32.
        tokenize_once: prepare the token ids before training instead of in every epoch.
        group_by_length: make batches with :class:`~st_simcse.batching.LengthGroupedBatchSampler`.

    Example:
        >>> SimCSETrainingArguments(bf16=False, tokenize_once=True).learning_rate
        3e-05
    """

    _argument_group_name: ClassVar[str] = "training"  # where HfArgumentParser lists them

    output_dir: str | None = field(default="output", metadata={"help": "Where the model and checkpoints go."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Passes over the training data."})
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Rows a batch and device."})
    learning_rate: float = field(default=3e-5, metadata={"help": "Peak learning rate."})
    # nargs and const let the command line say `--bf16`, as it does for ST's arguments.
    bf16: bool | None = field(
        default=None,
        metadata={"help": "Mixed precision; by default where it is fast. False: off.", "nargs": "?", "const": True},
    )
    tokenize_once: bool = field(default=False, metadata={"help": "Tokenize before training, not in every epoch."})
    group_by_length: bool = field(default=False, metadata={"help": "Make batches of texts of like length."})

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


def computes_in_bf16(use_cpu: bool) -> bool:
    """Whether the device multiplies matrices in bf16 faster than in float32."""
    if not use_cpu and torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return use_cpu and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def last_complete_checkpoint(folder: str | Path) -> str:
    """The newest checkpoint in a folder that was saved to its end; newer ones that were cut off are logged.

    Raises:
        ValueError: if there is none.
    """
    for path in sorted(checkpoints(folder), key=lambda path: int(path.name.split("-")[-1]), reverse=True):
        try:
            # What a checkpoint writes last.
            TrainerState.load_from_json(str(path / TRAINER_STATE_NAME))
        except (OSError, ValueError, TypeError):
            logger.warning("%s was cut off while it was saved: trying the one before it", path)
        else:
            return str(path)
    raise ValueError(f"{folder} has no complete checkpoint to resume from")


def checkpoints(folder: str | Path) -> list[Path]:
    """The checkpoints of a training run, complete or not, in no order.

    Example:
        >>> checkpoints(getfixture("tmp_path"))  # nothing has been saved there
        []
    """
    return [path for path in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.name.split("-")[-1].isdigit()]


def _check_writable(folder: str | Path) -> None:
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OSError(f"cannot write to the output folder {folder}: {error}") from error


@contextmanager
def _naming_damage(checkpoint: str | None) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise ValueError(
            f"{checkpoint} cannot be read and is probably damaged ({error}): resume from an earlier checkpoint"
        ) from error


class StopOnSigterm(TrainerCallback):
    """SIGTERM ends the training after the step that is under way, with a checkpoint, instead of at once.

    Unlike the just-in-time checkpoint of transformers it never falls between a step's backward pass and its update, so
    the resumed run is the same as an undisturbed one.
    """

    def __init__(self) -> None:
        self.requested = False

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.previous = signal.signal(signal.SIGTERM, self._request)

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        if any_process(self.requested):
            control.should_save = control.should_training_stop = True

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        signal.signal(signal.SIGTERM, self.previous)

    def _request(self, *args: Any) -> None:
        self.requested = True


class SimCSETrainer(SentenceTransformerTrainer):
    """SentenceTransformerTrainer that looks after the projection head, and after several processes.

    It saves the head with every checkpoint and resumes with it, keeps it equal in all processes, and deals the last
    batches of an epoch out evenly. A checkpoint of the plain trainer holds the model alone, since that is what
    inference needs: resumed from it, a projection head starts anew while the optimizer goes on with the old one's
    moments. With ``tokenize_once`` in its arguments it tokenizes the training data beforehand.

    Takes what SentenceTransformerTrainer takes.

    Raises:
        FileNotFoundError: on resuming with a head from a checkpoint that has none.
        OSError: at once, if nothing can be written to ``output_dir``.
        ValueError: for ``tokenize_once`` with data or a model that does not allow it, and for an option of a loss that
            does not go with the MatryoshkaLoss or AdaptiveLayerLoss around it.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        args: SentenceTransformerTrainingArguments | None = None,
        train_dataset: Any = None,
        **options: Any,
    ) -> None:
        if args is not None and args.output_dir:
            _check_writable(args.output_dir)
        if getattr(args, "tokenize_once", False):
            if not isinstance(train_dataset, Dataset):
                raise ValueError(f"tokenize_once needs a datasets.Dataset, got {type(train_dataset).__name__}")
            train_dataset = tokenize(train_dataset, model)
            options["data_collator"] = TokenCollator(model)
        super().__init__(model=model, args=args, train_dataset=train_dataset, **options)
        for loss in self._losses().values():
            check_wrappers(loss)
        self.add_callback(LossSynchronizer(self._losses().values()))

    def get_batch_sampler(
        self, dataset: Dataset, batch_size: int, drop_last: bool, **kwargs: Any
    ) -> DefaultBatchSampler | None:
        if self.args.world_size == 1:
            return super().get_batch_sampler(dataset, batch_size, drop_last, **kwargs)
        drop_last = getattr(self.args, "drops_last_batches", drop_last)
        batches = super().get_batch_sampler(dataset, batch_size, drop_last, **kwargs)
        return None if batches is None else EvenBatchSampler(batches, self.args.world_size)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """As the plain trainer does; ``resume_from_checkpoint=True`` takes the last checkpoint that is complete.

        Raises:
            OSError: if a checkpoint cannot be saved.
            ValueError: if the checkpoint to resume from is damaged, or none is complete.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_complete_checkpoint(self.args.output_dir)
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        try:
            super()._save_checkpoint(*args, **kwargs)
        except Exception as error:
            path = Path(self._get_output_dir(trial=None), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
            shutil.rmtree(path, ignore_errors=True)
            raise OSError(
                f"could not save {path}: {error}. What there was of it has been removed; earlier checkpoints are as "
                "they were, and training can resume from them once there is room to write"
            ) from error

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if weights := self._loss_weights():
            save_file(weights, Path(output_dir or self.args.output_dir, LOSS_WEIGHTS_NAME))

    def _load_from_checkpoint(self, checkpoint_path: str) -> None:
        weights = self._loss_weights()
        path = Path(checkpoint_path, LOSS_WEIGHTS_NAME)
        if weights and not path.exists():
            raise FileNotFoundError(
                f"{path} is missing: the loss has weights of its own, but the checkpoint was saved without them. Train "
                "with SimCSETrainer from the start, or drop resume_from_checkpoint and load the checkpoint as a model"
            )
        with _naming_damage(checkpoint_path), torch.no_grad():
            super()._load_from_checkpoint(checkpoint_path)
            for name, saved in load_file(path).items() if weights else ():
                weights[name].copy_(saved)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with _naming_damage(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with _naming_damage(checkpoint):
            super()._load_rng_state(checkpoint)

    def _loss_weights(self) -> dict[str, torch.Tensor]:
        """What belongs to the losses alone, by name; the model's weights, also those a loss shares, are not."""
        models = {id(tensor) for tensor in (*self.model.parameters(), *self.model.buffers())}
        return {
            f"{dataset}.{name}".lstrip("."): tensor.detach()
            for dataset, loss in self._losses().items()
            for name, tensor in (*loss.named_parameters(), *loss.named_buffers())
            if id(tensor) not in models
        }

    def _losses(self) -> dict[str, torch.nn.Module]:
        return self.loss if isinstance(self.loss, dict) else {"": self.loss}
