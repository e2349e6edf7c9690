"""Finds where a step makes the CPU wait for the GPU. The GPU is then idle until the next step has been prepared."""

from __future__ import annotations

import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch


def waits(step: Callable[[], object]) -> Counter[str]:
    """Returns how often the step waits for the GPU, by the file and line outside of torch."""
    places: Counter[str] = Counter()

    def note(message: Warning | str, *others: object) -> None:
        if "called a synchronizing CUDA operation" in str(message):
            places[_place(traceback.extract_stack()[:-1])] += 1

    # "error" would stop at the first place.
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
