"""ST's trainer with the loss's own weights in its checkpoints, and training arguments with SimCSE's defaults."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)

from st_simcse.batching import LengthGroupedBatchSampler, TokenCollator, tokenize

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
            self.bf16 = not self.fp16 and _computes_in_bf16(self.use_cpu)
            if self.bf16:
                logger.warning(
                    "Training in bf16, which this hardware is fast at; bf16=False (--bf16 false) keeps float32"
                )
        if self.group_by_length:
            self.batch_sampler = LengthGroupedBatchSampler
        super().__post_init__()


def _computes_in_bf16(use_cpu: bool) -> bool:
    if not use_cpu and torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return use_cpu and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


class SimCSETrainer(SentenceTransformerTrainer):
    """SentenceTransformerTrainer that saves the projection head with every checkpoint and resumes with it.

    A checkpoint of the plain trainer holds the model alone, since that is what inference needs. Resumed from it, a
    projection head starts anew while the optimizer goes on with the old one's moments. Without a head both trainers
    do the same. With ``tokenize_once`` in its arguments it tokenizes the training data beforehand.

    Takes what SentenceTransformerTrainer takes.

    Raises:
        FileNotFoundError: on resuming with a head from a checkpoint that has none.
        ValueError: for ``tokenize_once`` with data or a model that does not allow it.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        args: SentenceTransformerTrainingArguments | None = None,
        train_dataset: Any = None,
        **options: Any,
    ) -> None:
        if getattr(args, "tokenize_once", False):
            if not isinstance(train_dataset, Dataset):
                raise ValueError(f"tokenize_once needs a datasets.Dataset, got {type(train_dataset).__name__}")
            train_dataset = tokenize(train_dataset, model)
            options["data_collator"] = TokenCollator(model)
        super().__init__(model=model, args=args, train_dataset=train_dataset, **options)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if weights := self._loss_weights():
            save_file(weights, Path(output_dir or self.args.output_dir, LOSS_WEIGHTS_NAME))

    def _load_from_checkpoint(self, checkpoint_path: str) -> None:
        super()._load_from_checkpoint(checkpoint_path)
        weights = self._loss_weights()
        if not weights:
            return
        path = Path(checkpoint_path, LOSS_WEIGHTS_NAME)
        if not path.exists():
            raise FileNotFoundError(
                f"{path} is missing: the loss has weights of its own, but the checkpoint was saved without them. Train "
                "with SimCSETrainer from the start, or drop resume_from_checkpoint and load the checkpoint as a model"
            )
        with torch.no_grad():
            for name, saved in load_file(path).items():
                weights[name].copy_(saved)

    def _loss_weights(self) -> dict[str, torch.Tensor]:
        losses = self.loss if isinstance(self.loss, dict) else {"": self.loss}
        return {
            f"{dataset}.{name}".lstrip("."): tensor.detach()
            for dataset, loss in losses.items()
            for name, tensor in loss.state_dict().items()
            if not name.startswith("model.")
        }
