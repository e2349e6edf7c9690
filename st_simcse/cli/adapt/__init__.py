"""``st-simcse adapt``: tries a short list of recipes on a corpus, and saves the best model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from st_simcse.budget import parse_duration
from st_simcse.cli.compare import TABLES, MeasureArguments
from st_simcse.cli.corpus import CorpusArguments
from st_simcse.cli.files import table_arguments
from st_simcse.cli.libraries import import_libraries
from st_simcse.cli.parsing import Pooling, check_inputs, parse

# The number of texts that the language is recognized by.
SAMPLE = 1000


@dataclass
class AdaptArguments:
    output_dir: str = field(metadata={"help": "Folder for the model, the report and all trials."})
    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Folder of the model to adapt, or its name on the Hugging Face hub. Defaults to a small model for "
            "the language of the texts."
        },
    )
    pooling: Pooling = field(
        default="as saved",
        metadata={"help": "Pooling to use instead of the model's own. With 'as saved', a bare transformer gets cls."},
    )
    teacher: list[str] | None = field(
        default=None, metadata={"help": "Models to learn from. They add a recipe to the list."}
    )
    budget: str = field(
        default="10m",
        metadata={
            "help": "Time for the trials that train, with their measurements, such as 600s, 10m or 2h. The training of "
            "the winner on all texts comes on top."
        },
    )


@dataclass
class PairArguments:
    """The options for scored pairs, which are those of ``st-simcse train``."""

    _argument_group_name: ClassVar[str] = "scored pairs"

    dev_file: str | None = field(default=None, metadata={"help": "Scored pairs to choose the recipe by."})
    dev_dataset: str | None = field(
        default=None, metadata={"help": "Data set to use instead of --dev_file: a name on the hub."}
    )
    dev_subset: str | None = field(default=None, metadata={"help": "Subset of --dev_dataset."})
    test_file: str | None = field(
        default=None, metadata={"help": "Scored pairs that are measured, but not used to choose."}
    )
    test_dataset: str | None = field(
        default=None, metadata={"help": "Data set to use instead of --test_file: a name on the hub."}
    )
    test_subset: str | None = field(default=None, metadata={"help": "Subset of --test_dataset."})


MEASURED = (
    PairArguments,
    table_arguments(
        "dev_", "Columns for sentence, sentence and score, if not the usual ones: names, or numbers from 0."
    ),
    table_arguments("test_", "Like --dev_columns, for --test_file."),
    MeasureArguments,
    *TABLES,
)


def run(argv: Sequence[str]) -> str:
    """Tries the recipes, trains the best one on all texts, and saves it with a report.

    Returns:
        The name of the recipe that was chosen.

    Raises:
        ValueError: If options and data do not go together, there are too few texts, the budget is too small, the folder
            belongs to another run, or the original model cannot be measured.
        OSError: If a file or folder cannot be read or written.
    """
    args, corpus, *measured = parse(
        "adapt",
        argv,
        *(AdaptArguments, CorpusArguments, *MEASURED),
        example="st-simcse adapt --corpus texts.txt --dev_file pairs.tsv --output_dir adapted",
    )
    corpus.check()
    for group in measured:
        check_inputs(group)
    budget = parse_duration(args.budget)

    import_libraries()
    from st_simcse.cli.adapt.plan import check_folder, make_plan
    from st_simcse.cli.adapt.report import write_report
    from st_simcse.cli.adapt.task import Task
    from st_simcse.cli.adapt.trials import decide, run_trials, save_model
    from st_simcse.shortlist import start_model
    from st_simcse.training.run_folder import sole_run

    check_folder(Path(args.output_dir))
    if args.model_name_or_path is None:
        args.model_name_or_path = start_model(corpus.first(SAMPLE))
        print(f"start model: {args.model_name_or_path}, by the language of the texts (or pass --model_name_or_path)")
    task = Task(
        args,
        corpus,
        {name: value for name, value in _given(args, corpus, *measured) if name != "output_dir"},
        _as_words(measured),
        budget,
        ["st-simcse", "adapt", *argv],
    )
    with sole_run(task.folder):
        try:
            plan = make_plan(task)
            trials = run_trials(task, plan)
            outcome = decide(task, plan, trials)
            save_model(task, outcome)
            write_report(task, plan, trials, outcome)
        except KeyboardInterrupt:
            print("The finished runs are kept. Run the same command again to continue.")
            raise
    print(f"{outcome.why}\nThe model is in {task.model}, and the report in {task.folder / 'report.html'}")
    return outcome.name


def _given(*groups: Any) -> Iterator[tuple[str, Any]]:
    """Yields the options that have a value. Flags are on or have none."""
    for group in groups:
        yield from ((name, value) for name, value in vars(group).items() if value is not None and value is not False)


def _as_words(groups: Sequence[Any]) -> list[str]:
    """Returns the options as command-line arguments. Values may begin with a dash."""
    words: list[str] = []
    for name, value in _given(*groups):
        words += [f"--{name}", *value] if isinstance(value, list) else [f"--{name}={value}"]
    return words
