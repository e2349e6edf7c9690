"""The libraries underneath, which take seconds to import: a command looks at its words first, and imports them then."""

from __future__ import annotations

import gc
import sys

__all__ = ["import_libraries"]


def import_libraries() -> None:
    """Import sentence-transformers, with bars for downloads and none for the loading of each model."""
    is_first, is_enabled = "sentence_transformers" not in sys.modules, gc.isenabled()
    gc.disable()
    try:
        import sentence_transformers  # noqa: F401
        from huggingface_hub.utils import enable_progress_bars
        from transformers.utils.logging import disable_progress_bar

        if is_first:
            gc.freeze()  # modules stay: looking for garbage in them, now and at the end, takes a quarter of the start
    finally:
        if is_enabled:
            gc.enable()
    disable_progress_bar()  # turns off those of downloads too
    enable_progress_bars()
