"""What ``st-simcse adapt`` was asked for, and the plan that it makes of it."""

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

# Texts in the pictures of the report.
PICTURED = 600


@dataclass(frozen=True)
class Task:
    """What the command was asked for.

    Args:
        args: the command's own options.
        corpus: where the texts are.
        options: all of them but the folder, which may be moved, by name; without those that were left out.
        measured: those of compare that say what is measured, as words.
        budget: seconds.
        command: the whole command line.
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
        """A file of texts that the command writes."""
        return self.folder / "data" / f"{name}.jsonl"

    @property
    def model_words(self) -> list[str]:
        """The options of train that say which model it is."""
        pooling = [] if self.pooling is None else ["--pooling", self.pooling]
        return ["--model_name_or_path", self.args.model_name_or_path, *pooling]

    def words(self, texts: str, length: int) -> list[str]:
        """The options of train that all recipes have, on the texts of this name."""
        file = ["--train_file", str(self.data(texts)), "--train_format", "sentences"]
        # Scored pairs choose among the checkpoints of a training; nothing else needs them.
        has_pairs = bool(self.options.keys() & {"dev_file", "dev_dataset"})
        saving = [] if has_pairs else ["--save_strategy", "no"]
        return [*self.model_words, *file, "--max_seq_length", str(length), "--report_to", "none", *saving]

    def comparison(self, words: Sequence[str], candidates: Sequence[Candidate], *others: str) -> Comparison:
        """As the command line ``st-simcse compare`` with these options."""
        recipes = [f"{candidate.name}: {shlex.join(candidate.words)}" for candidate in candidates]
        argv = [*words, *self.measured, "--recipe", *recipes, *others]
        return parse_comparison(argv, needs_data=False)


@dataclass(frozen=True)
class Plan:
    """What is tried; in a file, so that a run that was stopped goes on with the same.

    Args:
        options: of the command, by name, without those that were left out.
        inputs: hashes of what the command reads, by name.
        corpus: what the texts are.
        model: what the model is.
        length: tokens of a text that training sees.
        texts: how many there are to train on, without duplicates and without those of dev and test data.
        measured: how many of the corpus's texts are left out because dev or test data have them.
        dev: of each dev column what its rows are, and how many there are; without any there is nothing to choose by.
        candidates: the recipes.
        left_out: why some recipes are not tried, by name.
        share: how the budget is spent.
        whitening_rows: texts of the trials without training.
        seconds: what is expected of the trials with training, of those without, of the longest final run, and of the
            report.
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
        """The recipe of this name."""
        return next(candidate for candidate in self.candidates if candidate.name == name)


def describe(plan: Plan) -> str:
    """What is about to be done, and what it costs, for people."""
    corpus, model, share = plan.corpus, plan.model, plan.share
    kind = "paragraphs" if corpus.has_paragraphs else "sentences"
    lines = [
        f"corpus: {corpus.texts:,} {kind} in {corpus.script} script, median {corpus.words:,} words and "
        f"{corpus.characters:,} characters; {corpus.duplicates:,} duplicates, and {plan.measured:,} of the dev and "
        f"test data, are left out, {plan.texts:,} remain",
        f"model: {'its pooling was trained' if model.is_pooled else 'nobody trained its pooling'}, "
        f"{'with' if model.has_dropout else 'without'} dropout, {model.width} dimensions; training sees {plan.length} "
        "tokens of a text",
    ]
    trained = [candidate.name for candidate in plan.candidates if candidate.training]
    others = [candidate.name for candidate in plan.candidates if not candidate.training]
    if plan.dev:
        lines.append(f"without training, on {plan.whitening_rows:,} texts: {', '.join(others)}")
        lines.append(f"trained with {share.seeds} seeds on {share.rows:,} texts: {', '.join(trained)}")
        costs = {part: shown_duration(seconds) for part, seconds in plan.seconds.items()}
        lines.append(
            f"cost: about {shown_duration(sum(plan.seconds.values()))} in all, of which the trained recipes take "
            f"{costs['trials']}, the others {costs['other']}, the winner {costs['final']} at most, and the pictures "
            f"{costs['report']}"
        )
    lines += [f"left out: {name}: {reason}" for name, reason in plan.left_out.items()]
    return "\n".join(lines)
