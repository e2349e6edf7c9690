"""SIGTERM and Ctrl-C end a training with a checkpoint from which it goes on as if nothing had happened."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl

from st_simcse.losses.collectives import any_process

__all__ = ["StopOnSignal", "Stopped"]


class Stopped(SystemExit):
    """A signal has ended the training early; the exit status is 128 plus its number, as shells expect.

    Args:
        number: the signal's.
        results: what had been measured before.

    Example:
        >>> Stopped(signal.SIGINT, {}).code
        130
    """

    def __init__(self, number: int, results: dict[str, dict[str, float]]) -> None:
        super().__init__(128 + number)
        self.results = results


class StopOnSignal(TrainerCallback):
    """SIGTERM and Ctrl-C end the training after the step that is under way, with a checkpoint, instead of at once.

    It listens as a context manager; a second Ctrl-C is a KeyboardInterrupt. Unlike the just-in-time checkpoint of
    transformers it never falls between a step's backward pass and its update, so the resumed run is the same as an
    undisturbed one.
    """

    def __init__(self) -> None:
        self.requested = self.has_stopped = False
        self.number: int = signal.SIGTERM  # also where another process was the one that got it

    def __enter__(self) -> StopOnSignal:
        self.previous = {number: signal.signal(number, self._request) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        if any_process(self.requested):
            control.should_save = control.should_training_stop = True
            self.has_stopped = state.global_step < state.max_steps

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested, self.number = True, number
