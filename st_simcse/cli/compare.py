"""``st-simcse compare``: trains recipes of ``st-simcse train`` with several seeds, each run in its own process."""

from __future__ import annotations

import logging
import math
import os
import shlex
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from st_simcse.cli.files import table_arguments
from st_simcse.cli.libraries import import_libraries
from st_simcse.cli.output import no_warnings
from st_simcse.cli.parsing import check_inputs, check_outputs, check_seeds, option_of, parse_known
from st_simcse.cli.train_options import check_words
from st_simcse.recipes import parse_recipe, read_recipes, split_baseline

if TYPE_CHECKING:
    from st_simcse.cli.runs import Result, Run

logger = logging.getLogger(__name__)

# Options of train that compare sets itself, and those that must be the same for all recipes.
OURS = {"output_dir", "seed", "seeds", "resume_from_checkpoint", "push_to_hub"}
_PARTS = ("file", "dataset", "subset", "split", "columns", "format", "delimiter", "encoding", "quoting")
SHARED = {f"{name}_{part}" for name in ("dev", "test") for part in _PARTS}
COSTS = ("seconds", "CPU seconds", "MiB")
AVERAGE = "dev avg."
TABLE = "table.md"


@dataclass
class CompareArguments:
    recipe: list[str] = field(
        default_factory=list,
        metadata={
            "help": 'Recipe as "NAME: --option value ...", with options of st-simcse train. Repeat it for each recipe. '
            "--baseline mnrl, gist, tsdae, ct, ct-in-batch or mlm in a recipe trains another loss with "
            "sentence-transformers' own trainer.",
            "action": "extend",
        },
    )
    recipe_file: str | None = field(
        default=None,
        metadata={"help": "YAML or JSON file of recipes by name, each a line or a list of words."},
    )
    only: list[str] | None = field(default=None, metadata={"help": "Names of the recipes to run. Runs all by default."})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Seeds to train each recipe with."})
    output_dir: str = field(
        default="comparison", metadata={"help": "Folder for the results, with one file for each run."}
    )
    redo: bool = field(
        default=False,
        metadata={"help": "Repeat the runs whose results in --output_dir have other options, data or models."},
    )
    keep_models: bool = field(default=False, metadata={"help": "Keep every trained model next to its results."})
    plot_file: str | None = field(
        default=None, metadata={"help": "File for a plot of the scores with spreads (.png, .svg or .pdf)."}
    )


@dataclass
class MeasureArguments:
    """The measurements of every trained model, besides the scored pairs of train's own options."""

    sts_dir: str | None = field(
        default=None, metadata={"help": "Folder of the seven STS tasks, to report their average."}
    )
    senteval_dir: str | None = field(
        default=None, metadata={"help": "Folder of SentEval's data, to report the average of the seven transfer tasks."}
    )
    allow_partial: bool = field(
        default=False, metadata={"help": "Allow data sets that are smaller than the released ones."}
    )
    knn_dev_file: str | None = field(
        default=None,
        metadata={"help": "Texts with classes, to choose by the accuracy of a vote of the 10 nearest neighbours."},
    )
    knn_dev_split: str | None = field(
        default=None, metadata={"help": "Split of --knn_dev_file, if the table has a column of splits."}
    )
    knn_test_file: str | None = field(
        default=None, metadata={"help": "Texts with classes that are measured, but not used to choose."}
    )
    knn_test_split: str | None = field(
        default=None, metadata={"help": "Split of --knn_test_file, if the table has a column of splits."}
    )
    retrieval_dev_file: str | None = field(
        default=None,
        metadata={"help": "Queries with documents, such as titles and texts, to choose by NDCG@10 of finding them."},
    )
    retrieval_dev_split: str | None = field(
        default=None, metadata={"help": "Split of --retrieval_dev_file, if the table has a column of splits."}
    )
    retrieval_test_file: str | None = field(
        default=None, metadata={"help": "Queries with documents that are measured, but not used to choose."}
    )
    retrieval_test_split: str | None = field(
        default=None, metadata={"help": "Split of --retrieval_test_file, if the table has a column of splits."}
    )


# The options that say how to read the files above.
TABLES = (
    table_arguments(
        "sts_", "Columns of the tables in --sts_dir, if not the usual ones, for sentence, sentence and score."
    ),
    table_arguments(
        "knn_", "Columns for text and class, if not the usual ones: names, or numbers from 0.", has_split=False
    ),
    table_arguments(
        "retrieval_",
        "Columns for query and document, if not the usual ones: names, or numbers from 0.",
        has_split=False,
    ),
)


Numbers = dict[str, dict[str, list[float]]]


@dataclass(frozen=True)
class Comparison:
    """The checked arguments of the command. ``common`` goes to every run, and ``tests`` says what to measure."""

    args: CompareArguments
    recipes: dict[str, list[str]]
    common: list[str]
    tests: dict[str, Any]

    def runs(self, is_quiet: bool = False) -> list[Run]:
        """Returns the runs of all recipes, seed by seed."""
        from st_simcse.cli.runs import Run

        return [
            Run(recipe, seed, [*self.common, *words], self.tests, self.args.output_dir, is_quiet)
            for seed in self.args.seeds
            for recipe, words in self.recipes.items()
        ]


def run(argv: Sequence[str]) -> Numbers:
    """Trains the recipes that have no results yet, and prints the table.

    Options that are not the command's own are passed to every run. If a run fails, the others continue, but its recipe
    is not tried with other seeds. The error at the end names the failed runs.

    Returns:
        The numbers by recipe and column, as a list with one number per seed.

    Raises:
        ValueError: Before any run if options or recipes do not go together, or if the folder has results of other
            options, data or models. At the end if runs failed or inputs changed between two runs.
        SystemExit: Before any run if ``st-simcse train`` does not know an option.
        OSError: If another comparison is writing to the output folder.
    """
    comparison = parse_comparison(argv)
    from st_simcse.training.run_folder import sole_run

    with sole_run(comparison.args.output_dir):
        numbers, failures = train_all(comparison)
        if numbers:
            _report(numbers, comparison)
    if failures:
        count = len(comparison.recipes)
        raise ValueError(f"{len(failures)} of {count} recipes failed: {'; '.join(failures.values())}")
    return numbers


def parse_comparison(argv: Sequence[str], needs_data: bool = True) -> Comparison:
    """Parses the arguments of the command, and checks all that can be checked before any run.

    Args:
        argv: The arguments of the command.
        needs_data: If True, training data and dev data are required.

    Raises:
        ValueError, SystemExit, OSError: The errors that :func:`run` raises before any run.
    """
    args, *measured, common = parse_known(
        "compare",
        argv,
        *(CompareArguments, MeasureArguments, *TABLES),
        example="st-simcse compare --model_name_or_path bert-base-uncased --train_file a.txt --dev_file dev.tsv "
        '--recipe "base:" --recipe "focal: --focal_margin 0.2"   # and every option of st-simcse train',
    )
    tests = {name: value for group in measured for name, value in asdict(group).items()}
    for group in (args, *measured):
        check_inputs(group)
    recipes = _recipes(args)
    check_outputs(args)
    check_seeds(args.seeds)
    _check_words(recipes, common, needs_data)

    import_libraries()
    from st_simcse.cli.runs import measures

    has_dev = any(measure.split == "dev" for measure in measures(tests))
    _check_options(recipes, common, has_dev, needs_data)
    return Comparison(args, recipes, common, tests)


def _say(line: str) -> None:
    print(line, flush=True)


def train_all(
    comparison: Comparison,
    progress: Callable[[list[Run]], Iterable[Run]] = iter,
    say: Callable[[str], object] = _say,
    is_quiet: bool = False,
    execute: Callable[[Run, bool], Result] | None = None,
) -> tuple[Numbers, dict[str, str]]:
    """Trains the recipes that have no results yet.

    Args:
        comparison: The result of :func:`parse_comparison`.
        progress: A function that yields the runs in their order, and may show the progress.
        say: A function that takes a line of text for every run.
        is_quiet: If True, the runs show no progress bars or warnings of their own.
        execute: A function that trains and measures a run, and keeps its model if the second argument is True. If None,
            each run gets its own process.

    Returns:
        The numbers by recipe and column, as a list with one number per seed, and the error messages by recipe.

    Raises:
        ValueError: If the folder has results of other options, data or models, or if inputs changed during the runs.
    """
    from st_simcse.cli.runs import in_a_process

    args, execute, runs = comparison.args, execute or in_a_process, comparison.runs(is_quiet)
    results = _found(runs, args.redo)
    failures: dict[str, str] = {}
    for number, one in enumerate(progress(runs)):
        place = f"{number + 1}/{len(runs)} {one.recipe}, seed {one.seed}"
        if number in results:
            lost = args.keep_models and not one.model.exists()
            say(f"{place}: done before" + ", but its model was not kept" * lost)
        elif one.recipe not in failures:
            try:
                results[number] = execute(one, args.keep_models)
                say(f"{place}: {_line(results[number])}")
            except Exception as error:
                failures[one.recipe] = f"{one.recipe}, seed {one.seed}: {type(error).__name__}: {error}"
                expected = isinstance(error, (ImportError, OSError, ValueError))
                logger.warning("failed: %s", failures[one.recipe], exc_info=not expected)
    done = [results[number] for number in sorted(results)]
    _check_inputs(done)
    return _numbers(done), failures


def _recipes(args: CompareArguments) -> dict[str, list[str]]:
    recipes = read_recipes(args.recipe_file) if args.recipe_file else []
    recipes += map(parse_recipe, args.recipe)
    names = [name for name, _ in recipes]
    if not names:
        raise ValueError('nothing to compare: pass --recipe "NAME: --option value" for each, or --recipe_file')
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"two recipes are named {twice[0]!r}: give one of them another name")
    if unknown := [name for name in args.only or [] if name not in names]:
        raise ValueError(f"--only {unknown[0]}: there is no such recipe; choose from {', '.join(names)}")
    return {name: words for name, words in recipes if name in (args.only or names)}


def _check_words(recipes: dict[str, list[str]], common: list[str], needs_data: bool) -> None:
    """Checks the recipes as far as possible before the libraries are imported."""
    for name, words, refused in (
        ("", common, OURS),
        *((f"recipe {name!r}: ", words, OURS | SHARED) for name, words in recipes.items()),
    ):
        for word in words:
            option = option_of(word)
            if word.startswith("--") and option in refused:
                hint = (
                    "all recipes are compared on the same data, so pass it once to compare" if option in SHARED else ""
                )
                raise ValueError(
                    f"{name}--{option} is not allowed here: {hint or 'compare sets it itself, so leave it out'}"
                )
    for name, words in recipes.items() if needs_data else ():
        with _said_of(name):
            check_words(split_baseline([*common, *words])[1])


@contextmanager
def _said_of(recipe: str) -> Iterator[None]:
    """Adds the name of the recipe to errors, and hides warnings, because the runs show them again."""
    try:
        with no_warnings():
            yield
    except (SystemExit, ValueError) as error:
        raise SystemExit(f"st-simcse compare: recipe {recipe!r}: {error}") from error


def _check_options(recipes: dict[str, list[str]], common: list[str], has_dev: bool, needs_data: bool) -> None:
    """Checks the recipes as far as possible before any of them is trained."""
    from st_simcse.cli import train
    from st_simcse.cli.baselines import check_baseline
    from st_simcse.cli.loss import make_options
    from st_simcse.training.run_folder import LOCK, UNFINISHED

    for name, words in recipes.items():
        if name.lower() in (LOCK, UNFINISHED, TABLE):
            raise ValueError(
                f"the recipe {name!r} has the name of a file or folder that compare writes: give it another name"
            )
        with _said_of(name):
            baseline, options = split_baseline([*common, *words])
            _, data_args, loss_args, training_args = train.parse_train(options)
            if baseline:
                check_baseline(baseline, words, data_args, training_args)
            else:
                train.check_teacher(make_options(loss_args), data_args.teacher or [])
        if needs_data and not (has_dev or data_args.dev_file or data_args.dev_dataset):
            raise ValueError(
                "compare needs dev data to compare the recipes on: pass --dev_file or --dev_dataset with scored pairs, "
                "--knn_dev_file or --retrieval_dev_file"
            )
    if needs_data:
        check_names(train.pair_evaluators(data_args))  # the pairs are the same for all recipes


def check_names(evaluators: Iterable[Any]) -> None:
    """Raises ValueError if an evaluator has the name of a column that the table has besides."""
    for evaluator in evaluators:
        if evaluator.name in (*COSTS, AVERAGE):
            raise ValueError(
                f"the table of the results has a column {evaluator.name!r} of its own, so no data can have this name: "
                "rename the file"
            )


def _found(runs: list[Run], redo: bool) -> dict[int, Result]:
    """Reads the results of earlier runs that are still valid, by the number of the run."""
    from st_simcse.cli.runs import read_result

    found, others = {}, []
    for number, one in enumerate(runs):
        if one.file.exists():
            try:
                found[number] = read_result(one.file)
                _check_same(one, found[number])
            except ValueError as error:
                found.pop(number, None)
                others.append(f"{one.file} ({error})")
    if others and not redo:
        raise ValueError(
            f"these results come from other options, data or models: {'; '.join(others)}. Give the recipe another "
            "name, choose another --output_dir, or pass --redo to run it again"
        )
    return found


def _check_same(one: Run, result: Result) -> None:
    """Raises ValueError if the result comes from other options, or from inputs that have changed since."""
    from st_simcse.cli.inputs import identities
    from st_simcse.cli.runs import changed_inputs

    if (result["recipe"], result["seed"]) != (one.recipe, one.seed):
        raise ValueError(f"it belongs to the recipe {result['recipe']!r} with the seed {result['seed']}")
    if (result["options"], result["tests"]) != (one.options, one.tests):
        raise ValueError(f"its options were {shlex.join(result['options'])}")
    if changed := changed_inputs(result["inputs"], identities(one.options, one.tests)):
        raise ValueError(f"changed since then: {', '.join(changed)}")


def _check_inputs(results: list[Result]) -> None:
    """Raises ValueError if a file, folder or name on the hub was not the same in all runs."""
    from st_simcse.cli.runs import changed_inputs

    known: dict[str, str | None] = {}
    for result in results:
        if changed := changed_inputs(known, result["inputs"]):
            raise ValueError(
                f"{', '.join(changed)} changed between two runs (one is {result['recipe']}, seed {result['seed']}), so "
                "their numbers cannot be compared: pass --redo to repeat the earlier runs"
            )
        known |= {name: value for name, value in result["inputs"].items() if value is not None}


def _line(result: Result) -> str:
    scores = ", ".join(f"{name} {value:.2f}" for name, value in (result["dev"] | result["test"]).items())
    return "; ".join(filter(None, [scores, f"{result['cost']['seconds']:,.0f} s"]))


def _numbers(results: list[Result]) -> Numbers:
    """Returns the numbers by recipe and column, one per seed. Recipes are chosen by the first column."""
    numbers: Numbers = {}
    for result in results:
        several = len(result["dev"]) > 1
        average = {AVERAGE: statistics.mean(result["dev"].values())} if several else {}
        row = numbers.setdefault(result["recipe"], {})
        for column, value in (average | result["dev"] | result["test"] | result["cost"]).items():
            row.setdefault(column, []).append(value)
    return numbers


def _report(numbers: Numbers, comparison: Comparison) -> None:
    """Prints and saves the table, and draws the plot.

    The recipe with the best dev score is bold. Only the recipes with the most runs are considered for it.
    """
    from st_simcse.evaluation import format_table

    selection = next(iter(next(iter(numbers.values()))))
    most = max(len(row[selection]) for row in numbers.values())
    whole = (name for name, row in numbers.items() if len(row[selection]) == most)
    best = max(whole, key=lambda name: statistics.mean(numbers[name][selection]))
    table = {f"**{name}**" if name == best else name: row for name, row in as_cells(numbers).items()}
    text = format_table(table, corner="recipe")
    args, words = comparison.args, [*comparison.common, *comparison.recipes[best]]
    Path(args.output_dir, TABLE).write_text(text + "\n", encoding="utf-8")
    print(f"\n{text}\n\nbest by {selection}: {best}, with the options {shlex.join(words)}")
    if args.plot_file:
        plot_numbers(numbers, args.plot_file, f"score × 100, mean and spread over {most} seed(s)")


def plot_numbers(numbers: Numbers, path: str | os.PathLike[str], label: str) -> None:
    """Draws the mean and spread of every column except the costs."""
    from st_simcse.plots import plot_scores

    means, spreads = (
        {
            name: {column: statistic(values) for column, values in row.items() if column not in COSTS}
            for name, row in numbers.items()
        }
        for statistic in (statistics.mean, _spread)
    )
    plot_scores(means, path, label, spreads)


def as_cells(numbers: Numbers) -> dict[str, dict[str, str]]:
    """Returns the cells of the table: the number of runs, and the mean and spread of each column."""
    return {
        name: {"runs": str(len(next(iter(row.values()))))}
        | {
            column: _cell(statistics.mean(values), None if column in COSTS else _spread(values))
            for column, values in row.items()
        }
        for name, row in numbers.items()
    }


def _spread(values: list[float]) -> float:
    """Returns the standard deviation over seeds, or nan for a single seed."""
    return statistics.stdev(values) if len(values) > 1 else math.nan


def _cell(mean: float, spread: float | None) -> str:
    if spread is None:
        return f"{mean:,.0f}"
    return f"{mean:.2f}" + ("" if math.isnan(spread) else f" ± {spread:.2f}")
