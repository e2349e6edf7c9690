import pytest

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


def test_own_domain_and_language_model():
    """What docs/recipes.md measured."""
    rest = ["--train_file", "x", "--bf16", "false"]
    model, _, loss, arguments = train.parse_train(["--preset", "own-domain", *rest])
    assert (model.pooling, arguments.views, loss.projection_head) == ("as saved", "crops", False)
    assert (arguments.learning_rate, arguments.per_device_train_batch_size, arguments.max_length) == (1e-4, 64, 64)
    model, _, loss, arguments = train.parse_train(["--preset", "language-model", *rest])
    assert (model.pooling, loss.projection_head, loss.focal_margin, loss.momentum_queue) == ("cls", True, 0.2, 160)
    assert (arguments.learning_rate, arguments.per_device_train_batch_size, arguments.max_length) == (1e-4, 64, 32)


def test_small_from_large():
    argv = ["--preset", "small-from-large", "--train_file", "x", "--bf16", "false", "--layers", "2"]
    model, data, loss, arguments = train.parse_train(argv)
    assert (model.layers, model.pooling) == (2, "mean")
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
    with pytest.raises(ValueError, match="unknown preset 'bert': choose one of unsup-bert-base"):
        preset_options("bert")


def test_presets_are_printed(capsys):
    cli.main(["presets"])
    printed = capsys.readouterr().out
    assert all(name in printed for name in PRESETS)
    cli.main(["presets", "sup-roberta-large"])
    assert capsys.readouterr().out.splitlines()[1].strip() == " ".join(preset_options("sup-roberta-large"))
