"""The numbers that an option takes."""

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
    """A dataclass whose numbers are finite, and within the bounds that their fields' metadata names.

    The bounds are ``least`` and ``most``, or ``above`` and ``below``, which are themselves out of range. A field with
    bounds takes numbers only, and whole ones if its type is ``int``.

    Raises:
        ValueError: for NaN, an infinite number, one out of bounds, and what is no such number.

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
