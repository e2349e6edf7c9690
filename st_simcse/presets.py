"""Training recipes as options of ``st-simcse train``: the paper's, two for newer backbones, two for Chinese, and three
of our own.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["PRESETS", "option_words", "preset_options"]

# The sources of the settings, in arXiv:2104.08821 and the authors' repository, github.com/princeton-nlp/SimCSE:
# - batch sizes and learning rates: table A.1 in appendix A;
# - one epoch without and three with supervision, evaluation on the development set of the STS benchmark every 250
#   steps, the best checkpoint kept: the text of appendix A (the authors' scripts use --eval_steps 125);
# - CLS with an MLP, which is not used at inference without supervision: appendix A and section 6.3, table 6;
# - temperature 0.05: table D.1 in appendix D, and the scripts;
# - 32 tokens: only run_unsup_example.sh and run_sup_example.sh, not the paper;
# - a learning rate that falls linearly: the default of transformers, which the scripts use. The paper does not say.
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


# LLM2Vec (arXiv:2404.05961), third step, in github.com/McGill-NLP/llm2vec:
# - model, bidirectional attention, mean pooling, batch size, learning rate, 128 tokens, 1,000 steps, a checkpoint every
#   200 steps, temperature (loss_scale 20), r, dropout (simcse_dropout), gradient checkpointing, bfloat16:
#   train_configs/simcse/Sheared-Llama.json, like the configurations of the other models;
# - the layers with adapters, alpha = 2 r, and the adapters' dropout of 0.05: experiments/run_simcse.py;
# - our choice: a constant learning rate, because theirs falls linearly over three epochs of a million sentences, and
#   1,000 steps are only 4% of these; and mixed precision (bf16), while they load the weights in bfloat16.
# They start from the weights of their second step, masked next token prediction. The model named here did not have this
# step.
_LLM2VEC = {
    "model_name_or_path": "princeton-nlp/Sheared-LLaMA-1.3B",
    "pooling": "mean",
    "bidirectional": "true",
    "dropout": "0.3",
    "lora_r": "16",
    "lora_alpha": "32",
    "lora_dropout": "0.05",
    "lora_target_modules": "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj",
    "max_seq_length": "128",
    "temperature": "0.05",
    "max_steps": "1000",
    "per_device_train_batch_size": "128",
    "learning_rate": "3e-05",
    "lr_scheduler_type": "constant",
    "gradient_checkpointing": "true",
    "bf16": "true",
    "save_steps": "200",
    "eval_steps": "200",
}

# ModernBERT (arXiv:2412.13663) has no recipe without supervision. These settings are from its supervised retrieval
# training, examples/train_st.py of github.com/AnswerDotAI/ModernBERT: learning rate, batch size, rows per forward pass,
# warm-up of 5%, one epoch, bf16, temperature (ST's scale of 20), and mean pooling, the default of ST for an encoder
# without one. Our choice, from BERT and the SimCSE paper: dropout of 0.1, because ModernBERT's configuration has none,
# 32 tokens, and evaluation every 250 steps.
_MODERNBERT = {
    "model_name_or_path": "answerdotai/ModernBERT-base",
    "pooling": "mean",
    "dropout": "0.1",
    "max_seq_length": "32",
    "temperature": "0.05",
    "num_train_epochs": "1",
    "per_device_train_batch_size": "512",
    "mini_batch_size": "16",
    "learning_rate": "8e-05",
    "lr_scheduler_type": "linear",
    "warmup_steps": "0.05",
    "bf16": "true",
    "eval_steps": "250",
}

# For Chinese, the settings of two repositories: (1) eval.py and utils.py of github.com/bojone/SimCSE, and
# (2) simcse_unsup.py and simcse_sup.py of github.com/vdogmcgee/SimCSE-Chinese-Pytorch.
# - batches of 64, a constant learning rate of 1e-5, one epoch, both views as anchors against all other rows,
#   temperature 0.05 (a scale of 20 in (1)), no gradient clipping: both;
# - 64 tokens: MAXLEN of (2), and of (1) for all tasks except PAWSX, which has 128;
# - 10,000 randomly drawn sentences: (1) from the files of the task (all of them for PAWSX), (2) from CNSD;
# - dropout of 0.3 without supervision: DROPOUT of (2), and an argument of (1) with this value in its example. The
#   supervised script does not change the dropout, and neither does this preset;
# - CLS before the pooler: POOLING of (2), and an argument of (1) with this value in its example;
# - evaluation on the development set every 10 steps, the best checkpoint kept: (2);
# - weight decay of 0.01 with supervision: PyTorch's default for AdamW, which (2) uses, while (1) uses Adam;
# - our choice: no early stopping. (2) stops with supervision after 100 steps without a better score.
_ZH = {
    "model_name_or_path": "bert-base-chinese",
    "pooling": "cls",
    "max_seq_length": "64",
    "symmetric": "true",
    "temperature": "0.05",
    "num_train_epochs": "1",
    "per_device_train_batch_size": "64",
    "learning_rate": "1e-05",
    "lr_scheduler_type": "constant",
    "max_grad_norm": "0",
    "eval_steps": "10",
}
_UNSUP_ZH = _ZH | {"dropout": "0.3", "train_format": "sentences", "max_train_samples": "10000"}
_SUP_ZH = _ZH | {"weight_decay": "0.01"}

# Our own recipes, chosen on development sets. docs/recipes.md has the measurements and the baselines.
# For a good model and texts of several sentences: crops are better views of a text than dropout masks. Averaging with
# the weights before training preserves what the model knows.
_OWN_DOMAIN = {
    "model_name_or_path": "sentence-transformers/all-MiniLM-L6-v2",
    "views": "crops",
    "max_seq_length": "64",
    "temperature": "0.05",
    "num_train_epochs": "1",
    "per_device_train_batch_size": "64",
    "learning_rate": "1e-04",
    "start_weight": "0.5",
    "lr_scheduler_type": "linear",
}

# The CLS token of this model was not trained to embed texts, so it starts with half a whitening, which is trained too.
# The learning rate is for small models. The paper uses 3e-5 and 1e-5 for models of the sizes of BERT.
_LANGUAGE_MODEL = {
    "model_name_or_path": "nreimers/MiniLM-L6-H384-uncased",
    "pooling": "cls",
    "whiten": "before",
    "whiten_power": "0.5",
    "views": "word_repetition",
    "max_seq_length": "32",
    "temperature": "0.05",
    "num_train_epochs": "1",
    "per_device_train_batch_size": "64",
    "learning_rate": "6e-05",
    "lr_scheduler_type": "linear",
}

# The lower half of a model learns to rank the sentences of a batch like the whole model. It learns more in the third of
# its dimensions with the largest spread.
_SMALL_FROM_LARGE = {
    "model_name_or_path": "sentence-transformers/all-MiniLM-L6-v2",
    "teacher": "sentence-transformers/all-MiniLM-L6-v2",
    "layers": "3",
    "pooling": "mean",
    "whiten": "before",
    "whiten_power": "0",
    "whiten_dimensions": "0.333",
    "rank_distillation": "1.0",
    "rank_distillation_method": "listnet",
    "max_seq_length": "32",
    "temperature": "0.05",
    "num_train_epochs": "1",
    "per_device_train_batch_size": "64",
    "learning_rate": "3e-04",
    "lr_scheduler_type": "linear",
}

PRESETS: dict[str, dict[str, str]] = {
    **{name: _options(name) for name in _BATCH_AND_LEARNING_RATE},
    "llm2vec": _LLM2VEC,
    "modernbert": _MODERNBERT,
    "unsup-zh": _UNSUP_ZH,
    "sup-zh": _SUP_ZH,
    "own-domain": _OWN_DOMAIN,
    "language-model": _LANGUAGE_MODEL,
    "small-from-large": _SMALL_FROM_LARGE,
}


def preset_options(name: str) -> list[str]:
    """Returns the preset as command-line words. Options after them override them.

    Raises:
        ValueError: If there is no preset with this name.

    Example:
        >>> " ".join(preset_options("unsup-bert-base")[:6])
        '--model_name_or_path bert-base-uncased --pooling cls --projection_head true'
    """
    if name not in PRESETS:
        raise ValueError(f"{name!r} is not a preset. Choose one of {', '.join(PRESETS)}.")
    return option_words(PRESETS[name])


def option_words(options: Mapping[str, str]) -> list[str]:
    """Returns options as command-line words. A value with spaces is several words."""
    return [word for option, value in options.items() for word in (f"--{option}", *value.split())]
