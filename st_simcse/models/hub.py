"""The Hugging Face hub, asked once and with a time limit."""

from __future__ import annotations

from typing import Literal

from huggingface_hub import HfApi

__all__ = ["hub_error", "is_network_error"]


def hub_error(
    name: str, repo_type: Literal["model", "dataset"] = "model", token: str | bool | None = None
) -> Exception | None:
    """What keeps the hub from being reached, after one question; None if it answers that it has the repository.

    The loading code of the libraries would retry every file for minutes.

    Raises:
        FileNotFoundError: if the name can only be a folder's, which does not exist.
        OSError: the hub's own answer, such as that there is no such repository.
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
    """Whether the hub's client gave up; its library's errors are no OSError."""
    return type(error).__module__.startswith("httpx")  # newer releases of the hub have httpx2
