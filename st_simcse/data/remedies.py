"""Errors that say what to do apart from what is wrong, so that a command can name its own options in it."""

from __future__ import annotations

__all__ = ["DataError"]


class DataError(ValueError):
    """Data that cannot be read as they are.

    Args:
        problem: what is wrong, and where; it may quote the data.
        *remedies: what to do, of which one is enough. An argument is written as ``name=`` or ``name=value``, and a
            reader with its class's name.

    Example:
        >>> raise DataError("a.txt, line 2: not UTF-8", "pass encoding='gb18030'", "convert it with iconv")
        Traceback (most recent call last):
        ...
        st_simcse.data.remedies.DataError: a.txt, line 2: not UTF-8; pass encoding='gb18030', or convert it with iconv
    """

    def __init__(self, problem: str, *remedies: str) -> None:
        super().__init__(problem, *remedies)
        self.problem, self.remedies = problem, remedies

    def __str__(self) -> str:
        return "; ".join(filter(None, [self.problem, ", or ".join(self.remedies)]))
