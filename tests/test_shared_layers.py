"""Lower layers that both views of a sentence share."""

import shutil

import pytest
import torch
from sentence_transformers.sentence_transformer.losses import AdaptiveLayerLoss
from torch import nn
from transformers import AutoConfig, AutoModel, set_seed

from st_simcse import MaskedLanguageModel, SharedLayers, SimCSETrainer, UnsupSimCSELoss, build_model
from st_simcse.demo import tiny_model

# Texts of several lengths, one of them twice.
TEXTS = ["Two dogs run in the park.", "A cat sleeps.", "Two dogs run.", "Someone rides a horse on the beach.", "Two"]
TEXTS += ["A cat sleeps."]

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
ARCHITECTURES = {
    "bert": SIZES,
    "distilbert": {"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48},
    "mpnet": SIZES,
    "modernbert": SIZES | {"pad_token_id": 0, "local_attention": 4, "global_attn_every_n_layers": 2},
    "deberta-v2": SIZES
    | {"relative_attention": True, "position_buckets": 4, "pos_att_type": ["p2c", "c2p"], "conv_kernel_size": 3},
    "llama": SIZES | {"num_key_value_heads": 2},
    "qwen3": SIZES | {"num_key_value_heads": 2, "head_dim": 8},
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4},
    "albert": SIZES | {"embedding_size": 16},
}


@pytest.fixture
def make(tiny_bert, tmp_path):
    """A SentenceTransformer of an architecture, its weights random and large enough for every layer to count."""

    def of(architecture, pooling="mean"):
        set_seed(0)
        shutil.copytree(tiny_bert, tmp_path / architecture)
        config = AutoConfig.for_model(architecture, vocab_size=64, **ARCHITECTURES[architecture])
        transformer = AutoModel.from_config(config)
        for parameter in transformer.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.2)
        transformer.save_pretrained(tmp_path / architecture)
        return build_model(str(tmp_path / architecture), pooling=pooling, device="cpu")

    return of


def _loss_and_gradients(model, *options, texts=(TEXTS,), **others):
    loss = UnsupSimCSELoss(model, 0.5, options, mask_duplicates=False, **others)
    model.zero_grad()
    value = loss([model.preprocess(column) for column in texts])
    value.backward()
    return value, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "albert"])
def test_without_dropout_nothing_changes(make, architecture, monkeypatch):
    """In several passes, all at once and cached."""
    model = make(architecture).eval()
    value, gradients = _loss_and_gradients(model)
    for mini_batch_size, rows in ((None, 48), (None, 4), (4, 48)):
        monkeypatch.setattr("st_simcse.losses.base.ROWS_PER_PASS", rows)
        for shared in (1, 2):
            same, shared_gradients = _loss_and_gradients(model, SharedLayers(shared), mini_batch_size=mini_batch_size)
            assert same.item() == pytest.approx(value.item(), abs=1e-6)
            assert shared_gradients.keys() == gradients.keys()
            for name, gradient in gradients.items():
                assert torch.allclose(shared_gradients[name], gradient, atol=1e-6, rtol=1e-5), name
