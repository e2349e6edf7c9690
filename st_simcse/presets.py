"""The paper's training recipes, as options of ``st-simcse train``."""

from __future__ import annotations

__all__ = ["PRESETS", "preset_options"]

# Where it is from, in arXiv:2104.08821 and the authors' repository, github.com/princeton-nlp/SimCSE:
# - batch sizes and learning rates: table A.1 in appendix A;
# - one epoch without and three with supervision, the development set of the STS benchmark looked at every 250 steps and
#   the best checkpoint kept: the text of appendix A (the authors' scripts say 125: --eval_steps 125);
# - CLS with an MLP, which without supervision is left out at inference: appendix A and section 6.3, table 6;
# - temperature 0.05: table D.1 in appendix D, and the scripts;
# - 32 tokens: run_unsup_example.sh and run_sup_example.sh alone, the paper does not say; nor does it say how the
#   learning rate falls: linearly, as the scripts leave it to transformers' default.
_BATCH_AND_LEARNING_RATE = {
    "unsup-bert-base": (64, 3e-5, "bert-base-uncased"),
    "unsup-bert-large": (64, 1e-5, "bert-large-uncased"),
    "unsup-roberta-base": (512, 1e-5, "roberta-base"),
    "unsup-roberta-large": (512, 3e-5, "roberta-large"),
    "sup-bert-base": (512, 5e-5, "bert-base-uncased"),
    "sup-bert-large": (512, 1e-5, "bert-large-uncased"),
    "sup-roberta-base": (512, 5e-5, "roberta-base"),
    "sup-roberta-large": (512, 1e-5, "roberta-large"),
}


def _options(name: str) -> dict[str, str]:
    batch, learning_rate, model = _BATCH_AND_LEARNING_RATE[name]
    unsupervised = name.startswith("unsup")
    return {
        "model_name_or_path": model,
        "pooling": "cls",
        "projection_head" if unsupervised else "dense": "true",
        "max_seq_length": "32",
        "temperature": "0.05",
        "num_train_epochs": "1" if unsupervised else "3",
        "per_device_train_batch_size": str(batch),
        "learning_rate": str(learning_rate),
        "lr_scheduler_type": "linear",
        "eval_steps": "250",
    }


PRESETS: dict[str, dict[str, str]] = {name: _options(name) for name in _BATCH_AND_LEARNING_RATE}


def preset_options(name: str) -> list[str]:
    """The preset as command-line words; those that follow them win.

    Raises:
        ValueError: for an unknown name.

    Example:
        >>> " ".join(preset_options("unsup-bert-base")[:6])
        '--model_name_or_path bert-base-uncased --pooling cls --projection_head true'
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}: choose one of {', '.join(PRESETS)}")
    return [word for option, value in PRESETS[name].items() for word in (f"--{option}", value)]
