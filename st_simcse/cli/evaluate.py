"""``st-simcse evaluate``: the paper's STS table, a row a model."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from st_simcse.cli.parsing import parse


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
    pooling: Literal["as saved", "cls", "mean", "first_last_avg", "last2_avg"] = field(
        default="as saved", metadata={"help": "Replaces the pooling that the model was saved with."}
    )
    max_seq_length: int | None = field(default=None, metadata={"help": "Texts are cut off after so many tokens."})
    batch_size: int = field(default=64, metadata={"help": "Sentences a forward pass."})
    json_file: str | None = field(default=None, metadata={"help": "Write the numbers here too, as JSON."})
    csv_file: str | None = field(default=None, metadata={"help": "The same as CSV."})
    plot_file: str | None = field(default=None, metadata={"help": "Draw a bar chart of them (.png, .svg, .pdf)."})
    mteb: bool = field(default=False, metadata={"help": "MTEB's tasks on the data that the package mteb downloads."})


def run(argv: Sequence[str]) -> dict[str, dict[str, float]]:
    """Print the table and return it; to files too where asked."""
    (args,) = parse("evaluate", argv, EvaluateArguments, example="st-simcse evaluate --model output --sts_dir sts")
    if (args.sts_dir is None) != args.mteb:
        raise ValueError("pass either --sts_dir with the folder of the data, or --mteb for MTEB's own")

    from st_simcse.checkpoints import load_model
    from st_simcse.evaluation import format_table, mteb_scores, sts_evaluators, sts_scores
    from st_simcse.modeling import build_model
    from st_simcse.plots import plot_scores

    evaluator = None if args.mteb else sts_evaluators(args.sts_dir, batch_size=args.batch_size)
    rows = {}
    for name in args.model:
        if args.pooling == "as saved":
            model = load_model(name)
            if args.max_seq_length:
                model.max_seq_length = args.max_seq_length
        else:
            model = build_model(name, args.pooling, args.max_seq_length)
        rows[name] = mteb_scores(model) if evaluator is None else sts_scores(evaluator(model))
    print(format_table(rows))
    if args.json_file:
        Path(args.json_file).write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    if args.csv_file:
        with Path(args.csv_file).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["model", *next(iter(rows.values()))])
            writer.writeheader()
            writer.writerows({"model": name, **row} for name, row in rows.items())
    if args.plot_file:
        plot_scores(rows, args.plot_file, "Spearman's correlation × 100")
    return rows
