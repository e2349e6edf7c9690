"""``st-simcse encode``: embeddings of a file or data set, as a file."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from st_simcse.cli.corpus import CorpusArguments, EmbedArguments
from st_simcse.cli.libraries import import_libraries
from st_simcse.cli.parsing import check_outputs, parse

if TYPE_CHECKING:
    from st_simcse.search.searcher import Searcher


@dataclass
class EncodeArguments:
    model: str = field(metadata={"help": "Folder of a saved model, or its name on the hub."})
    output_file: str = field(
        metadata={"help": ".npy, .safetensors (the tensor embeddings) or .parquet (columns sentence and embedding)."}
    )


def run(argv: Sequence[str]) -> None:
    """Write a row a sentence, of unit length, in the file's order; interrupted, the same command goes on.

    Raises:
        ValueError: for another ending, and as the reader and :meth:`~st_simcse.Searcher.build_index`.
        OSError: at once for a file that cannot be written.
    """
    example = "st-simcse encode --model output --corpus sentences.txt --output_file embeddings.npy"
    args, corpus, embed = parse("encode", argv, EncodeArguments, CorpusArguments, EmbedArguments, example=example)
    output = Path(args.output_file)
    if output.suffix not in (".npy", ".safetensors", ".parquet"):
        raise ValueError(f"--output_file {output}: expected a name that ends in .npy, .safetensors or .parquet")
    corpus.check()
    check_outputs(args)
    options = embed.options()
    import_libraries()
    sentences = corpus.read(drop_duplicates=False)

    from st_simcse.search.searcher import Searcher

    searcher = Searcher(args.model, embed.precision)
    folder, done = (output.with_name(f"{output.name}.{ending}") for ending in ("part", "part-done"))
    shutil.rmtree(done, ignore_errors=True)  # what a run that was killed at its very end has left
    searcher.build_index(sentences, folder, **options)
    part = folder / f"written{output.suffix}"
    try:
        _write(searcher, part)
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        raise OSError(
            f"cannot write {output} ({error}): the embeddings are in {folder}, and the same command goes on with them"
        ) from error
    os.replace(part, output)
    folder.rename(done)  # half deleted under its own name it would be in the way of the next run
    shutil.rmtree(done)
    rows, width = searcher.embeddings.shape
    print(f"{rows:,} embeddings of {width} dimensions are in {output}")


def _write(searcher: Searcher, path: Path) -> None:
    """A part of the embeddings at a time in memory."""
    import numpy as np
    import pyarrow
    import torch
    from pyarrow.parquet import ParquetWriter
    from safetensors.torch import save_file

    embeddings, sentences = searcher.embeddings, searcher.sentences
    assert sentences is not None  # they have been embedded
    if path.suffix == ".npy":
        np.save(path, embeddings)
    elif path.suffix == ".safetensors":
        save_file({"embeddings": torch.from_numpy(embeddings)}, path)
    else:
        width = embeddings.shape[1]
        schema = pyarrow.schema({"sentence": pyarrow.string(), "embedding": pyarrow.list_(pyarrow.float32(), width)})
        with ParquetWriter(path, schema) as writer:
            for start in range(0, len(embeddings), 10_000):
                rows = slice(start, start + 10_000)
                vectors = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(embeddings[rows].reshape(-1)), width)
                writer.write_batch(pyarrow.record_batch([list(sentences[rows]["sentence"]), vectors], schema=schema))
