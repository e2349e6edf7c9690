"""The STS and transfer tasks in the layout of SentEval: their files, numbers of rows, and readers."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

from st_simcse.data.formats import FileFormat, FileOrDataset
from st_simcse.data.lines import text_lines
from st_simcse.data.reader import Reader, Record
from st_simcse.data.scored_pairs import check_score

__all__ = [
    "STS_DEV_ROWS",
    "STS_ROWS",
    "STS_ZH_ROWS",
    "SUBSETS",
    "TRANSFER_FILES",
    "TRANSFER_ROWS",
    "TREC_CLASSES",
    "Example",
    "SentEvalReader",
    "check_rows",
    "senteval_tasks",
    "transfer_examples",
]

# A text or a pair of texts, and its class.
Example = tuple[Record, str]

# The number of scored pairs in the test sets of the STS tasks, and in the dev sets.
STS_ROWS = {"STS12": 3108, "STS13": 1500, "STS14": 3750, "STS15": 3000, "STS16": 1186, "STS-B": 1379, "SICK-R": 4927}
STS_DEV_ROWS = {"STS-B": 1500, "SICK-R": 500}

# The number of scored pairs in the five Chinese tasks of senteval_cn, which are also in C-MTEB. STS-B is a translation
# of the English task. CNSD's version lacks pairs that other versions have, such as stsb_multi_mt.
STS_ZH_ROWS: dict[str, dict[str, tuple[int, ...]]] = {
    "ATEC": {"train": (62_477,), "valid": (20_000,), "test": (20_000,)},
    "BQ": {"train": (100_000,), "valid": (10_000,), "test": (10_000,)},
    "LCQMC": {"train": (238_766,), "valid": (8_802,), "test": (12_500,)},
    "PAWSX": {"train": (49_401,), "valid": (2_000,), "test": (2_000,)},
    "STS-B": {"train": (5_231, 5_749), "valid": (1_458, 1_500), "test": (1_361, 1_379)},
}

# SentEval's own lists. STS13 lacks SMT, whose sentences are not freely available.
SUBSETS = {
    "STS12": ["MSRpar", "MSRvid", "SMTeuroparl", "surprise.OnWN", "surprise.SMTnews"],
    "STS13": ["FNWN", "headlines", "OnWN"],
    "STS14": ["deft-forum", "deft-news", "headlines", "OnWN", "images", "tweet-news"],
    "STS15": ["answers-forums", "answers-students", "belief", "headlines", "images"],
    "STS16": ["answer-answer", "headlines", "plagiarism", "postediting", "question-question"],
}

# The files of SentEval's transfer tasks by split, or by class for tasks without splits.
TRANSFER_FILES = {
    "MR": {"1": "MR/rt-polarity.pos", "0": "MR/rt-polarity.neg"},
    "CR": {"1": "CR/custrev.pos", "0": "CR/custrev.neg"},
    "SUBJ": {"1": "SUBJ/subj.objective", "0": "SUBJ/subj.subjective"},
    "MPQA": {"1": "MPQA/mpqa.pos", "0": "MPQA/mpqa.neg"},
    "SST2": {split: f"SST/binary/sentiment-{split}" for split in ("train", "dev", "test")},
    "TREC": {"train": "TREC/train_5500.label", "test": "TREC/TREC_10.label"},
    "MRPC": {split: f"MRPC/msr_paraphrase_{split}.txt" for split in ("train", "test")},
}


# The number of examples in these files. SentEval's training file of SST2 also has the phrases of the sentences, and
# other releases only have the sentences. The releases of MRPC's training file differ by four pairs.
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


def check_rows(
    path: Path,
    rows: int,
    expected: Sequence[int],
    allow_partial: bool = False,
    remedy: str = "download it again, or pass allow_partial= if it is meant to be smaller",
) -> None:
    """Checks the number of rows of a public file. Scores on a different number of rows would not be comparable.

    Args:
        path: The file, for the message.
        rows: The number of rows that it has.
        expected: The numbers of rows that it may have.
        allow_partial: Whether it may have fewer rows.
        remedy: The remedy in the message.

    Raises:
        ValueError: If the number of rows is not an expected one.

    Example:
        >>> check_rows(Path("STS12.tsv"), 2458, [3108], remedy="download it again")
        Traceback (most recent call last):
        ...
        ValueError: STS12.tsv has 2,458 rows, expected 3,108: download it again
    """
    if rows not in expected and not (allow_partial and rows < max(expected)):
        numbers = " or ".join(f"{number:,}" for number in expected)
        raise ValueError(f"{path} has {rows:,} rows, expected {numbers}: {remedy}")


def senteval_tasks(folder: str | os.PathLike[str]) -> dict[str, Path]:
    """Returns the paths of the seven STS tasks in SentEval's data, by task, or an empty dict if it is not SentEval's.

    Args:
        folder: SentEval's ``data/downstream``, a folder that contains ``SentEval``, or ``STS`` with ``SICK`` inside or
            next to it.
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
    """Reads the examples of a transfer task from the files that SentEval's download script writes.

    White space becomes single spaces, like those between SentEval's tokens. An empty line of MR, CR, SUBJ or MPQA is an
    empty text. Lines that are not UTF-8 are read as Latin-1, because TREC was published in it.

    Args:
        folder: SentEval's ``data/downstream``, or a folder that contains ``SentEval``.
        task: A task of ``TRANSFER_FILES``. MR, CR, SUBJ and MPQA have the single split ``all``.
        allow_partial: Whether files may have fewer examples than the released ones.
        **message: ``remedy``, as for :func:`check_rows`.

    Returns:
        The examples of each split. An example is a tuple of one or two texts, and a class.

    Raises:
        FileNotFoundError: If a file does not exist. The message says where it was expected.
        ValueError: If a line is not an example of the task, with file and line, or if a file has an unexpected number
            of rows.

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
            f"{folder} has no file {next(iter(files.values()))} for {task}: pass SentEval's data/downstream or a "
            "folder that contains SentEval, or download the data with `st-simcse data --sets sts`"
        )
    if missing := [name for name in files.values() if not (root / name).exists()]:
        raise FileNotFoundError(f"{root} has no file {', '.join(missing)} for {task}")
    is_single = task in ("MR", "CR", "SUBJ", "MPQA")
    examples: dict[str, list[Example]] = {}
    for key, name in files.items():
        read = list(_examples(root / name, key if is_single else None))
        check_rows(root / name, len(read), TRANSFER_ROWS[name], allow_partial, **message)
        examples.setdefault("all" if is_single else key, []).extend(read)
    return examples


def _examples(path: Path, label: str | None = None) -> Iterator[Example]:
    """Yields the examples of a file. If ``label`` is None, each line has its own class."""
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
    """Scored pairs of an STS task, from the files that SentEval's download script writes.

    A folder ``STS12-en-test`` to ``STS16-en-test`` has a file ``STS.input.SUBSET.txt`` for each subset, with two
    tab-separated sentences per line, and a file ``STS.gs.SUBSET.txt`` with their scores. The subsets are read one after
    another. An empty score means that nobody judged the pair. Such pairs are skipped and counted, and SentEval skips
    them too.

    The files of the STS benchmark (``sts-*.csv``, which are tab-separated despite their name) and of SICK
    (``SICK_*.txt``) can also be read.

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

    def _records(self, path: FileOrDataset) -> Iterator[Record]:
        for file, line, (sentence1, sentence2, score) in _pairs(Path(str(path)), self.how):
            if score:
                check_score(file, line, "score", score)
                yield sentence1, sentence2, score
            else:
                self.skipped["without a gold score"] += 1

    def _names(self, width: int) -> list[str]:
        return ["sentence1", "sentence2", "score"]


def _pairs(path: Path, how: FileFormat) -> Iterator[tuple[Path, int, Record]]:
    """Yields the file, the line, and (sentence1, sentence2, score) of each pair."""
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
                raise ValueError(f"{inputs} and {golds.name} have different numbers of lines: download them again")
            line, text = row
            yield inputs, line, (*_cells(inputs, line, text, (0, 1)), gold[1].strip())


def _cells(path: Path, line: int, text: str, places: tuple[int, ...]) -> Record:
    cells = text.split("\t")
    if len(cells) <= max(places):
        raise ValueError(
            f"{path}, line {line}: the line has {len(cells)} tab-separated cell(s), expected at least {max(places) + 1}"
        )
    return tuple(cells[place].strip() for place in places)
