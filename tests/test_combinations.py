"""Every two options, wrappers, samplers, processes and precisions together: right, or refused when made."""

from collections import Counter
from pathlib import Path

import pytest

from tests.combinations import cases, check, refusal
from tests.forked import torchrun

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
def test_two_processes(tmp_path):
    """All in one launch, which is what takes the time."""
    printed = torchrun(2, ["-m", "tests.combinations"], tmp_path / "output.txt")
    expected = Counter("refused" if refusal(case) else "right" for case in CASES if case.processes != "1")
    assert printed.count(str(dict(expected))) == 2, printed[-3000:]  # once a process


def test_the_readme_says_how_many():
    counts = Counter("refused" if refusal(case) else "right" for case in CASES)
    text = (Path(__file__).parent.parent / "README.md").read_text()
    assert f"{counts['right']} combinations are right and {counts['refused']} are refused" in " ".join(text.split())
