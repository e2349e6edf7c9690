"""Code shared by whitening.py and proxies.py: a model and its whitenings, which embed each text once, and scores."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize
from sentence_transformers.util import batch_to_device
from torch import Tensor, nn

from st_simcse import build_model, load_sts, whiten
from st_simcse.cli.compare import TABLES, MeasureArguments
from st_simcse.cli.runs import Measure, measures
from st_simcse.models.checkpoints import load_model
from st_simcse.models.embed_once import embed_once

POWERS = (0.0, 0.25, 0.5, 1.0)
PARTS = {"all": (1, 1), "2/3": (2, 3), "1/3": (1, 3)}
WHITENINGS = {f"power {power:g}, {name}": (power, share) for power in POWERS for name, share in PARTS.items()}
DATA = (MeasureArguments, *TABLES)


@dataclass
class StartArguments:
    """The options for the model in the first row of a table, and for scored pairs."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Model, as in st-simcse train. The next three options are as there, too."}
    )
    pooling: str | None = None
    layers: int | None = None
    model_max_length: int | None = None
    dev_file: str | None = field(default=None, metadata={"help": "Scored pairs to choose by."})
    test_file: str | None = field(
        default=None, metadata={"help": "Scored pairs that are measured, but not used to choose."}
    )

    def model(self) -> SentenceTransformer:
        if self.model_name_or_path is None:
            raise ValueError("there is no model to measure: pass --model_name_or_path")
        return build_model(
            self.model_name_or_path, pooling=self.pooling, layers=self.layers, max_seq_length=self.model_max_length
        )

    def measures(self, groups: Sequence[Any]) -> list[Measure]:
        """Returns the measures of the scored pairs and of the options in ``groups``, with dev before test."""
        pairs = {"dev": self.dev_file, "test": self.test_file}
        found = []
        for split, file in pairs.items():
            if file:
                evaluator = load_sts(file)
                found.append(Measure(evaluator.name, split, evaluator))
        found += measures({name: value for group in groups for name, value in asdict(group).items()})
        return sorted(found, key=lambda measure: measure.split)


def remembered(model: SentenceTransformer) -> SentenceTransformer:
    """Returns the model with embeddings of unit length. It computes each embedding once, also for its whitenings."""
    if not isinstance(model[-1], Normalize):
        model.append(Normalize())
    return embed_once(model)


def whitenings(model: SentenceTransformer, texts: Sequence[str]) -> Iterator[tuple[str, SentenceTransformer]]:
    """Yields the name and the model of each whitening in the tables, fitted on ``texts``."""
    width = len(model.encode(texts[0]))
    for name, (power, (over, under)) in WHITENINGS.items():
        whitened = embed_once(model)
        whiten(whitened, texts, power, width * over // under)
        yield name, whitened


@torch.no_grad()
def under_dropout(model: SentenceTransformer, texts: Sequence[str]) -> Tensor:
    """Returns the embeddings (n, d) before Normalize under dropout, with the same seed each time."""
    embed = nn.Sequential(*(module for module in model if not isinstance(module, Normalize))).train()
    torch.manual_seed(0)
    batches = [model.preprocess(texts[start : start + 64]) for start in range(0, len(texts), 64)]
    found = torch.cat([embed(batch_to_device(batch, model.device))["sentence_embedding"] for batch in batches])
    embed.eval()
    return found


@torch.no_grad()
def finished(model: SentenceTransformer, embeddings: Tensor) -> Tensor:
    """Applies the whitening and Normalize of a remembered model to embeddings."""
    return nn.Sequential(*list(model)[1:])({"sentence_embedding": embeddings})["sentence_embedding"].cpu()


def scores(model: SentenceTransformer, asked: Sequence[Measure]) -> dict[str, float]:
    """Returns the scores × 100 by measure. The average of several dev measures comes first."""
    found = {one.name: 100 * one.evaluator(model)[one.evaluator.primary_metric] for one in asked}
    dev = [found[one.name] for one in asked if one.split == "dev"]
    return ({"dev avg.": statistics.mean(dev)} if len(dev) > 1 else {}) | found


def averaged(runs: Sequence[Mapping[str, float]]) -> dict[str, str]:
    """Returns the mean and spread of each column over several models."""
    columns = {column: [run[column] for run in runs] for column in runs[0]}
    return {
        column: f"{statistics.mean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")
        for column, values in columns.items()
    }


def loaded(start: StartArguments, folders: Sequence[str]) -> Iterator[SentenceTransformer]:
    """Yields the models in the folders, or the model of ``start`` if there are no folders."""
    yield from map(load_model, folders) if folders else [start.model()]
