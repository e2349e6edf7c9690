"""``st-simcse evaluate``: the paper's STS table, a row a model."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tqdm import tqdm

from st_simcse.cli.parsing import check_positive, parse
from st_simcse.plots import check_picture, plot_scores

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.evaluation import SequentialEvaluator
    from torch import Tensor, nn

Rows = Mapping[str, Mapping[str, float]]


@dataclass
class EvaluateArguments:
    model: list[str] = field(metadata={"help": "One or several models: folders or names on the hub."})
    sts_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder with STS12.tsv to STS16.tsv, STSB-test.tsv and SICKR-test.tsv (st-simcse data makes one), "
            "or with SentEval's data."
        },
    )
    pooling: Literal["as saved", "cls", "mean", "lasttoken", "weightedmean", "first_last_avg", "last2_avg"] = field(
        default="as saved", metadata={"help": "Replaces the pooling that the model was saved with."}
    )
    max_seq_length: int | None = field(default=None, metadata={"help": "Texts are cut off after so many tokens."})
    prompt: str | None = field(default=None, metadata={"help": "Put before every text; the model's default if none."})
    prompt_name: str | None = field(default=None, metadata={"help": "Instead of a text: one of the model's own."})
    batch_size: int = field(default=64, metadata={"help": "Sentences a forward pass."})
    json_file: str | None = field(default=None, metadata={"help": "Write the numbers here too, as JSON."})
    csv_file: str | None = field(default=None, metadata={"help": "The same as CSV."})
    plot_file: str | None = field(default=None, metadata={"help": "Draw a bar chart of them (.png, .svg, .pdf)."})
    mteb: bool = field(default=False, metadata={"help": "MTEB's tasks on the data that the package mteb downloads."})


def run(argv: Sequence[str]) -> dict[str, dict[str, float]]:
    """Print the table and return it; to files too where asked. Models that are done are in it whatever happens next.

    Raises:
        ValueError: at once for options that do not fit; at the end for a model without a correlation.
        OSError: at once for a file that cannot be written, and for a model that cannot be loaded.
    """
    (args,) = parse("evaluate", argv, EvaluateArguments, example="st-simcse evaluate --model output --sts_dir sts")
    if (args.sts_dir is None) != args.mteb:
        raise ValueError("pass either --sts_dir with the folder of the data, or --mteb for MTEB's own")
    check_positive(args, "batch_size", "max_seq_length")
    _check_outputs(args)

    from st_simcse.evaluation import check_defined, format_table, mteb_scores, sts_evaluators

    evaluator = None if args.mteb else sts_evaluators(args.sts_dir, batch_size=args.batch_size)
    names = list(dict.fromkeys(args.model))
    for name in names[1:]:
        _load(name, args)  # whether it can be, before the work on the first
    rows: dict[str, dict[str, float]] = {}
    try:
        for name in names:
            model = _load(name, args)
            rows[name] = mteb_scores(model) if evaluator is None else _sts_scores(model, evaluator, name)
    finally:
        if rows:
            print(format_table(rows))
            _write(rows, args)
    check_defined(rows)
    return rows


def _check_outputs(args: EvaluateArguments) -> None:
    paths = [Path(path) for path in (args.json_file, args.csv_file, args.plot_file) if path]
    for path in paths:
        if path.is_dir():
            raise IsADirectoryError(f"cannot write {path}: it is a folder")
        if not path.parent.is_dir():
            raise FileNotFoundError(f"cannot write {path}: there is no folder {path.parent}")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise PermissionError(f"cannot write {path}: permission denied")
    if len({path.resolve() for path in paths}) < len(paths):
        raise ValueError("--json_file, --csv_file and --plot_file need names of their own")
    if args.plot_file:
        check_picture(args.plot_file)


def _load(name: str, args: EvaluateArguments) -> SentenceTransformer:
    from st_simcse.checkpoints import load_model
    from st_simcse.modeling import build_model
    from st_simcse.prompts import set_prompt

    if args.pooling != "as saved":
        model = build_model(name, args.pooling, args.max_seq_length)
    else:
        model = load_model(name)
        if args.max_seq_length:
            model.max_seq_length = args.max_seq_length
    set_prompt(model, args.prompt, args.prompt_name)
    return model


def _sts_scores(model: SentenceTransformer, evaluator: SequentialEvaluator, name: str) -> dict[str, float]:
    """The scores of all tasks, under a bar that counts their sentences."""
    from st_simcse.evaluation import sts_scores

    results: dict[str, float] = {}
    tasks: list[Any] = evaluator.evaluators
    sentences = sum(len(task.sentences1) + len(task.sentences2) for task in tasks)
    with tqdm(total=sentences, unit=" sentences", leave=False, disable=None) as bar:

        def count(module: nn.Module, inputs: tuple[Any, ...], output: dict[str, Tensor]) -> None:
            bar.update(len(output["sentence_embedding"]))

        counter = model[-1].register_forward_hook(count)
        for task in tasks:
            bar.set_description(f"{name}, {task.name}")
            results |= task(model)
        counter.remove()
    return sts_scores(results)


def _write(rows: Rows, args: EvaluateArguments) -> None:
    if args.json_file:
        # JSON has no nan.
        numbers = {
            name: {task: value if math.isfinite(value) else None for task, value in row.items()}
            for name, row in rows.items()
        }
        Path(args.json_file).write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    if args.csv_file:
        with Path(args.csv_file).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["model", *next(iter(rows.values()))])
            writer.writeheader()
            writer.writerows({"model": _no_formula(name), **row} for name, row in rows.items())
    if args.plot_file:
        plot_scores(rows, args.plot_file, "Spearman's correlation × 100")


def _no_formula(text: str) -> str:
    """With an apostrophe before what a spreadsheet would compute."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
