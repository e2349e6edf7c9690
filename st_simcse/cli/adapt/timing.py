"""How long a step of each recipe takes here, for the budget of ``st-simcse adapt``."""

from __future__ import annotations

import tempfile
import time
from typing import Any

from sentence_transformers import SentenceTransformer
from transformers import TrainerCallback

from st_simcse.cli import train
from st_simcse.cli.adapt.corpus import BATCH, write
from st_simcse.cli.adapt.task import Task
from st_simcse.cli.runs import silence
from st_simcse.models.fast_encode import fast_encode
from st_simcse.shortlist import Candidate

STEPS = 3


def encoding_seconds(model: SentenceTransformer, texts: list[str]) -> float:
    """A text."""
    model = fast_encode(model)
    model.encode(texts[:BATCH], batch_size=BATCH, show_progress_bar=False)  # the first is slower
    began = time.perf_counter()
    model.encode(texts, batch_size=BATCH, show_progress_bar=False)
    return (time.perf_counter() - began) / len(texts)


class _Clock(TrainerCallback):
    """When each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.ends.append(time.perf_counter())


def step_seconds(task: Task, length: int, candidate: Candidate, texts: list[str]) -> float:
    """The median of a few steps, here.

    Args:
        task: names the model.
        length: tokens of a text that training sees.
        candidate: the recipe, which is trained without its whitening.
        texts: a few batches of them.

    Raises:
        Exception: what its training raises.
    """
    clock, file = _Clock(), task.data("timing")
    write(file, iter(texts))
    argv = [*task.words("timing", length), *candidate.training, "--max_steps", str(STEPS), "--save_strategy", "no"]
    try:
        with tempfile.TemporaryDirectory() as folder, silence():
            train.run([*argv, "--output_dir", folder], callbacks=[clock], before=False)
    finally:
        file.unlink()
    steps = sorted(end - begin for begin, end in zip(clock.ends, clock.ends[1:], strict=False))
    return steps[len(steps) // 2]
