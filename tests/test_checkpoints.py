"""Checkpoints in the format of the original SimCSE code, made here, against what that code computes from them."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router
from sentence_transformers.sentence_transformer.modules import Dense
from transformers import AutoModel, AutoTokenizer, BertModel, GPT2Config, GPT2Model, RobertaConfig, RobertaModel

from st_simcse import Searcher, build_model, cli, load_simcse, save_transformer
from st_simcse.demo import tiny_model
from st_simcse.models.checkpoints import load_model


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
    with pytest.raises(ValueError, match="Pass supervised=True or supervised=False"):
        load_simcse(folder)
    for supervised in (True, False):
        expected = _by_hand(plain, sentences, supervised)
        assert load_simcse(folder, supervised).encode(sentences) == pytest.approx(expected.numpy(), abs=1e-5)


def test_a_missing_mlp_is_an_error(tiny_bert, tmp_path):
    model = BertModel.from_pretrained(tiny_bert, add_pooling_layer=False)
    _published((model, AutoTokenizer.from_pretrained(tiny_bert)), tmp_path / "sup-simcse-tiny")
    with pytest.raises(ValueError, match="has no MLP"):
        load_simcse(tmp_path / "sup-simcse-tiny")


def _pickled(folder):
    """As most published repositories are: pytorch_model.bin and nothing else."""
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("write", [_published, _as_trained])
@pytest.mark.parametrize("name", ["unsup-simcse-tiny", "sup-simcse-tiny"])
def test_pickled_weights_are_read_as_tensors_with_a_notice(
    plain, tmp_path, sentences, into_cache, caplog, write, name, cached
):
    folder = _pickled(write(plain, tmp_path / name))
    expected = _by_hand(plain, sentences, supervised=name.startswith("sup"))
    place = into_cache(folder, f"somebody/{name}") if cached else folder
    assert load_model(place).encode(sentences) == pytest.approx(expected.numpy(), abs=1e-5)
    assert caplog.text.count("pickled weights were read as plain tensors") == 1
    assert load_simcse(place, True).encode(sentences) == pytest.approx(
        _by_hand(plain, sentences, supervised=True).numpy(), abs=1e-5
    )


def test_safetensors_in_the_cache(plain, tmp_path, sentences, into_cache, caplog):
    name = into_cache(_as_trained(plain, tmp_path / "sup-simcse-tiny"), "somebody/sup-simcse-tiny")
    expected = _by_hand(plain, sentences, supervised=True)
    assert load_simcse(name).encode(sentences) == pytest.approx(expected.numpy(), abs=1e-5)
    assert "pickled" not in caplog.text


@pytest.mark.parametrize("kind", ["safetensors", "pickled"])
def test_the_mlp_is_found_in_shards(plain, tmp_path, sentences, kind):
    folder = _as_trained(plain, tmp_path / "sup-simcse-tiny")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    stem, ending = ("model", "safetensors") if kind == "safetensors" else ("pytorch_model", "bin")
    index = {}
    for part in range(2):
        shard = {name: weights[name] for name in weights if ("mlp" in name) == bool(part)}
        file = f"{stem}-0000{part + 1}-of-00002.{ending}"
        index |= dict.fromkeys(shard, file)
        if kind == "safetensors":
            save_file(shard, folder / file, metadata={"format": "pt"})
        else:
            torch.save(shard, folder / file)
    (folder / f"{stem}.{ending}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    expected = _by_hand(plain, sentences, supervised=True)
    assert load_simcse(folder).encode(sentences) == pytest.approx(expected.numpy(), abs=1e-5)


def test_a_missing_mlp_in_the_cache_is_an_error(tiny_bert, tmp_path, into_cache):
    model = BertModel.from_pretrained(tiny_bert, add_pooling_layer=False)
    folder = _published((model, AutoTokenizer.from_pretrained(tiny_bert)), tmp_path / "sup-simcse-tiny")
    name = into_cache(_pickled(folder), "somebody/sup-simcse-tiny")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin has no MLP"):
        load_simcse(name)


class _Harm:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("place", ["transformer", "dense", "cache"])
@pytest.mark.parametrize("command", ["evaluate", "export", "serve", "train"])
def test_a_hostile_pickle_is_a_line_and_never_runs(
    plain, tiny_bert, tmp_path, shared, sentences, into_cache, place, command
):
    harm = tmp_path / "harm"
    if place == "dense":
        build_model(tiny_bert, dense=True).save_pretrained(str(tmp_path / "model"))
        folder = tmp_path / "model" / "2_Dense"
    else:
        folder = _published(plain, tmp_path / "sup-simcse-tiny")
    (folder / "model.safetensors").unlink()
    torch.save({"linear.weight": _Harm(harm)}, folder / "pytorch_model.bin")
    model = {"transformer": folder, "dense": folder.parent}.get(place) or into_cache(folder, "somebody/sup-simcse-x")
    (tmp_path / "a.txt").write_text("\n".join(sentences))
    words = {
        "evaluate": ["--model", str(model), "--sts_dir", str(shared / "sts" / "raw")],
        "export": ["--model", str(model), "--output_dir", str(tmp_path / "out")],
        "serve": ["--model", str(model), "--corpus", str(tmp_path / "a.txt")],
        "train": [*("--model_name_or_path", str(model)), *("--train_file", str(tmp_path / "a.txt"))],
    }[command]
    if command == "train":
        words += ["--output_dir", str(tmp_path / "out"), "--bf16", "false"]
    with pytest.raises(SystemExit, match=f"st-simcse {command}: .*pickled weights contain more than tensors"):
        cli.main([command, *words])
    assert not harm.exists()


def test_a_sentence_transformer_of_that_name_knows_its_pooler(tiny_bert, tmp_path, sentences, into_cache):
    model = build_model(tiny_bert, pooling="mean", max_seq_length=17)
    model.save_pretrained(str(tmp_path / "sup-simcse-mine"))
    for name in (tmp_path / "sup-simcse-mine", into_cache(tmp_path / "sup-simcse-mine", "somebody/sup-simcse-mine")):
        for load in (load_model, load_simcse):
            assert (load(name).encode(sentences) == model.encode(sentences)).all()
            assert load(name).max_seq_length == 17
    with pytest.raises(ValueError, match="omit supervised"):
        load_simcse(tmp_path / "sup-simcse-mine", supervised=True)


@pytest.mark.parametrize("truncate_dim", [None, 7])
def test_the_way_back_normalizes_and_truncates(pretrained, tmp_path, sentences, truncate_dim):
    model = build_model(pretrained, truncate_dim=truncate_dim)
    expression = save_transformer(model, tmp_path)
    tokenizer, plain = AutoTokenizer.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)
    inputs = tokenizer(sentences, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        outputs = plain(**inputs)
    embeddings = eval(expression, {"torch": torch, "inputs": inputs, "outputs": outputs})
    assert embeddings.shape[1] == (truncate_dim or 384)
    assert model.encode(sentences) == pytest.approx(embeddings.numpy(), abs=1e-5)


PLACES = ["models--princeton-nlp--{}/snapshots/aaaa", "my-{}/checkpoint-500", "{}/best"]


@pytest.mark.parametrize("write", [_published, _as_trained])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ["unsup-simcse-tiny", "sup_simcse_tiny"])
def test_the_pooler_is_told_by_any_part_of_the_path(plain, tmp_path, sentences, caplog, write, place, name):
    folder = write(plain, tmp_path / place.format(name))
    expected = _by_hand(plain, sentences, supervised=name.startswith("sup"))
    for load in (load_model, build_model, load_simcse, lambda folder: Searcher(folder).model):
        caplog.clear()
        assert load(folder).encode(sentences) == pytest.approx(expected.numpy(), abs=1e-5)
        assert "supervised checkpoint of princeton-nlp/SimCSE" in caplog.text


def test_a_trained_folder_of_another_name_is_asked_about(plain, tmp_path, sentences):
    folder = _as_trained(plain, tmp_path / "mine")
    for load in (load_model, build_model, load_simcse, Searcher):
        with pytest.raises(ValueError, match="nothing shows whether .* Pass supervised=True .* name the folder sup-"):
            load(folder)
    for supervised in (True, False):
        expected = _by_hand(plain, sentences, supervised).numpy()
        assert build_model(folder, supervised=supervised).encode(sentences) == pytest.approx(expected, abs=1e-5)
    expected = _by_hand(plain, sentences, False).numpy()
    assert load_model(folder, pooling="cls").encode(sentences) == pytest.approx(expected, abs=1e-5)
    (folder / "trainer_state.json").write_text(json.dumps({"best_model_checkpoint": "result/my-sup-simcse-bert"}))
    expected = _by_hand(plain, sentences, True).numpy()
    assert load_model(folder).encode(sentences) == pytest.approx(expected, abs=1e-5)


def test_a_trained_folder_without_an_mlp_needs_a_pooling(tiny_bert, tmp_path):
    plain = BertModel.from_pretrained(tiny_bert, add_pooling_layer=False), AutoTokenizer.from_pretrained(tiny_bert)
    folder = _as_trained(plain, tmp_path / "unsup-simcse-avg")
    for load in (load_model, build_model):
        with pytest.raises(ValueError, match="another --pooler_type than cls, .* Pass pooling"):
            load(folder)
        assert load(folder, pooling="mean")[1].pooling_mode == "mean"


def test_a_bare_transformer_has_one_pooling_wherever_it_is_loaded(tiny_bert, sentences, caplog):
    inputs = AutoTokenizer.from_pretrained(tiny_bert)(sentences, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = AutoModel.from_pretrained(tiny_bert).eval()(**inputs).last_hidden_state[:, 0].numpy()
    for load in (load_model, build_model, lambda folder: Searcher(folder).model):
        caplog.clear()
        assert load(tiny_bert).encode(sentences) == pytest.approx(expected, abs=1e-5)
        assert "was saved without a pooling and gets 'cls'" in caplog.text


def test_lengths_and_padding_are_set_in_evaluation_too(tiny_bert, tmp_path):
    assert load_model(tiny_bert, max_seq_length=1000).max_seq_length == 64
    model = build_model(tiny_bert, "mean")
    model.max_seq_length = 1000
    model.save_pretrained(str(tmp_path / "long"))
    for load in (load_model, build_model):
        assert load(tmp_path / "long").encode("dogs " * 100).shape == (32,)
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert, pad_token=None, eos_token="[SEP]")
    tokenizer.pad_token = None
    for part in (GPT2Model(GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=40)), tokenizer):
        part.save_pretrained(tmp_path / "decoder")
    decoder = load_model(tmp_path / "decoder", pooling="mean")
    texts = ["two dogs", "two dogs run in the park"]
    alone = torch.stack([decoder.encode(text, convert_to_tensor=True) for text in texts])
    assert torch.allclose(decoder.encode(texts, convert_to_tensor=True), alone, atol=1e-5)


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


def test_an_adapter_in_the_folder_is_not_applied_to_merged_weights(tiny_bert, tmp_path, sentences):
    model = build_model(tiny_bert, pooling="cls", lora=LoraConfig(r=2, init_lora_weights=False))
    model.save_pretrained(str(tmp_path))
    save_transformer(model, tmp_path)
    inputs = AutoTokenizer.from_pretrained(tmp_path)(sentences, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        outputs = AutoModel.from_pretrained(tmp_path)(**inputs)
    assert model.encode(sentences) == pytest.approx(outputs.last_hidden_state[:, 0].numpy(), abs=1e-5)


def test_what_automodel_cannot_stand_in_for_is_refused(tiny_bert, tmp_path, static_model):
    routed = SentenceTransformer(modules=[Router.for_query_document([static_model[0]], [static_model[0]])])
    for model in (build_model(tiny_bert, "first_last_avg"), static_model, routed):
        with pytest.raises(ValueError, match="AutoModel can replace a Transformer and a Pooling only"):
            save_transformer(model, tmp_path)
    model = build_model(tiny_bert, "mean", prompts={"query": "dogs: "}, default_prompt_name="query")
    with pytest.raises(ValueError, match="puts 'dogs: ' before every text .* Set model.default_prompt_name = None"):
        save_transformer(model, tmp_path)
    with pytest.raises(ValueError, match="after CLS pooling"):
        save_transformer(build_model(tiny_bert, "mean", dense=True), tmp_path)
    for options in ({"use_residual": True}, {"bias": False}):
        model = build_model(tiny_bert, "cls")
        model.append(Dense(32, 32, **options))
        with pytest.raises(ValueError, match="only a Dense module with Tanh, a bias and no residual"):
            save_transformer(model, tmp_path)
    model = tiny_model(["A dog."])
    model[1].pooling_mode = "max"
    with pytest.raises(ValueError, match="supports CLS and mean pooling"):
        save_transformer(model, tmp_path)
    model[1].pooling_mode, model.tokenizer.padding_side = "cls", "left"
    with pytest.raises(ValueError, match="pads on the left, .* Set model.tokenizer.padding_side = 'right'"):
        save_transformer(model, tmp_path)
    model.tokenizer.padding_side, model[0].processing_kwargs = "right", {"text": {"max_length": 3}}
    with pytest.raises(ValueError, match=r"processing_kwargs=\{'text': \{'max_length': 3\}\}"):
        save_transformer(model, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}!{% endfor %}"
    BertModel.from_pretrained(tiny_bert).save_pretrained(tmp_path / "chat")
    tokenizer.save_pretrained(tmp_path / "chat")
    with pytest.raises(ValueError, match="puts every text into its chat template"):
        save_transformer(build_model(tmp_path / "chat", "mean"), tmp_path)
    shutil.rmtree(tmp_path / "chat")
    assert not list(Path(tmp_path).iterdir())


def test_a_published_name_that_is_neither_cached_nor_reachable():
    with pytest.raises(OSError, match="princeton-nlp/unsup-simcse-bert-base-uncased is not a local folder"):
        load_simcse("princeton-nlp/unsup-simcse-bert-base-uncased")
