"""Wheel and sdist hold what they should: the wheel the package alone, the sdist all that its own tests need."""

import re
import runpy
import shutil
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


@pytest.mark.slow
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
    needed |= {"CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "SECURITY.md", "mkdocs.yml"}
    needed |= {".ci/lowest", ".ci/addresses", ".github/workflows/release.yml"}
    assert needed <= names, needed - names
    assert not any("__pycache__" in name or name.endswith(".pyc") for name in names)


def test_the_citation_is_of_this_version():
    version = re.search('^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()


def test_a_release_leads_to_its_repository(tmp_path, monkeypatch):
    """The index shows the README without the files that it links to."""
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    address = "https://example.org/me/it"
    monkeypatch.setattr(sys, "argv", ["addresses", f"{address}/", "v1.2.3"])
    runpy.run_path(str(ROOT / ".ci/addresses"))

    before, after = (re.findall(r"\]\(([^)]*)\)", (folder / "README.md").read_text()) for folder in (ROOT, tmp_path))
    kinds = {".png": "raw", ".svg": "raw"}
    expected = [
        link if link.startswith("https:") else f"{address}/{kinds.get(Path(link).suffix, 'blob')}/v1.2.3/{link}"
        for link in before
    ]
    assert after == expected
    assert f"{address}/raw/v1.2.3/docs/similarities.png" in after
    code = [re.findall(r"```.*?```", (folder / "README.md").read_text(), re.DOTALL) for folder in (ROOT, tmp_path)]
    assert code[0] == code[1]

    urls = (tmp_path / "pyproject.toml").read_text().split("[project.urls]\n")[1].split("\n\n")[0].splitlines()
    assert f'Repository = "{address}"' in urls
    assert f'Documentation = "{address}/tree/v1.2.3/docs"' in urls
    assert 'Paper = "https://aclanthology.org/2021.emnlp-main.552"' in urls


def test_a_release_calls_what_writes_its_addresses():
    steps = (ROOT / ".github/workflows/release.yml").read_text()
    call = 'python3 .ci/addresses "$GITHUB_SERVER_URL/$GITHUB_REPOSITORY" "$GITHUB_REF_NAME"'
    assert 0 < steps.index(call) < steps.index("uv build")
