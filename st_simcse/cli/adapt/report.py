"""The report of ``st-simcse adapt``: the trials and the choice in numbers and pictures, and commands to repeat them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

from st_simcse.choice import noise
from st_simcse.cli.adapt.task import PICTURED, Plan, Task, describe
from st_simcse.cli.adapt.trials import Outcome, Trials, final_command
from st_simcse.cli.compare import as_cells, plot_numbers
from st_simcse.data.readers import SentenceReader, texts_of
from st_simcse.models.checkpoints import load_model
from st_simcse.models.fast_encode import fast_encode
from st_simcse.plots import name_clusters, plot_map, plot_similarities
from st_simcse.report import Block, Command, Heading, Paragraph, Picture, Table, as_html, as_markdown
from st_simcse.shortlist import BEFORE

TITLE = "A model adapted to a corpus"
FINAL = ", on all texts"
CLUSTERS = 8


def write_report(task: Task, plan: Plan, trials: Trials, outcome: Outcome) -> None:
    """Writes ``report.md`` and ``report.html`` to the folder."""
    blocks = [
        Heading("The chosen recipe"),
        Paragraph(outcome.why),
        Heading("Corpus and model"),
        *map(Paragraph, describe(plan).splitlines()),
        *_recipes(plan, trials),
        *_table(plan, trials, outcome),
        *_pictures(task, trials, outcome),
        *_commands(task, outcome),
    ]
    for name, text in (
        ("report.md", as_markdown(TITLE, blocks, task.folder)),
        ("report.html", as_html(TITLE, blocks)),
    ):
        Path(task.folder, name).write_text(text, encoding="utf-8")


def _recipes(plan: Plan, trials: Trials) -> list[Block]:
    rows = {
        candidate.name: {
            "reason to try it": candidate.reason,
            "options of st-simcse train": shlex.join(candidate.words),
        }
        for candidate in plan.candidates
    }
    failed = [Paragraph(f"A recipe failed and cannot be chosen: {told}") for told in trials.failures.values()]
    return [Heading("Recipes"), Table(rows, "recipe", is_prose=True), *failed]


def _table(plan: Plan, trials: Trials, outcome: Outcome) -> list[Block]:
    rows = as_cells(trials.numbers)
    chosen = outcome.name
    if outcome.run:
        rows |= as_cells({outcome.run.recipe + FINAL: outcome.final})
        chosen += FINAL if outcome.name == outcome.run.recipe else ""
    if not rows:
        return []
    told = "Mean and standard deviation over seeds, × 100 except for costs. The row of the saved model is in bold. "
    if plan.dev:
        least = noise(plan.dev.values())
        told += (
            "Recipes are chosen by the first column. A recipe must beat the original model by more than its standard "
            f"deviation, and by more than {least:.2f}, because two models may differ this much by chance on this many "
            "rows of dev data. If several recipes are as good as the best, the simplest one is chosen. It is trained "
            "on all texts and measured again, and saved only if it still beats the original model. "
        )
        told += (
            "The best of several recipes looks a little better on the dev data than it is. The test data is not used "
            "to choose and does not have this bias. "
        )
    told += "The seconds are for training only."
    return [Heading("Numbers"), Paragraph(told), Table(rows, "recipe", chosen)]


def _pictures(task: Task, trials: Trials, outcome: Outcome) -> list[Block]:
    if find_spec("matplotlib") is None:
        return [Heading("Pictures"), Paragraph('Pictures need matplotlib: pip install "st_simcse[plots]".')]
    folder = task.folder / "pictures"
    folder.mkdir(exist_ok=True)
    files = {name: folder / f"{name}.png" for name in ("map", "similarities", "scores")}
    failed: list[Block] = []
    if not (files["map"].exists() and files["similarities"].exists()):
        try:
            _draw(task, outcome, files)
        except ValueError as error:  # the model is still saved
            failed.append(Paragraph(f"Not all pictures could be drawn: {error}."))
    captions = {
        "map": "The corpus, with one dot per text, in the two directions in which the embeddings differ most. Colours "
        "are clusters of the saved model's embeddings.",
        "similarities": "Similarities between the two halves of a text, and between halves of different texts.",
        "scores": "Scores of the trials, with mean and spread over seeds.",
    }
    if trials.numbers:
        whole = {name: row for name, row in trials.numbers.items() if name not in trials.failures}
        plot_numbers(whole, files["scores"], "score × 100, mean and spread over seeds")
    shown = (name for name, file in files.items() if file.exists())
    return [Heading("Pictures"), *(Picture(files[name], captions[name]) for name in shown), *failed]


def _draw(task: Task, outcome: Outcome, files: Mapping[str, Path]) -> None:
    texts = list(islice(texts_of(SentenceReader().get_dataset(str(task.data("corpus")))), PICTURED))
    halves = [_halves(text) for text in texts]
    pairs = [list(column) for column in zip(*(pair for pair in halves if all(pair)), strict=True)]
    models = {"original model": fast_encode(load_model(task.args.model_name_or_path, task.pooling))}
    if outcome.name != BEFORE:
        models[outcome.name] = fast_encode(load_model(task.model))
    embeddings, similarities = {}, {}
    for name, model in models.items():
        embeddings[name] = model.encode(texts, show_progress_bar=False)
        similarities[name] = [model.encode(column, show_progress_bar=False) for column in pairs]
    if pairs:
        plot_similarities(similarities, pairs, files["similarities"])
    last = next(reversed(embeddings.values()))
    plot_map(embeddings, name_clusters(last, texts, min(CLUSTERS, len(texts))), files["map"])


def _halves(text: str) -> tuple[str, str]:
    """Splits a text in half at a word, or at a character if it is a single word, as in scripts without spaces."""
    words: Any = text.split()
    joined = " " if len(words) > 1 else ""
    parts = words if joined else text
    middle = len(parts) // 2
    return joined.join(parts[:middle]), joined.join(parts[middle:])


def _commands(task: Task, outcome: Outcome) -> list[Block]:
    blocks: list[Block] = [
        Heading("How to repeat this"),
        Paragraph("This command repeats all steps if you give it another folder:"),
        Command(shlex.join(task.command)),
    ]
    if outcome.name != BEFORE and outcome.run:
        blocks.append(Paragraph("This command trains the saved model again, on the texts that adapt wrote:"))
        blocks.append(Command(shlex.join(final_command(task, outcome.run))))
    return blocks
