"""Does a faster recipe cost quality? STS-B test Spearman over several seeds, from ST's recipe and from ours.

python benchmarks/seeds.py --model MODEL --corpus wiki_sentences.txt --test_file STSB-test.tsv
Takes about two minutes a run on two cores.
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
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from transformers import set_seed

from st_simcse import (
    LengthGroupedBatchSampler,
    SentenceReader,
    SimCSETrainer,
    UnsupSimCSELoss,
    build_model,
    load_sts,
)

RECIPES = {
    "ST: MultipleNegativesRankingLoss, doubled column": {"ours": False},
    "ours": {"ours": True},
    "ours, batches grouped by length": {"ours": True, "batch_sampler": LengthGroupedBatchSampler},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--test_file", required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--pooling", default="mean")
    args = parser.parse_args()
    disable_progress_bars()
    logging.disable(logging.WARNING)
    evaluator = load_sts(args.test_file, name="test")
    sentences = SentenceReader().get_dataset(args.corpus)["sentence"][:]
    print("| recipe |" + "".join(f" seed {seed} |" for seed in args.seeds) + " mean | spread |")
    print("|" + " --- |" * (len(args.seeds) + 3))
    for name, options in RECIPES.items():
        scores = [100 * train(args.model, args.pooling, sentences, seed, evaluator, **options) for seed in args.seeds]
        cells = [name, *(f"{score:.2f}" for score in scores), f"{statistics.mean(scores):.2f}"]
        print(f"| {' | '.join(cells)} | {statistics.stdev(scores):.2f} |", flush=True)


def train(
    model_name: str,
    pooling: str,
    sentences: list[str],
    seed: int,
    evaluator: EmbeddingSimilarityEvaluator,
    ours: bool,
    **options: Any,
) -> float:
    set_seed(seed)
    model = build_model(model_name, pooling=pooling)
    with tempfile.TemporaryDirectory() as folder:
        arguments = SentenceTransformerTrainingArguments(
            folder,
            num_train_epochs=1,
            per_device_train_batch_size=64,
            learning_rate=3e-5,
            bf16=True,
            use_cpu=not torch.accelerator.is_available(),
            seed=seed,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_strategy="no",
            **options,
        )
        trainer = SimCSETrainer if ours else SentenceTransformerTrainer
        loss = UnsupSimCSELoss(model) if ours else MultipleNegativesRankingLoss(model)
        columns = {"sentence": sentences} if ours else {"a": sentences, "b": sentences}
        trainer(model=model, args=arguments, train_dataset=Dataset.from_dict(columns), loss=loss).train()
    return evaluator(model)["test_spearman_cosine"]


if __name__ == "__main__":
    main()
