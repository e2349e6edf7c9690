"""A short list of recipes for a corpus and a model: names, options of ``st-simcse train``, and why each is there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from st_simcse.data.corpus_profile import CorpusProfile
from st_simcse.models.model_profile import ModelProfile
from st_simcse.presets import PRESETS

__all__ = ["BEFORE", "Candidate", "safest", "shortlist", "training_length"]

BEFORE = "before"
HALF = "whitened-0.5"
LENGTHS = (32, 64, 128, 256)
# What a preset says of the data and the model, which adapt finds out itself.
_FOUND = {"model_name_or_path", "pooling", "teacher", "layers", "max_seq_length", "num_train_epochs"}


@dataclass(frozen=True)
class Candidate:
    """A recipe of the list.

    Args:
        name: a file's name too.
        reason: a line for the report.
        power: of the whitening that comes first; None is none.
        training: options of ``st-simcse train``; none where nothing is trained.

    Example:
        >>> Candidate("whitened-1", "It takes no training.", power="1").words
        ['--whiten', '--whiten_power', '1', '--num_train_epochs', '0']
    """

    name: str
    reason: str
    power: str | None = None
    training: Sequence[str] = ()

    @property
    def words(self) -> list[str]:
        """All options of ``st-simcse train``."""
        whitening = ["--whiten", "--whiten_power", self.power] if self.power else []
        return [*whitening, *(self.training or ("--num_train_epochs", "0"))]

    def has_enough(self, texts: int, width: int) -> bool:
        """Whether so many texts are enough to whiten so many dimensions; the mean alone is known from any number."""
        return not float(self.power or 0) or texts > width


# By the tables of docs/recipes.md, in which no other power is the best.
_UNTRAINED = (
    Candidate(
        "centred",
        "The mean is subtracted, without training: the best of these from mean pooling, on news and on Wikipedia.",
        "0",
    ),
    Candidate(HALF, "Half a whitening, without training: the best of these from a CLS token.", "0.5"),
    Candidate(
        "whitened-1",
        "A whole whitening, without training: the best of these for a model that nobody has trained.",
        "1",
    ),
)
_SMALL_STEPS = ("--learning_rate", "3e-05")


def shortlist(corpus: CorpusProfile, model: ModelProfile, teachers: Sequence[str] = ()) -> list[Candidate]:
    """The recipes to try, the simplest first.

    Args:
        corpus: what the texts are.
        model: what the model is.
        teachers: names or folders of models to learn from.

    Example:
        >>> corpus = CorpusProfile(1000, 0, 80, 14, 0.02, "Latin")
        >>> model = ModelProfile(is_pooled=True, has_dropout=True, is_whitened=False, width=384, reads=256)
        >>> [candidate.name for candidate in shortlist(corpus, model)]
        ['before', 'centred', 'whitened-0.5', 'whitened-1', 'simcse', 'whitened-simcse']
    """
    found = [Candidate(BEFORE, "The model as it was."), *_UNTRAINED, _simcse(model)]
    if corpus.has_paragraphs:
        found.append(
            _of_preset(
                "own-domain",
                "crops",
                "Two crops of a paragraph say more about it than a text under two dropout masks.",
            )
        )
    if teachers:
        found.append(_taught(model, teachers))
    found.append(_whitened_and_trained(corpus, model))
    different = corpus.texts - corpus.duplicates
    return [
        candidate
        for candidate in found
        if not candidate.power or (candidate.has_enough(different, model.width) and not model.is_whitened)
    ]


def safest(model: ModelProfile) -> str:
    """The recipe that loses least where nothing can be measured: by the tables of docs/recipes.md.

    Example:
        >>> safest(ModelProfile(is_pooled=True, has_dropout=True, is_whitened=False, width=384, reads=256))
        'before'
    """
    return BEFORE if model.is_pooled else HALF


def training_length(share_longer: Callable[[int], float], reads: int | None) -> int:
    """Tokens of a text that training sees: 32, 64, 128 or 256, enough for nine of ten texts.

    Args:
        share_longer: the share of the texts that have more tokens than it is given.
        reads: tokens that the model reads, if it has a limit; training sees no more.

    Example:
        >>> training_length(lambda length: 0.5 if length < 64 else 0.05, reads=256)
        64
    """
    enough = next((length for length in LENGTHS if share_longer(length) <= 0.1), LENGTHS[-1])
    return min(enough, reads or enough)


def _simcse(model: ModelProfile) -> Candidate:
    if model.is_pooled:
        reason = "SimCSE at a small learning rate, which a model that embeds well already bears."
        return Candidate("simcse", reason, training=[*_SMALL_STEPS, *_dropout(model)])
    reason = "SimCSE with a head and larger steps: nobody trained the pooling yet."
    return Candidate("simcse", reason, training=["--projection_head", "--learning_rate", "1e-04", *_dropout(model)])


def _taught(model: ModelProfile, teachers: Sequence[str]) -> Candidate:
    reason = "SimCSE that keeps the ranking of the teacher, which holds back what does harm."
    options = ["--teacher", *teachers, *_dropout(model)]
    if model.is_pooled:
        return Candidate("teacher", reason, training=[*options, *_SMALL_STEPS, "--rank_distillation", "1"])
    return _of_preset("small-from-large", "teacher", reason, options)


def _whitened_and_trained(corpus: CorpusProfile, model: ModelProfile) -> Candidate:
    name = "whitened-simcse"
    if not model.is_pooled:
        reason = "SimCSE from half a whitening: the best start where nobody trained the pooling."
        return _of_preset("language-model", name, reason, _dropout(model))
    if corpus.has_paragraphs:
        return _of_preset("own-domain", name, "Crops, from embeddings with the mean subtracted.", power="0")
    reason = "SimCSE with some words twice in one view, from embeddings with the mean subtracted."
    return Candidate(name, reason, "0", [*_SMALL_STEPS, "--views", "word_repetition", *_dropout(model)])


def _of_preset(preset: str, name: str, reason: str, others: Sequence[str] = (), power: str | None = None) -> Candidate:
    """What the preset says besides what adapt finds out, and other options of training."""
    options = {option: value for option, value in PRESETS[preset].items() if option not in _FOUND}
    if options.pop("whiten", None):
        power = options.pop("whiten_power")
    words = (word for option, value in options.items() for word in (f"--{option}", *value.split()))
    return Candidate(name, reason, power, [*others, *words])


def _dropout(model: ModelProfile) -> list[str]:
    """Two views of a text that differ, for a model without dropout of its own."""
    return [] if model.has_dropout else ["--dropout", "0.1"]
