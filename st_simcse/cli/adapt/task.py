"""The task of ``st-simcse adapt``, as its options describe it, and the plan for it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from st_simcse.budget import Share, shown_duration
from st_simcse.choice import Kind
from st_simcse.cli.compare import Comparison, parse_comparison
from st_simcse.cli.parsing import pooling_mode
from st_simcse.data.corpus_profile import CorpusProfile
from st_simcse.models.model_profile import ModelProfile
from st_simcse.shortlist import Candidate

# The number of texts in the pictures of the report.
PICTURED = 600


@dataclass(frozen=True)
class Task:
    """The options of the command.

    Args:
        args: The command's own options.
        corpus: The options that name the texts.
        options: All options that have a value, by name, except the output folder, which may be moved.
        measured: The options of compare that say what to measure, as command-line arguments.
        budget: The budget in seconds.
        command: The whole command line.
    """

    args: Any
    corpus: Any
    options: dict[str, Any]
    measured: list[str]
    budget: float
    command: list[str]

    @property
    def folder(self) -> Path:
        return Path(self.args.output_dir)

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def pooling(self) -> Any:
        return pooling_mode(self.args.pooling)

    def data(self, name: str) -> Path:
        """Returns the path of a file of texts that the command writes."""
        return self.folder / "data" / f"{name}.jsonl"

    @property
    def model_words(self) -> list[str]:
        """The options of train for the model."""
        pooling = [] if self.pooling is None else ["--pooling", self.pooling]
        return ["--model_name_or_path", self.args.model_name_or_path, *pooling]

    def words(self, texts: str, length: int) -> list[str]:
        """Returns the options of train that all recipes share, for training on the texts of this name."""
        file = ["--train_file", str(self.data(texts)), "--train_format", "sentences"]
        # Checkpoints are only needed if scored pairs choose among them.
        has_pairs = bool(self.options.keys() & {"dev_file", "dev_dataset"})
        saving = [] if has_pairs else ["--save_strategy", "no"]
        return [*self.model_words, *file, "--max_seq_length", str(length), "--report_to", "none", *saving]

    def comparison(self, words: Sequence[str], candidates: Sequence[Candidate], *others: str) -> Comparison:
        """Makes the comparison that ``st-simcse compare`` would run with these options."""
        recipes = [f"{candidate.name}: {shlex.join(candidate.words)}" for candidate in candidates]
        argv = [*words, *self.measured, "--recipe", *recipes, *others]
        return parse_comparison(argv, needs_data=False)


@dataclass(frozen=True)
class Plan:
    """The recipes to try and their cost. The plan is saved in a file, so that an interrupted run continues with it.

    Args:
        options: The options of the command that have a value, by name.
        inputs: Hashes of the inputs of the command, by name.
        corpus: The profile of the texts.
        model: The profile of the model.
        length: The maximum number of tokens of a text in training.
        texts: The number of texts to train on, without duplicates and without texts of the dev and test data.
        measured: The number of texts of the corpus that are left out because they are in the dev or test data.
        dev: The kind and number of rows for each dev column. If empty, there is nothing to choose by.
        candidates: The recipes.
        left_out: The reasons why recipes are not tried, by name.
        share: The division of the budget.
        whitening_rows: The number of texts for the trials without training.
        seconds: The expected seconds of the trials with training, the trials without training, the longest final run
            and the report.
    """

    options: dict[str, Any]
    inputs: dict[str, str | None]
    corpus: CorpusProfile
    model: ModelProfile
    length: int
    texts: int
    measured: int
    dev: dict[str, tuple[Kind, int]]
    candidates: list[Candidate]
    left_out: dict[str, str]
    share: Share
    whitening_rows: int
    seconds: dict[str, float]

    def candidate(self, name: str) -> Candidate:
        """Returns the recipe with this name."""
        return next(candidate for candidate in self.candidates if candidate.name == name)


def describe(plan: Plan) -> str:
    """Describes the plan and its cost in words, one statement per line."""
    corpus, model, share = plan.corpus, plan.model, plan.share
    kind = "paragraphs" if corpus.has_paragraphs else "sentences"
    lines = [
        f"corpus: {corpus.texts:,} {kind} in {corpus.script} script, median {corpus.words:,} words and "
        f"{corpus.characters:,} characters; {corpus.duplicates:,} duplicates and {plan.measured:,} texts of the dev "
        f"and test data are left out, and {plan.texts:,} texts remain",
        f"model: {'trained pooling' if model.is_pooled else 'untrained pooling'}, "
        f"{'with' if model.has_dropout else 'without'} dropout, {model.width} dimensions; training reads up to "
        f"{plan.length} tokens of a text",
    ]
    trained = [candidate.name for candidate in plan.candidates if candidate.training]
    others = [candidate.name for candidate in plan.candidates if not candidate.training]
    if plan.dev:
        lines.append(f"without training, on {plan.whitening_rows:,} texts: {', '.join(others)}")
        lines.append(f"trained with {share.seeds} seeds on {share.rows:,} texts: {', '.join(trained)}")
        costs = {part: shown_duration(seconds) for part, seconds in plan.seconds.items()}
        lines.append(
            f"cost: about {shown_duration(sum(plan.seconds.values()))} in total: {costs['trials']} for the trained "
            f"recipes, {costs['other']} for the others, up to {costs['final']} for the winner, and {costs['report']} "
            "for the pictures"
            + ". The classifiers of the transfer tasks are not included and add minutes to every run"
            * ("senteval_dir" in plan.options)
        )
    lines += [f"left out: {name}: {reason}" for name, reason in plan.left_out.items()]
    return "\n".join(lines)
