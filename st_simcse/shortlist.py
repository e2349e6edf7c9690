"""A shortlist of recipes for a corpus and a model, each with a name, options of ``st-simcse train`` and a reason."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from st_simcse.data.corpus_profile import CorpusProfile, profile_corpus
from st_simcse.models.model_profile import ModelProfile
from st_simcse.presets import PRESETS, option_words

__all__ = ["BEFORE", "Candidate", "safest", "shortlist", "start_model", "training_length"]

BEFORE = "before"
HALF = "whitened-0.5"
LENGTHS = (32, 64, 128, 256)
# Words that are frequent in English and rare in other languages. Dutch, for example, has "of" and "is" too.
_ENGLISH = frozenset({"the", "and", "to", "with", "for", "that"})
_LEAST_ENGLISH = 0.05
_KANA = re.compile("[\u3040-\u30ff]")
# The options of presets that depend on the data and the model. The adapt command sets them itself.
_FOUND = {"model_name_or_path", "pooling", "teacher", "layers", "max_seq_length", "num_train_epochs"}


@dataclass(frozen=True)
class Candidate:
    """A recipe of the shortlist.

    Args:
        name: The name of the recipe, which is also used as a file name.
        reason: A sentence for the report.
        power: The power of the whitening before training. If None, the model is not whitened.
        training: The options of ``st-simcse train``. Empty if the recipe does not train.

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
        """All options of ``st-simcse train``, including those for whitening."""
        whitening = ["--whiten", "--whiten_power", self.power] if self.power else []
        return [*whitening, *(self.training or ("--num_train_epochs", "0"))]

    def obstacle(self, texts: int, model: ModelProfile) -> str | None:
        """Returns the reason why this number of texts cannot whiten the model, or None if it can.

        Example:
            >>> model = ModelProfile(is_pooled=True, has_dropout=True, is_whitened=False, width=384, reads=256)
            >>> Candidate("whitened-1", "It takes no training.", power="1").obstacle(200, model)
            '200 texts are too few to whiten 384 dimensions'
        """
        if self.power and model.is_whitened:
            return "the model is already whitened"
        if float(self.power or 0) and texts <= model.width:  # the power 0 only needs the mean
            return f"{texts:,} texts are too few to whiten {model.width} dimensions"
        return None


# According to the tables of docs/recipes.md, where no other power is the best.
_UNTRAINED = (
    Candidate(
        "centred",
        "Subtracts the mean, without training. The best untrained recipe for mean pooling, on news and on Wikipedia.",
        "0",
    ),
    Candidate(HALF, "Half a whitening, without training. The best untrained recipe for a CLS token.", "0.5"),
    Candidate(
        "whitened-1",
        "A full whitening, without training. The best untrained recipe for a model that cannot embed texts yet.",
        "1",
    ),
)
_SMALL_STEPS = ("--learning_rate", "3e-05")


def shortlist(corpus: CorpusProfile, model: ModelProfile, teachers: Sequence[str] = ()) -> list[Candidate]:
    """Returns the recipes to try, the simplest first.

    Args:
        corpus: The profile of the texts.
        model: The profile of the model.
        teachers: The names or folders of models to learn from.

    Example:
        >>> corpus = CorpusProfile(1000, 0, 80, 14, 0.02, "Latin")
        >>> model = ModelProfile(is_pooled=True, has_dropout=True, is_whitened=False, width=384, reads=256)
        >>> [candidate.name for candidate in shortlist(corpus, model)]
        ['before', 'centred', 'whitened-0.5', 'whitened-1', 'simcse', 'whitened-simcse']
    """
    found = [Candidate(BEFORE, "The model before training."), *_UNTRAINED, _simcse(model)]
    if corpus.has_paragraphs:
        found.append(
            _of_preset(
                "own-domain",
                "crops",
                "Two crops of a paragraph are more informative views than the same text under two dropout masks.",
            )
        )
    if teachers:
        found.append(_taught(model, teachers))
    return [*found, _whitened_and_trained(corpus, model)]


def start_model(texts: Sequence[str]) -> str:
    """Returns the name of a small model on the hub for the language of the texts: Chinese, English or another.

    Example:
        >>> start_model(["Two dogs run to the park."])
        'sentence-transformers/all-MiniLM-L6-v2'
    """
    # Japanese titles may have more Han characters than kana.
    japanese = sum(_KANA.search(text) is not None for text in texts)
    if profile_corpus(texts).script == "Han" and japanese < len(texts) / 10:
        return "BAAI/bge-small-zh-v1.5"
    words = [word for text in texts for word in text.lower().split()]
    if sum(word in _ENGLISH for word in words) >= _LEAST_ENGLISH * len(words):
        return "sentence-transformers/all-MiniLM-L6-v2"
    return "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2"


def safest(model: ModelProfile) -> str:
    """Returns the recipe with the lowest risk if nothing can be measured, according to docs/recipes.md.

    Example:
        >>> safest(ModelProfile(is_pooled=True, has_dropout=True, is_whitened=False, width=384, reads=256))
        'before'
    """
    return BEFORE if model.is_pooled else HALF


def training_length(share_longer: Callable[[int], float], reads: int | None) -> int:
    """Returns the number of tokens for training: 32, 64, 128 or 256, so that at least 90% of the texts fit.

    If no length is enough for 90%, the result is 256.

    Args:
        share_longer: A function that returns the share of the texts with more tokens than its argument.
        reads: The maximum number of tokens that the model reads, or None. The result is not larger.

    Example:
        >>> training_length(lambda length: 0.5 if length < 64 else 0.05, reads=256)
        64
    """
    enough = next((length for length in LENGTHS if share_longer(length) <= 0.1), LENGTHS[-1])
    return min(enough, reads or enough)


def _simcse(model: ModelProfile) -> Candidate:
    if model.is_pooled:
        reason = "SimCSE with a small learning rate, because the model already embeds texts well."
        return Candidate("simcse", reason, training=[*_SMALL_STEPS, *_dropout(model)])
    reason = "SimCSE with a projection head and larger steps, because the pooling has not been trained yet."
    return Candidate("simcse", reason, training=["--projection_head", "--learning_rate", "1e-04", *_dropout(model)])


def _taught(model: ModelProfile, teachers: Sequence[str]) -> Candidate:
    reason = "SimCSE that preserves the teacher's ranking, which prevents harmful changes."
    options = ["--teacher", *teachers, *_dropout(model)]
    if model.is_pooled:
        return Candidate("teacher", reason, training=[*options, *_SMALL_STEPS, "--rank_distillation", "1"])
    return _of_preset("small-from-large", "teacher", reason, options)


def _whitened_and_trained(corpus: CorpusProfile, model: ModelProfile) -> Candidate:
    name = "whitened-simcse"
    if not model.is_pooled:
        reason = "SimCSE after half a whitening, the best start if the pooling has not been trained."
        return _of_preset("language-model", name, reason, _dropout(model), PRESETS["language-model"]["whiten_power"])
    if corpus.has_paragraphs:
        return _of_preset("own-domain", name, "SimCSE with crops, after subtracting the mean.", power="0")
    reason = "SimCSE with some words repeated in one view, after subtracting the mean."
    return Candidate(name, reason, "0", [*_SMALL_STEPS, "--views", "word_repetition", *_dropout(model)])


def _of_preset(preset: str, name: str, reason: str, others: Sequence[str] = (), power: str | None = None) -> Candidate:
    """Returns a recipe with other options and those of a preset, except its whitening and those that adapt sets."""
    options = {
        option: value
        for option, value in PRESETS[preset].items()
        if option not in _FOUND and not option.startswith("whiten")
    }
    return Candidate(name, reason, power, [*others, *option_words(options)])


def _dropout(model: ModelProfile) -> list[str]:
    """Returns the options that add dropout to a model without it, so that two views of a text differ."""
    return [] if model.has_dropout else ["--dropout", "0.1"]
