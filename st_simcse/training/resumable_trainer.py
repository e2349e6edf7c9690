"""ST's trainer with checkpoints that are complete, so a resumed run equals one that was never interrupted."""

from __future__ import annotations

import logging
import math
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel, gather_object, load_fsdp_model
from datasets import IterableDataset
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.evaluation import BaseEvaluator
from torch.distributed.fsdp import FSDPModule
from transformers import TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import ADAPTER_CONFIG_NAME, ADAPTER_SAFE_WEIGHTS_NAME

from st_simcse.losses.own_weights import own_parameters, own_weights
from st_simcse.models.fast_encode import fast_encode
from st_simcse.models.lora import (
    adapters,
    check_adapter_is_whole,
    loaded_under_its_name,
    remove_outdated,
    restore_adapter,
)
from st_simcse.training.plain_trainer import PlainTrainer
from st_simcse.training.resume import RECORD_NAME, check_resumable, describe_run, stream_position, write_record
from st_simcse.training.run_folder import (
    UNFINISHED,
    checkpoint_folders,
    last_complete_checkpoint,
    publish,
    rotate,
    sole_run,
    step_of,
)
from st_simcse.training.sharding import UnshardedWeights, with_weights, without_weights
from st_simcse.training.trainable import check_model, check_optimizer

__all__ = ["ResumableTrainer", "to_evaluate"]

logger = logging.getLogger(__name__)

LOSS_WEIGHTS_NAME = "loss.safetensors"


@contextmanager
def _damage_is_named(checkpoint: str | None, part: str = "", *misfits: type[Exception]) -> Iterator[None]:
    """Adds the checkpoint and a remedy to errors that occur while a checkpoint is loaded.

    Errors of the types ``misfits`` mean that the checkpoint belongs to a different ``part``, such as the optimizer. All
    others mean that it is damaged.
    """
    try:
        yield
    except misfits as error:
        raise ValueError(
            f"{checkpoint} was saved with a different {part}, whose state does not fit this one ({error})"
        ) from error
    except Exception as error:
        raise ValueError(
            f"{checkpoint} cannot be read and is probably damaged ({error}). Resume from an earlier checkpoint."
        ) from error


def to_evaluate(model: SentenceTransformer, args: TrainingArguments) -> SentenceTransformer:
    """Returns the model made faster by :func:`~st_simcse.fast_encode`, in bf16 only if the training computes in bf16.

    Args:
        model: The model. If its weights are in half precision, it computes in their precision.
        args: The training arguments.
    """
    computes_in_float32 = model.dtype == torch.float32 and not args.bf16
    return fast_encode(model, "float32" if computes_in_float32 else "auto")


class _FastEvaluator(BaseEvaluator):
    """An evaluator that calls another one with a model that embeds faster."""

    def __init__(self, evaluator: BaseEvaluator, args: TrainingArguments) -> None:
        super().__init__()
        self.evaluator, self.args = evaluator, args

    def __call__(self, model: SentenceTransformer, *args: Any, **options: Any) -> float | dict[str, float]:
        return self.evaluator(to_evaluate(model, self.args), *args, **options)


class ResumableTrainer(PlainTrainer):
    """The part of SimCSETrainer that handles files. Its checkpoints are complete and include the loss's weights."""

    # The training data as the user passed it, if ``train_dataset`` is derived from it.
    _given_data: Any = None
    # The folder of a checkpoint that is being written.
    _unfinished: str | None = None
    # The checkpoint that training resumes from.
    _resumed_from: str | None = None

    @property
    def _fsdp(self) -> Any:
        return getattr(self.accelerator.state, "fsdp_plugin", None)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        check_model(self.model)
        optimizer = super().create_optimizer(model)
        check_optimizer(self.model, self._losses(), optimizer)
        if self._fsdp:
            if not isinstance(self.model, FSDPModule):
                self._without_weights = without_weights(self.model)
            self._unsharded_weights = UnshardedWeights(list(self._loss_parameters()))
            self._unsharded_weights.take_out(optimizer)
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if self._fsdp:  # accelerate has sharded the model since create_optimizer
            assert self.optimizer is not None
            self._unsharded_weights.put_back(self.optimizer)
        return super().create_scheduler(num_training_steps, optimizer)

    def train(self, resume_from_checkpoint: str | bool | None = None, trial: Any = None, **kwargs: Any) -> Any:
        """Trains the model like ST's trainer. ``resume_from_checkpoint=True`` uses the last complete checkpoint.

        Raises:
            FileNotFoundError: If the checkpoint to resume from does not exist.
            OSError: If a checkpoint cannot be saved, or if another run is writing to the folder.
            ValueError: If the checkpoint to resume from is damaged or incomplete, or if its step is beyond the last
                step. If its data, model, objective or settings differ; ``resume_with_changes`` in the training
                arguments turns this into a warning, unless its model or optimizer does not fit. If no checkpoint is
                complete. If the files of an adapter would not contain all trained weights.
        """
        folder = self._get_output_dir(trial=trial)
        with sole_run(folder, self.args.should_save):
            if resume_from_checkpoint is True:
                resume_from_checkpoint = last_complete_checkpoint(folder)
            self._resumed_from = resume_from_checkpoint or None
            if self.model is not None:  # each trial of a hyperparameter search makes its own model
                self._end_mixed_precision()
            try:
                return super().train(resume_from_checkpoint, trial, **kwargs)
            finally:
                self._end_mixed_precision()

    # Accelerate leaves its autocast around the forward pass, and does not wrap a model again that it has marked.
    def _end_mixed_precision(self) -> None:
        if not (self._fsdp or self.is_deepspeed_enabled):  # both keep the model as they wrapped it
            extract_model_from_parallel(self.model, keep_fp32_wrapper=False)
            vars(self.model).pop("_is_accelerate_prepared", None)
            self.model_wrapped = self.model

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluates the model as it will be saved, without accelerate's autocast around its forward pass.

        In a single process, the evaluator embeds with :func:`~st_simcse.fast_encode`. It computes in bf16 if the
        training does and the hardware is faster in bf16.
        """
        if self._fsdp or self.is_deepspeed_enabled:
            return super().evaluation_loop(*args, **kwargs)
        own, mixed = vars(self.model), self.accelerator.native_amp
        # The next training step needs accelerate's autocast around the forward pass again.
        autocast: dict[str, Any] = {name: own[name] for name in ("forward", "_original_forward") if name in own}
        extract_model_from_parallel(self.model, keep_fp32_wrapper=False)
        self.accelerator.native_amp = False
        evaluator = self.evaluator
        if evaluator is not None and self.accelerator.num_processes == 1:
            self.evaluator = _FastEvaluator(evaluator, self.args)
        try:
            return super().evaluation_loop(*args, **kwargs)
        finally:
            self.evaluator = evaluator
            self.accelerator.native_amp = mixed
            own.update(autocast)

    def _resumes_with_changes(self) -> bool:
        return getattr(self.args, "resume_with_changes", False)

    # The methods below whose names begin with an underscore and that have a comment above them override methods of
    # transformers, because it has no public place for what the comments describe.

    # At this point, the model exists, its configuration has the tokenizer's special tokens, and the trial of a search
    # has set its arguments. Nothing has been loaded from a checkpoint yet.
    def _hp_search_setup(self, trial: Any) -> None:
        super()._hp_search_setup(trial)
        check_adapter_is_whole(self.model)
        data = self.train_dataset if self._given_data is None else self._given_data
        self._run = describe_run(self.args, self.model, self._losses(), data)
        if self._fsdp or self.is_deepspeed_enabled:  # they save the optimizer's state in a different format
            self._run["arguments"]["sharding"] = self.accelerator.distributed_type.value
        if self._resumed_from:
            check_resumable(self._resumed_from, self._run, self._resumes_with_changes())

    # Transformers treats a stream as one pass of max_steps steps and would skip from its beginning all rows that were
    # read.
    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: str | None,
        trial: Any,
    ) -> tuple[int, int]:
        begin: tuple[int, int] = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        if resume_from_checkpoint is None or not self._reads_a_stream():
            return begin
        if self.state.global_step >= max_steps:
            return num_train_epochs, 0
        passes, batches = stream_position(resume_from_checkpoint, self.args.process_index)
        return passes, 0 if self.args.ignore_data_skip else batches

    def _reads_a_stream(self) -> bool:
        return isinstance(self.train_dataset, IterableDataset)

    def _position(self) -> tuple[int, int]:
        """Returns this process's completed passes over the stream and the batches it has read of the next pass."""
        epoch = self.state.epoch or 0.0  # each batch adds 1 / (the number of batches in max_steps steps)
        passes = max(0, math.ceil(epoch) - 1)
        return passes, round((epoch - passes) * self.state.max_steps * self.args.gradient_accumulation_steps)

    # A checkpoint is written to a temporary folder and renamed once it is complete.
    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial=trial) if self._unfinished is None else self._unfinished

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Saves a checkpoint like ST's trainer, but gives it its name only once it is complete."""
        folder = Path(self._get_output_dir(trial=trial))
        path = folder / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        written = folder / UNFINISHED / path.name
        best = folder / f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
        if best.is_dir():  # transformers looks for it in another folder, or remembers where it was before it was moved
            self.state.best_model_checkpoint = str(best)
        self._unfinished = str(written.parent)
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            positions = gather_object([self._position()]) if self._reads_a_stream() else None
            if self.state.best_model_checkpoint == str(written):
                self.state.best_model_checkpoint = str(path)
            if self.args.should_save:
                self.state.save_to_json(str(written / TRAINER_STATE_NAME))
                write_record(written, self._run, positions)
                publish(written)
        except Exception as error:
            shutil.rmtree(written.parent, ignore_errors=True)
            raise OSError(
                f"Could not save {path}: {error}. {self._space_needed(folder, is_checkpoint=True)} The incomplete "
                "checkpoint has been removed, and earlier checkpoints are unchanged. Free disk space and resume "
                "training from the last checkpoint."
            ) from error
        finally:
            self._unfinished = None
        if self.args.should_save:
            rotate(path, self.state.best_model_checkpoint, self.args.save_total_limit)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(path))

    # A checkpoint is not pushed before it is complete.
    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._unfinished is None:
            super()._push_from_checkpoint(checkpoint_folder)

    def _space_needed(self, folder: Path, is_checkpoint: bool) -> str:
        """Returns a sentence on the disk space that a checkpoint, or only the model, needs and on the free space."""
        frozen = {name for name, weight in self.model.named_parameters() if not weight.requires_grad}
        left_out = frozen if adapters(self.model) else set()
        tensors = [tensor for name, tensor in self.model.state_dict().items() if name not in left_out]
        if is_checkpoint:
            tensors += self._loss_weights().values()
            for state in self.optimizer.state.values() if self.optimizer is not None else ():
                tensors += [value for value in state.values() if isinstance(value, torch.Tensor)]
        needed = sum(tensor.nbytes for tensor in tensors) / 1e6
        return f"It needs about {needed:.1f} MB, and {shutil.disk_usage(folder).free / 1e6:.1f} MB are free."

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the model like ST's trainer, and replaces earlier files only once all new files are written.

        Raises:
            OSError: If the model cannot be saved. The message names a checkpoint that has the weights, or the folder
                that they were saved to instead.
        """
        super().save_model(output_dir, _internal_call)
        if _internal_call and output_dir is not None:  # a checkpoint, not the final model
            self._save_loss_weights(Path(output_dir))

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        # transformers expects this method to write in the main process only, but ST's method writes in all of them.
        if not self.args.should_save:
            return
        if self._unfinished is not None:
            self._save_whole(output_dir, state_dict)
            return
        if not self._fsdp:  # its weights are sharded by now, and train() has made this check before
            check_adapter_is_whole(self.model)
        folder = Path(output_dir or str(self.args.output_dir))
        written = folder / UNFINISHED
        config = getattr(self.model.transformers_model, "config", None)
        if adapters(self.model) and getattr(config, "is_causal", True) is False:
            logger.warning(
                "The adapter saved to %s does not record that attention is bidirectional. Load it with "
                "build_model(..., bidirectional=True), or save merge_lora(model) instead.",
                folder,
            )
        try:
            self._save_whole(str(written), state_dict)
            remove_outdated(folder, is_adapter=(written / ADAPTER_CONFIG_NAME).exists())
            for path in written.iterdir():
                if path.is_dir():
                    shutil.rmtree(folder / path.name, ignore_errors=True)
                path.replace(folder / path.name)
        except Exception as error:
            shutil.rmtree(written, ignore_errors=True)
            message = (
                f"Could not save the model to {folder}: {error}. {self._space_needed(folder, is_checkpoint=False)}"
            )
            raise OSError(f"{message} {self._save_elsewhere(state_dict)}") from error
        shutil.rmtree(written, ignore_errors=True)

    def _save_whole(self, folder: str | None, weights: dict[str, Any] | None) -> None:
        if not weights or not isinstance(self.model, FSDPModule):
            super()._save(folder, weights)
            return
        # ST saves the weights that the model itself holds and embeds a text for the card, only in the main process.
        sharded, card = self.model, self.model.model_card_data
        self.model = with_weights(self._without_weights, weights)
        card.register_model(self.model)
        try:
            super()._save(folder, weights)
        finally:
            self.model = sharded
            card.register_model(sharded)

    def _save_elsewhere(self, state_dict: dict[str, Any] | None) -> str:
        """Saves the weights to a temporary folder unless a checkpoint has them, and returns a sentence that says where.

        This way, a full disk does not lose the training.
        """
        best = self.state.best_model_checkpoint if self.args.load_best_model_at_end else None
        saved = [
            str(path)
            for path in checkpoint_folders(str(self.args.output_dir))
            if step_of(path) == self.state.global_step
        ]
        if path := best or next(iter(saved), None):
            return f"No weights are lost: {path} is complete and has them."
        elsewhere = tempfile.mkdtemp(prefix="st_simcse-")
        try:
            self._save_whole(elsewhere, state_dict)
        except Exception as error:
            shutil.rmtree(elsewhere, ignore_errors=True)
            return f"No checkpoint has these weights, and they could not be saved to {elsewhere} either ({error})."
        return f"No checkpoint has these weights, so they were saved to {elsewhere}"

    def _save_loss_weights(self, folder: Path) -> None:
        weights = {name: tensor.detach() for name, tensor in self._loss_weights().items()}
        if weights and self.args.should_save:
            save_file(weights, folder / LOSS_WEIGHTS_NAME)
        if (buffers := self._loss_buffers()) and self.args.process_index > 0:
            folder.mkdir(parents=True, exist_ok=True)
            save_file(buffers, folder / self._own_buffers_name())
        # A checkpoint is only complete once all processes have written.
        self.accelerator.wait_for_everyone()

    # The weights of the loss and the record of the run are only needed for resuming.
    def _checkpoint_push_skip_names(self, checkpoint_folder: str) -> set[str]:
        own = {path.name for path in Path(checkpoint_folder).glob(f"{Path(LOSS_WEIGHTS_NAME).stem}*.safetensors")}
        return super()._checkpoint_push_skip_names(checkpoint_folder) | own | {RECORD_NAME}

    # If the model's weights are sharded, accelerate saves and loads only their optimizer state.
    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        assert self.optimizer is not None
        folder = output_dir if self.args.should_save else None
        with self._unsharded_weights.saving(self.optimizer, self.model, folder) if self._fsdp else nullcontext():
            super()._save_optimizer_and_scheduler(output_dir)

    # Also restores the weights of the loss, and names a damaged checkpoint.
    def _load_from_checkpoint(self, checkpoint_path: str, model: Any = None) -> None:
        weights = self._loss_weights()
        files = [Path(checkpoint_path, LOSS_WEIGHTS_NAME)] if weights else []
        if self._loss_buffers() and self.args.process_index > 0:
            files.append(Path(checkpoint_path, self._own_buffers_name()))
        for path in files:
            if not path.exists():
                raise FileNotFoundError(
                    f"{path} is missing. The loss has its own weights, but the checkpoint was saved without them or by "
                    "fewer processes. Train with SimCSETrainer from the start, resume with the same number of "
                    "processes, or leave out resume_from_checkpoint and load the checkpoint as a model."
                )
        with _damage_is_named(checkpoint_path, "model", RuntimeError):
            if self._fsdp:
                load_fsdp_model(self._fsdp, self.accelerator, self.model, checkpoint_path)
            else:
                with loaded_under_its_name(self.model):
                    super()._load_from_checkpoint(checkpoint_path)
                if adapters(self.model):
                    restore_adapter(self.model, Path(checkpoint_path, ADAPTER_SAFE_WEIGHTS_NAME))
        with _damage_is_named(checkpoint_path, "loss", RuntimeError, KeyError), torch.no_grad():
            for path in files:
                for name, saved in load_file(path).items():
                    weights[name].copy_(saved)

    # Transformers would not notice the state of a different optimizer, or a step beyond the end of training.
    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if self.state.global_step > self.state.max_steps:
            raise ValueError(
                f"{checkpoint} was saved at step {self.state.global_step}, but this run ends after step "
                f"{self.state.max_steps}. Resume from an earlier checkpoint, or raise max_steps or num_train_epochs."
            )
        assert self.optimizer is not None
        settings = [{name: group[name] for name in group if name != "params"} for group in self.optimizer.param_groups]
        is_sharded = self._fsdp and checkpoint is not None
        with (
            _damage_is_named(checkpoint, "optimizer", ValueError),
            self._unsharded_weights.loading(self.optimizer, self.model, str(checkpoint))
            if is_sharded
            else nullcontext(),
        ):
            super()._load_optimizer_and_scheduler(checkpoint)
        if any(set(new) - set(group) for new, group in zip(settings, self.optimizer.param_groups, strict=True)):
            raise ValueError(
                f"{checkpoint} was saved with a different optimizer than {self.args.optim}, whose state does not fit. "
                "Resume with the optimizer of that run."
            )
        if checkpoint is not None and self._resumes_with_changes():
            self._use_settings_of_this_run(settings)

    def _use_settings_of_this_run(self, settings: list[dict[str, Any]]) -> None:
        """Replaces the earlier run's learning rate, weight decay and so on in the loaded optimizer by this run's."""
        assert self.optimizer is not None
        assert self.lr_scheduler is not None
        for new, group in zip(settings, self.optimizer.param_groups, strict=True):
            share = group["lr"] / group["initial_lr"] if group.get("initial_lr") else 1.0
            group.update(new, lr=share * new.get("initial_lr", new["lr"]))
        if hasattr(self.lr_scheduler, "base_lrs"):
            self.lr_scheduler.base_lrs = [new["initial_lr"] for new in settings]

    # Also names a damaged checkpoint.
    def _load_rng_state(self, checkpoint: str | None) -> None:
        with _damage_is_named(checkpoint):
            super()._load_rng_state(checkpoint)

    def _loss_weights(self) -> dict[str, torch.Tensor]:
        weights: dict[int, tuple[str, torch.Tensor]] = {}
        for dataset, loss in self._losses().items():
            for name, tensor in own_weights(loss, self.model).items():
                # Several datasets may share a loss or a head, and a file holds each tensor once.
                weights.setdefault(id(tensor), (f"{dataset}.{name}".lstrip("."), tensor))
        return dict(weights.values())

    def _loss_buffers(self) -> dict[str, torch.Tensor]:
        """Returns the weights that differ between processes, such as the queue of a process's rows."""
        weights = self._loss_weights().items()
        return {name: weight for name, weight in weights if not isinstance(weight, torch.nn.Parameter)}

    def _own_buffers_name(self) -> str:
        return LOSS_WEIGHTS_NAME.replace(".", f"_{self.args.process_index}.")

    def _loss_parameters(self) -> Iterator[torch.nn.Parameter]:
        for loss in self._losses().values():
            yield from own_parameters(loss, self.model)

    def _losses(self) -> dict[str, torch.nn.Module]:
        return self.loss if isinstance(self.loss, dict) else {"": self.loss}
