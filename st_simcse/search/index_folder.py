"""An index on disk: sentences, their embeddings and a description. It can grow, and it survives interruptions."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import sentence_transformers
import transformers
from datasets import Dataset, concatenate_datasets, load_from_disk
from filelock import FileLock
from sentence_transformers import SentenceTransformer

from st_simcse.search.fingerprint import DIGESTS, settings
from st_simcse.search.neighbours import INDEXES, ExactIndex, Index, Neighbours

__all__ = ["IndexFolder"]


class IndexFolder:
    """An index on disk. An interruption at any moment leaves files that the work can continue from.

    ``index.json`` describes the index. It has the fingerprint of the model that made the index, the precision that it
    computed in, the number of rows in each part that was added, and the number of finished parts, which is written
    last. ``texts/0``, ``texts/1``, ... are
    the parts as written by ``Dataset.save_to_disk``. The header of ``embeddings.npy`` has the number of complete rows.
    """

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        if path is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="st_simcse_")  # deleted with this object
            path = self._temporary.name
        self.path = Path(path)
        self.description: dict[str, Any] = {}
        if self.exists():
            self.read()

    def exists(self) -> bool:
        return (self.path / "index.json").exists()

    def lock(self) -> FileLock:
        """Returns the lock for writing. A second writer waits for it."""
        self.path.mkdir(parents=True, exist_ok=True)
        return FileLock(self.path / "index.lock")

    def read(self) -> None:
        """Reads the description from disk, and raises ValueError if it is damaged."""
        path = self.path / "index.json"
        try:
            description = json.loads(path.read_bytes())
            if not _is_description(description):
                raise ValueError("unexpected names or types")
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{path} is not a valid description of an index ({error}). Delete the folder and build the index again."
            ) from None
        self.description = description

    def create(self, made_by: str, model: SentenceTransformer, precision: str) -> None:
        """Creates an empty index for the model with this fingerprint, which computes in this precision.

        Raises:
            FileExistsError: If the folder has other files.
        """
        if foreign := sorted({path.name for path in self.path.iterdir()} - {"index.lock", "index.tmp"}):
            raise FileExistsError(
                f"{self.path} is not an index and is not empty: it has {foreign[0]!r}. Choose a new folder, or delete "
                "this one."
            )
        known = {"settings": settings(model), "precision": precision, "versions": _versions()}
        self.describe(model=made_by, **known, texts=[], finished=0)

    def choose(self, index: Index) -> None:
        """Records the kind of index that finds neighbours from now on."""
        self.describe(index={"kind": index.name, **asdict(index)})

    def neighbours(self) -> Neighbours:
        options = dict(self.description.get("index", {"kind": ExactIndex.name}))
        with _writing(self.path):
            return INDEXES[options.pop("kind")](**options).open(self.embeddings(), self.path)

    def describe(self, **changes: Any) -> None:
        """Changes the description. The file is replaced as a whole, so it is never incomplete."""
        self.description |= changes
        part = self.path / "index.tmp"
        with _writing(self.path):
            part.write_text(json.dumps(self.description, indent=1), encoding="utf-8")
            os.replace(part, self.path / "index.json")

    def check_model(self, made_by: str, model: SentenceTransformer) -> None:
        """Raises ValueError if a different model made the index. The message says what differs."""
        if self.description["model"] != made_by:
            raise ValueError(
                f"{self.path} was made by a different model, or by this model with different settings or prompts "
                f"({self._difference(model)}). Load that model, choose a different folder, or delete this one."
            )

    def check_precision(self, precision: str) -> None:
        """Raises ValueError if a precision is asked for in which the embeddings were not computed."""
        there = self.description.get("precision", precision)
        if precision not in ("auto", there):
            raise ValueError(
                f"the embeddings in {self.path} were computed in {there}, not in {precision}. Choose the precision "
                f"{there} or auto, choose a different folder, or delete this one."
            )

    def _difference(self, model: SentenceTransformer) -> str:
        """Describes the differences between the model that made the index and this model."""
        there, here = self.description.get("settings", {}), json.loads(json.dumps(settings(model)))
        differences = [
            f"the {name} differs" if name in DIGESTS else f"{name}: {there[name]!r} in the index, {here[name]!r} now"
            for name in there.keys() & here.keys()
            if there[name] != here[name]
        ]
        if (versions := self.description["versions"]) != _versions():
            differences.append(f"the index was made with {versions}, but {_versions()} are installed")
        return "; ".join(sorted(differences)) or "the weights or the configuration of a module differ"

    def add(self, sentences: Dataset, digest: str) -> None:
        """Appends sentences, unless they are the ones of an interrupted call, which is to continue.

        Raises:
            ValueError: If a call with other sentences was interrupted. If an old version of st_simcse appended these
                sentences last, because it did not record whether the call was interrupted.
        """
        parts = self.description["texts"]
        is_last = bool(parts) and parts[-1]["digest"] == digest
        if self.is_interrupted():
            if not is_last:
                raise self.unfinished()
            return
        if is_last and "finished" not in self.description:
            raise ValueError(
                f"{self.path} already has these texts, and all of its {self.rows():,} sentences are embedded. An "
                "old version of st_simcse wrote the index and did not record whether adding the texts was "
                "interrupted. Nothing is left to do, unless you want the texts twice. In that case, build a new "
                "index of all texts."
            )
        self.append(sentences, digest)

    def append(self, sentences: Dataset, digest: str) -> None:
        """Appends sentences that are not embedded yet. ``digest`` is the hash that identifies them."""
        parts = self.description["texts"]
        place = self.path / "texts" / str(len(parts))
        shutil.rmtree(
            place, ignore_errors=True
        )  # left by a call that was interrupted before it changed the description
        with _writing(self.path):
            sentences.save_to_disk(place)
        self.describe(texts=[*parts, {"rows": len(sentences), "digest": digest}], finished=len(parts))

    def finish(self) -> None:
        """Records that all appended sentences are embedded and can be searched."""
        self.describe(finished=len(self.description["texts"]))

    def rows(self) -> int:
        """Returns the number of sentences, embedded or not."""
        return sum(part["rows"] for part in self.description["texts"])

    def sentences(self) -> Dataset:
        parts = enumerate(self.description["texts"])
        tables = [_table(self.path / "texts" / str(number), part["rows"]) for number, part in parts]
        return concatenate_datasets(tables or [Dataset.from_dict({"sentence": []})])

    def finished_sentences(self) -> Dataset:
        """Returns the sentences without those of an interrupted call, which is the last one."""
        parts = self.description["texts"]
        added = parts[-1]["rows"] if self.is_interrupted() else 0
        return self.sentences().select(range(self.rows() - added))

    def is_embedded(self) -> bool:
        """Returns whether all sentences are embedded, so that the index can be searched."""
        return self.embedded_rows() == self.rows() > 0

    def is_interrupted(self) -> bool:
        """Returns whether the last call that added sentences did not finish, which the number of rows does not tell.

        Earlier versions did not record it. An index of theirs counts as finished if all sentences are embedded.
        """
        parts = len(self.description["texts"])
        return parts > 0 and not (self.is_embedded() and self.description.get("finished", parts) == parts)

    def unfinished(self) -> ValueError:
        """Returns the error for calls that need a finished index."""
        return ValueError(
            f"{self.path} is unfinished: {self.embedded_rows():,} of {self.rows():,} sentences are embedded. Repeat "
            "the interrupted call with the same texts to continue where it stopped."
        )

    def embeddings(self) -> np.ndarray:
        """Returns the embeddings, memory-mapped from disk.

        The mode is copy-on-write, because torch warns about read-only arrays.
        """
        path = self.path / "embeddings.npy"
        if not path.exists() or not path.stat().st_size:
            return np.empty((0, 0), dtype=np.float32)
        remedy = "Delete it, and repeat the last call of build_index or add_to_index."
        try:
            embeddings = np.load(path, mmap_mode="c")
            if embeddings.ndim != 2 or embeddings.dtype != np.float32:
                raise ValueError(f"expected a float32 matrix, got {embeddings.dtype} with shape {embeddings.shape}")
        except (ValueError, EOFError) as error:
            raise ValueError(f"{path} is damaged ({error}). {remedy}") from None
        if len(embeddings) > self.rows():
            raise ValueError(
                f"{path} has {len(embeddings):,} rows, but index.json says {self.rows():,}. If another program is "
                "adding to the index, wait until it has finished. Otherwise, the file belongs to a different index. "
                f"{remedy}"
            )
        return embeddings

    def embedded_rows(self) -> int:
        return len(self.embeddings())

    def write(self, embeddings: np.ndarray) -> None:
        """Appends rows. The header only counts them once they are on disk."""
        # numpy's open_memmap cannot extend a file, and on a full disk, it kills the program with SIGBUS.
        path = self.path / "embeddings.npy"
        begin = self.embedded_rows()
        with _writing(self.path), path.open("r+b" if begin else "w+b") as file:
            header = _write_header(file, begin, embeddings.shape[1])
            file.truncate(header + begin * embeddings[0].nbytes)
            file.seek(0, os.SEEK_END)
            file.write(np.ascontiguousarray(embeddings).data)
            file.flush()
            os.fsync(file.fileno())
            _write_header(file, begin + len(embeddings), embeddings.shape[1])


def _write_header(file: Any, rows: int, width: int) -> int:
    """Writes the header and returns its length, which does not depend on the number of rows: numpy pads it."""
    file.seek(0)
    description = {"descr": "<f4", "fortran_order": False, "shape": (rows, width)}
    np.lib.format.write_array_header_1_0(file, description)
    return file.tell()


def _is_description(value: Any) -> bool:
    """Returns whether a value has the names and types that :meth:`IndexFolder.describe` writes.

    ``finished``, ``precision`` and ``settings`` are optional, because earlier versions did not write them.
    """
    if not isinstance(value, dict) or not all(isinstance(value.get(name), str) for name in ("model", "versions")):
        return False
    if not isinstance(value.get("settings", {}), dict) or not isinstance(value.get("precision", ""), str):
        return False
    texts, index = value.get("texts"), value.get("index", {"kind": ExactIndex.name})
    if not isinstance(texts, list) or value.get("finished", 0) not in range(len(texts) + 1):
        return False
    for part in texts:
        if not (isinstance(part, dict) and isinstance(part.get("rows"), int) and isinstance(part.get("digest"), str)):
            return False
    kind = INDEXES.get(str(index.get("kind"))) if isinstance(index, dict) else None
    if kind is None or index.keys() != {"kind", *(option.name for option in fields(kind))}:
        return False
    return all(value is None or isinstance(value, int) for name, value in index.items() if name != "kind")


def _table(place: Path, rows: int) -> Dataset:
    try:
        table = load_from_disk(place)
        if not isinstance(table, Dataset) or (table.column_names, len(table)) != (["sentence"], rows):
            raise ValueError(f"expected {rows:,} sentences")
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:  # datasets raises any of these
        index = place.parent.parent
        raise ValueError(f"{place} is damaged ({error}). Delete {index}, and build the index again.") from None
    return table


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(
            f"Cannot write to {folder} ({error.strerror or error}). Existing files are unchanged. Check the disk space "
            "and the permissions, and repeat the call to continue."
        ) from error


def _versions() -> str:
    return f"sentence-transformers {sentence_transformers.__version__}, transformers {transformers.__version__}"
