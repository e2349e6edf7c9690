"""Draws the results of st-simcse compare: a test score by the dropout or by the seconds of training.

python benchmarks/draw.py comparison dropout.png --by dropout
"""

from __future__ import annotations

import argparse
import json
import statistics
from itertools import cycle
from pathlib import Path

from st_simcse.plots import MARKERS, grid_behind, legend_outside, make_figure, save_figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", help="the comparison's output_dir")
    parser.add_argument("picture")
    parser.add_argument("--by", choices=("dropout", "CPU seconds", "seconds"), default="dropout")
    parser.add_argument("--score", help='name of a test score, such as "STS avg."; defaults to the first')
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
    if not recipes:
        parser.error(f"{args.folder} has no results of st-simcse compare by {args.by}. Pass its --output_dir.")
    points = sorted(
        (statistics.mean(places), statistics.mean(scores), statistics.stdev(scores) if len(scores) > 1 else 0.0, name)
        for name, runs in recipes.items()
        for places, scores in [list(zip(*runs, strict=True))]
    )
    places, means, spreads, names = zip(*points, strict=True)
    figure, axes = make_figure(args.picture)
    numbers = [f"{mean:.2f} ± {spread:.2f}" for mean, spread in zip(means, spreads, strict=True)]
    if args.by == "dropout":
        axes.errorbar(places, means, spreads, fmt="o-", capsize=4)
        for text, place, mean, spread in zip(numbers, places, means, spreads, strict=True):
            axes.annotate(text, (place, mean + spread), (0, 6), textcoords="offset points", ha="center")
        axes.margins(0.12)
    else:
        dots = [
            axes.errorbar(place, mean, spread, fmt=marker, capsize=4)
            for place, mean, spread, marker in zip(places, means, spreads, cycle(MARKERS), strict=False)
        ]
        legend_outside(figure, dots, [f"{name}: {text}" for name, text in zip(names, numbers, strict=True)])
    axes.set(xlabel=f"{args.by} of training", ylabel=f"{score}, mean and spread over seeds")
    grid_behind(axes)
    save_figure(figure, args.picture)


if __name__ == "__main__":
    main()
