"""A short list of recipes for a corpus and a model: names, options of ``st-simcse train``, and why each is there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from st_simcse.data.corpus_profile import CorpusProfile
from st_simcse.models.model_profile import ModelProfile
from st_simcse.presets import PRESETS

__all__ = ["BEFORE", "Candidate", "safest", "shortlist", "training_length"]

BEFORE = "before"
POWERS = ("0.25", "0.5", "1")
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
        >>> Candidate("whitened-1", "Without training.", power="1").words
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
        ['before', 'whitened-0.25', 'whitened-0.5', 'whitened-1', 'simcse', 'whitened-simcse']
    """
    found = [Candidate(BEFORE, "The model as it was.")]
    found += [_whitened(power) for power in POWERS]
    found.append(_simcse(model))
    if corpus.has_paragraphs:
        found.append(
            Candidate(
                "crops",
                "Two crops of a paragraph say more about it than a text under two dropout masks.",
                training=_preset("own-domain"),
            )
        )
    if teachers:
        found.append(_taught(model, teachers))
    found.append(_whitened_and_trained(model))
    can_whiten = corpus.texts - corpus.duplicates > model.width and not model.is_whitened
    return [candidate for candidate in found if not candidate.power or can_whiten]


def safest(model: ModelProfile) -> str:
    """The recipe that loses least where nothing can be measured: by the tables of docs/recipes.md.

    Example:
        >>> safest(ModelProfile(is_pooled=True, has_dropout=True, is_whitened=False, width=384, reads=256))
        'before'
    """
    return BEFORE if model.is_pooled else _whitened(POWERS[0]).name


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


def _whitened(power: str) -> Candidate:
    reason = {
        "0.25": "A gentle whitening evens out some of the spread of the embeddings; it takes no training.",
        "0.5": "Half a whitening, between the two.",
        "1": "A whole whitening: all directions count alike, which helps most where nobody trained the pooling.",
    }
    return Candidate(f"whitened-{power}", reason[power], power)


def _simcse(model: ModelProfile) -> Candidate:
    if model.is_pooled:
        reason = "SimCSE at a small learning rate, which a model that embeds well already bears."
        return Candidate("simcse", reason, training=[*_small_steps(), *_dropout(model)])
    reason = "SimCSE with a head, harder negatives and larger steps: nobody trained the pooling yet."
    return Candidate("simcse", reason, training=[*_preset("language-model"), *_dropout(model)])


def _taught(model: ModelProfile, teachers: Sequence[str]) -> Candidate:
    options = _small_steps("--rank_distillation", "1") if model.is_pooled else _preset("small-from-large")
    reason = "SimCSE that keeps the ranking of the teacher, which holds back what does harm."
    return Candidate("teacher", reason, training=["--teacher", *teachers, *options, *_dropout(model)])


def _whitened_and_trained(model: ModelProfile) -> Candidate:
    power = POWERS[0] if model.is_pooled else POWERS[-1]
    reason = "SimCSE from a whitened start, at a small learning rate."
    return Candidate("whitened-simcse", reason, power, [*_small_steps(), *_dropout(model)])


def _small_steps(*others: str) -> list[str]:
    return ["--learning_rate", "3e-05", *others]


def _preset(name: str) -> list[str]:
    options = {option: value for option, value in PRESETS[name].items() if option not in _FOUND}
    return [word for option, value in options.items() for word in (f"--{option}", *value.split())]


def _dropout(model: ModelProfile) -> list[str]:
    """Two views of a text that differ, for a model without dropout of its own."""
    return [] if model.has_dropout else ["--dropout", "0.1"]
