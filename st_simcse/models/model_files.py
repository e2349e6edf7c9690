"""Where the files of a model are: in its folder, or in the hub's cache."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.util import ORIGINAL_TRANSFORMER_MODELS, load_file_path

__all__ = ["cached_file", "full_name", "weights_file"]

# As transformers looks for them: safetensors first, whole or in shards, pickled ones where there are no others.
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def weights_file(name_or_path: str | os.PathLike[str], subfolder: str = "", **options: Any) -> Path | None:
    """The file that the weights of a model were loaded from, or the index of its shards; None if it has none.

    Example:
        >>> weights_file("sentence-transformers/all-MiniLM-L6-v2").name
        'model.safetensors'
    """
    files = (cached_file(name_or_path, filename, subfolder, **options) for filename in _WEIGHTS)
    return next((file for file in files if file), None)


def cached_file(
    name_or_path: str | os.PathLike[str], filename: str, subfolder: str = "", **options: Any
) -> Path | None:
    """A file of a model that was loaded with these options: in its folder, or in the hub's cache; None if it has none.

    Example:
        >>> cached_file("sentence-transformers/all-MiniLM-L6-v2", "config.json", "1_Pooling").parent.name
        '1_Pooling'
    """
    path = load_file_path(
        full_name(name_or_path),
        filename,
        subfolder,
        cache_folder=_cache_folder(options),
        revision=options.get("revision"),
        local_files_only=True,
    )
    return None if path is None else Path(path)


def full_name(name_or_path: str | os.PathLike[str]) -> str:
    """ST looks for names without an owner among its own models, but for the oldest ones."""
    name = str(name_or_path)
    if Path(name).exists() or "/" in name or name.lower() in ORIGINAL_TRANSFORMER_MODELS:
        return name
    return f"{SentenceTransformer.default_huggingface_organization}/{name}"


def _cache_folder(options: dict[str, Any]) -> str | None:
    return options.get("cache_folder") or os.getenv("SENTENCE_TRANSFORMERS_HOME")
