"""The files of texts that ``st-simcse adapt`` writes: all texts to train on, and samples of them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

from datasets import Dataset

from st_simcse.cli.adapt.task import Task
from st_simcse.data.readers import SentenceReader, texts_of

BATCH = 64
LEAST_TEXTS = 2 * BATCH


def write_corpus(task: Task, texts: Dataset, measured: set[str]) -> tuple[Dataset, int]:
    """Writes the different texts to a file, without the texts that something is measured on.

    Args:
        task: The task, which knows the path of the file.
        texts: The corpus.
        measured: The texts of the dev and test data.

    Returns:
        The texts in the file, and the number of texts that were left out because they are in ``measured``.

    Raises:
        ValueError: If fewer than 128 texts remain.
    """
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
            f"{count:,} different texts, not counting those of the dev and test data, are too few to adapt a model: "
            f"pass at least {LEAST_TEXTS}, which is two batches of {BATCH}; a few thousand are better"
        )
    return SentenceReader().get_dataset(str(file)), without


def write(file: Path, texts: Iterator[str]) -> None:
    """Writes one JSON row per text, because a text may have line ends."""
    file.parent.mkdir(exist_ok=True)
    with file.open("w", encoding="utf-8") as output:
        for text in texts:
            output.write(json.dumps({"sentence": text}, ensure_ascii=False) + "\n")


def sample(texts: Dataset, rows: int) -> Iterator[str]:
    """Yields this many texts, drawn at random with a fixed seed."""
    return texts_of(texts.select(sorted(random.Random(0).sample(range(len(texts)), rows))))
