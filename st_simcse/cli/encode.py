"""``st-simcse encode``: saves the embeddings of a file or data set as a file."""

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
        metadata={
            "help": "File for the embeddings: .npy, .safetensors (a tensor named embeddings) or .parquet (the columns "
            "sentence and embedding)."
        }
    )


def run(argv: Sequence[str]) -> None:
    """Writes one embedding of unit length for each sentence, in the order of the file.

    After an interruption, the same command continues.

    Raises:
        ValueError: If the name of the output file has another ending, or the reader or
            :meth:`~st_simcse.Searcher.build_index` refuses the corpus.
        OSError: If the output file cannot be written. This is checked first.
    """
    example = "st-simcse encode --model output --corpus sentences.txt --output_file embeddings.npy"
    args, corpus, embed = parse("encode", argv, EncodeArguments, CorpusArguments, EmbedArguments, example=example)
    output = Path(args.output_file)
    if output.suffix not in (".npy", ".safetensors", ".parquet"):
        raise ValueError(f"--output_file {output}: expected a name that ends in .npy, .safetensors or .parquet")
    corpus.check()
    check_outputs(args)
    embed.check()
    import_libraries()
    options = embed.options()
    sentences = corpus.read(drop_duplicates=False)

    from st_simcse.search.searcher import Searcher

    searcher = Searcher(args.model, embed.precision)
    folder, done = (output.with_name(f"{output.name}.{ending}") for ending in ("part", "part-done"))
    shutil.rmtree(done, ignore_errors=True)  # left by a run that was killed at its very end
    searcher.build_index(sentences, folder, **options)
    part = folder / f"written{output.suffix}"
    try:
        _write(searcher, part)
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        raise OSError(
            f"cannot write {output} ({error}). The embeddings are kept in {folder}; run the same command again to "
            "continue from them"
        ) from error
    os.replace(part, output)
    folder.rename(done)  # if it were half deleted under its own name, it would block the next run
    shutil.rmtree(done)
    rows, width = searcher.embeddings.shape
    print(f"{rows:,} embeddings of {width} dimensions are in {output}")


def _write(searcher: Searcher, path: Path) -> None:
    """Writes the embeddings to ``path``, in parts that fit into memory."""
    import numpy as np
    import pyarrow
    import torch
    from pyarrow.parquet import ParquetWriter
    from safetensors.torch import save_file

    embeddings, sentences = searcher.embeddings, searcher.sentences
    assert sentences is not None  # build_index has set them
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
