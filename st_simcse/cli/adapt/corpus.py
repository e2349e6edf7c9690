"""The texts of ``st-simcse adapt`` in files: all that are trained on, and samples of them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

from datasets import Dataset

from st_simcse.cli.adapt.task import Task
from st_simcse.data.readers import SentenceReader

BATCH = 64
LEAST_TEXTS = 2 * BATCH


def texts_of(dataset: Dataset) -> Iterator[str]:
    """Those of a reader of sentences."""
    for rows in dataset.iter(1000):
        yield from rows["sentence"]


def write_corpus(task: Task, texts: Dataset, measured: set[str]) -> tuple[Dataset, int]:
    """The different texts that nothing is measured on, in a file and as a Dataset; and how many of the others."""
    seen: set[int] = set()
    without = 0

    def different() -> Iterator[str]:
        nonlocal without
        for text in texts_of(texts):
            if (key := hash(text)) not in seen:
                seen.add(key)
                if text in measured:
                    without += 1
                else:
                    yield text

    file = task.data("corpus")
    write(file, different())
    count = len(seen) - without
    if count < LEAST_TEXTS:
        raise ValueError(
            f"{count:,} different texts beside those of the dev and test data are too few: {LEAST_TEXTS} are the "
            f"least, two batches of {BATCH}, and some thousand teach a model more"
        )
    return SentenceReader().get_dataset(str(file)), without


def write(file: Path, texts: Iterator[str]) -> None:
    """A row a text, which may have line ends."""
    file.parent.mkdir(exist_ok=True)
    with file.open("w", encoding="utf-8") as output:
        for text in texts:
            output.write(json.dumps({"sentence": text}, ensure_ascii=False) + "\n")


def sample(texts: Dataset, rows: int) -> Iterator[str]:
    """So many of them, drawn at random, the same every time."""
    return texts_of(texts.select(sorted(random.Random(0).sample(range(len(texts)), rows))))
