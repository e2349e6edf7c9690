"""Checks of the numbers that options take."""

from __future__ import annotations

import dataclasses
import math
import operator
from numbers import Integral, Real
from typing import Any

__all__ = ["Bounded"]

_BOUNDS = (
    ("least", operator.ge, "of at least"),
    ("most", operator.le, "of at most"),
    ("above", operator.gt, "above"),
    ("below", operator.lt, "below"),
)


class Bounded:
    """A dataclass whose numbers must be finite and within the bounds given in the metadata of their fields.

    The bounds are ``least`` and ``most`` (inclusive), or ``above`` and ``below`` (exclusive). A field with bounds must
    be a number, and an integer if its type is ``int``.

    Raises:
        ValueError: If a number is NaN, infinite or out of bounds, or if a field with bounds has no suitable number.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Share(Bounded):
        ...     share: float = dataclasses.field(metadata={"least": 0, "below": 1})
        >>> Share(float("nan"))
        Traceback (most recent call last):
        ...
        ValueError: Share needs a finite share of at least 0 and below 1, got nan
    """

    def __post_init__(self: Any) -> None:
        for one in dataclasses.fields(self):
            value = getattr(self, one.name)
            bounds = [(holds, words, one.metadata[bound]) for bound, holds, words in _BOUNDS if bound in one.metadata]
            if not bounds and not isinstance(value, Real):
                continue
            is_whole = one.type in (int, "int")
            if (
                isinstance(value, Integral if is_whole else Real)
                and math.isfinite(value)
                and all(holds(value, number) for holds, _, number in bounds)
            ):
                continue
            kind = "an integer" if is_whole else "a finite"
            wanted = " and ".join(f"{words} {number}" for _, words, number in bounds)
            raise ValueError(f"{type(self).__name__} needs {kind} {one.name} {wanted}".rstrip() + f", got {value!r}")
