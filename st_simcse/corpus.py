"""A small English corpus from a seeded grammar with gold similarities: data where there is no network and no file."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Corpus", "generate_corpus"]

# Words that mean the same stand together; concepts of one kind stand in one tuple.
_AGENTS = (
    (("dog", "hound", "puppy"), ("cat", "kitten", "tomcat"), ("horse", "pony", "mare")),
    (("doctor", "physician", "medic"), ("teacher", "tutor", "lecturer"), ("cook", "chef", "baker")),
    (("child", "kid", "youngster"), ("woman", "lady", "mother"), ("man", "gentleman", "father")),
    (("robot", "machine", "android"), ("truck", "lorry", "van"), ("train", "tram", "railcar")),
)
_ACTIONS = (
    (("chases", "pursues", "hunts"), ("follows", "tracks", "trails"), ("catches", "grabs", "seizes")),
    (("watches", "observes", "views"), ("paints", "draws", "sketches"), ("describes", "explains", "depicts")),
    (("builds", "constructs", "assembles"), ("repairs", "fixes", "mends"), ("breaks", "smashes", "destroys")),
)
_OBJECTS = (
    (("ball", "sphere", "globe"), ("kite", "glider", "flyer"), ("doll", "puppet", "toy")),
    (("house", "home", "cottage"), ("bridge", "overpass", "viaduct"), ("boat", "ship", "vessel")),
    (("bird", "sparrow", "finch"), ("fish", "trout", "salmon"), ("bee", "wasp", "hornet")),
)
_PLACES = (
    (("park", "garden", "meadow"), ("forest", "woods", "grove"), ("beach", "shore", "coast")),
    (("street", "road", "avenue"), ("station", "depot", "terminal"), ("market", "bazaar", "fair")),
)
_SLOTS = (_AGENTS, _ACTIONS, _OBJECTS, _PLACES)
_SLOT_WEIGHTS = (1.5, 1.5, 1.25, 0.75)  # add up to the 5 of a perfect STS score
_TEMPLATES = (
    "the {0} {1} the {2} in the {3} .",
    "in the {3} the {0} {1} the {2} .",
    "there is a {0} that {1} a {2} near the {3} .",
    "a {0} {1} some {2} at the {3} .",
)

# One (kind, concept) index a slot.
_Meaning = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Corpus:
    """Sentences, (anchor, positive, hard negative) triplets, and held-out (sentence1, sentence2, score 0 to 5) pairs.

    No held-out sentence is among the sentences or triplets.
    """

    sentences: list[str]
    triplets: list[tuple[str, str, str]]
    scored_pairs: list[tuple[str, str, float]]


def generate_corpus(size: int = 2000, seed: int = 0) -> Corpus:
    """Who does what to what and where, in other words.

    The gold score of a pair adds up its slots: in full for the same concept ("dog", "hound"), half for concepts of one
    kind ("dog", "cat"). A positive keeps the meaning and changes the words; a hard negative keeps most of the words
    and changes the action or the object.

    Args:
        size: number of sentences and of triplets; a quarter as many scored pairs.
        seed: the same seed gives the same corpus.

    Example:
        >>> corpus = generate_corpus(size=4)
        >>> corpus.sentences[0]
        'the van fixes the toy in the meadow .'
        >>> len(corpus.triplets), len(corpus.scored_pairs)
        (4, 1)
    """
    rng = random.Random(seed)
    # Scores spread evenly when every slot is drawn to be the same, akin or free with equal odds.
    pairs = []
    for _ in range(max(1, size // 4)):
        first = _random_meaning(rng)
        second = tuple(
            rng.choice([concept, _akin(rng, slot, concept), _random_concept(rng, slot)])
            for slot, concept in zip(_SLOTS, first, strict=True)
        )
        pairs.append((_say(rng, first), _say(rng, second), _similarity(first, second)))
    held_out = {sentence for pair in pairs for sentence in pair[:2]}

    sentences: list[str] = []
    while len(sentences) < size:
        if (sentence := _say(rng, _random_meaning(rng))) not in held_out:
            sentences.append(sentence)
    triplets: list[tuple[str, str, str]] = []
    while len(triplets) < size:
        meaning = _random_meaning(rng)
        changed = rng.choice([1, 2])
        contrary = list(meaning)
        contrary[changed] = _akin(rng, _SLOTS[changed], meaning[changed])
        triplet = (_say(rng, meaning), _say(rng, meaning), _say(rng, tuple(contrary)))
        if held_out.isdisjoint(triplet):
            triplets.append(triplet)
    return Corpus(sentences, triplets, pairs)


def _random_concept(rng: random.Random, slot: Sequence[Sequence[object]]) -> tuple[int, int]:
    kind = rng.randrange(len(slot))
    return kind, rng.randrange(len(slot[kind]))


def _random_meaning(rng: random.Random) -> _Meaning:
    return tuple(_random_concept(rng, slot) for slot in _SLOTS)


def _akin(rng: random.Random, slot: Sequence[Sequence[object]], concept: tuple[int, int]) -> tuple[int, int]:
    kind, index = concept
    return kind, rng.choice([other for other in range(len(slot[kind])) if other != index])


def _say(rng: random.Random, meaning: _Meaning) -> str:
    words = [rng.choice(slot[kind][index]) for slot, (kind, index) in zip(_SLOTS, meaning, strict=True)]
    return rng.choice(_TEMPLATES).format(*words)


def _similarity(first: _Meaning, second: _Meaning) -> float:
    return sum(
        weight * (1.0 if one == two else 0.5 if one[0] == two[0] else 0.0)
        for weight, one, two in zip(_SLOT_WEIGHTS, first, second, strict=True)
    )
