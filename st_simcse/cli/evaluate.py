"""``st-simcse evaluate``: prints the paper's tables of STS and transfer tasks, with one row per model."""

from __future__ import annotations

import csv
import json
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from tqdm import tqdm

from st_simcse.cli.files import file_flags, file_options, table_arguments
from st_simcse.cli.libraries import import_libraries
from st_simcse.cli.parsing import (
    PRECISION,
    Pooling,
    Precision,
    check_inputs,
    check_outputs,
    check_positive,
    named_options,
    parse,
    pooling_mode,
)
from st_simcse.plots import plot_scores

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import Tensor, nn

    from st_simcse.evaluation import TransferEvaluator

logger = logging.getLogger(__name__)

Row = dict[str, float]
Results = Mapping[str, float]
Rows = Mapping[str, Mapping[str, float]]

# The names that evaluation.py of princeton-nlp/SimCSE uses for the tasks.
ALIASES = {"STSBenchmark": "STS-B", "SICKRelatedness": "SICK-R"}
F1 = "MRPC F1"  # in the output files only, because the paper's table does not have it
# If the tasks have at most this many different texts, all embeddings stay in memory: 300 MB at a width of 768.
TOGETHER = 100_000


@dataclass
class EvaluateArguments:
    model: list[str] = field(metadata={"help": "One or more models: folders, or names on the hub."})
    sts_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder with STS12.tsv to STS16.tsv, STSB-test.tsv and SICKR-test.tsv (st-simcse data makes it), "
            "or with SentEval's data."
        },
    )
    senteval_dir: str | None = field(
        default=None,
        metadata={"help": "Folder with SentEval's data, for the transfer tasks, and for STS without --sts_dir."},
    )
    sts_zh_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder with the five Chinese STS tasks in the layout of senteval_cn (st-simcse data --sets sts_zh "
            "makes it). They replace the English tasks."
        },
    )
    sts_zh_splits: list[str] | None = field(
        default=None,
        metadata={"help": "Splits of the Chinese tasks: train, valid, test. Defaults to all that a task has."},
    )
    task_set: Literal["sts", "transfer", "full"] | None = field(
        default=None, metadata={"help": "The seven STS tasks, the seven transfer tasks, or both. Defaults to sts."}
    )
    tasks: list[str] | None = field(
        default=None,
        metadata={
            "help": "Names of tasks, instead of --task_set, such as STS-B SICK-R MR CR SUBJ MPQA SST2 TREC MRPC. With "
            "--sts_zh_dir: ATEC BQ LCQMC PAWSX STS-B."
        },
    )
    mode: Literal["test", "fasttest", "dev"] = field(
        default="test",
        metadata={
            "help": "Protocol of SentEval. Transfer tasks use 10 folds with test, and 5 with fasttest and dev. dev "
            "gives results on the dev sets, which only two of the STS tasks have."
        },
    )
    pooling: Pooling = field(
        default="as saved", metadata={"help": "Pooling to use instead of the one that the model was saved with."}
    )
    max_seq_length: int | None = field(
        default=None,
        metadata={
            "help": "Maximum number of tokens; longer texts are cut. Defaults to the model's own, or for the Chinese "
            "tasks to 64, and 128 for PAWSX."
        },
    )
    prompt: str | None = field(
        default=None, metadata={"help": "Text to put before every sentence. Defaults to the model's default prompt."}
    )
    prompt_name: str | None = field(
        default=None, metadata={"help": "Name of one of the model's own prompts, instead of --prompt."}
    )
    batch_size: int = field(default=64, metadata={"help": "Sentences per forward pass."})
    precision: Precision = PRECISION
    json_file: str | None = field(default=None, metadata={"help": "File for the scores as JSON."})
    csv_file: str | None = field(default=None, metadata={"help": "File for the scores as CSV."})
    plot_file: str | None = field(
        default=None, metadata={"help": "File for a dot plot of the scores, grouped by task (.png, .svg or .pdf)."}
    )
    allow_partial: bool = field(
        default=False, metadata={"help": "Allow data sets that are smaller than the released ones."}
    )
    mteb: bool = field(
        default=False, metadata={"help": "Evaluate on MTEB's STS tasks, with the data that the package mteb downloads."}
    )
    mteb_languages: list[str] | None = field(
        default=None,
        metadata={"help": "Languages of MTEB's STS tasks: eng, zho (C-MTEB), or both. Defaults to eng."},
    )


StsArguments = table_arguments(
    "sts_", "Columns of the STS tables, if not the usual ones, for sentence, sentence and score."
)


def run(argv: Sequence[str]) -> dict[str, dict[str, float]]:
    """Evaluates the models, prints the table, writes it to the files that the options name, and returns it.

    If the command fails, the table still has the models that were finished before.

    Raises:
        ValueError: If options do not go together, which is checked first, or if a score is not defined.
        OSError: If a file cannot be written or a model cannot be loaded. Both are checked first.
    """
    args, table = parse(
        "evaluate", argv, EvaluateArguments, StsArguments, example="st-simcse evaluate --model output --sts_dir sts"
    )
    check_positive(args, "batch_size", "max_seq_length")
    check_outputs(args)
    _check(args)
    check_inputs(args)

    import_libraries()
    from st_simcse.evaluation import check_defined, format_table

    sts, transfer = _tasks(args)
    if (how := file_options(vars(table), "sts_")) and (args.mteb or not sts):
        raise ValueError(f"--sts_{next(iter(how))} describes STS tables, but none are read here: leave it out")
    names = list(dict.fromkeys(args.model))
    tables = _tables(args, table, sts, transfer)
    for name in names[1:]:
        _load(name, args)  # a model that cannot be loaded fails before the first is evaluated
    printed: dict[str, dict[str, Row]] = {}
    rows: dict[str, Row] = {}
    try:
        for name in names:
            model = _load(name, args)
            results = _results(
                model, [task for table in tables.values() for task in table.evaluators], name, args.batch_size
            )
            scores = {table: row(results) for table, (_, row) in tables.items()} | _mteb(args, model)
            for table, row in scores.items():
                printed.setdefault(table, {})[name] = row
            rows[name] = _one_row(scores)
            if args.mode != "dev" and "MRPC_f1" in results:
                rows[name][F1] = 100 * results["MRPC_f1"]
    finally:
        if rows:
            print("\n\n".join(format_table(table) for table in printed.values()))
            _write(rows, args)
    check_defined(rows)
    return rows


class Table(NamedTuple):
    """The evaluators of a table, and the function that makes the row of a model from their results."""

    evaluators: Sequence[Any]
    row: Callable[[Results], Row]


def _tables(args: EvaluateArguments, file: Any, sts: list[str], transfer: list[str]) -> dict[str, Table]:
    """Returns the tables by name, without MTEB's, which needs no evaluators of ours."""
    from st_simcse.evaluation import (
        sts_evaluators,
        sts_scores,
        sts_zh_evaluators,
        sts_zh_scores,
        transfer_evaluators,
        transfer_scores,
    )

    tables: dict[str, Table] = {}
    size, partial = args.batch_size, args.allow_partial
    with named_options(**file_flags(vars(file), "sts_"), allow_partial="--allow_partial"):
        if args.sts_zh_dir:
            found = sts_zh_evaluators(
                args.sts_zh_dir, size, args.tasks, args.sts_zh_splits, args.max_seq_length, partial
            )
            tables["Chinese STS"] = Table(found.evaluators, lambda results: sts_zh_scores(results, found))
        if sts and not args.mteb:
            folder, options = args.sts_dir or args.senteval_dir or "", file_options(vars(file), "sts_")
            english = sts_evaluators(folder, size, sts, args.mode == "dev", allow_partial=partial, **options)
            tables["STS"] = Table(english.evaluators, sts_scores)
        if transfer:
            folder = args.senteval_dir or args.sts_dir or ""
            evaluators = transfer_evaluators(folder, transfer, args.mode, size, allow_partial=partial).evaluators
            tables["transfer"] = Table(evaluators, lambda results: transfer_scores(results, args.mode))
    return tables


def _mteb(args: EvaluateArguments, model: SentenceTransformer) -> dict[str, Row]:
    """Returns the model's row in MTEB's table of each language."""
    from st_simcse.evaluation import mteb_scores

    languages = (args.mteb_languages or ["eng"]) if args.mteb else []
    return {"STS" if language == "eng" else f"STS {language}": mteb_scores(model, language) for language in languages}


def _check(args: EvaluateArguments) -> None:
    """Raises ValueError if options do not go together, or no option names the data."""
    if args.sts_zh_dir is None and args.sts_zh_splits:
        raise ValueError("--sts_zh_splits needs --sts_zh_dir: pass both, or neither")
    others = ("sts_dir", "senteval_dir", "task_set", "mteb")
    given = [f"--{name}" for name in others if getattr(args, name)] + ["--mode"] * (args.mode != "test")
    if args.sts_zh_dir and given:
        raise ValueError(f"--sts_zh_dir cannot be used with {', '.join(given)}: run evaluate once for each")
    if args.mteb_languages and not args.mteb:
        raise ValueError("--mteb_languages needs --mteb: pass both, or neither")
    if args.task_set and args.tasks:
        raise ValueError("pass --task_set or --tasks, not both")
    has_folder = bool(args.sts_dir or args.senteval_dir)
    if args.task_set == "transfer" and not (has_folder or args.mteb):
        raise ValueError("the transfer tasks need SentEval's data: pass its folder as --senteval_dir")
    if has_folder == args.mteb and not args.sts_zh_dir:
        raise ValueError(
            "pass either --sts_dir or --senteval_dir with the folder of the data (--sts_zh_dir for the Chinese tasks), "
            "or --mteb for the data that MTEB downloads"
        )


def _tasks(args: EvaluateArguments) -> tuple[list[str], list[str]]:
    """Returns the names of the English STS tasks and of the transfer tasks to evaluate.

    Raises:
        ValueError: If a task is unknown or has no data in the mode, or a language is unknown.
    """
    from st_simcse.evaluation import MTEB_LANGUAGES, STS_DEV_TASKS, STS_TASKS, TRANSFER_TASKS

    if unknown := [language for language in args.mteb_languages or () if language not in MTEB_LANGUAGES]:
        raise ValueError(f"--mteb_languages: {', '.join(unknown)} is unknown; choose from {', '.join(MTEB_LANGUAGES)}")
    if args.sts_zh_dir:
        return [], []
    known = [*(STS_DEV_TASKS if args.mode == "dev" else STS_TASKS), *TRANSFER_TASKS]
    wanted = [ALIASES.get(task, task) for task in args.tasks or known]
    if unknown := [task for task in wanted if task not in known]:
        raise ValueError(
            f"--tasks: {', '.join(unknown)} is unknown{' or has no dev set' if args.mode == 'dev' else ''}; choose "
            f"from {', '.join(known)}"
        )
    task_set = args.task_set or ("full" if args.tasks else "sts")
    sts = [task for task in STS_TASKS if task in wanted and task_set != "transfer"]
    transfer = [task for task in TRANSFER_TASKS if task in wanted and task_set != "sts"]
    if args.mteb and (transfer or args.tasks or args.mode != "test"):
        raise ValueError(
            "--mteb evaluates on the test sets of all seven STS tasks: leave --tasks, --task_set and --mode out"
        )
    if args.sts_dir and args.senteval_dir and not (sts and transfer):
        unread, kind = ("sts_dir", "an STS") if transfer else ("senteval_dir", "a transfer")
        raise ValueError(
            f"--{unread} is not read, because --task_set and --tasks do not ask for {kind} task: leave it out, or ask "
            "for one, such as with --task_set full"
        )
    if args.mteb and args.allow_partial:
        raise ValueError("--mteb downloads complete data: leave --allow_partial out")
    return sts, transfer


def _one_row(scores: Mapping[str, Row]) -> Row:
    """Merges the rows of several tables. Columns that several have, such as averages, get the name of their table."""
    shared = Counter(column for row in scores.values() for column in row)
    return {
        f"{column} {table}" if shared[column] > 1 else column: value
        for table, row in scores.items()
        for column, value in row.items()
    }


def _load(name: str, args: EvaluateArguments) -> SentenceTransformer:
    from st_simcse.data.prompts import set_prompt
    from st_simcse.models.checkpoints import load_model
    from st_simcse.models.fast_encode import fast_encode_own

    with named_options(max_seq_length="--max_seq_length"):
        model = load_model(name, pooling_mode(args.pooling), args.max_seq_length)
    set_prompt(model, args.prompt, args.prompt_name)
    return fast_encode_own(model, args.precision)


def _results(model: SentenceTransformer, evaluators: list[Any], name: str, batch_size: int) -> dict[str, float]:
    """Runs the evaluators with a progress bar that counts sentences, and returns their results."""
    from sentence_transformers.sentence_transformer.modules import Normalize

    from st_simcse.data.lengths import reading_at_most, warn_of_cut_texts
    from st_simcse.evaluation import TransferEvaluator
    from st_simcse.models.embed_once import embed_once

    results: dict[str, float] = {}
    transfer = [task for task in evaluators if isinstance(task, TransferEvaluator)]
    pairs = [task for task in evaluators if task not in transfer]
    sentences = _different_texts(pairs)
    for limit, texts in sentences.items():
        with reading_at_most(model, limit) if limit else nullcontext():
            warn_of_cut_texts(model, [*texts])
    for task in transfer:
        warn_of_cut_texts(model, task.texts)
    are_shared = sum(map(len, sentences.values())) <= TOGETHER
    sides = (set(texts) for task in pairs for texts in (task.sentences1, task.sentences2))
    embedded = sentences.values() if are_shared else sides
    total = sum(map(len, [*embedded, *(task.texts for task in transfer)]))
    with tqdm(total=total, unit=" sentences", leave=False, disable=None) as bar:

        def count(module: nn.Module, inputs: tuple[Any, ...], output: dict[str, Tensor]) -> None:
            bar.update(len(output["sentence_embedding"]))

        counted = [module for module in model if not isinstance(module, Normalize)][-1]
        counter = counted.register_forward_hook(count)
        bar.set_description(name)
        # The STS tasks share texts. All texts are embedded first, so that they are sorted by length together.
        once = embed_once(model, batch_size=batch_size)
        for limit, texts in sentences.items() if are_shared else ():
            with reading_at_most(once, limit) if limit else nullcontext():
                once.remember([*texts])
        done, began = 0, 0.0
        for task in evaluators:
            bar.set_description(f"{name}, {task.name}")
            # The classifiers of a transfer task take minutes, and the bar does not move meanwhile.
            if task in transfer and not done:
                began = time.monotonic()
                logger.info(
                    "%s: the classifiers of the %d transfer tasks take longer than the embeddings; --mode fasttest "
                    "trains the fewest",
                    name,
                    len(transfer),
                )
            results |= task(once if are_shared and task not in transfer else model)
            if task in transfer:
                done += 1
                _log_progress(name, transfer, done, time.monotonic() - began)
        counter.remove()
    return results


def _different_texts(tasks: list[Any]) -> dict[int | None, dict[str, None]]:
    """Returns the different texts by the maximum number of tokens, where None is the model's own maximum."""
    different: dict[int | None, dict[str, None]] = {}
    for task in tasks:
        texts = different.setdefault(getattr(task, "max_length", None), {})
        texts |= dict.fromkeys([*task.sentences1, *task.sentences2])
    return different


def _log_progress(name: str, tasks: Sequence[TransferEvaluator], done: int, seconds: float) -> None:
    """Logs how many transfer tasks are done, and an estimate of the time for the others."""
    work = [task.work for task in tasks]
    left = f", about {seconds * sum(work[done:]) / sum(work[:done]):.0f} s left" if done < len(tasks) else ""
    message = "%s: %s is done (%d of %d transfer tasks) after %.0f s%s"
    logger.info(message, name, tasks[done - 1].name, done, len(tasks), seconds, left)


def _write(rows: Rows, args: EvaluateArguments) -> None:
    if args.json_file:
        # JSON cannot represent nan.
        numbers = {
            name: {task: value if math.isfinite(value) else None for task, value in row.items()}
            for name, row in rows.items()
        }
        Path(args.json_file).write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    if args.csv_file:
        with Path(args.csv_file).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["model", *next(iter(rows.values()))])
            writer.writeheader()
            writer.writerows({"model": _no_formula(name), **row} for name, row in rows.items())
    if args.plot_file:
        dots = {name: {task: value for task, value in row.items() if task != F1} for name, row in rows.items()}
        is_sts = bool(args.sts_zh_dir) or (args.task_set in (None, "sts") and not args.tasks)
        plot_scores(dots, args.plot_file, "Spearman's correlation × 100" if is_sts else "score × 100")


def _no_formula(text: str) -> str:
    """Adds an apostrophe to text that a spreadsheet would run as a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
