"""The choice of a recipe by scores on dev data, or of the model before training if no recipe is better."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["Choice", "Kind", "choose", "noise"]

Kind = Literal["pairs", "classes", "queries"]

# The scores of two models on the same n rows differ by chance, with a standard error of about this number of points
# divided by √n. Measured between all-MiniLM-L6-v2 and the same model whitened with the powers 0.25 and 1, the number is
# 4 and 11 for Spearman's correlation (STS-B dev, bootstrapped), 23 and 44 for the accuracy of ten neighbours, and 8 and
# 23 for NDCG@10 (AG News).
NOISE: dict[Kind, float] = {"pairs": 10.0, "classes": 20.0, "queries": 10.0}


def noise(dev: Iterable[tuple[Kind, int]]) -> float:
    """Returns how many points (0 to 100) the mean scores of two models may differ by chance. A gain must be larger.

    This is about the standard error of the difference between two similar models. It falls with the square root of the
    number of rows: it is 1 point for 100 scored pairs, and a quarter of a point for 1,500.

    Args:
        dev: The kind and the number of rows of each score in the mean.

    Example:
        >>> noise([("pairs", 100)]), round(noise([("classes", 1900), ("queries", 1900)]), 2)
        (1.0, 0.26)
    """
    errors = [NOISE[kind] / math.sqrt(rows) for kind, rows in dev]
    return math.hypot(*errors) / len(errors)


@dataclass(frozen=True)
class Choice:
    """The result of :func:`choose`.

    Args:
        name: The name of the chosen recipe, or of the model before training.
        why: The reason in one or two sentences.
    """

    name: str
    why: str


def choose(scores: Mapping[str, Sequence[float]], before: str, least: float) -> Choice:
    """Chooses the simplest of the best recipes, or the model before training if no recipe is clearly better.

    A recipe wins if its mean score exceeds the score of the model before training by more than the recipe's margin. The
    margin is the larger of the standard deviation over its seeds and ``least``. All winners within the margin of the
    best one count as equal to it, and the first of them is chosen.

    Args:
        scores: The scores of each recipe from 0 to 100, one per seed. The simplest and cheapest recipe comes first.
        before: The name of the model before training in ``scores``.
        least: The smallest margin, see :func:`noise`.

    Example:
        >>> scores = {"before": [80.0], "whitened": [81.0], "trained": [81.1, 81.3], "other": [79.0, 79.2]}
        >>> choose(scores, "before", least=0.2).name
        'whitened'
    """
    means = {name: statistics.mean(values) for name, values in scores.items()}
    margins = {name: max([least, *_spread(values)]) for name, values in scores.items()}
    winners = [name for name in scores if name != before and means[name] - means[before] > margins[name]]
    best = max(winners or [name for name in scores if name != before], key=means.__getitem__, default=None)
    if best is None:
        return Choice(before, "There was nothing to choose from.")
    gain = means[best] - means[before]
    if not winners:
        return Choice(
            before,
            f"No recipe is better than the model before training by more than chance. The best one, {best}, differs by "
            f"{gain:+.2f} points, but a difference of up to {margins[best]:.2f} may be chance.",
        )
    near = [name for name in winners if means[best] - means[name] <= margins[best]]
    why = f"{near[0]} is {means[near[0]] - means[before]:.2f} points better than the model before training"
    why += f", and a difference of up to {margins[near[0]]:.2f} may be chance."
    if near[0] != best:
        why += f" {best} is another {means[best] - means[near[0]]:.2f} points better, which is within its margin of "
        why += f"{margins[best]:.2f}. The simplest of equally good recipes is chosen."
    return Choice(near[0], why)


def _spread(values: Sequence[float]) -> list[float]:
    """Returns the standard deviation over the seeds, or nothing for a single seed."""
    return [statistics.stdev(values)] if len(values) > 1 else []
