"""Every example runs, and improves, on generated files with the real pretrained model; one on real data too."""

import base64
import json
import re
import subprocess
import sys
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from sentence_transformers import SentenceTransformer

from st_simcse import build_model, load_sts
from st_simcse.corpus import generate_corpus
from st_simcse.demo import save_tiny_transformer
from tests.forked import start, torchrun

EXAMPLES = Path(__file__).parent.parent / "examples"
NOTEBOOK = EXAMPLES / "own_domain.ipynb"


def _run(tmp_path, script, *options):
    process = start([str(EXAMPLES / script), *map(str, options)], tmp_path / "output.txt", tmp_path)
    output, _ = process.communicate()
    assert process.returncode == 0, output[-3000:]
    return output


def _scores(output):
    return [float(score) for score in re.findall(r"spearman_cosine': (?:np\.float64\()?([0-9.]+)", output)]


def _head(path, folder, rows, step=1):
    """The first rows of a file, or every so manieth, under the same name so that the reader sees the same kind."""
    lines = path.read_text().splitlines(keepends=True)
    folder.joinpath(path.name).write_text("".join([lines[0], *lines[1::step][: rows - 1]]))
    return folder / path.name


def _improves(script, model, train_file, dev_file, tmp_path):
    before = _scores(str(load_sts(dev_file)(build_model(model, pooling="cls"))))[-1]
    options = ["--model", model, "--train_file", train_file, "--dev_file", dev_file, "--max_steps", 4]
    output = _run(tmp_path, script, *options, "--output", tmp_path / "out")
    assert 0.5 < before < _scores(output)[-1] < 1
    assert (tmp_path / "out" / "modules.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("script", ["fit_unsup.py", "fit_sup.py", "trainer_unsup.py", "trainer_sup.py"])
def test_training_examples(generated, pretrained, tmp_path, script):
    train_file = generated / ("nli/nli_triplets.csv" if script.endswith("_sup.py") else "wiki/wiki_sentences.txt")
    _improves(script, pretrained, train_file, generated / "sts/raw/STSB-dev.tsv", tmp_path)


def test_training_improves_on_real_data(shared, pretrained, tmp_path):
    train_file = _head(shared / "wiki/wiki_sentences.txt", tmp_path, rows=512)
    dev_file = _head(shared / "sts/raw" / "STSB-dev.tsv", tmp_path, rows=301, step=5)
    _improves("trainer_unsup.py", pretrained, train_file, dev_file, tmp_path)


@pytest.mark.slow
def test_chinese(pretrained, tmp_path):
    people, places, things = ("人", "女人", "老人", "小孩"), ("家", "公园", "学校"), ("看书", "唱歌", "跳舞")
    meanings = list(product(people, places, things))
    pairs = list(zip(meanings, meanings[7:] + meanings[:7], strict=True)) + [(one, one) for one in meanings]
    rows = [
        f"{''.join(one)}。\t在{other[1]}，{other[0]}{other[2]}。\t{sum(map(str.__eq__, one, other))}"
        for one, other in pairs
    ]
    files = []
    for split in ("train", "valid", "test"):  # in the layout of senteval_cn, without a header
        file = tmp_path / f"STS-B.{split}.data"
        file.write_text("\n".join(rows))
        files += [f"--{split}_file".replace("valid", "dev"), file]
    before, after = _scores(_run(tmp_path, "chinese.py", "--model", pretrained, *files, "--max_steps", 3))
    assert 0.1 < before != after < 1


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    code = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    monkeypatch.chdir(tmp_path)
    shown, reports = [], []
    image = SimpleNamespace(Image=lambda path, width: shown.append(path), Markdown=reports.append)
    monkeypatch.setitem(sys.modules, "IPython.display", image)
    texts = generate_corpus().sentences[:400]
    for folder in ("sentence-transformers/all-MiniLM-L6-v2", "fancyzhx/ag_news/data"):
        Path(folder).mkdir(parents=True)
    save_tiny_transformer("sentence-transformers/all-MiniLM-L6-v2", texts, width=32, layers=2)
    features = Features({"text": Value("string"), "label": ClassLabel(names=["World", "Sports"])})
    news = Dataset.from_dict({"text": texts, "label": [len(text) % 2 for text in texts]}, features=features)
    news.to_parquet("fancyzhx/ag_news/data/test-00000-of-00001.parquet")
    namespace = {}
    for number, cell in enumerate(code):
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), namespace)
        if number == 0:  # the parameters
            namespace |= {"ROWS": 320, "BUDGET": "20s"}
    assert [Path(name).read_bytes()[:4] for name in shown] == [b"\x89PNG"]
    assert namespace["classes"] == [["World", "Sports"][len(text) % 2] for text in namespace["texts"]]
    (report,) = reports
    for part in ("## The chosen recipe", "whitened-simcse", "knn dev"):
        assert part in report
    assert "png" not in report
    plan = json.loads(Path("adapted/plan.json").read_text())
    assert (plan["texts"], plan["dev"]) == (160, {"knn dev": ["classes", 160]})
    before, after = namespace["embeddings"].values()
    assert before.shape == (320, 32)
    expected = SentenceTransformer("adapted/model", device="cpu").encode(namespace["texts"])
    np.testing.assert_allclose(after, expected, atol=1e-6)
    unit = after / np.linalg.norm(after, axis=1, keepdims=True)
    similarities = unit @ unit[7]
    nearest = sorted((similarities[row] for row in range(320) if row != 7), reverse=True)[:3]
    hits = namespace["neighbours"](after, 7)
    assert 7 not in [hit["corpus_id"] for hit in hits]
    assert [hit["score"] for hit in hits] == pytest.approx(nearest, abs=1e-5)


def _saved(cell):
    """What a cell printed when the notebook was saved."""
    return "".join("".join(output["text"]) for output in cell["outputs"] if output["output_type"] == "stream")


def test_the_outputs_of_the_notebook_are_saved_without_paths():
    code = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    pictures = [
        output["data"].pop("image/png", None) for cell in code for output in cell["outputs"] if "data" in output
    ]
    assert [base64.b64decode(picture)[:4] for picture in pictures if picture] == [b"\x89PNG"]
    outputs = json.dumps([cell["outputs"] for cell in code])
    assert not re.search(r"/(home|root|tmp|usr|opt|mnt)/|site-packages|\\\\Users|Traceback|stderr", outputs)
    (found,) = [_saved(cell) for cell in code if "def neighbours" in "".join(cell["source"])]
    blocks = re.split(r"^(?=\S)", found, flags=re.MULTILINE)[1:]
    assert len(blocks) == 3
    for block in blocks:
        query, *lines = block.splitlines()
        assert [line.strip() for line in lines[::4]] == ["before", "after"]
        texts = [re.sub(r"^\s*-?\d\.\d\d\s+", "", line) for line in lines if line.startswith("    ")]
        assert len(texts) == 6
        assert not any(text[:60] == query[:60] for text in texts)


@pytest.mark.slow
def test_search(pretrained, tmp_path, sentences):
    (tmp_path / "corpus.txt").write_text("\n".join(sentences))
    query = "An animal is resting."
    command = [sys.executable, str(EXAMPLES / "search.py"), "--model", pretrained, "--corpus", "corpus.txt", query]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "A cat sleeps on the couch." in done.stdout.splitlines()[1]


@pytest.mark.distributed
def test_distributed(generated, pretrained, tmp_path):
    small = _head(generated / "wiki/wiki_sentences.txt", tmp_path, rows=99)
    options = ["--model", pretrained, "--train_file", small, "--batch", 32, "--output", tmp_path / "out"]
    torchrun(2, [str(EXAMPLES / "distributed.py"), *map(str, options)], tmp_path / "output.txt", tmp_path)
    saved = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    start = build_model(pretrained, pooling="cls", device="cpu")
    text = "A cat sleeps."
    assert 1e-4 < abs(saved.encode(text) - start.encode(text)).max() < 1
