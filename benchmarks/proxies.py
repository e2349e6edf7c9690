"""Finds which measures without labels rank recipes like labels do: Kendall's tau by measure (rows) and data set.

python benchmarks/proxies.py measure --output_file cls.json --model_name_or_path MODEL --pooling cls
--model_max_length 32 --train_file wiki_2560.txt --held_out_file wiki_held_out.txt --dev_file STSB-dev.tsv --test_file
STSB-test.tsv --models COMPARISON

COMPARISON is the output folder of st-simcse compare --keep_models. Its recipes with seed 0 are compared with the
original model and its whitenings. The output file keeps all results, and the same command adds missing ones. Then

python benchmarks/proxies.py table cls.json mean.json ... [--short]

prints tau with each test measure. --short leaves out the whitenings with fewer dimensions and with power 0.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from candidates import CANDIDATES, Embedded, HeldOut
from embedded import DATA, WHITENINGS, StartArguments, finished, remembered, scores, under_dropout, whitenings
from scipy.stats import kendalltau, rankdata, spearmanr
from sentence_transformers import SentenceTransformer
from torch import Tensor
from transformers import HfArgumentParser

from st_simcse import SentenceReader
from st_simcse.evaluation import format_table
from st_simcse.models.checkpoints import load_model

Recipe = dict[str, Any]


@dataclass
class MeasureArguments(StartArguments):
    train_file: str = field(kw_only=True, metadata={"help": "Texts that each whitening is fitted on."})
    held_out_file: str = field(kw_only=True, metadata={"help": "Texts of the corpus that no model was trained on."})
    output_file: str = field(kw_only=True, metadata={"help": "JSON file that the results are added to."})
    held_out: int = field(default=1000, metadata={"help": "Maximum number of held-out texts to use."})
    models: str | None = field(default=None, metadata={"help": "Output folder of st-simcse compare --keep_models."})


def measure(argv: Sequence[str]) -> None:
    args, *groups = HfArgumentParser([MeasureArguments, *DATA]).parse_args_into_dataclasses(list(argv))
    output = Path(args.output_file)
    found: dict[str, Recipe] = json.loads(output.read_text()) if output.exists() else {}
    texts = list(SentenceReader().get_dataset(args.held_out_file)["sentence"])
    held_out, asked = HeldOut(texts[: args.held_out]), args.measures(groups)
    done = {name for name, recipe in found.items() if recipe["proxies"].keys() >= CANDIDATES.keys()}
    for name, model, noisy, labels in recipes(args, held_out.texts, done):
        view = Embedded(held_out, model.encode, noisy.numpy())
        recipe = found.setdefault(name, {"proxies": {}, "cosines": view.cosines()})
        recipe["labels"] = recipe.get("labels") or labels or scores(model, asked)
        recipe["proxies"] = {
            proxy: recipe["proxies"][proxy] if proxy in recipe["proxies"] else compute(view)
            for proxy, compute in CANDIDATES.items()
        }
        print(name, recipe["labels"], flush=True)
        output.write_text(json.dumps(found))


def recipes(
    args: MeasureArguments, held_out: Sequence[str], done: set[str]
) -> Iterator[tuple[str, SentenceTransformer, Tensor, dict[str, float]]]:
    """Yields the recipes that are not done: name, model, embeddings of the held-out texts under dropout, and scores.

    The scores are empty if the comparison did not measure them.
    """
    if not done >= {"before", *WHITENINGS}:
        start = args.model()
        noisy, model = under_dropout(start, held_out), remembered(start)
        texts = SentenceReader().get_dataset(args.train_file)["sentence"]
        for name, whitened in [("before", model), *whitenings(model, list(texts))]:
            if name not in done:
                yield name, whitened, finished(whitened, noisy), {}
    for folder in sorted(Path(args.models).glob("*/seed-0")) if args.models else []:
        trained = folder.parent.name
        if trained not in done and (numbers := folder.with_suffix(".json")).exists():
            result = json.loads(numbers.read_text())
            start = load_model(str(folder))
            noisy, model = under_dropout(start, held_out), remembered(start)
            yield trained, model, finished(model, noisy), result["dev"] | result["test"]


def table(argv: Sequence[str]) -> None:
    is_short = "--short" in argv
    columns: dict[str, tuple[dict[str, list[float]], list[float]]] = {}
    for file in (word for word in argv if word != "--short"):
        rows = json.loads(Path(file).read_text())
        if is_short:
            rows = {name: row for name, row in rows.items() if not name.startswith("power 0,") and "/3" not in name}
        known = proxies(rows)
        for test in (label for label in next(iter(rows.values()))["labels"] if label.endswith("test")):
            labels = {name: [row["labels"][name] for row in rows.values()] for name in (test, test[:-4] + "dev")}
            name = f"{Path(file).stem}, {test[:-5]} ({len(rows)})"
            columns[name] = known | {"(its dev set)": labels[test[:-4] + "dev"]}, labels[test]
    every = next(iter(columns.values()))[0]
    taus = {proxy: {name: tau(known[proxy], labels) for name, (known, labels) in columns.items()} for proxy in every}
    gains = {
        proxy: {name: labels[int(np.argmax(known[proxy]))] - labels[0] for name, (known, labels) in columns.items()}
        for proxy in every
    }
    best = {name: max(labels) - labels[0] for name, (_, labels) in columns.items()}
    print("Kendall's tau with the test measure\n\n" + report(taus))
    print("\nGain of the chosen recipe over the original model in the test measure\n")
    print(report(gains | {"(best)": best}))
    print("\nMean ranks of two measures: the five pairs with the highest minimum of tau\n")
    pairs = {
        f"{one}; {other}": {
            name: tau(rankdata(known[one]) + rankdata(known[other]), labels)
            for name, (known, labels) in columns.items()
        }
        for one, other in combinations([proxy for proxy in every if proxy[0] != "("], 2)
    }
    top = sorted(pairs, key=lambda pair: -min(pairs[pair].values()))[:5]
    print(report({pair: pairs[pair] for pair in top}))


def proxies(rows: Mapping[str, Recipe]) -> dict[str, list[float]]:
    """Returns the measures by name, one value per recipe, and the agreement of each recipe with the average of all."""
    found = {proxy: [row["proxies"][proxy] for row in rows.values()] for proxy in next(iter(rows.values()))["proxies"]}
    ranked = np.stack([rankdata(row["cosines"]) for row in rows.values()])
    return found | {"agreement with the average": [float(spearmanr(row, ranked.mean(0))[0]) for row in ranked]}


def tau(one: Sequence[float], other: Sequence[float]) -> float:
    return float(kendalltau(one, other).statistic)


def report(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Formats a table, with the minimum and the mean of each row."""
    return format_table(
        {
            name: dict(row) | {"min.": min(row.values()), "mean": statistics.mean(row.values())}
            for name, row in rows.items()
        },
        corner="measure",
    )


if __name__ == "__main__":
    {"measure": measure, "table": table}[sys.argv[1]](sys.argv[2:])
