"""Every two options, wrappers, samplers, processes and precisions together: right, or refused when made."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.combinations import cases, check, refusal

CASES = cases()


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=[pytest.mark.slow] * (case.step == "compile"))
        for case in CASES
        if case.processes == "1"
    ],
    ids=str,
)
def test_one_process(case, tmp_path):
    check(case, tmp_path)


@pytest.mark.distributed
def test_two_processes():
    """All in one launch, which is what takes the time."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(
        [*launch, "-m", "tests.combinations"],
        cwd=Path(__file__).parent.parent,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=800,
    )
    expected = Counter("refused" if refusal(case) else "right" for case in CASES if case.processes != "1")
    assert done.returncode == 0, done.stdout[-8000:]
    assert done.stdout.count(str(dict(expected))) == 2, done.stdout[-3000:]  # once a process


def test_the_readme_says_how_many():
    counts = Counter("refused" if refusal(case) else "right" for case in CASES)
    text = (Path(__file__).parent.parent / "README.md").read_text()
    assert f"{counts['right']} combinations are right and {counts['refused']} are refused" in " ".join(text.split())
