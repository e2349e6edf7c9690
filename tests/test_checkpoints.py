"""Checkpoints in the format of the original SimCSE code, made here, against what that code computes from them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer, BertModel, RobertaConfig, RobertaModel

from st_simcse import build_model, load_simcse, save_transformer
from st_simcse.checkpoints import load_model
from st_simcse.demo import tiny_model


@pytest.fixture(params=["bert", "roberta"])
def plain(request, tiny_bert, tmp_path):
    """A transformer with weights in its pooler, and its tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    torch.manual_seed(1)
    if request.param == "bert":
        return BertModel.from_pretrained(tiny_bert).eval(), tokenizer
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = RobertaConfig(vocab_size=len(tokenizer), max_position_embeddings=66, pad_token_id=0, **size)
    return RobertaModel(config).eval(), tokenizer


def _published(plain, folder):
    """As on the hub: the trained MLP stands in the place of BERT's own pooler."""
    for part in plain:
        part.save_pretrained(folder)
    return folder


def _as_trained(plain, folder):
    """As train.py writes it: BertForCL, the MLP beside the transformer, no pooler."""
    model, tokenizer = plain
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    prefix = model.base_model_prefix
    weights = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if name.startswith("pooler."):
            weights[name.replace("pooler", "mlp")] = tensor
        else:
            weights[f"{prefix}.{name}"] = tensor
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = [f"{prefix.capitalize()}ForCL"]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _by_hand(plain, sentences, supervised):
    model, tokenizer = plain
    with torch.no_grad():
        outputs = model(**tokenizer(sentences, padding=True, return_tensors="pt"))
        first = outputs.last_hidden_state[:, 0]
        return torch.tanh(model.pooler.dense(first)) if supervised else first


@pytest.mark.parametrize("write", [_published, _as_trained])
@pytest.mark.parametrize("name", ["unsup-simcse-tiny", "sup-simcse-tiny", "my-Unsup-SimCSE-roberta"])
def test_the_pooler_is_the_right_one_by_name(plain, tmp_path, sentences, write, name):
    folder = write(plain, tmp_path / name)
    expected = _by_hand(plain, sentences, supervised=name.startswith("sup"))
    for load in (load_simcse, load_model):
        model = load(folder)
        assert model.encode(sentences) == pytest.approx(expected.numpy(), abs=1e-5)
    model.save_pretrained(str(tmp_path / "saved"))
    saved = SentenceTransformer(str(tmp_path / "saved"))
    assert saved.encode(sentences) == pytest.approx(expected.numpy(), abs=1e-5)


def test_a_name_that_does_not_tell_needs_the_argument(plain, tmp_path, sentences):
    folder = _published(plain, tmp_path / "mine")
    with pytest.raises(ValueError, match="pass supervised=True or supervised=False"):
        load_simcse(folder)
    for supervised in (True, False):
        expected = _by_hand(plain, sentences, supervised)
        assert load_simcse(folder, supervised).encode(sentences) == pytest.approx(expected.numpy(), abs=1e-5)


def test_a_missing_mlp_is_an_error(tiny_bert, tmp_path):
    model = BertModel.from_pretrained(tiny_bert, add_pooling_layer=False)
    _published((model, AutoTokenizer.from_pretrained(tiny_bert)), tmp_path / "sup-simcse-tiny")
    with pytest.raises(ValueError, match="has no MLP"):
        load_simcse(tmp_path / "sup-simcse-tiny")


def test_pickled_weights_are_refused(plain, tmp_path):
    folder = _published(plain, tmp_path / "sup-simcse-tiny")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(OSError, match="model.safetensors"):
        load_simcse(folder)


@pytest.mark.parametrize("pooling", ["cls", "mean", "dense"])
def test_the_way_back_gives_the_same_embeddings(tiny_bert, tmp_path, sentences, pooling):
    model = build_model(tiny_bert, pooling="cls" if pooling == "dense" else pooling, dense=pooling == "dense")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expression = save_transformer(model, tmp_path)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    tokenizer, plain = AutoTokenizer.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)
    inputs = tokenizer(sentences, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        outputs = plain(**inputs)
    embeddings = eval(expression, {"inputs": inputs, "outputs": outputs})
    assert model.encode(sentences) == pytest.approx(embeddings.numpy(), abs=1e-5)
    assert ("pooler_output" in expression) == (pooling == "dense")
    if pooling == "dense":  # and once more into a SentenceTransformer
        assert load_simcse(tmp_path, True).encode(sentences) == pytest.approx(embeddings.numpy(), abs=1e-5)


def test_what_automodel_cannot_stand_in_for_is_refused(tiny_bert, tmp_path, static_model):
    for model in (build_model(tiny_bert, "first_last_avg"), static_model):
        with pytest.raises(ValueError, match="AutoModel gives what a Transformer and a Pooling give"):
            save_transformer(model, tmp_path)
    with pytest.raises(ValueError, match="after CLS pooling"):
        save_transformer(build_model(tiny_bert, "mean", dense=True), tmp_path)
    model = tiny_model(["A dog."])
    model[1].pooling_mode = "max"
    with pytest.raises(ValueError, match="knows CLS and mean pooling"):
        save_transformer(model, tmp_path)
    assert not list(Path(tmp_path).iterdir())


def test_published_names_are_asked_of_the_hub(monkeypatch):
    asked = []
    monkeypatch.setattr("st_simcse.checkpoints.build_model", lambda *args, **kwargs: asked.append(args))
    load_simcse("princeton-nlp/unsup-simcse-bert-base-uncased")
    assert asked == [("princeton-nlp/unsup-simcse-bert-base-uncased", "cls", 128)]
