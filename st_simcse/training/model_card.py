"""The README that ST writes into a saved model's folder, by default without texts of the training data."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import PurePath, PureWindowsPath
from typing import Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.evaluation import BaseEvaluator
from sentence_transformers.sentence_transformer.model_card import (
    SentenceTransformerModelCardCallback,
    SentenceTransformerModelCardData,
)

from st_simcse.evaluation import format_table
from st_simcse.training.run_folder import step_of

__all__ = ["ModelCardCallback", "SimCSEModelCardData", "shown_command", "shown_value"]

# Papers report Spearman's correlation times 100.
METRICS = {"spearman_cosine": ("Spearman × 100", 100), "alignment": ("alignment", 1), "uniformity": ("uniformity", 1)}

Results = dict[BaseEvaluator, dict[str, Any]]


@dataclass
class SimCSEModelCardData(SentenceTransformerModelCardData):
    """ST's model card data, with a section on the training command and the scores before and after training.

    Args:
        command: The command line that trained the model, as returned by :func:`shown_command`.

    Example:
        >>> from st_simcse.demo import tiny_model
        >>> model = tiny_model(["Two dogs run."])
        >>> model.model_card_data = SimCSEModelCardData.of(model.model_card_data)
        >>> model.model_card_data.command = "st-simcse train ..."
        >>> "st-simcse train ..." in model.model_card_data.generate_usage_snippet()
        True
    """

    command: str = ""
    # By evaluator, like eval_results_dict, which holds the results after training.
    results_before: Results = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(cls, data: SentenceTransformerModelCardData) -> SimCSEModelCardData:
        """Returns a copy of ST's card data."""
        own = cls()
        vars(own).update(vars(data))
        return own

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields of the card. Names of evaluators and datasets cannot break its headings or tables."""
        values: dict[str, Any] = super().to_dict()
        evaluators = [getattr(evaluator, "name", None) for evaluator in self.eval_results_dict or {}]
        datasets = [dataset.get("name") for dataset in (*self.train_datasets, *self.eval_datasets)]
        unsafe = [name for name in (*evaluators, *datasets) if isinstance(name, str) and name != _one_line(name)]
        if unsafe:
            # In place, because ST writes the metadata from this dict.
            values.update(_with_safe_names(values, unsafe))
        return values

    def generate_usage_snippet(self) -> str:
        # ST's template has no place for another section. The usage snippet comes last before the results.
        return f"{super().generate_usage_snippet()}\n\n{self._how_it_was_made()}\n"

    def _how_it_was_made(self) -> str:
        made = f"Trained with st_simcse {version('st_simcse')}. The objective and the arguments are listed below."
        # The fence is longer than every run of backticks in the command, so no word can end the code block.
        fence = "`" * (1 + max([2, *map(len, re.findall("`+", self.command))]))
        made += f" The command was:\n\n{fence}bash\n{self.command}\n{fence}" if self.command else ""
        parts = ["## How it was made", made]
        before, after = _scores(self.results_before), _scores(self.eval_results_dict or {})
        if after:
            rows = {_one_line(name): {"before": before.get(name, ""), "after": after[name]} for name in after}
            parts.append(format_table(rows, "measured"))
        return "\n\n".join(parts)


def _scores(results: Results) -> dict[str, float]:
    return {
        ", ".join(filter(None, (key.removesuffix(metric).rstrip("_"), name))): factor * float(value)
        for metrics in results.values()
        for key, value in metrics.items()
        for metric, (name, factor) in METRICS.items()
        if key == metric or key.endswith(f"_{metric}")
    }


def _one_line(name: str) -> str:
    """Returns a name that is safe in a heading, in a table cell and between backticks."""
    return " ".join(name.replace("|", "/").replace("`", "'").split())


def _with_safe_names(value: Any, names: Collection[str]) -> Any:
    if isinstance(value, str):
        for name in names:
            value = value.replace(name, _one_line(name))
        return value
    if isinstance(value, list):
        return [_with_safe_names(part, names) for part in value]
    if isinstance(value, dict):
        return {_with_safe_names(key, names): _with_safe_names(part, names) for key, part in value.items()}
    return value


def shown_command(words: Sequence[str]) -> str:
    """Returns a command line that can be published.

    Tokens and passwords become ``...``, and paths outside the current folder are shortened to their last part.

    Example:
        >>> shown_command(["st-simcse", "train", "--train_file", "/home/me/my file.txt", "--hub-token", "hf_abc"])
        "st-simcse train --train_file 'my file.txt' --hub-token ..."
    """
    shown: list[str] = []
    hide_next = False
    for word in words:
        name, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        is_token = name.replace("-", "_").endswith("_token")
        is_secret = hide_next or (is_token and bool(equals))
        shown.append(name + equals + ("..." if is_secret else shlex.quote(shown_value(value)) if value else ""))
        hide_next = is_token and not equals
    return " ".join(shown)


def shown_value(value: str) -> str:
    """Returns a word of a command line that can be published.

    A path outside the current folder is shortened to its last part, and a URL loses its user name and password.

    Example:
        >>> shown_value("data/a.txt"), shown_value("./../../home/me/a.txt"), shown_value("file:///home/me/a.txt")
        ('data/a.txt', 'a.txt', 'a.txt')
    """
    path = value.removeprefix("file://")
    if re.match(r"[A-Za-z]:[\\/]|\\\\", path):
        return PureWindowsPath(path).name
    if path != value or path.startswith(("/", "~")) or ".." in PurePath(path).parts:
        return PurePath(path).name
    return re.sub(r"(?<=://)[^/@\s]+@", "...@", value)


class ModelCardCallback(SentenceTransformerModelCardCallback):
    """ST's model card callback, which does not publish texts of the training data unless asked to.

    ST's callback shows about twenty texts of the training data: as samples of the data, as examples for the hub's
    widget, and in the usage snippet. This one only does so if ``args.texts_in_model_card`` is True, because a model is
    often shared when its training data may not be. The card also says how the model was made, see
    :class:`SimCSEModelCardData`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.results_at: dict[int, Results] | None = None  # by step, None outside of training

    def on_init_end(self, args: Any, *others: Any, **kwargs: Any) -> None:
        card = own_card(kwargs["model"])
        card.add_tags(["simcse", "st_simcse"])
        if getattr(args, "texts_in_model_card", False):
            super().on_init_end(args, *others, **kwargs)
            return
        given = card.widget
        card.widget = given or [{}]  # with an empty widget, ST takes texts of the data
        super().on_init_end(args, *others, **kwargs)
        card.widget = given
        for dataset in (*card.train_datasets, *card.eval_datasets):
            for key in ("examples", "examples_table"):
                dataset.pop(key, None)

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        card = own_card(model)
        super().on_train_begin(args, state, control, model, **kwargs)
        for arguments in (card.all_hyperparameters, card.non_default_hyperparameters):
            arguments.update({name: shown_value(value) for name, value in arguments.items() if isinstance(value, str)})
        self.results_at = {}
        card.results_before, card.eval_results_dict = card.eval_results_dict or {}, {}

    def on_evaluate(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        super().on_evaluate(args, state, control, model, **kwargs)
        if self.results_at is None:
            return
        card = own_card(model)
        self.results_at[state.global_step] = dict(card.eval_results_dict or {})
        if state.global_step == 0:  # eval_on_start
            card.results_before |= card.eval_results_dict or {}
            card.eval_results_dict = {}

    def on_train_end(self, args: Any, state: Any, *others: Any, model: Any, **kwargs: Any) -> None:
        """Keeps the results of the model that training ends with, which may be older than the last evaluation."""
        step = state.global_step
        if args.load_best_model_at_end and state.best_model_checkpoint:
            step = step_of(state.best_model_checkpoint)
        own_card(model).eval_results_dict = (self.results_at or {}).get(step, {})
        self.results_at = None


def own_card(model: SentenceTransformer) -> SimCSEModelCardData:
    if not isinstance(model.model_card_data, SimCSEModelCardData):
        model.model_card_data = SimCSEModelCardData.of(model.model_card_data)
    return model.model_card_data
