"""A summary of a corpus: the number and length of its texts, whether they are paragraphs, and their script."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median_low

__all__ = ["CorpusProfile", "profile_corpus"]

# Characters of scripts without spaces between words: Thai, Lao, Burmese, Khmer, kana, Han.
_SPACELESS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_SPACELESS}]|[^\s{_SPACELESS}]+")
# A full stop ends a sentence only before a space, because numbers contain full stops too. In scripts without spaces it
# always ends a sentence.
_END = re.compile(r"[.!?]+[\"')\]’”»]*(?=\s|$)|[。！？｡।۔؟]+")
_SCRIPTS = {"CJK": "Han", "HIRAGANA": "Kana", "KATAKANA": "Kana"}

# Enough for two crops of 8 tokens, their minimum.
_PARAGRAPH_WORDS = 16
_PARAGRAPHS = 0.25


@dataclass(frozen=True)
class CorpusProfile:
    """The result of :func:`profile_corpus`.

    Args:
        texts: The number of texts, including duplicates.
        duplicates: The number of texts that are equal to an earlier one.
        characters: The median number of characters.
        words: The median number of words. In scripts without spaces, such as Chinese, each character counts as a word.
        paragraph_share: The share of texts with at least two sentences and at least 16 words.
        script: The script of most letters, such as Latin, Han or Cyrillic, or ``none`` if there are no letters.

    Example:
        >>> CorpusProfile(1000, 0, 80, 14, 0.02, "Latin").has_paragraphs
        False
    """

    texts: int
    duplicates: int
    characters: int
    words: int
    paragraph_share: float
    script: str

    @property
    def has_paragraphs(self) -> bool:
        """True if at least a quarter of the texts are paragraphs."""
        return self.paragraph_share >= _PARAGRAPHS


def profile_corpus(texts: Iterable[str]) -> CorpusProfile:
    """Summarizes a corpus in one pass.

    The texts are not kept in memory, only a hash of each different text.

    Args:
        texts: The texts. They can be a stream.

    Returns:
        The summary of the corpus.

    Raises:
        ValueError: If there are no texts.

    Example:
        >>> profile_corpus(["两只狗在跑。", "一个人在弹吉他！"])
        CorpusProfile(texts=2, duplicates=0, characters=6, words=6, paragraph_share=0.0, script='Han')
    """
    count = paragraphs = 0
    seen: set[int] = set()
    characters: Counter[str] = Counter()
    lengths: Counter[int] = Counter()
    words: Counter[int] = Counter()
    for text in texts:
        count += 1
        seen.add(hash(text))
        characters.update(text)
        lengths[len(text)] += 1
        number = len(_WORD.findall(text))
        words[number] += 1
        paragraphs += number >= _PARAGRAPH_WORDS and _sentences(text) >= 2
    if not count:
        raise ValueError("there are no texts")
    return CorpusProfile(
        texts=count,
        duplicates=count - len(seen),
        characters=median_low(lengths.elements()),
        words=median_low(words.elements()),
        paragraph_share=paragraphs / count,
        script=_script(characters),
    )


def _sentences(text: str) -> int:
    """Returns the number of sentences, counting only those with a letter."""
    return sum(any(map(str.isalpha, piece)) for piece in _END.split(text))


def _script(characters: Counter[str]) -> str:
    """Returns the script of most letters. A letter's Unicode name begins with its script."""
    scripts: Counter[str] = Counter()
    for character, count in characters.items():
        if character.isalpha():
            name = unicodedata.name(character, "unknown").split()[0].split("-")[0]
            scripts[_SCRIPTS.get(name, name.title())] += count
    return scripts.most_common(1)[0][0] if scripts else "none"
