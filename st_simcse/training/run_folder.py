"""The folder of a training run: its checkpoints are complete and sorted by step, and only one run at a time writes."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from st_simcse.losses.collectives import any_process

logger = logging.getLogger(__name__)

# Names with a leading underscore are not pushed to the hub with the folder.
UNFINISHED = "_unfinished"
LOCK = "_training.lock"


def checkpoint_folders(folder: str | Path) -> list[Path]:
    """Returns the checkpoints of a training run sorted by step, including incomplete ones.

    Example:
        >>> checkpoint_folders("output")  # nothing has been saved there
        []
    """
    found = Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*")
    return sorted((path for path in found if path.name.split("-")[-1].isdigit()), key=step_of)


def step_of(checkpoint: str | Path) -> int:
    """Returns the optimizer step of a checkpoint, from the name of its folder.

    Example:
        >>> step_of("output/checkpoint-500")
        500
    """
    return int(Path(checkpoint).name.split("-")[-1])


def is_cut_off(checkpoint: Path) -> bool:
    """Returns whether the file that is written last to a checkpoint is missing or incomplete."""
    try:
        state = json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return True
    return not isinstance(state, dict)


def last_complete_checkpoint(folder: str | Path) -> str:
    """Returns the complete checkpoint with the highest step, and logs incomplete ones after it.

    Raises:
        ValueError: If there is no complete checkpoint.
    """
    for path in reversed(checkpoint_folders(folder)):
        if not is_cut_off(path):
            return str(path)
        logger.warning("%s was interrupted while it was saved. Trying the checkpoint before it.", path)
    raise ValueError(f"{folder} has no complete checkpoint to resume from. Train from the start.")


def rotate(newest: Path, best: str | None, limit: int | None) -> None:
    """Deletes checkpoints until ``limit`` are left, but never the newest or the best. None, 0 and -1 delete nothing.

    Checkpoints of later steps, which an earlier run left behind, are deleted first, and then those of the lowest steps.
    Transformers sorts by the dates of the files instead.
    """
    order = sorted(
        checkpoint_folders(newest.parent), key=lambda path: (step_of(path) <= step_of(newest), step_of(path))
    )
    removable = [path for path in order if path != newest and str(path) != str(Path(best or ""))]
    for path in removable[: max(0, len(order) - limit) if limit and limit > 0 else 0]:
        # Renamed first, so that a program killed here does not leave an incomplete checkpoint under this name.
        aside = path.with_name(UNFINISHED)
        aside.mkdir(exist_ok=True)
        shutil.rmtree(path.rename(aside / f"old-{path.name}"), ignore_errors=True)
        shutil.rmtree(aside, ignore_errors=True)


def publish(checkpoint: Path) -> None:
    """Moves a complete checkpoint out of the folder UNFINISHED, and replaces an earlier checkpoint of that step."""
    aside, target = checkpoint.parent, checkpoint.parent.with_name(checkpoint.name)
    if target.exists():
        target.rename(aside / f"old-{target.name}")
    checkpoint.rename(target)
    shutil.rmtree(aside, ignore_errors=True)


def check_writable(folder: str | Path) -> None:
    """Creates the folder if it does not exist, and checks that it is writable.

    Raises:
        OSError: If nothing can be written to the folder.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OSError(f"Cannot write to the output folder {folder}: {error}") from error


@contextmanager
def sole_run(folder: str | Path, is_writer: bool = True) -> Iterator[None]:
    """Locks the folder against other training runs, and deletes an unfinished checkpoint that an earlier run left.

    The lock ends with the context or with the process.

    Args:
        folder: The folder of the checkpoints.
        is_writer: Whether this process writes. With several processes, all of them must enter the context.

    Raises:
        OSError: If another run is training into the folder, or if the folder is not writable.

    Example:
        >>> with sole_run("output"):
        ...     pass  # train
    """
    check_writable(folder)
    lock = FileLock(Path(folder, LOCK), timeout=0, thread_local=False, is_singleton=True)
    is_taken = False
    try:
        if is_writer:
            lock.acquire()
    except Timeout:
        is_taken = True
    if any_process(is_taken):
        lock.release()
        raise OSError(
            f"Another run is training into {folder}. Wait until it has finished, or choose a different output_dir."
        )
    try:
        if is_writer and lock.lock_counter == 1:
            shutil.rmtree(Path(folder, UNFINISHED), ignore_errors=True)
        yield
    finally:
        if is_writer and lock.lock_counter == 1:
            with suppress(OSError):  # Windows does not delete open files
                Path(folder, LOCK).unlink()
        lock.release()
