"""Output of the command line: control characters are escaped, and messages appear above progress bars."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

__all__ = ["MessageHandler", "no_warnings", "printable"]

# Terminals act on some of them: a text could clear the screen, set the title, or enter commands.
_CONTROL_CHARACTERS = {code: f"\\u{code:04x}" for code in (*range(0x20), *range(0x7F, 0xA0))}
_WITHOUT_LINES = {code: escape for code, escape in _CONTROL_CHARACTERS.items() if chr(code) not in "\n\t"}


def printable(text: str, lines: bool = False) -> str:
    r"""Returns the text with its control characters escaped as in JSON.

    Args:
        text: Text from a file, an index or a name.
        lines: If True, line ends and tabs stay as they are.

    Example:
        >>> print(printable("red: \x1b[31m"))
        red: \u001b[31m
    """
    return text.translate(_WITHOUT_LINES if lines else _CONTROL_CHARACTERS)


@contextmanager
def no_warnings() -> Iterator[None]:
    """Hides log messages up to warnings in the ``with`` block.

    Example:
        >>> with no_warnings():
        ...     logging.getLogger("st_simcse").isEnabledFor(logging.WARNING)
        False
    """
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(before)


class MessageHandler(logging.Handler):
    """Log messages on stderr, above any progress bar. Control characters are escaped, because messages quote files.

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
