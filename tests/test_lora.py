"""LoRA: adapters alone are trained and saved, a resumed run is the same one, merged models load without peft."""

import copy
import json
import re
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer, BertForMaskedLM, LlamaConfig, LlamaForCausalLM
from transformers.integrations import peft as transformers_peft

from st_simcse import (
    MomentumQueue,
    SimCSETrainer,
    SimCSETrainingArguments,
    SupSimCSELoss,
    UnsupSimCSELoss,
    build_model,
    cli,
    merge_lora,
    save_transformer,
)
from st_simcse.models.checkpoints import load_model
from st_simcse.search.fingerprint import fingerprint

LORA = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.1)


def _trainer(model, sentences, folder, **options):
    torch.manual_seed(0)
    loss = UnsupSimCSELoss(model, projection_head=True, options=[MomentumQueue(6)])
    arguments = SimCSETrainingArguments(
        str(folder),
        per_device_train_batch_size=4,
        report_to="none",
        save_steps=2,
        save_total_limit=None,
        bf16=False,
        use_cpu=True,
        **{"num_train_epochs": 3, "learning_rate": 1e-2, **options},
    )
    return SimCSETrainer(model, arguments, Dataset.from_dict({"sentence": sentences}), loss=loss)


@pytest.fixture
def decoder(tiny_bert, tmp_path):
    """Folder of a tiny Llama in bfloat16, in which most of a step would be lost."""
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    torch.manual_seed(0)
    config = LlamaConfig(**size, vocab_size=60, intermediate_size=64, attention_dropout=0.1)
    AutoModel.from_config(config).to(torch.bfloat16).save_pretrained(tmp_path / "decoder")
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(tmp_path / "decoder")
    return str(tmp_path / "decoder")


def _build(folder):
    torch.manual_seed(1)
    return build_model(folder, "mean", lora=LORA, device="cpu")


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["tiny_bert", "decoder"])
def test_a_run_trains_and_saves_adapters_alone_and_resumes_exactly(request, sentences, tmp_path, backbone):
    folder = request.getfixturevalue(backbone)
    base = {name: weight.clone() for name, weight in AutoModel.from_pretrained(folder).named_parameters()}
    model = _build(folder)
    whole = _trainer(model, sentences, tmp_path / "whole", gradient_checkpointing=True)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    whole.train()

    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained == {name for name in before if "lora_" in name}
    for name, weight in model.named_parameters():
        if name in trained:
            assert weight.dtype == torch.float32
            assert not torch.equal(weight, before[name]), name
        else:
            original = base[name.removeprefix("0.model.").replace(".base_layer", "")]
            assert weight.grad is None
            assert weight.dtype == original.dtype
            assert torch.equal(weight, original), name

    queue = whole.loss.sources["momentum_queue"]
    for (name, leader), follower in zip(model.named_parameters(), queue.encoder.parameters(), strict=True):
        assert (leader.data_ptr() == follower.data_ptr()) == (name not in trained), name
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    assert set(load_file(checkpoint / "adapter_model.safetensors")) == {
        f"base_model.{name.removeprefix('0.').replace('.default', '')}" for name in trained
    }
    assert not (checkpoint / "model.safetensors").exists()
    of_queue = {name for name in load_file(checkpoint / "loss.safetensors") if ".encoder." in name}
    of_queue -= {f"sources.momentum_queue.encoder.{name}" for name, _ in model.named_buffers()}
    assert of_queue == {f"sources.momentum_queue.encoder.{name}" for name in trained}
    moments = torch.load(checkpoint / "optimizer.pt")["state"]
    assert len(moments) == len(trained) + 2  # and the head's

    resumed = _trainer(_build(folder), sentences, tmp_path / "resumed", gradient_checkpointing=True)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    expected = whole.loss.state_dict()
    for name, weight in resumed.loss.state_dict().items():
        assert torch.equal(weight, expected[name]), name
    other = build_model(folder, "mean", lora=LoraConfig(r=4, lora_alpha=4), device="cpu")
    with pytest.raises(ValueError, match=r"lora_alpha: 8 -> 4"):
        _trainer(other, sentences, tmp_path / "other").train(resume_from_checkpoint=str(checkpoint))


def test_an_adapter_with_a_name_of_its_own_resumes(tiny_bert, sentences, tmp_path):
    def trained(folder, resume=None):
        model = build_model(tiny_bert, "mean", device="cpu")
        torch.manual_seed(1)
        model.add_adapter(copy.deepcopy(LORA), adapter_name="mine")  # peft writes into it
        _trainer(model, sentences, tmp_path / folder).train(resume)
        assert model.active_adapters() == ["mine"]
        return model.state_dict()

    whole = trained("whole")
    resumed = trained("resumed", str(tmp_path / "whole" / "checkpoint-2"))
    assert sum(".lora_A.mine." in name for name in whole) == 4
    for name, weight in whole.items():
        assert torch.equal(weight, resumed[name]), name


def test_gradients_are_those_of_the_merged_weights(tiny_bert, sentences):
    """dL/dB = dL/dW A^T alpha/r and dL/dA = B^T dL/dW alpha/r, where W is what the merged model has."""
    config = LoraConfig(r=4, lora_alpha=8, init_lora_weights=False)
    model, merged = (_build_seeded(tiny_bert, config) for _ in range(2))
    merge_lora(merged)
    for part in (model, merged):
        columns = [part.preprocess(column) for column in (sentences[:4], sentences[4:])]
        SupSimCSELoss(part, temperature=0.5)(columns).backward()
    layer = model[0].model.encoder.layer[1].attention.self.query
    full = merged[0].model.encoder.layer[1].attention.self.query.weight
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert torch.allclose(full, layer.base_layer.weight + 2 * b @ a, atol=1e-6)
    assert torch.allclose(b.grad, 2 * full.grad @ a.T, atol=1e-6)
    assert torch.allclose(a.grad, 2 * b.T @ full.grad, atol=1e-6)
    assert full.grad.norm() > 1e-4


def _build_seeded(folder, config):
    torch.manual_seed(2)
    return build_model(folder, "mean", lora=config, device="cpu")  # not in training mode: no dropout


@pytest.mark.parametrize(("dropout", "warns"), [(0.1, False), (0.0, True)])
def test_dropout_before_new_adapters_counts_as_dropout(tiny_bert, sentences, caplog, dropout, warns):
    """In the first step new adapters add nothing, so the views are equal, although the adapters have dropout."""
    lora = LoraConfig(r=4, lora_alpha=8, lora_dropout=dropout)
    model = build_model(tiny_bert, "mean", dropout=0.0, lora=lora, device="cpu").train()
    views = [model(model.preprocess(sentences))["sentence_embedding"] for _ in range(2)]
    assert torch.equal(*views)
    UnsupSimCSELoss(model)([model.preprocess(sentences)])
    assert ("no dropout is active" in caplog.text) == warns


def test_a_merged_model_loads_without_peft(tiny_bert, decoder, sentences, tmp_path):
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    model = build_model(tiny_bert, "mean", dense=True, lora=config, device="cpu")
    expected = torch.tensor(model.encode(sentences))
    plain = build_model(tiny_bert, "mean", device="cpu").encode(sentences)
    assert not torch.allclose(expected, torch.tensor(plain), atol=1e-2)

    bare = build_model(tiny_bert, "mean", lora=config, device="cpu")
    expected_bare = torch.tensor(bare.encode(sentences))
    save_transformer(bare, tmp_path / "automodel")
    assert torch.equal(torch.tensor(bare.encode(sentences)), expected_bare)  # still with its adapter

    assert merge_lora(model) is model
    assert torch.allclose(torch.tensor(model.encode(sentences)), expected, atol=1e-5)
    model.save_pretrained(str(tmp_path / "merged"))
    assert not list((tmp_path / "merged").glob("adapter*"))
    tokens = AutoTokenizer.from_pretrained(tmp_path / "automodel")(sentences, padding=True, return_tensors="pt")
    loaded = SentenceTransformer(str(tmp_path / "merged"), device="cpu")
    assert torch.allclose(torch.tensor(loaded.encode(sentences)), expected, atol=1e-5)
    assert all(weight.requires_grad for weight in loaded.parameters())
    with torch.no_grad():
        states = AutoModel.from_pretrained(tmp_path / "automodel").eval()(**tokens).last_hidden_state
    mask = tokens.attention_mask[..., None]
    assert torch.allclose((states * mask).sum(1) / mask.sum(1), expected_bare, atol=1e-5)
    with pytest.raises(ValueError, match="no adapters to merge"):
        merge_lora(model)


def test_an_adapter_that_was_saved_is_trained_on(decoder, sentences, tmp_path, caplog):
    model = build_model(decoder, "mean", bidirectional=True, lora=LORA, device="cpu")
    trainer = _trainer(model, sentences, tmp_path / "output", max_steps=1)
    trainer.train()
    trainer.save_model()
    assert "build_model(..., bidirectional=True), or save merge_lora(model) instead" in caplog.text
    saved = str(tmp_path / "output")
    assert SentenceTransformer(saved, device="cpu")[0].model.config.to_diff_dict().get("is_causal") is None
    again = build_model(saved, bidirectional=True, device="cpu")
    for (name, weight), (_, expected) in zip(again.named_parameters(), model.named_parameters(), strict=True):
        assert weight.requires_grad == expected.requires_grad == ("lora_" in name), name
        assert torch.equal(weight, expected), name
    assert (again.encode(sentences) == model.encode(sentences)).all()
    with pytest.raises(ValueError, match="already has an adapter. Omit lora"):
        build_model(saved, lora=LORA)
    # Whole weights into the same folder: no adapter stays to be added to them, and the other way round.
    merge_lora(model)
    trainer.save_model()
    assert not list(Path(saved).glob("adapter*"))
    loaded = SentenceTransformer(saved, device="cpu")
    assert loaded[0].model.config.is_causal is False
    assert (loaded.encode(sentences) == model.encode(sentences)).all()
    _trainer(again, sentences, saved, max_steps=1).save_model()
    assert not Path(saved, "config.json").exists()


def test_the_command_line_merges_unless_told_otherwise(tiny_bert, sentences, tmp_path):
    (tmp_path / "sentences.txt").write_text("\n".join(sentences))
    argv = ["train", "--model_name_or_path", tiny_bert, "--train_file", str(tmp_path / "sentences.txt")]
    argv += ["--output_dir", str(tmp_path / "output"), "--max_steps", "1", "--report_to", "none", "--bf16", "false"]
    argv += ["--save_steps", "1", "--pooling", "mean"]
    lora = ["--lora_r", "2", "--lora_alpha", "6", "--lora_dropout", "0.2", "--lora_target_modules", "query", "dense"]
    cli.main([*argv, *lora, "--no_lora_merge"])
    config = json.loads((tmp_path / "output" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (2, 6, 0.2)
    assert set(config["target_modules"]) == {"query", "dense"}
    cli.main([*argv, *lora])
    assert not (tmp_path / "output" / "adapter_config.json").exists()
    assert (tmp_path / "output" / "checkpoint-1" / "adapter_config.json").exists()
    assert SentenceTransformer(str(tmp_path / "output"))[0].model.config.model_type == "bert"
    for options, message in {
        ("--lora_alpha", "4"): "--lora_alpha needs --lora_r: pass both, or neither",
        ("--lora_target_modules", "all-linear"): "--lora_target_modules needs --lora_r: pass both, or neither",
        ("--lora_r", "2", "--lora_target_modules", "absent"): "Target modules .*absent.* not found in the base model",
        ("--lora_r", "2", "--bidirectional", "--no_lora_merge"): "--no_lora_merge cannot be used with --bidirectional",
    }.items():
        with pytest.raises(SystemExit, match=message):
            cli.main([*argv, *options])


def test_without_peft(tiny_bert, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    argv = ["--model_name_or_path", tiny_bert, "--train_file", __file__, "--train_format", "sentences"]
    with pytest.raises(SystemExit, match=r'LoRA needs peft: pip install "st_simcse\[lora\]"'):
        cli.main(["train", *argv, "--lora_r", "2", "--bf16", "false"])


def test_a_peft_that_transformers_does_not_take(tiny_bert, decoder, sentences, tmp_path, monkeypatch):
    """`pip install peft` beside the newest transformers gives such a pair, while peft's release is behind."""
    adapted = str(tmp_path / "adapted")
    build_model(tiny_bert, "mean", lora=LORA, device="cpu").save_pretrained(adapted)
    monkeypatch.setattr(transformers_peft, "MIN_PEFT_VERSION", "99.1.0")
    message = re.escape(
        f"peft {version('peft')} is too old for transformers {version('transformers')}, which requires peft 99.1.0 "
        'or later. pip install "st_simcse[lora]" installs compatible releases.'
    )
    with pytest.raises(ImportError, match=message):
        build_model(tiny_bert, "mean", lora=LORA, device="cpu")
    for load in (build_model, load_model):
        with pytest.raises(ImportError, match=message):
            load(adapted)
    (tmp_path / "sentences.txt").write_text("\n".join(sentences))
    argv = ["--train_file", str(tmp_path / "sentences.txt"), "--output_dir", str(tmp_path / "out"), "--bf16", "false"]
    for name, options in ((tiny_bert, ["--lora_r", "2"]), (decoder, ["--preset", "llm2vec"]), (adapted, [])):
        with pytest.raises(SystemExit, match=message):
            cli.main(["train", *options, "--model_name_or_path", name, *argv])
    assert build_model(tiny_bert, "mean", device="cpu").get_embedding_dimension() == 32


KINDS = {
    "lora": {},
    "biases of layers with an adapter": {"bias": "lora_only"},
    "all biases": {"bias": "all"},
    "dora": {"use_dora": True},
    "modules_to_save": {"modules_to_save": ["intermediate.dense"]},
    "trained tokens": {"trainable_token_indices": [5, 6]},
}


@pytest.fixture(params=KINDS)
def trained(request, tiny_bert, sentences, tmp_path):
    """The trainer of a model with an adapter of each kind that has been trained, and saved to the folder "adapter"."""
    torch.manual_seed(1)
    config = LoraConfig(r=4, init_lora_weights=False, **KINDS[request.param])
    model = build_model(tiny_bert, "mean", lora=config, device="cpu")
    before = {name: weight.clone() for name, weight in model.named_parameters() if weight.requires_grad}
    trainer = _trainer(model, sentences, tmp_path / "output", max_steps=2, learning_rate=0.1)
    trainer.train()
    unmoved = {
        name for name, weight in model.named_parameters() if name in before and torch.equal(weight, before[name])
    }
    assert unmoved <= {"0.model.pooler.dense.bias"}  # which mean pooling does not use
    model.eval().save_pretrained(str(tmp_path / "adapter"))
    return trainer


@pytest.mark.slow
def test_what_is_saved_is_loaded_again_in_every_way(trained, sentences, tmp_path):
    model = trained.model
    expected = model.encode(sentences)
    trainable = {name for name, weight in model.named_parameters() if weight.requires_grad}
    trained.save_model(str(tmp_path / "by_trainer"))
    for folder in ("adapter", "by_trainer", "output/checkpoint-2"):
        saved = str(tmp_path / folder)
        assert (load_model(saved).to("cpu").encode(sentences) == expected).all(), folder
        again = build_model(saved, device="cpu")
        assert (again.encode(sentences) == expected).all(), folder
        assert {name for name, weight in again.named_parameters() if weight.requires_grad} == trainable, folder
        merge_lora(again).save_pretrained(str(tmp_path / "merged"))
        loaded = SentenceTransformer(str(tmp_path / "merged"), device="cpu")
        assert loaded.encode(sentences) == pytest.approx(expected, abs=1e-5), folder

    merge_lora(model)
    trained.save_model(str(tmp_path / "merged_here"))
    loaded = SentenceTransformer(str(tmp_path / "merged_here"), device="cpu")
    assert loaded.encode(sentences) == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_commands_that_merge_save_the_model_that_they_were_given(trained, sentences, tmp_path):
    expected, adapter = trained.model.encode(sentences), str(tmp_path / "adapter")
    cli.main(["export", "--model", adapter, "--output_dir", str(tmp_path / "exported")])
    exported = build_model(str(tmp_path / "exported"), "mean", device="cpu")
    assert exported.encode(sentences) == pytest.approx(expected, abs=1e-5)

    (tmp_path / "sentences.txt").write_text("\n".join(sentences))
    argv = ["--train_file", str(tmp_path / "sentences.txt"), "--output_dir", str(tmp_path / "continued")]
    argv += ["--max_steps", "1", "--learning_rate", "0", "--report_to", "none", "--bf16", "false", "--use_cpu"]
    cli.main(["train", "--model_name_or_path", adapter, *argv])
    continued = SentenceTransformer(str(tmp_path / "continued"), device="cpu")
    assert not list((tmp_path / "continued").glob("adapter*"))
    assert continued.encode(sentences) == pytest.approx(expected, abs=1e-5)


def test_an_adapter_without_a_weight_is_refused(tiny_bert, tmp_path):
    get_peft_model(AutoModel.from_pretrained(tiny_bert), LoraConfig(r=4)).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    weights = load_file(file)
    missing = min(weights)
    save_file({name: weight for name, weight in weights.items() if name != missing}, file)
    with pytest.raises(
        ValueError, match=f"has no weights for {missing.removeprefix('base_model.model.')}: the adapter"
    ):
        load_model(tmp_path)


@pytest.mark.parametrize("options", [{}, {"bias": "all"}, {"use_dora": True}], ids=str)
@pytest.mark.parametrize("kind", ["masked", "causal"])
def test_an_adapter_of_a_language_model_is_that_of_its_transformer(
    tiny_bert, decoder, sentences, tmp_path, kind, options
):
    folder, language_model = (tiny_bert, BertForMaskedLM) if kind == "masked" else (decoder, LlamaForCausalLM)
    torch.manual_seed(0)
    model = language_model.from_pretrained(folder)
    adapted = get_peft_model(model, LoraConfig(r=4, init_lora_weights=False, **options)).eval()
    for name, weight in adapted.named_parameters():
        if name.endswith("bias") and weight.requires_grad:
            torch.nn.init.normal_(weight)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for part in (adapted, tokenizer):
        part.save_pretrained(tmp_path / "adapter")
    tokens = tokenizer(sentences, padding=True, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        states = adapted(**tokens, output_hidden_states=True).hidden_states[-1].float()
    mask = tokens.attention_mask[..., None]
    expected = (states * mask).sum(1) / mask.sum(1)
    for load in (load_model, build_model):
        found = load(tmp_path / "adapter", "mean").to("cpu").encode(sentences)
        assert found == pytest.approx(expected.numpy(), abs=1e-5 if kind == "masked" else 2e-2)


def test_a_trained_weight_that_no_adapter_holds_is_refused(tiny_bert, sentences, tmp_path):
    model = _build(tiny_bert)
    trainer = _trainer(model, sentences, tmp_path)
    model[0].model.embeddings.LayerNorm.requires_grad_(True)
    message = r"would not be saved with the adapter: embeddings.LayerNorm.weight, embeddings.LayerNorm.bias"
    for save in (trainer.train, trainer.save_model):
        with pytest.raises(ValueError, match=message):
            save()


def test_the_fingerprint_sees_what_adapters_do(tiny_bert, sentences):
    """Two adapters with the same weights: another factor, another active one, and none, give other embeddings."""
    found = {}
    for name, alpha, change in (
        ("first", 8, lambda model: None),
        ("factor", 16, lambda model: None),
        ("other", 8, lambda model: model.set_adapter("other")),
        ("disabled", 8, lambda model: model.disable_adapters()),
    ):
        model = build_model(tiny_bert, "mean", lora=LoraConfig(r=2, lora_alpha=alpha), device="cpu")
        model.add_adapter(LoraConfig(r=2, lora_alpha=8), "other")
        model.set_adapter("default")
        torch.manual_seed(0)
        for weight_name, weight in model.named_parameters():
            if "lora_" in weight_name:
                torch.nn.init.normal_(weight)
        change(model)
        found[name] = fingerprint(model), model.encode(sentences[0])
    hashes, embeddings = zip(*found.values(), strict=True)
    assert len(set(hashes)) == len({tuple(embedding) for embedding in embeddings}) == 4


def test_a_trained_pooler_with_lora(tiny_bert, sentences, tmp_path):
    """Adapter and pooler are trained, saved and read again; merged, it is a plain model."""
    model = build_model(tiny_bert, pooling="pooler", lora=LoraConfig(r=2, init_lora_weights=False), device="cpu")
    before = model[2].linear.weight.clone()
    UnsupSimCSELoss(model.train())([model.preprocess(sentences)]).backward()
    torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=1.0).step()
    assert not torch.equal(before, model[2].linear.weight)
    trained = model.eval().encode(sentences)
    model.save_pretrained(str(tmp_path / "adapter"))
    assert build_model(tmp_path / "adapter", device="cpu").encode(sentences) == pytest.approx(trained, abs=1e-6)
    assert save_transformer(model, tmp_path / "plain") == "outputs.pooler_output"
    tokens = AutoTokenizer.from_pretrained(tiny_bert)(sentences, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = AutoModel.from_pretrained(tmp_path / "plain").eval()(**tokens).pooler_output
    assert trained == pytest.approx(expected.numpy(), abs=1e-5)
    merge_lora(model).save_pretrained(str(tmp_path / "merged"))
    assert SentenceTransformer(str(tmp_path / "merged")).encode(sentences) == pytest.approx(trained, abs=1e-5)
