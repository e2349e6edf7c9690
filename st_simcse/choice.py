"""Which of several recipes is chosen by its scores on dev data, if any is better than the model as it was."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Choice", "choose", "noise"]

# The scores of two models on the same n rows differ by chance with a standard error of about so many points over √n.
NOISE = 10.0


def noise(rows: Sequence[int]) -> float:
    """Points (0 to 100) by which the mean score of two models may differ by chance: the least that a gain has to be.

    About the standard error of the difference between two models that agree on most rows: 10 / √n, a point for a
    hundred rows and a quarter for 1,500; that of a mean of several scores is the square root of the sum of squares over
    their number.

    Args:
        rows: how many pairs, texts or queries each score is of.

    Example:
        >>> noise([100]), round(noise([1900, 1900]), 2)
        (1.0, 0.16)
    """
    return math.sqrt(sum(NOISE**2 / n for n in rows)) / len(rows)


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
