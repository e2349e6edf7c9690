"""Takes one measurement in its own process, so that its peak memory is not mixed with others. Prints a line of JSON.

run.py runs this script. By hand:
python benchmarks/measure.py loss --implementation ours --batch 1024 --width 384 --repeat 5
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from datasets import Dataset, disable_progress_bars
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)
from torch import Tensor
from transformers import TrainerCallback

from st_simcse import (
    SentenceReader,
    SharedLayers,
    SimCSETrainer,
    SimCSETrainingArguments,
    UnsupSimCSELoss,
    build_model,
    unsup_simcse_loss,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def reference(embeddings: Tensor, temperature: float = 0.05) -> Tensor:
    """The unsupervised objective as it is often written, with cosine_similarity broadcast to (2B, 2B, d)."""
    similarities = F.cosine_similarity(embeddings[:, None], embeddings[None], dim=2)
    similarities = similarities - torch.eye(len(embeddings), device=embeddings.device) * 1e12
    return F.cross_entropy(similarities / temperature, torch.arange(len(embeddings), device=embeddings.device) ^ 1)


def matrix_product(embeddings: Tensor, temperature: float = 0.05) -> Tensor:
    """The same objective with all similarities in one matrix product."""
    unit = F.normalize(embeddings, dim=1)
    logits = (unit @ unit.T / temperature).fill_diagonal_(-torch.inf)
    return F.cross_entropy(logits, torch.arange(len(embeddings), device=embeddings.device) ^ 1)


LOSSES = {"reference": reference, "matrix product": matrix_product, "ours": unsup_simcse_loss}


def measure_loss(implementation: str, batch: int, width: int, repeat: int) -> dict[str, float]:
    """Measures forward and backward of the loss on ``batch`` rows (both views), or only its three matrix products."""
    embeddings = torch.randn(batch, width, device=DEVICE, requires_grad=True)
    if implementation == "bare products":
        left, right = embeddings.detach()[: 512 if batch > 8192 else batch], embeddings.detach()

        def step() -> None:
            for _ in range(0, batch, len(left)):  # a single pass if the whole matrix fits
                similarities = left @ right.T
                _ = similarities @ right, similarities.T @ left
    else:

        def step() -> None:
            embeddings.grad = None
            LOSSES[implementation](embeddings).backward()

    return timed(step, repeat)


def load_encoder(model: str, attention: str) -> SentenceTransformer:
    options = {"attn_implementation": attention}
    return build_model(model, pooling="mean", device=DEVICE, max_seq_length=32, model_kwargs=options)


def read_sentences(corpus: str, number: int) -> list[str]:
    sentences = SentenceReader().get_dataset(corpus).shuffle(seed=0)["sentence"][:number]
    if len(sentences) < number:
        raise ValueError(f"{corpus} has {len(sentences):,} sentences, but {number:,} are needed")
    return sentences


def measure_training(
    recipe: str, model: str, corpus: str, batch: int, steps: int, bf16: bool, attention: str
) -> dict[str, float]:
    """Measures the seconds per step in the trainer's own loop, for ST's recipe (doubled sentences) or for ours."""
    sentences = read_sentences(corpus, batch * (steps + 2))
    encoder = load_encoder(model, attention)
    ours = recipe.startswith("ours")
    shared = [SharedLayers(0.75)] if "shared" in recipe else []
    options = {
        "num_train_epochs": 1,
        "per_device_train_batch_size": batch,
        "learning_rate": 3e-5,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_strategy": "no",
        "use_cpu": DEVICE == "cpu",
        "bf16": bf16,
    }
    clock = _Clock()
    with tempfile.TemporaryDirectory() as folder:
        if ours:
            extra = {"tokenize_once": "tokenized" in recipe, "group_by_length": "grouped" in recipe}
            arguments = SimCSETrainingArguments(folder, **options, **extra)
            data, trainer = Dataset.from_dict({"sentence": sentences}), SimCSETrainer
        else:
            arguments = SentenceTransformerTrainingArguments(folder, **options)
            data, trainer = Dataset.from_dict({"a": sentences, "b": sentences}), SentenceTransformerTrainer
        loss = UnsupSimCSELoss(encoder, options=shared) if ours else MultipleNegativesRankingLoss(encoder)
        trainer(model=encoder, args=arguments, train_dataset=data, loss=loss, callbacks=[clock]).train()
    # The first two steps warm up.
    return {"seconds": (clock.ticks[-1] - clock.ticks[1]) / steps, "sentences": batch}


def measure_cached(
    recipe: str, model: str, corpus: str, batch: int, mini_batch: int, bf16: bool, attention: str
) -> dict[str, float]:
    """Measures a training step with gradient caching: seconds, and peak memory beyond the loaded model."""
    sentences = read_sentences(corpus, batch)
    encoder = load_encoder(model, attention).train()
    ours = recipe == "ours"
    loss = (UnsupSimCSELoss if ours else CachedMultipleNegativesRankingLoss)(encoder, mini_batch_size=mini_batch)

    def step(rows: int = batch) -> None:
        features = [encoder.preprocess(sentences[:rows]) for _ in range(1 if ours else 2)]
        features = [{k: v.to(DEVICE) if torch.is_tensor(v) else v for k, v in column.items()} for column in features]
        # The forward method has autocast, as accelerate applies it.
        loss(features, None).backward()

    with_autocast = torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=bf16)
    encoder.forward = with_autocast(encoder.forward)
    model_only = reset_peak()
    step(4 * mini_batch)  # warms up
    encoder.zero_grad(set_to_none=False)
    return timed(step, 1, warm_up=False) | {"bytes": peak() - model_only}


def measure_reading(lines: int) -> dict[str, float]:
    """Measures how long a text file with this many lines takes to read for training."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "lines.txt")
        with path.open("w") as file:
            for number in range(lines):
                file.write(
                    f"This is sentence number {number} of a text file, about as long as those of Wikipedia are.\n"
                )
        return timed(lambda: SentenceReader().get_dataset(path), 1, warm_up=False)


class _Clock(TrainerCallback):
    def __init__(self) -> None:
        self.ticks: list[float] = []

    def on_step_end(self, *args: object, **kwargs: object) -> None:
        _synchronize()
        self.ticks.append(time.perf_counter())


def _synchronize() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def reset_peak() -> int:
    """Resets the peak memory, and returns the memory in use now in bytes."""
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")  # on Linux, this resets the peak of the resident set
    return _resident("VmRSS")


def peak() -> int:
    return torch.cuda.max_memory_allocated() if DEVICE == "cuda" else _resident("VmHWM")


def _resident(entry: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{entry}:"))


def timed(step: Callable[[], object], repeat: int, warm_up: bool = True) -> dict[str, float]:
    before, seconds = reset_peak(), []
    for _ in range(repeat + warm_up):
        _synchronize()
        began = time.perf_counter()
        step()
        _synchronize()
        seconds.append(time.perf_counter() - began)
    return {"seconds": statistics.median(seconds[warm_up:]), "bytes": peak() - before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    model = {"recipe": str, "model": str, "corpus": str, "batch": int, "bf16": int, "attention": str}
    for name, options in {
        "loss": {"implementation": str, "batch": int, "width": int, "repeat": int},
        "training": model | {"steps": int},
        "cached": model | {"mini_batch": int},
        "reading": {"lines": int},
    }.items():
        command = commands.add_parser(name)
        for option, kind in options.items():
            command.add_argument(f"--{option}", type=kind, required=True)
    arguments = vars(parser.parse_args())
    command = arguments.pop("command")
    if "bf16" in arguments:
        arguments["bf16"] = bool(arguments["bf16"])
    disable_progress_bars()
    logging.disable(logging.WARNING)
    print(json.dumps(globals()[f"measure_{command}"](**arguments)))


if __name__ == "__main__":
    main()
