"""``st-simcse plot``: a map of a corpus, and the similarities of positives and negatives, a panel a model."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from st_simcse.cli.files import FileArguments, check_has_file, file_flags, file_options, table_arguments
from st_simcse.cli.libraries import import_libraries
from st_simcse.cli.parsing import check_inputs, check_outputs, check_positive, named_options, parse, parse_column
from st_simcse.plots import MAX_CLASSES, check_projection, name_clusters, plot_map, plot_similarities


@dataclass
class PlotArguments:
    model: list[str] = field(metadata={"help": "Models, such as one before and after training: folders or hub names."})
    map_file: str | None = field(
        default=None, metadata={"help": "Draw a map of --corpus, a dot a text, here (.png, .svg, .pdf)."}
    )
    corpus: str | None = field(
        default=None, metadata={"help": "Texts for the map: .txt, or a table with the column sentence or text."}
    )
    class_column: str | None = field(
        default=None, metadata={"help": "Colour the map by this column (then --column is needed), not by clusters."}
    )
    clusters: int | None = field(
        default=None, metadata={"help": "Colour so many clusters (k-means) of the last model's embeddings; 8 if none."}
    )
    projection: Literal["pca", "umap"] = field(
        default="pca", metadata={"help": "The map shows principal components, or UMAP's (pip install umap-learn)."}
    )
    histogram_file: str | None = field(
        default=None, metadata={"help": "Draw the similarities of the positives and negatives of --pairs_file here."}
    )
    pairs_file: str | None = field(
        default=None,
        metadata={"help": "Pairs or triplets: sent0, sent1(, hard_neg) or anchor, positive(, negative), as for train."},
    )
    max_texts: int = field(default=5000, metadata={"help": "Of longer files so many rows, drawn at random."})
    batch_size: int = field(default=64, metadata={"help": "Sentences a forward pass."})


PairArguments = table_arguments("pair_", "Of --pairs_file: anchor, positive and perhaps hard negative, if others.")


def run(argv: Sequence[str]) -> None:
    """Draw what is asked for.

    Raises:
        ValueError: at once for options and rows that do not fit; a model that gives embeddings that are not finite.
        OSError: at once for a file that cannot be read or written, and for a model that cannot be loaded.
    """
    example = "st-simcse plot --model bert-base-uncased output --corpus sentences.txt --map_file map.png"
    args, file, pair_file = parse("plot", argv, PlotArguments, FileArguments, PairArguments, example=example)
    _check(args, file)
    check_has_file(vars(pair_file), "pair_", "--pairs_file", has_file=args.pairs_file is not None)
    if pair_file.pair_columns is not None and len(pair_file.pair_columns) not in (2, 3):
        raise ValueError("--pair_columns are those of anchor, positive and perhaps hard negative")
    check_inputs(args)

    import_libraries()
    from st_simcse.models.checkpoints import load_model

    texts, classes = _corpus(args, file) if args.map_file else ([], None)
    pairs = _pairs(args, pair_file) if args.histogram_file else []
    maps, similarities = {}, {}
    for name, title in zip(args.model, _titles(args.model), strict=True):
        model = load_model(name)

        def embed(column: list[str], model: Any = model) -> Any:
            return model.encode(column, batch_size=args.batch_size, show_progress_bar=None)

        if args.map_file:
            maps[title] = embed(texts)
        if args.histogram_file:
            similarities[title] = [embed(column) for column in pairs]
    if args.map_file:
        classes = classes or name_clusters(next(reversed(maps.values())), texts, args.clusters or 8)
        plot_map(maps, classes, args.map_file, args.projection)
    if args.histogram_file:
        plot_similarities(similarities, pairs, args.histogram_file)


def _check(args: PlotArguments, file: FileArguments) -> None:
    check_positive(args, "clusters", "max_texts", "batch_size")
    for picture, data in (("map_file", "corpus"), ("histogram_file", "pairs_file")):
        if (getattr(args, picture) is None) != (getattr(args, data) is None):
            raise ValueError(f"--{data} and --{picture} go together: what to draw, and where to")
    if args.map_file is None and args.histogram_file is None:
        raise ValueError("nothing to draw: pass --corpus and --map_file, --pairs_file and --histogram_file, or all")
    if len(set(args.model)) < len(args.model):
        raise ValueError("--model names a model twice")
    if args.class_column is not None and file.column is None:
        raise ValueError("--class_column needs --column, the column of the texts")
    if args.class_column is not None and args.clusters is not None:
        raise ValueError("colours are those of --class_column or of --clusters, not both")
    if args.clusters is not None and args.corpus is None:
        raise ValueError("--clusters needs --corpus")
    check_has_file(vars(file), "", "--corpus", has_file=args.corpus is not None)
    check_outputs(args)
    check_projection(args.projection)


def _corpus(args: PlotArguments, file: FileArguments) -> tuple[list[str], list[str] | None]:
    """Texts, and their classes if there is a column of them."""
    from st_simcse.data.readers import SentenceReader, TripletReader

    options, flags = file_options(vars(file)), file_flags(vars(file))
    if args.class_column is None:
        with named_options(**flags):
            (texts,) = _columns(SentenceReader(**options), args.corpus, args.max_texts)
        return texts, None
    # A pair as any other: both cells have to be there.
    both = [options.pop("column"), parse_column(args.class_column)]
    with named_options(**flags, columns="--column --class_column"):
        texts, classes = _columns(TripletReader(columns=both, **options), args.corpus, args.max_texts)
    if (found := len(set(classes))) > MAX_CLASSES:
        raise ValueError(f"--class_column {args.class_column}: {found} classes, colours tell {MAX_CLASSES} apart")
    return texts, classes


def _pairs(args: PlotArguments, file: Any) -> list[list[str]]:
    from st_simcse.data.readers import TripletReader

    with named_options(**file_flags(vars(file), "pair_")):
        return _columns(TripletReader(**file_options(vars(file), "pair_")), args.pairs_file, args.max_texts)


def _columns(reader: Any, filename: str | None, max_rows: int) -> list[list[str]]:
    """The columns of the file, or of rows drawn from it, which is said."""
    rows = reader.get_dataset(filename)
    if len(rows) > max_rows:
        print(f"{filename}: {max_rows:,} of {len(rows):,} rows are drawn at random (--max_texts)")
        rows = rows.select(sorted(random.Random(0).sample(range(len(rows)), max_rows)))
    return [rows[name][:] for name in rows.column_names]


def _titles(models: Sequence[str]) -> list[str]:
    """The last parts of the names, if they tell the models apart."""
    last = [Path(name).name for name in models]
    return last if len(set(last)) == len(last) else list(models)
