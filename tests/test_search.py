import numpy as np
import pytest
import torch

from st_simcse.demo import tiny_model
from st_simcse.search import SentenceIndex, fingerprint


@pytest.fixture
def count(monkeypatch):
    """How often a corpus was embedded."""
    calls = []
    embed = SentenceIndex._embed
    monkeypatch.setattr(SentenceIndex, "_embed", lambda index: (calls.append(1), embed(index))[1])
    return lambda: len(calls)


def test_neighbours_are_those_of_a_loop_in_float64(model, sentences):
    found = SentenceIndex(model, sentences).search(["a dog runs", "the woman"], top_k=3)
    vectors = np.asarray(model.encode(sentences), dtype=np.float64)
    for query, hits in zip(["a dog runs", "the woman"], found, strict=True):
        q = np.asarray(model.encode(query), dtype=np.float64)
        scores = [float(q @ v) / np.sqrt(float(q @ q) * float(v @ v)) for v in vectors]
        expected = sorted(zip(scores, sentences, strict=True), reverse=True)[:3]
        assert [sentence for _, sentence in hits] == [sentence for _, sentence in expected]
        assert [score for score, _ in hits] == pytest.approx([score for score, _ in expected], abs=1e-6)


def test_embeddings_are_read_from_the_cache_the_next_time(tmp_path, sentences, count):
    first = SentenceIndex(tiny_model(sentences), sentences, tmp_path / "new" / "cache")
    (file,) = (tmp_path / "new" / "cache").iterdir()
    assert file.stat().st_mode & 0o077 == 0
    second = SentenceIndex(tiny_model(sentences), sentences, tmp_path / "new" / "cache")
    assert count() == 1
    assert torch.equal(first.embeddings, second.embeddings)
    assert first.search(["a dog"]) == second.search(["a dog"])


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


@pytest.mark.parametrize("change", [_longer, _prompt, _weight, _dtype, _pooling, _activation])
def test_another_model_is_not_taken_for_the_cached_one(tmp_path, sentences, count, change):
    model = tiny_model(sentences)
    SentenceIndex(model, sentences, tmp_path)
    change(model)
    changed = SentenceIndex(model, sentences, tmp_path)
    assert count() == 2
    assert torch.allclose(changed.embeddings, SentenceIndex(model, sentences).embeddings, atol=1e-6)


def test_another_corpus_is_not_taken_for_the_cached_one(model, sentences):
    different = [sentences, sentences[::-1], sentences[1:], [*sentences, "A dog."], [" ".join(sentences)]]
    assert len({fingerprint(model, corpus) for corpus in different}) == len(different)


def test_the_fingerprint_is_the_same_after_use_and_wherever_the_model_lies(tmp_path, sentences):
    from sentence_transformers import SentenceTransformer

    model = tiny_model(sentences)
    names = {fingerprint(model, sentences)}
    model.encode(sentences[:2])
    names.add(fingerprint(model, sentences))
    for folder in ("a", "b"):
        model.save_pretrained(str(tmp_path / folder))
        names.add(fingerprint(SentenceTransformer(str(tmp_path / folder)), sentences))
    assert len(names) == 1


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", b"half"])
def test_a_damaged_cache_is_said_and_replaced(tmp_path, model, sentences, count, caplog, damage):
    whole = SentenceIndex(model, sentences, tmp_path).embeddings
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2] if damage == b"half" else damage)
    assert torch.equal(SentenceIndex(model, sentences, tmp_path).embeddings, whole)
    assert f"{file} is damaged" in caplog.text
    assert file.read_bytes() == content
    assert count() == 2


def test_an_interrupted_write_leaves_no_file(tmp_path, model, sentences, monkeypatch):
    def interrupted(file, array):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        SentenceIndex(model, sentences, tmp_path)
    assert not list(tmp_path.iterdir())


def test_without_room_the_search_goes_on(tmp_path, model, sentences, monkeypatch, caplog):
    def full(file, array):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    assert SentenceIndex(model, sentences, tmp_path).search(["a dog"], top_k=1)
    assert "not kept for the next time" in caplog.text
    assert "No space left on device" in caplog.text
    assert not list(tmp_path.iterdir())


def test_nan_is_an_error_and_is_not_kept(tmp_path, model, sentences):
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(ValueError, match="embeds 8 of 8 sentences as NaN or infinity"):
        SentenceIndex(model, sentences, tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="no sentences"):
        SentenceIndex(model, [])
