"""The embeddings of a model, each text encoded once, under linear maps: what whitening.py and proxies.py share."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize
from torch import Tensor

from st_simcse import build_model, load_sts
from st_simcse.cli.compare import TABLES, MeasureArguments
from st_simcse.cli.runs import Measure, measures
from st_simcse.models.checkpoints import load_model
from st_simcse.objective.whitening import Moments, whitening

POWERS = (0.0, 0.25, 0.5, 1.0)
PARTS = {"all": (1, 1), "2/3": (2, 3), "1/3": (1, 3)}
WHITENINGS = {f"power {power:g}, {name}": (power, share) for power in POWERS for name, share in PARTS.items()}
DATA = (MeasureArguments, *TABLES)


@dataclass
class StartArguments:
    """The model that a table begins with, and its scored pairs."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "As in st-simcse compare, like the next three."}
    )
    pooling: str = "mean"
    layers: int | None = None
    model_max_length: int | None = None
    dev_file: str | None = field(default=None, metadata={"help": "Scored pairs, to choose by."})
    test_file: str | None = field(default=None, metadata={"help": "Scored pairs, not to choose by."})

    def model(self) -> SentenceTransformer:
        if self.model_name_or_path is None:
            raise ValueError("nothing to measure: pass --model_name_or_path")
        return build_model(
            self.model_name_or_path, pooling=self.pooling, layers=self.layers, max_seq_length=self.model_max_length
        )

    def measures(self, groups: Sequence[Any]) -> list[Measure]:
        """Those of the scored pairs, and those that ``groups`` of ``DATA`` ask for; dev before test."""
        pairs = {"dev": self.dev_file, "test": self.test_file}
        found = []
        for split, file in pairs.items():
            if file:
                evaluator = load_sts(file)
                found.append(Measure(evaluator.name, split, evaluator))
        found += measures({name: value for group in groups for name, value in asdict(group).items()})
        return sorted(found, key=lambda measure: measure.split)


class Embeddings:
    """What a model makes of texts before it scales them to unit length; it encodes each of them once."""

    def __init__(self, model: SentenceTransformer) -> None:
        self.model = SentenceTransformer(
            modules=[module for module in model if not isinstance(module, Normalize)], device=str(model.device)
        )
        self.rows: dict[str, Tensor] = {}
        self.noisy_rows: dict[str, Tensor] = {}

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """(n, d), float32."""
        missing = [text for text in dict.fromkeys(texts) if text not in self.rows]
        if missing:
            found = self.model.encode(missing, batch_size=64, convert_to_tensor=True, show_progress_bar=False)
            self.rows |= zip(missing, found.cpu(), strict=True)
        return torch.stack([self.rows[text] for text in texts])

    @torch.no_grad()
    def noisy(self, texts: Sequence[str]) -> Tensor:
        """The same under dropout, which is drawn with the same seed each time."""
        missing = [text for text in texts if text not in self.noisy_rows]
        torch.manual_seed(0)
        self.model.train()
        for start in range(0, len(missing), 64):
            batch = missing[start : start + 64]
            found = self.model(self.model.preprocess(batch))["sentence_embedding"]
            self.noisy_rows |= zip(batch, found.cpu(), strict=True)
        self.model.eval()
        return torch.stack([self.noisy_rows[text] for text in texts])


class Mapped(SentenceTransformer):
    """Stands in for a model with a linear map behind its pooling, for evaluators."""

    def __init__(self, embeddings: Embeddings, weight: Tensor | None = None, bias: Tensor | None = None) -> None:
        super().__init__(modules=[Normalize()], device="cpu")
        self.embeddings, self.map = embeddings, None if weight is None else (weight.float(), bias.float())

    def mapped(self, found: Tensor) -> Tensor:
        """Embeddings behind the map, of unit length."""
        if self.map:
            weight, bias = self.map
            found = found @ weight.T + bias
        return torch.nn.functional.normalize(found, dim=1)

    def encode(self, inputs: Sequence[str], *args: Any, convert_to_tensor: bool = False, **kwargs: Any) -> Any:
        found = self.mapped(self.embeddings(list(inputs)))
        return found if convert_to_tensor else found.numpy()


def whitenings(embeddings: Embeddings, texts: Sequence[str]) -> Iterator[tuple[str, Mapped]]:
    """The model under each whitening that the tables have, fitted on ``texts``, by its name."""
    fitted = embeddings(texts)
    moments = Moments(fitted.shape[1])
    moments.add(fitted)
    for name, (power, (over, under)) in WHITENINGS.items():
        yield name, Mapped(embeddings, *whitening(moments, power, fitted.shape[1] * over // under))


def scores(model: SentenceTransformer, asked: Sequence[Measure]) -> dict[str, float]:
    """× 100, by measure; several dev measures are also averaged, in front."""
    found = {one.name: 100 * one.evaluator(model)[one.evaluator.primary_metric] for one in asked}
    dev = [found[one.name] for one in asked if one.split == "dev"]
    return ({"dev avg.": statistics.mean(dev)} if len(dev) > 1 else {}) | found


def averaged(runs: Sequence[Mapping[str, float]]) -> dict[str, str]:
    """Mean and spread of each column over several models."""
    columns = {column: [run[column] for run in runs] for column in runs[0]}
    return {
        column: f"{statistics.mean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")
        for column, values in columns.items()
    }


def loaded(start: StartArguments, folders: Sequence[str]) -> Iterator[SentenceTransformer]:
    """The models of the folders, or without any that of the start."""
    yield from map(load_model, folders) if folders else [start.model()]
