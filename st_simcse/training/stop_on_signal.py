"""Stopping on SIGTERM or Ctrl-C with a checkpoint, so that training can resume as if it had not been interrupted."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl

from st_simcse.losses.collectives import any_process

__all__ = ["StopOnSignal", "Stopped"]


class Stopped(SystemExit):
    """An exit because a signal stopped training early. The exit status is 128 plus the signal number, as shells expect.

    Args:
        number: The number of the signal.
        results: The evaluation results so far.

    Example:
        >>> Stopped(signal.SIGINT, {}).code
        130
    """

    def __init__(self, number: int, results: dict[str, dict[str, float]]) -> None:
        super().__init__(128 + number)
        self.results = results


class StopOnSignal(TrainerCallback):
    """A callback that saves a checkpoint and stops training after the current step on SIGTERM or Ctrl-C.

    It is a context manager that handles the signals while it is open. A second Ctrl-C raises KeyboardInterrupt. Unlike
    the just-in-time checkpoint of transformers, it never stops between the backward pass and the update of a step, so a
    resumed run equals one that was not interrupted.
    """

    def __init__(self) -> None:
        self.requested = self.has_stopped = False
        self.number: int = signal.SIGTERM  # for processes that did not receive the signal themselves

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
            if self.has_stopped and args.save_total_limit == 1:
                args.save_total_limit = 2  # with 1, transformers would keep only the best checkpoint

    def on_epoch_end(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        # Transformers also ends the epoch that was cut off. A run that was not interrupted does not evaluate there.
        if self.has_stopped and state.epoch % 1:
            control.should_evaluate = control.should_save = False

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested, self.number = True, number
