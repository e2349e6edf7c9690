"""``st-simcse train``: reads the data, builds the model and the loss, trains, and prints scores before and after."""

from __future__ import annotations

import json
import logging
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset, IterableDataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.evaluation import BaseEvaluator
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
from transformers import TrainerCallback, set_seed
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from st_simcse.cli.baselines import Baseline
from st_simcse.cli.files import check_has_file, file_flags, file_options
from st_simcse.cli.loss import LossArguments, make_loss
from st_simcse.cli.parsing import check_seeds, named_options, option_of, parse, parse_columns, pooling_mode
from st_simcse.cli.train_options import EXAMPLE, DataArguments, ModelArguments, check_data, with_preset
from st_simcse.cli.views import ViewArguments, make_view
from st_simcse.cli.whiten import Whitening
from st_simcse.data.formats import FileFormat
from st_simcse.data.hub_dataset import HubDataset
from st_simcse.data.layouts import found_format
from st_simcse.data.readers import READERS, NLIReader, Reader, SentenceReader
from st_simcse.data.scored_pairs import load_sts
from st_simcse.data.teacher import add_teacher_embeddings
from st_simcse.evaluation import AlignmentUniformityEvaluator, check_defined, format_table
from st_simcse.losses import OPTIONS, SimCSELoss
from st_simcse.losses.options import option_name
from st_simcse.models.checkpoints import load_model
from st_simcse.models.lora import adapters, check_peft, merge_lora
from st_simcse.models.modeling import build_model, check_length
from st_simcse.plots import check_picture, plot_alignment_uniformity
from st_simcse.training.model_card import own_card, shown_command
from st_simcse.training.plain_trainer import PlainTrainer
from st_simcse.training.resumable_trainer import to_evaluate
from st_simcse.training.run_folder import checkpoint_folders, sole_run
from st_simcse.training.stop_on_signal import StopOnSignal, Stopped
from st_simcse.training.trainer import SimCSETrainer
from st_simcse.training.training_arguments import SimCSETrainingArguments

logger = logging.getLogger(__name__)

PICTURE = "alignment_uniformity.png"


def run(
    argv: Sequence[str],
    baseline: Baseline | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    before: bool = True,
) -> dict[str, dict[str, float]]:
    """Trains, saves the model to ``output_dir``, and prints Spearman's correlation before and after training.

    Args:
        argv: The arguments of the command.
        baseline: Makes data and loss for sentence-transformers' own trainer, which then replaces SimCSETrainer.
        callbacks: Callbacks for the trainer.
        before: If True, the model is also evaluated before training.

    Returns:
        The correlations, -1 to 1, by row and evaluator. The rows are ``before`` and ``after``. With ``--seeds``, they
        are ``before`` (measured once), ``seed 0``, ..., and for two or more seeds ``mean`` and ``spread``, which is the
        standard deviation.

    Raises:
        Stopped: If a signal ended the training. Its checkpoint has been saved and the table printed by then.
        ValueError: If the options or the data do not allow training, or if a correlation is not defined.
    """
    arguments = parse_train(argv)
    training_args = arguments[-1]
    with sole_run(str(training_args.output_dir), training_args.should_save):
        return _run(argv, arguments, baseline, callbacks, before)


def _run(
    argv: Sequence[str],
    arguments: tuple[Any, ...],
    baseline: Baseline | None,
    callbacks: Sequence[TrainerCallback],
    before: bool,
) -> dict[str, dict[str, float]]:
    _, data_args, _, training_args = arguments
    check_seeds(data_args.seeds or [])
    resume = training_args.resume_from_checkpoint
    if data_args.seeds and resume and resume.lower() not in ("true", "last"):
        raise ValueError(
            f"--resume_from_checkpoint {resume} cannot be used with --seeds, because every seed has its own "
            "checkpoints: pass --resume_from_checkpoint last, or --seed instead of --seeds"
        )
    results: dict[str, dict[str, float]] = {}
    stopped: Stopped | None = None
    try:
        if not data_args.seeds:
            results = _train_once(argv, arguments, baseline, callbacks, before)
        for seed in data_args.seeds or []:
            folder = Path(training_args.output_dir, f"seed-{seed}")
            once = parse_train([*argv, "--seed", str(seed), "--output_dir", str(folder)])
            if not checkpoint_folders(folder):  # the interrupted run had not reached this seed
                once[-1].resume_from_checkpoint = None
            scores = _train_once(argv, once, baseline, callbacks, before and not results)
            after = scores.pop("after")
            results |= scores
            results[f"seed {seed}"] = after
    except Stopped as error:
        stopped = error
        results |= error.results
    seeds = [scores for name, scores in results.items() if name.startswith("seed ")]
    if len(seeds) > 1:
        for name, statistic in (("mean", statistics.mean), ("spread", statistics.stdev)):
            results[name] = {test: statistic(scores[test] for scores in seeds) for test in seeds[0]}
    if any(results.values()) and training_args.process_index == 0:
        percent = {name: {test: 100 * value for test, value in scores.items()} for name, scores in results.items()}
        print(format_table(percent, corner="Spearman x 100"))
    if stopped:
        raise stopped
    check_defined(results)
    return results


def parse_train(argv: Sequence[str]) -> tuple[ModelArguments, DataArguments, Any, SimCSETrainingArguments]:
    """Parses the arguments of the command, which override those of a preset, into four dataclasses."""
    *arguments, view_args, training_args = parse(
        "train",
        with_preset(argv),
        *(ModelArguments, DataArguments, LossArguments, ViewArguments, SimCSETrainingArguments),
        example=EXAMPLE,
    )
    training_args.views = make_view(training_args.views, view_args)
    return *arguments, training_args


def _train_once(
    argv: Sequence[str],
    arguments: tuple[Any, ...],
    baseline: Baseline | None,
    callbacks: Sequence[TrainerCallback],
    before: bool,
) -> dict[str, dict[str, float]]:
    model_args, data_args, loss_args, args = arguments
    set_seed(args.seed)
    source = _train_source(data_args, args)
    evaluators = pair_evaluators(data_args)
    has_dev = bool(data_args.dev_file or data_args.dev_dataset)
    dataset = _training_data(source, data_args, args.seed)
    during_training = _during_training(evaluators[:1] if has_dev else [], data_args, args)
    model = _model(model_args, "cpu" if args.use_cpu else None)
    if args.max_length is not None:
        with named_options(max_length="--max_seq_length"):
            check_length("max_length", args.max_length, model)
    whitening = Whitening(model, dataset, model_args, args)
    results = {"before": spearman(evaluators, to_evaluate(model, args))} if before and whitening.is_before else {}
    whitening.before_training()
    if baseline:
        dataset, loss = baseline(model, dataset, data_args.teacher or [], args)
    else:
        loss = make_loss(model, len(dataset.column_names), loss_args)
        dataset = _with_teacher(dataset, loss, data_args.teacher or [], args.device)
    if has_dev:
        _keep_the_best(argv, args, dataset, _metrics(during_training))
    stop = StopOnSignal()
    with _missing_packages_are_named(args.report_to):
        trainer = (PlainTrainer if baseline else SimCSETrainer)(
            model=model,
            args=args,
            train_dataset=dataset,
            loss=loss,
            evaluator=during_training or None,
            callbacks=[stop, *callbacks],
        )
    if not baseline:
        own_card(model).command = shown_command(["st-simcse", "train", *argv])
    if before and not results:
        results = {"before": spearman(evaluators, to_evaluate(model, args))}
    resume = args.resume_from_checkpoint
    with stop, named_options(**_TRAIN_FLAGS) if data_args.streaming else nullcontext():
        trainer.train(resume_from_checkpoint=True if resume and resume.lower() in ("true", "last") else resume)
    if stop.has_stopped:
        if trainer.is_world_process_zero():
            state = trainer.state
            print(f"stopped at step {state.global_step} of {state.max_steps}, after saving a checkpoint.")
            print("To continue, run the same command with --resume_from_checkpoint last")
        raise Stopped(stop.number, results)
    whitening.after_training()
    results["after"] = spearman(evaluators, to_evaluate(model, args))
    if adapters(model) and model_args.lora_merge:
        merge_lora(model)
    trainer.save_model(args.output_dir)
    if trainer.is_world_process_zero():  # only one of several processes writes and prints
        print(f"saved to {args.output_dir}. The model reads up to {model.max_seq_length} tokens of a text")
        if data_args.alignment_uniformity:
            _draw_path(model_args.pooling, trainer)
    return results


@contextmanager
def _missing_packages_are_named(report_to: Any) -> Iterator[None]:
    """Turns the error of transformers for a missing package of ``--report_to`` into one that names the option."""
    try:
        yield
    except RuntimeError as error:
        if "installed" not in str(error):
            raise
        names = " ".join([report_to] if isinstance(report_to, str) else report_to)
        raise ImportError(f"--report_to {names}: {error} Install it, or pass --report_to none") from error


def _train_source(data_args: DataArguments, args: SimCSETrainingArguments) -> str | HubDataset:
    """Returns the source of the training data, and checks the options that limit its rows."""
    check_data(data_args)
    source = _source(data_args, "train")
    assert source is not None
    if data_args.streaming and args.max_steps <= 0:
        raise ValueError("--streaming needs --max_steps, because the number of rows is not known: pass it")
    if data_args.max_train_samples is not None and data_args.max_train_samples < 0:
        raise ValueError(f"--max_train_samples must be 0 (all rows) or more, got {data_args.max_train_samples}")
    if data_args.streaming and data_args.max_train_samples:
        raise ValueError(
            "--max_train_samples draws from all rows and cannot be used with --streaming: leave one of them out"
        )
    return source


def _draw_path(label: str, trainer: Any) -> None:
    """Draws alignment and uniformity during the training."""
    path = Path(trainer.args.output_dir, PICTURE)
    plot_alignment_uniformity({label: trainer.state.log_history}, path)
    print(f"drew {path}")


def _during_training(
    dev: list[EmbeddingSimilarityEvaluator], data_args: DataArguments, args: SimCSETrainingArguments
) -> list[BaseEvaluator]:
    """Returns the evaluators for the training: the dev pairs and, if requested, alignment and uniformity."""
    if not data_args.alignment_uniformity:
        return [*dev]
    if not dev:
        raise ValueError("--alignment_uniformity needs dev pairs: pass --dev_file or --dev_dataset")
    check_picture(PICTURE)
    args.eval_on_start = True  # for the first point of the path
    return [*dev, AlignmentUniformityEvaluator.from_sts(dev[0])]


def _model(args: ModelArguments, device: str | None) -> SentenceTransformer:
    """Builds the model to train from the options."""
    with named_options(max_seq_length="--model_max_length"):
        model = build_model(
            args.model_name_or_path,
            pooling_mode(args.pooling),
            args.model_max_length,
            args.dense,
            device=device,
            layers=args.layers,
            dropout=args.dropout,
            bidirectional=args.bidirectional,
            lora=_lora(args),
            dtype=args.dtype,
            prompts=_model_prompts(args),
            default_prompt_name=args.default_prompt_name,
        )
    if args.include_prompt is not None:
        model.set_pooling_include_prompt(args.include_prompt)
    return model


def _lora(args: ModelArguments) -> Any:
    """Returns peft's configuration of the adapters, or None if no option asks for adapters."""
    targets: Any = args.lora_target_modules
    options = {
        "r": args.lora_r,
        "lora_alpha": args.lora_alpha,
        "lora_dropout": args.lora_dropout,
        "target_modules": "all-linear" if targets == ["all-linear"] else targets,
    }
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    if not given:
        return None
    if "r" not in given:
        raise ValueError(f"--lora_{next(iter(given)).removeprefix('lora_')} needs --lora_r: pass both, or neither")
    if args.bidirectional and not args.lora_merge:
        raise ValueError(
            "--no_lora_merge cannot be used with --bidirectional, because a saved adapter does not record that the "
            "model is bidirectional: leave one of them out"
        )
    check_peft()
    from peft import LoraConfig

    return LoraConfig(**given)


def _model_prompts(args: ModelArguments) -> dict[str, str] | None:
    if args.model_prompts is None:
        return None
    try:
        prompts = json.loads(args.model_prompts)
    except json.JSONDecodeError:
        prompts = None
    if not isinstance(prompts, dict) or not all(isinstance(prompt, str) for prompt in prompts.values()):
        raise ValueError(
            f'--model_prompts must be JSON with a text for each name, such as \'{{"query": "query: "}}\', got '
            f"{args.model_prompts}"
        )
    return prompts


def _with_teacher(
    dataset: Dataset | IterableDataset, loss: SimCSELoss, names: list[str], device: torch.device
) -> Dataset | IterableDataset:
    """Adds the embeddings of the teachers to the data. Without teachers, the data stays as it is."""
    check_teacher(loss.options, names)
    if names and not isinstance(dataset, Dataset):
        raise ValueError(
            "--teacher embeds all training data before training and cannot be used with --streaming: leave one out"
        )
    return add_teacher_embeddings(dataset, [load_model(name).to(device) for name in names]) if names else dataset


def check_teacher(options: Sequence[Any], names: Sequence[str]) -> None:
    """Raises ValueError if options need a teacher and none is named, or the other way round."""
    guided = [option for option in options if getattr(option, "needs_teacher", False)]
    if guided and not names:
        raise ValueError(
            f"--{option_name(guided[0])} needs a teacher: pass --teacher with the name or folder of a model"
        )
    if names and not guided:
        flags = [f"--{option_name(option)}" for option in OPTIONS if getattr(option, "needs_teacher", False)]
        raise ValueError(f"--teacher is used by {' and '.join(flags)} only: pass one of them too, or leave it out")


def _metrics(evaluators: Sequence[Any]) -> dict[str, bool]:
    """Returns the metrics that can choose the best checkpoint, the default first, and whether higher is better."""
    found: dict[str, bool] = {}
    for evaluator in evaluators:
        if isinstance(evaluator, AlignmentUniformityEvaluator):
            found |= dict.fromkeys((f"{evaluator.name}_alignment", f"{evaluator.name}_uniformity"), False)
        else:
            found |= dict.fromkeys((f"{evaluator.name}_spearman_cosine", f"{evaluator.name}_pearson_cosine"), True)
    return {f"eval_{name}": is_higher for name, is_higher in found.items()}


def _keep_the_best(
    argv: Sequence[str],
    args: SimCSETrainingArguments,
    dataset: Dataset | IterableDataset,
    metrics: Mapping[str, bool],
) -> None:
    """Sets the arguments so that training evaluates, saves, and loads the best checkpoint.

    Without ``--save_steps``, it saves at each evaluation.
    """
    evaluate, save = IntervalStrategy(args.eval_strategy).value, SaveStrategy(args.save_strategy).value
    if evaluate == "no":
        evaluate = "epoch" if save == "epoch" else "steps"
    asked, args.eval_steps = args.eval_steps, _eval_steps(args, dataset)
    if save == "steps" and "save_steps" not in map(option_of, with_preset(argv)):
        save, args.save_steps = evaluate, args.eval_steps
    elif asked and asked > args.eval_steps and not args.save_steps % asked:
        # Training ends before the first evaluation that was asked for.
        args.save_steps = args.eval_steps
    args.eval_strategy, args.save_strategy = evaluate, save
    if save == "no":
        logger.warning(
            "with --save_strategy no, the model of the last step is saved, not the best one on the dev pairs"
        )
        return
    times = args.save_steps / args.eval_steps
    fits = (args.save_steps < 1) == (args.eval_steps < 1) and math.isclose(times, max(1, round(times)))
    if save not in ("best", evaluate) or (save == "steps" and not fits):
        raise ValueError(
            "keeping the best checkpoint on the dev pairs requires evaluating every checkpoint, but --save_strategy "
            f"{save} --save_steps {args.save_steps} does not fit --eval_strategy {evaluate} --eval_steps "
            f"{asked or args.eval_steps}: leave --save_strategy and --save_steps out, or save at multiples of "
            "--eval_steps"
        )
    args.load_best_model_at_end = True
    metric = args.metric_for_best_model or "loss"
    if metric == "loss":  # there is no eval_dataset to compute a loss on
        metric = next(iter(metrics))
    metric = f"eval_{metric.removeprefix('eval_')}"
    if metric not in metrics:
        raise ValueError(
            f"--metric_for_best_model {args.metric_for_best_model}: the dev pairs are not measured by it; choose from "
            f"{', '.join(metrics)}"
        )
    args.metric_for_best_model, args.greater_is_better = metric, metrics[metric]


def _eval_steps(args: SimCSETrainingArguments, dataset: Any) -> float:
    """Returns the steps between evaluations, or their share of all steps if below 1. The default is the paper's 125."""
    if args.eval_steps and args.eval_steps < 1:
        return args.eval_steps
    batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    steps = args.max_steps if args.max_steps > 0 else int(args.num_train_epochs * len(dataset) / batch)
    return max(1, min(int(args.eval_steps or 125), steps))  # at least one evaluation


def _source(args: DataArguments, name: Literal["train", "dev", "test"]) -> str | HubDataset | None:
    """Returns the file or data set of the train, dev or test options."""
    file, dataset, subset, split = (getattr(args, f"{name}_{part}") for part in ("file", "dataset", "subset", "split"))
    if file and dataset:
        raise ValueError(f"pass --{name}_file or --{name}_dataset, not both")
    check_has_file(_of_format(args), f"{name}_", f"--{name}_file", has_file=bool(file))
    if dataset:
        usual = {"train": "train", "dev": "validation", "test": "test"}[name]
        return HubDataset(dataset, subset, split or usual, streaming=args.streaming and name == "train")
    if getattr(args, f"{name}_columns", None) and not file:
        raise ValueError(f"--{name}_columns needs --{name}_file or --{name}_dataset: pass one of them too")
    if subset or (split and not file):
        raise ValueError(f"--{name}_subset and --{name}_split need --{name}_dataset: pass it too, or leave them out")
    return file


def _of_format(args: DataArguments) -> dict[str, Any]:
    """Returns the options for reading files, which do not apply to data sets of the hub."""
    parts = ("_format", "_delimiter", "_encoding", "_quoting")
    return {name: word for name, word in vars(args).items() if name.endswith(parts) and name != "train_format"}


def pair_evaluators(args: DataArguments) -> list[EmbeddingSimilarityEvaluator]:
    """Returns the evaluators of the dev and test pairs that the options name."""
    names: tuple[Literal["dev", "test"], ...] = ("dev", "test")
    evaluators = [_evaluator(source, args, name) for name in names if (source := _source(args, name))]
    if len({evaluator.name for evaluator in evaluators}) < len(evaluators):  # two files with the same name
        for evaluator, name in zip(evaluators, ("dev", "test"), strict=True):
            evaluator.name = name
    return evaluators


def _evaluator(source: str | HubDataset, args: DataArguments, name: Literal["dev", "test"]) -> Any:
    options = file_options(vars(args), f"{name}_") | {"split": _split(source, args, name)}
    with named_options(**file_flags(vars(args), f"{name}_")):
        evaluator = load_sts(source, **options)
    scores = evaluator.scores
    if len(set(scores)) < 2:
        raise ValueError(
            f"{source}: all scores are {scores[0]:g} ({len(scores)} in total), so no similarities correlate with them: "
            "use pairs with different scores"
        )
    return evaluator


def _split(source: str | HubDataset, args: DataArguments, name: str) -> str | None:
    """Returns the split of a table, or None for a HubDataset, which has its own."""
    split: str | None = getattr(args, f"{name}_split")
    return None if isinstance(source, HubDataset) else split


# The options to name, in messages about the training data, instead of readers and their arguments.
_TRAIN_FLAGS = {
    **{"column": "--columns", "columns": "--columns", "labels": "--labels", "split": "--train_split"},
    **{part: f"--train_{part}" for part in ("delimiter", "encoding", "quoting")},
    **{reader.__name__: f"--train_format {name}" for name, reader in READERS.items()},
    **dict.fromkeys(("format='lines'", "SentenceReader(format='lines')"), "--train_format lines"),
}


def _training_data(source: str | HubDataset, args: DataArguments, seed: int) -> Dataset | IterableDataset:
    with named_options(**_TRAIN_FLAGS):
        reader = _reader(source, args)
        if not args.streaming:
            return _some_rows(reader.get_dataset(source), args.max_train_samples or 0, seed)
        # The trainer does not shuffle streams.
        return reader.get_iterable_dataset(source).shuffle(seed=seed, buffer_size=10_000)


def _some_rows(dataset: Dataset, most: int, seed: int) -> Dataset:
    return dataset.shuffle(seed=seed).select(range(most)) if 0 < most < len(dataset) else dataset


def _reader(source: str | HubDataset, args: DataArguments) -> Reader:
    columns = parse_columns(args.columns)
    of_format = file_options(_of_format(args), "train_")
    how = of_format | {"split": _split(source, args, "train")}
    train_format: str = args.train_format
    if train_format == "lines":
        train_format, how["format"] = "sentences", "lines"
    elif train_format == "auto" and isinstance(source, HubDataset):
        train_format = _format_of(source, columns)
    elif train_format == "auto":
        found = found_format(Path(str(source)), FileFormat(**of_format))
        train_format = "sentences" if found == "lines" else "triplets"
    if train_format == "nli":
        return NLIReader(columns=columns, labels=_labels(args.labels), **how)
    if args.labels:
        raise ValueError(f"--labels needs --train_format nli, but the format is {train_format}: leave --labels out")
    if train_format != "sentences":
        return READERS[train_format](columns=columns, **how)
    return SentenceReader(columns=columns, **how)


def _labels(words: list[str] | None) -> list[str] | dict[str | int, str] | None:
    """Converts ``--labels`` for :class:`NLIReader`."""
    pairs = [word.partition("=") for word in words or []]
    if any(equals for _, equals, _ in pairs):
        if not all(equals for _, equals, _ in pairs):
            raise ValueError(
                f"--labels {' '.join(words or [])} mixes two forms: write NAME=MEANING for all labels, or for none"
            )
        return {name: meaning for name, _, meaning in pairs}
    return words


def _format_of(source: HubDataset, columns: list[int | str] | None) -> str:
    if columns:
        return "sentences" if len(columns) == 1 else "triplets"
    found = list(next(iter(source.load()), {}))
    for name, reader in READERS.items():
        if reader.usual_columns(found):
            return name
    usual = " or ".join(", ".join(map(str, columns)) for reader in READERS.values() for columns in reader.usual)
    raise ValueError(
        f"{source} has the columns {', '.join(found)}, but expected {usual}: name the columns with --columns"
    )


def spearman(evaluators: list[EmbeddingSimilarityEvaluator], model: SentenceTransformer) -> dict[str, float]:
    """Returns Spearman's correlations, -1 to 1, by the names of the evaluators."""
    return {evaluator.name: evaluator(model)[f"{evaluator.name}_spearman_cosine"] for evaluator in evaluators}
