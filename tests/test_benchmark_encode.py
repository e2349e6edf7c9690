"""benchmarks/encode.py runs, and its three ways of the STS tasks come to the same scores."""

import importlib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    module = importlib.import_module("encode")
    monkeypatch.setattr(module, "in_a_process", module.measured)
    return module


def test_both_tables(benchmark, tiny_bert, generated, capsys):
    sts = str(generated / "sts/raw")
    wiki = str(generated / "wiki/wiki_sentences.txt")
    benchmark.main(["--model", tiny_bert, "--texts", wiki, "--sts_dir", sts, "--rows", "40", "--rounds", "1"])
    printed = capsys.readouterr().out
    assert "### 40 texts" in printed
    assert "### The seven STS tasks, 280 pairs" in printed
    rows = [line.strip("| ").split(" | ") for line in printed.splitlines() if line.startswith("| ")]
    rows = {row[0]: row[1:] for row in rows}
    for name in ("SentenceTransformer.encode, defaults", "ST's evaluators, defaults"):
        assert rows[name][2] == "1.00"
    names = ("fast_encode", "Searcher.build_index", "st-simcse evaluate")
    assert all(f"{name}, float32" in rows for name in names)
    st = float(rows["ST's evaluators, defaults"][-1])
    assert 0 < abs(st) < 100
    assert float(rows["st-simcse evaluate, float32"][-1]) == st
    # Equal texts in different batches differ in the last digit, and cosines of 1 in their ranks.
    assert float(rows["SentEval's loop"][-1]) == pytest.approx(st, abs=0.5)
