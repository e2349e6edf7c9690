"""Fonts for pictures: texts of any script are shown in an installed font that has their characters."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.text import Text

__all__ = ["boxes_are_no_warnings", "choose_fonts"]


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
        covered = {name: lacking & characters for name, characters in _other_fonts().items()}
        # The font with the most characters, because a text in several fonts looks uneven.
        best = max(covered, key=lambda name: len(covered[name]), default="")
        if not best or not covered[best]:
            break
        families.append(best)
        lacking -= covered[best]
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


@cache
def _other_fonts() -> dict[str, frozenset[str]]:
    """Returns the characters of the upright fonts of the system, also of those installed since matplotlib looked."""
    from matplotlib.font_manager import findSystemFonts, fontManager
    from matplotlib.ft2font import FT2Font

    known = {entry.fname for entry in fontManager.ttflist}
    for path in set(findSystemFonts()) - known:
        try:
            fontManager.addfont(path)
        except (RuntimeError, ValueError, OSError):  # fonts that matplotlib cannot read, such as coloured emoji
            continue
    fonts: dict[str, frozenset[str]] = {}
    for entry in fontManager.ttflist:
        is_upright = entry.style == "normal" and str(entry.weight) in ("400", "normal", "regular")
        if entry.name in fonts or not is_upright or "Resort" in entry.name:  # a font of boxes for all characters
            continue
        try:
            fonts[entry.name] = frozenset(map(chr, FT2Font(entry.fname).get_charmap()))
        except (RuntimeError, ValueError, OSError):
            continue
    return fonts
