"""Measures the search page: its start with an empty and a full cache, and many queries that arrive at once.

The script runs ``st-simcse serve`` in a new process on this machine. PYTHONPATH may point to another version of it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np
import psutil


def start(model: str, corpus: Path, cache: str, port: int) -> tuple[psutil.Popen, float, float]:
    """Starts the page, and returns its process and the seconds and CPU seconds until it answers."""
    command = [sys.executable, "-m", "st_simcse", "serve", "--model", model, "--corpus", str(corpus)]
    begin = time.perf_counter()
    page = psutil.Popen([*command, "--port", str(port)], env=os.environ | {"HF_HOME": cache})
    while page.poll() is None:
        try:
            httpx.get(f"http://127.0.0.1:{port}/config").raise_for_status()
        except httpx.HTTPError:
            time.sleep(0.1)
        else:
            times = page.cpu_times()
            return page, time.perf_counter() - begin, times.user + times.system
    raise RuntimeError(f"{' '.join(command)} ended with {page.returncode}")


async def ask(client: httpx.AsyncClient, query: str) -> float:
    """Returns the seconds from a query to the complete answer."""
    begin = time.perf_counter()
    joined = await client.post("/gradio_api/call/search", json={"data": [query, 5, 0.0]})
    answer = (await client.get(f"/gradio_api/call/search/{joined.raise_for_status().json()['event_id']}")).text
    if "event: complete" not in answer or not json.loads(answer.split("data: ")[-1]):
        raise RuntimeError(f"{query!r}: {answer}")
    return time.perf_counter() - begin


async def load(url: str, queries: list[str]) -> np.ndarray:
    """Sends all queries at once, and returns the seconds of each."""
    limits = httpx.Limits(max_connections=2 * len(queries), max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:
        await ask(client, queries[0])
        return np.array(await asyncio.gather(*(ask(client, query) for query in queries)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--corpus", type=Path, required=True, help="text file with one sentence per line")
    parser.add_argument("--sentences", type=int, default=10_000)
    parser.add_argument(
        "--queries",
        type=int,
        default=200,
        help="number of queries at once; each has eight words of a line after --sentences",
    )
    parser.add_argument("--rounds", type=int, default=3, help="number of rounds of queries")
    args = parser.parse_args()

    lines = args.corpus.read_text(encoding="utf-8").splitlines()
    queries = [" ".join(line.split()[:8]) for line in lines[args.sentences :][: args.queries]]
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        corpus = Path(folder, "corpus.txt")
        corpus.write_text("\n".join(lines[: args.sentences]), encoding="utf-8")
        for name in ["first start", "second start"]:
            page, seconds, cpu_seconds = start(args.model, corpus, folder, port)
            print(f"| {name}, {args.sentences:,} sentences | {seconds:.1f} s | {cpu_seconds:.1f} CPU s |", flush=True)
            for _ in range(args.rounds if name == "first start" else 0):
                before = sum(page.cpu_times()[:2])
                p50, p99 = np.percentile(asyncio.run(load(f"http://127.0.0.1:{port}", queries)), [50, 99])
                spent = sum(page.cpu_times()[:2]) - before
                print(
                    f"| {len(queries)} queries at once | p50 {p50:.2f} s, p99 {p99:.2f} s | {spent:.1f} CPU s |",
                    flush=True,
                )
            page.send_signal(signal.SIGINT)
            page.wait(60)


if __name__ == "__main__":
    main()
