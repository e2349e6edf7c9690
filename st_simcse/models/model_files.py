"""The location of a model's files, in its folder or in the Hub's cache."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.util import ORIGINAL_TRANSFORMER_MODELS, load_file_path

__all__ = ["cached_file", "full_name", "weights_file"]

# transformers looks for weights in this order: safetensors first, whole or in shards, then pickles.
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def weights_file(name_or_path: str | os.PathLike[str], subfolder: str = "", **options: Any) -> Path | None:
    """Returns the file that a model's weights were loaded from, or the index of its shards. None if it has none.

    Example:
        >>> weights_file("sentence-transformers/all-MiniLM-L6-v2").name
        'model.safetensors'
    """
    files = (cached_file(name_or_path, filename, subfolder, **options) for filename in _WEIGHTS)
    return next((file for file in files if file), None)


def cached_file(
    name_or_path: str | os.PathLike[str], filename: str, subfolder: str = "", **options: Any
) -> Path | None:
    """Returns a file of a model loaded with these options, from its folder or the Hub's cache. None if it has none.

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
    """Adds ST's organization to names without an owner, except for the oldest models, as ST does."""
    name = str(name_or_path)
    if Path(name).exists() or "/" in name or name.lower() in ORIGINAL_TRANSFORMER_MODELS:
        return name
    return f"{SentenceTransformer.default_huggingface_organization}/{name}"


def _cache_folder(options: dict[str, Any]) -> str | None:
    return options.get("cache_folder") or os.getenv("SENTENCE_TRANSFORMERS_HOME")
