"""Measures of a model on a corpus without labels. proxies.py finds how well they choose recipes. Higher is better.

Views of held-out texts are made and embedded first. The measures only see the embeddings, not the model.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.stats import skew, spearmanr
from sklearn.feature_extraction.text import TfidfVectorizer

from st_simcse.objective import alignment, uniformity

Array = np.ndarray[Any, Any]
K = 10

_CHARACTERS = re.compile("[\u3040-\u30ff\u3400-\u9fff]")  # Chinese and Japanese are written without spaces
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])")


def units(text: str) -> tuple[list[str], str]:
    """Returns the words of a text, or the characters if it has no spaces, and the text that joins them."""
    return (list(text), "") if _CHARACTERS.search(text) else (text.split(), " ")


def halves(text: str) -> tuple[str, str]:
    """Splits a text at the end of a sentence nearest to the middle, or a single sentence into halves of its words."""
    ends = [match.end() for match in _SENTENCE_END.finditer(text) if text[match.end() :].strip()]
    if ends:
        middle = min(ends, key=lambda end: abs(end - len(text) / 2))
        return text[:middle].strip(), text[middle:].strip()
    words, joint = units(text)
    half = len(words) // 2
    return joint.join(words[:half]), joint.join(words[half:])


def crop(text: str, rng: random.Random) -> str:
    """Returns a span of 30 to 70% of the words, with at least three words."""
    words, joint = units(text)
    length = min(len(words), max(3, round(rng.uniform(0.3, 0.7) * len(words))))
    begin = rng.randint(0, len(words) - length)
    return joint.join(words[begin : begin + length])


def shortened(text: str, share: float, rng: random.Random) -> str:
    """Removes a share of the words at random, and keeps at least one."""
    words, joint = units(text)
    kept = max(1, len(words) - round(share * len(words)))
    return joint.join(words[place] for place in sorted(rng.sample(range(len(words)), kept)))


def mixture(text: str, other: str, share: float) -> str:
    """Joins the beginning of a text, with ``share`` of its words, and the end of another text."""
    (words, joint), (others, _) = units(text), units(other)
    return joint.join([*words[: round(share * len(words))], *others[round(share * len(others)) :]])


class HeldOut:
    """Views of texts that no model was trained on, and similarities of the texts by their words only."""

    def __init__(self, texts: Sequence[str], seed: int = 0) -> None:
        rng = random.Random(seed)
        self.texts = [text for text in dict.fromkeys(texts) if len(units(text)[0]) >= 4]
        self.halves = tuple(zip(*map(halves, self.texts), strict=True))
        self.crops = [[crop(text, rng) for text in self.texts] for _ in range(2)]
        self.removed = [rng.uniform(0.1, 0.8) for _ in self.texts]
        self.shortened = [shortened(text, share, rng) for text, share in zip(self.texts, self.removed, strict=True)]
        self.mixtures = [self._mixtures([rng.choice(self.texts) for _ in self.texts], rng)]
        split = TfidfVectorizer(sublinear_tf=True, tokenizer=lambda text: units(text.lower())[0], token_pattern=None)
        weights = split.fit_transform(self.texts)
        self.overlap = (weights @ weights.T).toarray()
        names, dense = split.get_feature_names_out(), weights.toarray()
        self.keywords = [" ".join(names[row.argsort()[::-1][:3]]) for row in dense]
        near = np.argsort(-without_itself(self.overlap), axis=1)[:, : min(50, len(self.texts) - 1)]
        self.pairs = (np.arange(len(self.texts)), np.array([rng.choice(row) for row in near.tolist()]))
        self.random_pairs = (np.arange(len(self.texts)), np.roll(np.arange(len(self.texts)), 1))
        self.mixtures += [self._mixtures([rng.choice(self.texts) for _ in self.texts], rng) for _ in range(3)]
        self.near_mixtures = self._mixtures([self.texts[place] for place in self.pairs[1]], rng)

    def _mixtures(self, others: Sequence[str], rng: random.Random) -> tuple[list[float], list[str]]:
        """Returns the share of each text in its mixture with another text, and the mixtures."""
        shares = [rng.random() for _ in self.texts]
        return shares, [mixture(*row) for row in zip(self.texts, others, shares, strict=True)]


@dataclass
class Embedded:
    """The embeddings of the views, as rows of unit length."""

    held_out: HeldOut
    encode: Callable[[Sequence[str]], Array]
    noisy: Array  # the texts under dropout

    @cached_property
    def texts(self) -> Array:
        return self.encode(self.held_out.texts)

    @cached_property
    def halves(self) -> list[Array]:
        return [self.encode(half) for half in self.held_out.halves]

    @cached_property
    def crops(self) -> list[Array]:
        return [self.encode(view) for view in self.held_out.crops]

    @cached_property
    def shortened(self) -> Array:
        return self.encode(self.held_out.shortened)

    @cached_property
    def similarities(self) -> Array:
        return self.texts @ self.texts.T

    def cosines(self) -> list[float]:
        """Returns the cosines of pairs with similar words and of as many random pairs, to compare models by."""
        places = [self.held_out.pairs, self.held_out.random_pairs]
        return [round(float(one), 4) for pairs in places for one in self.similarities[pairs]]


def without_itself(similarities: Array) -> Array:
    found = similarities.copy()
    np.fill_diagonal(found, -np.inf)
    return found


def neighbours(similarities: Array) -> Array:
    """Returns the columns (N, k) of the k largest entries of each row."""
    return np.argpartition(-similarities, K, axis=1)[:, :K]


def shared(one: Array, other: Array) -> float:
    """Returns the average share of neighbours that two lists have in common."""
    return float(np.mean([len(np.intersect1d(*rows)) / K for rows in zip(one, other, strict=True)]))


def ranks(anchors: Array, partners: Array) -> Array:
    """Returns the ranks (2N,) of each row's partner among all partners, in both directions."""
    similarities = anchors @ partners.T
    own = similarities.diagonal() - 1e-6  # so that rounding does not rank an equal text higher
    found = [1 + (side > own[:, None]).sum(1) - 1 for side in (similarities, similarities.T)]
    return np.concatenate(found)


def reciprocal_rank(anchors: Array, partners: Array) -> float:
    return float((1 / ranks(anchors, partners)).mean())


def separation(anchors: Array, partners: Array) -> float:
    """Returns the difference between the mean cosine of partners and of chance pairs, in standard deviations."""
    similarities = anchors @ partners.T
    chance = similarities[~np.eye(len(similarities), dtype=bool)]
    return float((similarities.diagonal().mean() - chance.mean()) / chance.std())


def spectrum(embeddings: Array) -> Array:
    """Returns the eigenvalues of the covariance in descending order."""
    return np.linalg.eigvalsh(np.cov(embeddings.T.astype(np.float64)))[::-1].clip(0)


def rank_me(embeddings: Array) -> float:
    """Returns the exponential of the entropy of the singular values (Garrido et al., ICML 2023)."""
    values = np.linalg.svd(embeddings, compute_uv=False)
    shares = values / values.sum() + 1e-7
    return float(np.exp(-(shares * np.log(shares)).sum()))


def alpha_req(embeddings: Array) -> float:
    """Returns how close the exponent of the eigenvalues' power law is to 1 (Agrawal et al., NeurIPS 2022)."""
    values = spectrum(embeddings)
    values = values[values > 1e-9 * values[0]]
    slope = np.polyfit(np.log(np.arange(1, len(values) + 1)), np.log(values), 1)[0]
    return -abs(-slope - 1)


def lidar(views: Sequence[Array]) -> float:
    """Returns the effective rank of a discriminant analysis with one class per text (Thilak et al., ICLR 2024)."""
    stacked = np.stack(views).astype(np.float64)
    means = stacked.mean(0)
    within = (stacked - means).reshape(-1, stacked.shape[2])
    values, vectors = np.linalg.eigh(within.T @ within / len(within) + 1e-4 * np.eye(stacked.shape[2]))
    half = vectors / np.sqrt(values) @ vectors.T
    found = np.linalg.eigvalsh(half @ np.cov(means.T) @ half).clip(0)
    shares = found / found.sum() + 1e-7
    return float(np.exp(-(shares * np.log(shares)).sum()))


def hubness(similarities: Array) -> float:
    """Returns minus the skewness of how often each text is a neighbour of others (Radovanović et al., JMLR 2010)."""
    found = neighbours(without_itself(similarities))
    return -float(skew(np.bincount(found.ravel(), minlength=len(similarities))))


def _spearman(one: Any, other: Any) -> float:
    return float(spearmanr(one, other).statistic)


def _alignment(one: Embedded) -> float:
    return -float(alignment(*map(torch.from_numpy, one.halves)))


def _uniformity(one: Embedded) -> float:
    return -float(uniformity(torch.from_numpy(one.texts)))


def _own_cosines(one: Embedded, views: Array) -> Array:
    return (one.texts * views).sum(1)


def _by_share(one: Embedded, mixtures: Sequence[tuple[list[float], list[str]]]) -> float:
    """Returns the correlation between the share of a text in a mixture and the cosine of the text and the mixture."""
    cosines = [_own_cosines(one, one.encode(texts)) for _, texts in mixtures]
    return _spearman(np.concatenate(cosines), [share for shares, _ in mixtures for share in shares])


def _neighbours_by_halves(one: Embedded) -> float:
    return shared(*(neighbours(without_itself(half @ one.texts.T)) for half in one.halves))


def _neighbours_by_shortened(one: Embedded) -> float:
    return shared(*(neighbours(without_itself(view @ one.texts.T)) for view in (one.texts, one.shortened)))


def _noise(one: Embedded) -> float:
    return shared(*(neighbours(without_itself(view @ one.texts.T)) for view in (one.texts, one.noisy)))


CANDIDATES: dict[str, Callable[[Embedded], float]] = {
    "halves, reciprocal rank": lambda one: reciprocal_rank(*one.halves),
    "halves, first": lambda one: float((ranks(*one.halves) == 1).mean()),
    "halves, separation": lambda one: separation(*one.halves),
    "halves, shared neighbours": _neighbours_by_halves,
    "crops, reciprocal rank": lambda one: reciprocal_rank(*one.crops),
    "crops, separation": lambda one: separation(*one.crops),
    "fewer words, reciprocal rank": lambda one: reciprocal_rank(one.texts, one.shortened),
    "fewer words, shared neighbours": _neighbours_by_shortened,
    "fewer words, correlation with their share": lambda one: _spearman(
        _own_cosines(one, one.shortened), [-share for share in one.held_out.removed]
    ),
    "mixtures, correlation with the share": lambda one: _by_share(one, one.held_out.mixtures[:1]),
    "mixtures, four a text": lambda one: _by_share(one, one.held_out.mixtures),
    "mixtures with near texts": lambda one: _by_share(one, [one.held_out.near_mixtures]),
    "three keywords, reciprocal rank": lambda one: reciprocal_rank(one.texts, one.encode(one.held_out.keywords)),
    "dropout, shared neighbours": _noise,
    "alignment of halves": _alignment,
    "uniformity": _uniformity,
    "alignment and uniformity": lambda one: _alignment(one) + _uniformity(one),
    "isotropy": lambda one: -float(one.similarities[~np.eye(len(one.texts), dtype=bool)].mean()),
    "hubness": lambda one: hubness(one.similarities),
    "effective rank (RankMe)": lambda one: rank_me(one.texts),
    "power law (alpha-ReQ)": lambda one: alpha_req(one.texts),
    "LiDAR": lambda one: lidar([one.texts, *one.halves, *one.crops, one.shortened]),
    "TF-IDF, shared neighbours": lambda one: shared(
        *(neighbours(without_itself(side)) for side in (one.similarities, one.held_out.overlap))
    ),
    "TF-IDF, correlation of near pairs": lambda one: _spearman(
        one.similarities[one.held_out.pairs], one.held_out.overlap[one.held_out.pairs]
    ),
}
