"""Training recipes, the paper's, two for today's backbones, two for Chinese and three of ours, as options of
``st-simcse train``.
"""

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


# LLM2Vec (arXiv:2404.05961), third step, in github.com/McGill-NLP/llm2vec:
# - model, bidirectional attention, mean pooling, batch size, learning rate, 128 tokens, 1,000 steps, a checkpoint every
#   200, temperature (loss_scale 20), r, dropout (simcse_dropout), gradient checkpointing, bfloat16:
#   train_configs/simcse/Sheared-Llama.json; its other models have the same;
# - the layers with adapters, alpha = 2 r, and their dropout of 0.05: experiments/run_simcse.py;
# - ours: a constant learning rate, since theirs falls linearly over three epochs of a million sentences, of which 1,000
#   steps are 4%; mixed precision (bf16), where they load the weights in bfloat16.
# They start from the weights of their second step, masked next token prediction; the model named here has not had it.
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

# ModernBERT (arXiv:2412.13663) has no recipe without supervision. Of its supervised retrieval training, in
# examples/train_st.py of github.com/AnswerDotAI/ModernBERT: learning rate, batch size, the rows of a forward pass,
# warm-up of 5%, one epoch, bf16, temperature (ST's scale of 20), and mean pooling, which is what ST gives a bare
# encoder. BERT's and the SimCSE paper's, and so our choice here: dropout of 0.1, since its configuration has none, 32
# tokens, evaluation every 250 steps.
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

# For Chinese, the settings that two repositories share: eval.py and utils.py of github.com/bojone/SimCSE, and
# simcse_unsup.py and simcse_sup.py of github.com/vdogmcgee/SimCSE-Chinese-Pytorch.
# - batches of 64, a learning rate of 1e-5 that stays, one epoch, both views anchors against all other rows, temperature
#   0.05 (bojone's scale of 20), no clipping of gradients: all of them;
# - 64 tokens: MAXLEN of the second, and of the first for all tasks but PAWSX, which has 128;
# - 10,000 sentences, drawn at random: the first out of the task's own files (of PAWSX all), the second out of CNSD's;
# - dropout of 0.3 without supervision: the second's DROPOUT, and the first's example, where it is an argument; the
#   supervised script leaves it as it is, and so does this;
# - CLS before the pooler: POOLING of the second, and the first's example, where it is an argument too;
# - a look at the development set every 10 steps, the best checkpoint kept: the second;
# - weight decay of 0.01 with supervision: PyTorch's default for AdamW, which the second takes; the first has Adam;
# - ours: no early stop, which the second has with supervision, after 100 steps without a better score.
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

# Ours, chosen on development sets; docs/recipes.md has what they were measured with and against.
# A good model and texts of some sentences each: crops of a text say more about it than dropout does. Half of the
# weights from before keep what the model knows.
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

# A token that nobody has trained to embed a text begins with half a whitening, which training takes along. The learning
# rate is one for small models; the paper has 3e-5 and 1e-5 for those of BERT's sizes.
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

# The lower half of a model learns to rank the sentences of a batch as the whole one does.
_SMALL_FROM_LARGE = {
    "model_name_or_path": "sentence-transformers/all-MiniLM-L6-v2",
    "teacher": "sentence-transformers/all-MiniLM-L6-v2",
    "layers": "3",
    "pooling": "mean",
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
    """The preset as command-line words; those that follow them win.

    Raises:
        ValueError: for an unknown name.

    Example:
        >>> " ".join(preset_options("unsup-bert-base")[:6])
        '--model_name_or_path bert-base-uncased --pooling cls --projection_head true'
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}: choose one of {', '.join(PRESETS)}")
    return [word for option, value in PRESETS[name].items() for word in (f"--{option}", *value.split())]
