"""The public data sets: downloaded from the hub into files that readers take, or SentEval's folder as it is on disk."""

from __future__ import annotations

import csv
import os
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from st_simcse.formats import FileFormat, Source
from st_simcse.hub import HubDataset, hub_file
from st_simcse.lines import text_lines
from st_simcse.reader import Reader, Record
from st_simcse.readers import SentenceReader, TripletReader
from st_simcse.scored_pairs import STSReader, check_score

__all__ = [
    "DATA_SETS",
    "STS_ROWS",
    "STS_ZH_ROWS",
    "Example",
    "PublicFile",
    "SentEvalReader",
    "check_rows",
    "download",
    "senteval_tasks",
    "transfer_examples",
]

# A text or a pair of texts, and its class.
Example = tuple[Record, str]

PRINCETON = "princeton-nlp/datasets-for-simcse"
# SentEval's data are some hundred files of less than 100 MB.
MAX_FILES, MAX_BYTES = 10_000, 2**30


# The scored pairs of the test sets of the STS tasks, and of the dev sets.
STS_ROWS = {"STS12": 3108, "STS13": 1500, "STS14": 3750, "STS15": 3000, "STS16": 1186, "STS-B": 1379, "SICK-R": 4927}
STS_DEV_ROWS = {"STS-B": 1500, "SICK-R": 500}

# The scored pairs of the five Chinese tasks of senteval_cn, which C-MTEB has too. STS-B is a translation of the English
# one, of which CNSD's lacks pairs that others, such as stsb_multi_mt's, have.
STS_ZH_ROWS: dict[str, dict[str, tuple[int, ...]]] = {
    "ATEC": {"train": (62_477,), "valid": (20_000,), "test": (20_000,)},
    "BQ": {"train": (100_000,), "valid": (10_000,), "test": (10_000,)},
    "LCQMC": {"train": (238_766,), "valid": (8_802,), "test": (12_500,)},
    "PAWSX": {"train": (49_401,), "valid": (2_000,), "test": (2_000,)},
    "STS-B": {"train": (5_231, 5_749), "valid": (1_458, 1_500), "test": (1_361, 1_379)},
}


@dataclass(frozen=True)
class PublicFile:
    """A file that :func:`download` makes.

    Attributes:
        path: where it goes. ``.txt`` holds sentences, ``.csv`` triplets, ``.tsv`` scored pairs, and ``.data`` those
            without a header.
        rows: how many it must have; None for SentEval's data, whose fourteen tasks have numbers of their own.
        source: a data set whose rows it gets, a file of the authors of SimCSE, or the folder of SentEval's data
            (for the test set of SICK-R).
    """

    path: str
    rows: int | None
    source: HubDataset | str | Path


# On the hub SICK-R has the pairs of all its three splits in one, 9,927, and does not say which are which. The 4,927 of
# the test set, which the paper uses, come with SentEval's data.
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

# SentEval's own lists; STS13 is without SMT, whose sentences are not free.
SUBSETS = {
    "STS12": ["MSRpar", "MSRvid", "SMTeuroparl", "surprise.OnWN", "surprise.SMTnews"],
    "STS13": ["FNWN", "headlines", "OnWN"],
    "STS14": ["deft-forum", "deft-news", "headlines", "OnWN", "images", "tweet-news"],
    "STS15": ["answers-forums", "answers-students", "belief", "headlines", "images"],
    "STS16": ["answer-answer", "headlines", "plagiarism", "postediting", "question-question"],
}

# SentEval's transfer tasks: files by split; where there is no split, by class.
TRANSFER_FILES = {
    "MR": {"1": "MR/rt-polarity.pos", "0": "MR/rt-polarity.neg"},
    "CR": {"1": "CR/custrev.pos", "0": "CR/custrev.neg"},
    "SUBJ": {"1": "SUBJ/subj.objective", "0": "SUBJ/subj.subjective"},
    "MPQA": {"1": "MPQA/mpqa.pos", "0": "MPQA/mpqa.neg"},
    "SST2": {split: f"SST/binary/sentiment-{split}" for split in ("train", "dev", "test")},
    "TREC": {"train": "TREC/train_5500.label", "test": "TREC/TREC_10.label"},
    "MRPC": {split: f"MRPC/msr_paraphrase_{split}.txt" for split in ("train", "test")},
}
# The examples of these files. SentEval's training file of SST2 has the phrases of the sentences too, other releases the
# sentences alone; of MRPC's training file releases differ by four pairs.
TRANSFER_ROWS: dict[str, tuple[int, ...]] = {
    "MR/rt-polarity.pos": (5331,),
    "MR/rt-polarity.neg": (5331,),
    "CR/custrev.pos": (2407,),
    "CR/custrev.neg": (1368,),
    "SUBJ/subj.objective": (5000,),
    "SUBJ/subj.subjective": (5000,),
    "MPQA/mpqa.pos": (3312,),
    "MPQA/mpqa.neg": (7294,),
    "SST/binary/sentiment-train": (67349, 6920),
    "SST/binary/sentiment-dev": (872,),
    "SST/binary/sentiment-test": (1821,),
    "TREC/train_5500.label": (5452,),
    "TREC/TREC_10.label": (500,),
    "MRPC/msr_paraphrase_train.txt": (4076, 4080),
    "MRPC/msr_paraphrase_test.txt": (1725,),
}
TREC_CLASSES = ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM")


def download(folder: str | os.PathLike[str], sets: Sequence[str] = tuple(DATA_SETS)) -> Iterator[tuple[Path, int]]:
    """The public data sets as files that the readers and :func:`~st_simcse.sts_evaluators` take.

    A file gets its name when it is complete and has the rows that it must have, so that a second call goes on where the
    first was stopped. What has been downloaded also stays in the hub's cache.

    Args:
        folder: where they go.
        sets: some of ``sts`` (the tables of the seven STS tasks, and SentEval's data in its own layout), ``sts_zh``
            (the five Chinese STS tasks from C-MTEB, in the layout of senteval_cn), ``wiki1m`` and ``nli`` (the paper's
            training data), ``all-nli`` (triplets of the whole of SNLI and MultiNLI).

    Yields:
        Each file's path and its number of rows.

    Raises:
        OSError: if the hub cannot be reached.
        ValueError: for a file with other rows than it must have, or other bytes than the hub announced, and for an
            archive that is far larger than SentEval's data.

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
            remedy = "delete it to fetch it again" if found is path else "the data on the hub have changed"
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
    """Unpack an archive that holds what SentEval's data may: a bomb is refused before anything is written."""
    try:
        with tarfile.open(archive, "r:") as tar:
            files = size = 0
            for member in tar:
                files, size = files + 1, size + member.size
                if files > MAX_FILES or size > MAX_BYTES:
                    raise ValueError(
                        f"{archive} unpacks to more than {MAX_FILES:,} files or {MAX_BYTES:,} bytes, and SentEval's "
                        "data are far smaller: it is not what it should be, and nothing was unpacked"
                    )
            tar.extractall(target, filter="data")
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(
            f"{archive} is damaged or no tar archive ({error}): delete it, and the same call fetches it again"
        ) from error


def _write_table(dataset: Any, target: Path) -> None:
    scored = target.suffix in (".tsv", ".data")
    columns = ["sentence1", "sentence2", "score"] if scored else ["anchor", "positive", "negative"]
    frame = dataset.select_columns(columns).to_pandas()
    if scored:
        # In tsv files nothing is quoted, and a cell is one line.
        frame = frame.replace(r"[\t\r\n]+", " ", regex=True)
        frame.to_csv(target, sep="\t", index=False, quoting=csv.QUOTE_NONE, header=target.suffix == ".tsv")
    else:
        frame.to_csv(target, index=False)


def _count(path: Path) -> int:
    """The rows of a file as its reader finds them, also those that it skips."""
    if path.suffix in (".tsv", ".data"):
        reader: Reader = STSReader(delimiter="\t")
    else:
        reader = {".txt": SentenceReader, ".csv": TripletReader}[path.suffix]()
    return sum(1 for _ in reader._read(path)) + sum(reader.skipped.values())


def _check_senteval(folder: Path, remedy: str) -> int:
    """The pairs and examples of SentEval's fourteen tasks; ValueError if a file has other rows than it must have."""
    total = 0
    for task, path in senteval_tasks(folder).items():
        check_rows(path, rows := sum(1 for _ in SentEvalReader()._read(path)), (STS_ROWS[task],), remedy=remedy)
        total += rows
    return total + sum(
        len(examples) for task in TRANSFER_FILES for examples in transfer_examples(folder, task, remedy=remedy).values()
    )


def check_rows(
    path: Path,
    rows: int,
    expected: Sequence[int],
    allow_partial: bool = False,
    remedy: str = "fetch it again, or pass allow_partial= if it is meant to be smaller",
) -> None:
    """ValueError if a public file has other rows than it must have: scores on these cannot be compared.

    Args:
        path: the file, for the message.
        rows: how many it has.
        expected: how many it may have.
        allow_partial: whether it may have fewer.
        remedy: what the message says to do about it.

    Example:
        >>> check_rows(Path("STS12.tsv"), 2458, [3108], remedy="fetch it again")
        Traceback (most recent call last):
        ...
        ValueError: STS12.tsv has 2,458 rows, expected 3,108: fetch it again
    """
    if rows not in expected and not (allow_partial and rows < max(expected)):
        numbers = " or ".join(f"{number:,}" for number in expected)
        raise ValueError(f"{path} has {rows:,} rows, expected {numbers}: {remedy}")


def senteval_tasks(folder: str | os.PathLike[str]) -> dict[str, Path]:
    """Where SentEval's data has the seven STS tasks, by task; empty if the folder is not SentEval's.

    Args:
        folder: SentEval's ``data/downstream``, a folder that holds ``SentEval``, or ``STS`` with ``SICK`` beside it.
    """
    places = ["", "STS", "downstream/STS", "data/downstream/STS", "SentEval/data/downstream/STS"]
    sts = next(
        (path for place in places if (path := Path(folder, place).absolute()).joinpath("STS12-en-test").is_dir()), None
    )
    if sts is None:
        return {}
    sick = sts / "SICK" if (sts / "SICK").is_dir() else sts.parent / "SICK"
    return {task: sts / f"{task}-en-test" for task in SUBSETS} | {
        "STS-B": sts / "STSBenchmark" / "sts-test.csv",
        "SICK-R": sick / "SICK_test_annotated.txt",
    }


def transfer_examples(
    folder: str | os.PathLike[str], task: str, allow_partial: bool = False, **message: str
) -> dict[str, list[Example]]:
    """The examples of a transfer task by split, as SentEval's download script leaves them.

    White space is that between SentEval's tokens, and an empty line of MR, CR, SUBJ and MPQA is an empty text. Lines
    that are not UTF-8 are read as Latin-1, which TREC is in as it was published.

    Args:
        folder: SentEval's ``data/downstream``, or a folder that holds ``SentEval``.
        task: one of ``TRANSFER_FILES``. MR, CR, SUBJ and MPQA have the single split ``all``.
        allow_partial: whether files may have fewer examples than the released ones.
        **message: ``remedy``, as for :func:`check_rows`.

    Raises:
        FileNotFoundError: for a file that is not there; says where it was looked for.
        ValueError: for a line that is no example of the task, naming file and line, and for a file with other rows
            than it must have.

    Example:
        >>> from pathlib import Path
        >>> Path("downstream/CR").mkdir(parents=True)
        >>> for name, text in (("custrev.pos", "works well ."), ("custrev.neg", "broke .")):
        ...     _ = Path("downstream/CR", name).write_text(text)
        >>> transfer_examples("downstream", "CR", allow_partial=True)
        {'all': [(('works well .',), '1'), (('broke .',), '0')]}
    """
    files = TRANSFER_FILES[task]
    places = [Path(folder, place) for place in ("", "downstream", "data/downstream", "SentEval/data/downstream")]
    root = next((place for place in places if (place / next(iter(files.values()))).exists()), None)
    if root is None:
        raise FileNotFoundError(
            f"{folder} lacks {next(iter(files.values()))} of {task}: expected SentEval's data/downstream, or a folder "
            "that holds SentEval; `st-simcse data --sets sts` fetches it"
        )
    if missing := [name for name in files.values() if not (root / name).exists()]:
        raise FileNotFoundError(f"{root} lacks {', '.join(missing)} of {task}")
    is_single = task in ("MR", "CR", "SUBJ", "MPQA")
    examples: dict[str, list[Example]] = {}
    for key, name in files.items():
        read = list(_examples(root / name, key if is_single else None))
        check_rows(root / name, len(read), TRANSFER_ROWS[name], allow_partial, **message)
        examples.setdefault("all" if is_single else key, []).extend(read)
    return examples


def _examples(path: Path, label: str | None = None) -> Iterator[Example]:
    """Those of a file, whose classes are in its lines if ``label`` is None."""
    texts: Sequence[str]
    classes: Sequence[str]
    for line, text in text_lines(path, FileFormat(), otherwise="latin-1"):
        if label is not None:
            texts, found, classes = (text,), label, (label,)
        elif path.parent.name == "TREC":
            head, _, question = text.partition(" ")
            texts, found, classes = (question,), head.partition(":")[0], TREC_CLASSES
        elif path.parent.name == "MRPC":
            if line == 1:
                continue
            found, *texts = _cells(path, line, text, (0, 3, 4))
            classes = ("0", "1")
        else:
            *texts, found = _cells(path, line, text, (0, 1))
            classes = ("0", "1")
        if found not in classes:
            raise ValueError(f"{path}, line {line}: {found!r} is not a class, expected one of {', '.join(classes)}")
        yield tuple(" ".join(one.split()) for one in texts), found


class SentEvalReader(Reader):
    """Scored pairs of one STS task as SentEval's download script leaves it.

    A folder ``STS12-en-test`` to ``STS16-en-test`` has ``STS.input.SUBSET.txt``, two tab-separated sentences a line,
    and ``STS.gs.SUBSET.txt`` with their scores; its subsets are read one after the other. An empty score means that
    nobody judged the pair: it is skipped and counted, as SentEval leaves it out. The files of the STS benchmark
    (``sts-*.csv``, tab separated in spite of their name) and of SICK (``SICK_*.txt``) are read too.

    Example:
        >>> from pathlib import Path
        >>> folder = Path("STS13-en-test")
        >>> folder.mkdir()
        >>> for subset in SUBSETS["STS13"]:
        ...     _ = (folder / f"STS.input.{subset}.txt").write_text("a dog .\\ta hound .\\na dog .\\ta car .\\n")
        ...     _ = (folder / f"STS.gs.{subset}.txt").write_text("4.5\\n\\n")
        >>> reader = SentEvalReader()
        >>> [example.texts for example in reader.get_examples(folder)][0]
        ['a dog .', 'a hound .', '4.5']
        >>> reader.skipped
        Counter({'without a gold score': 3})
    """

    def _records(self, path: Source) -> Iterator[Record]:
        for file, line, (sentence1, sentence2, score) in _pairs(Path(str(path)), self.how):
            if score:
                check_score(file, line, "score", score)
                yield sentence1, sentence2, score
            else:
                self.skipped["without a gold score"] += 1

    def _names(self, width: int) -> list[str]:
        return ["sentence1", "sentence2", "score"]


def _pairs(path: Path, how: FileFormat) -> Iterator[tuple[Path, int, Record]]:
    """File, line, and (sentence1, sentence2, score) of each pair."""
    if path.suffix:
        places, header = ((5, 6, 4), 0) if path.name.startswith("sts-") else ((1, 2, 3), 1)
        for line, text in text_lines(path, how):
            if line > header:
                yield path, line, _cells(path, line, text, places)
        return
    for subset in SUBSETS[path.name.removesuffix("-en-test")]:
        inputs, golds = path / f"STS.input.{subset}.txt", path / f"STS.gs.{subset}.txt"
        for row, gold in zip_longest(text_lines(inputs, how), text_lines(golds, how)):
            if row is None or gold is None:
                raise ValueError(f"{inputs} and {golds.name} differ in their number of lines")
            line, text = row
            yield inputs, line, (*_cells(inputs, line, text, (0, 1)), gold[1].strip())


def _cells(path: Path, line: int, text: str, places: tuple[int, ...]) -> Record:
    cells = text.split("\t")
    if len(cells) <= max(places):
        raise ValueError(f"{path}, line {line}: {len(cells)} tab-separated cells, expected {max(places) + 1} or more")
    return tuple(cells[place].strip() for place in places)
