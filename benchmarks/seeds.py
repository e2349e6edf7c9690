"""What do options do to quality? STS-B test Spearman over several seeds, from ST's recipe and from ours with each.

python benchmarks/seeds.py --model MODEL --corpus wiki_sentences.txt --test_file STSB-test.tsv
What does dropout do? The same with --dropout, --plot_file docs/dropout_mean.png and --sentences 2560.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
from typing import Any

import matplotlib.pyplot as plt
import torch
from datasets import Dataset, disable_progress_bars
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
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
    SimCSETrainer,
    SimilarityThreshold,
    UnsupSimCSELoss,
    build_model,
    load_sts,
)
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
    parser.add_argument("--sentences", type=int, default=-1, help="only so many, drawn at random")
    args = parser.parse_args()
    disable_progress_bars()
    logging.disable(logging.WARNING)
    evaluator = load_sts(args.test_file, name="test")
    dataset = SentenceReader().get_dataset(args.corpus).shuffle(seed=0)
    sentences = dataset["sentence"][: args.sentences if args.sentences > 0 else None]
    print("| recipe |" + "".join(f" seed {seed} |" for seed in args.seeds) + " mean | spread |")
    print("|" + " --- |" * (len(args.seeds) + 3))
    results: dict[str, list[float]] = {}
    for recipe in args.recipes:
        scores = results[recipe] = [
            100 * train(recipe, args.model, args.pooling, args.head, sentences, seed, evaluator) for seed in args.seeds
        ]
        cells = [recipe, *(f"{score:.2f}" for score in scores), f"{statistics.mean(scores):.2f}"]
        print(f"| {' | '.join(cells)} | {spread(scores):.2f} |", flush=True)
    if args.plot_file:
        title = f"{args.pooling} pooling{' and a head' if args.head else ''}, {len(sentences)} sentences"
        plot({name: scores for name, scores in results.items() if name in DROPOUTS}, title, args.plot_file)


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


def train(
    recipe: str,
    model_name: str,
    pooling: str,
    head: bool,
    sentences: list[str],
    seed: int,
    evaluator: EmbeddingSimilarityEvaluator,
) -> float:
    set_seed(seed)
    model = build_model(model_name, pooling=pooling, max_seq_length=32, dropout=DROPOUTS.get(recipe))
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
            batch_sampler=LengthGroupedBatchSampler if recipe == "grouped" else "batch_sampler",
        )
        if ours:
            loss = UnsupSimCSELoss(model, projection_head=head and recipe != "matryoshka", **RECIPES[recipe])
        else:
            loss = MultipleNegativesRankingLoss(model)
        if recipe == "matryoshka":
            width = model.get_embedding_dimension()
            loss = MatryoshkaLoss(model, loss, [width, width // 2, width // 4, width // 8])
        columns = {"sentence": sentences} if ours else {"a": sentences, "b": sentences}
        trainer = SimCSETrainer if ours else SentenceTransformerTrainer
        trainer(model=model, args=arguments, train_dataset=Dataset.from_dict(columns), loss=loss).train()
    return evaluator(model)["test_spearman_cosine"]


if __name__ == "__main__":
    main()
