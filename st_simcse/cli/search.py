"""``st-simcse search``: finds the sentences of an index that are most similar to queries."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from st_simcse.cli.files import FileArguments, check_has_file, file_flags, file_options
from st_simcse.cli.libraries import import_libraries
from st_simcse.cli.output import printable
from st_simcse.cli.parsing import PRECISION, Precision, check_inputs, check_positive, named_options, parse

QUERIES_AT_ONCE = 1_000


@dataclass
class SearchArguments:
    model: str = field(metadata={"help": "Model that made the index: its folder, or its name on the hub."})
    index: str = field(metadata={"help": "Folder made by st-simcse index."})
    queries: list[str] | None = field(default=None, metadata={"help": "One or more texts to search for."})
    query_file: str | None = field(
        default=None,
        metadata={"help": "File of queries, instead of --queries. Takes the formats of st-simcse index --corpus."},
    )
    top_k: int = field(default=5, metadata={"help": "Maximum number of sentences to show for each query."})
    threshold: float | None = field(
        default=None, metadata={"help": "Lowest cosine similarity to show. Shows any if not given."}
    )
    precision: Precision = PRECISION
    json: bool = field(
        default=False, metadata={"help": "Print one JSON object for each query, with the keys query and hits."}
    )


def run(argv: Sequence[str]) -> None:
    """Prints the hits of each query.

    Raises:
        ValueError: If options do not go together, or :meth:`~st_simcse.Searcher.load` refuses the index or the model.
    """
    example = 'st-simcse search --model output --index index --queries "A man plays a guitar."'
    args, file = parse("search", argv, SearchArguments, FileArguments, example=example)
    check_positive(args, "top_k")
    if (args.queries is None) == (args.query_file is None):
        raise ValueError("pass either --queries with texts, or --query_file with a file of them")
    check_has_file(vars(file), "", "--query_file", has_file=args.query_file is not None)
    check_inputs(args)

    import_libraries()
    from st_simcse.data.readers import SentenceReader
    from st_simcse.search.searcher import Searcher

    queries = args.queries
    if queries is None:
        with named_options(**file_flags(vars(file))):
            queries = list(SentenceReader(**file_options(vars(file))).get_dataset(args.query_file)["sentence"])
    searcher = Searcher.load(args.index, args.model, args.precision)
    nothing = "  (nothing found)" if args.threshold is None else f"  (nothing above {args.threshold:g})"
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        some = queries[start : start + QUERIES_AT_ONCE]
        for query, hits in zip(some, searcher.search(some, args.top_k, args.threshold), strict=True):
            if args.json:
                print(printable(json.dumps({"query": query, "hits": hits}, ensure_ascii=False)))
            else:
                found = [f"  {hit['score']:.3f}  {hit['text']}" for hit in hits]
                lines = [query, *(found or [nothing])]
                print("\n".join(map(printable, lines)))
