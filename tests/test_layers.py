import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoConfig, AutoModel

from conftest import SENTENCES
from st_simcse import build_model
from tests.backbones import ARCHITECTURES


@pytest.mark.parametrize("name", ["BERT", "DistilBERT", "ModernBERT", "Qwen3", "T5 encoder"])
def test_the_lowest_layers_alone(tmp_path, name):
    """As transformers reads a checkpoint for a configuration of fewer layers; saved, it stays so."""
    ARCHITECTURES[name].save(tmp_path)
    model = build_model(tmp_path, pooling="mean", layers=1, device="cpu").eval()
    whole = build_model(tmp_path, pooling="mean", device="cpu").eval()
    config = AutoConfig.from_pretrained(tmp_path)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:1]
    config.num_hidden_layers = 1
    kind = AutoModel if name != "T5 encoder" else type(whole.transformers_model)
    shallow = kind.from_pretrained(tmp_path, config=config).eval()
    features = whole.preprocess(SENTENCES)
    inputs = {key: features[key] for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        tokens = shallow(**inputs).last_hidden_state
    mask = inputs["attention_mask"][:, :, None]
    expected = (tokens * mask).sum(1) / mask.sum(1)
    embeddings = model.encode(SENTENCES, convert_to_tensor=True)
    assert torch.allclose(embeddings, expected, atol=1e-6)
    assert not torch.allclose(embeddings, whole.encode(SENTENCES, convert_to_tensor=True), atol=1e-2)
    model.save_pretrained(str(tmp_path / "saved"))
    reloaded = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert torch.equal(reloaded.encode(SENTENCES, convert_to_tensor=True), embeddings)


@pytest.mark.parametrize(("layers", "message"), [(0, "choose from 1"), (3, "is out of range: choose from 1 to 2")])
def test_layers_that_there_are_not(tiny_bert, layers, message):
    with pytest.raises(ValueError, match=message):
        build_model(tiny_bert, layers=layers)


def test_layers_of_what_has_no_list_of_them(tiny_bert, static_model, tmp_path):
    static_model.save_pretrained(str(tmp_path / "static"))
    with pytest.raises(ValueError, match="layers .* layers are one list, but StaticEmbedding has 0"):
        build_model(tmp_path / "static", layers=1)
    build_model(tiny_bert, pooling="last2_avg").save_pretrained(str(tmp_path / "average"))
    with pytest.raises(ValueError, match="averages layers that layers=1 would remove"):
        build_model(tmp_path / "average", layers=1)
