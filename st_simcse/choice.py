"""Which of several recipes is chosen by its scores on dev data, if any is better than the model as it was."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["Choice", "Kind", "choose", "noise"]

Kind = Literal["pairs", "classes", "queries"]

# The scores of two models on the same n rows differ by chance with a standard error of about so many points over √n:
# between all-MiniLM-L6-v2 and the same model whitened with the powers 0.25 and 1, Spearman's correlation has 4 and 11
# (STS-B dev, bootstrapped), the accuracy of ten neighbours 23 and 44, and NDCG@10 8 and 23 (AG News).
NOISE: dict[Kind, float] = {"pairs": 10.0, "classes": 20.0, "queries": 10.0}


def noise(dev: Iterable[tuple[Kind, int]]) -> float:
    """Points (0 to 100) by which the mean scores of two models may differ by chance: the least that a gain has to be.

    About the standard error of the difference between two models that are much alike. It falls with the square root of
    the rows: of scored pairs a hundred tell a point, and 1,500 a quarter.

    Args:
        dev: of each score that is averaged, what its rows are, and how many there are.

    Example:
        >>> noise([("pairs", 100)]), round(noise([("classes", 1900), ("queries", 1900)]), 2)
        (1.0, 0.26)
    """
    errors = [NOISE[kind] / math.sqrt(rows) for kind, rows in dev]
    return math.hypot(*errors) / len(errors)


@dataclass(frozen=True)
class Choice:
    """What :func:`choose` says.

    Args:
        name: the recipe, or the model as it was.
        why: in a sentence or two.
    """

    name: str
    why: str


def choose(scores: Mapping[str, Sequence[float]], before: str, least: float) -> Choice:
    """The simplest of the best recipes, or the model as it was unless one of them is better by more than chance.

    A recipe wins if its mean is above the score of the model as it was by more than its margin, the larger of the
    standard deviation over its seeds and ``least``. Of the winners those count as equal to the best that are behind it
    by no more than its margin, and the first of them is chosen.

    Args:
        scores: by recipe, 0 to 100, one a seed; the simplest and cheapest recipe first.
        before: the name of the model as it was, one of ``scores``.
        least: the smallest margin, see :func:`noise`.

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
        return Choice(before, "there was nothing to choose from.")
    gain = means[best] - means[before]
    if not winners:
        return Choice(
            before,
            f"No recipe is better than the model as it was by more than chance: the best, {best}, differs by "
            f"{gain:+.2f} points, and {margins[best]:.2f} or less may be chance.",
        )
    near = [name for name in winners if means[best] - means[name] <= margins[best]]
    why = f"{near[0]} is {means[near[0]] - means[before]:.2f} points better than the model as it was"
    why += f", and up to {margins[near[0]]:.2f} may be chance."
    if near[0] != best:
        why += f" {best} is {means[best] - means[near[0]]:.2f} points better still, which is within its margin of "
        why += f"{margins[best]:.2f}: of recipes that are as good the simplest is taken."
    return Choice(near[0], why)


def _spread(values: Sequence[float]) -> list[float]:
    """The standard deviation over seeds, if there are several."""
    return [statistics.stdev(values)] if len(values) > 1 else []
