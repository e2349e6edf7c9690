"""The import of sentence-transformers, which takes seconds. A command checks its options before it imports it."""

from __future__ import annotations

import gc
import sys

__all__ = ["import_libraries"]


def import_libraries() -> None:
    """Imports sentence-transformers, and shows progress bars for downloads but not for loading models."""
    is_first, is_enabled = "sentence_transformers" not in sys.modules, gc.isenabled()
    gc.disable()
    try:
        import sentence_transformers  # noqa: F401
        from huggingface_hub.utils import enable_progress_bars
        from transformers.utils.logging import disable_progress_bar

        if is_first:
            gc.freeze()  # searching the modules for garbage would take a quarter of the start-up time
    finally:
        if is_enabled:
            gc.enable()
    disable_progress_bar()  # this turns off the bars of downloads too
    enable_progress_bars()
