import copy
import pickle
import time

import httpx
import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from transformers import (
    AlbertConfig,
    AlbertModel,
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertForPreTraining,
    BertModel,
    CanineConfig,
    CanineModel,
    CanineTokenizer,
    ElectraConfig,
    ElectraModel,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5EncoderModel,
)

from st_simcse import MomentumQueue, ProjectionHead, UnsupSimCSELoss, build_model, save_transformer
from st_simcse.models.checkpoints import load_model


def _hidden_states(folder, sentences):
    tokens = AutoTokenizer.from_pretrained(folder)(sentences, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = AutoModel.from_pretrained(folder).eval()(**tokens, output_hidden_states=True).hidden_states
    return states, tokens["attention_mask"].unsqueeze(-1)


def _pooler_output(folder, sentences):
    with torch.no_grad():
        tokens = AutoTokenizer.from_pretrained(folder)(sentences, padding=True, return_tensors="pt")
        return AutoModel.from_pretrained(folder).eval()(**tokens).pooler_output


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
    expected = _expected(pooling, *_hidden_states(folder, sentences))
    if real and pooling == "mean":  # its own pooling, which comes with its Normalize
        expected = expected / expected.norm(dim=1, keepdim=True)
    assert embeddings == pytest.approx(expected.numpy(), abs=1e-5)

    model.save_pretrained(str(tmp_path))
    saved = SentenceTransformer(str(tmp_path), trust_remote_code=False)
    assert saved.max_seq_length == 24
    assert (saved.encode(sentences) == embeddings).all()


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["first_last_avg", "last2_avg"])
def test_averages_of_layers_in_another_process(tiny_bert, sentences, pooling, tmp_path):
    model = build_model(tiny_bert, pooling=pooling, device="cpu")
    expected = _expected(pooling, *_hidden_states(tiny_bert, sentences)).numpy()
    model.encode(sentences)  # transformers registers its hooks
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model):
        assert copied.encode(sentences) == pytest.approx(expected, abs=1e-5)
    model.save_pretrained(str(tmp_path))
    pool = load_model(tmp_path).start_multi_process_pool(["cpu"])  # spawned, so that it has made no such model
    try:
        assert model.encode(sentences, pool=pool) == pytest.approx(expected, abs=1e-5)
    finally:
        SentenceTransformer.stop_multi_process_pool(pool)


@pytest.mark.parametrize("real", [False, True], ids=["tiny", "MiniLM"])
def test_berts_own_pooler(request, sentences, tmp_path, real, caplog):
    """The layer that it was pretrained with; trained on, it is kept where it is asked for again."""
    folder = request.getfixturevalue("pretrained" if real else "tiny_bert")
    model = build_model(folder, pooling="pooler", device="cpu")
    assert [type(module) for module in model] == [Transformer, Pooling, Dense]
    embeddings = model.encode(sentences)
    assert embeddings == pytest.approx(_pooler_output(folder, sentences).numpy(), abs=1e-5)
    with torch.no_grad():
        model[2].linear.weight += 0.1
    trained = model.encode(sentences)
    model.save_pretrained(str(tmp_path / "saved"))
    caplog.clear()
    for pooling in (None, "pooler"):
        assert (build_model(tmp_path / "saved", pooling=pooling, device="cpu").encode(sentences) == trained).all()
    assert not [record for record in caplog.records if record.name.startswith("st_simcse")]
    assert (SentenceTransformer(str(tmp_path / "saved"), device="cpu").encode(sentences) == trained).all()
    assert save_transformer(model, tmp_path / "plain") == "outputs.pooler_output"
    assert trained == pytest.approx(_pooler_output(tmp_path / "plain", sentences).numpy(), abs=1e-5)


def test_berts_own_pooler_behind_its_masked_language_model(tiny_bert, sentences, tmp_path):
    """As bert-base-chinese and others are published: under a prefix, in a checkpoint of more than the transformer."""
    for part in (BertForPreTraining(BertConfig.from_pretrained(tiny_bert)), AutoTokenizer.from_pretrained(tiny_bert)):
        part.save_pretrained(tmp_path)
    model = build_model(tmp_path, pooling="pooler", device="cpu")
    assert model.encode(sentences) == pytest.approx(_pooler_output(tmp_path, sentences).numpy(), abs=1e-5)


@pytest.mark.parametrize("options", [{"use_residual": True}, {"bias": False}], ids=str)
def test_a_layer_that_is_no_pooler_is_replaced_by_berts_own(tiny_bert, sentences, tmp_path, options):
    model = build_model(tiny_bert, pooling="cls", device="cpu")
    model.append(Dense(32, 32, **options))
    model.save_pretrained(str(tmp_path))
    model = build_model(tmp_path, pooling="pooler", device="cpu")
    assert model.encode(sentences) == pytest.approx(_pooler_output(tiny_bert, sentences).numpy(), abs=1e-5)


def test_the_mlp_reads_the_whole_embedding_of_a_model_that_truncates(tiny_bert, sentences):
    model = build_model(tiny_bert, pooling="cls", dense=True, truncate_dim=7, device="cpu")
    tokens = AutoTokenizer.from_pretrained(tiny_bert)(sentences, padding=True, return_tensors="pt")
    with torch.no_grad():
        first = AutoModel.from_pretrained(tiny_bert).eval()(**tokens).last_hidden_state[:, 0]
        expected = torch.tanh(first @ model[2].linear.weight.T + model[2].linear.bias)[:, :7]
    assert model.encode(sentences) == pytest.approx(expected.numpy(), abs=1e-5)


def test_no_trained_pooler_is_refused(tiny_bert, tmp_path):
    """A layer that transformers makes at random, none, and one of another kind."""
    tokenizer, small = AutoTokenizer.from_pretrained(tiny_bert), BertConfig.from_pretrained(tiny_bert).to_dict()
    size = {name: small[name] for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")}
    others = {
        "random": BertModel(BertConfig.from_pretrained(tiny_bert), add_pooling_layer=False),
        "none": ElectraModel(ElectraConfig(**size, embedding_size=32, intermediate_size=64)),
        "another": AlbertModel(AlbertConfig(**size, embedding_size=32, intermediate_size=64)),
    }
    for name, transformer in others.items():
        for part in (transformer, tokenizer):
            part.save_pretrained(tmp_path / name)
        with pytest.raises(ValueError, match=f"{name} has no trained pooler.*Pass pooling='cls' .--pooling cls"):
            build_model(tmp_path / name, pooling="pooler")
    with pytest.raises(ValueError, match="'pooler' already is an MLP.*omit dense"):
        build_model(tiny_bert, pooling="pooler", dense=True)


@pytest.fixture
def saved(tiny_bert, tmp_path):
    """A SentenceTransformer with everything that can be saved: modules, prompts, length."""
    torch.manual_seed(0)
    modules = [Transformer(tiny_bert), Pooling(32, "max"), Dense(32, 16), Normalize()]
    model = SentenceTransformer(modules=modules, prompts={"query": "dogs: "}, default_prompt_name="query", device="cpu")
    model.max_seq_length = 5
    model.save_pretrained(str(tmp_path / "saved"))
    return str(tmp_path / "saved")


@pytest.mark.parametrize("cached", [False, True])
def test_what_was_saved_comes_whole(saved, sentences, into_cache, cached):
    name = into_cache(saved, "somebody/saved") if cached else saved
    model, expected = build_model(name), SentenceTransformer(saved)
    assert model.prompts["query"] == "dogs: "
    assert model.max_seq_length == 5
    assert (model.encode(sentences) == expected.encode(sentences)).all()
    assert build_model(name, max_seq_length=60).max_seq_length == 60  # longer than saved, there are 64 positions


def test_another_pooling_replaces_the_saved_one_and_says_so(saved, tiny_bert, sentences, caplog):
    model = build_model(saved, pooling="cls")
    assert f"replaces Pooling (max), Dense, Normalize, which {saved} was saved with" in caplog.text
    assert [type(module) for module in model] == [Transformer, Pooling]
    assert model.prompts["query"] == "dogs: "
    assert model.max_seq_length == 5
    model.default_prompt_name, model.max_seq_length = None, 64
    expected = _expected("cls", *_hidden_states(tiny_bert, sentences))
    assert model.encode(sentences) == pytest.approx(expected.numpy(), abs=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "last2_avg"])
def test_the_pooling_that_was_saved_is_no_other(tiny_bert, tmp_path, sentences, caplog, pooling):
    build_model(tiny_bert, pooling=pooling, dense=True).save_pretrained(str(tmp_path))
    model = build_model(str(tmp_path), pooling=pooling)
    assert not [record for record in caplog.records if record.name.startswith("st_simcse")]
    assert (model.encode(sentences) == build_model(str(tmp_path)).encode(sentences)).all()
    assert isinstance(model[-1], Dense)


def test_dense_goes_before_the_last_normalize(saved, sentences):
    model = build_model(saved, dense=True)
    assert [type(module) for module in model] == [Transformer, Pooling, Dense, Dense, Normalize]
    norms = torch.tensor(model.encode(sentences)).norm(dim=1)
    assert norms.numpy() == pytest.approx(1, abs=1e-5)


def test_a_model_without_token_embeddings(static_model, tmp_path, sentences):
    static_model.save_pretrained(str(tmp_path))
    expected = static_model.encode(sentences)
    assert (build_model(tmp_path).encode(sentences) == expected).all()
    with pytest.raises(ValueError, match="token embeddings of a transformer, but .* has StaticEmbedding, Dropout"):
        build_model(tmp_path, pooling="mean")
    with pytest.raises(ValueError, match="max_seq_length needs a transformer"):
        build_model(tmp_path, max_seq_length=32)


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


def test_head_and_dense_start_alike(pretrained):
    """As BERT starts new layers: the bounds are five standard errors of 384 x 384 draws from N(0, 0.02)."""
    head = ProjectionHead(384).dense
    dense = build_model(pretrained, pooling="cls", dense=True)[2].linear
    for linear in (head, dense):
        weights = linear.weight.detach().cpu()
        assert weights.std().item() == pytest.approx(0.02, abs=5 * 0.02 / (2 * weights.numel()) ** 0.5)
        assert weights.mean().item() == pytest.approx(0, abs=5 * 0.02 / weights.numel() ** 0.5)
        assert weights.abs().max() > 0.06  # three standard deviations: no uniform distribution of this spread
        assert not linear.bias.any()


def test_options_reach_the_transformer(tiny_bert):
    options = {"hidden_dropout_prob": 0.25}
    model = build_model(tiny_bert, pooling="last2_avg", config_kwargs=options)
    assert model[0].model.config.hidden_dropout_prob == 0.25
    assert options == {"hidden_dropout_prob": 0.25}


def test_texts_are_no_longer_than_the_model_reads(tiny_bert, caplog):
    model = build_model(tiny_bert, max_seq_length=128)
    assert model.max_seq_length == 64
    assert "max_seq_length is reduced to 64" in caplog.text
    assert model.encode("word " * 100).shape == (32,)
    with pytest.raises(ValueError, match="max_seq_length=0 leaves no room for text"):
        build_model(tiny_bert, max_seq_length=0)


def test_a_bare_transformer_reads_128_tokens_or_what_it_has_positions_for(tiny_bert, tmp_path):
    assert build_model(tiny_bert).max_seq_length == 64
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert, model_max_length=512)
    config = RobertaConfig(vocab_size=len(tokenizer), max_position_embeddings=514, pad_token_id=0, **size)
    for part in (tokenizer, RobertaModel(config)):
        part.save_pretrained(tmp_path)
    assert build_model(tmp_path).max_seq_length == 128
    model = build_model(tmp_path, max_seq_length=600)
    assert model.max_seq_length == 513  # 514 less the padding's own, which is 0 here
    assert model.encode("dogs " * 1000).shape == (32,)


DECODER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**DECODER, vocab_size=40, intermediate_size=64),
        MistralConfig(**DECODER, vocab_size=40, intermediate_size=64),
        GemmaConfig(**DECODER, vocab_size=40, intermediate_size=64, head_dim=16),
        GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=40),
    ],
    ids=lambda config: config.model_type,
)
def test_cls_pooling_of_a_causal_decoder_is_refused(tiny_bert, tmp_path, sentences, config):
    torch.manual_seed(0)
    for part in (AutoModel.from_config(config), AutoTokenizer.from_pretrained(tiny_bert)):
        part.save_pretrained(tmp_path)
    for pooling in (None, "cls"):
        with pytest.raises(ValueError, match="embed every text alike. Pass pooling='mean'"):
            build_model(tmp_path, pooling=pooling)
    embeddings = torch.tensor(build_model(tmp_path, pooling="mean").encode(sentences))
    assert (torch.corrcoef(embeddings) - torch.eye(len(sentences))).abs().max() < 0.9999


@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_cls_pooling_of_an_encoder_is_not(tiny_bert, tmp_path, kind):
    config = T5Config(d_model=32, num_layers=2, num_heads=2, d_kv=16, d_ff=64, vocab_size=40)
    model = T5EncoderModel(config) if kind == "t5" else BertModel.from_pretrained(tiny_bert)
    for part in (model.bfloat16(), AutoTokenizer.from_pretrained(tiny_bert)):
        part.save_pretrained(tmp_path)
    assert build_model(tmp_path, pooling="cls")[1].pooling_mode == "cls"


@pytest.mark.slow
def test_cls_pooling_of_an_encoder_without_a_vocabulary(tmp_path, sentences):
    """One text at a time, because CANINE reads the padding."""
    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    transformer, tokenizer = CanineModel(CanineConfig(**size, max_position_embeddings=128)).eval(), CanineTokenizer()
    for part in (transformer, tokenizer):
        part.save_pretrained(tmp_path)
    model = build_model(tmp_path, pooling="cls", device="cpu")
    for text in sentences:
        with torch.no_grad():
            expected = transformer(**tokenizer(text, return_tensors="pt")).last_hidden_state[0, 0]
        assert model.encode(text) == pytest.approx(expected.numpy(), abs=1e-5)


def test_unknown_pooling(tiny_bert):
    with pytest.raises(
        ValueError, match="choose cls, pooler, mean, lasttoken, weightedmean, first_last_avg or last2_avg"
    ):
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


@pytest.mark.parametrize(
    ("status", "kind"), [(429, HfHubHTTPError), (503, HfHubHTTPError), (404, RepositoryNotFoundError)]
)
def test_a_model_in_the_cache_loads_where_the_hub_refuses(monkeypatch, tiny_bert, into_cache, sentences, status, kind):
    def refuse(hub, name, **options):
        response = httpx.Response(status, request=httpx.Request("GET", f"https://huggingface.co/{name}"))
        raise kind(f"the hub answers {status}", response=response)

    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", refuse)
    expected = SentenceTransformer(tiny_bert, device="cpu").encode(sentences)
    name = into_cache(tiny_bert, "somebody/cached")
    assert (build_model(name, "mean", device="cpu").encode(sentences) == expected).all()
    with pytest.raises(kind, match=f"the hub answers {status}"):
        build_model("somebody/not-cached")


@pytest.fixture(params=[torch.bfloat16, torch.float16])
def half(request, tiny_bert, tmp_path):
    """Folder of the tiny BERT in half precision, and its weights."""
    transformer = AutoModel.from_pretrained(tiny_bert).to(request.param)
    transformer.save_pretrained(tmp_path / "half")
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(tmp_path / "half")
    return str(tmp_path / "half"), transformer


def test_what_is_trained_in_full_is_float32_whatever_it_was_saved_in(half, tmp_path, caplog):
    folder, transformer = half
    model = build_model(folder, "first_last_avg", dense=True, device="cpu")
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    for name, weight in transformer.named_parameters():
        assert torch.equal(model[0].model.get_parameter(name), weight.float()), name
    loss = UnsupSimCSELoss(model, projection_head=True, options=[MomentumQueue(6)])
    assert {weight.dtype for weight in loss.state_dict().values() if weight.is_floating_point()} == {torch.float32}
    precision = str(transformer.dtype).removeprefix("torch.")
    assert f"{folder} was saved in {precision}, which rounds small training steps to nothing" in caplog.text
    assert "Its weights are now float32 and will be saved so" in caplog.text
    model.save_pretrained(str(tmp_path / "float32"))
    assert build_model(str(tmp_path / "float32"), device="cpu").dtype == torch.float32
    saved = SentenceTransformer(str(tmp_path / "float32"), device="cpu")
    assert {weight.dtype for weight in saved.parameters()} == {torch.float32}
    model.to(transformer.dtype).save_pretrained(str(tmp_path / "again"))
    again = SentenceTransformer(str(tmp_path / "again"), device="cpu")
    assert again[0].model.dtype == transformer.dtype
    for name, weight in transformer.named_parameters():
        assert torch.equal(again[0].model.get_parameter(name), weight), name


@pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {"model_kwargs": {"dtype": torch.bfloat16}}])
def test_a_precision_that_is_asked_for(tiny_bert, options, caplog):
    model = build_model(tiny_bert, dense=True, device="cpu", **options)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert "small steps" not in caplog.text
