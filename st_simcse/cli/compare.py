"""``st-simcse compare``: recipes of ``st-simcse train`` over several seeds, each run in a process of its own."""

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
from st_simcse.cli.parsing import check_inputs, check_outputs, check_seeds, option_of, parse_known
from st_simcse.cli.train_options import check_words
from st_simcse.recipes import parse_recipe, read_recipes, split_baseline

if TYPE_CHECKING:
    from st_simcse.cli.runs import Result, Run

logger = logging.getLogger(__name__)

# Options of train that are the comparison's own, and those that have to be the same for all recipes.
OURS = {"output_dir", "seed", "seeds", "resume_from_checkpoint", "push_to_hub"}
_PARTS = ("file", "dataset", "subset", "split", "columns", "format", "delimiter", "encoding", "quoting")
SHARED = {f"{name}_{part}" for name in ("dev", "test") for part in _PARTS}
COSTS = ("seconds", "CPU seconds", "MiB")
TABLE = "table.md"


@dataclass
class CompareArguments:
    recipe: list[str] = field(
        default_factory=list,
        metadata={
            "help": '"NAME: --option value ...", options of st-simcse train; again for each. --baseline mnrl, gist, '
            "tsdae, ct, ct-in-batch or mlm trains another loss, on sentence-transformers' own trainer.",
            "action": "extend",
        },
    )
    recipe_file: str | None = field(
        default=None, metadata={"help": "Recipes by name, each a list of words or a line, as YAML or JSON."}
    )
    only: list[str] | None = field(default=None, metadata={"help": "Names of some of the recipes; else all are run."})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Each recipe is trained with each."})
    output_dir: str = field(default="comparison", metadata={"help": "Where a file of each run's numbers goes."})
    redo: bool = field(default=False, metadata={"help": "Run again what was run with other options, data or models."})
    keep_models: bool = field(default=False, metadata={"help": "Keep every trained model, beside its numbers."})
    plot_file: str | None = field(default=None, metadata={"help": "Draw the scores with spreads (.png, .svg, .pdf)."})


@dataclass
class MeasureArguments:
    """What is measured of every trained model, besides the scored pairs of train's own options."""

    sts_dir: str | None = field(default=None, metadata={"help": "The average of the seven STS tasks in this folder."})
    senteval_dir: str | None = field(
        default=None, metadata={"help": "That of the seven transfer tasks, in SentEval's folder."}
    )
    # None, not False, is what comparisons that were run before had.
    allow_partial: bool | None = field(
        default=None,
        metadata={"help": "Measure on sets that are smaller than the released ones.", "nargs": "?", "const": True},
    )
    knn_dev_file: str | None = field(
        default=None, metadata={"help": "Texts and classes: accuracy of the 10 nearest neighbours' vote."}
    )
    knn_dev_split: str | None = field(default=None, metadata={"help": "Which split, of a table of several."})
    knn_test_file: str | None = field(default=None, metadata={"help": "The same, not to choose by."})
    knn_test_split: str | None = field(default=None, metadata={"help": "Which split of it."})
    retrieval_dev_file: str | None = field(
        default=None, metadata={"help": "Queries and documents, such as titles and texts: NDCG@10 in finding these."}
    )
    retrieval_dev_split: str | None = field(default=None, metadata={"help": "Which split, of a table of several."})
    retrieval_test_file: str | None = field(default=None, metadata={"help": "The same, not to choose by."})
    retrieval_test_split: str | None = field(default=None, metadata={"help": "Which split of it."})


# How the files above are read.
TABLES = (
    table_arguments("sts_", "Of the tables in --sts_dir: sentence, sentence, score, if not the usual ones."),
    table_arguments("knn_", "Text and class: names, or numbers from 0, if not the usual ones.", has_split=False),
    table_arguments("retrieval_", "Query and document, as --knn_columns.", has_split=False),
)


Numbers = dict[str, dict[str, list[float]]]


@dataclass(frozen=True)
class Comparison:
    """The command's words, once they are checked; ``common`` are those of every run, ``tests`` what is measured."""

    args: CompareArguments
    recipes: dict[str, list[str]]
    common: list[str]
    tests: dict[str, Any]


def run(argv: Sequence[str]) -> Numbers:
    """Train what has not been trained, print the table, and return the numbers by recipe and column, a list by seed.

    Options that are not the command's own are passed to every run. A run that fails is named at the end; the others go
    on, and a recipe that failed is not tried with other seeds.

    Raises:
        ValueError: before any run for options and recipes that do not fit, and for numbers of other options, data or
            models in the folder; at the end for runs that failed, and for inputs that changed between two runs.
        SystemExit: before any run for an option that ``st-simcse train`` does not know.
        OSError: for an output folder that another comparison is writing to.
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
    """The words, looked at as far as they can be before any run.

    Args:
        argv: the words behind the command.
        needs_data: whether there have to be training and dev data.

    Raises:
        ValueError, SystemExit, OSError: as :func:`run` before any run.
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
    _check_options(recipes, common, has_dev or not needs_data)
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
    """Train what has not been trained.

    Args:
        comparison: what :func:`parse_comparison` gives.
        progress: gives the runs back in their order, and may show how far they are.
        say: takes a line for every run.
        is_quiet: whether the runs show no bars and warnings of their own.
        execute: trains and measures a run, and keeps its model if it is told to; in a process of its own when left out.

    Returns:
        The numbers by recipe and column, a list by seed; and what went wrong, by recipe.

    Raises:
        ValueError: for numbers of other options, data or models in the folder, and for inputs that changed meanwhile.
    """
    from st_simcse.cli.runs import Run, in_a_process

    args, execute = comparison.args, execute or in_a_process
    runs = [
        Run(recipe, seed, [*comparison.common, *words], comparison.tests, args.output_dir, is_quiet)
        for seed in args.seeds
        for recipe, words in comparison.recipes.items()
    ]
    results = _found(runs, args.redo)
    failures: dict[str, str] = {}
    for number, one in enumerate(progress(runs)):
        place = f"{number + 1}/{len(runs)} {one.recipe}, seed {one.seed}"
        if number in results:
            lost = args.keep_models and not one.model.exists()
            say(f"{place}: done before" + ", and its model was not kept" * lost)
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
        raise ValueError(f"the recipe {twice[0]!r} is there twice: give one of them another name")
    if unknown := [name for name in args.only or [] if name not in names]:
        raise ValueError(f"--only {unknown[0]}: there is no such recipe, choose among {', '.join(names)}")
    return {name: words for name, words in recipes if name in (args.only or names)}


def _check_words(recipes: dict[str, list[str]], common: list[str], needs_data: bool) -> None:
    """What can be known of the recipes before the libraries are imported."""
    for name, words, refused in (
        ("", common, OURS),
        *((f"recipe {name!r}: ", words, OURS | SHARED) for name, words in recipes.items()),
    ):
        for word in words:
            option = option_of(word)
            if word.startswith("--") and option in refused:
                hint = "recipes are compared on the same data, pass it once for all" if option in SHARED else ""
                raise ValueError(f"{name}--{option} is not for a recipe: {hint or 'compare sets it itself'}")
    for name, words in recipes.items() if needs_data else ():
        with _said_of(name):
            check_words(split_baseline([*common, *words])[1])


@contextmanager
def _said_of(recipe: str) -> Iterator[None]:
    """Errors name the recipe; warnings are left to its runs."""
    logging.disable(logging.WARNING)
    try:
        yield
    except (SystemExit, ValueError) as error:
        raise SystemExit(f"st-simcse compare: recipe {recipe!r}: {error}") from error
    finally:
        logging.disable(logging.NOTSET)


def _check_options(recipes: dict[str, list[str]], common: list[str], has_dev: bool) -> None:
    """What can be known of the recipes before any of them is trained."""
    from st_simcse.cli import train
    from st_simcse.cli.baselines import check_baseline
    from st_simcse.training.run_folder import LOCK, UNFINISHED

    for name, words in recipes.items():
        if name.lower() in (LOCK, UNFINISHED, TABLE):
            raise ValueError(
                f"the recipe {name!r} has the name of a file or folder that compare itself writes: give it another name"
            )
        with _said_of(name):
            baseline, options = split_baseline([*common, *words])
            _, data_args, _, training_args = train.parse_train(options)
            if baseline:
                check_baseline(baseline, words, data_args, training_args)
        if not (has_dev or data_args.dev_file or data_args.dev_dataset):
            raise ValueError(
                "recipes are compared by their scores on dev data: pass --dev_file or --dev_dataset with scored pairs, "
                "--knn_dev_file or --retrieval_dev_file"
            )


def _found(runs: list[Run], redo: bool) -> dict[int, Result]:
    """The results that are there and still hold, by the number of the run."""
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
            f"not a result of these options, data and models: {'; '.join(others)}; give the recipe another name, "
            "choose another --output_dir, or pass --redo to run it again"
        )
    return found


def _check_same(one: Run, result: Result) -> None:
    """ValueError if the result is of another run: of other options, or of other contents of what they name."""
    from st_simcse.cli.inputs import identities
    from st_simcse.cli.runs import changed_inputs

    tests = {**dict.fromkeys(one.tests), **result["tests"]}  # those that were not known then were not asked for
    if (result["recipe"], result["seed"]) != (one.recipe, one.seed):
        raise ValueError(f"of the recipe {result['recipe']!r} with the seed {result['seed']}")
    if (result["options"], tests) != (one.options, one.tests):
        raise ValueError(f"with {shlex.join(result['options'])}")
    if "inputs" not in result:
        raise ValueError("by a version that did not record which data and model it had")
    if changed := changed_inputs(result["inputs"], identities(one.options, one.tests)):
        raise ValueError(f"since then changed: {', '.join(changed)}")


def _check_inputs(results: list[Result]) -> None:
    """ValueError if a file, folder or name on the hub was not the same in all runs that are to be compared."""
    from st_simcse.cli.runs import changed_inputs

    known: dict[str, str | None] = {}
    for result in results:
        if changed := changed_inputs(known, result["inputs"]):
            raise ValueError(
                f"{', '.join(changed)} changed between two runs (one is {result['recipe']}, seed {result['seed']}), so "
                "that their numbers cannot be compared: pass --redo to run again what had another one than there is now"
            )
        known |= {name: value for name, value in result["inputs"].items() if value is not None}


def _line(result: Result) -> str:
    scores = ", ".join(f"{name} {value:.2f}" for name, value in (result["dev"] | result["test"]).items())
    return "; ".join(filter(None, [scores, f"{result['cost']['seconds']:,.0f} s"]))


def _numbers(results: list[Result]) -> Numbers:
    """By recipe and column, a list by seed; the first column is what recipes are chosen by."""
    numbers: Numbers = {}
    for result in results:
        several = len(result["dev"]) > 1
        average = {"dev avg.": statistics.mean(result["dev"].values())} if several else {}
        row = numbers.setdefault(result["recipe"], {})
        for column, value in (average | result["dev"] | result["test"] | result["cost"]).items():
            row.setdefault(column, []).append(value)
    return numbers


def _report(numbers: Numbers, comparison: Comparison) -> None:
    """The table, also in the folder, and the plot; the best on the dev data is bold, of the recipes with most runs."""
    from st_simcse.evaluation import format_table

    selection = next(iter(next(iter(numbers.values()))))
    most = max(len(row[selection]) for row in numbers.values())
    whole = (name for name, row in numbers.items() if len(row[selection]) == most)
    best = max(whole, key=lambda name: statistics.mean(numbers[name][selection]))
    table = {f"**{name}**" if name == best else name: row for name, row in as_cells(numbers).items()}
    text = format_table(table, corner="recipe")
    args, words = comparison.args, [*comparison.common, *comparison.recipes[best]]
    Path(args.output_dir, TABLE).write_text(text + "\n", encoding="utf-8")
    print(f"\n{text}\n\nbest on {selection}: {best}, with the options {shlex.join(words)}")
    if args.plot_file:
        plot_numbers(numbers, args.plot_file, f"score × 100, mean and spread over {most} seed(s)")


def plot_numbers(numbers: Numbers, path: str | os.PathLike[str], label: str) -> None:
    """Draw mean and spread of every column but the costs."""
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
    """What stands in the table: how many runs, and mean and spread of them."""
    return {
        name: {"runs": str(len(next(iter(row.values()))))}
        | {
            column: _cell(statistics.mean(values), None if column in COSTS else _spread(values))
            for column, values in row.items()
        }
        for name, row in numbers.items()
    }


def _spread(values: list[float]) -> float:
    """Standard deviation over seeds; nan of one."""
    return statistics.stdev(values) if len(values) > 1 else math.nan


def _cell(mean: float, spread: float | None) -> str:
    if spread is None:
        return f"{mean:,.0f}"
    return f"{mean:.2f}" + ("" if math.isnan(spread) else f" ± {spread:.2f}")
