"""Measures speed and memory of training: python benchmarks/run.py --model MODEL --corpus wiki_sentences.txt

The measurements to compare run in turn, each in its own process, and the script prints the medians of their ratios. It
takes about half an hour on two cores. The plot needs the extra "plots" (matplotlib).
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from st_simcse.models.precision import computes_in_bf16
from st_simcse.plots import MARKERS, grid_behind, legend_outside, make_figure, save_figure

BF16 = computes_in_bf16(use_cpu=not torch.accelerator.is_available())
MEASURE = Path(__file__).parent / "measure.py"
IMPLEMENTATIONS = ("reference", "matrix product", "ours", "bare products")
# With larger batches (rows of both views), an implementation takes minutes or runs out of memory.
LARGEST = {"reference": 256, "matrix product": 8192, "ours": 65536, "bare products": 65536}


def measure(command: str, **options: Any) -> dict[str, float]:
    return printed_by(MEASURE, command, *(word for name, value in options.items() for word in (f"--{name}", value)))


def run_python(*words: Any) -> str:
    """Runs Python with these arguments in its own process, and returns its output. Exits with its error if it fails."""
    shown = [str(word) for word in words]
    process = subprocess.run([sys.executable, *shown], capture_output=True, text=True)
    if process.returncode:
        sys.exit(f"{' '.join(shown)} failed:\n{process.stderr[-3000:]}")
    return process.stdout


def printed_by(script: Path, *words: Any) -> dict[str, float]:
    """Runs a script in a new process, and returns the JSON in the last line that it prints."""
    return json.loads(run_python(script, *words).splitlines()[-1])


def in_turn(
    rounds: int, candidates: dict[str, dict[str, Any]], take: Callable[..., dict[str, float]]
) -> dict[str, list[dict[str, float]]]:
    """Measures all candidates in turn, ``rounds`` times, by calling ``take`` with the options of each."""
    results: dict[str, list[dict[str, float]]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, options in candidates.items():
            results[name].append(take(**options))
    return results


def ratio(results: dict[str, list[dict[str, float]]], name: str, base: str, key: str = "seconds") -> float:
    return statistics.median(one[key] / other[key] for one, other in zip(results[name], results[base], strict=True))


def median(results: list[dict[str, float]], key: str = "seconds") -> float:
    return statistics.median(result[key] for result in results)


def table(*rows: list[str]) -> None:
    for number, row in enumerate(rows):
        print(f"| {' | '.join(row)} |")
        if not number:
            print(f"|{' --- |' * len(row)}")
    print(flush=True)


def loss_functions(pairs: int, width: int, plot: Path | None, largest: int) -> None:
    print(f"\n### The loss alone, forward and backward, d = {width}\n")
    batches = [batch for batch in (64, 256, 1024, 2048, 4096, 8192, 16384, 32768, 65536) if batch <= largest]
    seconds: dict[str, dict[int, float]] = {name: {} for name in IMPLEMENTATIONS}
    memory: dict[str, dict[int, float]] = {name: {} for name in IMPLEMENTATIONS}
    rows = []
    for batch in batches:
        repeat = 5 if batch <= 8192 else 1
        names = [name for name in IMPLEMENTATIONS if batch <= LARGEST[name]]
        results = in_turn(
            pairs if batch <= 8192 else 1,
            {name: {"implementation": name, "batch": batch, "width": width, "repeat": repeat} for name in names},
            partial(measure, "loss"),
        )
        for name in names:
            seconds[name][batch] = median(results[name])
            memory[name][batch] = median(results[name], "bytes") / 2**20
        cells = [f"{1e3 * seconds[name][batch]:,.1f} ms" if name in names else "" for name in IMPLEMENTATIONS]
        peak = [f"{memory[name][batch]:,.0f} MiB" if name in names else "" for name in ("matrix product", "ours")]
        rows.append([f"{batch:,}", *cells, f"{ratio(results, 'ours', 'bare products'):.2f}", *peak])
    peaks = ["matrix product, peak", "ours, peak"]
    table(["rows (both views)", *IMPLEMENTATIONS, "ours / bare", *peaks], *rows)
    if plot:
        figure, axes = make_figure(plot, 2)
        lines = {}
        for axis, values, label in ((axes[0], seconds, "seconds"), (axes[1], memory, "MiB beyond the embeddings")):
            for number, name in enumerate(IMPLEMENTATIONS):
                points = {batch: value for batch, value in values[name].items() if value > 0}
                if name != "bare products" or axis is axes[0]:
                    marker, colour = MARKERS[number], f"C{number}"
                    lines[name] = axis.plot(list(points), list(points.values()), marker=marker, color=colour)[0]
            axis.set(xscale="log", yscale="log", xlabel="rows in the batch (both views)", ylabel=label)
            grid_behind(axis)
        figure.suptitle(f"InfoNCE, forward and backward, d = {width}: {device_name()}")
        legend_outside(figure, list(lines.values()), list(lines))
        save_figure(figure, plot)
        print(f"![growth with the batch]({plot.name})\n")


def training(pairs: int, steps: int, common: dict[str, Any]) -> None:
    print("\n### A training step of the Trainer, batch 64, 32 tokens\n")
    recipes = {
        "ST: MultipleNegativesRankingLoss, doubled column, float32 (default)": ("st", 0),
        "ours, float32": ("ours", 0),
        "ours, float32, tokenized once": ("ours tokenized", 0),
        "ours, float32, batches grouped by length": ("ours grouped", 0),
        "ours, float32, grouped, 3/4 of the layers shared": ("ours shared grouped", 0),
    }
    if BF16:
        recipes |= {
            "ST, bf16": ("st", 1),
            "ours, bf16 (default)": ("ours", 1),
            "ours, bf16, tokenized once": ("ours tokenized", 1),
            "ours, bf16, batches grouped by length": ("ours grouped", 1),
            "ours, bf16, grouped, 3/4 of the layers shared": ("ours shared grouped", 1),
        }
    else:
        print("This device does not compute in bf16, so our default here is float32, too.\n")
    results = in_turn(
        pairs,
        {
            name: {"recipe": recipe, "bf16": bf16, "batch": 64, "steps": steps, **common}
            for name, (recipe, bf16) in recipes.items()
        },
        partial(measure, "training"),
    )
    default = next(iter(recipes))
    rows = []
    for name, (_, bf16) in recipes.items():
        base = "ST, bf16" if bf16 else default
        speed = 64 / median(results[name])
        rows.append([name, f"{speed:.1f}", f"{ratio(results, default, name):.2f}", f"{ratio(results, base, name):.2f}"])
    table(["recipe", "sentences/s", "times ST's default", "times ST at the same precision"], *rows)


def cached(pairs: int, batch: int, common: dict[str, Any]) -> None:
    print(
        f"\n### One step with gradient caching, batch {batch:,}, mini-batches of 64, {'bf16' if BF16 else 'float32'}\n"
    )
    common = {"batch": batch, "mini_batch": 64, "bf16": int(BF16), **common}
    results = in_turn(
        pairs, {recipe: {"recipe": recipe, **common} for recipe in ("st", "ours")}, partial(measure, "cached")
    )
    rows = [
        [name, f"{median(results[key]):.1f} s", f"{median(results[key], 'bytes') / 2**20:,.0f} MiB"]
        for key, name in (("st", "ST: CachedMultipleNegativesRankingLoss"), ("ours", "ours"))
    ]
    ratios = [f"{ratio(results, 'ours', 'st', key):.2f}" for key in ("seconds", "bytes")]
    table(["loss", "time", "peak beyond the model"], *rows, ["ours / ST", *ratios])


def reading(lines: int) -> None:
    print(f"\n### A text file of {lines:,} lines, ready for training\n")
    result = measure("reading", lines=lines)
    table(["time", "peak beyond the imports"], [f"{result['seconds']:.1f} s", f"{result['bytes'] / 2**20:,.0f} MiB"])


def device_name() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{torch.cpu.get_capabilities().get('cpu_name', platform.processor())}, {torch.get_num_threads()} threads"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="folder or name of a transformer")
    parser.add_argument(
        "--corpus", required=True, help="text file with one sentence per line, and at least --cached_batch lines"
    )
    parser.add_argument("--pairs", type=int, default=3, help="number of times to repeat each comparison")
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--largest", type=int, default=65536, help="largest batch for the loss without a model")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument(
        "--cached_batch", type=int, nargs="+", default=[4096], help="rows of a step with gradient caching"
    )
    parser.add_argument("--attention", default="sdpa", help="transformers' attn_implementation")
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--only", nargs="+", default=["reading", "loss", "training", "cached"])
    args = parser.parse_args()
    print(f"{device_name()}; torch {torch.__version__}; medians of {args.pairs} measurements in turn")
    if "reading" in args.only:
        reading(args.lines)
    common = {"model": args.model, "corpus": args.corpus, "attention": args.attention}
    if "training" in args.only:
        training(args.pairs, args.steps, common)
    for batch in args.cached_batch if "cached" in args.only else []:
        cached(args.pairs, batch, common)
    if "loss" in args.only:
        loss_functions(args.pairs, args.width, args.plot, args.largest)


if __name__ == "__main__":
    main()
