"""A check of the Hugging Face Hub with a single request and a time limit."""

from __future__ import annotations

from typing import Literal

from huggingface_hub import HfApi

__all__ = ["hub_error", "is_network_error"]


def hub_error(
    name: str, repo_type: Literal["model", "dataset"] = "model", token: str | bool | None = None
) -> Exception | None:
    """Returns the error if the Hub cannot be reached, and None if it answers that it has the repository.

    It sends one request. The libraries' loading code would retry every file for minutes.

    Raises:
        FileNotFoundError: If the name can only be that of a folder, which does not exist.
        OSError: If the Hub answers with an error, such as that there is no such repository.
    """
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or set(name) & set("\\:"):
        raise FileNotFoundError(f"there is no folder {name}")
    try:
        HfApi().repo_info(name, repo_type=repo_type, timeout=10, token=token)
    except OSError as error:
        if getattr(error, "response", None) is not None:
            raise
        return error
    except Exception as error:
        if not is_network_error(error):
            raise
        return error
    return None


def is_network_error(error: Exception) -> bool:
    """Returns whether the Hub's client failed to connect. The errors of its HTTP library are not OSErrors."""
    return type(error).__module__.startswith("httpx")  # newer releases of the hub have httpx2
