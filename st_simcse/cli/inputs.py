"""Hashes of the inputs of ``st-simcse compare``, which show whether two runs used the same data and model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from st_simcse.cli import train
from st_simcse.cli.output import no_warnings
from st_simcse.models.model_files import full_name
from st_simcse.recipes import split_baseline

Kind = Literal["model", "dataset", "file"]


def identities(options: Sequence[str], tests: dict[str, Any]) -> dict[str, str | None]:
    """Returns a hash of the model, the teachers and each data set of a run, by the name used in its options.

    The hash of a local file or folder is the SHA-256 of its contents. The hash of a name on the hub is the commit that
    would be loaded now, or None if the hub does not answer and the cache has no copy.

    Args:
        options: The options of ``st-simcse train``, with or without ``--baseline``.
        tests: The options of the comparison that say what to measure.
    """
    return {
        name: _digest(Path(name)) if Path(name).exists() else _commit(name, kind)
        for kind, name in _named(options, tests)
    }


def _named(options: Sequence[str], tests: dict[str, Any]) -> Iterator[tuple[Kind, str]]:
    with no_warnings():  # the run itself logs the same ones
        model_args, data_args, _, _ = train.parse_train(split_baseline(options)[1])
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
        return None  # there is no such file, and the run reports it
    name = full_name(name) if kind == "model" else name
    try:
        return HfApi().repo_info(name, repo_type=kind, timeout=10).sha
    except Exception:  # no network, offline mode or an unknown name: the run reports it
        try:
            return Path(snapshot_download(name, repo_type=kind, local_files_only=True)).name
        except (LocalEntryNotFoundError, ValueError):
            return None
