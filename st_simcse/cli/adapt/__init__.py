"""``st-simcse adapt``: from a file of texts to the best model that a short list of recipes gives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from st_simcse.budget import parse_duration
from st_simcse.cli.compare import TABLES, MeasureArguments
from st_simcse.cli.corpus import CorpusArguments
from st_simcse.cli.files import table_arguments
from st_simcse.cli.libraries import import_libraries
from st_simcse.cli.parsing import Pooling, check_inputs, parse


@dataclass
class AdaptArguments:
    model_name_or_path: str = field(metadata={"help": "A folder, or a model's name on the Hugging Face hub."})
    output_dir: str = field(metadata={"help": "Where model, report and all trials go."})
    pooling: Pooling = field(
        default="as saved", metadata={"help": "Replaces the pooling of the model; a bare transformer has cls if none."}
    )
    teacher: list[str] | None = field(default=None, metadata={"help": "Models to learn from, in one more recipe."})
    budget: str = field(
        default="10m",
        metadata={
            "help": "Time for the trials that train, with their measurements, such as 600s, 10m or 2h; the winner's "
            "training on all texts is extra."
        },
    )


@dataclass
class PairArguments:
    """Scored pairs, as ``st-simcse train`` has them."""

    _argument_group_name: ClassVar[str] = "scored pairs"

    dev_file: str | None = field(default=None, metadata={"help": "Scored pairs, to choose by."})
    dev_dataset: str | None = field(default=None, metadata={"help": "Instead of a file: a data set's name on the hub."})
    dev_subset: str | None = field(default=None, metadata={"help": "Which of its subsets."})
    test_file: str | None = field(default=None, metadata={"help": "Scored pairs, not to choose by."})
    test_dataset: str | None = field(default=None, metadata={"help": "Instead of a file, as --dev_dataset."})
    test_subset: str | None = field(default=None, metadata={"help": "Which of its subsets."})


MEASURED = (
    PairArguments,
    table_arguments("dev_", "Sentence, sentence, score: names, or numbers from 0, if not the usual ones."),
    table_arguments("test_", "As --dev_columns."),
    MeasureArguments,
    *TABLES,
)


def run(argv: Sequence[str]) -> str:
    """Try the recipes, train the best on all texts, and save it with a report.

    Returns:
        The name of the recipe that was chosen.

    Raises:
        ValueError: for options and data that do not fit, too few texts, a budget that is too small, a folder of another
            run, and where the model as it was cannot be measured.
        OSError: for what cannot be read or written.
    """
    args, corpus, *measured = parse(
        "adapt",
        argv,
        *(AdaptArguments, CorpusArguments, *MEASURED),
        example="st-simcse adapt --model_name_or_path sentence-transformers/all-MiniLM-L6-v2 --corpus texts.txt "
        "--dev_file pairs.tsv --output_dir adapted",
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
    from st_simcse.training.run_folder import sole_run

    task = Task(
        args,
        corpus,
        {name: value for name, value in _given(args, corpus, *measured) if name != "output_dir"},
        _as_words(measured),
        budget,
        ["st-simcse", "adapt", *argv],
    )
    check_folder(task.folder)
    with sole_run(task.folder):
        try:
            plan = make_plan(task)
            trials = run_trials(task, plan)
            outcome = decide(task, plan, trials)
            save_model(task, plan, outcome)
            write_report(task, plan, trials, outcome)
        except KeyboardInterrupt:
            print("what is done stays there: the same command goes on from there")
            raise
    print(f"{outcome.why}\nsaved to {task.model}; the report: {task.folder / 'report.html'}")
    return outcome.name


def _given(*groups: Any) -> Iterator[tuple[str, Any]]:
    """The options that were not left out."""
    for group in groups:
        yield from ((name, value) for name, value in vars(group).items() if value is not None)


def _as_words(groups: Sequence[Any]) -> list[str]:
    """The options as words, in which a value may begin with a dash."""
    words: list[str] = []
    for name, value in _given(*groups):
        words += [f"--{name}", *value] if isinstance(value, list) else [f"--{name}={value}"]
    return words
