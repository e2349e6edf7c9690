import time

import pytest
import torch
from huggingface_hub import constants
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

from st_simcse import build_model


def _hidden_states(folder, sentences):
    tokens = AutoTokenizer.from_pretrained(folder)(sentences, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = AutoModel.from_pretrained(folder).eval()(**tokens, output_hidden_states=True).hidden_states
    return states, tokens["attention_mask"].unsqueeze(-1)


def _expected(pooling, states, mask):
    """The poolings written out on transformers' own outputs."""
    if pooling == "cls":
        return states[-1][:, 0]
    tokens = {
        "mean": states[-1],
        "first_last_avg": (states[1] + states[-1]) / 2,
        "last2_avg": (states[-2] + states[-1]) / 2,
    }[pooling]
    return (tokens * mask).sum(1) / mask.sum(1)


@pytest.mark.parametrize("pooling", ["cls", "mean", "first_last_avg", "last2_avg"])
@pytest.mark.parametrize("real", [False, True], ids=["tiny", "MiniLM"])
def test_pooling_equals_transformers_and_survives_saving(request, sentences, tmp_path, pooling, real):
    folder = request.getfixturevalue("pretrained" if real else "tiny_bert")
    model = build_model(folder, pooling=pooling, max_seq_length=24)
    assert model.max_seq_length == 24
    embeddings = model.encode(sentences)
    assert embeddings == pytest.approx(_expected(pooling, *_hidden_states(folder, sentences)).numpy(), abs=1e-5)

    model.save_pretrained(str(tmp_path))
    saved = SentenceTransformer(str(tmp_path), trust_remote_code=False)
    assert saved.max_seq_length == 24
    assert (saved.encode(sentences) == embeddings).all()


def test_averaging_layers_trains_the_transformer_only(tiny_bert, sentences):
    model = build_model(tiny_bert, pooling="first_last_avg")
    model(model.preprocess(sentences))["sentence_embedding"].sum().backward()
    assert [name for name, parameter in model.named_parameters() if not parameter.requires_grad] == ["1.layer_weights"]


def test_dense_stays_at_inference(tiny_bert, sentences, tmp_path):
    plain, model = build_model(tiny_bert), build_model(tiny_bert, dense=True)
    linear = model[2].linear
    expected = torch.tanh(linear(torch.tensor(plain.encode(sentences)).to(linear.weight.device)))
    assert model.encode(sentences) == pytest.approx(expected.detach().cpu().numpy(), abs=1e-6)
    model.save_pretrained(str(tmp_path))
    assert (SentenceTransformer(str(tmp_path)).encode(sentences) == model.encode(sentences)).all()


def test_options_reach_the_transformer(tiny_bert):
    options = {"hidden_dropout_prob": 0.25}
    model = build_model(tiny_bert, pooling="last2_avg", config_kwargs=options)
    assert model[0].model.config.hidden_dropout_prob == 0.25
    assert options == {"hidden_dropout_prob": 0.25}


def test_texts_are_no_longer_than_the_model_reads(tiny_bert, caplog):
    model = build_model(tiny_bert, max_seq_length=128)
    assert model.max_seq_length == 64
    assert "max_seq_length is 64" in caplog.text
    assert model.encode("word " * 100).shape == (32,)


def test_unknown_pooling(tiny_bert):
    with pytest.raises(ValueError, match="choose cls, mean, first_last_avg or last2_avg"):
        build_model(tiny_bert, pooling="max")


@pytest.mark.parametrize("name", ["./absent", "/absent/model", "a/b/c"])
def test_absent_folder(name):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        build_model(name)


@pytest.mark.parametrize("offline_mode", [True, False])
def test_unreachable_hub_is_an_error_at_once(monkeypatch, offline_mode):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline_mode)
    # A closed local port refuses the connection, as a machine without a network does.
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    began = time.monotonic()
    with pytest.raises(OSError, match="neither|cannot be reached"):
        build_model("nobody/there-is-no-such-model")
    assert time.monotonic() - began < 30  # no retries of every file of the model
