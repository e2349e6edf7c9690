"""The command line: parses, calls the rest of the package, prints the tables."""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from datasets import Dataset
from safetensors import SafetensorError
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
from transformers import HfArgumentParser, set_seed

from st_simcse.evaluation import format_sts_table, sts_evaluators
from st_simcse.losses import SupSimCSELoss, UnsupSimCSELoss
from st_simcse.modeling import build_model
from st_simcse.readers import NLIReader, SentenceReader, TripletReader, load_sts
from st_simcse.trainer import SimCSETrainer, SimCSETrainingArguments, StopOnSigterm

USAGE = """usage: st-simcse COMMAND [options]

  train     train a model on a file of sentences, triplets or NLI rows
  evaluate  Spearman's correlation of one or several models on the seven STS tasks
  demo      both objectives on a tiny model and a generated corpus: no network, no files

st-simcse COMMAND --help lists the options."""


@dataclass
class ModelArguments:
    model_name_or_path: str = field(metadata={"help": "A folder, or a model's name on the Hugging Face hub."})
    pooling: Literal["cls", "mean", "first_last_avg", "last2_avg"] = field(
        default="cls", metadata={"help": "How token embeddings become a sentence embedding."}
    )
    max_seq_length: int = field(default=32, metadata={"help": "Texts are cut off after so many tokens."})
    dense: bool = field(default=False, metadata={"help": "Put the MLP into the model, for inference too."})


@dataclass
class DataArguments:
    train_file: str = field(metadata={"help": "Sentences (.txt) or a table (.csv, .tsv, .jsonl); .gz is fine."})
    train_format: Literal["auto", "sentences", "triplets", "nli"] = field(
        default="auto", metadata={"help": "auto: .txt files hold sentences, tables hold triplets."}
    )
    columns: list[str] | None = field(
        default=None, metadata={"help": "Names, or numbers from 0, of the columns of a train table."}
    )
    dev_file: str | None = field(
        default=None, metadata={"help": "Scored pairs; evaluated during training, the best checkpoint is kept."}
    )
    test_file: str | None = field(default=None, metadata={"help": "Scored pairs, evaluated before and after."})


@dataclass
class LossArguments:
    temperature: float = field(default=0.05, metadata={"help": "Softmax temperature."})
    symmetric: bool = field(default=False, metadata={"help": "Unsupervised: both views are anchors."})
    projection_head: bool = field(default=False, metadata={"help": "Train with an MLP that is not saved."})
    hard_negative_weight: float = field(default=1.0, metadata={"help": "Supervised: weight of own hard negatives."})
    mini_batch_size: int | None = field(default=None, metadata={"help": "Rows a forward pass (gradient caching)."})


@dataclass
class EvaluateArguments:
    model: list[str] = field(metadata={"help": "One or several models: folders or names on the hub."})
    sts_dir: str = field(metadata={"help": "Folder with STS12.tsv to STS16.tsv, STSB-test.tsv and SICKR-test.tsv."})
    pooling: Literal["as saved", "cls", "mean", "first_last_avg", "last2_avg"] = field(
        default="as saved", metadata={"help": "Replaces the pooling that the model was saved with."}
    )
    max_seq_length: int | None = field(default=None, metadata={"help": "Texts are cut off after so many tokens."})
    batch_size: int = field(default=64, metadata={"help": "Sentences a forward pass."})


@dataclass
class DemoArguments:
    seed: int = field(default=0, metadata={"help": "Of the corpus, the weights and the training."})


def train(argv: Sequence[str]) -> dict[str, dict[str, float]]:
    """Train, save the model to ``output_dir``, print Spearman before and after, and return it."""
    model_args, data_args, loss_args, args = _parse(
        "train", argv, ModelArguments, DataArguments, LossArguments, SimCSETrainingArguments
    )
    set_seed(args.seed)
    dataset = _read_train_file(data_args)
    evaluators = [load_sts(path) for path in (data_args.dev_file, data_args.test_file) if path]
    model = build_model(
        model_args.model_name_or_path,
        model_args.pooling,
        model_args.max_seq_length,
        model_args.dense,
        device="cpu" if args.use_cpu else None,
    )
    loss = _loss(model, dataset, loss_args)
    if data_args.dev_file and args.eval_strategy == "no":
        args.eval_strategy = args.save_strategy = "steps"
        rows = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        steps = args.max_steps if args.max_steps > 0 else int(args.num_train_epochs * len(dataset) / rows)
        args.eval_steps = args.save_steps = max(1, min(125, steps))  # the paper's interval, and once at least
        args.load_best_model_at_end, args.greater_is_better = True, True
        args.metric_for_best_model = f"eval_{evaluators[0].name}_spearman_cosine"
    trainer = SimCSETrainer(
        model=model,
        args=args,
        train_dataset=dataset,
        loss=loss,
        evaluator=evaluators[0] if data_args.dev_file else None,
        callbacks=[StopOnSigterm()],
    )
    results = {"before": _spearman(evaluators, model)}
    resume = args.resume_from_checkpoint
    trainer.train(resume_from_checkpoint=True if resume and resume.lower() in ("true", "last") else resume)
    if trainer.state.global_step < trainer.state.max_steps:
        print(f"stopped at step {trainer.state.global_step} of {trainer.state.max_steps}, after saving a checkpoint;")
        print("the same command with --resume_from_checkpoint last goes on from there")
        return results
    results["after"] = _spearman(evaluators, model)
    model.save_pretrained(args.output_dir)
    if evaluators:
        print(_format_before_after(results))
    print(f"saved to {args.output_dir}")
    return results


def evaluate(argv: Sequence[str]) -> dict[str, dict[str, float]]:
    """Print the paper's STS table for each model, and return the numbers."""
    (args,) = _parse("evaluate", argv, EvaluateArguments)
    evaluator = sts_evaluators(args.sts_dir, batch_size=args.batch_size)
    results = {}
    for name in args.model:
        if args.pooling == "as saved":
            model = SentenceTransformer(name)
            model.max_seq_length = args.max_seq_length or model.max_seq_length
        else:
            model = build_model(name, args.pooling, args.max_seq_length or 128)
        results[name] = evaluator(model)
    print(format_sts_table(results))
    return results


def demo(argv: Sequence[str]) -> dict[str, float]:
    """Run the demo."""
    from st_simcse.demo import run_demo

    (args,) = _parse("demo", argv, DemoArguments)
    return run_demo(args.seed)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``st-simcse``; errors in the input end it with a line, not a traceback."""
    commands: dict[str, Callable[[Sequence[str]], Any]] = {"train": train, "evaluate": evaluate, "demo": demo}
    command, *rest = sys.argv[1:] if argv is None else argv or [""]
    if command not in commands:
        sys.exit(USAGE if command in ("-h", "--help") else f"{USAGE}\n\nunknown command {command!r}")
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    try:
        commands[command](rest)
    except (OSError, ValueError, SafetensorError) as error:
        sys.exit(f"st-simcse {command}: {error}")


def _parse(command: str, argv: Sequence[str], *types: type) -> tuple[Any, ...]:
    return HfArgumentParser(types, prog=f"st-simcse {command}").parse_args_into_dataclasses(args=list(argv))


def _read_train_file(args: DataArguments) -> Dataset:
    columns = [int(column) if column.isdigit() else column for column in args.columns or []] or None
    table = any(ending in args.train_file.lower() for ending in (".csv", ".tsv", ".json"))
    train_format = args.train_format if args.train_format != "auto" else "triplets" if table else "sentences"
    if train_format == "sentences":
        if columns and len(columns) > 1:
            raise ValueError(f"sentences are read from one column, got --columns {' '.join(args.columns or [])}")
        return SentenceReader(column=columns[0] if columns else None).get_dataset(args.train_file)
    reader = TripletReader if train_format == "triplets" else NLIReader
    return reader(columns=columns).get_dataset(args.train_file)


def _loss(model: SentenceTransformer, dataset: Dataset, args: LossArguments) -> UnsupSimCSELoss | SupSimCSELoss:
    options = dataclasses.asdict(args)
    unsupervised = len(dataset.column_names) == 1
    other = "hard_negative_weight" if unsupervised else "symmetric"
    if options.pop(other) != getattr(LossArguments, other):
        raise ValueError(f"--{other} does not go with {'sentences' if unsupervised else 'triplets'}")
    return UnsupSimCSELoss(model, **options) if unsupervised else SupSimCSELoss(model, **options)


def _spearman(evaluators: list[EmbeddingSimilarityEvaluator], model: SentenceTransformer) -> dict[str, float]:
    return {evaluator.name: evaluator(model)[f"{evaluator.name}_spearman_cosine"] for evaluator in evaluators}


def _format_before_after(results: dict[str, dict[str, float]]) -> str:
    names = list(results["before"])
    rows = [["Spearman x 100", *names], ["---"] * (len(names) + 1)]
    rows += [[stage, *(f"{100 * scores[name]:.2f}" for name in names)] for stage, scores in results.items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    main()
