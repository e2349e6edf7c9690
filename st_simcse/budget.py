"""The number of rows and seeds that fit into a time budget, given the duration of a step of each recipe."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Pace", "Share", "parse_duration", "share_budget", "shown_duration"]

_UNITS = {"s": 1, "m": 60, "h": 3600}
SEEDS = 3
FEWEST_SEEDS = 2
# If three seeds leave fewer steps than this, two seeds train on more rows instead.
STEPS_FOR_ALL_SEEDS = 20


def parse_duration(text: str) -> float:
    """Converts a duration such as ``600s``, ``10m`` or ``1.5h`` to seconds.

    Raises:
        ValueError: If the text is not such a duration, or if the duration is 0.

    Example:
        >>> parse_duration("10m")
        600.0
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text.strip())
    if not found or not float(found[1]):
        raise ValueError(f"--budget {text} is not a duration. Pass one such as 600s, 10m or 2h.")
    return float(found[1]) * _UNITS[found[2]]


def shown_duration(seconds: float) -> str:
    """Formats a duration for readers.

    Example:
        >>> shown_duration(42), shown_duration(600), shown_duration(9000)
        ('42 seconds', '10 minutes', '2.5 hours')
    """
    for unit, size in (("hour", 3600), ("minute", 60)):
        if seconds >= 2 * size or (seconds >= size and unit == "minute"):
            return _count(round(seconds / size, 1 if seconds < 10 * size else None), unit)
    return _count(math.ceil(seconds), "second")


def _count(number: float, unit: str) -> str:
    return f"{number:g} {unit}" + "s" * (number != 1)


@dataclass(frozen=True)
class Pace:
    """The time that a run of a recipe takes.

    Args:
        step: The seconds of a step with a full batch.
        row: The seconds per row before the first step, such as for the embeddings of a teacher.
        run: The seconds before and after training, to load and evaluate the model.

    Example:
        >>> Pace(step=2.0, row=0.5, run=10.0).seconds(rows=100, batch=64)
        64.0
    """

    step: float
    row: float = 0.0
    run: float = 0.0

    def seconds(self, rows: int, batch: int) -> float:
        """Returns the seconds of a run of one epoch over this many rows."""
        return math.ceil(rows / batch) * self.step + rows * self.row + self.run


@dataclass(frozen=True)
class Share:
    """The use of a budget. Every recipe trains on ``rows`` rows with each of the ``seeds``."""

    rows: int
    seeds: int


def share_budget(budget: float, paces: Sequence[Pace], texts: int, batch: int) -> Share:
    """Shares a budget: all recipes train on as many rows as possible with three seeds.

    If three seeds leave fewer than 20 steps, two seeds are used.

    Args:
        budget: The seconds for all runs together.
        paces: The pace of each recipe that is trained.
        texts: The number of available rows.
        batch: The number of rows per step.

    Raises:
        ValueError: If the budget is too small for one step of each recipe with two seeds.

    Example:
        >>> share_budget(600, [Pace(1.0), Pace(2.0)], texts=10_000, batch=64)
        Share(rows=4224, seeds=3)
    """
    if not paces:
        return Share(texts, 1)
    rows = {seeds: _rows(budget / seeds, paces, texts, batch) for seeds in (SEEDS, FEWEST_SEEDS)}
    seeds = SEEDS if rows[SEEDS] >= min(texts, STEPS_FOR_ALL_SEEDS * batch) else FEWEST_SEEDS
    if rows[seeds] < min(batch, texts):
        least = math.ceil(FEWEST_SEEDS * sum(pace.seconds(min(batch, texts), batch) for pace in paces))
        raise ValueError(
            f"A budget of {shown_duration(budget)} is too small for one step of each of {len(paces)} recipes with "
            f"{FEWEST_SEEDS} seeds. Pass --budget {least}s or more."
        )
    return Share(rows[seeds], seeds)


def _rows(seconds: float, paces: Sequence[Pace], texts: int, batch: int) -> int:
    """Returns the number of rows that fit into the seconds: all texts, or a multiple of the batch size."""
    if sum(pace.seconds(texts, batch) for pace in paces) <= seconds:
        return texts
    runs = sum(pace.run for pace in paces)
    steps = (seconds - runs) / (sum(pace.seconds(batch, batch) for pace in paces) - runs)
    return min(texts, max(math.floor(steps), 0) * batch)
