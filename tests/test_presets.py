import json
import shutil

import pytest

from conftest import CHINESE
from st_simcse import cli
from st_simcse.cli import train
from st_simcse.presets import PRESETS, preset_options

# Table of batch sizes and learning rates in appendix A of the paper.
TABLE = {
    "unsup-bert-base": (64, 3e-5),
    "unsup-bert-large": (64, 1e-5),
    "unsup-roberta-base": (512, 1e-5),
    "unsup-roberta-large": (512, 3e-5),
    "sup-bert-base": (512, 5e-5),
    "sup-bert-large": (512, 1e-5),
    "sup-roberta-base": (512, 5e-5),
    "sup-roberta-large": (512, 1e-5),
}


@pytest.mark.parametrize("name", TABLE)
def test_presets_parse_to_the_papers_values(name):
    model, data, loss, arguments = train.parse_train(["--preset", name, "--train_file", "x", "--bf16", "false"])
    assert (arguments.per_device_train_batch_size, arguments.learning_rate) == TABLE[name]
    unsupervised = name.startswith("unsup")
    assert (loss.projection_head, model.dense) == (unsupervised, not unsupervised)
    assert (model.pooling, arguments.max_length, loss.temperature) == ("cls", 32, 0.05)
    assert arguments.num_train_epochs == (1 if unsupervised else 3)
    assert (arguments.eval_steps, arguments.lr_scheduler_type, arguments.warmup_steps) == (250, "linear", 0)
    assert ("roberta" in model.model_name_or_path, "large" in model.model_name_or_path) == (
        "roberta" in name,
        "large" in name,
    )
    assert data.train_file == "x"


def test_llm2vec_and_modernbert():
    """The facts of McGill-NLP/llm2vec's and AnswerDotAI/ModernBERT's files, as the issue and the files have them."""
    rest = ["--train_file", "x", "--bf16", "false"]
    model, _, loss, arguments = train.parse_train(["--preset", "llm2vec", *rest])
    assert (model.lora_r, model.lora_alpha, model.lora_dropout) == (16, 32, 0.05)
    assert model.lora_target_modules == [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")]
    assert (model.pooling, model.bidirectional, model.dropout) == ("mean", True, 0.3)
    assert (loss.temperature, loss.projection_head) == (0.05, False)
    assert (arguments.per_device_train_batch_size, arguments.learning_rate, arguments.max_steps) == (128, 3e-5, 1000)
    assert (arguments.max_length, arguments.gradient_checkpointing, arguments.warmup_steps) == (128, True, 0)
    model, _, loss, arguments = train.parse_train(["--preset", "modernbert", *rest])
    assert (model.model_name_or_path, model.pooling, model.dropout) == ("answerdotai/ModernBERT-base", "mean", 0.1)
    assert (arguments.per_device_train_batch_size, arguments.learning_rate, loss.mini_batch_size) == (512, 8e-5, 16)
    assert (arguments.num_train_epochs, arguments.warmup_steps, loss.temperature) == (1, 0.05, 0.05)
    assert PRESETS["llm2vec"]["bf16"] == PRESETS["modernbert"]["bf16"] == "true"


def test_chinese():
    """The constants of SimCSE-Chinese-Pytorch's scripts and of bojone/SimCSE's eval.py, as their files have them."""
    for name in ("unsup-zh", "sup-zh"):
        argv = ["--preset", name, "--train_file", "x", "--bf16", "false"]
        model, data, loss, arguments = train.parse_train(argv)
        assert (model.model_name_or_path, model.pooling, model.dense) == ("bert-base-chinese", "cls", False)
        assert (loss.symmetric, loss.temperature, loss.projection_head) == (True, 1 / 20, False)
        assert (arguments.per_device_train_batch_size, arguments.learning_rate, arguments.max_length) == (64, 1e-5, 64)
        assert (arguments.num_train_epochs, arguments.lr_scheduler_type, arguments.warmup_steps) == (1, "constant", 0)
        assert (arguments.max_grad_norm, arguments.eval_steps) == (0, 10)
        unsupervised = name == "unsup-zh"
        assert (model.dropout, data.max_train_samples) == ((0.3, 10_000) if unsupervised else (None, None))
        assert (data.train_format, arguments.weight_decay) == (("sentences", 0) if unsupervised else ("auto", 0.01))


@pytest.mark.slow
@pytest.mark.parametrize("real", [False, pytest.param(True, marks=pytest.mark.data)], ids=["generated", "real STS-B"])
def test_chinese_from_files_to_scores(request, real, tmp_path, senteval_cn, chinese_bert, capsys):
    """In folders as those users have them. Random weights of a tiny model: mechanics, no quality."""
    folder = shutil.copytree(senteval_cn, tmp_path / "senteval_cn") / "STS-B"
    splits = {"valid": ("dev", 60), "test": ("test", 60)}
    if real:
        shared = request.getfixturevalue("shared")
        for split, (name, _) in splits.items():
            lines = (shared / f"sts/zh/STSB-{name}.tsv").read_text(encoding="utf-8").splitlines()[1:]
            (folder / f"STS-B.{split}.data").write_text("\n".join(lines) + "\n", encoding="utf-8")
            splits[split] = name, len(lines)
    for split, (name, _) in splits.items():
        lines = (folder / f"STS-B.{split}.data").read_text(encoding="utf-8").splitlines()
        rows = [f"2012{name}-{row:04}||" + line.replace("\t", "||") for row, line in enumerate(lines)]
        (tmp_path / f"cnsd-sts-{name}.txt").write_text("\n".join(rows) + "\n", encoding="utf-8")
    train_file = tmp_path / "cnsd-sts-dev.txt"
    origin = {"origin": CHINESE[0], "entailment": CHINESE[1], "contradiction": CHINESE[2]}
    triplets = [dict(zip(origin, CHINESE[row:] + CHINESE[:row], strict=False)) for row in range(len(CHINESE))]
    (tmp_path / "train.txt").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in triplets))
    options = ["--model_name_or_path", chinese_bert, "--dev_file", str(folder / "STS-B.valid.data"), "--test_file"]
    options += [str(tmp_path / "cnsd-sts-test.txt"), "--report_to", "none", "--use_cpu", "--bf16", "false"]
    for preset, file in (("unsup-zh", train_file), ("sup-zh", tmp_path / "train.txt")):
        output = tmp_path / preset
        scores = train.run(["--preset", preset, "--train_file", str(file), "--output_dir", str(output), *options])
        state = json.loads(next(output.glob("checkpoint-*/trainer_state.json")).read_text())
        sentences = 2 * splits["valid"][1] if preset == "unsup-zh" else len(triplets)
        assert state["max_steps"] == -(-sentences // 64)
        assert scores["before"].keys() == scores["after"].keys() == {"STS-B", "cnsd-sts-test"}
        cli.main(["evaluate", "--model", str(output), "--sts_zh_dir", str(folder.parent), "--allow_partial"])
        table = capsys.readouterr().out.splitlines()
        assert table[-3].split(" | ")[-3:-1] == ["STS-B-test", "Avg."]
        # The same pairs and texts shorter than 64 tokens: what training printed of the saved model.
        measured = float(table[-1].split(" | ")[-3])
        assert measured == pytest.approx(100 * scores["after"]["cnsd-sts-test"], abs=0.05 if real else 0.5)


def test_own_domain_and_language_model():
    """What docs/recipes.md measured."""
    rest = ["--train_file", "x", "--bf16", "false"]
    model, _, loss, arguments = train.parse_train(["--preset", "own-domain", *rest])
    assert (model.pooling, arguments.views, loss.projection_head) == ("as saved", "crops", False)
    assert (arguments.learning_rate, arguments.per_device_train_batch_size, arguments.max_length) == (1e-4, 64, 64)
    model, _, loss, arguments = train.parse_train(["--preset", "language-model", *rest])
    assert (model.pooling, model.whiten, model.whiten_power) == ("cls", "before", 0.5)
    assert (arguments.views, loss.projection_head, loss.focal_margin) == ("word_repetition", False, None)
    assert (arguments.learning_rate, arguments.per_device_train_batch_size, arguments.max_length) == (6e-5, 64, 32)


def test_small_from_large():
    argv = ["--preset", "small-from-large", "--train_file", "x", "--bf16", "false", "--layers", "2"]
    model, data, loss, arguments = train.parse_train(argv)
    assert (model.layers, model.pooling) == (2, "mean")
    assert (model.whiten, model.whiten_power, model.whiten_dimensions) == ("before", 0, 0.333)
    assert (loss.rank_distillation, loss.rank_distillation_method) == (1.0, "listnet")
    assert (arguments.learning_rate, arguments.per_device_train_batch_size) == (3e-4, 64)
    assert data.teacher == ["sentence-transformers/all-MiniLM-L6-v2"]


def test_options_override_the_preset_wherever_they_stand():
    rest = ["--train_file", "x", "--bf16", "false"]
    for argv in (
        ["--preset", "sup-bert-base", "--learning_rate", "1", "--dense", "false", *rest],
        ["--learning_rate", "1", "--dense", "false", "--preset", "sup-bert-base", *rest],
    ):
        model, _, _, arguments = train.parse_train(argv)
        assert (arguments.learning_rate, model.dense, arguments.per_device_train_batch_size) == (1.0, False, 512)


def test_unknown_preset():
    with pytest.raises(ValueError, match="'bert' is not a preset. Choose one of unsup-bert-base"):
        preset_options("bert")


def test_presets_are_printed(capsys):
    cli.main(["presets"])
    printed = capsys.readouterr().out
    assert all(name in printed for name in PRESETS)
    cli.main(["presets", "sup-roberta-large"])
    assert capsys.readouterr().out.splitlines()[1].strip() == " ".join(preset_options("sup-roberta-large"))
