"""Baselines to compare with: other losses of sentence-transformers, trained with its own trainer.

A baseline is a function of the model, the data, the names of the teachers and the training arguments. It returns the
data and the loss for ST's trainer. The losses have ST's defaults.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import (
    ContrastiveTensionLoss,
    ContrastiveTensionLossInBatchNegatives,
    DenoisingAutoEncoderLoss,
    GISTEmbedLoss,
    MultipleNegativesRankingLoss,
)
from torch import Tensor, nn

from st_simcse.cli.loss import LossArguments
from st_simcse.cli.parsing import option_of, parse_known
from st_simcse.cli.train_options import EXAMPLE, with_preset
from st_simcse.losses import MaskedLanguageModel
from st_simcse.models.checkpoints import load_model

__all__ = ["BASELINES", "Baseline", "check_baseline"]


Baseline = Callable[[SentenceTransformer, Dataset, list[str], Any], tuple[Dataset, nn.Module]]


def _doubled(dataset: Dataset) -> Dataset:
    """Pairs each sentence with itself. Pairs and triplets stay as they are."""
    if len(dataset.column_names) > 1:
        return dataset
    return Dataset.from_dict({"anchor": (texts := _sentences(dataset)), "positive": texts})


def _sentences(dataset: Dataset) -> list[str]:
    if len(dataset.column_names) > 1:
        raise ValueError(
            f"this baseline trains on one column of sentences, but the data has {', '.join(dataset.column_names)}"
        )
    return list(dataset[dataset.column_names[0]])


def _ranking(model: SentenceTransformer, dataset: Dataset, *others: Any) -> tuple[Dataset, nn.Module]:
    return _doubled(dataset), MultipleNegativesRankingLoss(model)


def _gist(model: SentenceTransformer, dataset: Dataset, teachers: list[str], args: Any) -> tuple[Dataset, nn.Module]:
    return _doubled(dataset), GISTEmbedLoss(model, load_model(teachers[0]).to(args.device))


def _tsdae(model: SentenceTransformer, dataset: Dataset, *others: Any) -> tuple[Dataset, nn.Module]:
    """TSDAE: deletes 60% of the words, and restores the text from the embedding (Wang et al., EMNLP Findings 2021)."""

    def damaged(batch: dict[str, list[str]]) -> dict[str, list[str]]:
        words = [text.split() for text in batch["text"]]
        kept = [[word for word in text if random.random() > 0.6] or [random.choice(text)] for text in words]
        return {"damaged": [" ".join(text) for text in kept], "text": batch["text"]}

    return Dataset.from_dict({"text": _sentences(dataset)}).with_transform(damaged), DenoisingAutoEncoderLoss(model)


def _tension(model: SentenceTransformer, dataset: Dataset, teachers: list[str], args: Any) -> tuple[Dataset, nn.Module]:
    """Contrastive tension with seven negative pairs for each positive one (Carlsson et al., ICLR 2021)."""
    texts, draw = _sentences(dataset), random.Random(args.seed)
    others = [text if draw.random() < 1 / 8 else draw.choice(texts) for text in texts]
    return Dataset.from_dict({"first": texts, "second": others}), ContrastiveTensionLoss(model)


def _tension_in_batch(model: SentenceTransformer, dataset: Dataset, *others: Any) -> tuple[Dataset, nn.Module]:
    return Dataset.from_dict({"text": _sentences(dataset)}), ContrastiveTensionLossInBatchNegatives(model)


def _mlm(model: SentenceTransformer, dataset: Dataset, teachers: list[str], args: Any) -> tuple[Dataset, nn.Module]:
    return Dataset.from_dict({"text": _sentences(dataset)}), _MLMLoss(model, args)


class _MLMLoss(nn.Module):
    """BERT's masked language modeling loss on its own, with the head of the checkpoint if it has one."""

    def __init__(self, model: SentenceTransformer, args: Any) -> None:
        super().__init__()
        self.model = model  # ST's trainer optimizes the parameters of the loss
        self.term = MaskedLanguageModel(1.0).build(model)
        # accelerate applies autocast to the model's forward method only, which is not called here.
        self.autocast = {
            "device_type": args.device.type,
            "dtype": torch.float16 if args.fp16 else torch.bfloat16,
            "enabled": args.bf16 or args.fp16,
        }

    def forward(self, sentence_features: Sequence[dict[str, Tensor]], labels: Tensor | None = None) -> Tensor:
        with torch.autocast(**self.autocast):
            return self.term.from_features(list(sentence_features))


BASELINES: dict[str, Baseline] = {
    "mnrl": _ranking,
    "gist": _gist,
    "tsdae": _tsdae,
    "ct": _tension,
    "ct-in-batch": _tension_in_batch,
    "mlm": _mlm,
}


def check_baseline(name: str, words: Sequence[str], data_args: Any, args: Any) -> None:
    """Refuses options that a baseline would ignore, before any run.

    Args:
        name: The name of the baseline.
        words: The options of the recipe.
        data_args: The data options of ``st-simcse train``.
        args: The training arguments.

    Raises:
        ValueError: If the baseline is unknown, if ``words`` has an option of SimCSE's losses, if an option needs the
            trainer of this package, or if the number of teachers is wrong.
    """
    if name not in BASELINES:
        raise ValueError(f"unknown baseline {name!r}: choose one of {', '.join(BASELINES)}")
    given = {option_of(word).removeprefix("no_") for word in words if word.startswith("--")}
    own, _ = parse_known("train", with_preset(words), LossArguments, example=EXAMPLE)
    # A preset may set options to their defaults, such as the temperature, which is also that of ST's losses.
    given |= {field.name for field in fields(own) if getattr(own, field.name) != getattr(LossArguments(), field.name)}
    if ours := given & {field.name for field in fields(LossArguments)}:
        raise ValueError(
            f"--{min(ours)} is an option of SimCSE's losses, which the baseline {name} does not use: leave it out, "
            "or pass other options instead of a --preset that has it"
        )
    if args.views or args.start_weight or args.tokenize_once or data_args.streaming:
        raise ValueError(
            f"the baseline {name} uses sentence-transformers' own trainer, which has no --views, --start_weight, "
            "--tokenize_once or --streaming: leave them out"
        )
    if (len(data_args.teacher or []) != 1) if name == "gist" else data_args.teacher:
        raise ValueError(
            "--teacher does not fit the baseline: gist needs exactly one teacher, and the others take none"
        )
