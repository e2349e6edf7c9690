"""Compares ways to embed many texts (SentenceTransformer.encode, fast_encode, an index) and to run the STS tasks.

python benchmarks/encode.py --model MODEL --texts wiki_sentences.txt --sts_dir sts

The candidates run in turn, each in its own process. The table has the medians over the rounds, and the peak memory of
the process. "times" is the speed relative to the first row.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from run import BF16, device_name, in_turn, median, printed_by, ratio, table
from scipy.stats import spearmanr
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
from sentence_transformers.util import batch_to_device

from st_simcse import Searcher
from st_simcse.cli import evaluate
from st_simcse.evaluation import STS_TASKS
from st_simcse.models.checkpoints import load_model
from st_simcse.models.fast_encode import fast_encode

Pairs = list[tuple[str, str, str, float]]
PRECISIONS = {"float32": "float32"} | ({"bf16": "auto"} if BF16 else {})


def encode_by_st(args: argparse.Namespace) -> dict[str, float]:
    model, texts = load_model(args.model), read_texts(args)
    return timed(lambda: model.encode(texts, show_progress_bar=False))


def encode_fast(args: argparse.Namespace) -> dict[str, float]:
    model, texts = fast_encode(load_model(args.model), args.precision), read_texts(args)
    return timed(lambda: model.encode(texts, show_progress_bar=False))


def build_index(args: argparse.Namespace) -> dict[str, float]:
    searcher, texts = Searcher(fast_encode(load_model(args.model), args.precision)), read_texts(args)
    with tempfile.TemporaryDirectory() as folder:
        return timed(lambda: searcher.build_index(texts, Path(folder, "index")))


def evaluate_by_st(args: argparse.Namespace) -> dict[str, float]:
    """Runs ST's evaluator with its defaults, task by task."""
    model = load_model(args.model)
    tasks = {task: list(zip(*rows, strict=True)) for task, rows in read_tasks(args).items()}
    scores = []

    def run() -> None:
        for task, (_, first, second, gold) in tasks.items():
            results = EmbeddingSimilarityEvaluator(list(first), list(second), list(gold), name=task)(model)
            scores.append(100 * results[f"{task}_spearman_cosine"])

    return timed(run) | {"score": float(np.mean(scores))}


def evaluate_by_senteval(args: argparse.Namespace) -> dict[str, float]:
    """Runs SentEval's loop: pairs sorted by their number of words, 128 at a time, with one batch for each side.

    The pairs of STS-B and SICK-R keep their order. princeton's ``evaluation.py`` embeds their train and dev sets too.
    """
    model, tasks = load_model(args.model).eval(), read_tasks(args)
    others = ("STSB-train", "STSB-dev", "SICKR-train", "SICKR-dev") if args.all_splits else ()
    unscored = [pair for stem in others for pair in read_pairs(stem, args)]
    scores = []

    @torch.no_grad()
    def embed(texts: list[str]) -> np.ndarray:
        features = batch_to_device(model.preprocess(texts), model.device)
        return model(features)["sentence_embedding"].float().cpu().numpy()

    def cosines(pairs: Pairs) -> Iterator[float]:
        for start in range(0, len(pairs), 128):
            _, first, second, _ = zip(*pairs[start : start + 128], strict=True)
            for one, other in zip(embed(list(first)), embed(list(second)), strict=True):
                yield float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))

    def run() -> None:
        for task, pairs in tasks.items():
            if task not in ("STS-B", "SICK-R"):
                pairs = sorted(pairs, key=lambda pair: (pair[0], len(pair[1].split()), len(pair[2].split()), pair[3]))
            scores.append(100 * spearmanr(list(cosines(pairs)), [gold for *_, gold in pairs])[0])
        list(cosines(unscored))

    return timed(run) | {"score": float(np.mean(scores))}


def evaluate_fast(args: argparse.Namespace) -> dict[str, float]:
    """Runs ``st-simcse evaluate``. Its time includes loading the model and reading the files."""
    with tempfile.TemporaryDirectory() as folder:
        for stem in STS_TASKS.values():
            with Path(folder, f"{stem}.tsv").open("w", encoding="utf-8") as file:
                file.write("subset\tsentence1\tsentence2\tscore\n")
                file.writelines("\t".join(map(str, pair)) + "\n" for pair in read_pairs(stem, args))
        command = ["--model", args.model, "--sts_dir", folder, "--precision", args.precision]
        command += ["--allow_partial"] if args.rows else []
        results: dict[str, Any] = {}

        def run() -> None:
            with contextlib.redirect_stdout(io.StringIO()):
                results.update(evaluate.run(command))

        found = timed(run)
    (row,) = results.values()
    return found | {"score": row["Avg."]}


WAYS: dict[str, Callable[[argparse.Namespace], dict[str, float]]] = {
    one.__name__: one
    for one in (encode_by_st, encode_fast, build_index, evaluate_by_st, evaluate_by_senteval, evaluate_fast)
}


def timed(run: Callable[[], Any]) -> dict[str, float]:
    """Returns wall-clock and CPU seconds."""
    begin, begin_cpu = time.perf_counter(), time.process_time()
    run()
    return {"seconds": time.perf_counter() - begin, "CPU seconds": time.process_time() - begin_cpu}


def read_texts(args: argparse.Namespace) -> list[str]:
    return Path(args.texts).read_text(encoding="utf-8").splitlines()[: args.rows]


def read_pairs(stem: str, args: argparse.Namespace) -> Pairs:
    """Reads the subset, both sentences and the score of each pair. Returns an empty list if the file does not exist."""
    path = Path(args.sts_dir, f"{stem}.tsv")
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[: args.rows]
    return [(row["subset"], row["sentence1"], row["sentence2"], float(row["score"])) for row in rows]


def read_tasks(args: argparse.Namespace) -> dict[str, Pairs]:
    return {task: read_pairs(stem, args) for task, stem in STS_TASKS.items()}


def measured(way: str, args: argparse.Namespace) -> dict[str, float]:
    """Runs one of ``WAYS`` and returns its numbers, with the peak resident memory of the process in MiB."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    found = WAYS[way](args)
    return found | {"MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit}


def in_a_process(way: str, args: argparse.Namespace) -> dict[str, float]:
    return printed_by(Path(__file__), "--way", way, json.dumps(vars(args)))


def compare(title: str, candidates: dict[str, tuple[str, dict[str, Any]]], args: argparse.Namespace) -> None:
    """Prints a table with one row for each candidate. Speeds are relative to the first."""
    asked = {
        name: {"way": way, "args": argparse.Namespace(**vars(args) | options)}
        for name, (way, options) in candidates.items()
    }
    results = in_turn(args.rounds, asked, in_a_process)
    first = next(iter(candidates))
    has_score = "score" in results[first][0]
    rows = []
    for name, found in results.items():
        score = [f"{median(found, 'score'):.2f}"] if has_score else []
        numbers = [f"{median(found, key):,.1f}" for key in ("seconds", "CPU seconds")]
        rows.append([name, *numbers, f"{1 / ratio(results, name, first):.2f}", f"{median(found, 'MiB'):,.0f}", *score])
    print(f"\n### {title}\n")
    table(["", "seconds", "CPU seconds", "times", "peak MiB", *(["STS average"] if has_score else [])], *rows)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or name of a model")
    parser.add_argument("--texts", help="text file with one text per line")
    parser.add_argument("--sts_dir", help="folder with STS12.tsv and the others, as st-simcse data fetches them")
    parser.add_argument("--rows", type=int, help="number of lines to read from each file; defaults to all")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args(argv)
    if not (args.texts or args.sts_dir):
        parser.error("pass --texts, --sts_dir or both")
    print(f"{device_name()}; medians of {args.rounds} in turn")
    fast = {name: {"precision": precision} for name, precision in PRECISIONS.items()}
    if args.texts:
        encoded = {"SentenceTransformer.encode, defaults": ("encode_by_st", {})}
        encoded |= {f"fast_encode, {name}": ("encode_fast", options) for name, options in fast.items()}
        encoded |= {f"Searcher.build_index, {name}": ("build_index", options) for name, options in fast.items()}
        compare(f"{len(read_texts(args)):,} texts", encoded, args)
    if args.sts_dir:
        pairs = sum(map(len, read_tasks(args).values()))
        evaluated = {
            "ST's evaluators, defaults": ("evaluate_by_st", {}),
            "SentEval's loop": ("evaluate_by_senteval", {"all_splits": False}),
            "SentEval's loop, with the sets that princeton embeds too": ("evaluate_by_senteval", {"all_splits": True}),
        }
        evaluated |= {f"st-simcse evaluate, {name}": ("evaluate_fast", options) for name, options in fast.items()}
        compare(f"The seven STS tasks, {pairs:,} pairs", evaluated, args)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--way"]:
        print(json.dumps(measured(sys.argv[2], argparse.Namespace(**json.loads(sys.argv[3])))))
    else:
        main()
