"""Whitening: its mathematics against scikit-learn, the module in a model, and what train and whiten make of it."""

import copy
import shutil

import numpy as np
import pytest
import torch
from peft import LoraConfig
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize
from sklearn.decomposition import PCA
from torch import nn

from conftest import SENTENCES
from st_simcse import build_model, cli, load_sts, save_transformer, whiten
from st_simcse.cli import train
from st_simcse.cli.baselines import BASELINES
from st_simcse.demo import tiny_model
from st_simcse.models.embed_once import embed_once
from st_simcse.models.lora import adapters
from st_simcse.objective.whitening import Moments, whitening
from tests.forked import torchrun

TEXTS = [f"{first} {second}" for first in SENTENCES for second in SENTENCES]


def _rows(count=50, width=6, seed=0):
    """Rows whose columns differ in spread and go together, and whose mean is large."""
    random = np.random.default_rng(seed)
    return random.normal(size=(count, width)) * 2.0 ** -np.arange(width) @ random.normal(size=(width, width)) + 100


def _moments(rows, *cuts):
    moments = Moments(rows.shape[1])
    for part in np.split(rows, cuts):
        moments.add(torch.from_numpy(part))
    return moments


def _apply(moments, rows, *options):
    weight, bias = whitening(moments, *options)
    return rows @ weight.numpy().T + bias.numpy()


@pytest.mark.parametrize("dimensions", [None, 4, 1])
def test_it_is_the_whitened_pca_of_scikit_learn(dimensions):
    rows = _rows()
    ours = _apply(_moments(rows, 7, 8, 30), rows, 1.0, dimensions)
    theirs = PCA(dimensions, whiten=True, svd_solver="full").fit_transform(rows)
    # The similarities of all rows, so that neither the sign nor a rotation counts.
    np.testing.assert_allclose(ours @ ours.T, theirs @ theirs.T, atol=1e-5)
    np.testing.assert_allclose(np.abs(ours), np.abs(theirs), atol=1e-5)


@pytest.mark.parametrize("power", [0.0, 0.25, 0.5, 1.0, 2.0])
def test_a_power_evens_the_spread_out_in_part(power):
    rows = _rows()
    ours = _apply(_moments(rows), rows, power)
    spread = np.sort(np.linalg.eigvalsh(np.cov(rows.T)))[::-1]
    np.testing.assert_allclose(np.cov(ours.T), np.diag(spread ** (1 - power)), atol=1e-6)
    np.testing.assert_allclose(ours.mean(0), 0, atol=1e-8)


def test_a_power_of_zero_subtracts_the_mean_alone():
    rows = _rows()
    centred = rows - rows.mean(0)
    ours = _apply(_moments(rows), rows, 0.0)
    np.testing.assert_allclose(ours @ ours.T, centred @ centred.T, atol=1e-8)


def test_moments_are_those_of_all_rows_whatever_the_batches():
    rows = _rows(40) + 1e6  # where a sum of squares has no digits left
    for cuts in ((), (1, 2, 3), (20,), (0, 39)):
        moments = _moments(rows, *cuts)
        assert moments.count == 40
        np.testing.assert_allclose(moments.mean, rows.mean(0), rtol=1e-12)
        np.testing.assert_allclose(moments.covariance, np.cov(rows.T), rtol=1e-6, atol=1e-9)


def test_directions_without_spread_are_zero():
    rows = _rows(50, 5)
    flat = np.hstack([rows, rows[:, :1] + rows[:, 1:2], np.full((50, 1), 3.0)])  # a sum, and a constant
    ours = _apply(_moments(flat), flat)
    np.testing.assert_allclose(ours[:, 5:], 0)
    theirs = PCA(5, whiten=True, svd_solver="full").fit_transform(flat)
    np.testing.assert_allclose(ours @ ours.T, theirs @ theirs.T, atol=1e-5)


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (_rows(6, 6), (), r"6 texts are too few for 6 dimensions, which need at least 7 .*dimensions=5 or fewer"),
        (np.tile(_rows(1), (9, 1)), (), "all 9 embeddings are equal.*texts that differ"),
        (np.tile(_rows(1), (9, 1)), (0.0,), "all 9 embeddings are equal"),
        (np.zeros((9, 3)), (), "all 9 embeddings are equal"),
        (_rows(1), (), "at least two embeddings, got 1"),
        (_rows(), (-0.5,), "power must be 0 or more, got -0.5"),
        (_rows(), (float("nan"),), "power must be 0 or more, got nan"),
        (_rows(), (float("inf"),), "power must be 0 or more, got inf"),
        (_rows(), (1.0, 0), "dimensions must be between 1 and 6.*got 0"),
        (_rows(), (1.0, 7), "dimensions must be between 1 and 6.*got 7"),
        (_rows(), (1.0, 2.5), "dimensions must be between 1 and 6.*got 2.5"),
        (_rows(), (1.0, -0.5), "dimensions must be between 1 and 6.*got -0.5"),
    ],
)
def test_what_cannot_be_whitened_is_refused(rows, options, message):
    with pytest.raises(ValueError, match=message):
        whitening(_moments(rows), *options)


def test_two_rows_have_a_covariance():
    moments = _moments(np.array([[1.0, 5.0], [3.0, 2.0]]))
    assert moments.covariance.tolist() == [[2.0, -3.0], [-3.0, 4.5]]


def _crosses(mean, variances):
    """Two rows in each direction, on both sides of the mean: the covariance is diagonal."""
    steps = np.diag(np.sqrt(np.array(variances) * (2 * len(variances) - 1) / 2))
    return mean + np.vstack([steps, -steps])


def test_a_spread_below_the_last_digit_of_the_mean_is_rounding():
    """float32 has a relative precision of 1.2e-7, so it knows a mean of 1e4 to 1.2e-3."""
    mean = np.array([1e4, 0.0])
    weight, _ = whitening(_moments(_crosses(mean, [1.5e-3**2, 0.0])), 1.0, 1)
    np.testing.assert_allclose(abs(weight), [[1 / 1.5e-3, 0.0]], rtol=1e-4)
    with pytest.raises(ValueError, match="all 4 embeddings are equal"):
        whitening(_moments(_crosses(mean, [1e-3**2, 1e-3**2])))


def test_a_spread_below_the_last_digit_of_the_widest_is_rounding():
    """The last variance is below float32's precision next to the first, though not next to the second."""
    weight, _ = whitening(_moments(_crosses(np.zeros(3), [1.0, 1e-6, 1e-9])))
    np.testing.assert_allclose(abs(weight.numpy()), np.diag([1.0, 1e3, 0.0]), atol=1e-6)


def test_fewer_texts_are_enough_for_fewer_dimensions_and_for_the_mean():
    rows = _rows(6, 6)
    assert whitening(_moments(rows), 1.0, 5)[0].shape == (5, 6)
    assert whitening(_moments(rows), 0.0)[0].shape == (6, 6)


def test_embeddings_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="NaN or infinite"):
        Moments(2).add(torch.tensor([[0.0, float("nan")]]))


@pytest.fixture
def tiny():
    model = tiny_model(TEXTS, width=16)
    with torch.no_grad():
        for weight in model.parameters():  # so that the embeddings have a mean far from 0
            weight += 0.05
    return model


@pytest.mark.parametrize("normalizes", [False, True])
def test_a_whitened_model_is_a_plain_one(tiny, tmp_path, normalizes):
    before = tiny.encode(TEXTS).astype("float64")
    if normalizes:
        tiny.append(Normalize())
    layer = whiten(tiny, iter(TEXTS), dimensions=8, batch_size=3)
    assert [type(module) for module in tiny][2:] == [Dense, Normalize][: 1 + normalizes]
    assert tiny[2] is layer
    expected = PCA(8, whiten=True, svd_solver="full").fit_transform(before)
    if normalizes:
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    tiny.save_pretrained(str(tmp_path))
    saved = SentenceTransformer(str(tmp_path)).encode(TEXTS)
    np.testing.assert_allclose(saved @ saved.T, expected @ expected.T, atol=2e-3)
    np.testing.assert_allclose(tiny.encode(TEXTS), saved, atol=1e-6)
    assert tiny.get_embedding_dimension() == 8


def test_fewer_dimensions_are_the_first_of_all(tiny):
    other = copy.deepcopy(tiny)
    whiten(tiny, TEXTS, 0.5)
    whiten(other, TEXTS, 0.5, dimensions=5)
    tiny.truncate_dim = 5
    np.testing.assert_allclose(np.abs(tiny.encode(TEXTS)), np.abs(other.encode(TEXTS)), atol=1e-4)


@pytest.mark.parametrize(("share", "number"), [(0.5, 8), (0.3, 5), (0.01, 1), (0.999, 16)])
def test_a_share_of_the_dimensions(tiny, share, number):
    other = copy.deepcopy(tiny)
    whiten(tiny, TEXTS, dimensions=share)
    whiten(other, TEXTS, dimensions=number)
    assert torch.equal(tiny[-1].linear.weight, other[-1].linear.weight)


def test_all_dimensions_are_whitened_where_the_model_truncates(tiny):
    tiny.truncate_dim = 4
    assert whiten(tiny, TEXTS).in_features == 16
    assert tiny.truncate_dim == 4


def test_the_models_prompt_counts(tiny):
    tiny.prompts, tiny.default_prompt_name = {"query": "Two dogs run. "}, "query"
    with_prompt = tiny.encode([f"Two dogs run. {text}" for text in TEXTS], prompt="").astype("float64")
    layer = whiten(tiny, TEXTS)
    found = with_prompt @ layer.linear.weight.T.double().detach().numpy() + layer.linear.bias.detach().numpy()
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-3)


def test_a_model_that_is_refused_is_left_as_it_was(tiny):
    tiny.append(Normalize())
    kinds = [type(module) for module in tiny]
    for texts, message in (
        (TEXTS[:9], "9 texts are too few for 16 dimensions"),
        ([TEXTS[0]] * 40, "all 40 embeddings are equal"),
        ([], "there are no texts"),
        ("A dog runs.", "texts is a single text"),
    ):
        with pytest.raises(ValueError, match=message):
            whiten(tiny, texts)
        assert [type(module) for module in tiny] == kinds


def test_a_second_whitening_is_refused(tiny):
    whiten(tiny, TEXTS)
    tiny.append(Normalize())
    with pytest.raises(ValueError, match="ends in a linear layer with a bias, as a whitened model does"):
        whiten(tiny, TEXTS)
    assert len(tiny) == 4


@pytest.mark.parametrize("is_remembered", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(tiny, dtype, is_remembered):
    expected = PCA(8, whiten=True, svd_solver="full").fit_transform(tiny.encode(TEXTS).astype("float64"))
    tiny.to(dtype)
    model = embed_once(tiny) if is_remembered else tiny
    whiten(model, TEXTS, dimensions=8)
    model = embed_once(model) if is_remembered else model  # as adapt measures it
    found = torch.from_numpy(model.encode(TEXTS)).double()
    similarities = nn.functional.cosine_similarity(found[:, None], found[None], dim=2)
    unit = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.abs(similarities.numpy() - unit @ unit.T).max() < 0.3
    assert np.corrcoef(similarities.flatten(), (unit @ unit.T).flatten())[0, 1] > 0.97


def _train(tmp_path, tiny_bert, *options, expected=None):
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS) + "\n")
    words = ["train", "--model_name_or_path", str(tiny_bert), "--pooling", "mean", "--train_file"]
    words += [str(tmp_path / "texts.txt"), "--output_dir", str(tmp_path / "out"), "--report_to", "none"]
    words += ["--per_device_train_batch_size", "16", "--max_steps", "3", "--use_cpu", *options]
    if expected:
        with pytest.raises(SystemExit, match=expected):
            cli.main(words)
        return None
    cli.main(words)
    return SentenceTransformer(str(tmp_path / "out"), device="cpu")


def _expected(tiny_bert, **options):
    model = build_model(tiny_bert, pooling="mean", device="cpu")
    whiten(model, TEXTS, **options)
    return model


def _spread(model):
    """Of the embeddings of the texts: what a linear layer cannot hide."""
    embeddings = model.encode(TEXTS).astype("float64")
    return np.sort(np.linalg.eigvalsh(np.cov(embeddings.T)))[::-1]


def test_train_whitens_without_training(tmp_path, tiny_bert):
    options = ["--num_train_epochs", "0", "--max_steps", "-1"]
    saved = _train(tmp_path, tiny_bert, *options, "--whiten", "--whiten_power", "0.5", "--whiten_dimensions", "9")
    expected = _expected(tiny_bert, power=0.5, dimensions=9)
    np.testing.assert_allclose(saved.encode(TEXTS), expected.encode(TEXTS), atol=1e-5)


@pytest.mark.parametrize("is_frozen", [False, True])
def test_train_after_whitening(tmp_path, tiny_bert, is_frozen):
    saved = _train(tmp_path, tiny_bert, "--whiten", *["--whiten_frozen"] * is_frozen, "--learning_rate", "1e-3")
    start = _expected(tiny_bert)
    moved = {
        place: not torch.equal(*(model.get_submodule(place).weight.cpu() for model in (saved, start)))
        for place in ("0.model.embeddings.word_embeddings", "2.linear")
    }
    assert moved == {"0.model.embeddings.word_embeddings": True, "2.linear": not is_frozen}


def test_train_before_whitening(tmp_path, tiny_bert):
    saved = _train(tmp_path, tiny_bert, "--whiten", "after", "--learning_rate", "1e-3")
    np.testing.assert_allclose(_spread(saved)[:31], 1, atol=1e-2)
    untrained = build_model(tiny_bert, pooling="mean", device="cpu")
    assert not torch.equal(
        saved[0].model.embeddings.word_embeddings.weight.cpu(), untrained[0].model.embeddings.word_embeddings.weight
    )


@pytest.mark.parametrize("when", ["before", "after"])
def test_scores_before_are_those_of_the_model_as_it_was(tmp_path, tiny_bert, when):
    rows = [
        f"{first}\t{second}\t{(one * other) % 5}"
        for one, first in enumerate(TEXTS[:9])
        for other, second in enumerate(TEXTS[20:29])
    ]
    (tmp_path / "dev.tsv").write_text("\n".join(["sentence1\tsentence2\tscore", *rows]) + "\n")
    evaluator = load_sts(str(tmp_path / "dev.tsv"), name="dev")
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS) + "\n")
    words = ["--model_name_or_path", str(tiny_bert), "--pooling", "mean", "--report_to", "none", "--use_cpu"]
    words += ["--train_file", str(tmp_path / "texts.txt"), "--dev_file", str(tmp_path / "dev.tsv")]
    words += ["--output_dir", str(tmp_path / "out"), "--num_train_epochs", "0", "--whiten", when]
    scores = train.run(words)
    for name, model in (("before", build_model(tiny_bert, pooling="mean")), ("after", _expected(tiny_bert))):
        assert scores[name]["dev"] == pytest.approx(evaluator(model)["dev_spearman_cosine"], abs=2e-3)
    assert scores["before"] != scores["after"]


def test_every_column_is_whitened(tmp_path, tiny_bert):
    rows = list(zip(TEXTS[:20], TEXTS[20:40], TEXTS[40:60], strict=True))
    (tmp_path / "rows.csv").write_text("\n".join(["sent0,sent1,hard_neg", *map(",".join, rows)]) + "\n")
    saved = _train(tmp_path, tiny_bert, "--train_file", str(tmp_path / "rows.csv"), "--whiten", "after")
    embeddings = saved.encode(TEXTS[:60]).astype("float64")
    np.testing.assert_allclose(embeddings.mean(0), 0, atol=1e-2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--whiten_power", "0.5"], "--whiten_power needs --whiten: pass both, or neither"),
        (["--whiten_dimensions", "5"], "--whiten_dimensions needs --whiten"),
        (["--whiten_frozen"], "--whiten_frozen needs --whiten"),
        (["--whiten", "after", "--whiten_frozen"], "--whiten_frozen goes with --whiten before"),
        (["--whiten", "--streaming"], "cannot be used with --streaming: leave one out"),
        (
            ["--whiten", "--whiten_dimensions", "33"],
            "--whiten_dimensions 33 .*between 1 and 32|dimensions must be between 1 and 32",
        ),
        (["--whiten", "--whiten_power", "-1"], "power must be 0 or more"),
    ],
)
def test_options_that_do_not_go_together_are_refused(tmp_path, tiny_bert, options, message):
    _train(tmp_path, tiny_bert, *options, expected=message)


def test_prompts_by_column_are_refused_and_one_prompt_is_used(tmp_path, tiny_bert):
    rows = list(zip(TEXTS[:40], TEXTS[24:], strict=True))
    (tmp_path / "rows.csv").write_text("\n".join(["anchor,positive", *map(",".join, rows)]) + "\n")
    options = ["--train_file", str(tmp_path / "rows.csv"), "--whiten", "--whiten_frozen", "--prompts"]
    _train(
        tmp_path, tiny_bert, *options, '{"anchor": "Two ", "positive": ""}', expected="needs one prompt for all texts"
    )
    saved = _train(tmp_path, tiny_bert, *options, '{"anchor": "Two ", "positive": "Two "}')
    model = build_model(tiny_bert, pooling="mean", device="cpu")
    layer = whiten(model, [text for row in rows for text in row], prompt="Two ")
    torch.testing.assert_close(saved[2].linear.weight.cpu(), layer.linear.weight, atol=1e-3, rtol=1e-3)


@pytest.mark.slow
def test_adapters_behind_a_whitening(tmp_path, tiny_bert):
    lora = ["--lora_r", "2", "--whiten", "--learning_rate", "1e-2"]
    merged = _train(tmp_path, tiny_bert, *lora)
    alone = _train(tmp_path, tiny_bert, *lora, "--no_lora_merge")
    assert not adapters(merged)
    assert adapters(alone)
    np.testing.assert_allclose(merged.encode(TEXTS), alone.encode(TEXTS), atol=2e-3)
    assert not torch.equal(merged[2].linear.weight.cpu(), _expected(tiny_bert)[2].linear.weight)


@pytest.mark.slow
def test_a_whitened_run_resumes_exactly(tmp_path, tiny_bert):
    options = ["--whiten", "--momentum_queue", "16", "--projection_head", "--save_steps", "2", "--max_steps", "4"]
    whole = _train(tmp_path, tiny_bert, *options)
    shutil.rmtree(tmp_path / "out" / "checkpoint-4")
    again = _train(tmp_path, tiny_bert, *options, "--resume_from_checkpoint", "last")
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name


@pytest.mark.distributed
def test_two_processes_whiten_alike(tmp_path, tiny_bert):
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS) + "\n")
    words = ["-m", "st_simcse", "train", "--model_name_or_path", str(tiny_bert), "--pooling", "mean", "--train_file"]
    words += [str(tmp_path / "texts.txt"), "--output_dir", str(tmp_path / "out"), "--report_to", "none", "--use_cpu"]
    words += ["--max_steps", "1", "--per_device_train_batch_size", "4", "--whiten", "--whiten_frozen"]
    torchrun(2, words, tmp_path / "output.txt")
    saved = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    torch.testing.assert_close(saved[2].linear.weight, _expected(tiny_bert)[2].linear.weight, atol=1e-3, rtol=1e-3)


def _embeds_nothing(*args, **options):
    raise AssertionError("texts were embedded or trained on before the options were checked")


@pytest.mark.parametrize("options", [["--whiten_power", "-1"], ["--whiten_dimensions", "40"], []])
def test_a_whitening_after_training_is_checked_before_it(tmp_path, tiny_bert, monkeypatch, options):
    expected = {"--whiten_power": "power must be 0 or more", "--whiten_dimensions": "between 1 and 32"}
    message = expected.get(next(iter(options), ""), "9 texts are too few for 32 dimensions")
    (tmp_path / "few.txt").write_text("\n".join(TEXTS[: 64 if options else 9]) + "\n")
    monkeypatch.setattr(train.SimCSETrainer, "train", _embeds_nothing)
    words = ["--train_file", str(tmp_path / "few.txt"), "--whiten", "after", *options]
    _train(tmp_path, tiny_bert, *words, expected=message)


def test_the_options_are_checked_before_texts_are_embedded(tiny, monkeypatch):
    monkeypatch.setattr(tiny, "encode", _embeds_nothing)
    for options, message in (((-1.0,), "power must be 0 or more"), ((1.0, 17), "between 1 and 16")):
        with pytest.raises(ValueError, match=message):
            whiten(tiny, TEXTS, *options)


def test_the_command_says_how_wide_the_embeddings_are_and_replaces_an_adapter(tmp_path, tiny_bert, capsys):
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS) + "\n")
    narrow = build_model(tiny_bert, pooling="mean", device="cpu", truncate_dim=5)
    narrow.save_pretrained(str(tmp_path / "narrow"))
    adapted = build_model(tiny_bert, pooling="mean", lora=LoraConfig(r=2, init_lora_weights=False), device="cpu")
    adapted.save_pretrained(str(tmp_path / "out"))
    adapted.save_pretrained(str(tmp_path / "adapted"))
    words = ["--corpus", str(tmp_path / "texts.txt"), "--output_dir", str(tmp_path / "out")]
    cli.main(["whiten", "--model", str(tmp_path / "narrow"), *words])
    assert "with 5 dimensions" in capsys.readouterr().out
    saved = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    whiten(narrow, TEXTS)
    assert not adapters(saved)
    np.testing.assert_allclose(saved.encode(TEXTS), narrow.encode(TEXTS), atol=1e-3)
    cli.main(["whiten", "--model", str(tmp_path / "adapted"), *words])
    whiten(adapted, TEXTS)
    saved = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    np.testing.assert_allclose(saved.encode(TEXTS), adapted.encode(TEXTS), atol=1e-3)


def test_automodel_cannot_stand_in_for_a_whitened_model(tiny, tmp_path):
    whiten(tiny, TEXTS)
    with pytest.raises(ValueError, match="only a Dense module with Tanh"):
        save_transformer(tiny, str(tmp_path))


def test_baselines_start_from_the_whitened_model_too(tmp_path, tiny_bert):
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS) + "\n")
    words = ["--model_name_or_path", str(tiny_bert), "--pooling", "mean", "--train_file", str(tmp_path / "texts.txt")]
    words += ["--output_dir", str(tmp_path / "out"), "--report_to", "none", "--use_cpu", "--max_steps", "1", "--whiten"]
    train.run(words, BASELINES["mnrl"])
    assert [type(module) for module in SentenceTransformer(str(tmp_path / "out"))][-1] is Dense


def test_the_command_whitens_a_model(tmp_path, tiny_bert, capsys):
    (tmp_path / "texts.txt").write_text("\n".join([*TEXTS, *TEXTS[:9]]) + "\n")  # some twice, which count once
    words = ["whiten", "--model", str(tiny_bert), "--pooling", "mean", "--corpus", str(tmp_path / "texts.txt")]
    cli.main([*words, "--output_dir", str(tmp_path / "out"), "--power", "0.25", "--dimensions", "9"])
    assert "whitened on 64 texts" in capsys.readouterr().out
    saved = SentenceTransformer(str(tmp_path / "out"))
    np.testing.assert_allclose(
        saved.encode(TEXTS), _expected(tiny_bert, power=0.25, dimensions=9).encode(TEXTS), atol=1e-4
    )
    for options, message in (
        (["--dimensions", "65"], "dimensions must be between 1 and 32|--dimensions"),
        (["--power", "-1"], "power must be 0 or more"),
        (["--dimensions", "0"], "dimensions must be between 1 and 32"),
    ):
        with pytest.raises(SystemExit, match=message):
            cli.main([*words, "--output_dir", str(tmp_path / "no"), *options])
    assert not (tmp_path / "no").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="cannot write to .*file: it is a file, not a folder"):
        cli.main(["whiten", "--model", "/absent", *words[3:], "--output_dir", str(tmp_path / "file")])
