"""A run of ``st-simcse compare``: trains and measures a model in its own process, and saves the numbers in a file."""

from __future__ import annotations

import gc
import json
import logging
import math
import multiprocessing
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.evaluation import BaseEvaluator
from transformers import TrainerCallback
from transformers.utils.logging import disable_progress_bar

from st_simcse.cli import train
from st_simcse.cli.baselines import BASELINES
from st_simcse.cli.files import check_has_file, file_flags, file_options
from st_simcse.cli.inputs import identities
from st_simcse.cli.output import no_warnings
from st_simcse.cli.parsing import named_options
from st_simcse.evaluation import check_defined, load_classes, load_retrieval, sts_evaluators, transfer_evaluators
from st_simcse.models.checkpoints import load_model
from st_simcse.models.embed_once import embed_once
from st_simcse.models.fast_encode import fast_encode
from st_simcse.recipes import split_baseline
from st_simcse.training.run_folder import checkpoint_folders
from st_simcse.training.stop_on_signal import Stopped

Result = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """A training run: its recipe, seed and options of train, what to measure besides, and the folder of the results."""

    recipe: str
    seed: int
    options: list[str]
    tests: dict[str, Any]
    folder: str
    is_quiet: bool = False

    @property
    def file(self) -> Path:
        return Path(self.folder, self.recipe, f"seed-{self.seed}.json")

    @property
    def model(self) -> Path:
        return self.file.with_suffix("")


def read_result(file: Path) -> Result:
    """Reads the result that :func:`in_a_process` wrote.

    Raises:
        ValueError: If the file is damaged.
    """
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"damaged: {error}") from error
    shapes = {
        "recipe": str,
        "seed": int,
        "options": list,
        **dict.fromkeys(("tests", "inputs", "dev", "test", "cost"), dict),
    }
    if not isinstance(result, dict) or not all(isinstance(result.get(name), kind) for name, kind in shapes.items()):
        raise ValueError(f"damaged: expected an object with {', '.join(shapes)}")
    numbers = [*result["dev"].values(), *result["test"].values(), *result["cost"].values()]
    if not all(isinstance(number, (int, float)) for number in numbers) or not result["cost"]:
        raise ValueError("damaged: expected numbers in dev, test and cost")
    if not all(isinstance(word, str) for word in result["options"]):
        raise ValueError("damaged: expected options as a list of words")
    return result


def in_a_process(run: Run, keep_model: bool) -> Result:
    """Trains and measures in a new process, writes the result to its file, and returns it."""
    shutil.rmtree(run.model, ignore_errors=True)  # left by a run that was killed
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _begin) as process:
        try:
            result = process.submit(train_and_measure, run).result()
        except BrokenProcessPool as error:
            raise OSError("its process was killed, perhaps because the system ran out of memory") from error
    return _kept(run, result, keep_model)


def in_this_process(run: Run, keep_model: bool) -> Result:
    """Does the same in this process, which saves the time to start one. The memory of the run is then not known."""
    shutil.rmtree(run.model, ignore_errors=True)
    result = train_and_measure(run)
    if result:
        del result["cost"]["MiB"]
    gc.collect()  # models and optimizers are in reference cycles
    return _kept(run, result, keep_model)


def _kept(run: Run, result: Result | None, keep_model: bool) -> Result:
    """Writes the result to its file and returns it. Deletes the model, or only its checkpoints if it is kept."""
    if result is None:
        raise KeyboardInterrupt
    if keep_model:
        for checkpoint in checkpoint_folders(run.model):
            shutil.rmtree(checkpoint)
    else:
        shutil.rmtree(run.model)
    write_json(run.file, result)
    return result


def write_json(file: Path, value: Any) -> None:
    """Writes the value to the file, completely or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    unfinished.replace(file)


def _begin() -> None:
    """Sets up the process of a run: logging as on the command line, and an end when the comparison ends."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    disable_progress_bar()
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=lambda: wait([parent.sentinel]) and os._exit(1), daemon=True).start()


def train_and_measure(run: Run) -> Result | None:
    """Trains and measures a model. Returns None if the run was stopped."""
    cost = Cost()
    inputs = identities(run.options, run.tests)
    baseline, options = split_baseline(run.options)
    argv = [*options, "--seed", str(run.seed), "--output_dir", str(run.model)]
    try:
        # Only the table of the comparison goes to stdout.
        with silence() if run.is_quiet else redirect_stdout(sys.stderr):
            scores = train.run(argv, BASELINES[baseline] if baseline else None, [cost], before=False)
    except Stopped:
        return None
    model = load_model(str(run.model)).to(cost.device)
    return measured(run, model, scores["after"], cost.measured, inputs)


def measured(
    run: Run,
    model: SentenceTransformer,
    correlations: dict[str, float],
    cost: dict[str, float],
    inputs: dict[str, str | None],
) -> Result:
    """Measures the model and returns the result of its run.

    Args:
        run: The run.
        model: The model that the run trained.
        correlations: The correlations, -1 to 1, of the dev and test pairs by name.
        cost: The costs by name.
        inputs: Hashes of the inputs, from before the run.

    Raises:
        ValueError: If a score is not defined, or inputs changed during the run.
    """
    data_args = train.parse_train(split_baseline(run.options)[1])[1]
    pairs = {name: 100 * value for name, value in correlations.items()}
    dev = list(pairs)[: bool(data_args.dev_file or data_args.dev_dataset)]
    result: Result = {
        "recipe": run.recipe,
        "seed": run.seed,
        "options": run.options,
        "tests": run.tests,
        "dev": {name: value for name, value in pairs.items() if name in dev},
        "test": {name: value for name, value in pairs.items() if name not in dev},
        "details": {},
        "cost": cost,
    }
    once = embed_once(model)
    for measure in measures(run.tests):
        # The data sets of a benchmark share few texts and have too many to remember.
        details: Any = measure.evaluator(fast_encode(model) if measure.is_average else once)
        result[measure.split][measure.name] = 100 * details[measure.evaluator.primary_metric]
        result["details"] |= details
    check_defined({run.recipe: result["dev"] | result["test"]})
    result["inputs"] = identities(run.options, run.tests)  # by now, names on the hub are in the cache
    if changed := changed_inputs(inputs, result["inputs"]):
        raise ValueError(f"{', '.join(changed)} changed during the run: run it again")
    return result


@contextmanager
def silence() -> Iterator[None]:
    """Hides progress bars, output and warnings. The caller shows errors."""
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere), no_warnings():
        yield


def changed_inputs(first: dict[str, str | None], second: dict[str, str | None]) -> list[str]:
    """Returns the names whose hashes are known in both and differ.

    Example:
        >>> changed_inputs({"a.txt": "0", "b.txt": "1", "bert": None}, {"a.txt": "0", "b.txt": "2", "bert": "3"})
        ['b.txt']
    """
    known = (name for name in first if first[name] is not None and second.get(name) is not None)
    return [name for name in known if first[name] != second[name]]


class Measure(NamedTuple):
    """A column of the table. Recipes are chosen by dev columns; ``is_average`` marks the average of several tasks."""

    name: str
    split: Literal["dev", "test"]
    evaluator: BaseEvaluator
    is_average: bool = False


def measures(tests: dict[str, Any]) -> list[Measure]:
    """Returns the measurements that the options of the comparison ask for.

    Args:
        tests: The options by name.

    Raises:
        OSError, ValueError: If the data cannot be read.
    """
    found = []
    splits: tuple[Literal["dev", "test"], ...] = ("dev", "test")
    for kind, load in (("knn", load_classes), ("retrieval", load_retrieval)):
        options, flags = file_options(tests, f"{kind}_"), file_flags(tests, f"{kind}_")
        files = [tests[f"{kind}_{split}_file"] for split in splits]
        check_has_file(tests, f"{kind}_", f"--{kind}_dev_file or --{kind}_test_file", has_file=any(files))
        for split, file in zip(splits, files, strict=True):
            check_has_file(tests, f"{kind}_{split}_", f"--{kind}_{split}_file", has_file=bool(file))
            if file:
                options["split"] = tests[f"{kind}_{split}_split"]
                with named_options(**flags, split=f"--{kind}_{split}_split"):
                    found.append(Measure(f"{kind} {split}", split, load(file, f"{kind} {split}", **options)))
    check_has_file(tests, "sts_", "--sts_dir", has_file=bool(tests["sts_dir"]))
    partial = tests["allow_partial"]
    with named_options(**file_flags(tests, "sts_"), allow_partial="--allow_partial"):
        if folder := tests["sts_dir"]:
            evaluator = sts_evaluators(folder, allow_partial=partial, **file_options(tests, "sts_"))
            found.append(Measure("STS avg.", "test", evaluator, is_average=True))
        if folder := tests["senteval_dir"]:
            evaluator = transfer_evaluators(folder, allow_partial=partial)
            found.append(Measure("transfer avg.", "test", evaluator, is_average=True))
    return found


class Cost(TrainerCallback):
    """The cost of a training: wall-clock seconds, CPU seconds of all threads, and the peak of memory in MiB.

    The seconds do not include evaluation and saving. Memory is what the process has allocated since this object was
    made, for the model, any teacher and the training. On a GPU it is the peak of the GPU's memory.
    """

    def __init__(self) -> None:
        self.before = _peak_memory()

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.began = self.step_ended = _now()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.step_ended = _now()

    on_epoch_end = on_step_end

    def on_evaluate(self, *args: Any, **kwargs: Any) -> None:
        now = _now()
        self.began, self.step_ended = self.began + now - self.step_ended, now

    on_save = on_evaluate

    def on_train_end(self, args: Any, *others: Any, **kwargs: Any) -> None:
        seconds, cpu_seconds = (_now() - self.began).tolist()
        self.device = args.device
        on_gpu = self.device.type == "cuda"
        peak = torch.cuda.max_memory_allocated() if on_gpu else _peak_memory() - self.before
        self.measured = {"seconds": seconds, "CPU seconds": cpu_seconds, "MiB": peak / 2**20}


def _now() -> np.ndarray[Any, Any]:
    """Returns wall-clock seconds and CPU seconds of all threads."""
    return np.array([time.perf_counter(), time.process_time()])


def _peak_memory() -> float:
    """Returns the peak memory of this process in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # on Linux, getrusage includes the process that started this one
        lines = status.read_text().splitlines()
        return 1024 * next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), math.nan)
    try:
        import resource
    except ImportError:
        return math.nan
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
