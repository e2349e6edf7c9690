"""Fonts for pictures: texts of any script are shown in an installed font that has their characters."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.text import Text

__all__ = ["boxes_are_no_warnings", "choose_fonts"]

logger = logging.getLogger(__name__)


def choose_fonts(texts: Iterable[Text]) -> set[str]:
    """Adds installed fonts to matplotlib's own for the characters that this lacks, such as Chinese ones.

    Args:
        texts: The texts of a picture, which are changed in place.

    Returns:
        The characters that no installed font has. The picture shows boxes for them.

    Example:
        >>> from matplotlib.text import Text
        >>> choose_fonts([Text(text="dev ± 0.1")])
        set()
    """
    from matplotlib import rcParams
    from matplotlib.font_manager import FontProperties, findfont, get_font

    texts = list(texts)
    own = get_font(findfont(FontProperties()))
    written = {character for text in texts for character in text.get_text() if not character.isspace()}
    lacking = {character for character in written if not own.get_char_index(ord(character))}
    families = []
    while lacking:
        # The font with the most characters, because a text in several fonts looks uneven.
        best = max(_other_fonts(), key=lambda name: _count(name, lacking), default="")
        if not best or not _count(best, lacking):
            break
        families.append(best)
        lacking -= {character for character in lacking if _other_fonts()[best].get_char_index(ord(character))}
    if families:
        for text in texts:
            text.set_fontfamily([*rcParams["font.family"], *families])
    return lacking


@contextmanager
def boxes_are_no_warnings() -> Iterator[None]:
    """Hides matplotlib's warnings about characters without a glyph, which are one for each drawing of each."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        yield


def _count(name: str, characters: set[str]) -> int:
    return sum(1 for character in characters if _other_fonts()[name].get_char_index(ord(character)))


@cache
def _other_fonts() -> dict[str, Any]:
    """Returns the upright fonts of the system by name, also those installed since matplotlib last looked."""
    from matplotlib.font_manager import findSystemFonts, fontManager, get_font

    known = {entry.fname for entry in fontManager.ttflist}
    for path in set(findSystemFonts()) - known:
        try:
            fontManager.addfont(path)
        except (RuntimeError, ValueError, OSError):  # fonts that matplotlib cannot read, such as coloured emoji
            continue
    fonts: dict[str, Any] = {}
    for entry in fontManager.ttflist:
        if entry.style == "normal" and str(entry.weight) in ("400", "normal", "regular") and "Resort" not in entry.name:
            try:
                fonts.setdefault(entry.name, get_font(entry.fname))
            except (RuntimeError, ValueError, OSError):
                continue
    return fonts
