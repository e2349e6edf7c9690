"""A whole training, from the start of the process to the saved model: a script with sentence-transformers, and ours.

python benchmarks/whole_run.py --model MODEL --train_file wiki_sentences.txt --dev_file STSB-dev.tsv

Every run trains one epoch in batches of 64 and scores the dev pairs every 125 steps. The runs take turns, each in its
own process. The table shows medians; "times" is the speed relative to the first row.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

from datasets import Dataset
from run import device_name, in_turn, median, ratio, run_python, table
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from st_simcse import load_sts

BATCH, EVAL_STEPS, TOKENS, LEARNING_RATE = 64, 125, 32, 3e-5
FAST = ["--group_by_length", "--shared_layers", "0.75"]
# The options of st-simcse train, or None for ST's script.
CANDIDATES: dict[str, list[str] | None] = {
    "ST: MultipleNegativesRankingLoss, doubled column, its evaluator": None,
    "st-simcse train": [],
    f"st-simcse train {' '.join(FAST)}": FAST,
}


def train_by_st(model_name: str, train_file: str, dev_file: str, output_dir: str) -> None:
    """The script of a user of sentence-transformers, with its defaults except for the options above."""
    model = SentenceTransformer(model_name)
    model.max_seq_length = TOKENS
    sentences = Path(train_file).read_text("utf-8").splitlines()
    dev = load_sts(dev_file)
    trainer = SentenceTransformerTrainer(
        model,
        SentenceTransformerTrainingArguments(
            output_dir,
            num_train_epochs=1,
            per_device_train_batch_size=BATCH,
            learning_rate=LEARNING_RATE,
            eval_strategy="steps",
            eval_steps=EVAL_STEPS,
            save_strategy="no",
            report_to="none",
        ),
        Dataset.from_dict({"anchor": sentences, "positive": sentences}),
        loss=MultipleNegativesRankingLoss(model),
        evaluator=EmbeddingSimilarityEvaluator(dev.sentences1, dev.sentences2, dev.scores, name="dev"),
    )
    trainer.train()
    model.save_pretrained(output_dir)


def take(options: list[str] | None, args: argparse.Namespace) -> dict[str, float]:
    """Runs one training in its own process; returns its seconds, CPU seconds and the dev score of the saved model."""
    with tempfile.TemporaryDirectory() as folder:
        files = [args.model, args.train_file, args.dev_file, folder]
        if options is None:
            words = [__file__, "--way", *files]
        else:
            names = ("--model_name_or_path", "--train_file", "--dev_file", "--output_dir")
            words = ["-m", "st_simcse", "train", *(word for pair in zip(names, files, strict=True) for word in pair)]
            words += ["--model_max_length", str(TOKENS), "--eval_steps", str(EVAL_STEPS), *options]
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        run_python(*words)
        seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        evaluator = load_sts(args.dev_file)
        score = evaluator(SentenceTransformer(folder))[evaluator.primary_metric]
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": seconds, "CPU seconds": spent, "score": 100 * score}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or name of a model")
    parser.add_argument("--train_file", required=True, help="sentences, one per line")
    parser.add_argument("--dev_file", required=True, help="scored pairs, such as STSB-dev.tsv")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args(argv)
    results = in_turn(
        args.rounds, {name: {"options": options, "args": args} for name, options in CANDIDATES.items()}, take
    )
    first = next(iter(CANDIDATES))
    rows = []
    for name, found in results.items():
        spent = [f"{median(found, key):,.1f}" for key in ("seconds", "CPU seconds")]
        rows.append([name, *spent, f"{1 / ratio(results, name, first):.2f}", f"{median(found, 'score'):.2f}"])
    print(f"{device_name()}; medians of {args.rounds} in turn\n")
    table(["", "seconds", "CPU seconds", "times", "dev"], *rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--way"]:
        train_by_st(*sys.argv[2:])
    else:
        main()
