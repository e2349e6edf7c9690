"""An index on the disk: sentences, their embeddings, and what describes them, which grow and are never torn."""

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
    """An index on the disk. At every moment it can be gone on from what is written.

    ``index.json`` describes it: the fingerprint of the model that made it, the rows of each part that was added, and
    how many of these adds came to their end, which is written last. ``texts/0``, ``texts/1``, ... are the parts, as
    ``Dataset.save_to_disk`` writes them; the header of ``embeddings.npy`` counts the rows that are whole.
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
        path = self.path / "index.json"
        try:
            description = json.loads(path.read_bytes())
            if not _is_description(description):
                raise ValueError("other names or types than it has")
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{path} is no description of an index ({error}): delete the folder, and build the index again"
            ) from None
        self.description = description

    def create(self, made_by: str, model: SentenceTransformer) -> None:
        """An empty index of the model with this fingerprint; FileExistsError where something else lies."""
        if foreign := sorted({path.name for path in self.path.iterdir()} - {"index.lock", "index.tmp"}):
            raise FileExistsError(f"{self.path} holds no index but {foreign[0]!r}: choose a new folder, or delete it")
        self.describe(model=made_by, settings=settings(model), versions=_versions(), texts=[], finished=0)

    def choose(self, index: Index) -> None:
        """How neighbours are found from now on."""
        self.describe(index={"kind": index.name, **asdict(index)})

    def neighbours(self) -> Neighbours:
        options = dict(self.description.get("index", {"kind": ExactIndex.name}))
        with _writing(self.path):
            return INDEXES[options.pop("kind")](**options).open(self.embeddings(), self.path)

    def describe(self, **changes: Any) -> None:
        """Written whole or not at all."""
        self.description |= changes
        part = self.path / "index.tmp"
        with _writing(self.path):
            part.write_text(json.dumps(self.description, indent=1), encoding="utf-8")
            os.replace(part, self.path / "index.json")

    def check_model(self, made_by: str, model: SentenceTransformer) -> None:
        """ValueError if a model with another fingerprint made it, with what differs."""
        if self.description["model"] != made_by:
            raise ValueError(
                f"{self.path} was made by another model, or with other settings or prompts of it: load that one, "
                f"choose another folder, or delete this one ({self._difference(model)})"
            )

    def _difference(self, model: SentenceTransformer) -> str:
        """What tells the model that made the index from this one."""
        there, here = self.description.get("settings", {}), json.loads(json.dumps(settings(model)))
        differences = [
            f"the {name} differs" if name in DIGESTS else f"{name}: {there[name]!r} in the index, {here[name]!r} here"
            for name in there.keys() & here.keys()
            if there[name] != here[name]
        ]
        if (versions := self.description["versions"]) != _versions():
            differences.append(f"it was made with {versions}, here is {_versions()}")
        return "; ".join(sorted(differences)) or "the weights or the configuration of a module differ"

    def add(self, sentences: Dataset, digest: str) -> None:
        """Append sentences, or go on with them if they are those whose add was interrupted.

        Raises:
            ValueError: if the add of other sentences was interrupted, and where nobody can know whether that of these
                was.
        """
        parts = self.description["texts"]
        is_last = bool(parts) and parts[-1]["digest"] == digest
        if "finished" not in self.description and self.is_embedded():
            if is_last:
                raise ValueError(
                    f"{self.path} has these texts already, and all its {self.rows():,} sentences are embedded; the "
                    "version that wrote it did not record whether their add came to its end. There is nothing left to "
                    "do, unless they are to be there twice: then build a new index of all texts"
                )
        elif parts and not self.is_finished():
            if not is_last:
                raise self.unfinished()
            return
        self.append(sentences, digest)

    def append(self, sentences: Dataset, digest: str) -> None:
        """Sentences that are to be embedded; ``digest`` tells them from others."""
        parts = self.description["texts"]
        place = self.path / "texts" / str(len(parts))
        shutil.rmtree(place, ignore_errors=True)  # of an attempt that did not come to the description
        with _writing(self.path):
            sentences.save_to_disk(place)
        self.describe(texts=[*parts, {"rows": len(sentences), "digest": digest}], finished=len(parts))

    def finish(self) -> None:
        """Record that what was appended is embedded and can be searched."""
        self.describe(finished=len(self.description["texts"]))

    def rows(self) -> int:
        """How many sentences it has, embedded or not."""
        return sum(part["rows"] for part in self.description["texts"])

    def sentences(self) -> Dataset:
        parts = enumerate(self.description["texts"])
        tables = [_table(self.path / "texts" / str(number), part["rows"]) for number, part in parts]
        return concatenate_datasets(tables or [Dataset.from_dict({"sentence": []})])

    def is_embedded(self) -> bool:
        """Whether it can be searched."""
        return self.embedded_rows() == self.rows() > 0

    def is_finished(self) -> bool:
        """Whether the last add came to its end, which the rows alone do not say."""
        return self.is_embedded() and self.description.get("finished") == len(self.description["texts"])

    def unfinished(self) -> ValueError:
        """To be raised by whoever needs it whole."""
        return ValueError(
            f"{self.path} is unfinished: {self.embedded_rows():,} of {self.rows():,} sentences are embedded; the call "
            "that was interrupted, with the same texts, goes on where it stopped"
        )

    def embeddings(self) -> np.ndarray:
        """Mapped; copy on write, since torch warns of arrays that cannot be written."""
        path = self.path / "embeddings.npy"
        if not path.exists() or not path.stat().st_size:
            return np.empty((0, 0), dtype=np.float32)
        remedy = "delete it, and make the last call of build_index or add_to_index again"
        try:
            embeddings = np.load(path, mmap_mode="c")
            if embeddings.ndim != 2 or embeddings.dtype != np.float32:
                raise ValueError(f"{embeddings.dtype} of the shape {embeddings.shape}")
        except (ValueError, EOFError) as error:
            raise ValueError(f"{path} is damaged ({error}): {remedy}") from None
        if len(embeddings) > self.rows():
            raise ValueError(
                f"{path} has {len(embeddings):,} rows and index.json {self.rows():,}: another program is adding to the "
                f"index, wait for its end; or the file is of another index: {remedy}"
            )
        return embeddings

    def embedded_rows(self) -> int:
        return len(self.embeddings())

    def write(self, embeddings: np.ndarray) -> None:
        """Append rows; they count once they are on the disk, when the header says so."""
        # Not with numpy's open_memmap: it cannot grow a file, and on a full disk the program dies of SIGBUS.
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
    """Its length, which is the same for any number of rows: numpy leaves room to grow."""
    file.seek(0)
    description = {"descr": "<f4", "fortran_order": False, "shape": (rows, width)}
    np.lib.format.write_array_header_1_0(file, description)
    return file.tell()


def _is_description(value: Any) -> bool:
    """Whether it has the names and types that :meth:`IndexFolder.describe` writes.

    ``finished`` and ``settings`` came later.
    """
    if not isinstance(value, dict) or not all(isinstance(value.get(name), str) for name in ("model", "versions")):
        return False
    if not isinstance(value.get("settings", {}), dict):
        return False
    texts, index = value.get("texts"), value.get("index", {"kind": ExactIndex.name})
    if not isinstance(texts, list) or value.get("finished", 0) not in range(len(texts) + 1):
        return False
    for part in texts:
        if not (isinstance(part, dict) and isinstance(part.get("rows"), int) and isinstance(part.get("digest"), str)):
            return False
    kind = INDEXES.get(str(index.get("kind"))) if isinstance(index, dict) else None
    return kind is not None and index.keys() == {"kind", *(option.name for option in fields(kind))}


def _table(place: Path, rows: int) -> Dataset:
    try:
        table = load_from_disk(place)
        if not isinstance(table, Dataset) or (table.column_names, len(table)) != (["sentence"], rows):
            raise ValueError(f"expected {rows:,} sentences")
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:  # what datasets raises for such files
        index = place.parent.parent
        raise ValueError(f"{place} is damaged ({error}): delete {index}, and build the index again") from None
    return table


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(
            f"cannot write to {folder} ({error.strerror or error}): what is there stays, and the same call goes on "
            "once there is room and permission"
        ) from error


def _versions() -> str:
    return f"sentence-transformers {sentence_transformers.__version__}, transformers {transformers.__version__}"
