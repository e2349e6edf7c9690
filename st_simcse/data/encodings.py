"""Detection of the encoding of text that is not UTF-8."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Sequence

__all__ = ["check_encoding", "fitting_encodings", "is_utf8", "reads_as_utf8"]

# The most frequent characters. Bytes decoded with the right encoding contain many of them, with a wrong one few.
_SIMPLIFIED = frozenset(
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里用道行所然家种事成方"
    "多经么去法学如都同现当没动面起看定天分还进好小部其些主样理心她本前开但因只从想实日军者意无力它与长把机十民第公此已工使情"
    "明性知全三又关点正业外将两高间由问很最重并物手应战向头文体政美相见被利什二等产或新己制身果加西月话合回特代内信化老给世位"
    "次度任常先海通教儿原东声提立及比员解水名真论处走义各入几口认条平系气题活尔更别打女变四神总何电数安少报才结反受目太量再感"
    "建务做接必场件计管期市直德资命山金指许统区保至队形社便空决治科司五基眼书非则听白却界达光放强即像难且权思王象完设式色路记"
    "男狗猫吉弹奏跑跳车球站坐穿吃画站红蓝黑色绿"
)
_TRADITIONAL = frozenset(
    "的一是不了在人有我他這個們中來上大為和國地到以說時要就出會可也你對生能而子那得於著下自之年過發後作裡用道行所然家種事成方"
    "多經麼去法學如都同現當沒動面起看定天分還進好小部其些主樣理心她本前開但因只從想實日軍者意無力它與長把機十民第公此已工使情"
    "明性知全三又關點正業外將兩高間由問很最重並物手應戰向頭文體政美相見被利什二等產或新己制身果加西月話合回特代內信化老給世位"
    "次度任常先海通教兒原東聲提立及比員解水名真論處走義各入幾口認條平系氣題活爾更別打女變四神總何電數安少報才結反受目太量再感"
    "建務做接必場件計管期市直德資命山金指許統區保至隊形社便空決治科司五基眼書非則聽白卻界達光放強即像難且權思王象完設式色路記"
    "男狗貓吉彈奏跑跳車球站坐穿吃畫站紅藍黑色綠"
)
_PUNCTUATION = frozenset("，。、；：？！“”‘’（）《》「」『』【】…—·　～")


def _share(letters: str, wanted: Callable[[str], bool]) -> float:
    counted = [letter for letter in letters if letter not in _PUNCTUATION]
    return sum(map(wanted, counted)) / len(counted) if counted else 0.0


def _chinese(frequent: frozenset[str]) -> Callable[[str, str], float]:
    return lambda text, others: _share(others, frequent.__contains__)


def _japanese(text: str, others: str) -> float:
    kana = _share(others, lambda letter: "ぁ" <= letter <= "ヿ")
    kanji = _share(others, lambda letter: "一" <= letter <= "龥")
    return kana + kanji if kana > 0.2 else 0.0


def _korean(text: str, others: str) -> float:
    hangul = _share(others, lambda letter: "가" <= letter <= "힣")
    return hangul if hangul > 0.9 else 0.0


def _cyrillic(text: str, others: str) -> float:
    """Returns the share of letters in words that are all Cyrillic and lower case except for the first letter."""
    words = re.findall("(?<!\\w)[А-Яа-яЁёІіЇїЄєҐґЎў][а-яёіїєґў]*(?!\\w)", text)
    return sum(map(len, words)) / max(1, len(others))


def _western(text: str, others: str) -> float:
    """Returns the share of the usual accented letters and signs, or 0 if too many letters are not ASCII."""
    if len(others) > len(text) / 4:
        return 0.0
    return _share(others, "àáâãäåæçèéêëìíîïñòóôõöøùúûüýÿßœšžÀÁÂÄÅÆÇÈÉÊËÍÎÑÓÔÖØÚÜŒŠŽ’‘“”–—…«»°€£§©®º½¡¿´".__contains__)


# Language and score by codec. The score, from 0 to 1, rates how much a text with these non-ASCII letters looks like it.
_CANDIDATES: dict[str, tuple[str, Callable[[str, str], float]]] = {
    "gb18030": ("Chinese, GBK", _chinese(_SIMPLIFIED)),
    "big5": ("Chinese, Big5", _chinese(_TRADITIONAL)),
    "cp932": ("Japanese, Shift-JIS", _japanese),
    "euc_jp": ("Japanese, EUC", _japanese),
    "cp949": ("Korean, EUC", _korean),
    "cp1251": ("Cyrillic, Windows", _cyrillic),
    "koi8_r": ("Cyrillic, KOI8", _cyrillic),
    "cp1252": ("Western European, Windows", _western),
}


def fitting_encodings(lines: Sequence[bytes]) -> dict[str, str]:
    """Returns the codecs that decode the lines to text of a language, best first, with the names of the languages.

    Codecs that fit much worse than the best one are not listed.

    Example:
        >>> fitting_encodings(["我的狗在公园里跑。".encode("gbk")])
        {'gb18030': 'Chinese, GBK'}
    """
    sample = b"".join(line for line in lines if not line.isascii())
    scores = {}
    for codec, (_, score) in _CANDIDATES.items():
        try:
            text = sample.decode(codec)
        except UnicodeDecodeError:
            continue
        scores[codec] = score(text, "".join(letter for letter in text if ord(letter) > 127))
    best = max(scores.values(), default=0.0)
    fitting = [codec for codec, score in scores.items() if score > 0.1 and score >= 0.7 * best]
    return {codec: _CANDIDATES[codec][0] for codec in sorted(fitting, key=lambda codec: -scores[codec])}


def is_utf8(encoding: str) -> bool:
    """Returns whether the encoding is UTF-8 under any of its names."""
    return codecs.lookup(encoding).name in ("utf-8", "utf-8-sig")


def reads_as_utf8(content: bytes) -> bool:
    """Returns whether the content is valid UTF-8 with non-ASCII letters. The last letter may be cut off."""
    if content.isascii():
        return False
    try:
        codecs.getincrementaldecoder("utf-8")().decode(content)
    except UnicodeDecodeError:
        return False
    return True


def check_encoding(encoding: str) -> None:
    """Raises a ValueError unless this is a text codec whose line ends are the same byte as in ASCII."""
    try:
        plain = "a,\t\n".encode(encoding) == b"a,\t\n"
    except LookupError:
        raise ValueError(
            f"encoding={encoding!r} is not a text encoding that Python knows: pass one like 'gb18030', 'big5', "
            "'shift_jis' or 'cp1252'"
        ) from None
    if not plain and codecs.lookup(encoding).name != "utf-8-sig":
        raise ValueError(
            f"encoding={encoding!r} has line ends of several bytes, which the readers do not support: convert the file "
            f"with iconv -f {encoding.upper()} -t UTF-8"
        )
