"""ST's training arguments with SimCSE's defaults, adapted to the device and the model."""

from __future__ import annotations

import dataclasses
import json
import logging
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments
from sentence_transformers.base.sampler import BatchSamplers

from st_simcse.data.batching import LengthGroupedBatchSampler
from st_simcse.data.views import VIEWS
from st_simcse.models.modeling import check_length
from st_simcse.models.precision import computes_in_bf16

__all__ = ["SimCSETrainingArguments", "limit_training_length"]

logger = logging.getLogger(__name__)


@dataclass
class SimCSETrainingArguments(SentenceTransformerTrainingArguments):
    """ST's training arguments with the paper's values as defaults, and with bf16 on hardware that supports it.

    Args:
        bf16: Whether to train in mixed precision with bf16. If None, bf16 is used on hardware where it is fast (GPUs
            from Ampere on, and CPUs with AVX512-bf16 or AMX), and a message is logged. If False, training uses float32.
        per_device_eval_batch_size: The number of rows in an evaluation batch, which are the negatives of ``eval_loss``.
            If None, it is the training batch size, so the training and evaluation losses can be compared.
        save_total_limit: The maximum number of checkpoints to keep, including the last and the best. 0, -1 and None
            keep all.
        max_length: The maximum number of tokens of a text during training. The default of 32 is from the authors'
            scripts. If None, training reads as many tokens as the model. The limit does not change the model itself,
            neither for evaluation nor when it is saved. SentenceTransformerTrainer also respects this argument.
        views: The difference between the two views of a text besides dropout: ``crops``, ``word_repetition`` or
            ``token_cutoff``, or an object such as :class:`~st_simcse.Crops` with your own settings. New views are
            created in every epoch. They need data with a single column of texts.
        tokenize_once: Whether to tokenize the training data before training instead of in every epoch.
        group_by_length: Whether to create batches with :class:`~st_simcse.data.batching.LengthGroupedBatchSampler`.
        start_weight: The share of the weights before training in the weights of the trained model, at least 0 and below
            1 (WiSE-FT, Wortsman et al., 2022). With 0.5, a good model forgets less. Evaluations during training measure
            the model before averaging.
        texts_in_model_card: Whether the README of the saved model shows texts of the training data, as ST's does.
        resume_with_changes: Whether to resume from a checkpoint if the data, objective or settings have changed.

    Raises:
        ValueError: If ``group_by_length`` is combined with another ``batch_sampler``, if a number of rows or steps is
            below 1, if a dictionary is not valid JSON, or if ``neftune_noise_alpha`` is passed.

    Example:
        >>> SimCSETrainingArguments(bf16=False, tokenize_once=True).learning_rate
        3e-05
    """

    _argument_group_name: ClassVar[str] = "training"  # the group for HfArgumentParser

    output_dir: str | None = field(default="output", metadata={"help": "Folder for the model and the checkpoints."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Number of passes over the training data."})
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Rows per batch and device."})
    per_device_eval_batch_size: int | None = field(  # type: ignore[assignment]  # see eval_batch_size
        default=None, metadata={"help": "Rows per evaluation batch and device. Default: as in training."}
    )
    learning_rate: float = field(default=3e-5, metadata={"help": "Peak learning rate."})
    save_total_limit: int | None = field(
        default=2,
        metadata={"help": "Maximum number of checkpoints to keep, including the last and the best. 0 keeps all."},
    )
    max_length: int | None = field(
        default=32,
        metadata={
            "help": "Maximum number of tokens of a text during training. The saved model keeps its own limit.",
            "aliases": ["--max_seq_length", "--max-seq-length"],
        },
    )
    # With nargs and const, `--bf16` works without a value, as for ST's arguments.
    bf16: bool | None = field(  # type: ignore[assignment]  # None until __post_init__
        default=None,
        metadata={
            "help": "Train in bf16 mixed precision. Default: on hardware where bf16 is fast. false: off.",
            "nargs": "?",
            "const": True,
        },
    )
    views: str | None = field(
        default=None,
        metadata={
            "choices": [*VIEWS],
            "help": "Difference between the two views of a text besides dropout. Use crops for paragraphs.",
        },
    )
    tokenize_once: bool = field(
        default=False, metadata={"help": "Tokenize once before training instead of in every epoch."}
    )
    group_by_length: bool = field(default=False, metadata={"help": "Put texts of similar length into the same batch."})
    start_weight: float = field(
        default=0.0,
        metadata={"help": "Share of the weights before training in the trained model. 0.5 forgets less."},
    )
    texts_in_model_card: bool = field(
        default=False, metadata={"help": "Show texts of the training data in the README of the saved model."}
    )
    resume_with_changes: bool = field(
        default=False, metadata={"help": "Resume even if the data, objective or settings have changed."}
    )

    def __post_init__(self) -> None:
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        if self.bf16 is None:
            self.bf16 = not self.fp16 and computes_in_bf16(self.use_cpu)
            if self.bf16:
                logger.info(
                    "Training in bf16, because it is fast on this hardware. Pass bf16=False (--bf16 false) to "
                    "train in float32."
                )
        elif self.bf16 and self.use_cpu and not computes_in_bf16(use_cpu=True):
            logger.warning(
                "This CPU emulates bf16, which is many times slower than float32. Pass bf16=False (--bf16 false)."
            )
        if self.use_cpu:
            self.dataloader_pin_memory = False  # only useful with an accelerator; torch would warn
        if self.group_by_length:
            if self.batch_sampler not in (BatchSamplers.BATCH_SAMPLER, LengthGroupedBatchSampler):
                raise ValueError(
                    f"group_by_length and batch_sampler={self.batch_sampler!r} both choose the texts of a batch. Pass "
                    "only one of them."
                )
            self.batch_sampler = LengthGroupedBatchSampler
        self._check()
        # With several processes, ST drops the last batches, whose sizes may differ. SimCSETrainer spreads them evenly.
        self.drops_last_batches = self.dataloader_drop_last
        super().__post_init__()

    def _check(self) -> None:
        """Refuses values that transformers would fail on later, or without the name of the argument in its message."""
        for name in ("prompts", "router_mapping", "learning_rate_mapping"):
            value = getattr(self, name)
            if isinstance(value, str) and value.lstrip().startswith("{"):
                try:
                    json.loads(value)
                except json.JSONDecodeError as error:
                    raise ValueError(f"{name} (--{name}) {value} is not valid JSON: {error}") from None
        for name in ("per_device_train_batch_size", "gradient_accumulation_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} (--{name}) must be at least 1, got {getattr(self, name)}")
        if self.neftune_noise_alpha is not None:
            raise ValueError(
                "neftune_noise_alpha (--neftune_noise_alpha) does not work, because transformers calls "
                "get_input_embeddings, and a SentenceTransformer has no such method. Leave it out."
            )
        if self.label_smoothing_factor:
            raise ValueError(
                "label_smoothing_factor (--label_smoothing_factor) has no effect, because sentence-transformers "
                "computes the loss itself. Leave it out."
            )
        if getattr(self, "train_sampling_strategy", "random") != "random":  # not in all versions
            raise ValueError(
                f"train_sampling_strategy={self.train_sampling_strategy!r} (--train_sampling_strategy) has no effect, "
                "because sentence-transformers forms the batches. Leave it out, or pass group_by_length=True "
                "(--group_by_length) or a batch_sampler."
            )

    @property
    def eval_batch_size(self) -> int:
        """The number of rows of an evaluation batch in this process."""
        return self.train_batch_size if self.per_device_eval_batch_size is None else super().eval_batch_size

    def to_dict(self) -> dict[str, Any]:
        values: dict[str, Any] = super().to_dict()
        return values | {"views": repr(self.views)} if dataclasses.is_dataclass(self.views) else values


def limit_training_length(args: SentenceTransformerTrainingArguments, model: SentenceTransformer) -> None:
    """Logs whether ``max_length`` truncates texts, and lowers it to the maximum length of the model.

    Raises:
        ValueError: If ``max_length`` leaves no room for text.
    """
    length, reads = getattr(args, "max_length", None), model.max_seq_length
    if isinstance(length, int):
        check_length("max_length", length, model)
    if not isinstance(length, int) or not isinstance(reads, int) or length == reads:
        return
    if length < reads:
        logger.info(
            "Training uses the first %d tokens of a text, but the model reads up to %d. Raise max_length "
            "(--max_seq_length) for longer texts.",
            length,
            reads,
        )
    else:
        logger.info("max_length is %d instead of %d, because the model does not read more tokens", reads, length)
        args.max_length = reads  # type: ignore[attr-defined]  # checked above
