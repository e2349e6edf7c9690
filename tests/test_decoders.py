"""Decoders: poolings of the last tokens, padding on either side, and attention to both sides."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import (
    AutoModel,
    AutoTokenizer,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoConfig,
    LlamaConfig,
    MistralConfig,
    Qwen3Config,
)

from st_simcse import MomentumQueue, SupSimCSELoss, UnsupSimCSELoss, build_model, cli
from tests.reference import info_nce_loop

SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
SIZE |= {"vocab_size": 60, "intermediate_size": 64, "head_dim": 16}
LLAMA = LlamaConfig(**SIZE)
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
GPT2 = GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=60, n_positions=64, **NO_DROPOUT)  # absolute positions
# More than pairs of words, so that what stands behind a text shows.
INITIAL = 0.2


def _save(config, tokenizer_of, folder, padding_side="right", pad_token="[PAD]"):
    torch.manual_seed(0)
    config.initializer_range = INITIAL
    AutoModel.from_config(config).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_of, padding_side=padding_side)
    tokenizer.pad_token, tokenizer.eos_token = pad_token, "[SEP]"
    tokenizer.save_pretrained(folder)
    return str(folder)


def _alone(folder, sentences, pooling):
    """The poolings written out, a sentence at a time, where there is no padding."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    rows = []
    for sentence in sentences:
        with torch.no_grad():
            states = model(**tokenizer(sentence, return_tensors="pt")).last_hidden_state[0]
        weights = {
            "lasttoken": [0.0] * (len(states) - 1) + [1.0],
            "weightedmean": [float(place) for place in range(1, len(states) + 1)],
            "mean": [1.0] * len(states),
        }[pooling]
        rows.append(sum(weight * state for weight, state in zip(weights, states, strict=True)) / sum(weights))
    return torch.stack(rows)


@pytest.mark.slow
@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=lambda config: config.model_type)
def test_padding_on_either_side_changes_no_embedding_and_no_loss(tiny_bert, tmp_path, sentences, config, padding_side):
    folder = _save(config, tiny_bert, tmp_path / "decoder", padding_side)
    columns = [sentences[:4], sentences[4:], ["A dog.", *sentences[1:4]]]
    texts = [text for column in columns for text in column]
    for pooling in ("lasttoken", "weightedmean", "mean"):
        model = build_model(folder, pooling)
        alone = _alone(folder, texts, pooling)
        assert torch.allclose(model.encode(texts, convert_to_tensor=True).cpu(), alone, atol=2e-5), pooling
        model.save_pretrained(str(tmp_path / pooling))
        saved = SentenceTransformer(str(tmp_path / pooling), device="cpu")
        assert torch.allclose(saved.encode(texts, convert_to_tensor=True), alone, atol=2e-5), pooling
        model = model.to("cpu").train()
        # Of different widths, so that merging would add padding on the right to rows that have some on the left.
        features = [model.preprocess(column) for column in columns]
        assert len({column["input_ids"].shape[1] for column in features}) > 1
        for options in ({}, {"mini_batch_size": 2}):
            loss = SupSimCSELoss(model, mask_duplicates=False, **options)(features)
            expected = info_nce_loop(alone[:4], alone[4:8], alone[8:, None])
            assert loss.item() == pytest.approx(expected, rel=1e-4), (pooling, options)
        if pooling == "lasttoken":  # one column, whose rows are sorted and cut into passes
            loss = UnsupSimCSELoss(model, temperature=0.5, options=[MomentumQueue(8)])
            value = loss([model.preprocess(texts[:8])]).item()
            assert value == pytest.approx(info_nce_loop(alone[:8], alone[:8], temperature=0.5), rel=1e-4)
            queued = loss.sources["momentum_queue"].negatives()[0]
            assert torch.allclose(queued, alone[:8], atol=2e-5)
    side = "right" if config is GPT2 else padding_side
    assert model.tokenizer.padding_side == saved.tokenizer.padding_side == side


def test_a_decoder_without_a_padding_token_gets_its_end_token(tiny_bert, tmp_path, sentences):
    folder = _save(LLAMA, tiny_bert, tmp_path, "left", pad_token=None)
    model = build_model(folder, "lasttoken")
    assert torch.allclose(
        model.encode(sentences, convert_to_tensor=True).cpu(), _alone(folder, sentences, "lasttoken"), atol=2e-5
    )
    assert model.tokenizer.pad_token == "[SEP]"


@pytest.mark.parametrize(
    "config",
    [LLAMA, MistralConfig(**SIZE), Qwen3Config(**SIZE), Gemma3TextConfig(**SIZE), GPT2],
    ids=lambda config: config.model_type,
)
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_bidirectional_tokens_see_those_behind_them(tiny_bert, tmp_path, config, padding_side):
    folder = _save(config, tiny_bert, tmp_path / "decoder", padding_side)
    text, other = "two dogs run in the park", "two dogs run in the street"

    def first_tokens(model):
        features = model.to("cpu").preprocess([text, other, f"{text} and a man plays"])
        with torch.no_grad():
            states = model[0](dict(features))["token_embeddings"]
        places = features["attention_mask"].argmax(1)
        return states[[0, 1], places[:2]]

    causal, model = build_model(folder, "mean"), build_model(folder, "mean", bidirectional=True)
    assert torch.allclose(*first_tokens(causal), atol=1e-5)
    assert (first_tokens(model)[0] - first_tokens(model)[1]).norm() > 1e-3
    assert build_model(folder, "cls", bidirectional=True)[1].pooling_mode == "cls"

    model.save_pretrained(str(tmp_path / "saved"))
    assert json.loads(Path(tmp_path, "saved", "config.json").read_text())["is_causal"] is False
    saved = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert torch.equal(first_tokens(saved), first_tokens(model))
    assert (saved.encode([text, other]) == model.encode([text, other])).all()
    # without padding beside it
    assert torch.allclose(*(torch.tensor(saved.encode(texts)[0]) for texts in ([text], [text, "a man"])), atol=1e-5)


def test_commands_without_a_pooling_say_how_a_bare_decoder_gets_one(tiny_bert, tmp_path, monkeypatch):
    folder = _save(LLAMA, tiny_bert, tmp_path / "decoder", "right")
    monkeypatch.chdir(tmp_path)
    Path("corpus.txt").write_text("two dogs run\na man plays")
    corpus = ["--corpus", "corpus.txt"]
    for command, words in [
        ("encode", [*corpus, "--output_file", "e.npy"]),
        ("index", [*corpus, "--output_dir", "index"]),
        ("serve", corpus),
        ("export", ["--output_dir", "plain"]),
    ]:
        with pytest.raises(SystemExit, match=f"st-simcse {command}: .*embed every text alike") as caught:
            cli.main([command, "--model", str(folder), *words])
    (remedy,) = re.findall(r"build_model\(.*\)", str(caught.value))
    exec(remedy, {"build_model": build_model, "folder": "saved"})
    cli.main(["encode", "--model", "saved", *corpus, "--output_file", "e.npy"])
    expected = torch.nn.functional.normalize(_alone(folder, ["two dogs run", "a man plays"], "mean"))
    assert torch.allclose(torch.from_numpy(np.load("e.npy")), expected, atol=2e-5)


def test_bidirectional_where_it_has_no_effect(tiny_bert, tmp_path, static_model):
    config = GPTNeoConfig(hidden_size=32, num_layers=2, num_heads=2, vocab_size=60, attention_types=[[["global"], 2]])
    with pytest.raises(ValueError, match="GPTNeoModel stays causal even with is_causal=False in its configuration"):
        build_model(_save(config, tiny_bert, tmp_path / "neo"), "mean", bidirectional=True)
    static_model.save_pretrained(str(tmp_path / "static"))
    with pytest.raises(ValueError, match="bidirectional needs a transformer"):
        build_model(tmp_path / "static", bidirectional=True)
    encoder = build_model(tiny_bert, bidirectional=True)  # it is already
    assert not hasattr(encoder[0].model.config, "is_causal")
