"""Downloads of public data sets to files."""

from __future__ import annotations

import csv
import os
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from st_simcse.data.hub_dataset import HubDataset, hub_file
from st_simcse.data.reader import Reader
from st_simcse.data.readers import SentenceReader, TripletReader
from st_simcse.data.scored_pairs import STSReader
from st_simcse.data.senteval import (
    STS_DEV_ROWS,
    STS_ROWS,
    STS_ZH_ROWS,
    TRANSFER_FILES,
    SentEvalReader,
    check_rows,
    senteval_tasks,
    transfer_examples,
)

__all__ = ["DATA_SETS", "PublicFile", "download"]

PRINCETON = "princeton-nlp/datasets-for-simcse"

# SentEval's data consists of about 100 files with less than 100 MB.
MAX_FILES, MAX_BYTES = 10_000, 2**30


@dataclass(frozen=True)
class PublicFile:
    """A file that :func:`download` writes.

    Attributes:
        path: The path in the folder. ``.txt`` files hold sentences, ``.csv`` files triplets, ``.tsv`` files scored
            pairs with a header, and ``.data`` files scored pairs without a header.
        rows: The number of rows that the file must have. None for SentEval's data, whose fourteen tasks are checked
            one by one.
        source: The data set that the rows come from, the name of a file published by the authors of SimCSE, or the
            folder of SentEval's data (for the test set of SICK-R).
    """

    path: str
    rows: int | None
    source: HubDataset | str | Path


# SICK-R on the hub mixes the 9,927 pairs of its three splits and does not say which belong to which. The 4,927 pairs of
# the test set, which the paper uses, are in SentEval's data.
DATA_SETS = {
    "sts": [
        *(
            PublicFile(f"sts/STS{year}.tsv", STS_ROWS[f"STS{year}"], HubDataset(f"mteb/sts{year}-sts", split="test"))
            for year in range(12, 17)
        ),
        PublicFile("sts/STSB-train.tsv", 5749, HubDataset("mteb/stsbenchmark-sts")),
        PublicFile("sts/STSB-dev.tsv", STS_DEV_ROWS["STS-B"], HubDataset("mteb/stsbenchmark-sts", split="validation")),
        PublicFile("sts/STSB-test.tsv", STS_ROWS["STS-B"], HubDataset("mteb/stsbenchmark-sts", split="test")),
        PublicFile("senteval", None, "senteval.tar"),
        PublicFile("sts/SICKR-test.tsv", STS_ROWS["SICK-R"], Path("senteval")),
    ],
    "sts_zh": [
        PublicFile(
            f"senteval_cn/{task}/{task}.{split}.data",
            rows[0],
            HubDataset(f"C-MTEB/{task.replace('-', '')}", split="validation" if split == "valid" else split),
        )
        for task, splits in STS_ZH_ROWS.items()
        for split, rows in splits.items()
    ],
    "wiki1m": [PublicFile("wiki1m_for_simcse.txt", 1_000_000, "wiki1m_for_simcse.txt")],
    "nli": [PublicFile("nli_for_simcse.csv", 275_601, "nli_for_simcse.csv")],
    "all-nli": [PublicFile("all_nli_triplets.csv", 557_850, HubDataset("sentence-transformers/all-nli", "triplet"))],
}


def download(folder: str | os.PathLike[str], sets: Sequence[str] = tuple(DATA_SETS)) -> Iterator[tuple[Path, int]]:
    """Downloads public data sets to files that the readers and :func:`~st_simcse.sts_evaluators` can read.

    A file gets its final name only when it is complete and has the expected number of rows, so a second call continues
    where the first one stopped. Downloads also stay in the hub's cache.

    Args:
        folder: The folder to write to.
        sets: The names of the data sets: ``sts`` (the tables of the seven STS tasks, and SentEval's data in its own
            layout), ``sts_zh`` (the five Chinese STS tasks from C-MTEB, in the layout of senteval_cn), ``wiki1m`` and
            ``nli`` (the paper's training data), and ``all-nli`` (triplets from all of SNLI and MultiNLI).

    Yields:
        The path of each file and its number of rows.

    Raises:
        OSError: If the hub cannot be reached.
        ValueError: If a file has an unexpected number of rows, if its SHA-256 differs from the one on the hub, or if an
            archive is far larger than SentEval's data.

    Example:
        ::

            for path, rows in download("data", ["sts"]):
                print(path, rows)
    """
    for name in sets:
        for file in DATA_SETS[name]:
            path = Path(folder, file.path)
            partial = path.with_name(f"partial-{path.name}")
            found = path if path.exists() else partial
            if found is partial:
                path.parent.mkdir(parents=True, exist_ok=True)
                _fetch(Path(folder), file.source, partial)
            remedy = "delete it to download it again" if found is path else "the data on the hub has changed"
            if file.rows is None:
                rows = _check_senteval(found, remedy)
            else:
                check_rows(found, rows := _count(found), (file.rows,), remedy=remedy)
            found.replace(path)
            yield path, rows


def _fetch(folder: Path, source: HubDataset | str | Path, target: Path) -> None:
    if isinstance(source, HubDataset):
        _write_table(source.load(), target)
    elif isinstance(source, Path):
        _write_table(SentEvalReader().get_dataset(senteval_tasks(folder / source)["SICK-R"]), target)
    elif source.endswith(".tar"):
        shutil.rmtree(target, ignore_errors=True)
        _extract(hub_file(PRINCETON, source), target)
    else:
        shutil.copyfile(hub_file(PRINCETON, source), target)


def _extract(archive: Path, target: Path) -> None:
    """Unpacks the archive of SentEval's data. Refuses one that is too large before anything is written."""
    try:
        with tarfile.open(archive, "r:") as tar:
            files = size = 0
            for member in tar:
                files, size = files + 1, size + member.size
                if files > MAX_FILES or size > MAX_BYTES:
                    raise ValueError(
                        f"{archive} would unpack to more than {MAX_FILES:,} files or {MAX_BYTES:,} bytes, but "
                        "SentEval's data is far smaller. This is the wrong archive, so nothing was unpacked"
                    )
            tar.extractall(target, filter="data")
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(
            f"{archive} is damaged or not a tar archive ({error}): delete it, and the next call downloads it again"
        ) from error


def _write_table(dataset: Any, target: Path) -> None:
    scored = target.suffix in (".tsv", ".data")
    columns = ["sentence1", "sentence2", "score"] if scored else ["anchor", "positive", "negative"]
    frame = dataset.select_columns(columns).to_pandas()
    if scored:
        # Cells of tsv files are not quoted, so they cannot contain tabs or line ends.
        frame = frame.replace(r"[\t\r\n]+", " ", regex=True)
        frame.to_csv(target, sep="\t", index=False, quoting=csv.QUOTE_NONE, header=target.suffix == ".tsv")
    else:
        frame.to_csv(target, index=False)


def _count(path: Path) -> int:
    """Returns the number of rows that the file's reader finds, including those that it skips."""
    if path.suffix in (".tsv", ".data"):
        reader: Reader = STSReader(delimiter="\t")
    else:
        reader = {".txt": SentenceReader, ".csv": TripletReader}[path.suffix]()
    return sum(1 for _ in reader.read(path)) + sum(reader.skipped.values())


def _check_senteval(folder: Path, remedy: str) -> int:
    """Returns the number of pairs and examples of SentEval's fourteen tasks.

    Raises:
        ValueError: If a file has an unexpected number of rows.
    """
    total = 0
    for task, path in senteval_tasks(folder).items():
        check_rows(path, rows := sum(1 for _ in SentEvalReader().read(path)), (STS_ROWS[task],), remedy=remedy)
        total += rows
    return total + sum(
        len(examples) for task in TRANSFER_FILES for examples in transfer_examples(folder, task, remedy=remedy).values()
    )
