"""benchmarks/whole_run.py trains three times, and its table has the dev score of each saved model."""

import importlib
from pathlib import Path
from types import SimpleNamespace

from st_simcse import cli
from st_simcse.demo import save_tiny_transformer

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def test_the_table(monkeypatch, capsys, tmp_path, sentences, generated):
    monkeypatch.syspath_prepend(BENCHMARKS)
    whole_run = importlib.import_module("whole_run")
    ran = []

    def in_this_process(words, **options):
        ran.append(words[1:3])
        cli.main(words[3:]) if words[1] == "-m" else whole_run.train_by_st(*words[3:])
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(whole_run, "subprocess", SimpleNamespace(run=in_this_process))
    save_tiny_transformer(tmp_path / "model", sentences, width=32, layers=4)
    (tmp_path / "train.txt").write_text("\n".join(sentences))
    files = {"train": tmp_path / "train.txt", "dev": generated / "sts/raw/STSB-dev.tsv"}
    words = [word for name, path in files.items() for word in (f"--{name}_file", str(path))]
    whole_run.main(["--model", str(tmp_path / "model"), *words, "--rounds", "1"])

    assert [first for first, _ in ran] == [str(BENCHMARKS / "whole_run.py"), "-m", "-m"]
    printed = capsys.readouterr().out.partition("| times | dev |\n")[2].splitlines()
    rows = [line.strip("| ").split(" | ") for line in printed if line.startswith("| ")][1:]
    assert [row[0] for row in rows] == list(whole_run.CANDIDATES)
    assert rows[0][3] == "1.00"
    assert all(-100 < float(row[-1]) < 100 for row in rows)
    # Shared layers train other weights.
    assert rows[1][-1] != rows[2][-1]
