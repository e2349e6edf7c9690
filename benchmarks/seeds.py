"""What do options do to quality? STS-B test Spearman over several seeds, from ST's recipe and from ours with each.

python benchmarks/seeds.py --model MODEL --corpus wiki_sentences.txt --test_file STSB-test.tsv
What does dropout do? The same with --dropout, --plot_file docs/dropout_mean.png and --sentences 2560.

Beside it the seconds that training took (on a CPU those of all threads together) and its peak memory beyond the model,
each run in a process of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import multiprocessing
import statistics
import tempfile
import time
from typing import Any

import matplotlib.pyplot as plt
import torch
from datasets import Dataset, disable_progress_bars
from measure import peak, reset_peak
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss, MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Dropout
from transformers import set_seed

from st_simcse import (
    DropoutFreeNegatives,
    FocalMargin,
    LengthGroupedBatchSampler,
    MaskedLanguageModel,
    MomentumQueue,
    SentenceReader,
    SharedLayers,
    SimCSETrainer,
    SimilarityThreshold,
    UnsupSimCSELoss,
    build_model,
    load_sts,
    sts_evaluators,
)
from st_simcse.evaluation import sts_scores
from st_simcse.trainer import computes_in_bf16

# Arguments of the loss; what is no option of it is treated by name in train().
RECIPES: dict[str, dict[str, Any]] = {
    "st": {},
    "ours": {},
    "grouped": {},
    "symmetric": {"symmetric": True},
    "threshold": {"options": [SimilarityThreshold(0.9)]},
    "mlm": {"options": [MaskedLanguageModel(0.1)]},
    "queue": {"options": [MomentumQueue(160)]},
    "focal": {"options": [FocalMargin(0.2)]},
    "dropout_free": {"options": [DropoutFreeNegatives()]},
    "matryoshka": {},
    "shared_quarter": {"options": [SharedLayers(0.25)]},
    "shared_half": {"options": [SharedLayers(0.5)]},
    "shared_three_quarters": {"options": [SharedLayers(0.75)]},
    "fast": {"options": [SharedLayers(0.75)]},  # grouped too
}
# The dropout of the transformer; the module's is behind a pooling, for a transformer without any.
DROPOUTS = {f"dropout_{dropout}": dropout for dropout in (0.05, 0.1, 0.2, 0.3)} | {"dropout_module": 0.0}
MODULE_DROPOUT = 0.1
RECIPES |= {name: {} for name in DROPOUTS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--test_file", required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--pooling", default="mean")
    parser.add_argument("--head", action="store_true", help="with a projection head (not for st and matryoshka)")
    others = [recipe for recipe in RECIPES if recipe not in DROPOUTS]
    recipes = parser.add_mutually_exclusive_group()
    recipes.add_argument("--recipes", nargs="+", choices=RECIPES, default=others)
    recipes.add_argument("--dropout", action="store_const", const=list(DROPOUTS), dest="recipes")
    parser.add_argument("--plot_file", help="draw the dropouts among the recipes as a curve")
    parser.add_argument("--speed_plot_file", help="draw the recipes' scores against their speed")
    parser.add_argument("--sts_dir", help="also the average of the seven STS tasks in this folder")
    parser.add_argument("--sentences", type=int, default=-1, help="only so many, drawn at random")
    args = parser.parse_args()
    disable_progress_bars()
    dataset = SentenceReader().get_dataset(args.corpus).shuffle(seed=0)
    sentences = dataset["sentence"][: args.sentences if args.sentences > 0 else None]
    measures = ["STS-B", *(["STS avg."] if args.sts_dir else [])]
    header = ["recipe", *(f"seed {seed}" for seed in args.seeds), *(f"{m} | spread" for m in measures)]
    print(f"| {' | '.join(header)} | seconds | MiB |")
    print("|" + " --- |" * (len(args.seeds) + 2 * len(measures) + 3))
    results: dict[str, dict[str, list[float]]] = {}
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for recipe in args.recipes:
            runs = [pool.apply(train, (recipe, args, sentences, seed)) for seed in args.seeds]
            result = results[recipe] = {name: [run[name] for run in runs] for name in runs[0]}
            cells = [recipe, *(f"{score:.2f}" for score in result["STS-B"])]
            cells += [f"{statistics.mean(result[m]):.2f} | {spread(result[m]):.2f}" for m in measures]
            cells += [f"{statistics.mean(result[name]):,.0f}" for name in ("seconds", "MiB")]
            print(f"| {' | '.join(cells)} |", flush=True)
    title = f"{args.pooling} pooling{' and a head' if args.head else ''}, {len(sentences)} sentences"
    if args.plot_file:
        scores = {name: result["STS-B"] for name, result in results.items() if name in DROPOUTS}
        plot(scores, title, args.plot_file)
    if args.speed_plot_file:
        plot_speed(results, measures, title, args.speed_plot_file)


def spread(scores: list[float]) -> float:
    return statistics.stdev(scores) if len(scores) > 1 else 0.0


def plot(results: dict[str, list[float]], title: str, path: str) -> None:
    """Mean and spread by the dropout."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    module = results.pop("dropout_module", None)
    curves = {"of the transformer": ("o-", {DROPOUTS[name]: scores for name, scores in results.items()})}
    if module:
        curves["Dropout module behind the pooling"] = ("s", {MODULE_DROPOUT: module})
    for label, (style, points) in curves.items():
        means, spreads = map(statistics.mean, points.values()), map(spread, points.values())
        axes.errorbar(list(points), list(means), list(spreads), fmt=style, capsize=4, label=label)
    axes.set(xlabel="dropout in training", ylabel="Spearman x 100, STS-B test", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def plot_speed(results: dict[str, dict[str, list[float]]], measures: list[str], title: str, path: str) -> None:
    """Mean and spread by the seconds of training, a panel a measure."""
    figure, panels = plt.subplots(len(measures), figsize=(6, 4 * len(measures)), layout="constrained", squeeze=False)
    seconds = [statistics.mean(result["seconds"]) for result in results.values()]
    for axes, measure in zip(panels.flat, measures, strict=True):
        means, spreads = ([f(result[measure]) for result in results.values()] for f in (statistics.mean, spread))
        axes.errorbar(seconds, means, spreads, fmt="o-", capsize=4)
        for number, (recipe, *place) in enumerate(zip(results, seconds, means, strict=True)):
            # Above and below in turn, since neighbours would overlap.
            axes.annotate(recipe, place, xytext=(4, -12 if number % 2 else 6), textcoords="offset points")
        axes.set(
            xlabel="seconds of training, on a CPU in all threads", ylabel=f"Spearman x 100, {measure}", title=title
        )
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def train(recipe: str, args: argparse.Namespace, sentences: list[str], seed: int) -> dict[str, float]:
    """The scores, the seconds of training and its peak memory beyond the model."""
    disable_progress_bars()
    logging.disable(logging.WARNING)
    set_seed(seed)
    model = build_model(args.model, pooling=args.pooling, max_seq_length=32, dropout=DROPOUTS.get(recipe))
    if recipe == "dropout_module":
        model.insert(2, Dropout(MODULE_DROPOUT))
    use_cpu = not torch.accelerator.is_available()
    ours = recipe != "st"
    with tempfile.TemporaryDirectory() as folder:
        arguments = SentenceTransformerTrainingArguments(
            folder,
            num_train_epochs=1,
            per_device_train_batch_size=64,
            learning_rate=3e-5,
            bf16=computes_in_bf16(use_cpu),
            use_cpu=use_cpu,
            seed=seed,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_strategy="no",
            batch_sampler=LengthGroupedBatchSampler if recipe in ("grouped", "fast") else "batch_sampler",
        )
        if ours:
            loss = UnsupSimCSELoss(model, projection_head=args.head and recipe != "matryoshka", **RECIPES[recipe])
        else:
            loss = MultipleNegativesRankingLoss(model)
        if recipe == "matryoshka":
            width = model.get_embedding_dimension()
            loss = MatryoshkaLoss(model, loss, [width, width // 2, width // 4, width // 8])
        columns = {"sentence": sentences} if ours else {"a": sentences, "b": sentences}
        trainer = SimCSETrainer if ours else SentenceTransformerTrainer
        run = trainer(model=model, args=arguments, train_dataset=Dataset.from_dict(columns), loss=loss)
        # On a CPU other work beside it does not count.
        clock = time.process_time if use_cpu else time.perf_counter
        before, began = reset_peak(), clock()
        with contextlib.redirect_stdout(None):
            run.train()
        results = {"seconds": clock() - began, "MiB": (peak() - before) / 2**20}
    results["STS-B"] = 100 * load_sts(args.test_file, name="test")(model)["test_spearman_cosine"]
    if args.sts_dir:
        results["STS avg."] = sts_scores(sts_evaluators(args.sts_dir)(model))["Avg."]
    return results


if __name__ == "__main__":
    main()
