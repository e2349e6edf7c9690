"""The report of ``st-simcse adapt``: what was tried and chosen, in numbers and pictures, and how to repeat it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

from st_simcse.choice import noise
from st_simcse.cli.adapt.corpus import texts_of
from st_simcse.cli.adapt.task import PICTURED, Plan, Task, describe
from st_simcse.cli.adapt.trials import Outcome, Trials, final_command
from st_simcse.cli.compare import as_cells, plot_numbers
from st_simcse.data.readers import SentenceReader
from st_simcse.models.checkpoints import load_model
from st_simcse.plots import name_clusters, plot_map, plot_similarities
from st_simcse.report import Block, Command, Heading, Paragraph, Picture, Table, as_html, as_markdown
from st_simcse.shortlist import BEFORE

TITLE = "A model adapted to a corpus"
FINAL = ", on all texts"
CLUSTERS = 8


def write_report(task: Task, plan: Plan, trials: Trials, outcome: Outcome) -> None:
    """``report.md`` and ``report.html`` in the folder."""
    blocks = [
        Heading("What was chosen"),
        Paragraph(outcome.why),
        Heading("Corpus and model"),
        *map(Paragraph, describe(plan).splitlines()),
        *_recipes(plan, trials),
        *_table(plan, trials, outcome),
        *_pictures(task, trials, outcome),
        *_commands(task, plan, outcome),
    ]
    for name, text in (
        ("report.md", as_markdown(TITLE, blocks, task.folder)),
        ("report.html", as_html(TITLE, blocks)),
    ):
        Path(task.folder, name).write_text(text, encoding="utf-8")


def _recipes(plan: Plan, trials: Trials) -> list[Block]:
    rows = {
        candidate.name: {"why it is tried": candidate.reason, "options of st-simcse train": shlex.join(candidate.words)}
        for candidate in plan.candidates
    }
    failed = [Paragraph(f"A recipe failed, and is left out of the choice: {told}") for told in trials.failures.values()]
    return [Heading("Recipes"), Table(rows, "recipe", is_prose=True), *failed]


def _table(plan: Plan, trials: Trials, outcome: Outcome) -> list[Block]:
    rows = as_cells(trials.numbers)
    chosen = outcome.name
    if outcome.final:
        rows |= as_cells({outcome.tried + FINAL: outcome.final})
        chosen += FINAL if outcome.name == outcome.tried else ""
    if not rows:
        return []
    told = "Mean and standard deviation over seeds, × 100 but for costs; the row of the saved model stands out. "
    if plan.dev:
        least = noise(plan.dev.values())
        told += (
            "The first column is what recipes are chosen by. A recipe has to be better than the model as it was by "
            f"more than the larger of its deviation and {least:.2f}, by which two models may differ by chance on so "
            "many rows of dev data. Of recipes that are as good as the best, the simplest is chosen. It is trained on "
            "all texts and measured once more, and saved only if it is better than the model as it was there too. "
        )
        told += "On dev data the best of several looks a little better than it is: test data, not chosen by, tell. "
    told += "Seconds are of training alone."
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
        except ValueError as error:  # no reason to lose the model
            failed.append(Paragraph(f"Not all pictures could be drawn: {error}."))
    captions = {
        "map": "The corpus, a dot a text, in the two directions in which the embeddings differ most; colours are "
        "clusters of the saved model's embeddings.",
        "similarities": "Similarities of the two halves of a text, and of halves of different texts.",
        "scores": "Scores of the trials, mean and spread over seeds.",
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
    models = {"as it was": load_model(task.args.model_name_or_path, task.pooling)}
    if outcome.name != BEFORE:
        models[outcome.name] = load_model(task.model)
    embeddings, similarities = {}, {}
    for name, model in models.items():
        embeddings[name] = model.encode(texts, show_progress_bar=False)
        similarities[name] = [model.encode(column, show_progress_bar=False) for column in pairs]
    if pairs:
        plot_similarities(similarities, pairs, files["similarities"])
    last = next(reversed(embeddings.values()))
    plot_map(embeddings, name_clusters(last, texts, min(CLUSTERS, len(texts))), files["map"])


def _halves(text: str) -> tuple[str, str]:
    """Of its words; of its characters where it is one word, as in scripts without spaces."""
    words: Any = text.split()
    joined = " " if len(words) > 1 else ""
    parts = words if joined else text
    middle = len(parts) // 2
    return joined.join(parts[:middle]), joined.join(parts[middle:])


def _commands(task: Task, plan: Plan, outcome: Outcome) -> list[Block]:
    blocks: list[Block] = [
        Heading("To repeat it"),
        Paragraph("The same command in another folder does all of it again:"),
        Command(shlex.join(task.command)),
    ]
    if outcome.name != BEFORE:
        blocks.append(Paragraph("This alone trains the saved model again, on the texts that adapt has written there:"))
        blocks.append(Command(shlex.join(final_command(task, plan, outcome.name))))
    return blocks
