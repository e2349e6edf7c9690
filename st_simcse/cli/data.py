"""``st-simcse data``: downloads the public data sets as files for the other commands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from st_simcse.cli.libraries import import_libraries
from st_simcse.cli.parsing import check_outputs, parse

SETS = ["sts", "sts_zh", "wiki1m", "nli", "all-nli"]


@dataclass
class DownloadArguments:
    output_dir: str = field(
        default="data", metadata={"help": "Folder for the files. Files that already exist are kept."}
    )
    sets: list[str] = field(
        default_factory=SETS.copy,
        metadata={
            "choices": SETS,
            "help": "Data sets to download. sts: the seven STS tasks and SentEval's data; sts_zh: the five Chinese STS "
            "tasks of senteval_cn; wiki1m and nli: the paper's training data; all-nli: all triplets of SNLI and "
            "MultiNLI.",
        },
    )


def run(argv: Sequence[str]) -> dict[Path, int]:
    """Downloads the data sets, prints each file with its number of rows, and returns these numbers by file."""
    (args,) = parse("data", argv, DownloadArguments, example="st-simcse data --output_dir data --sets sts wiki1m")
    check_outputs(args)

    import_libraries()
    from st_simcse.data.download import download

    files = {}
    for path, files[path] in download(args.output_dir, args.sets):
        print(f"{path}: {files[path]:,} rows")
    return files
