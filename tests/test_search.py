import json
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import faiss
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from datasets import Dataset
from filelock import FileLock
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer
from torch.nn.functional import normalize

from st_simcse import Searcher, build_model, cli, fast_encode
from st_simcse.cli import encode
from st_simcse.corpus import generate_corpus
from st_simcse.demo import tiny_model
from st_simcse.models.checkpoints import load_model
from st_simcse.search import searcher as search
from st_simcse.search.fingerprint import fingerprint, text_digest
from st_simcse.search.index_folder import IndexFolder
from st_simcse.search.neighbours import HNSWIndex, IVFIndex
from st_simcse.search.searcher import cached_searcher
from tests.inputs import without_special_tokens

ROOT = Path(__file__).parent.parent


@pytest.fixture
def embedded(monkeypatch):
    """The sentences that were embedded as part of a corpus."""
    texts = []
    encode = SentenceTransformer.encode_document
    monkeypatch.setattr(
        SentenceTransformer,
        "encode_document",
        lambda model, inputs, **options: (texts.extend(inputs), encode(model, inputs, **options))[1],
    )
    return texts


def _cosines(model, queries, sentences):
    a, b = (np.asarray(model.encode(texts), dtype=np.float64) for texts in (queries, sentences))
    return [[float(x @ y) / np.sqrt(float(x @ x) * float(y @ y)) for y in b] for x in a]


@pytest.mark.parametrize("has_faiss", [True, False])
def test_neighbours_are_those_of_a_loop_in_float64(model, sentences, has_faiss, monkeypatch):
    assert find_spec("faiss"), "the extra test has it"
    if not has_faiss:
        monkeypatch.setitem(sys.modules, "faiss", None)
    searcher = Searcher(model)
    searcher.build_index(sentences)
    queries = ["a dog runs", "the woman"]
    found = searcher.search(queries, top_k=3)
    for cosines, hits in zip(_cosines(model, queries, sentences), found, strict=True):
        expected = sorted(zip(cosines, range(8), sentences, strict=True), reverse=True)[:3]
        assert [(hit["corpus_id"], hit["text"]) for hit in hits] == [row[1:] for row in expected]
        assert [hit["score"] for hit in hits] == pytest.approx([row[0] for row in expected], abs=1e-6)
    assert [hit["corpus_id"] for hit in searcher.search(queries[0], top_k=3)] == [hit["corpus_id"] for hit in found[0]]
    between = (found[0][1]["score"] + found[0][2]["score"]) / 2
    assert searcher.search(queries, top_k=3, threshold=between)[0] == found[0][:2]
    assert len(searcher.search(queries[0], top_k=99)) == 8
    assert searcher.search([]) == []
    with pytest.raises(ValueError, match="top_k must be at least 1, got 0"):
        searcher.search("a dog", top_k=0)


def test_similarities_of_texts_lists_and_arrays(model, sentences):
    searcher = Searcher(model.bfloat16())
    expected = np.array(_cosines(model, sentences[:2], sentences))
    embeddings = searcher.encode(sentences)
    assert embeddings.dtype == np.float32
    assert np.linalg.norm(embeddings.astype(np.float64), axis=1) == pytest.approx(1, abs=1e-6)
    for a, b in [
        (sentences[:2], sentences),
        (sentences[:2], 3 * embeddings),
        (torch.tensor(embeddings[:2], requires_grad=True), sentences),
    ]:
        assert searcher.similarity(a, b) == pytest.approx(expected, abs=1e-2)
    assert searcher.similarity(sentences[0], embeddings) == pytest.approx(expected[0], abs=1e-2)
    assert searcher.similarity(sentences, sentences[0]) == pytest.approx(expected[0], abs=1e-2)
    assert isinstance(searcher.similarity(sentences[0], sentences[1]), float)


@pytest.mark.parametrize("precision", ["int8", "uint8", "binary", "ubinary"])
def test_quantized_embeddings_are_refused(model, sentences, precision):
    quantized = model.encode(sentences, precision=precision)
    for side in (quantized, torch.tensor(quantized)):
        with pytest.raises(ValueError, match="quantized or packed bits.* Call encode without precision"):
            Searcher(model).similarity(sentences[0], side)


def test_several_devices_are_a_pool_of_st(model, sentences, monkeypatch):
    pool, used, stopped = {"processes": []}, [], []
    encode = SentenceTransformer.encode

    def in_the_pool(model, inputs, pool=None, **options):
        used.append(pool)
        return encode(model, inputs, **options)

    monkeypatch.setattr(SentenceTransformer, "encode", in_the_pool)
    monkeypatch.setattr(SentenceTransformer, "start_multi_process_pool", lambda model, devices: (devices, pool)[1])
    monkeypatch.setattr(SentenceTransformer, "stop_multi_process_pool", staticmethod(stopped.append))
    monkeypatch.setattr(search, "CHUNK_SIZE", 3)
    searcher = Searcher(model)
    searcher.build_index(sentences, device=["cpu", "cpu"])
    assert searcher.embeddings == pytest.approx(searcher.encode(sentences, pool=pool), abs=1e-6)
    assert used == [pool] * 4  # three chunks, and encode
    assert stopped == [pool]


def test_an_index_is_saved_opened_and_added_to(tmp_path, model, sentences, embedded):
    (tmp_path / "corpus.txt").write_text("\n".join([*sentences[:5], sentences[0]]))
    searcher = Searcher(model)
    searcher.build_index(tmp_path / "corpus.txt")
    searcher.add_to_index(sentences[5:])
    assert embedded == sentences  # equal lines once, and nothing twice
    searcher.save(tmp_path / "saved")
    opened = Searcher.load(tmp_path / "saved", model)
    assert opened.sentences["sentence"][:] == sentences
    assert isinstance(opened.embeddings, np.memmap)
    assert opened.embeddings == pytest.approx(searcher.encode(sentences), abs=1e-6)
    assert opened.search(sentences) == searcher.search(sentences)
    opened.add_to_index(Dataset.from_dict({"sentence": ["A dog sleeps."]}))
    assert opened.search("A dog sleeps.")[0]["corpus_id"] == 8
    assert Searcher.load(tmp_path / "saved", model).search("A dog sleeps.", 9) == opened.search("A dog sleeps.", 9)
    assert len(searcher.search("A dog sleeps.", 9)) == 8
    assert embedded == [*sentences, "A dog sleeps."]
    with pytest.raises(FileExistsError, match="saved is not empty. Save the index to a new folder"):
        searcher.save(tmp_path / "saved")


@pytest.mark.parametrize("before", [True, False])
def test_strings_of_pandas_and_of_a_list_share_an_index(tmp_path, model, sentences, before):
    table = pa.table({"sentence": pa.array(sentences[:4], pa.large_string())})
    parts = [Dataset(table), sentences[4:]] if before else [sentences[4:], Dataset(table)]
    searcher = Searcher(model)
    searcher.build_index(parts[0], tmp_path)
    searcher.add_to_index(parts[1])
    opened = Searcher.load(tmp_path, model)
    for sentence in sentences:
        assert opened.search(sentence, top_k=1)[0]["text"] == sentence


def test_a_file_that_has_grown_is_added_without_what_the_index_has(tmp_path, model, sentences, embedded, caplog):
    file = tmp_path / "corpus.txt"
    searcher = Searcher(model)
    searcher.build_index(sentences[:5], tmp_path / "index")
    for expected in (sentences, sentences):  # the second call has nothing to add
        file.write_text("\n".join([*sentences, sentences[6]]))
        searcher.add_to_index(file)
        assert searcher.sentences["sentence"][:] == embedded == expected
    assert "5 of 8 sentences are in the index already and were left out" in caplog.text
    assert "8 of 8 sentences are in the index already" in caplog.text
    searcher.add_to_index(file, skip_known=False)
    searcher.add_to_index(sentences[:2])
    assert searcher.sentences["sentence"][:] == [*sentences, *sentences, *sentences[:2]]
    searcher.add_to_index([*sentences[:2], "A new one.", "A new one."], skip_known=True)
    assert searcher.sentences["sentence"][:][18:] == ["A new one.", "A new one."]
    assert searcher.embeddings == pytest.approx(
        model.encode(searcher.sentences["sentence"][:], normalize_embeddings=True), abs=1e-6
    )


def test_an_interrupted_add_of_a_file_that_has_grown_goes_on(killed, model, sentences, tmp_path, embedded):
    searcher = Searcher.load(killed, model)
    for texts in (sentences[:6], sentences[5:]):
        with pytest.raises(ValueError, match="killed is unfinished: 8 of 8 sentences are embedded"):
            searcher.add_to_index(texts[:2], skip_known=True)
    searcher.add_to_index(sentences[2:], skip_known=True)
    assert searcher.sentences["sentence"][:] == sentences
    assert embedded == []
    assert json.loads((killed / "index.json").read_text())["finished"] == 2


def test_an_index_has_one_precision(tmp_path, model, sentences, monkeypatch):
    monkeypatch.setattr("st_simcse.models.precision.computes_in_bf16", lambda use_cpu: False)
    Searcher(model).build_index(sentences[:4], tmp_path)
    for precision in ("auto", "float32"):
        Searcher(model, precision).build_index(sentences[:4], tmp_path)
    message = (
        "were computed in float32, not in bfloat16. Choose the precision float32 or auto, choose a different folder"
    )
    with pytest.raises(ValueError, match=message):
        Searcher(model, "bfloat16").build_index(sentences[:4], tmp_path)
    for precision in ("auto", "float32"):
        Searcher.load(tmp_path, model, precision).add_to_index(sentences[4:6])
    with pytest.raises(ValueError, match=message):
        Searcher.load(tmp_path, model, "bfloat16").add_to_index(sentences[6:])
    assert len(Searcher.load(tmp_path, model, "bfloat16").search(sentences[0], 99)) == 8  # queries may differ
    monkeypatch.setattr("st_simcse.models.precision.computes_in_bf16", lambda use_cpu: True)
    Searcher(model).build_index(sentences, tmp_path / "half")
    Searcher(model, "bfloat16").build_index(sentences, tmp_path / "half")
    with pytest.raises(ValueError, match="were computed in bfloat16, not in float32"):
        Searcher(model, "float32").build_index(sentences, tmp_path / "half")


KILLED = """
import os, signal, sys
from datasets import Dataset
from st_simcse import Searcher
from st_simcse.search import searcher as search

search.CHUNK_SIZE = 3
fsync = os.fsync

def run(work, kill_at=None):
    calls = []
    def counted(file):  # a chunk is written, and does not count yet
        calls.append(1)
        if len(calls) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(file)
    if not (child := os.fork()):
        os.fsync = counted
        work()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == (9 if kill_at else 0)

_, model, corpus, more, first, second = sys.argv
Dataset.save_to_disk, save = lambda *args: os.kill(os.getpid(), signal.SIGKILL), Dataset.save_to_disk
run(lambda: Searcher(model).build_index(corpus, first), kill_at=1)  # before the first text is written
Dataset.save_to_disk = save
run(lambda: Searcher(model).build_index(corpus, first), kill_at=2)
run(lambda: Searcher(model).build_index(corpus, second))
run(lambda: Searcher.load(second, model).add_to_index(more), kill_at=2)
"""


@pytest.mark.slow
def test_what_kill_9_interrupted_goes_on(tmp_path, tiny_bert, sentences, embedded, monkeypatch):
    monkeypatch.setattr(search, "CHUNK_SIZE", 3)
    corpus, more, first, second = (tmp_path / name for name in ("corpus.txt", "more.txt", "first", "second"))
    corpus.write_text("\n".join(sentences))
    others = [f"{sentence[:-1]} again." for sentence in sentences[:5]]
    more.write_text("\n".join(others))
    words = [sys.executable, "-c", KILLED, tiny_bert, *map(str, (corpus, more, first, second))]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]

    searcher = Searcher.load(first, tiny_bert)
    with pytest.raises(
        ValueError, match="first is unfinished: 3 of 8 sentences are embedded. Repeat the interrupted call"
    ):
        searcher.search("a dog")
    with pytest.raises(ValueError, match="has an index of different texts"):
        searcher.build_index(more, first)
    searcher.build_index(corpus, first)
    assert embedded == sentences[3:]
    with pytest.raises(ValueError, match="second is unfinished: 11 of 13"):
        Searcher.load(second, tiny_bert).add_to_index(corpus)
    added = Searcher.load(second, tiny_bert)
    added.add_to_index(more)
    assert embedded[5:] == others[3:]

    whole = Searcher(tiny_bert)
    whole.build_index(corpus)
    assert np.array_equal(whole.embeddings, searcher.embeddings)
    whole.add_to_index(more)
    assert np.array_equal(whole.embeddings, added.embeddings)
    assert whole.search(sentences) == added.search(sentences)


@pytest.fixture
def killed(tmp_path, model, sentences, monkeypatch):
    """A graph of the first six sentences, whose add of two more was killed while faiss's graph grew."""

    def kill(folder):
        raise KeyboardInterrupt

    Searcher(model).build_index(sentences[:6], tmp_path / "killed", HNSWIndex(4))
    with monkeypatch.context() as patch:
        patch.setattr(IndexFolder, "neighbours", kill)
        searcher = Searcher(model)
        searcher._folder = IndexFolder(tmp_path / "killed")
        with pytest.raises(KeyboardInterrupt):
            searcher.add_to_index(sentences[6:])
    return tmp_path / "killed"


def test_an_add_that_was_killed_while_the_graph_grew_adds_nothing_twice(killed, model, sentences, embedded):
    searcher = Searcher.load(killed, model)
    with pytest.raises(
        ValueError, match="killed is unfinished: 8 of 8 sentences are embedded. Repeat the interrupted call"
    ):
        searcher.add_to_index(sentences[:2])
    searcher.add_to_index(sentences[6:])
    assert searcher.sentences["sentence"][:] == sentences
    assert searcher.embeddings == pytest.approx(searcher.encode(sentences), abs=1e-6)
    assert faiss.read_index(str(killed / "hnsw4.faiss")).ntotal == 8
    assert embedded == []
    searcher.add_to_index(sentences[6:])  # of its own accord, after an add that came to its end
    assert Searcher.load(killed, model).sentences["sentence"][:] == [*sentences, *sentences[6:]]


def test_an_index_of_a_version_that_recorded_no_end_is_read_and_never_doubled(killed, model, sentences):
    file = killed / "index.json"
    description = json.loads(file.read_text())
    assert description.pop("finished") == 1
    file.write_text(json.dumps(description))
    searcher = Searcher.load(killed, model)
    assert searcher.search(sentences[7], top_k=1)[0]["corpus_id"] == 7
    with pytest.raises(ValueError, match="killed already has these texts, and all of its 8 sentences are embedded"):
        searcher.add_to_index(sentences[6:])
    searcher.add_to_index(sentences[:1])
    assert searcher.sentences["sentence"][:] == [*sentences, sentences[0]]
    assert json.loads(file.read_text())["finished"] == 3
    searcher.add_to_index(sentences[:1])
    assert len(searcher.embeddings) == 10


def test_sentences_of_a_changed_model_are_not_added(tmp_path, model, sentences, embedded):
    searcher = Searcher(model)
    searcher.build_index(sentences[:6], tmp_path)
    model.max_seq_length = 3
    with pytest.raises(
        ValueError, match="was made by a different model, or by this model with different settings or prompts"
    ):
        searcher.add_to_index(sentences[6:])
    assert embedded == sentences[:6]
    assert len(Searcher.load(tmp_path, tiny_model(sentences, width=32)).sentences) == 6


def test_a_finished_index_is_taken_as_it_is(tmp_path, model, sentences, embedded):
    Searcher(model).build_index(sentences, tmp_path)
    Searcher(model).build_index(sentences, tmp_path)
    assert embedded == sentences
    with pytest.raises(
        ValueError, match="Choose a different folder, delete this one, or add the texts to its index with add_to_index"
    ):
        Searcher(model).build_index(sentences[1:], tmp_path)


def _longer(model):
    model.max_seq_length = 3


def _prompt(model):
    model.prompts["document"] = "dog "


def _weight(model):
    with torch.no_grad():
        next(model.parameters()).flatten()[7] += 1e-3


def _dtype(model):
    model.bfloat16()


def _pooling(model):
    model[1].pooling_mode = "max"


def _activation(model):
    model[0].model.config.hidden_act = "relu"


def _truncation(model):
    model.tokenizer.truncation_side = "left"


def _padding(model):
    model.tokenizer.padding_side = "left"


def test_who_waited_for_the_folder_takes_what_is_there_then(tmp_path, model, sentences, embedded, monkeypatch):
    lock = IndexFolder.lock

    def later(folder):
        monkeypatch.setattr(IndexFolder, "lock", lock)
        Searcher(model).build_index(sentences, tmp_path)
        return lock(folder)

    monkeypatch.setattr(IndexFolder, "lock", later)
    searcher = Searcher(model)
    searcher.build_index(sentences, tmp_path)
    assert searcher.search(sentences[2], top_k=1)[0]["corpus_id"] == 2
    assert embedded == sentences


def test_another_model_is_refused(tmp_path, sentences):
    Searcher(tiny_model(sentences)).build_index(sentences, tmp_path)
    rest = "the weights or the configuration of a module differ"
    pooling = r"modules: \['Transformer', 'Pooling \(mean\)'\] in the index, \['Transformer', 'Pooling \(max\)'\] now"
    for change, difference in (
        (_longer, "max_seq_length: 64 in the index, 3 now"),
        (_prompt, "prompts: .* in the index, .*'document': 'dog '.* now"),
        (_weight, rest),
        (_dtype, "dtype: 'float32' in the index, 'bfloat16' now"),
        (_pooling, pooling),
        (_activation, rest),
        (_truncation, "the tokenizer differs"),
        (_padding, "the tokenizer differs"),
    ):
        changed = tiny_model(sentences)
        change(changed)
        with pytest.raises(ValueError, match=rf"by a different model, .* \({difference}\)\. .*delete this one\.$"):
            Searcher.load(tmp_path, changed)
        with pytest.raises(
            ValueError, match="was made by a different model, or by this model with different settings or prompts"
        ):
            Searcher(changed).build_index(sentences, tmp_path)


def test_each_precision_has_its_own_cache(tmp_path, sentences):
    """The embeddings of a cache in bfloat16 are not those that a caller of float32 asked for."""
    model = tiny_model(sentences)
    rows = {}
    for precision in ("bfloat16", "float32", "bfloat16"):
        searcher = cached_searcher(fast_encode(model, precision), sentences, tmp_path)
        rows.setdefault(precision, np.array(searcher.embeddings))
    assert len(list(tmp_path.iterdir())) == 2
    expected = model.encode(sentences, normalize_embeddings=True)
    np.testing.assert_allclose(rows["float32"], expected, atol=1e-6)
    assert np.abs(rows["bfloat16"] - expected).max() > 1e-5


def test_the_digests_of_other_texts_differ(sentences):
    different = [sentences, sentences[::-1], sentences[1:], [*sentences, "A dog."], [" ".join(sentences)]]
    assert len({text_digest(texts) for texts in different}) == len(different)


def test_the_fingerprint_is_the_same_after_use_and_wherever_the_model_lies(tmp_path, sentences):
    model = tiny_model(sentences)
    names = {fingerprint(model)}
    model.encode(sentences[:2])
    names.add(fingerprint(model))
    for folder in ("a", "b"):
        model.save_pretrained(str(tmp_path / folder))
        names.add(fingerprint(SentenceTransformer(str(tmp_path / folder))))
    assert len(names) == 1


def _router(query, document):
    return SentenceTransformer(modules=[Router.for_query_document([*query], [*document])], device="cpu")


def test_the_fingerprint_sees_every_tokenizer_and_length_of_a_router(tmp_path, sentences):
    def two(change=lambda document: None, words=sentences):
        query, document = tiny_model(sentences), tiny_model(words)
        change(document)
        return _router(query, document)

    first = two()
    other_words = [sentence.replace("dogs", "hogs") for sentence in sentences]  # as many, so that the weights are equal
    others = [
        two(words=other_words),
        two(_truncation),
        two(_padding),
        two(_longer),
        _router(*reversed([tiny_model(sentences), tiny_model(other_words)])),
    ]
    assert len({fingerprint(model) for model in [first, *others]}) == 6
    for number, model in enumerate([first, others[0], *others[3:]]):  # transformers saves no sides that were set later
        model.save_pretrained(str(tmp_path / str(number)))
        assert fingerprint(SentenceTransformer(str(tmp_path / str(number)), device="cpu")) == fingerprint(model)


def test_the_fingerprint_sees_where_a_static_embedding_cuts(sentences):
    def static():
        torch.manual_seed(0)
        tokenizer = Tokenizer.from_str(tiny_model(sentences).tokenizer.backend_tokenizer.to_str())
        return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=8)], device="cpu")

    cut = static()
    cut.tokenizer.enable_truncation(3)
    assert not np.array_equal(cut.encode(sentences[0]), static().encode(sentences[0]))
    assert fingerprint(cut) != fingerprint(static()) == fingerprint(static())


def test_what_cannot_be_searched_is_said(tmp_path, model, sentences):
    searcher = Searcher(model)
    for call in (
        lambda: searcher.search("a dog"),
        lambda: searcher.add_to_index(sentences),
        lambda: searcher.save("a"),
    ):
        with pytest.raises(ValueError, match="There is no index yet. Call build_index or Searcher.load first"):
            call()
    with pytest.raises(ValueError, match="The corpus has no sentences"):
        searcher.build_index([])
    with pytest.raises(ValueError, match=r"the single column 'sentence', got \['text'\]"):
        searcher.build_index(Dataset.from_dict({"text": sentences}))
    with pytest.raises(FileNotFoundError, match="nowhere has no index"):
        Searcher.load(tmp_path / "nowhere", model)
    searcher.build_index(sentences, tmp_path / "index")
    file = tmp_path / "index" / "embeddings.npy"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"embeddings.npy is damaged .*\. Delete it, and repeat the last call"):
        Searcher.load(tmp_path / "index", model)
    file.unlink()
    searcher.build_index(sentences, tmp_path / "index")
    assert searcher.search(sentences[1])[0]["corpus_id"] == 1
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").touch()
    with pytest.raises(
        FileExistsError, match="other is not an index and is not empty: it has 'thesis.txt'. Choose a new folder"
    ):
        searcher.build_index(sentences, tmp_path / "other")
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(ValueError, match="The embeddings of sentence 0 and 7 more are NaN or infinite"):
        searcher.build_index(sentences, tmp_path / "nan")


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_texts_without_a_token_are_named(tmp_path, sentences, pooling):
    """A zero-width space is no blank for a reader, and no token for BERT's tokenizer."""
    model = without_special_tokens(tiny_model(sentences, pooling=pooling))
    searcher = Searcher(model)
    remedy = "has no tokens, .* Leave it out"
    for text in ("", "   ", "\u200b"):
        for texts in (text, ["a dog", text]):
            row = 0 if isinstance(texts, str) else 1
            with pytest.raises(ValueError, match=f"text {row}, {re.escape(repr(text))}, {remedy}"):
                searcher.encode(texts)
    (tmp_path / "corpus.txt").write_text("\n".join([*sentences, "\u200b", "", "a dog"]), encoding="utf-8")
    for texts, message in [
        ([sentences[0], "", "a", " "], "sentence 1, '', and 1 more,"),
        (tmp_path / "corpus.txt", r"sentence 8, '\\u200b',"),
    ]:
        with pytest.raises(ValueError, match=f"{message} {remedy}"):
            searcher.build_index(texts, tmp_path / "index")
    searcher.build_index(sentences, tmp_path / "index")  # which nothing of them hinders
    with pytest.raises(ValueError, match=f"sentence 1, '', {remedy}"):
        searcher.add_to_index(["a dog", ""])
    searcher.add_to_index(["a dog"])
    assert len(searcher.embeddings) == 9
    for queries, row in [("", 0), (["a dog", ""], 1)]:
        with pytest.raises(ValueError, match=f"query {row}, '', {remedy}"):
            searcher.search(queries)
    with pytest.raises(ValueError, match=f"text 0, '', {remedy}"):
        searcher.similarity("a dog", "")
    expected = searcher.search("the woman")
    model.prompts["query"] = "the woman "
    assert searcher.search("") == expected


def test_empty_texts_of_other_models_are_embedded(model, static_model, sentences):
    for other in (model.eval(), static_model.eval()):
        searcher = Searcher(other)
        assert searcher.encode(["", "a dog"]) == pytest.approx(
            normalize(other.encode(["", "a dog"], convert_to_tensor=True)).numpy(), abs=1e-6
        )
        searcher.build_index([*sentences, ""])
        assert len(searcher.search("")) == 5


def test_the_commands_name_a_text_without_a_token(tmp_path, sentences, monkeypatch):
    monkeypatch.chdir(tmp_path)
    without_special_tokens(tiny_model(sentences)).save_pretrained("model")
    Path("corpus.txt").write_text("A dog.\n \n\u200b\nA cat.", encoding="utf-8")
    corpus = ["--model", "model", "--corpus", "corpus.txt"]
    for words in (["encode", *corpus, "--output_file", "e.npy"], ["index", *corpus, "--output_dir", "index"]):
        with pytest.raises(
            SystemExit, match=rf"st-simcse {words[0]}: .*sentence 1, '\\u200b', has no tokens, .* Leave it"
        ):
            cli.main(words)
    Path("corpus.txt").write_text("A dog.\n \nA cat.")  # the same commands go on with the mended file
    for words in (["encode", *corpus, "--output_file", "e.npy"], ["index", *corpus, "--output_dir", "index"]):
        cli.main(words)
    assert len(np.load("e.npy")) == 2
    with pytest.raises(SystemExit, match="st-simcse search: .*query 1, '', has no token"):
        cli.main(["search", "--model", "model", "--index", "index", "--queries", "a dog", ""])


def test_a_query_of_unknown_characters_is_answered_with_a_warning(
    tiny_bert, sentences, tmp_path, monkeypatch, caplog, capsys
):
    monkeypatch.chdir(tmp_path)
    searcher = Searcher(tiny_bert)
    searcher.build_index(sentences, "index")
    emoji, long = "\N{GRINNING FACE}", "x" * 2_500
    scores = [hit["score"] for hits in searcher.search([emoji, long], top_k=1) for hit in hits]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)
    options = ["search", "--model", tiny_bert, "--index", "index", "--top_k", "1", "--queries"]
    cli.main([*options, "a dog", emoji, long])
    assert len(capsys.readouterr().out.splitlines()) == 6
    assert f"not know any word or character of 2 of 3 queries, such as {emoji!r}. It finds the" in caplog.text
    caplog.clear()
    cli.main([*options, "a dog"])
    assert "not know any word" not in caplog.text


def test_the_command_says_where_nothing_is_similar_enough(static_model, sentences, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    static_model.eval().save_pretrained("model")
    Searcher("model").build_index(sentences, "index")
    capsys.readouterr()
    options = ["search", "--model", "model", "--index", "index", "--queries", "a guitar", "--threshold", "0.9999"]
    cli.main(options)
    assert capsys.readouterr().out == "a guitar\n  (nothing above 0.9999)\n"
    cli.main([*options, "--json"])
    assert json.loads(capsys.readouterr().out) == {"query": "a guitar", "hits": []}
    monkeypatch.setattr(Searcher, "search", lambda searcher, queries, *options: [[] for _ in queries])
    cli.main(options[:-2])  # a graph may have parts that no query reaches
    assert capsys.readouterr().out == "a guitar\n  (nothing found)\n"


def _rows(searcher, queries, k=10):
    return [{hit["corpus_id"] for hit in hits} for hits in searcher.search(queries, k)]


def _recall(searcher, queries, exact):
    return np.mean([len(a & b) / len(b) for a, b in zip(_rows(searcher, queries), exact, strict=True)])


@pytest.mark.slow
def test_indexes_of_faiss_find_what_the_exact_search_finds(tmp_path, embedded):
    texts = list(dict.fromkeys(generate_corpus(1000).sentences))
    corpus, more, queries = texts[:700], texts[700:900], texts[900:]
    model = tiny_model(texts, width=32)
    exact = Searcher(model)
    exact.build_index(texts[:900])
    expected = _rows(exact, queries)
    # All cells find everything and one of many finds less; a graph of two links is a poor one.
    for sure, poor in [(IVFIndex(20, 20), IVFIndex(20, 1)), (HNSWIndex(32, 200), HNSWIndex(2, 1))]:
        searcher = Searcher(model)
        folder = tmp_path / sure.name
        searcher.build_index(corpus, folder)
        embedded.clear()
        searcher.build_index(corpus, folder, sure)  # another way to search, and nothing to embed
        assert not embedded
        searcher.add_to_index(more)
        opened = Searcher.load(folder, model)
        assert _rows(opened, queries) == _rows(searcher, queries)
        assert _recall(opened, queries, expected) > 0.99
        searcher = Searcher(model)
        searcher.build_index(texts[:900], index=poor)
        assert _recall(searcher, queries, expected) < 0.9
    (file,) = folder.glob("*.faiss")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match="hnsw32.faiss is damaged .*Delete it, and it will be built again"):
        Searcher.load(folder, model)
    file.unlink()
    assert _recall(Searcher.load(folder, model), queries, expected) > 0.99


def test_a_query_near_empty_cells_finds_as_much_as_any_other(tmp_path):
    """Equal embeddings share a cell, so k-means leaves the others without any."""
    rows = np.repeat(np.eye(8, dtype=np.float32)[:2], [30, 2], axis=0)
    search = IVFIndex(cells=6, probes=1).open(rows, tmp_path)
    queries = np.eye(8, dtype=np.float32)[[0, 1, 5]]
    scores, found = search(queries, 4)
    expected = -np.sort(-(queries.astype(np.float64) @ rows.T.astype(np.float64)), axis=1)[:, :4]
    assert scores == pytest.approx(expected, abs=1e-6)
    assert (np.take_along_axis(queries @ rows.T, found, axis=1) == scores).all()
    assert all(len(set(row)) == 4 for row in found.tolist())


def test_settings_of_indexes_are_checked_and_faiss_is_named_where_it_lacks(model, sentences, tmp_path, monkeypatch):
    for make, message in [
        (lambda: IVFIndex(0), "cells must be an integer of at least 1, got 0"),
        (lambda: IVFIndex("10"), "cells must be an integer of at least 1, got '10'"),
        (lambda: IVFIndex(probes=-1), "probes must be an integer of at least 1, got -1"),
        (lambda: HNSWIndex(1), "links must be at least 2"),
        (lambda: HNSWIndex(breadth=0), "breadth must be an integer of at least 1, got 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            make()
    searcher = Searcher(model)
    searcher.build_index(sentences, tmp_path, IVFIndex())  # fewer sentences than faiss likes to train on
    assert searcher.search(sentences[2], top_k=1)[0]["corpus_id"] == 2
    monkeypatch.setitem(sys.modules, "faiss", None)
    for use in (HNSWIndex, lambda: Searcher.load(tmp_path, model)):
        with pytest.raises(
            ImportError, match=r'This index needs faiss. Install it with: pip install "st_simcse\[search\]"'
        ):
            use()


def test_programs_that_open_a_folder_at_once_complete_it_once(tmp_path, model, sentences, monkeypatch):
    Searcher(model).build_index(sentences, tmp_path, HNSWIndex(4))
    (tmp_path / "hnsw4.faiss").unlink()
    made, arrived, all_there = [], set(), threading.Event()
    acquire, factory = FileLock.acquire, faiss.index_factory

    def arrive():
        arrived.add(threading.get_ident())
        if len(arrived) == 5:
            all_there.set()

    def waits(lock, *args, **options):
        arrive()
        return acquire(lock, *args, **options)

    def makes(*args):  # not before all have seen that the file is not there
        arrive()
        assert all_there.wait(60)
        made.append(args)
        return factory(*args)

    monkeypatch.setattr(FileLock, "acquire", waits)
    monkeypatch.setattr(faiss, "index_factory", makes)
    with ThreadPoolExecutor(5) as pool:
        searchers = list(pool.map(lambda _: Searcher.load(tmp_path, model), range(5)))
    assert len(made) == 1
    assert not list(tmp_path.glob("*.tmp"))
    for searcher in searchers:
        assert searcher.search(sentences[3], top_k=1)[0]["corpus_id"] == 3


@pytest.fixture
def small_files():
    """Files cannot grow beyond a size, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_said_and_the_same_call_goes_on(tmp_path, model, sentences, embedded, small_files):
    searcher = Searcher(model)
    searcher.build_index(sentences * 100, tmp_path)
    whole = tmp_path / "hnsw32.faiss"
    searcher.build_index(sentences * 100, tmp_path, HNSWIndex(32))
    size = whole.stat().st_size
    whole.unlink()
    small_files(size - 1)  # one byte short, which faiss's own file would not report
    embedded.clear()
    with pytest.raises(OSError, match=f"Cannot write to {tmp_path} .*File too large.*repeat the call to continue"):
        searcher.build_index(sentences * 100, tmp_path, HNSWIndex(32))
    assert not whole.exists()
    assert not list(tmp_path.glob("*.tmp"))
    small_files(size)
    searcher.build_index(sentences * 100, tmp_path, HNSWIndex(32))
    assert faiss.read_index(str(whole)).ntotal == 800
    assert embedded == []
    small_files(50_000)  # less than the embeddings take
    with pytest.raises(OSError, match="Cannot write to .*other .*File too large"):
        Searcher(model).build_index(sentences * 100, tmp_path / "other")


@pytest.mark.parametrize("ending", ["npy", "parquet", "safetensors"])
def test_encode_on_a_full_disk_is_a_line(tmp_path, tiny_bert, sentences, embedded, small_files, ending, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("corpus.txt").write_text("\n".join(sentences * 100))
    words = ["encode", "--model", tiny_bert, "--corpus", "corpus.txt", "--output_file", f"e.{ending}"]
    write = encode._write

    def short(searcher, path):
        small_files(1_000)
        write(searcher, path)

    monkeypatch.setattr(encode, "_write", short)
    with pytest.raises(
        SystemExit, match=f"st-simcse encode: cannot write e.{ending} .*run the same command again to continue"
    ):
        cli.main(words)
    small_files(2**30)
    monkeypatch.setattr(encode, "_write", write)
    cli.main(words)
    assert embedded == sentences * 100
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.txt", f"e.{ending}"]


def test_encode_goes_on_after_it_was_killed_while_it_cleaned_up(tmp_path, tiny_bert, sentences, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("corpus.txt").write_text("\n".join(sentences))
    words = ["encode", "--model", tiny_bert, "--corpus", "corpus.txt", "--output_file", "e.npy"]
    remove = shutil.rmtree

    def killed(folder, ignore_errors=False):
        if ignore_errors:  # at the beginning
            remove(folder, ignore_errors=True)
        else:
            Path(folder, "index.json").unlink()
            raise KeyboardInterrupt

    monkeypatch.setattr(encode.shutil, "rmtree", killed)
    with pytest.raises(SystemExit):
        cli.main(words)
    monkeypatch.setattr(encode.shutil, "rmtree", remove)
    expected = np.load("e.npy")
    Path("e.npy").unlink()
    cli.main(words)
    assert np.load("e.npy") == pytest.approx(expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.txt", "e.npy"]


@pytest.mark.parametrize(
    "changes",
    [
        [],
        "deep",
        {"model": 1},
        {"versions": None},
        {"precision": 16},
        {"texts": {}},
        {"texts": [1]},
        {"texts": [{"rows": "8", "digest": "a"}]},
        {"finished": 2},
        {"finished": "1"},
        {"index": []},
        {"index": {"kind": "exact", "links": 3}},
        {"index": {"kind": []}},
        {"index": {"kind": "hnsw"}},
        {"index": {"kind": "ivf", "cells": "10", "probes": 1}},
    ],
)
def test_descriptions_of_another_shape_are_refused(tmp_path, model, sentences, changes):
    Searcher(model).build_index(sentences, tmp_path)
    file = tmp_path / "index.json"
    changed = json.loads(file.read_text()) | changes if isinstance(changes, dict) else changes
    file.write_text("[" * 100_000 if changes == "deep" else json.dumps(changed))
    with pytest.raises(
        ValueError, match="index.json is not a valid description of an index .*Delete the folder and build"
    ):
        Searcher.load(tmp_path, model)


def test_damaged_texts_and_embeddings_of_another_shape_are_refused(tmp_path, model, sentences):
    Searcher(model).build_index(sentences, tmp_path)
    (arrow,) = (tmp_path / "texts" / "0").glob("*.arrow")
    files = {arrow: arrow.read_bytes()[:-300], tmp_path / "texts/0/state.json": b"[]"}
    for file, data in files.items():
        whole = file.read_bytes()
        file.write_bytes(data)
        with pytest.raises(ValueError, match=f"texts/0 is damaged .*Delete {tmp_path}, and build the index again"):
            Searcher.load(tmp_path, model)
        file.write_bytes(whole)
    embeddings = np.load(tmp_path / "embeddings.npy")
    for other, message in [
        (embeddings.astype(np.float64), "is damaged .expected a float32 matrix, got float64 with shape"),
        (embeddings[0], "is damaged .expected a float32 matrix, got float32 with shape"),
        (
            np.concatenate([embeddings, embeddings]),
            "has 16 rows, but index.json says 8. .*Delete it, and repeat the last call",
        ),
    ]:
        np.save(tmp_path / "embeddings.npy", other)
        with pytest.raises(ValueError, match=f"embeddings.npy {message}"):
            Searcher.load(tmp_path, model)


def test_the_commands_encode_index_and_search(tmp_path, tmp_path_factory, tiny_bert, sentences, capsys, monkeypatch):
    name = str(tmp_path_factory.mktemp("model"))
    build_model(tiny_bert, "mean").save_pretrained(name)
    monkeypatch.chdir(tmp_path)
    Path("corpus.txt").write_text("\n".join([*sentences[:5], sentences[0]]))
    Path("more.jsonl").write_text("\n".join(json.dumps({"text": sentence}) for sentence in sentences[5:]))
    model = ["--model", name]
    for file in ("e.npy", "e.safetensors", "e.parquet"):
        cli.main(["encode", *model, "--corpus", "corpus.txt", "--output_file", file])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "corpus.txt",
        "e.npy",
        "e.parquet",
        "e.safetensors",
        "more.jsonl",
    ]
    table = Dataset.from_parquet("e.parquet")
    assert table["sentence"][:] == [*sentences[:5], sentences[0]]
    expected = normalize(load_model(name).encode(table["sentence"][:], convert_to_tensor=True)).numpy()
    for found in (np.load("e.npy"), load_file("e.safetensors")["embeddings"].numpy(), np.array(table["embedding"][:])):
        assert found == pytest.approx(expected, abs=1e-6)

    cli.main(["index", *model, "--corpus", "corpus.txt", "--output_dir", "index", "--index_type", "hnsw"])
    for _ in range(2):  # the second time, there is nothing to add
        cli.main(["index", *model, "--corpus", "more.jsonl", "--output_dir", "index", "--add"])
    assert "8 sentences are in index. Search them with\nst-simcse search --model" in capsys.readouterr().out
    search = ["search", *model, "--index", "index", "--top_k", "2"]
    cli.main([*search, "--queries", sentences[6], sentences[0], "--threshold", "0.9999"])
    first, second = sentences[6], sentences[0]
    assert capsys.readouterr().out == f"{first}\n  1.000  {first}\n{second}\n  1.000  {second}\n"
    cli.main([*search, "--query_file", "more.jsonl", "--json"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["query"] for row in rows] == sentences[5:]
    assert [row["hits"][0]["corpus_id"] for row in rows] == [5, 6, 7]


def test_the_command_that_index_prints_can_be_run(tmp_path, tiny_bert, sentences, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    build_model(tiny_bert, "mean").save_pretrained("our model")
    Path("corpus.txt").write_text("\n".join(sentences))
    cli.main(["index", "--model", "our model", "--corpus", "corpus.txt", "--output_dir", "Ann's $index"])
    _, *words = shlex.split(capsys.readouterr().out.splitlines()[-1])
    words[words.index("...")] = sentences[3]
    cli.main(words)
    assert f"  1.000  {sentences[3]}\n" in capsys.readouterr().out


@pytest.mark.parametrize("json_flag", [[], ["--json"]])
def test_control_characters_of_a_corpus_reach_no_terminal(tmp_path, tiny_bert, capsys, json_flag):
    """They are shown as escapes; what stands between them, letters of all scripts and signs, stays as it is."""
    text = "\x1b]0;title\x07 dog \x9b31m\x7f é 中 \N{PARTY POPPER}"
    (tmp_path / "corpus.jsonl").write_text(json.dumps({"text": text}))
    folder = str(tmp_path / "index")
    cli.main(["index", "--model", tiny_bert, "--corpus", str(tmp_path / "corpus.jsonl"), "--output_dir", folder])
    capsys.readouterr()
    cli.main(["search", "--model", tiny_bert, "--index", folder, "--queries", f"a{text}", *json_flag])
    out = capsys.readouterr().out
    assert not [character for character in out if ord(character) in (*range(10), *range(11, 32), *range(127, 160))]
    assert "dog" in out
    assert "é 中 \N{PARTY POPPER}" in out
    if json_flag:
        found = json.loads(out)
        assert (found["query"], found["hits"][0]["text"]) == (f"a{text}", text)
    else:
        assert r"\u001b]0;title\u0007 dog \u009b31m\u007f" in out


def test_what_the_commands_cannot_do_is_a_line(tmp_path, tiny_bert, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("corpus.txt").write_text("A dog.\nA cat.")
    corpus = ["--model", tiny_bert, "--corpus", "corpus.txt"]
    index = ["index", *corpus, "--output_dir", "index"]
    for words, message in [
        (["encode", *corpus, "--output_file", "e.csv"], r"e.csv: expected a name that ends in .npy, .safetensors or"),
        (["encode", *corpus, "--output_file", "no/e.npy"], "cannot write no/e.npy: there is no folder no"),
        (["encode", *corpus, "--output_file", "e.npy", "--batch_size", "0"], "--batch_size must be at least 1, got 0"),
        ([*index, "--dataset", "a/b"], "pass either --corpus with a file, or --dataset with a data set's name"),
        (
            [*index, "--split", "train"],
            "a text file has one sentence per line and no column of splits; leave --split out",
        ),
        ([*index, "--column", "text"], "corpus.txt: a text file has one sentence per line and no column 'text'"),
        ([*index, "--device", "gpu"], "--device gpu cannot be used here .*: leave it out, or pass cpu"),
        (
            ["encode", *corpus, "--output_file", "e.npy", "--device", "cpu", "cuda:99"],
            "--device cuda:99 cannot be used here .*: leave it out, or pass cpu",
        ),
        ([*index, "--probes", "3"], "--probes is no option of --index_type exact: leave it out"),
        ([*index, "--index_type", "hnsw", "--links", "1"], "links must be at least 2"),
        ([*index, "--add", "--index_type", "ivf"], "--add keeps the type of the index and its settings"),
        ([*index, "--add"], "index has no index. Build one with st-simcse index or build_index"),
        ([*index[:-1], "corpus.txt"], "cannot write to corpus.txt: it is a file, not a folder"),
        ([*index, "--corpus", "."], "--corpus '.' is not a file: pass a file, or --dataset with the folder of"),
        ([*index, "--corpus", ""], "--corpus '' is not a file: pass a file, or --dataset"),
        ([*index[:3], "--dataset", "", "--output_dir", "index"], "the name of the data set is empty: pass its name"),
        (["search", *corpus[:2], "--index", "index"], "pass either --queries with texts, or --query_file"),
        (["search", *corpus[:2], "--index", "index", "--queries", "a", "--top_k", "0"], "--top_k must be at least 1"),
    ]:
        with pytest.raises(SystemExit, match=f"st-simcse {words[0]}: .*{message}"):
            cli.main(words)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.txt"]


def test_an_index_of_an_earlier_release_names_the_versions_if_they_differ(tmp_path, sentences):
    Searcher(tiny_model(sentences)).build_index(sentences, tmp_path)
    changed = tiny_model(sentences)
    _weight(changed)
    description = json.loads((tmp_path / "index.json").read_text())
    del description["settings"]
    description["versions"] = "sentence-transformers 5.0.0, transformers 4.50.0"
    (tmp_path / "index.json").write_text(json.dumps(description))
    with pytest.raises(
        ValueError, match=r"\(the index was made with sentence-transformers 5\.0\.0, .*, but sentence-tra"
    ):
        Searcher.load(tmp_path, changed)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["Two dogs run.", None], "1 is None, expected a text"),
        ([3], "0 is 3, expected a text"),
        (pd.DataFrame({"sentence": ["Two dogs run."]}), "got a table. Pass one of its columns"),
    ],
)
def test_what_is_no_text_is_named(model, sentences, texts, message):
    searcher = Searcher(model)
    searcher.build_index(sentences)
    for use in (searcher.search, searcher.encode, searcher.build_index, searcher.add_to_index):
        with pytest.raises(ValueError, match=message):
            use(texts)
    with pytest.raises(ValueError, match="query 0 is None, expected a text"):
        searcher.search(None)
    with pytest.raises(ValueError, match="text 0 is 3, expected a text"):
        searcher.similarity("Two dogs run.", 3)
    with pytest.raises(ValueError, match="the corpus, row 1, column 'sentence': there is no text"):
        searcher.build_index(Dataset.from_dict({"sentence": ["Two dogs run.", None]}))
    assert len(searcher.sentences) == len(sentences)
