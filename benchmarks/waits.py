"""Where a step makes the CPU wait for the GPU, which then has nothing to do while the next step is prepared."""

from __future__ import annotations

import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch


def waits(step: Callable[[], object]) -> Counter[str]:
    """How often the step waits, by the file and line outside of torch in which it does."""
    places: Counter[str] = Counter()

    def note(message: Warning | str, *others: object) -> None:
        if "called a synchronizing CUDA operation" in str(message):
            places[_place(traceback.extract_stack()[:-1])] += 1

    # Not "error", which would tell of the first place alone.
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = note
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return places


def _place(stack: list[traceback.FrameSummary]) -> str:
    for frame in reversed(stack):
        path = Path(frame.filename)
        if not path.is_relative_to(Path(torch.__file__).parent) and not path.stem.endswith("warnings"):
            return f"{path.name}:{frame.lineno}"
    return "the backward pass"
