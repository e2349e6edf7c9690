"""``st-simcse plot``: draws a map of a corpus, and the similarities of positives and negatives, for each model."""

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
    model: list[str] = field(
        metadata={"help": "Models to draw, such as one before and after training: folders or names on the hub."}
    )
    map_file: str | None = field(
        default=None, metadata={"help": "File for a map of --corpus with one dot per text (.png, .svg or .pdf)."}
    )
    corpus: str | None = field(
        default=None, metadata={"help": "Texts for the map: a .txt file, or a table with a column sentence or text."}
    )
    class_column: str | None = field(
        default=None, metadata={"help": "Column that colours the map, instead of clusters. Needs --column."}
    )
    clusters: int | None = field(
        default=None,
        metadata={
            "help": "Number of k-means clusters of the last model's embeddings to colour. Defaults to 8, or fewer for "
            "fewer texts."
        },
    )
    projection: Literal["pca", "umap"] = field(
        default="pca",
        metadata={"help": "Projection of the map: principal components, or UMAP (needs pip install umap-learn)."},
    )
    histogram_file: str | None = field(
        default=None,
        metadata={"help": "File for a histogram of the similarities of positives and negatives in --pairs_file."},
    )
    pairs_file: str | None = field(
        default=None,
        metadata={
            "help": "Pairs or triplets, as for train, with columns such as sent0, sent1 and hard_neg, or anchor, "
            "positive and negative."
        },
    )
    max_texts: int = field(
        default=5000, metadata={"help": "Maximum number of rows. From longer files, rows are drawn at random."}
    )
    batch_size: int = field(default=64, metadata={"help": "Sentences per forward pass."})


PairArguments = table_arguments(
    "pair_", "Columns of --pairs_file, if they have other names: anchor, positive and optionally hard negative."
)


def run(argv: Sequence[str]) -> None:
    """Draws the map and the histogram, as far as the options ask for them.

    Raises:
        ValueError: If options do not go together or the rows do not fit them, which is checked first, or if a model
            gives embeddings that are not finite.
        OSError: If a file cannot be read or written, which is checked first, or if a model cannot be loaded.
    """
    example = "st-simcse plot --model bert-base-uncased output --corpus sentences.txt --map_file map.png"
    args, file, pair_file = parse("plot", argv, PlotArguments, FileArguments, PairArguments, example=example)
    _check(args, file)
    check_has_file(vars(pair_file), "pair_", "--pairs_file", has_file=args.pairs_file is not None)
    if pair_file.pair_columns is not None and len(pair_file.pair_columns) not in (2, 3):
        raise ValueError("--pair_columns takes two or three columns: anchor, positive and optionally hard negative")
    check_inputs(args)

    import_libraries()
    from st_simcse.models.checkpoints import load_model
    from st_simcse.models.fast_encode import fast_encode

    texts, classes = _corpus(args, file) if args.map_file else ([], None)
    clusters = _clusters(texts, args.clusters)
    pairs = _pairs(args, pair_file) if args.histogram_file else []
    maps, similarities = {}, {}
    for name, title in zip(args.model, _titles(args.model), strict=True):
        model = fast_encode(load_model(name))

        def embed(column: list[str], model: Any = model) -> Any:
            return model.encode(column, batch_size=args.batch_size, show_progress_bar=None)

        if args.map_file:
            maps[title] = embed(texts)
        if args.histogram_file:
            similarities[title] = [embed(column) for column in pairs]
    if args.map_file:
        classes = classes or name_clusters(next(reversed(maps.values())), texts, clusters)
        plot_map(maps, classes, args.map_file, args.projection)
    if args.histogram_file:
        plot_similarities(similarities, pairs, args.histogram_file)


def _clusters(texts: list[str], clusters: int | None) -> int:
    """Returns the number of clusters, by default 8 or the number of different texts if that is smaller."""
    different = len(set(texts))
    if clusters is not None and clusters > different:
        raise ValueError(f"--clusters {clusters} is too many for {different} different texts: pass at most {different}")
    return clusters or min(8, different)


def _check(args: PlotArguments, file: FileArguments) -> None:
    check_positive(args, "clusters", "max_texts", "batch_size")
    for picture, data in (("map_file", "corpus"), ("histogram_file", "pairs_file")):
        if (getattr(args, picture) is None) != (getattr(args, data) is None):
            raise ValueError(f"--{data} and --{picture} go together: pass both, or neither")
    if args.map_file is None and args.histogram_file is None:
        raise ValueError(
            "there is nothing to draw: pass --corpus and --map_file, --pairs_file and --histogram_file, or all four"
        )
    if len(set(args.model)) < len(args.model):
        raise ValueError("--model names a model twice: pass each model once")
    if args.class_column is not None and file.column is None:
        raise ValueError("--class_column needs --column with the column of the texts: pass both")
    if args.class_column is not None and args.clusters is not None:
        raise ValueError("--class_column and --clusters both choose the colours: pass one of them")
    if args.clusters is not None and args.corpus is None:
        raise ValueError("--clusters needs --corpus: pass both, or neither")
    check_has_file(vars(file), "", "--corpus", has_file=args.corpus is not None)
    check_outputs(args)
    check_projection(args.projection)


def _corpus(args: PlotArguments, file: FileArguments) -> tuple[list[str], list[str] | None]:
    """Returns the texts, and their classes if ``--class_column`` was passed."""
    from st_simcse.data.readers import SentenceReader, TripletReader

    options, flags = file_options(vars(file)), file_flags(vars(file))
    if args.class_column is None:
        with named_options(**flags):
            (texts,) = _columns(SentenceReader(**options), args.corpus, args.max_texts)
        return texts, None
    # The reader of pairs makes sure that neither cell is empty.
    both = [options.pop("column"), parse_column(args.class_column)]
    with named_options(**flags, columns="--column --class_column"):
        texts, classes = _columns(TripletReader(columns=both, **options), args.corpus, args.max_texts)
    if (found := len(set(classes))) > MAX_CLASSES:
        raise ValueError(
            f"--class_column {args.class_column} has {found} classes, but only {MAX_CLASSES} can be coloured: pass a "
            "column with fewer classes"
        )
    return texts, classes


def _pairs(args: PlotArguments, file: Any) -> list[list[str]]:
    from st_simcse.data.readers import TripletReader

    with named_options(**file_flags(vars(file), "pair_")):
        columns = _columns(TripletReader(**file_options(vars(file), "pair_")), args.pairs_file, args.max_texts)
    if len(columns) > 3:
        raise ValueError(
            f"{args.pairs_file}: the rows have {len(columns) - 2} hard negatives, but the histogram has one: keep one "
            "per row, or pass --pair_columns with the columns of anchors and positives only"
        )
    return columns


def _columns(reader: Any, filename: str | None, max_rows: int) -> list[list[str]]:
    """Returns the columns of the file. From a longer file it draws rows at random, and prints that it does."""
    rows = reader.get_dataset(filename)
    if len(rows) > max_rows:
        print(f"{filename}: {max_rows:,} of {len(rows):,} rows were drawn at random (--max_texts)")
        rows = rows.select(sorted(random.Random(0).sample(range(len(rows)), max_rows)))
    return [rows[name][:] for name in rows.column_names]


def _titles(models: Sequence[str]) -> list[str]:
    """Returns the last parts of the names if all differ, or else the whole names."""
    last = [Path(name).name for name in models]
    return last if len(set(last)) == len(last) else list(models)
