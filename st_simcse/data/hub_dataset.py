"""Data sets of the Hugging Face hub, and their files."""

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
    """A data set on the Hugging Face hub, or a local folder in its layout. The readers accept it like a file name.

    Attributes:
        name: The name on the hub, such as ``sentence-transformers/all-nli``, or the path of a folder. A folder takes
            precedence, as in ``load_dataset``.
        subset: The subset, such as ``triplet``, if the data set has several.
        split: The split, such as ``train``, ``validation`` or ``test[:100]``.
        streaming: Whether to read the data set during training, without downloading it first.

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

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("the name of the data set is empty: pass its name on the hub, or the path of a folder")

    def __str__(self) -> str:
        return f"{self.name} ({self.subset + ', ' if self.subset else ''}{self.split})"

    def load(self) -> Dataset | IterableDataset:
        """Loads the data set without changes.

        Raises:
            FileNotFoundError: If there is no such folder or data set.
            OSError: If the hub cannot be reached.
            ValueError: If the subset or split does not exist, with a list of those that do, or if a file cannot be
                read.
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
    """Returns the class names of each column of classes, in the order of their numbers.

    Args:
        source: A data set, or a parquet file. Only parquet files written by the datasets library have class names.

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
    """Downloads a file of a data set to the hub's cache and returns its path. A local folder of that name comes first.

    Raises:
        FileNotFoundError: If the hub has no such data set or file.
        OSError: If the hub cannot be reached.
        ValueError: If the SHA-256 of the file in the cache differs from the one on the hub.
    """
    _ask_hub(name)
    if Path(name).is_dir():
        return Path(name, file)
    try:
        with _downloading(f"{file} of {name}"):
            path = Path(hf_hub_download(name, file, repo_type="dataset"))
    except LocalEntryNotFoundError as error:
        raise FileNotFoundError(
            f"{file} of {name} is not in the local cache and could not be downloaded from the hub"
        ) from error
    # The cache names a large file by the SHA-256 on the hub, but does not verify it.
    blob = path.resolve()
    if re.fullmatch("[0-9a-f]{64}", blob.name) and _sha256(blob) != blob.name:
        raise ValueError(
            f"{blob} is damaged: its SHA-256 is not the one on the hub for {file} of {name}; delete it to download it "
            "again"
        )
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return sha_fileobj(file).hex()


@contextmanager
def _downloading(what: str) -> Iterator[None]:
    """Replaces errors of the network library by an OSError that names what was not downloaded."""
    try:
        yield
    except Exception as error:
        if not is_network_error(error):
            raise
        message = f"the download of {what} did not finish ({error}): check the network and try again"
        raise OSError(message) from error


def _ask_hub(name: str) -> None:
    """Raises an OSError at once if there is no such folder and the hub cannot be reached, instead of after minutes."""
    if Path(name).is_dir():
        return
    error = hub_error(name, "dataset")
    # In offline mode, an earlier download is used.
    if error is not None and not isinstance(error, OfflineModeIsEnabled):
        raise OSError(
            f"{name} is not a local folder, and the Hugging Face hub cannot be reached ({error}): check the name and "
            "the network, or set HF_HUB_OFFLINE=1 to use an earlier download"
        ) from error
