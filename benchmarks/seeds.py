"""What do options do to quality? STS-B test Spearman over several seeds, from ST's recipe and from ours with each.

python benchmarks/seeds.py --model MODEL --corpus wiki_sentences.txt --test_file STSB-test.tsv
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss, MultipleNegativesRankingLoss
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--test_file", required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--pooling", default="mean")
    parser.add_argument("--head", action="store_true", help="with a projection head (not for st and matryoshka)")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--sentences", type=int, default=-1, help="only so many, drawn at random")
    args = parser.parse_args()
    disable_progress_bars()
    logging.disable(logging.WARNING)
    evaluator = load_sts(args.test_file, name="test")
    dataset = SentenceReader().get_dataset(args.corpus).shuffle(seed=0)
    sentences = dataset["sentence"][: args.sentences if args.sentences > 0 else None]
    print("| recipe |" + "".join(f" seed {seed} |" for seed in args.seeds) + " mean | spread |")
    print("|" + " --- |" * (len(args.seeds) + 3))
    for recipe in args.recipes:
        scores = [
            100 * train(recipe, args.model, args.pooling, args.head, sentences, seed, evaluator) for seed in args.seeds
        ]
        cells = [recipe, *(f"{score:.2f}" for score in scores), f"{statistics.mean(scores):.2f}"]
        print(f"| {' | '.join(cells)} | {statistics.stdev(scores):.2f} |", flush=True)


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
    model = build_model(model_name, pooling=pooling, max_seq_length=32)
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
