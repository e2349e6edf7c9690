"""Every example runs on real data with the real pretrained model."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from sentence_transformers import SentenceTransformer

from st_simcse import build_model

EXAMPLES = Path(__file__).parent.parent / "examples"


def _run(tmp_path, script, *options):
    command = [sys.executable, str(EXAMPLES / script), *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("script", ["fit_unsup.py", "fit_sup.py", "trainer_unsup.py", "trainer_sup.py"])
def test_training_examples(shared, pretrained, tmp_path, script):
    train_file = shared / ("nli/nli_triplets.csv" if script.endswith("_sup.py") else "wiki/wiki_sentences.txt")
    # the first 512 rows, under the same name so that the reader sees the same kind of file
    small = tmp_path / train_file.name
    small.write_text("".join(train_file.read_text().splitlines(keepends=True)[:512]))
    dev = tmp_path / "STSB-dev.tsv"
    dev.write_text("".join((shared / "sts/raw/STSB-dev.tsv").read_text().splitlines(keepends=True)[:300]))
    options = ["--model", pretrained, "--train_file", small, "--dev_file", dev, "--max_steps", 4]
    output = _run(tmp_path, script, *options, "--output", tmp_path / "out")
    # CLS pooling starts below 0.8 on these pairs
    assert 0.5 < float(re.findall(r"spearman_cosine': (?:np\.float64\()?([0-9.]+)", output)[-1]) < 1
    assert (tmp_path / "out" / "modules.json").exists()


def test_chinese(shared, pretrained, tmp_path):
    for split in ("dev", "test"):
        rows = (shared / f"sts/zh/STSB-{split}.tsv").read_text().splitlines(keepends=True)
        (tmp_path / f"STSB-{split}.tsv").write_text("".join(rows[:200]))
    files = ["--dev_file", tmp_path / "STSB-dev.tsv", "--test_file", tmp_path / "STSB-test.tsv"]
    output = _run(tmp_path, "chinese.py", "--model", pretrained, *files, "--max_steps", 3)
    before, after = (float(value) for value in re.findall(r"spearman_cosine': (?:np\.float64\()?([0-9.]+)", output))
    assert 0.1 < before != after < 1


def test_search(pretrained, tmp_path, sentences):
    (tmp_path / "corpus.txt").write_text("\n".join(sentences))
    query = "An animal is resting."
    output = _run(tmp_path, "search.py", "--model", pretrained, "--corpus", tmp_path / "corpus.txt", query)
    assert "A cat sleeps on the couch." in output.splitlines()[1]


def test_distributed(shared, pretrained, tmp_path):
    small = tmp_path / "wiki.txt"
    small.write_text("".join((shared / "wiki/wiki_sentences.txt").read_text().splitlines(keepends=True)[:99]))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    options = ["--model", pretrained, "--train_file", small, "--batch", 32, "--output", tmp_path / "out"]
    command = [*launch, str(EXAMPLES / "distributed.py"), *map(str, options)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    saved = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    start = build_model(pretrained, pooling="cls", device="cpu")
    text = "A cat sleeps."
    assert 1e-4 < abs(saved.encode(text) - start.encode(text)).max() < 1
