"""Measures search in generated sentences: time, memory, recall@10 against exact search, and time per query.

The sentences are distinct pairs of clauses of st_simcse's generated corpus. The model is a StaticEmbedding with random
word vectors, so that the index takes the time and not the model. Each stage has its own process. Peak memory is the
resident set, which includes pages of mapped files; the number in brackets does not include them.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

KINDS = ("exact", "ivf", "hnsw")


def sentences(count: int, seed: int) -> list[str]:
    from st_simcse.corpus import generate_corpus

    distinct: dict[str, None] = {}
    while len(distinct) < count:
        clauses = generate_corpus(count, seed=seed).sentences
        others = generate_corpus(count, seed=seed + 1).sentences
        distinct |= dict.fromkeys(f"{one[:-2]} while {other}" for one, other in zip(clauses, others, strict=True))
        seed += 2
    return list(distinct)[:count]


def generate(args: argparse.Namespace) -> dict[str, float]:
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    from st_simcse.demo import tiny_model

    texts = sentences(args.sentences, seed=0)
    (args.folder / "sentences.txt").write_text("\n".join(texts) + "\n")
    known = set(texts)
    queries = [text for text in sentences(2 * args.queries, seed=1000) if text not in known][: args.queries]
    (args.folder / "queries.txt").write_text("\n".join(queries) + "\n")
    torch.manual_seed(0)
    static = StaticEmbedding(tiny_model(texts[:10_000]).tokenizer, embedding_dim=args.width)
    SentenceTransformer(modules=[static], device="cpu").save(str(args.folder / "model"))
    return {}


def build(args: argparse.Namespace) -> dict[str, float]:
    from st_simcse import Searcher
    from st_simcse.search.neighbours import INDEXES

    searcher = Searcher(str(args.folder / "model"))
    index = INDEXES[args.kind]
    begin = time.perf_counter()
    if args.kind == "exact":
        searcher.build_index(args.folder / "sentences.txt", args.folder / "index")
    else:
        searcher = Searcher.load(args.folder / "index", searcher.model)
        begin = time.perf_counter()
        index(**args.options).open(searcher.embeddings, args.folder / "index")
    return {"build": time.perf_counter() - begin}


def query(args: argparse.Namespace) -> dict[str, float]:
    from st_simcse import Searcher
    from st_simcse.search.neighbours import INDEXES

    description = args.folder / "index" / "index.json"
    described = json.loads(description.read_text())
    described["index"] = {"kind": args.kind, **vars(INDEXES[args.kind](**args.options))}
    description.write_text(json.dumps(described))
    begin = time.perf_counter()
    searcher = Searcher.load(args.folder / "index", str(args.folder / "model"))
    opened = time.perf_counter() - begin
    queries = (args.folder / "queries.txt").read_text().splitlines()
    searcher.search(queries[:5], top_k=10)
    seconds, rows = [], []
    for text in queries:
        begin = time.perf_counter()
        hits = searcher.search(text, top_k=10)
        seconds.append(time.perf_counter() - begin)
        rows.append([hit["corpus_id"] for hit in hits])
    exact = args.folder / "exact.json"
    if args.kind == "exact":
        exact.write_text(json.dumps(rows))
    found = [len(set(a) & set(b)) / 10 for a, b in zip(rows, json.loads(exact.read_text()), strict=True)]
    p50, p99 = np.percentile(seconds, [50, 99])
    return {"open": opened, "recall": float(np.mean(found)), "p50": 1000 * float(p50), "p99": 1000 * float(p99)}


STAGES: dict[str, Callable[[argparse.Namespace], dict[str, float]]] = {
    "generate": generate,
    "build": build,
    "query": query,
}


def measured(args: argparse.Namespace) -> dict[str, float]:
    """Runs the stage, and returns its results with CPU seconds and the peak memory, with and without mapped files."""
    import psutil

    process, own, done = psutil.Process(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            memory = process.memory_info()
            own[0] = max(own[0], memory.rss - memory.shared)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        results = STAGES[args.stage](args)
    finally:
        done.set()
        watcher.join()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    cpu = usage.ru_utime + usage.ru_stime
    return results | {"cpu": cpu, "peak": usage.ru_maxrss / 1024, "own": own[0] / 2**20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="new folder; needs 3 GB for a million sentences")
    parser.add_argument("--sentences", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=128, help="dimensions of the embeddings")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--cells", type=int, default=None)
    parser.add_argument("--probes", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--breadth", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--kind", choices=KINDS, default="exact", help=argparse.SUPPRESS)
    parser.add_argument("--options", type=json.loads, default={}, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stage:
        print(json.dumps(measured(args)))
        return

    args.folder.mkdir(parents=True)

    def run(stage: str, kind: str = "exact", **options: int | None) -> dict[str, float]:
        words = ["--stage", stage, "--kind", kind, "--options", json.dumps(options)]
        done = subprocess.run([sys.executable, *sys.argv, *words], stdout=subprocess.PIPE, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])

    run("generate")
    print("| index | built in | CPU | peak memory | recall@10 | a query: p50, p99 | its memory |\n|" + " --- |" * 7)
    for kind in KINDS:
        settings = {"exact": [{}], "ivf": [{"cells": args.cells, "probes": n} for n in args.probes]}
        settings["hnsw"] = [{"breadth": n} for n in args.breadth]
        made = run("build", kind, **settings[kind][0])
        for options in settings[kind]:
            asked = run("query", kind, **options)
            given = ", ".join(f"{name} {value}" for name, value in options.items() if value)
            print(
                f"| {kind} {given} | {made['build']:.0f} s | {made['cpu']:.0f} s | {made['peak']:,.0f} MB "
                f"({made['own']:,.0f}) | {asked['recall']:.3f} | {asked['p50']:.1f} ms, {asked['p99']:.1f} ms "
                f"| {asked['peak']:,.0f} MB ({asked['own']:,.0f}) |",
                flush=True,
            )


if __name__ == "__main__":
    main()
