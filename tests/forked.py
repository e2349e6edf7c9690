"""``python WORDS`` and ``torchrun WORDS`` without the imports: a process that has imported the libraries is forked.

The imports take six seconds of a core, more than most of what is tested in a process of its own. One test of each
launcher and command starts a real process.
"""

from __future__ import annotations

import functools
import gc
import multiprocessing
import os
import runpy
import sys
import time
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

# For the process that forks: what the commands and the checks of several processes need.
import conftest  # noqa: F401
import st_simcse.cli.train  # noqa: F401

ROOT = Path(__file__).parent.parent


@functools.cache
def _context() -> Any:
    """Whose processes begin as a copy of one that has imported this module."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("OMP_NUM_THREADS", "1")  # no threads, which a fork would lose
        multiprocessing.forkserver.ensure_running()
    return context


@dataclass
class Forked:
    """What tests use of a ``subprocess.Popen``. What the process prints is at the end of the file ``output``."""

    process: Any
    output: Path

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def wait(self, timeout: float | None = None) -> int | None:
        self.process.join(timeout)
        return self.process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        self.wait(timeout)
        return self.output.read_text(), None


def start(words: list[str], output: Path, folder: Path = ROOT, **environment: str) -> Forked:
    """``python WORDS``, started."""
    variables = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    process = _context().Process(target=_run, args=(words, output, folder, variables))
    process.start()
    return Forked(process, output)


def _run(words: list[str], output: Path, folder: Path, variables: dict[str, str]) -> None:
    with output.open("ab") as file:
        for printed in (1, 2):
            os.dup2(file.fileno(), printed)
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    gc.freeze()
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


def torchrun(processes: int, words: list[str], output: Path, folder: Path = ROOT, **environment: str) -> str:
    """What ``torchrun --standalone --nproc_per_node=PROCESSES WORDS`` prints; every process has to succeed."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "LOCAL_WORLD_SIZE": str(processes)}
    environment |= {"WORLD_SIZE": str(processes), "GROUP_RANK": "0"}
    environment |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    started = [
        start(words, output, folder, RANK=str(rank), LOCAL_RANK=str(rank), **environment) for rank in range(processes)
    ]
    end = time.monotonic() + 800
    running = list(started)
    while running and not any(rank.returncode for rank in started) and time.monotonic() < end:
        wait([rank.process.sentinel for rank in running], timeout=1)
        running = [rank for rank in running if rank.poll() is None]
    for rank in running:  # which would wait for the one that failed
        rank.process.kill()
        rank.wait()
    printed = output.read_text()
    assert [rank.returncode for rank in started] == [0] * processes, printed[-8000:]
    return printed
