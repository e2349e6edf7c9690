"""All measurements on a GPU, in eight minutes: HF_HUB_OFFLINE=1 python benchmarks/gpu.py --output_file gpu.json

The script needs no files and no network. It makes a model of BERT's size with random weights and texts of random words.
The first round takes every measurement once. The next rounds repeat the timed ones, so that all are measured in turn.
The output file is updated after every measurement, and the table at the end has the medians. If a measurement fails or
there is no time left for it, its row says so. Without a GPU, all measurements run on the CPU and need smaller sizes.
"""

from __future__ import annotations

import gc
import json
import logging
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import measure
import torch
import torch.distributed as dist
from datasets import disable_progress_bars
from run import device_name, table
from sentence_transformers.util import batch_to_device
from torch import Tensor
from transformers import BertConfig, BertModel, HfArgumentParser, set_seed
from transformers.utils import is_flash_attn_2_available
from transformers.utils.logging import disable_progress_bar
from waits import waits

from st_simcse import UnsupSimCSELoss
from st_simcse.demo import save_tiny_transformer
from st_simcse.losses import collectives

ON_GPU = measure.DEVICE == "cuda"
Files = dict[str, str]


@dataclass
class Settings:
    """The settings. The default sizes are those of bert-base."""

    output_file: Path = field(metadata={"help": "JSON file, written after every measurement."})
    minutes: float = field(default=8, metadata={"help": "Time limit. Measurements that would end later are skipped."})
    rounds: int = field(default=3, metadata={"help": "Number of times to take each timed measurement."})
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    vocab_size: int = 30522
    batches: list[int] = field(
        default_factory=lambda: [64, 256], metadata={"help": "Batch sizes of the training step."}
    )
    steps: int = field(default=16, metadata={"help": "Training steps, after two that warm up."})
    loss_rows: int = field(default=65536, metadata={"help": "Rows (both views) for the loss without a model."})
    cached_batch: int = field(default=16384, metadata={"help": "Rows of a step with gradient caching."})
    mini_batch: int = field(default=512, metadata={"help": "Mini-batch size of gradient caching."})
    texts: int = field(default=8192, metadata={"help": "Number of texts to encode."})
    encode_batches: list[int] = field(default_factory=lambda: [32, 256, 1024])


@dataclass
class Row:
    """A measurement and its results.

    Args:
        group: The group of measurements to compare with. The first of a group is the base.
        name: The name of the measurement.
        take: A function that takes the measurement once. It returns ``seconds``, and optionally ``bytes`` and ``note``.
        sentences: The number of sentences that are processed in the time, or 0 to show no speed.
        note: The reason why there are no more results.
    """

    group: str
    name: str
    take: Callable[[], dict[str, Any]]
    sentences: int = 0
    note: str = ""
    results: list[dict[str, Any]] = field(default_factory=list)
    took: float = 0.0

    def measure(self, deadline: float) -> None:
        """Takes the measurement once more, unless it failed before or would end after the deadline."""
        began = time.monotonic()
        if not self.note and began + self.took >= deadline:
            self.note = f"time ran out after {len(self.results)} round(s)" if self.results else "no time left"
        if self.note:
            return
        try:
            gc.collect()  # trainers are reference cycles that hold the memory of the last measurement
            if ON_GPU:
                torch.cuda.empty_cache()
            before = measure.reset_peak()
            result = self.take()
            self.results.append({"bytes": measure.peak() - before} | result)
        except Exception as error:
            self.note = f"{type(error).__name__}: {error}"
        self.took = time.monotonic() - began
        print(f"{self.group}, {self.name}: {self.note or self.results[-1]}", flush=True)

    def cells(self, base: Row) -> list[str]:
        notes = [result["note"] for result in self.results if "note" in result] + [self.note] * bool(self.note)
        note = "; ".join(notes).split("\n")[0].replace("|", "/")[:300]
        if not self.results:
            return [self.group, self.name, "", "", "", "", note]
        seconds, used = (statistics.median(result[key] for result in self.results) for key in ("seconds", "bytes"))
        # If one of them failed or ran out of time, the other has more results.
        ratios = [one["seconds"] / own["seconds"] for one, own in zip(base.results, self.results, strict=False)]
        speed = f"{self.sentences / seconds:,.0f}" if self.sentences else ""
        times = f"{statistics.median(ratios):.2f}" if ratios else ""
        return [self.group, self.name, f"{1e3 * seconds:,.1f} ms", speed, times, f"{used / 2**20:,.0f} MiB", note]


def make_files(folder: Path, settings: Settings) -> Files:
    """Writes the model and the corpus, and returns their paths as arguments for measure.py."""
    words = [f"w{number}" for number in range(settings.vocab_size - 5)]  # there are five special tokens, too
    save_tiny_transformer(folder / "model", words, width=16, layers=1)
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
    config = BertConfig(**{name: getattr(settings, name) for name in names}, intermediate_size=4 * settings.hidden_size)
    set_seed(0)
    BertModel(config).save_pretrained(folder / "model")  # replaces the tiny model but keeps its tokenizer
    count = max(*(batch * (settings.steps + 2) for batch in settings.batches), settings.cached_batch, settings.texts)
    draw = random.Random(0)
    texts = (" ".join(draw.choices(words, k=draw.randint(10, 40))) for _ in range(count))
    (folder / "corpus.txt").write_text("\n".join(texts))
    return {"model": str(folder / "model"), "corpus": str(folder / "corpus.txt")}


def training_rows(settings: Settings, files: Files) -> list[Row]:
    recipes = {
        "ST: MultipleNegativesRankingLoss, doubled column, float32 (default)": ("st", False, "sdpa"),
        "ST, bf16": ("st", True, "sdpa"),
        "ours, float32": ("ours", False, "sdpa"),
        "ours, bf16 (default)": ("ours", True, "sdpa"),
        "ours, bf16, SharedLayers(0.75)": ("ours shared", True, "sdpa"),
        "ours, bf16, tokenized once": ("ours tokenized", True, "sdpa"),
        "ours, bf16, flash attention 2": ("ours", True, "flash_attention_2"),
        "ours, bf16, eager attention": ("ours", True, "eager"),
    }
    rows = []
    for batch in settings.batches:
        for name, (recipe, bf16, attention) in recipes.items():
            options = {"batch": batch, "steps": settings.steps, "bf16": bf16, "attention": attention}
            lacks = attention == "flash_attention_2" and not is_flash_attn_2_available()
            take = partial(measure.measure_training, recipe, **files, **options)
            group = f"training step, batch {batch}, 32 tokens, sdpa"
            rows.append(Row(group, name, take, batch, "flash-attn is not installed" if lacks else ""))
    return rows


def loss_rows(settings: Settings) -> list[Row]:
    """Returns rows for the tiled loss, the bare matrix products that any loss needs, and the loss on a whole matrix."""
    group = f"the loss alone, {settings.loss_rows:,} rows"
    options = {"batch": settings.loss_rows, "width": settings.hidden_size, "repeat": 1}
    names = ("bare products", "ours", "matrix product")
    return [Row(group, name, partial(measure.measure_loss, name, **options)) for name in names]


def cached_rows(settings: Settings, files: Files) -> list[Row]:
    batch = settings.cached_batch
    group = f"gradient caching, batch {batch:,}, mini-batches of {settings.mini_batch}, bf16"
    options = {"batch": batch, "mini_batch": settings.mini_batch, "bf16": True, "attention": "sdpa"}
    names = {"st": "ST: CachedMultipleNegativesRankingLoss", "ours": "ours"}
    return [
        Row(group, name, partial(measure.measure_cached, recipe, **files, **options), batch)
        for recipe, name in names.items()
    ]


def encode_rows(settings: Settings, files: Files) -> list[Row]:
    """Returns rows for ST's encode with its defaults, and with larger batches and half precision."""
    texts, largest = settings.texts, settings.encode_batches[-1]
    half = [("bfloat16", batch) for batch in settings.encode_batches]
    return [
        Row(
            f"encode, {texts:,} texts",
            f"ST, {dtype}, batch {batch}",
            partial(measure_encode, dtype, batch, texts, **files),
            texts,
        )
        for dtype, batch in [("float32", 32), ("float32", largest), *half, ("float16", largest)]
    ]


def measure_encode(dtype: str, batch: int, texts: int, model: str, corpus: str) -> dict[str, float]:
    sentences, encoder = measure.read_sentences(corpus, texts), measure.load_encoder(model, "sdpa")
    autocast = torch.autocast(measure.DEVICE, dtype=getattr(torch, dtype), enabled=dtype != "float32")
    return measure.timed(autocast(partial(encoder.encode, sentences, batch_size=batch)), 1)


def check_rows(settings: Settings, files: Files) -> list[Row]:
    """Returns rows that are taken once: where a step waits for the GPU, and that gathering does not change the loss."""
    batch = settings.batches[0]
    group, lacks = f"a step of our loss, batch {batch}, float32", "" if ON_GPU else "needs a GPU"
    gathered = Row(group, "gather_across_devices=True, one process", partial(measure_gathering, batch, **files), batch)
    waiting = [
        Row(group, name, partial(measure_waits, batch, mask_duplicates=masks, **files), batch, lacks)
        for name, masks in (("default", True), ("mask_duplicates=False", False))
    ]
    return [*waiting, gathered]


def step_of_loss(batch: int, model: str, corpus: str, **options: bool) -> Callable[[], Tensor]:
    """Returns a function that runs forward and backward, and returns the loss and all gradients as one vector."""
    encoder = measure.load_encoder(model, "sdpa").train()
    loss = UnsupSimCSELoss(encoder, **options)
    features = batch_to_device(encoder.preprocess(measure.read_sentences(corpus, batch)), encoder.device)

    def step() -> Tensor:
        torch.manual_seed(0)  # for dropout
        encoder.zero_grad()
        value = loss([features])
        value.backward()
        gradients = [weight.grad.flatten() for weight in encoder.parameters() if weight.grad is not None]
        return torch.cat([value.detach().view(1), *gradients])

    return step


def measure_waits(batch: int, **options: Any) -> dict[str, Any]:
    step = step_of_loss(batch, **options)
    seconds = measure.timed(step, 5)  # this warms up, too
    places = [f"{count} at {place}" for place, count in waits(step).items()]
    return seconds | {"note": f"waits for the GPU: {', '.join(places) or 'never'}"}


def measure_gathering(batch: int, **files: str) -> dict[str, Any]:
    step = step_of_loss(batch, gather_across_devices=True, **files)
    alone, backend = step(), "nccl" if ON_GPU else "gloo"
    with tempfile.TemporaryDirectory() as folder:
        store = f"file://{folder}/store"
        dist.init_process_group(backend, store, timedelta(minutes=1), rank=0, world_size=1)
        try:
            # A single process would not exchange anything with itself.
            with mock.patch.object(collectives, "is_distributed", return_value=True):
                gathered = step()
                seconds = measure.timed(step, 5)
        finally:
            dist.destroy_process_group()
    difference = float((gathered - alone).norm() / alone.norm())
    if not difference < 1e-4:
        raise ValueError(f"{backend}: loss and gradients differ by {difference:.1e} from those without gathering")
    return seconds | {"note": f"{backend}: loss and gradients within {difference:.0e} of those without gathering"}


def measure_all(settings: Settings) -> list[Row]:
    deadline = time.monotonic() + 60 * settings.minutes
    with tempfile.TemporaryDirectory() as folder:
        files = make_files(Path(folder), settings)
        timed = [*training_rows(settings, files), *loss_rows(settings), *encode_rows(settings, files)]
        timed += cached_rows(settings, files)
        rows = timed + check_rows(settings, files)
        header = {"device": device_name(), "torch": torch.__version__, "settings": asdict(settings)}
        for row in rows + timed * (settings.rounds - 1):
            row.measure(deadline)
            report = header | {"rows": [vars(row) for row in rows]}
            settings.output_file.write_text(json.dumps(report, indent=1, default=str))
    return rows


def main() -> None:
    (settings,) = HfArgumentParser(Settings, description=__doc__).parse_args_into_dataclasses()
    disable_progress_bar()
    disable_progress_bars()
    logging.disable(logging.WARNING)
    rows = measure_all(settings)
    print(f"\n{device_name()}; torch {torch.__version__}; medians of {settings.rounds} measurements in turn\n")
    bases = {row.group: row for row in reversed(rows)}
    head = ["", "", "time", "sentences/s", "times the first", "peak", ""]
    table(head, *(row.cells(bases[row.group]) for row in rows))


if __name__ == "__main__":
    main()
