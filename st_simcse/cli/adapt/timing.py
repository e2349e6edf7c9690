"""Timing of the training steps of each recipe on this machine, for the budget of ``st-simcse adapt``."""

from __future__ import annotations

import tempfile
import time
from itertools import pairwise
from statistics import median_high
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
    """Returns the seconds to embed one text."""
    model = fast_encode(model)
    model.encode(texts[:BATCH], batch_size=BATCH, show_progress_bar=False)  # the first call is slower
    began = time.perf_counter()
    model.encode(texts, batch_size=BATCH, show_progress_bar=False)
    return (time.perf_counter() - began) / len(texts)


class _Clock(TrainerCallback):
    """Records when each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.ends.append(time.perf_counter())


def step_seconds(task: Task, length: int, candidate: Candidate, texts: list[str]) -> float:
    """Trains a few steps and returns the upper median of their seconds.

    Args:
        task: The task, which names the model.
        length: The maximum number of tokens of a text in training.
        candidate: The recipe. It is trained without its whitening.
        texts: A few batches of texts.

    Raises:
        Exception: Any error of the training.
    """
    clock, file = _Clock(), task.data("timing")
    write(file, iter(texts))
    argv = [*task.words("timing", length), *candidate.training, "--max_steps", str(STEPS), "--save_strategy", "no"]
    try:
        with tempfile.TemporaryDirectory() as folder, silence():
            train.run([*argv, "--output_dir", folder], callbacks=[clock], before=False)
    finally:
        file.unlink()
    return median_high(end - begin for begin, end in pairwise(clock.ends))
