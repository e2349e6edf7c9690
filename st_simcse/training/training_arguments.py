"""ST's training arguments with SimCSE's defaults, and what they mean on this device and for a model."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments

from st_simcse.data.batching import LengthGroupedBatchSampler
from st_simcse.data.views import VIEWS
from st_simcse.models.precision import computes_in_bf16

__all__ = ["SimCSETrainingArguments", "limit_training_length"]

logger = logging.getLogger(__name__)


@dataclass
class SimCSETrainingArguments(SentenceTransformerTrainingArguments):
    """ST's training arguments with the paper's values as defaults, and bf16 where the hardware computes in it.

    Args:
        bf16: None turns mixed precision on where it is fast (Ampere and later GPUs, CPUs with AVX512-bf16 or AMX), and
            says so; False keeps float32.
        per_device_eval_batch_size: rows of an evaluation's batch, which are the negatives of ``eval_loss``; None as
            many as in training, so that the two losses can be compared.
        save_total_limit: so many checkpoints are kept, the last and the best among them; 0 or None keeps all.
        max_length: training sees so many tokens of a text, 32 as in the authors' scripts; None as many as the model
            reads. The model itself goes on reading what it did, in evaluation and once it is saved. ST's own trainer
            heeds it too.
        views: how the two views of one column of texts differ besides dropout, made afresh in every epoch: ``crops``,
            ``word_repetition`` or ``token_cutoff``, or an object such as :class:`~st_simcse.Crops` with other settings.
        tokenize_once: prepare the token ids before training instead of in every epoch.
        group_by_length: make batches with :class:`~st_simcse.data.batching.LengthGroupedBatchSampler`.
        start_weight: the share of the weights from before training in those of the trained model (WiSE-FT, Wortsman et
            al., 2022), 0 to below 1: 0.5 keeps more of what a good model knows. Evaluations during the training
            measure the model without it.
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
    per_device_eval_batch_size: int | None = field(  # type: ignore[assignment]  # see eval_batch_size
        default=None, metadata={"help": "Rows an evaluation's batch and device; as in training when left out."}
    )
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
    bf16: bool | None = field(  # type: ignore[assignment]  # None until __post_init__
        default=None,
        metadata={"help": "Mixed precision; by default where it is fast. False: off.", "nargs": "?", "const": True},
    )
    views: str | None = field(
        default=None,
        metadata={
            "choices": [*VIEWS],
            "help": "How the two views of a text differ besides dropout; crops are for paragraphs.",
        },
    )
    tokenize_once: bool = field(default=False, metadata={"help": "Tokenize before training, not in every epoch."})
    group_by_length: bool = field(default=False, metadata={"help": "Make batches of texts of like length."})
    start_weight: float = field(
        default=0.0,
        metadata={"help": "Share of the weights from before training in the trained model's; 0.5 forgets less."},
    )
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
                logger.info("Training in bf16, which is fast here; bf16=False (--bf16 false) keeps float32")
        elif self.bf16 and self.use_cpu and not computes_in_bf16(use_cpu=True):
            logger.warning("This CPU has to emulate bf16, many times slower than float32: bf16=False (--bf16 false)")
        if self.use_cpu:
            self.dataloader_pin_memory = False  # for an accelerator alone; torch would warn
        if self.group_by_length:
            self.batch_sampler = LengthGroupedBatchSampler
        # In several processes ST drops the last batches, which need not be equal; SimCSETrainer deals them out evenly.
        self.drops_last_batches = self.dataloader_drop_last
        super().__post_init__()

    @property
    def eval_batch_size(self) -> int:
        """Rows of an evaluation's batch in this process."""
        return self.train_batch_size if self.per_device_eval_batch_size is None else super().eval_batch_size

    def to_dict(self) -> dict[str, Any]:
        values: dict[str, Any] = super().to_dict()
        return values | {"views": repr(self.views)} if dataclasses.is_dataclass(self.views) else values


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
        logger.info(
            "Training sees the first %d tokens of a text, the model reads %d: max_length (--max_seq_length) is for "
            "longer texts",
            length,
            reads,
        )
    else:
        logger.info("max_length is %d instead of %d: the model reads no more", reads, length)
        args.max_length = reads  # type: ignore[attr-defined]  # it has one, see above
