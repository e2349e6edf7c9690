import csv
import gc
import io
import json
import logging
import os
import re
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import get_args

import pytest
import torch
from huggingface_hub.utils import are_progress_bars_disabled
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
from tqdm import tqdm
from transformers import AutoTokenizer, T5Config, T5Model
from transformers.utils.logging import enable_progress_bar

from conftest import CHINESE
from st_simcse import (
    AngularMargin,
    Comparison,
    DimensionContrast,
    DropoutFreeNegatives,
    FocalMargin,
    GuidedNegatives,
    HardnessWeighting,
    MaskedLanguageModel,
    MomentumQueue,
    OwnNegativeWeight,
    RankConsistency,
    RankDistillation,
    SharedLayers,
    SimilarityThreshold,
    build_model,
    cli,
    load_sts,
)
from st_simcse.cli import encode, evaluate, export, plot, train
from st_simcse.cli.corpus import CorpusArguments
from st_simcse.cli.files import FileArguments
from st_simcse.cli.libraries import import_libraries
from st_simcse.cli.output import MessageHandler
from st_simcse.cli.parsing import Pooling, Precision
from st_simcse.evaluation import STS_TASKS
from st_simcse.losses import OPTIONS
from st_simcse.losses.options import option_name
from st_simcse.models import precision
from st_simcse.models.modeling import PoolingMode


def _scored_pairs(path, sentences):
    rows = [
        f"{a}\t{b}\t{score}" for score, (a, b) in enumerate(zip(sentences, sentences[3:] + sentences[:3], strict=True))
    ]
    path.write_text("\n".join(["sentence1\tsentence2\tscore", *rows]) + "\n")
    return str(path)


def _train(tmp_path, tiny_bert, train_file, *options):
    # --report_to none keeps installed experiment trackers out of the tests
    return train.run(
        [
            *("--model_name_or_path", tiny_bert, "--train_file", str(train_file)),
            *("--output_dir", str(tmp_path / "out"), "--report_to", "none", *options),
        ]
    )


@pytest.mark.parametrize("head", [False, True])
def test_train_unsupervised_with_dev_and_test(tmp_path, tiny_bert, sentences, capsys, head):
    text = tmp_path / "train.txt"
    text.write_text("\n".join(sentences))
    dev, test = _scored_pairs(tmp_path / "dev.tsv", sentences), _scored_pairs(tmp_path / "test.tsv", sentences)
    options = ["--dev_file", dev, "--test_file", test, "--per_device_train_batch_size", "4", "--learning_rate", "0.01"]
    options += ["--dropout", "0.2"]
    results = _train(tmp_path, tiny_bert, text, *options, "--pooling", "mean", *["--projection_head"] * head)
    assert results["before"]["test"] != results["after"]["test"]
    table = capsys.readouterr().out
    assert re.search(r"\| Spearman x 100 \| dev \| test \|\n.*\n\| before \| .*\n\| after \| ", table)
    saved = SentenceTransformer(str(tmp_path / "out"))
    assert saved.encode(sentences).shape == (8, 32)
    assert not any("projection" in name for name, _ in saved.named_parameters())
    checkpoint = next((tmp_path / "out").glob("checkpoint-*"))
    assert json.loads((checkpoint / "trainer_state.json").read_text())["best_model_checkpoint"]
    run = json.loads((checkpoint / "simcse_run.json").read_text())["run"]
    assert run["model"]["dropout"] == {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2}
    assert saved.transformers_model.config.hidden_dropout_prob == 0.1


def test_train_supervised_and_every_training_argument(tmp_path, tiny_bert):
    table = tmp_path / "nli.csv"
    table.write_text("sent0,sent1,hard_neg\n" + "A man plays.,A man plays a guitar.,Two dogs run.\n" * 8)
    options = ["--own_negative_weight", "2", "--dense", "--max_steps", "1", "--save_strategy", "no", "--bf16"]
    _train(tmp_path, tiny_bert, table, *options, "--batch_sampler", "no_duplicates", "--logging_steps", "1")
    assert [type(module).__name__ for module in SentenceTransformer(str(tmp_path / "out"))] == [
        "Transformer",
        "Pooling",
        "Dense",
    ]


def test_a_saved_model_keeps_its_modules_unless_told_otherwise(tmp_path, tiny_bert, sentences, caplog):
    build_model(tiny_bert, pooling="mean", dense=True).save_pretrained(str(tmp_path / "before"))
    (tmp_path / "a.txt").write_text("\n".join(sentences))
    for options, modules in (([], "Transformer, Pooling, Dense"), (["--pooling", "cls"], "Transformer, Pooling")):
        _train(tmp_path, str(tmp_path / "before"), tmp_path / "a.txt", "--max_steps", "1", *options)
        saved = SentenceTransformer(str(tmp_path / "out"))
        assert ", ".join(type(module).__name__ for module in saved) == modules
        assert saved[1].pooling_mode == ("cls" if options else "mean")
        assert ("replaces Pooling (mean), Dense" in caplog.text) == bool(options)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16", "float16"])
def test_weights_are_trained_and_saved_in_the_precision_that_is_asked_for(tmp_path, tiny_bert, sentences, dtype):
    """Of a checkpoint in bfloat16, too; float32 if nothing is asked for."""
    build_model(tiny_bert, "mean", dtype="bfloat16").save_pretrained(str(tmp_path / "before"))
    (tmp_path / "a.txt").write_text("\n".join(sentences))
    options = ["--dtype", dtype] if dtype else []
    _train(tmp_path, str(tmp_path / "before"), tmp_path / "a.txt", "--max_steps", "1", "--bf16", "false", *options)
    before, after = (load_file(tmp_path / folder / "model.safetensors") for folder in ("before", "out"))
    assert {tensor.dtype for tensor in after.values()} == {getattr(torch, dtype or "float32")}
    assert any(not torch.equal(before[name].float(), after[name].float()) for name in before)


def test_the_saved_model_reads_more_than_training_did(tmp_path, tiny_bert, sentences, capsys):
    (tmp_path / "a.txt").write_text("\n".join(sentences))
    for options, reads in ([], 64), (["--model_max_length", "40"], 40):
        _train(tmp_path, tiny_bert, tmp_path / "a.txt", "--max_seq_length", "16", "--max_steps", "1", *options)
        assert SentenceTransformer(str(tmp_path / "out")).max_seq_length == reads
        assert f"The model reads up to {reads} tokens of a text" in capsys.readouterr().out


@pytest.mark.slow
def test_train_on_nli_rows_and_on_a_column(tmp_path, tiny_bert):
    nli = tmp_path / "nli.tsv"
    nli.write_text("premise\thypothesis\tlabel\nA\tB\tentailment\nA\tC\tcontradiction\n")
    _train(tmp_path, tiny_bert, nli, "--train_format", "nli", "--save_strategy", "no")
    nli.write_text("premise\thypothesis\tlabel\nA\tB\t1\nA\tC\tno\n")
    asked = ["--train_format", "nli", "--save_strategy", "no", "--labels"]
    with pytest.raises(ValueError, match="line 3: unknown label 'no'.*pass --labels if it means"):
        _train(tmp_path, tiny_bert, nli, *asked, "neutral", "entailment")
    _train(tmp_path, tiny_bert, nli, *asked, "1=entailment", "no=contradiction")
    table = tmp_path / "t.csv"
    table.write_text("1,A man plays.\n2,Two dogs run.\n")
    _train(tmp_path, tiny_bert, table, "--train_format", "sentences", "--columns", "1", "--save_strategy", "no")


def test_train_on_some_rows(tmp_path, tiny_bert, sentences):
    """Drawn with the seed; all where there are no more."""
    (tmp_path / "a.txt").write_text("\n".join(sentences))

    def drawn(*options, seed=0):
        _, args, _, _ = train.parse_train(
            ["--model_name_or_path", "x", "--train_file", str(tmp_path / "a.txt"), *options]
        )
        return train._training_data(args.train_file, args, seed)["sentence"][:]

    some = drawn("--max_train_samples", "3")
    assert len(set(some)) == 3
    assert set(some) < set(sentences)
    assert some == drawn("--max_train_samples", "3")
    assert any(drawn("--max_train_samples", "3", seed=seed) != some for seed in range(1, 4))
    for most in ("0", "8", "9"):
        assert drawn("--max_train_samples", most) == sentences


@pytest.mark.parametrize("separator", ["||", "\t"])
def test_both_sentences_of_chinese_pairs_without_their_labels(tmp_path, separator):
    """With the columns' numbers, and without: CNSD's STS-B has an id before them, senteval_cn has none."""
    has_id = separator == "||"
    rows = [[f"2012test-{row:04}"] * has_id + [one, two, "1"] for row, (one, two) in enumerate(pairwise(CHINESE))]
    path = tmp_path / "a.txt"
    path.write_text("".join(separator.join(row) + "\n" for row in rows), encoding="utf-8")
    for columns in (["--columns", *(["1", "2"] if has_id else ["0", "1"])], []):
        argv = ["--model_name_or_path", "x", "--train_file", str(path), "--train_format", "sentences", *columns]
        _, args, _, _ = train.parse_train(argv)
        found = train._training_data(args.train_file, args, 0)
        assert found["sentence"][:] == [text for pair in pairwise(CHINESE) for text in pair]


def test_evaluate_several_models(generated, tiny_bert, capsys, monkeypatch):
    sts = str(generated / "sts/raw")
    options = ["--pooling", "cls", "--max_seq_length", "32"]
    results = evaluate.run(["--model", tiny_bert, "--sts_dir", sts, "--allow_partial", *options])
    monkeypatch.setattr(
        "sys.argv", ["st-simcse", "evaluate", "--model", tiny_bert, "--sts_dir", sts, "--allow_partial"]
    )
    cli.main()
    tables = capsys.readouterr().out
    assert tables.count("| model | STS12 |") == 2
    assert f"| {results[tiny_bert]['STS12']:.2f} | {results[tiny_bert]['STS13']:.2f} |" in tables


def test_evaluate_side_by_side_into_files(generated, tmp_path, tiny_bert, capsys):
    build_model(tiny_bert, pooling="mean", dense=True).save_pretrained(str(tmp_path / "other"))
    outputs = {kind: str(tmp_path / f"out.{kind}") for kind in ("json", "csv", "png")}
    files = ["--json_file", outputs["json"], "--csv_file", outputs["csv"], "--plot_file", outputs["png"]]
    models = [tiny_bert, str(tmp_path / "other")]
    rows = evaluate.run(["--model", *models, "--sts_dir", str(generated / "sts/raw"), "--allow_partial", *files])
    assert list(rows) == models
    assert rows[models[0]] != rows[models[1]]
    assert capsys.readouterr().out.count("\n| /") == 2
    assert json.loads(Path(outputs["json"]).read_text()) == rows
    with Path(outputs["csv"]).open(newline="") as file:
        table = {row.pop("model"): {name: float(value) for name, value in row.items()} for row in csv.DictReader(file)}
    assert table == rows
    assert Path(outputs["png"]).read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def small_sts(tmp_path, sentences):
    (tmp_path / "sts").mkdir()
    for stem in STS_TASKS.values():
        _scored_pairs(tmp_path / f"sts/{stem}.tsv", sentences)
    return str(tmp_path / "sts")


def test_evaluate_finds_a_wrong_model_before_the_work(small_sts, tiny_bert, monkeypatch):
    monkeypatch.setattr(EmbeddingSimilarityEvaluator, "__call__", lambda *call: pytest.fail("has begun to work"))
    with pytest.raises(OSError, match="/absent"):
        evaluate.run(["--model", tiny_bert, "/absent", "--sts_dir", small_sts, "--allow_partial"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--json_file", "absent/a.json"], "cannot write absent/a.json: there is no folder absent"),
        (["--csv_file", "sts"], "cannot write sts: it is a folder"),
        (["--plot_file", "sts.doc"], "sts.doc does not have the file extension of a picture. Use one of .*png"),
        (["--plot_file", "noending"], "noending does not have the file extension"),
        (["--json_file", "a", "--csv_file", "./a"], "--json_file, --csv_file name the same file"),
        (
            ["--json_file", "a", "--plot_file", "b.png", "--csv_file", "./a"],
            "^--json_file, --csv_file name the same file",
        ),
        (["--senteval_dir", "sts"], "--senteval_dir is not read, because .* do not ask for a transfer task"),
        (["--senteval_dir", "sts", "--tasks", "MR"], "--sts_dir is not read, because .* do not ask for an STS task"),
        (["--batch_size", "0"], "--batch_size must be at least 1, got 0"),
        (["--max_seq_length", "0"], "--max_seq_length must be at least 1, got 0"),
    ],
)
def test_evaluate_checks_its_options_before_the_work(small_sts, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((OSError, ValueError), match=message):
        evaluate.run(["--model", "/absent", "--sts_dir", small_sts, "--allow_partial", *options])


def test_evaluate_names_a_length_without_room_for_text(small_sts, tiny_bert):
    with pytest.raises(ValueError, match="--max_seq_length 2 leaves no room for text"):
        evaluate.run(["--model", tiny_bert, "--sts_dir", small_sts, "--allow_partial", "--max_seq_length", "2"])


def test_evaluate_asks_for_matplotlib_before_the_work(small_sts, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.backend_bases", None)
    with pytest.raises(ImportError, match="Pictures need matplotlib. Install it with: pip install"):
        evaluate.run(["--model", "/absent", "--sts_dir", small_sts, "--allow_partial", "--plot_file", "a.png"])


def test_evaluate_keeps_what_is_done(small_sts, tiny_bert, tmp_path, monkeypatch, capsys):
    build_model(tiny_bert, pooling="mean").save_pretrained(str(tmp_path / "other"))
    calls = iter(range(100))

    def interrupted(self, *args, **kwargs):
        if next(calls) == 9:  # in the second model's third task
            raise KeyboardInterrupt
        return {f"{self.name}_spearman_cosine": 0.25}

    monkeypatch.setattr(EmbeddingSimilarityEvaluator, "__call__", interrupted)
    models = ["--model", tiny_bert, str(tmp_path / "other")]
    with pytest.raises(KeyboardInterrupt):
        evaluate.run([*models, "--sts_dir", small_sts, "--allow_partial", "--json_file", str(tmp_path / "a.json")])
    assert capsys.readouterr().out.splitlines()[2:] == [f"| {tiny_bert} |{' 25.00 |' * 8}"]
    assert list(json.loads((tmp_path / "a.json").read_text())) == [tiny_bert]


def test_evaluate_says_which_model_has_no_correlation(small_sts, tiny_bert, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, value in (("nans", float("nan")), ("collapsed", 0.0)):
        broken = build_model(tiny_bert, dense=True)
        broken[-1].linear.weight.data.fill_(value)
        broken[-1].linear.bias.data.fill_(1.0)
        broken.save_pretrained(name)
    files = ["--json_file", "a.json", "--csv_file", "a.csv", "--plot_file", "a.png"]
    with pytest.raises(SystemExit, match="no score for nans on STS12, .*; collapsed on STS12, .*, Avg.: "):
        cli.main(
            ["evaluate", "--model", "nans", tiny_bert, "collapsed", "--sts_dir", small_sts, "--allow_partial", *files]
        )
    rows = json.loads(Path("a.json").read_text())
    assert set(rows["nans"].values()) == set(rows["collapsed"].values()) == {None}
    assert rows[tiny_bert]["Avg."] == pytest.approx(sum(list(rows[tiny_bert].values())[:7]) / 7)
    assert f"| nans |{' nan |' * 8}" in capsys.readouterr().out
    assert Path("a.csv").read_text().splitlines()[1] == "nans" + ",nan" * 8
    assert Path("a.png").exists()


def test_evaluate_shows_a_bar_over_the_sentences_of_all_tasks(small_sts, tiny_bert, monkeypatch):
    bars = []

    class Bar(tqdm):
        def __init__(self, **options):
            bars.append(self)
            super().__init__(**options | {"disable": False, "file": io.StringIO()})

        def set_description(self, text=None, refresh=True):
            self.seen = [*getattr(self, "seen", []), (self.n, text.removeprefix(tiny_bert))]

    monkeypatch.setattr(evaluate, "tqdm", Bar)
    evaluate.run(["--model", tiny_bert, "--sts_dir", small_sts, "--allow_partial", "--batch_size", "3"])
    (bar,) = bars
    assert bar.seen == [(0, ""), *((8, f", {task}") for task in STS_TASKS)]  # the tasks have the same texts
    assert bar.n == bar.total == 8
    # More than memory should hold are embedded a task and a side at a time.
    monkeypatch.setattr(evaluate, "TOGETHER", 7)
    evaluate.run(["--model", tiny_bert, "--sts_dir", small_sts, "--allow_partial", "--batch_size", "3"])
    assert bars[1].seen == [(0, ""), *((16 * number, f", {task}") for number, task in enumerate(STS_TASKS))]
    assert bars[1].n == bars[1].total == 7 * 16


def test_names_break_neither_the_table_nor_the_csv(small_sts, tiny_bert, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("a|b", "=1+1", "@x"):
        Path(name).symlink_to(tiny_bert)
    evaluate.run(["--model", "a|b", "=1+1", "@x", "--sts_dir", small_sts, "--allow_partial", "--csv_file", "a.csv"])
    header, _, *rows = capsys.readouterr().out.splitlines()
    assert rows[0].startswith(r"| a\|b | ")
    assert {len(re.split(r"(?<!\\)\|", row)) for row in (header, *rows)} == {1 + 9 + 1}
    with Path("a.csv").open(newline="") as file:
        assert [row["model"] for row in csv.DictReader(file)] == ["a|b", "'=1+1", "'@x"]


@pytest.mark.parametrize("options", [[], ["--sts_dir", "sts", "--mteb"]])
def test_evaluate_wants_one_kind_of_data(options):
    with pytest.raises(ValueError, match="either --sts_dir .* or --mteb"):
        evaluate.run(["--model", "x", *options])


@pytest.mark.slow
def test_seeds_report_mean_and_spread(tmp_path, tiny_bert, sentences, capsys):
    (tmp_path / "a.txt").write_text("\n".join(sentences))
    test = _scored_pairs(tmp_path / "test.tsv", sentences)
    options = ["--test_file", test, "--learning_rate", "0.01", "--save_strategy", "no", "--pooling", "mean"]
    results = _train(tmp_path, tiny_bert, tmp_path / "a.txt", *options, "--seeds", "3", "4", "5")
    scores = [results[f"seed {seed}"]["test"] for seed in (3, 4, 5)]
    mean = sum(scores) / 3
    assert results["mean"]["test"] == pytest.approx(mean)
    assert results["spread"]["test"] == pytest.approx((sum((score - mean) ** 2 for score in scores) / 2) ** 0.5)
    table = capsys.readouterr().out
    assert f"| mean | {100 * mean:.2f} |" in table
    assert "| seed 4 | " in table
    for seed in (3, 4, 5):
        model = SentenceTransformer(str(tmp_path / "out" / f"seed-{seed}"))
        value = load_sts(test)(model)["test_spearman_cosine"]
        assert value == pytest.approx(results[f"seed {seed}"]["test"], abs=1e-4)
    alone = _train(tmp_path, tiny_bert, tmp_path / "a.txt", *options, "--seed", "4")
    assert alone == {"before": results["before"], "after": results["seed 4"]}


def test_alignment_and_uniformity_are_logged_and_drawn(tmp_path, tiny_bert, sentences):
    (tmp_path / "a.txt").write_text("\n".join(sentences))
    dev = _scored_pairs(tmp_path / "dev.tsv", sentences)
    options = [
        "--per_device_train_batch_size",
        "4",
        "--eval_strategy",
        "steps",
        "--eval_steps",
        "1",
        "--save_steps",
        "2",
    ]
    _train(tmp_path, tiny_bert, tmp_path / "a.txt", "--dev_file", dev, "--alignment_uniformity", *options)
    state = json.loads(next((tmp_path / "out").glob("checkpoint-*/trainer_state.json")).read_text())
    points = [entry for entry in state["log_history"] if "eval_dev_uniformity" in entry]
    assert [point["step"] for point in points] == [0, 1, 2]
    assert all(point["eval_dev_alignment"] >= 0 >= point["eval_dev_uniformity"] for point in points)
    assert (tmp_path / "out" / "alignment_uniformity.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="--alignment_uniformity needs dev pairs: pass --dev_file"):
        _train(tmp_path, tiny_bert, tmp_path / "a.txt", "--alignment_uniformity")


def _loss_of(options, tmp_path, tiny_bert, sentences, monkeypatch, supervised=False):
    made = []
    monkeypatch.setattr(train, "SimCSETrainer", lambda **options: made.append(options["loss"]) or sys.exit("enough"))
    (tmp_path / "a.txt").write_text("\n".join(sentences))
    (tmp_path / "b.csv").write_text("anchor,positive\n" + "".join(f"{text},{text} Yes.\n" for text in sentences))
    with pytest.raises(SystemExit, match="enough"):
        _train(tmp_path, tiny_bert, tmp_path / ("b.csv" if supervised else "a.txt"), *options)
    return made[0]


def test_options_of_the_losses(tmp_path, tiny_bert, sentences, monkeypatch):
    words = "--no_mask_duplicates --masked_language_model 0.1 --similarity_threshold 0.9 --symmetric --momentum_queue 5"
    words += " --momentum_queue_momentum 0.9 --hardness_weighting 5 --hardness_weighting_mode all_negatives"
    words += f" --rank_distillation 1 --rank_distillation_method listnet --rank_consistency 2 --teacher {tiny_bert}"
    words += " --dimension_contrast 0.1"
    words += " --dropout_free_negatives --focal_margin 0.2 --angular_margin 0.1 --shared_layers 0.5"
    loss = _loss_of(words.split(), tmp_path, tiny_bert, sentences, monkeypatch)
    expected = [
        FocalMargin(0.2),
        AngularMargin(0.1),
        HardnessWeighting(5.0, "all_negatives"),
        SimilarityThreshold(0.9),
        MomentumQueue(5, 0.9),
        DropoutFreeNegatives(),
        MaskedLanguageModel(0.1),
        RankDistillation(1.0, "listnet"),
        RankConsistency(2.0),
        DimensionContrast(0.1),
        SharedLayers(0.5),
    ]
    assert loss.options == expected
    assert loss.comparison == Comparison(symmetric=True)
    assert not loss.mask_duplicates
    words = "--own_negative_weight 2 --directions query_to_doc doc_to_query --partition_mode per_direction"
    words += " --mini_batch_size 4 --gather_across_devices --temperature 0.1 --projection_head"
    words += f" --guided_negatives 0.1 --teacher {tiny_bert}"
    loss = _loss_of(words.split(), tmp_path, tiny_bert, sentences, monkeypatch, supervised=True)
    assert loss.options == [OwnNegativeWeight(2.0), GuidedNegatives(0.1)]
    assert loss.comparison == Comparison(("query_to_doc", "doc_to_query"), "per_direction")
    assert (loss.mini_batch_size, loss.gather_across_devices, loss.temperature) == (4, True, 0.1)
    assert loss.projection_head is not None
    assert {type(option) for option in (*expected, *loss.options)} == set(OPTIONS)


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([0], [], "the same sentence, 'A man plays a guitar.', so no row has a negative"),
        ([0] * 4, [], "All rows .* the same sentence"),
        ([0, 1, 2], ["--per_device_train_batch_size", "1"], r"--per_device_train_batch_size\) 1 leaves no negatives"),
        ([0, 1, 2], ["--max_seq_length", "0"], "--max_seq_length 0 leaves no room for text.* pass at least 3"),
        ([0, 1, 2], ["--max_seq_length", "2"], "--max_seq_length 2 leaves no room for text"),
        ([0, 1, 2], ["--model_max_length", "2"], "--model_max_length 2 leaves no room for text"),
        ([0, 1, 2], ["--model_max_length", "0"], "--model_max_length 0 leaves no room for text"),
        ([0, 1, 2], ["--seeds", "1", "2", "1"], "--seeds 1 2 1 names a seed twice"),
        (
            [0, 1, 2],
            ["--dataloader_drop_last", "true"],
            r"drops all 3 rows of train_dataset, because a step needs 64. Leave it out, or lower",
        ),
        (
            [0, 1, 2],
            ["--gradient_accumulation_steps", "0"],
            r"--gradient_accumulation_steps\) must be at least 1, got 0",
        ),
        (
            [0, 1, 2],
            ["--per_device_train_batch_size", "0"],
            r"--per_device_train_batch_size\) must be at least 1, got 0",
        ),
        ([0, 1, 2], ["--neftune_noise_alpha", "5"], "does not work, .* Leave it out"),
        ([0, 1, 2], ["--label_smoothing_factor", "0.1"], "has no effect, .* Leave it out"),
        ([0, 1, 2], ["--train_sampling_strategy", "sequential"], "has no effect, .* or pass group_by_length=True"),
        ([0, 1, 2], ["--prompts", "{bad"], r"--prompts\) \{bad is not valid JSON"),
        ([0, 1, 2], ["--prompts", '{"sentence": 3}'], r"prompts \(--prompts\) must be texts, .* got 3"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(tmp_path, tiny_bert, sentences, rows, options, message):
    (tmp_path / "a.txt").write_text("\n".join(sentences[row] for row in rows))
    with pytest.raises(ValueError, match=message):
        _train(tmp_path, tiny_bert, tmp_path / "a.txt", *options)
    assert not (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.slow
def test_train_with_teachers(tmp_path, tiny_bert, sentences, generated):
    """Two of them, with scores before and after; a run that was stopped goes on, with the same teachers only."""
    (tmp_path / "a.txt").write_text("\n".join(sentences))
    options = [*("--rank_distillation", "1", "--guided_negatives", "0.1"), *("--save_steps", "1", "--max_steps", "2")]
    batch = ["--per_device_train_batch_size", "4"]
    _train(tmp_path, tiny_bert, tmp_path / "a.txt", "--teacher", tiny_bert, tiny_bert, *options, *batch)
    state = json.loads((tmp_path / "out/checkpoint-2/trainer_state.json").read_text())
    assert state["global_step"] == 2
    again = ["--resume_from_checkpoint", str(tmp_path / "out/checkpoint-1")]
    _train(tmp_path, tiny_bert, tmp_path / "a.txt", "--teacher", tiny_bert, tiny_bert, *options, *batch, *again)
    with pytest.raises(ValueError, match="data"):
        _train(tmp_path, tiny_bert, tmp_path / "a.txt", "--teacher", tiny_bert, *options, *batch, *again)


def test_pairs_that_share_an_anchor_have_no_negatives_but_triplets_have(tmp_path, tiny_bert):
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("anchor,positive\nA dog.,A hound.\nA dog.,A pet.\n")
    with pytest.raises(ValueError, match="the same anchor"):
        _train(tmp_path, tiny_bert, pairs)
    triplets = tmp_path / "triplets.csv"
    triplets.write_text("anchor,positive,negative\nA dog.,A hound.,A cat.\n")
    _train(tmp_path, tiny_bert, triplets, "--per_device_train_batch_size", "1", "--logging_steps", "1")
    state = json.loads(next((tmp_path / "out").glob("checkpoint-*/trainer_state.json")).read_text())
    assert state["log_history"][0]["loss"] > 0


def test_a_queue_has_negatives_for_batches_of_one(tmp_path, tiny_bert, sentences):
    (tmp_path / "a.txt").write_text("\n".join(sentences[:2]))
    _train(tmp_path, tiny_bert, tmp_path / "a.txt", "--per_device_train_batch_size", "1", "--momentum_queue", "2")


@pytest.mark.parametrize(
    ("options", "schedule"),
    [
        ([], ("steps", 2, "steps", 2)),  # eight rows in batches of four
        (["--eval_steps", "1"], ("steps", 1, "steps", 1)),
        (["--eval_strategy", "steps", "--eval_steps", "1"], ("steps", 1, "steps", 1)),
        (["--eval_strategy", "steps", "--eval_steps", "0.5"], ("steps", 0.5, "steps", 0.5)),
        (["--eval_strategy", "steps"], ("steps", 2, "steps", 2)),
        (["--eval_strategy", "steps", "--eval_steps", "9", "--save_steps", "18"], ("steps", 2, "steps", 2)),
        (["--eval_strategy", "epoch"], ("epoch", None, "epoch", None)),
        (["--save_strategy", "epoch"], ("epoch", None, "epoch", None)),
        (["--eval_steps", "1", "--save_steps", "2"], ("steps", 1, "steps", 2)),
        (["--eval_steps", "1", "--save_steps", "500"], ("steps", 1, "steps", 500)),  # also if it is the default
        (["--eval_steps", "1", "--save_strategy", "best"], ("steps", 1, "best", None)),
    ],
)
def test_dev_pairs_keep_the_best_checkpoint_whatever_the_schedule(
    tmp_path, tiny_bert, sentences, monkeypatch, options, schedule
):
    made = []
    monkeypatch.setattr(train, "SimCSETrainer", lambda **options: made.append(options["args"]) or sys.exit("enough"))
    (tmp_path / "a.txt").write_text("\n".join(sentences))
    options += ["--dev_file", _scored_pairs(tmp_path / "dev.tsv", sentences), "--per_device_train_batch_size", "4"]
    with pytest.raises(SystemExit, match="enough"):
        _train(tmp_path, tiny_bert, tmp_path / "a.txt", *options)
    (args,) = made
    assert (args.load_best_model_at_end, args.metric_for_best_model) == (True, "eval_dev_spearman_cosine")
    assert args.greater_is_better
    evaluate_when, evaluate_steps, save_when, save_steps = schedule
    assert (args.eval_strategy, args.save_strategy) == (evaluate_when, save_when)
    assert evaluate_steps in (None, args.eval_steps)
    assert save_steps in (None, args.save_steps)


@pytest.mark.parametrize(
    ("name", "metric", "is_higher"),
    [
        ("dev_pearson_cosine", "eval_dev_pearson_cosine", True),
        ("eval_dev_alignment", "eval_dev_alignment", False),
        (
            "dev_accuracy",
            "choose from eval_dev_spearman_cosine, eval_dev_pearson_cosine, eval_dev_alignment, .*ity$",
            0,
        ),
    ],
)
def test_the_best_checkpoint_is_chosen_by_a_metric_that_is_measured(
    tmp_path, tiny_bert, sentences, monkeypatch, name, metric, is_higher
):
    made = []
    monkeypatch.setattr(train, "SimCSETrainer", lambda **options: made.append(options["args"]) or sys.exit("enough"))
    (tmp_path / "a.txt").write_text("\n".join(sentences))
    dev = _scored_pairs(tmp_path / ".dev.tsv", sentences)  # the dot does not belong to the name
    options = ["--dev_file", dev, "--metric_for_best_model", name, "--alignment_uniformity"]
    error = "enough" if metric.startswith("eval") else f"--metric_for_best_model dev_accuracy.*{metric}"
    with pytest.raises((SystemExit, ValueError), match=error):
        _train(tmp_path, tiny_bert, tmp_path / "a.txt", *options)
    assert [(args.metric_for_best_model, args.greater_is_better) for args in made] == [(metric, is_higher)] * len(made)
    assert bool(made) == metric.startswith("eval")


def test_a_package_that_report_to_needs_is_named(tmp_path, tiny_bert, sentences):
    (tmp_path / "a.txt").write_text("\n".join(sentences))
    with pytest.raises(ImportError, match="--report_to .*comet_ml.* installed.* or pass --report_to none"):
        _train(tmp_path, tiny_bert, tmp_path / "a.txt", "--report_to", "comet_ml")


def test_texts_that_the_tokenizer_does_not_know_are_refused(tmp_path, tiny_bert):
    """All of them are the same unknown tokens, so no row would have a negative."""
    (tmp_path / "a.txt").write_text("\n".join(chr(0x4E00 + row) * (row % 5 + 1) for row in range(600)))
    with pytest.raises(ValueError, match="does not know any word .* of 200 texts of the training data, such as '一'"):
        _train(tmp_path, tiny_bert, tmp_path / "a.txt")


def test_the_model_of_the_best_evaluation_is_saved(tmp_path, tiny_bert, sentences, monkeypatch):
    """With an --eval_strategy of the user's own, and scores that say the first epoch was the best."""
    scores = iter([0.0, 0.9, 0.5, 0.1, 0.0])
    monkeypatch.setattr(
        EmbeddingSimilarityEvaluator, "__call__", lambda self, *call, **kwargs: {"dev_spearman_cosine": next(scores)}
    )
    (tmp_path / "a.txt").write_text("\n".join(sentences))
    options = ["--dev_file", _scored_pairs(tmp_path / "dev.tsv", sentences), "--eval_strategy", "epoch"]
    options += ["--num_train_epochs", "3", "--save_total_limit", "0", "--learning_rate", "0.01", "--bf16", "false"]
    _train(tmp_path, tiny_bert, tmp_path / "a.txt", *options)
    saved, *epochs = (
        load_file(tmp_path / "out" / folder / "model.safetensors") for folder in (".", "checkpoint-1", "checkpoint-3")
    )
    assert [all(torch.equal(saved[name], epoch[name]) for name in saved) for epoch in epochs] == [True, False]


def test_dev_pairs_and_a_schedule_that_keeps_no_best_checkpoint(tmp_path, tiny_bert, sentences, caplog):
    (tmp_path / "a.txt").write_text("\n".join(sentences))
    dev = ["--dev_file", _scored_pairs(tmp_path / "dev.tsv", sentences), "--per_device_train_batch_size", "2"]
    for options in (
        ["--eval_strategy", "epoch", "--save_steps", "3"],
        ["--eval_steps", "1000", "--save_steps", "3"],
        ["--eval_strategy", "steps", "--eval_steps", "2", "--save_steps", "3"],
        ["--eval_strategy", "steps", "--eval_steps", "2", "--save_steps", "0.5"],
        ["--eval_strategy", "steps", "--eval_steps", "2", "--save_strategy", "epoch"],
    ):
        with pytest.raises(ValueError, match="does not fit --eval_strategy .*or save at multiples of --eval_steps"):
            _train(tmp_path, tiny_bert, tmp_path / "a.txt", *dev, *options)
    _train(tmp_path, tiny_bert, tmp_path / "a.txt", *dev, "--save_strategy", "no")
    assert "the model of the last step is saved, not the best" in caplog.text
    assert not list((tmp_path / "out").glob("checkpoint-*"))


def test_train_asks_for_matplotlib_before_the_work(tmp_path, tiny_bert, sentences, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.backend_bases", None)
    (tmp_path / "a.txt").write_text("\n".join(sentences))
    options = ["--dev_file", _scored_pairs(tmp_path / "dev.tsv", sentences), "--alignment_uniformity"]
    with pytest.raises(ImportError, match="Pictures need matplotlib"):
        _train(tmp_path, tiny_bert, tmp_path / "a.txt", *options)


def test_train_says_that_a_model_has_no_correlation(tmp_path, tiny_bert, sentences, monkeypatch, capsys):
    monkeypatch.setattr(EmbeddingSimilarityEvaluator, "__call__", lambda *c: {"test_spearman_cosine": float("nan")})
    (tmp_path / "a.txt").write_text("\n".join(sentences))
    test = _scored_pairs(tmp_path / "test.tsv", sentences)
    with pytest.raises(ValueError, match="no score for before on test; after on test: "):
        _train(tmp_path, tiny_bert, tmp_path / "a.txt", "--test_file", test, "--save_strategy", "no")
    assert "| after | nan |" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_export(tmp_path, tiny_bert, sentences, capsys, kind):
    if kind == "t5":
        config = T5Config(d_model=32, num_layers=2, num_heads=2, d_kv=16, d_ff=64, vocab_size=60)
        tokenizer = AutoTokenizer.from_pretrained(tiny_bert, model_input_names=["input_ids", "attention_mask"])
        for part in (T5Model(config), tokenizer):
            part.save_pretrained(tmp_path / "t5")
        model = build_model(tmp_path / "t5", pooling="mean")
    else:
        model = build_model(tiny_bert, dense=True)
    model.save_pretrained(str(tmp_path / "model"))
    expression = export.run(["--model", str(tmp_path / "model"), "--output_dir", str(tmp_path / "plain")])
    printed = capsys.readouterr().out
    assert printed.endswith(f"embeddings = {expression}\n")
    namespace = {"texts": sentences}
    exec(printed.split("\n\n", 1)[1], namespace)
    assert type(namespace["model"]) is type(model[0].model)
    assert namespace["embeddings"].tolist() == [
        pytest.approx(row, abs=1e-5) for row in model.encode(sentences).tolist()
    ]


def test_export_says_what_it_cannot_save(tmp_path, tiny_bert, static_model):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="cannot write to .*file: it is a file, not a folder"):
        export.run(["--model", str(tiny_bert), "--output_dir", str(tmp_path / "file")])
    static_model.save_pretrained(str(tmp_path / "static"))
    with pytest.raises(ValueError, match=r"this model has \['StaticEmbedding', 'Dropout'\]"):
        export.run(["--model", str(tmp_path / "static"), "--output_dir", str(tmp_path / "plain")])


def test_export_says_which_prompts_its_users_put_before_texts(tmp_path, tiny_bert, sentences, capsys):
    prompts = {"query": "the woman: ", "document": "", "passage": 'a "dog":\n'}
    model = build_model(tiny_bert, "mean", prompts=prompts)
    model.save_pretrained(str(tmp_path / "model"))
    export.run(["--model", str(tmp_path / "model"), "--output_dir", str(tmp_path / "plain")])
    code = capsys.readouterr().out.split("\n\n", 1)[1]
    exec(code, namespace := {"texts": ["a cat"]})
    assert namespace["prompts"] == {"query": prompts["query"], "passage": prompts["passage"]}
    exec(code, namespace := {"texts": [namespace["prompts"]["query"] + sentence for sentence in sentences]})
    expected = model.encode_query(sentences)
    assert namespace["embeddings"].detach().numpy() == pytest.approx(expected, abs=1e-5)
    model.set_pooling_include_prompt(False)
    model.save_pretrained(str(tmp_path / "model"))
    with pytest.raises(ValueError, match="the pooling excludes the tokens of prompts .* call model.prompts.clear"):
        export.run(["--model", str(tmp_path / "model"), "--output_dir", str(tmp_path / "plain")])


@pytest.mark.parametrize("name", ['a "plain" model', "Ann's"])
def test_the_code_that_export_prints_finds_any_folder(tmp_path, tiny_bert, capsys, name):
    export.run(["--model", tiny_bert, "--output_dir", str(tmp_path / name)])
    exec(capsys.readouterr().out.split("\n\n", 1)[1], namespace := {"texts": ["a cat"]})
    assert len(namespace["embeddings"]) == 1


def test_no_bar_for_the_loading_of_a_model(tmp_path, tiny_bert, capsys):
    enable_progress_bar()
    SentenceTransformer(tiny_bert)
    assert "Loading weights" in capsys.readouterr().err
    cli.main(["export", "--model", tiny_bert, "--output_dir", str(tmp_path)])
    assert "Loading weights" not in capsys.readouterr().err
    assert not are_progress_bars_disabled()  # of downloads
    enable_progress_bar()


SOME_ROWS = ["--max_steps", "1", "--max_train_samples", "5"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["oops"], "unknown command 'oops': choose one of train, "),
        (["train", "--train_fil", "x"], "st-simcse train: .*required: --model_name_or_path"),
        (["evaluate", "--model", "x", "--sts_di", "y"], "unknown option --sts_di, did you mean --sts_dir?"),
        (
            ["demo", "--seed", "x"],
            "argument --seed: invalid int value: 'x'\nRun st-simcse demo --help for a list of the options",
        ),
        (["evaluate", "--model", "x", "--sts_dir", "/absent"], "--sts_dir: there is no folder /absent: check"),
        (
            ["train", "--model_name_or_path", "x", "--train_file", "/absent.txt"],
            "there is no file /absent.txt: check its name",
        ),
        (
            ["train", "--model_name_or_path", "x", "--train_file", ".", "--max_train_samples", "-1"],
            r"--max_train_samples must be 0 \(all rows\) or more, got -1",
        ),
        (
            ["train", "--model_name_or_path", "x", "--train_file", ".", "--streaming", *SOME_ROWS],
            "--max_train_samples draws from all rows and cannot be used with --streaming: leave one of them out",
        ),
    ],
)
def test_errors_are_a_line(argv, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=message):
        cli.main(argv)


def test_options_that_do_not_go_together_are_refused(tmp_path, tiny_bert, sentences):
    (tmp_path / "a.txt").write_text("\n".join(sentences))
    (tmp_path / "b.csv").write_text("anchor,positive\n" + "A man plays.,A man plays a guitar.\n" * 8)
    for file, words, message in [
        ("a.txt", "--own_negative_weight 2", "--own_negative_weight cannot be used with sentences"),
        ("b.csv", "--dropout_free_negatives", "--dropout_free_negatives cannot be used with triplets"),
        ("a.txt", "--momentum_queue_momentum 0.9", "--momentum_queue_momentum needs --momentum_queue: pass both"),
        ("a.txt", "--momentum_queue 0", "MomentumQueue needs an integer size of at least 1"),
        ("a.txt", "--masked_language_model 0.1 --mini_batch_size 4", "MaskedLanguageModel cannot be combined with"),
        ("a.txt", "--directions query_to_fox", "unknown direction"),
        ("a.txt", "--seeds 0 1 --resume_from_checkpoint out/checkpoint-2", "cannot be used with --seeds"),
        ("a.txt", "--dropout 1", "dropout must be at least 0 and below 1, got 1.0"),
        ("a.txt", "--rank_distillation 1", "--rank_distillation needs a teacher: pass --teacher with the name"),
        ("a.txt", "--teacher x", "--teacher is used by --guided_negatives and --rank_distillation only: pass one"),
        ("a.txt", "--teacher x --guided_negatives 0.1 --streaming --max_steps 1", "cannot be used with --streaming"),
    ]:
        with pytest.raises(ValueError, match=message):
            _train(tmp_path, tiny_bert, tmp_path / file, *words.split())


@pytest.mark.parametrize("option", ["--preset", "--pres"])
def test_a_preset_is_never_ignored(option):
    with pytest.raises(
        SystemExit, match="'sup-bert-tiny' is not a preset|unknown option --pres=.*did you mean --preset"
    ):
        cli.main(["train", f"{option}=sup-bert-tiny", "--train_file", ".", "--model_name_or_path", "y"])


# Calls of the command line in turn: for each what it prints, how it ends, and the libraries that are imported by then.
_CALLS = """
import contextlib, io, json, sys
from st_simcse.cli import main
found = []
for words in json.loads(sys.argv[1]):
    end = 0
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            main(words)
        except SystemExit as stop:
            end = stop.code
    libraries = {"torch", "transformers", "datasets", "sentence_transformers"} & sys.modules.keys()
    found.append([out.getvalue(), end or 0, sorted(libraries)])
print(json.dumps(found))
"""


def _calls(folder, *calls):
    code = [sys.executable, "-c", _CALLS, json.dumps(calls)]
    done = subprocess.run(code, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_help_needs_no_library(tmp_path):
    """Of the whole and of every command but train, whose options are those of sentence-transformers' trainer."""
    calls: list[list[str]] = [[], ["--help"], ["--version"]]
    calls += [[command, "--help"] for command in cli.COMMANDS if command != "train"]
    for words, (out, end, libraries) in zip(calls, _calls(tmp_path, *calls), strict=True):
        assert (end, libraries) == (0, []), words
        whole = "st_simcse 0" if words == ["--version"] else "st-simcse COMMAND [options]"
        assert (f"example:\n  st-simcse {words[0]}" if len(words) == 2 else whole) in out


# What each command needs besides; x is no file, no folder and no model.
_NEEDED = {
    "train": ["--model_name_or_path", "x"],
    "adapt": ["--output_dir", "y"],
    "compare": ["--recipe", "a:"],
    "whiten": ["--model", "x", "--output_dir", "y"],
    "presets": [],
    "evaluate": ["--model", "x"],
    "plot": ["--model", "x"],
    "data": [],
    "export": ["--model", "x", "--output_dir", "y"],
    "encode": ["--model", "x", "--output_file", "y.npy"],
    "index": ["--model", "x", "--output_dir", "y"],
    "search": ["--model", "x", "--index", "."],
    "serve": ["--model", "x"],
    "demo": [],
}


def test_wrong_words_are_refused_before_a_library_is_imported(tmp_path):
    """But for an option that nobody knows of train and compare, which the trainer's might be."""
    missing_model = "required: --model"
    expected = [
        *((["train"], missing_model), (["adapt"], "required: --output_dir"), (["whiten"], missing_model)),
        *((["evaluate"], missing_model), (["plot"], missing_model), (["export"], missing_model)),
        *((["encode"], missing_model), (["index"], missing_model), (["search"], missing_model)),
        *((["serve"], missing_model), (["compare"], "nothing to compare: pass --recipe")),
    ]
    expected += [
        ([command, *needed, "--no_such_option", "1"], f"st-simcse {command}: unknown option --no_such_option")
        for command, needed in _NEEDED.items()
        if command not in ("train", "compare")
    ]
    no_file, no_folder = "there is no file absent: check its name", "there is no folder absent: check its name"
    pair = ["--model_name_or_path", "x", "--train_file"]
    expected += [
        ([command, *_NEEDED[command], *words], message)
        for command, words, message in [
            ("train", [], "there is no training data: pass --train_file"),
            ("train", ["--train_file", "absent"], f"--train_file: {no_file}"),
            ("train", ["--train_file", ".", "--dev_file", "absent"], f"--dev_file: {no_file}"),
            ("train", ["--train_file", ".", "--lora_r", "four"], "--lora_r.*: invalid int value: 'four'"),
            ("train", ["--train_file", ".", "--preset", "tiny"], "'tiny' is not a preset"),
            ("adapt", ["--corpus", "absent"], f"--corpus: {no_file}"),
            ("adapt", ["--corpus", ".", "--knn_dev_file", "absent"], f"--knn_dev_file: {no_file}"),
            ("compare", [*pair, "absent"], f"--train_file: {no_file}"),
            ("compare", [*pair, ".", "--sts_dir", "absent"], f"--sts_dir: {no_folder}"),
            ("compare", ["--train_file", "."], "recipe 'a': .*required: --model_name_or_path"),
            ("whiten", [], "pass either --corpus with a file, or --dataset"),
            ("whiten", ["--corpus", "absent"], f"--corpus: {no_file}"),
            ("evaluate", [], "pass either --sts_dir or --senteval_dir"),
            ("evaluate", ["--sts_dir", "absent"], f"--sts_dir: {no_folder}, or make one with st-simcse data"),
            ("plot", ["--corpus", "absent", "--map_file", "a.png"], f"--corpus: {no_file}"),
            ("encode", ["--corpus", "absent"], f"--corpus: {no_file}"),
            ("index", ["--corpus", "absent"], f"--corpus: {no_file}"),
            ("search", [], "pass either --queries"),
            ("search", ["--query_file", "absent"], f"--query_file: {no_file}"),
            (
                "search",
                ["--index", "absent", "--queries", "a"],
                f"--index: {no_folder}, or make one with st-simcse index",
            ),
            ("serve", [], "pass either --corpus"),
            ("serve", ["--corpus", "absent"], f"--corpus: {no_file}"),
            ("serve", ["--index", "absent"], f"--index: {no_folder}"),
        ]
    ]
    assert {words[0] for words, _ in expected} == set(cli.COMMANDS)
    for (words, message), (_, end, libraries) in zip(
        expected, _calls(tmp_path, *(words for words, _ in expected)), strict=True
    ):
        assert libraries == [], words
        assert re.search(message, str(end)), (words, end)


def test_garbage_is_not_looked_for_in_modules(monkeypatch):
    """They are set aside before the collector runs again, and once: later it would be a model that has had its day."""
    frozen = []
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(gc.isenabled()))
    monkeypatch.delitem(sys.modules, "sentence_transformers")
    for _ in range(2):
        import_libraries()
        assert gc.isenabled()
    assert frozen == [False]


def test_help_says_what_is_required_and_no_defaults_where_there_are_none(capsys):
    for command in ("evaluate", "demo"):
        with pytest.raises(SystemExit):
            cli.main([command, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "folders, or names on the hub. (required)" in text
    assert "Sentences per forward pass. (default: 64)" in text
    assert "the training. (default: 0)" in text
    assert not re.search(r"default: (None|False|\[\])", text)


def test_help_of_train_is_grouped(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "--help"])
    text = capsys.readouterr().out
    for option in OPTIONS:
        assert f"--{option_name(option)} " in text
    assert " Defaults to 0.995." in " ".join(text.split())
    places = [
        text.index(word)
        for word in ("\nmodel:", "\ndata:", "--train_file", "\nobjective:", "--temperature", "\ntraining:")
    ]
    assert not stop.value.code
    assert places == sorted(places)
    assert text.rstrip().endswith("--train_file sentences.txt --projection_head")


def test_encode_refuses_a_folder_before_the_work(tmp_path, sentences):
    (tmp_path / "e.npy").mkdir()
    (tmp_path / "a.txt").write_text("\n".join(sentences))
    words = ["--model", "/absent", "--corpus", str(tmp_path / "a.txt"), "--output_file", str(tmp_path / "e.npy")]
    with pytest.raises(IsADirectoryError, match="cannot write .*e.npy: it is a folder"):
        encode.run(words)


def test_every_command_takes_columns_by_number(tmp_path):
    """As the readers' message for a table without a header asks for."""
    (tmp_path / "a.csv").write_text("x,A dog.,A hound.\ny,A cat.,A tomcat.\n")
    name, texts = str(tmp_path / "a.csv"), ["A dog.", "A cat."]
    assert CorpusArguments(corpus=name, column="1").read(drop_duplicates=True)["sentence"][:] == texts
    args = plot.PlotArguments(["x"], corpus=name, pairs_file=name)
    file, pair_file = FileArguments(column="1"), plot.PairArguments(pair_columns=["1", "2"])
    assert plot._corpus(args, file) == (texts, None)
    assert plot._pairs(args, pair_file) == [texts, ["A hound.", "A tomcat."]]
    args.class_column = "0"
    assert plot._corpus(args, file) == (texts, ["x", "y"])


@pytest.mark.parametrize("command", sorted({*cli.COMMANDS} - {"train"}))
def test_commands_that_work_in_one_process_refuse_several(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit, match="^0$"):
        cli.main([command, "--help"])
    example = capsys.readouterr().out.split(f"example:\n  st-simcse {command}")[1]
    message = f"^st-simcse {command}: {command} runs in one process only, but WORLD_SIZE=2 .* Start it without torchrun"
    with pytest.raises(SystemExit, match=message):
        cli.main([command, *shlex.split(example, comments=True)])
    assert not list(tmp_path.iterdir())


def test_the_command_line_has_the_poolings_and_precisions_of_the_library():
    """They stand in two places, since those of the command line must not wait for torch."""
    assert set(get_args(Pooling)) == {"as saved", *get_args(PoolingMode)}
    assert get_args(Precision) == get_args(precision.Precision)


def test_the_package_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "st_simcse", "--version"], capture_output=True, text=True)
    assert done.stdout.startswith("st_simcse 0.")


@pytest.mark.slow
def test_a_folder_of_the_same_name_does_not_hide_the_package(tmp_path):
    """Where a clone lies in a folder named st_simcse, that folder is no package, and must not be taken for one."""
    (tmp_path / "st_simcse" / "docs").mkdir(parents=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", "from st_simcse import build_model"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
    )
    assert done.returncode == 0, done.stderr


def test_control_characters_of_names_reach_no_terminal(tmp_path, capsys):
    """In errors and in the log, which quote names and cells."""
    path = tmp_path / "a\x1b[2Jb.jsonl"
    path.write_text("no JSON")
    with pytest.raises(SystemExit) as ended:
        cli.main(
            ["train", "--model_name_or_path", "x", "--train_file", str(path), "--output_dir", str(tmp_path / "out")]
        )
    assert "\x1b" not in str(ended.value)
    assert r"a\u001b[2Jb.jsonl, line 1: not JSON" in str(ended.value)
    record = logging.LogRecord("name", logging.WARNING, "", 0, "%s: odd\nname", (path,), None)
    assert MessageHandler().format(record) == rf"WARNING: {tmp_path}/a\u001b[2Jb.jsonl: odd" "\nname"
