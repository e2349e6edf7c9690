"""The STS and transfer tasks in the layout of SentEval: where they lie, how many rows they have, how they are read."""

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
