"""``st-simcse index``: a corpus, embedded and ready to be searched, as a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, ClassVar, Literal

from st_simcse.cli.corpus import CorpusArguments, EmbedArguments
from st_simcse.cli.libraries import import_libraries
from st_simcse.cli.parsing import parse

if TYPE_CHECKING:
    from st_simcse.search.neighbours import Index


@dataclass
class IndexArguments:
    model: str = field(metadata={"help": "Folder of a saved model, or its name on the hub."})
    output_dir: str = field(metadata={"help": "Where the index is kept; what was interrupted there goes on."})
    add: bool = field(default=False, metadata={"help": "Add the corpus to the index that is there."})


@dataclass
class NeighbourArguments:
    _argument_group_name: ClassVar[str] = "neighbours"

    index_type: Literal["exact", "ivf", "hnsw"] = field(
        default="exact", metadata={"help": 'How they are found; ivf and hnsw need pip install "st_simcse[search]".'}
    )
    cells: int | None = field(
        default=None, metadata={"help": "ivf: into how many the embeddings are put; about their square root if none."}
    )
    probes: int | None = field(default=None, metadata={"help": "ivf: the cells a query looks into; 64 if none."})
    links: int | None = field(default=None, metadata={"help": "hnsw: neighbours each is joined with; 32 if none."})
    breadth: int | None = field(default=None, metadata={"help": "hnsw: candidates a walk keeps; 64 if none."})

    def index(self) -> Index:
        """ValueError for an option of another type."""
        from st_simcse.search.neighbours import INDEXES

        kind = INDEXES[self.index_type]
        given = {name: value for name, value in vars(self).items() if name != "index_type" and value is not None}
        if foreign := sorted(given.keys() - {option.name for option in fields(kind)}):
            raise ValueError(f"--{foreign[0]} is no option of --index_type {self.index_type}: leave it out")
        return kind(**given)


def run(argv: Sequence[str]) -> None:
    """Build it, or add to it, and say how it is searched.

    Raises:
        ValueError: for options that do not fit, and as :meth:`~st_simcse.Searcher.build_index`.
    """
    example = "st-simcse index --model output --corpus sentences.txt --output_dir index --index_type hnsw"
    args, corpus, embed, neighbours = parse(
        "index", argv, IndexArguments, CorpusArguments, EmbedArguments, NeighbourArguments, example=example
    )
    if args.add and neighbours != NeighbourArguments():
        raise ValueError("--add keeps the way neighbours are found: leave the options of that out")
    corpus.check()
    options = embed.options()

    import_libraries()
    index = neighbours.index()
    from st_simcse.search.searcher import Searcher

    if args.add:
        searcher = Searcher.load(args.output_dir, args.model, embed.precision)
        searcher.add_to_index(corpus.read(drop_duplicates=True), **options)
    else:
        sentences = corpus.read(drop_duplicates=True)
        searcher = Searcher(args.model, embed.precision)
        searcher.build_index(sentences, args.output_dir, index, **options)
    print(
        f"{len(searcher.embeddings):,} sentences are in {args.output_dir}; search them with\n"
        f'st-simcse search --model {args.model} --index {args.output_dir} --queries "..."'
    )
