"""The benchmarks run at small sizes on the CPU: gpu.py has to run on a GPU at the first attempt."""

import importlib
import json
import logging
import math
import time
import warnings
from pathlib import Path

import pytest
import torch
from datasets import enable_progress_bars
from transformers.utils.logging import enable_progress_bar

from st_simcse import cli
from st_simcse.demo import save_tiny_transformer
from st_simcse.losses import collectives

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "vocab_size": 200,
    "batches": 4,
    "steps": 1,
    "loss_rows": 64,
    "cached_batch": 16,
    "mini_batch": 4,
    "texts": 8,
    "encode_batches": 4,
}
# What a machine without a GPU, or without flash-attn, cannot measure.
REASONS = ("needs a GPU", "flash-attn is not installed")


@pytest.fixture
def benchmark(monkeypatch):
    """A module of benchmarks/ by its name; what they silence is heard again afterwards."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    disabled = logging.root.manager.disable
    yield importlib.import_module
    logging.disable(disabled)
    enable_progress_bar()
    enable_progress_bars()


@pytest.fixture
def gpu(benchmark, monkeypatch, tmp_path):
    """benchmarks/gpu.py run with some options: its rows, as the file has them."""

    def run(**options):
        words = [word for name, value in (SIZES | options).items() for word in (f"--{name}", str(value))]
        monkeypatch.setattr("sys.argv", ["gpu.py", "--output_file", str(tmp_path / "gpu.json"), *words])
        benchmark("gpu").main()
        return json.loads((tmp_path / "gpu.json").read_text())["rows"]

    return run


@pytest.mark.slow
def test_gpu(gpu, capsys, monkeypatch):
    gathered = []
    all_gather = collectives.all_gather
    monkeypatch.setattr(
        collectives, "all_gather", lambda *args, **how: gathered.append(args) or all_gather(*args, **how)
    )
    rows = gpu(rounds=1)
    assert len(rows) == 8 + 3 + 4 + 2 + 3
    for row in rows:
        name = f"{row['group']}, {row['name']}"
        if row["note"]:
            assert row["note"] in REASONS, f"{name}: {row['note']}"
            assert not row["results"]
            continue
        (result,) = row["results"]
        assert 0 < result["seconds"] < math.inf, name
        assert math.isfinite(result["bytes"]), name  # a CPU's memory is counted by the page, and roughly
    assert "of those without gathering" in rows[-1]["results"][0]["note"]
    assert len(gathered) >= 3  # the number of rows, and both views

    output = capsys.readouterr().out
    table = [line for line in output.splitlines() if line.startswith("|")]
    assert len(table) == len(rows) + 2
    assert {line.count("|") for line in table} == {8}
    assert table[2].split("|")[5].strip() == "1.00"


def test_rounds_are_in_turn(gpu, benchmark, monkeypatch):
    """The checks are behind the first round, so that they are there if time runs out."""
    taken = []
    monkeypatch.setattr(benchmark("gpu").Row, "measure", lambda row, deadline: taken.append((row.group, row.name)))
    rows = [(row["group"], row["name"]) for row in gpu(rounds=3)]
    assert taken == rows + 2 * rows[:-3]


def test_gpu_without_time(gpu):
    rows = gpu(minutes=0)
    assert {row["note"] for row in rows} <= {"no time left", *REASONS}
    assert not any(row["results"] for row in rows)


def test_a_measurement_that_fails_is_a_row(benchmark):
    def fail():
        raise ValueError("out of\nmemory")

    taken = iter(({"seconds": 2.0}, {"seconds": 4.0}))
    row = benchmark("gpu").Row("group", "name", lambda: next(taken, None) or fail(), sentences=6)
    for _ in range(4):
        row.measure(math.inf)
    assert len(row.results) == 2
    assert row.cells(row)[2:5] == ["3,000.0 ms", "2", "1.00"]
    assert row.cells(row)[6] == "ValueError: out of"


def test_what_would_end_too_late_is_left_out(benchmark):
    row = benchmark("gpu").Row("group", "name", lambda: {"seconds": 2.0}, took=60.0)
    row.measure(time.monotonic() + 70)
    row.took = 60.0
    for _ in range(2):
        row.measure(time.monotonic() + 50)
    assert len(row.results) == 1
    assert row.cells(row)[2] == "2,000.0 ms"
    assert row.cells(row)[6] == "time ran out after 1 round(s)"


def test_waits_are_told_with_their_place(benchmark, monkeypatch):
    """What torch says on a GPU, said here by hand."""
    modes = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def step():
        for _ in range(2):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("something else", stacklevel=1)

    (place,) = (found := benchmark("waits").waits(step))
    assert found[place] == 2
    assert place == f"test_benchmarks.py:{step.__code__.co_firstlineno + 2}"
    assert modes == ["warn", "default"]


@pytest.mark.slow
def test_whole_run(benchmark, monkeypatch, capsys, tmp_path, sentences, generated):
    """Each of the three trains, and the table has the dev score of each saved model."""
    whole_run = benchmark("whole_run")
    ran = []

    def in_this_process(first, second, *words):
        ran.append(first)
        cli.main([*words]) if first == "-m" else whole_run.train_by_st(*words)

    monkeypatch.setattr(whole_run, "run_python", in_this_process)
    save_tiny_transformer(tmp_path / "model", sentences, width=32, layers=4)
    (tmp_path / "train.txt").write_text("\n".join(sentences))
    files = {"train": tmp_path / "train.txt", "dev": generated / "sts/raw/STSB-dev.tsv"}
    words = [word for name, path in files.items() for word in (f"--{name}_file", str(path))]
    whole_run.main(["--model", str(tmp_path / "model"), *words, "--rounds", "1"])

    assert ran == [str(BENCHMARKS / "whole_run.py"), "-m", "-m"]
    printed = capsys.readouterr().out.partition("| times | dev |\n")[2].splitlines()
    rows = [line.strip("| ").split(" | ") for line in printed if line.startswith("| ")][1:]
    assert [row[0] for row in rows] == list(whole_run.CANDIDATES)
    assert rows[0][3] == "1.00"
    assert all(-100 < float(row[-1]) < 100 for row in rows)
    # Shared layers train other weights.
    assert rows[1][-1] != rows[2][-1]
