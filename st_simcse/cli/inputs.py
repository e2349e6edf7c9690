"""What a run of ``st-simcse compare`` reads, and hashes of it: whether two runs had the same data and model."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from st_simcse.cli import train
from st_simcse.recipes import split_baseline

Kind = Literal["model", "dataset", "file"]


def identities(options: Sequence[str], tests: dict[str, Any]) -> dict[str, str | None]:
    """The model, teachers and data of a run by the names that its options give them.

    A file or folder here has the SHA-256 of its contents, and a name on the hub the commit that would be loaded now;
    None if that is not known, because the hub does not answer and the cache has no copy.

    Args:
        options: of ``st-simcse train``, with or without ``--baseline``.
        tests: the comparison's own options that say what is measured.
    """
    return {
        name: _digest(Path(name)) if Path(name).exists() else _commit(name, kind)
        for kind, name in _named(options, tests)
    }


def _named(options: Sequence[str], tests: dict[str, Any]) -> Iterator[tuple[Kind, str]]:
    logging.disable(logging.WARNING)  # the run itself says it
    try:
        model_args, data_args, _, _ = train.parse_train(split_baseline(options)[1])
    finally:
        logging.disable(logging.NOTSET)
    yield from (("model", name) for name in (model_args.model_name_or_path, *(data_args.teacher or [])))
    for split in ("train", "dev", "test"):
        for kind in ("file", "dataset"):
            if name := getattr(data_args, f"{split}_{kind}"):
                yield kind, name
    yield from (("file", place) for option, place in tests.items() if place and option.endswith(("_file", "_dir")))


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            digest.update(f"{file.relative_to(path)}\0{file.stat().st_size}\0".encode())
            with file.open("rb") as content:
                while block := content.read(2**20):
                    digest.update(block)
    return digest.hexdigest()


def _commit(name: str, kind: Kind) -> str | None:
    if kind == "file":
        return None  # there is no such file, which the run says
    try:
        return HfApi().repo_info(name, repo_type=kind, timeout=10).sha
    except Exception:  # no network, offline mode, no such name: the run says what it needs
        try:
            return Path(snapshot_download(name, repo_type=kind, local_files_only=True)).name
        except (LocalEntryNotFoundError, ValueError):
            return None
