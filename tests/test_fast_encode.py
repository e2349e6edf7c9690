"""fast_encode against SentenceTransformer.encode, over options and kinds of models; what it embeds, and in what."""

import copy
import importlib
import pickle
import random
from collections import Counter

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
from sentence_transformers.sentence_transformer.modules import (
    LSTM,
    BoW,
    Dense,
    Normalize,
    Pooling,
    StaticEmbedding,
    WordEmbeddings,
)
from sentence_transformers.sentence_transformer.modules.tokenizer import WhitespaceTokenizer

import st_simcse.models.fast_encode as module
from conftest import SENTENCES
from st_simcse import Searcher, SimCSETrainer, SimCSETrainingArguments, UnsupSimCSELoss, build_model
from st_simcse.cli import evaluate
from st_simcse.data.scored_pairs import load_sts
from st_simcse.data.teacher import add_teacher_embeddings
from st_simcse.demo import tiny_model
from st_simcse.evaluation import sts_evaluators
from st_simcse.models.embed_once import embed_once
from st_simcse.models.fast_encode import FastModel, fast_encode, fast_encode_own
from st_simcse.models.precision import computing_in
from tests.backbones import ARCHITECTURES

WORDS = sorted({word for sentence in SENTENCES for word in sentence.strip(".").split()})
draw = random.Random(0)
# Long words without many tokens, short ones with many: order by characters is not the order by tokens.
DIFFERENT = [" ".join(draw.choices([*WORDS, "dog" * 9, "? !", ". . ."], k=1 + row % 23)) for row in range(120)]
TEXTS = [*DIFFERENT, *reversed(DIFFERENT[:40]), DIFFERENT[3]]


def close(found, expected, atol=1e-6):
    """The same type, dtype, shape and values."""
    assert type(found) is type(expected)
    if isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            close(one, other, atol)
    else:
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        found, expected = np.asarray(found), np.asarray(expected)
        scale = max(1, np.abs(expected).max()) if expected.size else 1
        np.testing.assert_allclose(found, expected, atol=atol * scale, rtol=0)


def plain_encode(model, *args, method="encode", **options):
    """By ST, without what fast_encode is about."""
    return getattr(SentenceTransformer, method)(model, *args, **options)


def routed(model):
    """Another Dense for queries than for documents."""
    torch.manual_seed(0)
    ends = [[Dense(32, width), Normalize()] for width in (8, 8)]
    router = Router.for_query_document([model[0], Pooling(32), *ends[0]], [model[0], Pooling(32), *ends[1]])
    return SentenceTransformer(modules=[router], prompts={"query": "Two dogs : "}, device="cpu")


def word_embeddings(*modules):
    vocabulary = [word.strip(".") for word in WORDS]
    torch.manual_seed(0)
    tokenizer = WhitespaceTokenizer(vocabulary, stop_words=[])
    weights = torch.randn(len(vocabulary), 32).numpy()
    words = WordEmbeddings(tokenizer, weights)
    return SentenceTransformer(modules=[words, *modules, Pooling(32)], device="cpu")


def decoder(tmp_path, name="Qwen3", pooling="lasttoken"):
    ARCHITECTURES[name].save(tmp_path)
    return build_model(str(tmp_path), pooling=pooling, device="cpu")


def left_padded(tmp_path):
    model = decoder(tmp_path)
    model.tokenizer.padding_side = "left"
    return model


def without_special_tokens(model):
    model[0].processing_kwargs = {"text": {"add_special_tokens": False}}
    return model


def excluding_the_prompt(model):
    model.prompts, model.default_prompt_name = {"said": "The woman reads : "}, "said"
    model.set_pooling_include_prompt(False)
    return model


def half(model):
    return model.to(torch.bfloat16)


def unlimited(model):
    model.max_seq_length = 10**30
    return model


def with_adapters(model):
    torch.manual_seed(0)
    config = LoraConfig(target_modules=["query"], init_lora_weights=False)
    get_peft_model(model.transformers_model, config)  # into the model's own modules
    return model


MODELS = {
    "mean": lambda model, path: model,
    "cls": lambda model, path: tiny_model(SENTENCES, width=32, pooling="cls").to("cpu"),
    "weighted mean and max": lambda model, path: SentenceTransformer(
        modules=[model[0], Pooling(32, ("weightedmean", "max"))], device="cpu"
    ),
    "normalized": lambda model, path: SentenceTransformer(modules=[*model, Normalize()], device="cpu"),
    "truncated": lambda model, path: SentenceTransformer(modules=[*model], truncate_dim=8, device="cpu"),
    "prompt left out": lambda model, path: excluding_the_prompt(model),
    "no special tokens": lambda model, path: without_special_tokens(model),
    "no limit": lambda model, path: unlimited(model),
    "short limit": lambda model, path: setattr(model, "max_seq_length", 6) or model,
    "router": lambda model, path: routed(model),
    "decoder": lambda model, path: decoder(path),
    "decoder padded left": lambda model, path: left_padded(path),
    "static": lambda model, path: SentenceTransformer(modules=[StaticEmbedding(model.tokenizer, embedding_dim=8)]),
    "bag of words": lambda model, path: SentenceTransformer(modules=[BoW(WORDS)], device="cpu"),
    "word embeddings": lambda model, path: word_embeddings(),
    "LSTM": lambda model, path: word_embeddings(LSTM(32, 16)),
    "adapters": lambda model, path: with_adapters(model),
}


@pytest.mark.parametrize("kind", MODELS)
def test_models_embed_as_by_encode(model, tmp_path, kind):
    plain = MODELS[kind](model, tmp_path)
    fast = fast_encode(plain)
    assert type(fast) is FastModel
    task = {"task": "document"} if kind == "router" else {}
    close(fast.encode(TEXTS, **task), plain.encode(TEXTS, **task))
    for method in ("encode_query", "encode_document"):
        close(getattr(fast, method)(TEXTS), getattr(plain, method)(TEXTS))
    assert not plain.training


def test_a_compiled_model_stays_compiled(model, monkeypatch):
    calls = []
    monkeypatch.setattr(torch, "compile", lambda call, **options: lambda *inputs: calls.append(1) or call(*inputs))
    fast, expected = fast_encode(model), model.encode(TEXTS)
    model.compile()
    close(fast.encode(TEXTS), expected)
    assert calls


def test_architectures_that_read_padding_keep_their_batches(tmp_path):
    """Their embeddings depend on the other texts of a batch, so that only the same batches give the same numbers."""
    model = decoder(tmp_path, "ConvBERT", "mean")
    close(fast_encode(model).encode(TEXTS), model.encode(TEXTS), atol=0)


OPTIONS = {
    "numpy": {},
    "tensor": {"convert_to_tensor": True},
    "list": {"convert_to_numpy": False},
    "normalized": {"normalize_embeddings": True},
    "truncated": {"truncate_dim": 5, "normalize_embeddings": True},
    "small batches": {"batch_size": 2},
    "a row a batch": {"batch_size": 1},
    "device": {"device": "cpu"},
    "prompt": {"prompt": "Two dogs : "},
    "prompt by name": {"prompt_name": "said"},
    "int8": {"precision": "int8"},
    "tokens": {"output_value": "token_embeddings"},
    "processing": {"processing_kwargs": {"text": {"max_length": 5, "truncation": True}}},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options_are_those_of_encode(model, options):
    excluding_the_prompt(model).default_prompt_name = None
    close(fast_encode(model).encode(TEXTS, **options), model.encode(TEXTS, **options))


def test_positional_options(model):
    model.prompts = {"said": "Two dogs : "}
    close(fast_encode(model).encode(TEXTS, "said", None, 4), model.encode(TEXTS, "said", None, 4))


@pytest.mark.parametrize(
    "inputs",
    [
        "Two dogs run.",
        "",
        [],
        ["", "A cat", ""],
        tuple(TEXTS),
        np.array(TEXTS),
        np.array(TEXTS, dtype=object),
        Dataset.from_dict({"text": TEXTS})["text"],
        {"text": "Two dogs run."},
        [{"text": text} for text in TEXTS],
        [("A cat", "Two dogs"), ("A dog", "A cat sleeps")],
    ],
    ids=lambda inputs: f"{type(inputs).__name__} {len(inputs)}",
)
def test_inputs_are_those_of_encode(model, inputs):
    for options in ({}, {"convert_to_tensor": True}, {"convert_to_numpy": False}):
        close(fast_encode(model).encode(inputs, **options), model.encode(inputs, **options))


def test_texts_without_tokens(model):
    """Mean pooling of no token is zero."""
    texts = ["", "A cat sleeps.", "Two dogs", ""]
    found = fast_encode(without_special_tokens(model)).encode(texts)
    close(found, model.encode(texts))
    assert not found[[0, 3]].any()
    assert found[1].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"prompt_name": "none"}, "Prompt name 'none' not found"),
        ({"precision": "int3"}, "int3"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_wrong_options_are_refused_as_by_encode(model, options, message):
    for one in (model, fast_encode(model)):
        with pytest.raises(ValueError, match=message):
            one.encode(TEXTS, **options)


def batches_of(model, texts, **options):
    """The attention masks of all batches."""
    masks = []
    hook = model.register_forward_pre_hook(lambda module, inputs: masks.append(inputs[0]["attention_mask"].bool()))
    fast_encode(model).encode(texts, **options)
    hook.remove()
    return masks


@pytest.mark.parametrize("batch_size", [1, 3, 32, 1000])
def test_batches_are_full_of_tokens(model, batch_size):
    different = list(dict.fromkeys(TEXTS))
    lengths = [len(model.tokenizer(text)["input_ids"]) for text in different]
    masks = batches_of(model, TEXTS, batch_size=batch_size)
    assert Counter(row for mask in masks for row in mask.sum(1).tolist()) == Counter(lengths)  # each text once
    budget = min(batch_size * max(lengths), module.CPU_TOKENS)
    assert all(mask.numel() <= budget for mask in masks)
    # Longest first, so that a batch's padding is no more than what its rows differ by.
    ordered = sorted(lengths, reverse=True)
    assert [row for mask in masks for row in mask.sum(1).tolist()] == ordered
    for mask in masks:
        assert mask.shape[1] == mask.sum(1).max()
    # No batch could have taken the first row of the next one.
    assert all((len(one) + 1) * one.shape[1] > budget for one in masks[:-1])


def test_less_padding_than_by_characters(model):
    several = random.Random(1)
    texts = {" ".join(several.choices(["dog" * 9, "?", "A cat"], k=several.randint(2, 20))): None for _ in range(800)}
    real = sum(len(model.tokenizer(text)["input_ids"]) for text in texts)
    by_characters = []
    hook = model.register_forward_pre_hook(lambda module, inputs: by_characters.append(inputs[0]["attention_mask"]))
    model.encode([*texts])
    hook.remove()
    found = sum(mask.numel() for mask in batches_of(model, [*texts]))
    assert found < 1.1 * real < 1.2 * real < sum(mask.numel() for mask in by_characters)


def test_windows(model, monkeypatch):
    """Texts of several windows keep their rows; long texts have smaller windows."""
    expected = model.encode(TEXTS)
    monkeypatch.setattr(module, "WINDOW", 7)
    close(fast_encode(model).encode(TEXTS), expected)
    monkeypatch.setattr(module, "WINDOW_CHARACTERS", 300)
    close(fast_encode(model).encode(TEXTS), expected)
    windows = list(module._split(sorted(DIFFERENT, key=len, reverse=True)))
    assert all(len(window) * len(window[0]) <= 300 or len(window) == 1 for window in windows)
    assert max(map(len, windows)) == 7
    assert sum(map(len, windows)) == len(DIFFERENT)


@pytest.mark.parametrize("kind", ["static", "bag of words"])
def test_equal_texts_are_embedded_once_by_all_models(model, tmp_path, kind):
    plain, rows = MODELS[kind](model, tmp_path), []
    plain.register_forward_hook(lambda module, inputs, output: rows.append(len(output["sentence_embedding"])))
    fast_encode(plain).encode(TEXTS)
    assert sum(rows) == len(set(TEXTS))


def test_errors_of_the_model_come_through(model):
    def fail(module, inputs):
        raise RuntimeError("out of memory")

    model.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        fast_encode(model).encode(TEXTS)


# What it computes in.


def seen(model, fast, texts=TEXTS):
    """Of the embeddings and of the products inside: their dtypes."""
    dtypes = []
    linear = next(part for part in model.modules() if isinstance(part, torch.nn.Linear))
    hook = linear.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    found = fast.encode(texts)
    hook.remove()
    (inside,) = set(dtypes)
    return found, inside


@pytest.mark.parametrize(("precision", "atol"), [("bfloat16", 0.05), ("float16", 0.005)])
def test_half_precision_is_close_and_leaves_the_weights(model, precision, atol):
    before = copy.deepcopy(model.state_dict())
    expected = model.encode(TEXTS)
    found, inside = seen(model, fast_encode(model, precision))
    assert inside == getattr(torch, precision)
    assert found.dtype == np.float32
    assert 0 < np.abs(found - expected).max() / np.abs(expected).max() < atol
    cosines = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosines.min() > 1 - atol**2
    for name, value in model.state_dict().items():
        assert value.dtype == before[name].dtype
        assert torch.equal(value, before[name])
    close(model.encode(TEXTS), expected)


def test_float32_stays_under_an_outer_autocast(model):
    expected = model.encode(TEXTS)
    with torch.autocast("cpu", torch.bfloat16):
        found, inside = seen(model, fast_encode(model, "float32"))
        assert inside == torch.float32
        close(found, expected)


@pytest.mark.parametrize("is_faster", [True, False])
def test_auto_is_what_the_hardware_is_faster_at(model, monkeypatch, is_faster):
    monkeypatch.setattr("st_simcse.models.precision.computes_in_bf16", lambda use_cpu: is_faster)
    assert seen(model, fast_encode(model))[1] == (torch.bfloat16 if is_faster else torch.float32)
    assert seen(model, fast_encode(model, "float32"))[1] == torch.float32
    assert seen(model, fast_encode(fast_encode(model, "float32")))[1] == torch.float32
    assert seen(model, embed_once(fast_encode(model, "float32")))[1] == torch.float32
    assert seen(model, embed_once(model, "float32"))[1] == torch.float32
    # Weights in half precision are what the model computes in.
    model.to(torch.float16)
    assert seen(model, fast_encode(model))[1] == torch.float16


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_in_half_precision(model, dtype):
    model.to(dtype)
    found = fast_encode(model).encode(TEXTS)
    assert found.dtype == np.float32
    expected = model.encode(TEXTS, convert_to_tensor=True).float().numpy()
    np.testing.assert_allclose(found, expected, atol=0.02, rtol=0)
    with pytest.raises(ValueError, match=r"weights are in torch.*convert them with model.float\(\), or choose auto"):
        fast_encode(model, "float32")
    assert seen(model, fast_encode_own(model, "float32"))[1] == torch.float32


def test_weights_in_double_precision_keep_their_digits(model):
    model.to(torch.float64)
    close(fast_encode(model).encode(TEXTS), model.encode(TEXTS), atol=1e-12)


def test_unknown_precision(model):
    with pytest.raises(ValueError, match="unknown precision 'bf16': choose auto, float32, bfloat16, float16"):
        fast_encode(model, "bf16")


class Own(SentenceTransformer):
    def encode_query(self, *args, **options):
        return "own"


def test_an_encode_of_its_own_stays(model):
    own = Own(modules=[*model], device="cpu")
    assert fast_encode(own) is own
    assert fast_encode(own, "float32") is own
    once = embed_once(model)
    assert fast_encode(once) is once
    for one in (own, once):
        with pytest.raises(ValueError, match="its own encode, which may not compute in bfloat16: choose auto"):
            fast_encode(one, "bfloat16")


def test_a_compiled_module_has_no_encode_of_this_kind(model):
    compiled = torch.compile(model)
    assert fast_encode(compiled) is compiled


def test_several_processes(model, monkeypatch):
    """They are ST's; they cannot be asked for bf16."""
    asked = []
    monkeypatch.setattr(SentenceTransformer, "encode", lambda self, inputs, **options: asked.append(options))
    monkeypatch.setitem(module.ENCODERS, "encode", SentenceTransformer.encode)
    fast_encode(model).encode(TEXTS, device=["cpu", "cpu"], batch_size=3)
    assert asked == [{"device": ["cpu", "cpu"], "batch_size": 3}]
    fast = fast_encode(model, "bfloat16")
    message = "not in bfloat16. Choose one device, or the precision auto or float32"
    for call in (
        lambda: fast.encode(TEXTS, device=["cpu", "cpu"]),
        lambda: fast.encode(TEXTS, pool={"processes": []}),
        lambda: fast.start_multi_process_pool(["cpu", "cpu"]),
        lambda: Searcher(fast).encode(TEXTS, device=["cpu", "cpu"]),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_the_state_is_one(model):
    """Settings that are changed of one of them are those of the other; copies are copies of both."""
    fast = fast_encode(model)
    model.truncate_dim = 7
    assert fast.truncate_dim == 7
    assert fast.encode(TEXTS).shape[1] == 7
    with fast.truncate_embeddings(5):
        assert model.encode(TEXTS).shape[1] == fast.encode(TEXTS).shape[1] == 5
    fast.prompts = {"said": "x"}
    assert model.prompts == {"said": "x"}
    assert [*fast.state_dict()] == [*model.state_dict()]
    assert not hasattr(model, "plain")
    fast = fast_encode(model, "float32")
    for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert other.compute == "float32"
        assert other[0] is not model[0]
        close(other.encode(TEXTS), model.encode(TEXTS))


def test_the_model_goes_where_encode_is_told_to():
    model = word_embeddings()
    fast = fast_encode(model)
    assert fast.encode(["A cat"], device="meta", convert_to_tensor=True).device.type == "meta"
    assert model.device.type == fast.device.type == "meta"


# Where it is used.


@pytest.fixture
def pairs(generated):
    return load_sts(str(generated / "sts/raw/STSB-dev.tsv"))


@pytest.mark.parametrize("kind", ["mean", "normalized"])
def test_evaluations_in_a_training(model, pairs, tmp_path, kind):
    model = MODELS[kind](model, tmp_path)
    models = []

    class Asking(type(pairs)):
        def __call__(self, model, *args, **options):
            models.append(model)
            return super().__call__(model, *args, **options)

    evaluator = copy.copy(pairs)
    evaluator.__class__ = Asking
    arguments = SimCSETrainingArguments(
        str(tmp_path / "run"), max_steps=2, eval_strategy="steps", eval_steps=1, use_cpu=True, report_to="none"
    )
    data = Dataset.from_dict({"sentence": SENTENCES})
    trainer = SimCSETrainer(model, arguments, data, evaluator=evaluator, loss=UnsupSimCSELoss(model))
    trainer.train()
    assert len(models) == 2
    assert all(type(one) is FastModel and one.plain is model for one in models)
    assert trainer.evaluator is evaluator
    key = f"{pairs.name}_spearman_cosine"
    logged = [row[f"eval_{key}"] for row in trainer.state.log_history if f"eval_{key}" in row]
    assert logged[-1] == pytest.approx(pairs(model)[key], abs=1e-6)


def test_evaluators_embed_equal_texts_of_a_side_once(model, pairs):
    evaluator, rows = copy.copy(pairs), []
    evaluator.sentences1 = [SENTENCES[number % 3] for number in range(50)]
    evaluator.sentences2 = [SENTENCES[3 + number % 4] for number in range(50)]
    evaluator.scores = list(range(50))
    expected = evaluator(model)
    model.register_forward_hook(lambda module, inputs, output: rows.append(len(output["sentence_embedding"])))
    found = evaluator(fast_encode(model))
    assert sum(rows) == 3 + 4
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("bf16", [True, False])
def test_the_precision_of_evaluations_is_that_of_the_training(model, monkeypatch, tmp_path, bf16):
    from st_simcse.training.resumable_trainer import to_evaluate

    monkeypatch.setattr("st_simcse.models.precision.computes_in_bf16", lambda use_cpu: True)
    arguments = SimCSETrainingArguments(str(tmp_path), use_cpu=True, bf16=bf16)
    assert seen(model, to_evaluate(model, arguments))[1] == (torch.bfloat16 if bf16 else torch.float32)
    model.to(torch.float16)
    assert seen(model, to_evaluate(model, arguments))[1] == torch.float16


def test_teachers(model):
    rows = Dataset.from_dict({"one": TEXTS, "other": TEXTS[::-1]})
    found = np.array(add_teacher_embeddings(rows, model)["label"])
    np.testing.assert_allclose(found[:, 0], model.encode(TEXTS), atol=1e-6)
    np.testing.assert_allclose(found[:, 1], model.encode(TEXTS)[::-1], atol=1e-6)


def test_searcher(model, tmp_path):
    searcher = Searcher(model)
    assert searcher.model is model
    searcher.build_index(TEXTS, tmp_path / "index")
    expected = model.encode_document(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(searcher.embeddings, expected, atol=1e-6)
    np.testing.assert_allclose(searcher.encode(TEXTS), expected, atol=1e-6)
    # An index does not depend on what its model computed in.
    for one in (model, fast_encode(model, "bfloat16")):
        assert Searcher.load(tmp_path / "index", one).search(TEXTS[5], top_k=1)[0]["text"] == TEXTS[5]


def test_outer_autocast_reaches_models_that_follow_it(model):
    with computing_in("bfloat16", model.device):
        assert seen(model, fast_encode(model))[1] == torch.bfloat16


@pytest.fixture
def saved(model, tmp_path):
    model.save(str(tmp_path / "saved"))
    return str(tmp_path / "saved")


def test_evaluate_has_the_scores_of_st(saved, generated):
    """And it embeds each text of all tasks once."""
    folder = generated / "sts/raw"
    plain = SentenceTransformer(saved, device="cpu")
    expected, texts, rows = {}, set(), []
    for task in sts_evaluators(str(folder), allow_partial=True).evaluators:
        of_st = EmbeddingSimilarityEvaluator(task.sentences1, task.sentences2, task.scores, name=task.name)
        expected[task.name] = 100 * of_st(plain)[f"{task.name}_spearman_cosine"]
        texts.update(task.sentences1, task.sentences2)

    def count(module, inputs, output):
        if isinstance(module, Pooling):
            rows.append(len(output["sentence_embedding"]))

    hook = torch.nn.modules.module.register_module_forward_hook(count)
    try:
        (row,) = evaluate.run(["--model", saved, "--sts_dir", str(folder), "--allow_partial"]).values()
    finally:
        hook.remove()
    assert sum(rows) == len(texts)
    assert row.pop("Avg.") == pytest.approx(np.mean([*expected.values()]), abs=1e-3)
    assert row == pytest.approx(expected, abs=1e-3)


def commands(saved, path):
    """Those that embed, each with its other options; the index comes first."""
    index = str(path / "index")
    return {
        "index": ["--model", saved, "--corpus", str(path / "a.txt"), "--output_dir", index],
        "encode": ["--model", saved, "--corpus", str(path / "a.txt"), "--output_file", str(path / "a.npy")],
        "search": ["--model", saved, "--index", index, "--queries", "A cat"],
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("asked", "inside"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_commands_compute_in_the_precision(model, tmp_path, saved, dtype, asked, inside):
    """Whatever the weights were saved in."""
    model.to(dtype).save(saved)
    (tmp_path / "a.txt").write_text("\n".join(SENTENCES))
    dtypes = []

    def see(module, inputs, output):
        if isinstance(module, torch.nn.Linear):
            dtypes.append(output.dtype)

    hook = torch.nn.modules.module.register_module_forward_hook(see)
    try:
        for command, options in commands(saved, tmp_path).items():
            importlib.import_module(f"st_simcse.cli.{command}").run([*options, "--precision", asked])
            assert set(dtypes) == {inside}, command
            dtypes.clear()
    finally:
        hook.remove()


@pytest.mark.parametrize("command", ["index", "encode"])
def test_several_devices_in_bf16_are_refused_before_the_work(saved, tmp_path, command):
    (tmp_path / "a.txt").write_text("\n".join(SENTENCES))
    options = [*commands(saved, tmp_path)[command], "--device", "cpu", "cpu", "--precision", "bfloat16"]
    with pytest.raises(ValueError, match="--precision bfloat16 works on a single device only"):
        importlib.import_module(f"st_simcse.cli.{command}").run(options)
    assert {path.name for path in tmp_path.iterdir()} == {"saved", "a.txt"}
