"""``st-simcse index``: embeds a corpus and saves it as a folder that can be searched."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, ClassVar, Literal

from st_simcse.cli.corpus import CorpusArguments, EmbedArguments
from st_simcse.cli.libraries import import_libraries
from st_simcse.cli.parsing import check_outputs, parse

if TYPE_CHECKING:
    from st_simcse.search.neighbours import Index


@dataclass
class IndexArguments:
    model: str = field(metadata={"help": "Folder of a saved model, or its name on the hub."})
    output_dir: str = field(
        metadata={"help": "Folder of the index. Continues if an earlier run was interrupted there."}
    )
    add: bool = field(
        default=False, metadata={"help": "Add the corpus to the existing index, without sentences that it has already."}
    )


@dataclass
class NeighbourArguments:
    _argument_group_name: ClassVar[str] = "neighbours"

    index_type: Literal["exact", "ivf", "hnsw"] = field(
        default="exact",
        metadata={"help": 'How neighbours are found. ivf and hnsw need pip install "st_simcse[search]".'},
    )
    cells: int | None = field(
        default=None,
        metadata={"help": "ivf: number of cells. Defaults to about the square root of the number of sentences."},
    )
    probes: int | None = field(default=None, metadata={"help": "ivf: cells that a query searches. Defaults to 64."})
    links: int | None = field(
        default=None, metadata={"help": "hnsw: links of each sentence in the graph. Defaults to 32."}
    )
    breadth: int | None = field(
        default=None, metadata={"help": "hnsw: candidates kept during a search. Defaults to 64."}
    )

    def index(self) -> Index:
        """Returns the index that the options describe. Raises ValueError if an option belongs to another type."""
        from st_simcse.search.neighbours import INDEXES

        kind = INDEXES[self.index_type]
        given = {name: value for name, value in vars(self).items() if name != "index_type" and value is not None}
        if foreign := sorted(given.keys() - {option.name for option in fields(kind)}):
            raise ValueError(f"--{foreign[0]} is no option of --index_type {self.index_type}: leave it out")
        return kind(**given)


def run(argv: Sequence[str]) -> None:
    """Builds the index or adds to it, and prints the command that searches it.

    Raises:
        ValueError: If options do not go together, or :meth:`~st_simcse.Searcher.build_index` refuses the corpus.
        OSError: If the folder cannot be written. Whether it is a file is checked first.
    """
    example = "st-simcse index --model output --corpus sentences.txt --output_dir index --index_type hnsw"
    args, corpus, embed, neighbours = parse(
        "index", argv, IndexArguments, CorpusArguments, EmbedArguments, NeighbourArguments, example=example
    )
    if args.add and neighbours != NeighbourArguments():
        raise ValueError(
            "--add keeps the type of the index and its settings: leave the options of the group neighbours out"
        )
    corpus.check()
    check_outputs(args)
    embed.check()

    import_libraries()
    options = embed.options()
    index = neighbours.index()
    from st_simcse.search.searcher import Searcher

    if args.add:
        searcher = Searcher.load(args.output_dir, args.model, embed.precision)
        searcher.add_to_index(corpus.read(drop_duplicates=True), skip_known=True, **options)
    else:
        sentences = corpus.read(drop_duplicates=True)
        searcher = Searcher(args.model, embed.precision)
        searcher.build_index(sentences, args.output_dir, index, **options)
    print(
        f"{len(searcher.embeddings):,} sentences are in {args.output_dir}. Search them with\n"
        f'st-simcse search --model {shlex.quote(args.model)} --index {shlex.quote(args.output_dir)} --queries "..."'
    )
