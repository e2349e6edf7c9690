"""Figures of what st-simcse compare has measured: a test score by the dropout, or by the seconds of training.

python benchmarks/draw.py comparison dropout.png --by dropout
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import matplotlib.pyplot as plt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", help="the comparison's output_dir")
    parser.add_argument("picture")
    parser.add_argument("--by", choices=("dropout", "CPU seconds", "seconds"), default="dropout")
    parser.add_argument("--score", help='the first of the test scores when left out; "STS avg." is another')
    args = parser.parse_args()
    recipes: dict[str, list[tuple[float, float]]] = {}
    for path in Path(args.folder).glob("*/seed-*.json"):
        result = json.loads(path.read_text())
        options, score = result["options"], args.score or next(iter(result["test"]))
        if args.by != "dropout":
            place = result["cost"][args.by]
        elif "--dropout" in options:
            place = float(options[options.index("--dropout") + 1])
        else:
            continue
        recipes.setdefault(result["recipe"], []).append((place, result["test"][score]))
    points = sorted(
        (statistics.mean(places), statistics.mean(scores), statistics.stdev(scores) if len(scores) > 1 else 0.0, name)
        for name, runs in recipes.items()
        for places, scores in [list(zip(*runs, strict=True))]
    )
    places, means, spreads, names = zip(*points, strict=True)
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    axes.errorbar(places, means, spreads, fmt="o-", capsize=4)
    if args.by != "dropout":
        for number, (name, *place) in enumerate(zip(names, places, means, strict=True)):
            # Above and below in turn, since neighbours would overlap.
            axes.annotate(name, place, xytext=(4, -12 if number % 2 else 6), textcoords="offset points")
    axes.set(xlabel=f"{args.by} of training", ylabel=f"{score}, mean and spread over seeds")
    axes.grid(alpha=0.3)
    figure.savefig(args.picture, dpi=120)


if __name__ == "__main__":
    main()
