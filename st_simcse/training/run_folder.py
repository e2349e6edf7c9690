"""The folder of a training run: its checkpoints are whole or not there, go by step, and one run at a time writes."""

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

# With the underscore nothing of it is pushed to the hub with the folder.
UNFINISHED = "_unfinished"
LOCK = "_training.lock"


def checkpoint_folders(folder: str | Path) -> list[Path]:
    """The checkpoints of a training run by step, whether another program left them complete or not.

    Example:
        >>> checkpoint_folders("output")  # nothing has been saved there
        []
    """
    found = Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*")
    return sorted((path for path in found if path.name.split("-")[-1].isdigit()), key=step_of)


def step_of(checkpoint: str | Path) -> int:
    """The optimizer step after which a checkpoint was saved.

    Example:
        >>> step_of("output/checkpoint-500")
        500
    """
    return int(Path(checkpoint).name.split("-")[-1])


def is_cut_off(checkpoint: Path) -> bool:
    """Whether what a checkpoint writes last is missing or not whole."""
    try:
        state = json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return True
    return not isinstance(state, dict)


def last_complete_checkpoint(folder: str | Path) -> str:
    """The checkpoint of the highest step that was saved to its end; later ones that were cut off are logged.

    Raises:
        ValueError: if there is none.
    """
    for path in reversed(checkpoint_folders(folder)):
        if not is_cut_off(path):
            return str(path)
        logger.warning("%s was cut off while it was saved: trying the one before it", path)
    raise ValueError(f"{folder} has no complete checkpoint to resume from")


def rotate(newest: Path, best: str | None, limit: int | None) -> None:
    """Delete checkpoints until ``limit`` are left; the newest and the best stay, and 0 or None deletes nothing.

    Those of later steps, which an earlier run left behind, go first, then those of the first steps. Transformers goes
    by the dates of the files.
    """
    order = sorted(
        checkpoint_folders(newest.parent), key=lambda path: (step_of(path) <= step_of(newest), step_of(path))
    )
    removable = [path for path in order if path != newest and str(path) != str(Path(best or ""))]
    for path in removable[: max(0, len(order) - limit) if limit else 0]:
        # Renamed first, so that a program that is killed here leaves no half of it.
        aside = path.with_name(UNFINISHED)
        aside.mkdir(exist_ok=True)
        shutil.rmtree(path.rename(aside / f"old-{path.name}"), ignore_errors=True)
        shutil.rmtree(aside, ignore_errors=True)


def publish(checkpoint: Path) -> Path:
    """Give a checkpoint that was written into the folder UNFINISHED its name, in place of an earlier one."""
    aside, target = checkpoint.parent, checkpoint.parent.with_name(checkpoint.name)
    if target.exists():
        target.rename(aside / f"old-{target.name}")
    checkpoint.rename(target)
    shutil.rmtree(aside, ignore_errors=True)
    return target


def check_writable(folder: str | Path) -> None:
    """Make the folder if need be.

    Raises:
        OSError: if nothing can be written there.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OSError(f"cannot write to the output folder {folder}: {error}") from error


@contextmanager
def sole_run(folder: str | Path, is_writer: bool = True) -> Iterator[None]:
    """Keep other programs from training into the folder until this one leaves, or dies; what it left half goes.

    Args:
        folder: where checkpoints go.
        is_writer: whether this process writes. Of several processes all have to come here.

    Raises:
        OSError: if another run is under way there.

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
        raise OSError(f"another run is training into {folder}: wait for its end, or choose another output_dir")
    try:
        if is_writer and lock.lock_counter == 1:
            shutil.rmtree(Path(folder, UNFINISHED), ignore_errors=True)
        yield
    finally:
        if is_writer and lock.lock_counter == 1:
            with suppress(OSError):  # Windows deletes no open file
                Path(folder, LOCK).unlink()
        lock.release()
