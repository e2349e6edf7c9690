"""Data sets of the Hugging Face hub by name, and their files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from datasets import ClassLabel, Dataset, Features, IterableDataset, load_dataset
from datasets.exceptions import DatasetsError
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils.sha import sha_fileobj
from pyarrow.parquet import read_schema

from st_simcse.models.hub import hub_error, is_network_error

__all__ = ["HubDataset", "class_names", "hub_file"]


@dataclass(frozen=True)
class HubDataset:
    """A data set by its name on the hub, or by the path of a folder in the hub's layout; stands where a file can.

    Attributes:
        name: such as ``sentence-transformers/all-nli``. A folder of that name comes first, as for ``load_dataset``.
        subset: which of its subsets, where it has several, such as ``triplet``.
        split: ``train``, ``validation``, ``test[:100]``, ...
        streaming: read it while training goes on, without downloading it first.

    Example:
        >>> from pathlib import Path
        >>> from st_simcse import TripletReader
        >>> Path("pairs").mkdir()
        >>> _ = Path("pairs/train.jsonl").write_text('{"anchor": "A dog.", "positive": "A hound."}')
        >>> TripletReader().get_dataset(HubDataset("pairs"))[0]
        {'anchor': 'A dog.', 'positive': 'A hound.'}
    """

    name: str
    subset: str | None = None
    split: str = "train"
    streaming: bool = False

    def __str__(self) -> str:
        return f"{self.name} ({self.subset + ', ' if self.subset else ''}{self.split})"

    def load(self) -> Dataset | IterableDataset:
        """The rows as they are.

        Raises:
            FileNotFoundError: if there is no such folder or data set.
            OSError: if the hub cannot be reached.
            ValueError: for an unknown subset or split, named with those that there are, and for unreadable files.
        """
        _ask_hub(self.name)
        try:
            with _downloading(str(self)):
                return load_dataset(self.name, self.subset, split=self.split, streaming=self.streaming)
        except DatasetsError as error:
            if isinstance(error, OSError):
                raise
            raise ValueError(f"{self}: {error.__cause__ or error}") from error


def class_names(source: Path | HubDataset) -> dict[str, list[str]]:
    """The names of the classes, in the order of their numbers, by column.

    Args:
        source: a data set, or a parquet file, which says the same if the library datasets wrote it.

    Example:
        >>> from datasets import ClassLabel, Dataset, Features
        >>> features = Features(label=ClassLabel(names=["neutral", "entailment"]))
        >>> _ = Dataset.from_dict({"label": [1, 0]}, features=features).to_parquet("pairs.parquet")
        >>> class_names("pairs.parquet")
        {'label': ['neutral', 'entailment']}
    """
    if isinstance(source, HubDataset):
        features = source.load().features
    else:
        schema = read_schema(source)
        features = Features.from_arrow_schema(schema) if b"huggingface" in (schema.metadata or {}) else None
    return {name: kind.names for name, kind in (features or {}).items() if isinstance(kind, ClassLabel)}


def hub_file(name: str, file: str) -> Path:
    """A file of a data set on the hub, downloaded to the hub's cache; or of a folder of that name.

    Raises:
        FileNotFoundError: if there is no such folder, data set or file.
        OSError: if the hub cannot be reached.
        ValueError: if the bytes in the cache are not those whose SHA-256 the hub announced.
    """
    _ask_hub(name)
    if Path(name).is_dir():
        return Path(name, file)
    try:
        with _downloading(f"{file} of {name}"):
            path = Path(hf_hub_download(name, file, repo_type="dataset"))
    except LocalEntryNotFoundError as error:
        raise FileNotFoundError(f"{file} of {name} is not in the local cache, and the hub did not give it") from error
    # The cache names a large file by the SHA-256 that the hub announced, and nobody has compared the two.
    blob = path.resolve()
    if re.fullmatch("[0-9a-f]{64}", blob.name) and _sha256(blob) != blob.name:
        raise ValueError(
            f"{blob} is damaged: its SHA-256 is not the one that the hub announced for {file} of {name}; delete it to "
            "download it again"
        )
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return sha_fileobj(file).hex()


@contextmanager
def _downloading(what: str) -> Iterator[None]:
    """An OSError that says what was not downloaded, in place of the network library's own."""
    try:
        yield
    except Exception as error:
        if not is_network_error(error):
            raise
        message = f"{what} was not downloaded to its end ({error}): check the network, and do the same again"
        raise OSError(message) from error


def _ask_hub(name: str) -> None:
    """OSError at once, instead of after minutes, where a data set can be had neither here nor from the hub."""
    if Path(name).is_dir():
        return
    error = hub_error(name, "dataset")
    # Whoever asked for offline mode gets the copy of an earlier download.
    if error is not None and not isinstance(error, OfflineModeIsEnabled):
        raise OSError(
            f"{name} is no folder here, and the Hugging Face hub cannot be reached ({error}): check the name and the "
            "network, or set HF_HUB_OFFLINE=1 to use an earlier download"
        ) from error
