"""An index on the disk: sentences, their embeddings, and what describes them, which grow and are never torn."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import sentence_transformers
import transformers
from datasets import Dataset, concatenate_datasets, load_from_disk
from filelock import FileLock

from st_simcse.neighbours import INDEXES, Index, Neighbours

__all__ = ["IndexFolder"]


class IndexFolder:
    """An index on the disk. At every moment it can be gone on from what is written.

    ``index.json`` describes it, with the fingerprint of the model that made it; ``texts/0``, ``texts/1``, ... are what
    was added, as ``Dataset.save_to_disk`` writes it; the header of ``embeddings.npy`` counts the rows that are whole.
    """

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        if path is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="st_simcse_")  # deleted when nobody uses it any more
            path = self._temporary.name
        self.path = Path(path)
        self.description: dict[str, Any] = {}
        if self.exists():
            self.read()

    def exists(self) -> bool:
        return (self.path / "index.json").exists()

    def lock(self) -> FileLock:
        """For whoever writes: a second one waits."""
        self.path.mkdir(parents=True, exist_ok=True)
        return FileLock(self.path / "index.lock")

    def read(self) -> None:
        """What describes it, as it is on the disk now; ValueError if that is damaged."""
        try:
            self.description = json.loads((self.path / "index.json").read_bytes())
        except ValueError as error:
            raise ValueError(
                f"{self.path / 'index.json'} is no description of an index ({error}): delete the "
                "folder, and build the index again"
            ) from None

    def create(self, made_by: str) -> None:
        """An empty index of the model with this fingerprint; FileExistsError where something else lies."""
        if foreign := sorted({path.name for path in self.path.iterdir()} - {"index.lock", "index.tmp"}):
            raise FileExistsError(f"{self.path} holds no index but {foreign[0]!r}: choose a new folder")
        self.describe(model=made_by, versions=_versions(), texts=[])

    def choose(self, index: Index) -> None:
        """How neighbours are found from now on."""
        self.describe(index={"kind": index.name, **asdict(index)})

    def neighbours(self) -> Neighbours:
        options = dict(self.description["index"])
        return INDEXES[options.pop("kind")](**options).open(self.embeddings(), self.path)

    def describe(self, **changes: Any) -> None:
        """Written whole or not at all."""
        self.description |= changes
        part = self.path / "index.tmp"
        part.write_text(json.dumps(self.description, indent=1), encoding="utf-8")
        os.replace(part, self.path / "index.json")

    def check_model(self, fingerprint: str) -> None:
        """ValueError if a model with another fingerprint made it."""
        if self.description["model"] != fingerprint:
            raise ValueError(
                f"{self.path} was made by another model, or with other settings or prompts of it: load that one, "
                f"choose another folder, or delete this one (it was made with {self.description['versions']}; here is "
                f"{_versions()})"
            )

    def append(self, sentences: Dataset, digest: str) -> None:
        """Sentences that are to be embedded; ``digest`` tells them from others."""
        parts = self.description["texts"]
        place = self.path / "texts" / str(len(parts))
        shutil.rmtree(place, ignore_errors=True)  # of an attempt that did not come to the description
        sentences.save_to_disk(place)
        self.describe(texts=[*parts, {"rows": len(sentences), "digest": digest}])

    def sentences(self) -> Dataset:
        parts = range(len(self.description["texts"]))
        tables = [load_from_disk(self.path / "texts" / str(part)) for part in parts]
        return concatenate_datasets(tables or [Dataset.from_dict({"sentence": []})])

    def is_complete(self) -> bool:
        return self.embedded_rows() == sum(part["rows"] for part in self.description["texts"]) > 0

    def unfinished(self) -> ValueError:
        """To be raised by whoever needs it whole."""
        rows = sum(part["rows"] for part in self.description["texts"])
        return ValueError(
            f"{self.path} is unfinished: {self.embedded_rows():,} of {rows:,} sentences are embedded; the call that "
            "was interrupted, with the same texts, goes on where it stopped"
        )

    def embeddings(self) -> np.ndarray:
        """Mapped; copy on write, since torch warns of arrays that cannot be written."""
        path = self.path / "embeddings.npy"
        if not path.exists() or not path.stat().st_size:
            return np.empty((0, 0), dtype=np.float32)
        try:
            return np.load(path, mmap_mode="c")
        except (ValueError, EOFError) as error:
            raise ValueError(
                f"{path} is damaged ({error}): delete it, and make the last call of build_index or add_to_index again"
            ) from None

    def embedded_rows(self) -> int:
        return len(self.embeddings())

    def write(self, embeddings: np.ndarray) -> None:
        """Append rows; they count once they are on the disk, when the header says so."""
        path = self.path / "embeddings.npy"
        begin = self.embedded_rows()
        with path.open("r+b" if begin else "w+b") as file:
            header = _write_header(file, begin, embeddings.shape[1])
            file.truncate(header + begin * embeddings[0].nbytes)
            file.seek(0, os.SEEK_END)
            file.write(np.ascontiguousarray(embeddings).data)
            file.flush()
            os.fsync(file.fileno())
            _write_header(file, begin + len(embeddings), embeddings.shape[1])


def _write_header(file: Any, rows: int, width: int) -> int:
    """Its length, which is the same for any number of rows: numpy leaves room to grow."""
    file.seek(0)
    description = {"descr": "<f4", "fortran_order": False, "shape": (rows, width)}
    np.lib.format.write_array_header_1_0(file, description)
    return file.tell()


def _versions() -> str:
    return f"sentence-transformers {sentence_transformers.__version__}, transformers {transformers.__version__}"
