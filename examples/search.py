"""Semantic search with a trained model: encodes the sentences of a file once, then finds the nearest to each query."""

import argparse

from st_simcse import Searcher

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", required=True, help="folder of a saved model, or name on the hub")
parser.add_argument("--corpus", required=True, help="text file with one sentence per line")
parser.add_argument("--index", help="folder that keeps the embeddings for the next run")
parser.add_argument("queries", nargs="+")
args = parser.parse_args()

searcher = Searcher(args.model)
searcher.build_index(args.corpus, args.index)
for query, hits in zip(args.queries, searcher.search(args.queries, top_k=5), strict=True):
    print(query)
    for hit in hits:
        print(f"  {hit['score']:.3f}  {hit['text']}")
