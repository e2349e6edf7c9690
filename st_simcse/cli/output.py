"""Texts of unknown origin on a terminal: control characters are shown, not obeyed."""

from __future__ import annotations

import logging

__all__ = ["PrintableFormatter", "printable"]

# Terminals obey some of them: a text could clear the screen, set the title, or type.
_CONTROL_CHARACTERS = {code: f"\\u{code:04x}" for code in (*range(0x20), *range(0x7F, 0xA0))}
_WITHOUT_LINES = {code: escape for code, escape in _CONTROL_CHARACTERS.items() if chr(code) not in "\n\t"}


def printable(text: str, lines: bool = False) -> str:
    r"""A text in which control characters are escapes, as JSON writes them.

    Args:
        text: from a file, an index or a name.
        lines: keep line ends and tabs.

    Example:
        >>> print(printable("red: \x1b[31m"))
        red: \u001b[31m
    """
    return text.translate(_WITHOUT_LINES if lines else _CONTROL_CHARACTERS)


class PrintableFormatter(logging.Formatter):
    """Log messages quote files and names too."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), lines=True)
