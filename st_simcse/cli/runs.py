"""One run of ``st-simcse compare``: trained and measured in a process of its own, its numbers in a file, whole."""

from __future__ import annotations

import json
import logging
import math
import multiprocessing
import os
import shutil
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.utils.logging import disable_progress_bar

from st_simcse.checkpoints import load_model
from st_simcse.cli import train
from st_simcse.evaluation import sts_evaluators, sts_scores, transfer_evaluators, transfer_scores
from st_simcse.run_folder import checkpoints

Result = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One training: a recipe with a seed, the options of train, and what is measured besides."""

    recipe: str
    seed: int
    options: list[str]
    tests: dict[str, Any]
    folder: str

    @property
    def file(self) -> Path:
        return Path(self.folder, self.recipe, f"seed-{self.seed}.json")

    @property
    def model(self) -> Path:
        return self.file.with_suffix("")


def in_a_process(one: Run, keep_model: bool) -> Result:
    """The run's result, once it is in its file whole."""
    shutil.rmtree(one.model, ignore_errors=True)  # what a run that was killed has left
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _begin) as process:
        result = process.submit(_train_and_evaluate, one).result()
    if result is None:
        raise KeyboardInterrupt
    if keep_model:
        for checkpoint in checkpoints(one.model):
            shutil.rmtree(checkpoint)
    else:
        shutil.rmtree(one.model)
    unfinished = one.file.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    unfinished.replace(one.file)
    return result


def _begin() -> None:
    """In the process of a run: as on the command line, and it ends with the comparison."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    disable_progress_bar()
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=lambda: wait([parent.sentinel]) and os._exit(1), daemon=True).start()


def _train_and_evaluate(one: Run) -> Result | None:
    """None for a run that was stopped."""
    cost = _Cost()
    argv = [*one.options, "--seed", str(one.seed), "--output_dir", str(one.model)]
    with redirect_stdout(sys.stderr):  # the table is what is printed
        scores = train.run(argv, callbacks=[cost])
    if "after" not in scores:
        return None
    dev, *tests = ({name: 100 * value} for name, value in scores["after"].items())
    result = {
        "recipe": one.recipe,
        "seed": one.seed,
        "options": one.options,
        "tests": one.tests,
        "before": {name: 100 * value for name, value in scores["before"].items()},
        "dev": dev,
        "test": {name: value for test in tests for name, value in test.items()},
        "cost": cost.measured,
    }
    model = load_model(str(one.model)).to(cost.device)
    if folder := one.tests["sts_dir"]:
        result["STS"] = sts_scores(sts_evaluators(folder)(model))
        result["test"]["STS avg."] = result["STS"]["Avg."]
    if folder := one.tests["senteval_dir"]:
        result["transfer"] = transfer_scores(transfer_evaluators(folder)(model))
        result["test"]["transfer avg."] = result["transfer"]["Avg."]
    return result


class _Cost(TrainerCallback):
    """Seconds of training, of the clock and of all threads together, and the peak of memory since this was made."""

    def __init__(self) -> None:
        self.before = _peak_memory()

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.began = time.perf_counter(), time.process_time()

    def on_train_end(self, args: Any, *others: Any, **kwargs: Any) -> None:
        seconds, cpu_seconds = (
            now - began for now, began in zip((time.perf_counter(), time.process_time()), self.began, strict=True)
        )
        self.device = args.device
        on_gpu = self.device.type == "cuda"
        peak = torch.cuda.max_memory_allocated() if on_gpu else _peak_memory() - self.before
        self.measured = {"seconds": seconds, "CPU seconds": cpu_seconds, "MiB": peak / 2**20}


def _peak_memory() -> float:
    """Of this process, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux, where getrusage counts the process that started this one too
        lines = status.read_text().splitlines()
        return 1024 * next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), math.nan)
    try:
        import resource
    except ImportError:
        return math.nan
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
