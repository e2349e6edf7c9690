"""Wheel and sdist hold what they should: the wheel the package alone, the sdist all that its own tests need."""

import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Both, the wheel out of the sdist, so that the sdist is shown to build."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder


def _sources(*folders):
    return {
        path.relative_to(ROOT).as_posix()
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_wheel(built):
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        entry_points = wheel.read(next(name for name in wheel.namelist() if name.endswith("entry_points.txt")))
    assert names == _sources("st_simcse")
    assert b"st-simcse = st_simcse.cli:main" in entry_points


def test_sdist(built):
    with tarfile.open(next(built.glob("*.tar.gz"))) as sdist:
        names = {name.split("/", 1)[1] for name in sdist.getnames() if "/" in name}
    needed = _sources("st_simcse", "tests", "docs", "examples", "benchmarks")
    needed |= {"conftest.py", "Makefile", "README.md", "README.zh.md", "LICENSE", "pyproject.toml"}
    needed |= {"CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "SECURITY.md", "mkdocs.yml", ".ci/lowest"}
    assert needed <= names, needed - names
    assert not any("__pycache__" in name or name.endswith(".pyc") for name in names)


def test_the_citation_is_of_this_version():
    version = re.search('^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()


def test_make_says_how_long_the_tests_take_and_why_some_are_skipped():
    before, _ = (ROOT / "Makefile").read_text().split("\t.venv/bin/pytest -n auto")
    said = "\n".join(line for line in before.splitlines()[-2:] if line.startswith("\t@echo"))
    assert re.search(r"a quarter of an hour on two cores.*skipped without it.*which, why", said, re.DOTALL)
    options = (ROOT / "pyproject.toml").read_text().split("addopts = ")[1].splitlines()[0]
    assert "-ra" in options  # the reasons, at the end
