"""Prints Spearman's correlation by the source of the pairs, which shows where dev and test sets differ.

python benchmarks/sources.py --model MODEL comparison/NAME/seed-0 --files STSB-dev.tsv STSB-test.tsv

The files have the columns subset, sentence1, sentence2 and score. --pooling and --max_seq_length apply to all models.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
from datasets import load_dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator

from st_simcse.evaluation import format_table
from st_simcse.models.checkpoints import load_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", required=True)
    parser.add_argument("--files", nargs="+", required=True)
    parser.add_argument("--pooling")
    parser.add_argument("--max_seq_length", type=int)
    args = parser.parse_args()
    for file in args.files:
        pairs = load_dataset("csv", data_files=file, sep="\t", quoting=3, split="train").to_pandas()
        rows = {}
        for name in args.model:
            model = load_model(name, args.pooling, args.max_seq_length)
            rows[name] = {
                f"{source} ({len(part)})": 100 * _correlation(model, part)
                for source, part in [*pairs.groupby("subset"), ("all", pairs)]
            }
        print(f"{format_table(rows, corner=Path(file).stem)}\n")


def _correlation(model: SentenceTransformer, pairs: pd.DataFrame) -> float:
    columns = (pairs[column].tolist() for column in ("sentence1", "sentence2", "score"))
    return EmbeddingSimilarityEvaluator(*columns, batch_size=64, show_progress_bar=False)(model)["spearman_cosine"]


if __name__ == "__main__":
    main()
