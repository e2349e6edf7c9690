"""The public data sets: SentEval's STS folder as it is on disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

from st_simcse.readers import Reader, Record, Source, check_score, text_lines

__all__ = ["SentEvalReader", "senteval_tasks"]

# SentEval's own lists; STS13 is without SMT, whose sentences are not free.
SUBSETS = {
    "STS12": ["MSRpar", "MSRvid", "SMTeuroparl", "surprise.OnWN", "surprise.SMTnews"],
    "STS13": ["FNWN", "headlines", "OnWN"],
    "STS14": ["deft-forum", "deft-news", "headlines", "OnWN", "images", "tweet-news"],
    "STS15": ["answers-forums", "answers-students", "belief", "headlines", "images"],
    "STS16": ["answer-answer", "headlines", "plagiarism", "postediting", "question-question"],
}


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


class SentEvalReader(Reader):
    """Scored pairs of one STS task as SentEval's download script leaves it.

    A folder ``STS12-en-test`` to ``STS16-en-test`` has ``STS.input.SUBSET.txt``, two tab-separated sentences a line,
    and ``STS.gs.SUBSET.txt`` with their scores; its subsets are read one after the other. An empty score means that
    nobody judged the pair: it is skipped and counted, as SentEval leaves it out. The files of the STS benchmark
    (``sts-*.csv``, tab separated in spite of their name) and of SICK (``SICK_*.txt``) are read too.

    Example:
        >>> folder = getfixture("tmp_path") / "STS13-en-test"
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
        for file, line, (sentence1, sentence2, score) in _pairs(Path(str(path))):
            if score:
                check_score(file, line, "score", score)
                yield sentence1, sentence2, score
            else:
                self.skipped["without a gold score"] += 1

    def _names(self, width: int) -> list[str]:
        return ["sentence1", "sentence2", "score"]


def _pairs(path: Path) -> Iterator[tuple[Path, int, Record]]:
    """File, line, and (sentence1, sentence2, score) of each pair."""
    if path.suffix:
        places, header = ((5, 6, 4), 0) if path.name.startswith("sts-") else ((1, 2, 3), 1)
        for line, text in text_lines(path):
            if line > header:
                yield path, line, _cells(path, line, text, places)
        return
    for subset in SUBSETS[path.name.removesuffix("-en-test")]:
        inputs, golds = path / f"STS.input.{subset}.txt", path / f"STS.gs.{subset}.txt"
        for row, gold in zip_longest(text_lines(inputs), text_lines(golds)):
            if row is None or gold is None:
                raise ValueError(f"{inputs} and {golds.name} differ in their number of lines")
            line, text = row
            yield inputs, line, (*_cells(inputs, line, text, (0, 1)), gold[1].strip())


def _cells(path: Path, line: int, text: str, places: tuple[int, ...]) -> Record:
    cells = text.split("\t")
    if len(cells) <= max(places):
        raise ValueError(f"{path}, line {line}: {len(cells)} tab-separated cells, expected {max(places) + 1} or more")
    return tuple(cells[place].strip() for place in places)
