"""What the command line prints: control characters are shown and not obeyed, and messages stand above progress bars."""

from __future__ import annotations

import logging
import sys

from tqdm import tqdm

__all__ = ["MessageHandler", "printable"]

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


class MessageHandler(logging.Handler):
    """Log messages on stderr, above a progress bar that may be there; they quote files and names too.

    Example:
        >>> handler = MessageHandler()
        >>> handler.format(logging.LogRecord("a", logging.INFO, "", 0, "read %s", ("b\\x1b.txt",), None))
        'INFO: read b\\\\u001b.txt'
    """

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), lines=True)

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)
