"""Errors that keep the problem and its remedies apart, so that a command can name its own options in the remedies."""

from __future__ import annotations

__all__ = ["DataError"]


class DataError(ValueError):
    """Data that cannot be read as it is.

    Args:
        problem: The problem, with its place. It may quote the data.
        *remedies: The remedies. Each of them is enough by itself. Arguments are written as ``name=`` or ``name=value``,
            and readers by the names of their classes.

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
