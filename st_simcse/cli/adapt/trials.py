"""The trials of ``st-simcse adapt``, the choice of a recipe, and the saving of the model."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sentence_transformers import SentenceTransformer
from tqdm import tqdm

from st_simcse.choice import choose, noise
from st_simcse.cli import train
from st_simcse.cli.adapt.task import Plan, Task
from st_simcse.cli.compare import Comparison, Numbers, train_all
from st_simcse.cli.inputs import identities
from st_simcse.cli.runs import Result, Run, in_this_process, measured, write_json
from st_simcse.data.readers import SentenceReader, texts_of
from st_simcse.models.checkpoints import load_model
from st_simcse.models.embed_once import embed_once
from st_simcse.models.whitening import whiten
from st_simcse.report import Command, Paragraph, as_markdown
from st_simcse.shortlist import BEFORE, Candidate, safest
from st_simcse.training.model_card import shown_command
from st_simcse.training.run_folder import UNFINISHED

logger = logging.getLogger(__name__)

CARD_SECTION = "How it was chosen"


@dataclass(frozen=True)
class Trials:
    """The numbers by recipe and column, one per seed, and the error messages of recipes that failed."""

    numbers: Numbers
    failures: dict[str, str]


@dataclass(frozen=True)
class Outcome:
    """The result of the choice.

    Args:
        name: The recipe of the saved model.
        why: The reasons, in a few sentences.
        final: The numbers of the recipe that was trained on all texts, whether or not it is saved.
        run: The run of that recipe. None if no recipe was trained on all texts.
    """

    name: str
    why: str
    final: dict[str, list[float]]
    run: Run | None = None


class Untrained:
    """Executes the runs without training. They share one model, so that each text is embedded once."""

    def __init__(self, task: Task) -> None:
        self.task = task

    @cached_property
    def model(self) -> SentenceTransformer:
        """The original model."""
        return embed_once(load_model(self.task.args.model_name_or_path, self.task.pooling))

    def __call__(self, run: Run, keep_model: bool) -> Result:
        """Writes the result of a run to its file and returns it, like :func:`~st_simcse.cli.runs.in_this_process`."""
        inputs = identities(run.options, run.tests)
        model_args, data_args, _, _ = train.parse_train(run.options)
        model = embed_once(self.model)
        if model_args.whiten_power is not None:
            whiten(model, texts_of(SentenceReader().get_dataset(str(data_args.train_file))), model_args.whiten_power)
        correlations = train.spearman(train.pair_evaluators(data_args), model)
        result = measured(run, model, correlations, {"seconds": 0.0, "CPU seconds": 0.0}, inputs)
        write_json(run.file, result)
        return result


def run_trials(task: Task, plan: Plan) -> Trials:
    """Runs the trials that have no results yet, with a progress bar.

    Raises:
        ValueError: If the original model cannot be measured.
    """
    without = [candidate for candidate in plan.candidates if not candidate.training]
    trained = [candidate for candidate in plan.candidates if candidate.training]
    if not plan.dev:
        without, trained = [plan.candidate(BEFORE)] if task.measured else [], []
    numbers: Numbers = {}
    failures: dict[str, str] = {}
    total = len(without) + plan.share.seeds * len(trained)
    with tqdm(total=total, desc="trials", unit="run", disable=not total) as bar:
        for candidates, seeds, texts, execute in (
            (without, 1, _untrained_texts(plan), Untrained(task)),
            (trained, plan.share.seeds, "sample", in_this_process),
        ):
            if candidates:
                found, wrong = train_all(
                    comparison(task, plan, candidates, seeds, texts),
                    lambda runs: _watched(runs, bar),
                    bar.write,
                    is_quiet=True,
                    execute=execute,
                )
                numbers |= found
                failures |= wrong
    if BEFORE in failures:
        raise ValueError(f"the original model could not be measured: {failures[BEFORE]}")
    for failure in failures.values():
        logger.warning("a recipe failed and cannot be chosen: %s", failure)
    return Trials(numbers, failures)


def comparison(
    task: Task, plan: Plan, candidates: Sequence[Candidate], seeds: int, texts: str, folder: str = "trials"
) -> Comparison:
    """Makes the comparison that ``st-simcse compare`` would run with these recipes."""
    where = ["--output_dir", str(task.folder / folder), "--seeds", *map(str, range(seeds))]
    keep = ["--keep_models"] if folder == "final" else []
    return task.comparison(task.words(texts, plan.length), candidates, *where, *keep)


def decide(task: Task, plan: Plan, trials: Trials) -> Outcome:
    """Chooses a recipe by the trials and trains it on all texts. Keeps the original model if the result is not better.

    Raises:
        ValueError, OSError: If that training fails.
    """
    if not plan.dev:
        return _decide_without_dev(task, plan)
    selected = _scores(plan, trials)
    choice = choose(selected, BEFORE, noise(plan.dev.values()))
    name, why = choice.name, choice.why
    if name == BEFORE:
        return Outcome(BEFORE, f"{why} The original model is saved.", {})
    final, run = train_final(task, plan, plan.candidate(name))
    before, after = selected[BEFORE][0], next(iter(final.values()))[0]
    told = f"{why} Trained on all texts, it scores {after:.2f}, and the original model {before:.2f}"
    if after <= before:
        return Outcome(BEFORE, f"{told}. This is no gain, so the original model is saved.", final, run)
    return Outcome(name, f"{told}.", final, run)


def _decide_without_dev(task: Task, plan: Plan) -> Outcome:
    why = "Without dev data, adapt cannot measure which recipe is best."
    name = safest(plan.model)
    if name in plan.left_out:
        why += f" {name} was the safest in our measurements, but {plan.left_out[name]}, so the original model is saved."
        return Outcome(BEFORE, why, {})
    if name == BEFORE:
        why += " The original model was the safest in our measurements, so it is saved unchanged."
        return Outcome(BEFORE, why, {})
    final, run = train_final(task, plan, plan.candidate(name))
    return Outcome(
        name, f"{why} {name} was the safest in our measurements. It was fitted to all texts and saved.", final, run
    )


def _scores(plan: Plan, trials: Trials) -> dict[str, list[float]]:
    """Returns the mean dev scores of the recipes that did not fail, one per seed. The choice is made by these."""
    found = {}
    for candidate in plan.candidates:
        if candidate.name in trials.numbers and candidate.name not in trials.failures:
            found[candidate.name] = next(iter(trials.numbers[candidate.name].values()))
    return found


def train_final(task: Task, plan: Plan, candidate: Candidate) -> tuple[dict[str, list[float]], Run]:
    """Trains and measures the recipe on all texts, and returns its numbers and run.

    Its model stays in the folder of the run until it is saved.
    """
    once = comparison(task, plan, [candidate], 1, "corpus", "final")
    (run,) = once.runs()
    is_saved = task.model.exists()
    if not run.model.exists() and not is_saved:
        run.file.unlink(missing_ok=True)  # these are numbers of a model that no longer exists
    with tqdm(total=1, desc=f"{candidate.name}, on all texts", unit="run") as bar:
        say = (lambda line: None) if is_saved else bar.write  # compare would say that the run's model was not kept
        numbers, failures = train_all(once, lambda runs: _watched(runs, bar), say, execute=in_this_process)
    if failures:
        raise ValueError(f"the training on all texts failed: {failures[candidate.name]}")
    return numbers[candidate.name], run


def final_command(task: Task, run: Run) -> list[str]:
    """Returns the ``st-simcse train`` command that trains the saved model again, as a list of arguments."""
    return ["st-simcse", "train", *run.options, "--seed", str(run.seed), "--output_dir", f"{task.model}-again"]


def save_model(task: Task, outcome: Outcome) -> None:
    """Moves the complete model to its folder, with a model card that says how it was chosen."""
    if task.model.exists():
        return
    if outcome.name != BEFORE and outcome.run:
        made = outcome.run.model
    else:
        made = task.folder / UNFINISHED / "model"
        load_model(task.args.model_name_or_path, task.pooling).save_pretrained(str(made))
        if outcome.run:
            shutil.rmtree(outcome.run.model, ignore_errors=True)
    card = made / "README.md"
    text = card.read_text(encoding="utf-8") if card.exists() else ""
    section = as_markdown(CARD_SECTION, [Paragraph(outcome.why), Command(shown_command(task.command))])
    others = text.partition(f"\n## {CARD_SECTION}\n")[0]  # the model may have been adapted before
    card.write_text(f"{others.rstrip()}\n\n#{section}", encoding="utf-8")
    made.replace(task.model)
    shutil.rmtree(task.folder / UNFINISHED, ignore_errors=True)


def _untrained_texts(plan: Plan) -> str:
    return "whitening" if plan.dev else "corpus"


def _watched(runs: list[Run], bar: Any) -> Iterator[Run]:
    for one in runs:
        bar.set_postfix_str(f"{one.recipe}, seed {one.seed}")
        yield one
        bar.update()
