"""Measures how several processes stream a corpus larger than memory: lines per second, training speed, and memory.

python benchmarks/stream.py --model MODEL --lines 10000000 --processes 2

Each process reads its own file, shuffled in a buffer as with `st-simcse train --streaming`. It reads all lines with the
reader, then --tokenized lines as the batches of SimCSETrainer, and then it trains.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch.distributed as dist
from torch.distributed import run
from transformers.utils.logging import disable_progress_bar

from st_simcse import SentenceReader, SimCSETrainer, SimCSETrainingArguments, build_model

BATCH = 64


def write_lines(folder: Path, lines: int, files: int) -> None:
    """Writes sentences of different lengths, with about the average length of sentences in Wikipedia."""
    for part in range(files):
        with (folder / f"{part}.txt").open("w", encoding="utf-8") as file:
            for number in range(part, lines, files):
                file.write(
                    f"This is sentence number {number:,} of a text file" + ", and it goes on" * (number % 8) + ".\n"
                )


def report(name: str, sizes: Iterator[int], total: int) -> None:
    """Prints rows per second, and the resident memory of this process at the beginning, in the middle and at the end.

    Args:
        name: The name of the measurement.
        sizes: The numbers of rows, as they arrive.
        total: The number of rows to stop after.
    """
    process, rows, memory = psutil.Process(), 0, []
    dist.barrier()
    began, cpu_began = time.perf_counter(), sum(process.cpu_times()[:2])
    for size in sizes:
        rows += size
        # At the first measurement, the buffer of the shuffle is full.
        if rows >= total * len(memory) // 2:
            memory.append(process.memory_info().rss / 2**20)
        if rows >= total:
            break
    seconds, cpu_seconds = time.perf_counter() - began, sum(process.cpu_times()[:2]) - cpu_began
    megabytes = " ".join(f"{size:,.0f}" for size in memory)
    print(
        f"| {name} | {dist.get_rank()} | {rows:,} | {rows / seconds:,.0f}/s | {rows / cpu_seconds:,.0f}/CPU s "
        f"| {megabytes} MiB |",
        flush=True,
    )
    dist.barrier()


def read(folder: Path, model: str, lines: int, tokenized: int, steps: int) -> None:
    """Takes all measurements in one of the processes."""
    logging.disable(logging.WARNING)
    disable_progress_bar()
    options = {"save_strategy": "no", "report_to": "none", "disable_tqdm": True, "logging_strategy": "no"}
    arguments = SimCSETrainingArguments(
        str(folder / "output"), max_steps=steps, per_device_train_batch_size=BATCH, use_cpu=True, **options
    )
    stream = SentenceReader().get_iterable_dataset(*sorted(folder.glob("*.txt"))).shuffle(seed=0, buffer_size=10_000)
    trainer = SimCSETrainer(build_model(model, device="cpu"), arguments, stream)
    batches, processes = trainer.get_train_dataloader(), dist.get_world_size()
    # accelerate has given each process its own part of the data.
    report("reader", (1 for _ in batches.dataset), lines // processes)
    rows = (len(batch["sentence_input_ids"]) for batch in batches)
    report("reader, tokenizer, batches", rows, tokenized // processes // BATCH * BATCH)
    began = time.perf_counter()
    trainer.train()
    rate = steps * BATCH / (time.perf_counter() - began)
    print(f"| training | {dist.get_rank()} | {steps * BATCH:,} | {rate:,.0f}/s | | |", flush=True)
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="model to train, whose tokenizer makes the batches")
    parser.add_argument("--lines", type=int, default=10_000_000)
    parser.add_argument("--tokenized", type=int, default=1_000_000, help="number of lines to tokenize into batches")
    parser.add_argument("--steps", type=int, default=10, help="training steps, with 64 sentences per process")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # folder of the lines, passed to the processes
    args = parser.parse_args()
    if args.folder is not None:
        read(args.folder, args.model, args.lines, args.tokenized, args.steps)
        return
    with tempfile.TemporaryDirectory() as folder:
        write_lines(Path(folder), args.lines, args.processes)
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
        print(f"{args.lines:,} lines, {size / 2**20:,.0f} MiB, {args.processes} processes\n")
        print(
            "| | process | rows | speed | | memory: beginning, middle, end |\n| --- | --- | --- | --- | --- | --- |",
            flush=True,
        )
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        run.main(["--standalone", f"--nproc_per_node={args.processes}", *sys.argv, "--folder", folder])


if __name__ == "__main__":
    main()
