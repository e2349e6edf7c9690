"""Semantic search with a trained model: encode the sentences of a file once, then look up queries."""

import argparse

from sentence_transformers import SentenceTransformer
from sentence_transformers.util import semantic_search

from st_simcse import SentenceReader

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", required=True, help="folder of a saved model, or name on the hub")
parser.add_argument("--corpus", required=True, help="one sentence a line")
parser.add_argument("queries", nargs="+")
args = parser.parse_args()

model = SentenceTransformer(args.model)
corpus = SentenceReader(drop_duplicates=True).get_dataset(args.corpus)["sentence"][:]
embeddings = model.encode(corpus, convert_to_tensor=True, show_progress_bar=True)
for query, hits in zip(
    args.queries, semantic_search(model.encode(args.queries, convert_to_tensor=True), embeddings, top_k=5), strict=True
):
    print(query)
    for hit in hits:
        print(f"  {hit['score']:.3f}  {corpus[hit['corpus_id']]}")
