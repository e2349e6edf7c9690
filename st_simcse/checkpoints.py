"""Checkpoints of the original SimCSE code to a SentenceTransformer with the right pooler, and back to plain ones."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Transformer
from torch import Tensor, nn
from transformers import PreTrainedModel

from st_simcse.modeling import build_model

__all__ = ["load_model", "load_simcse", "save_transformer"]

# Where the MLP lies in a checkpoint: as the training script writes it, and as published, in place of BERT's own pooler.
_MLP_NAMES = ("mlp.dense", "pooler.dense", "bert.pooler.dense", "roberta.pooler.dense")


def load_simcse(
    name_or_path: str | os.PathLike[str],
    supervised: bool | None = None,
    max_seq_length: int = 128,
    device: str | None = None,
    **transformer_kwargs: Any,
) -> SentenceTransformer:
    """A checkpoint of princeton-nlp/SimCSE as a SentenceTransformer with the pooler that it was evaluated with.

    Unsupervised checkpoints are read at the CLS token before the pooler, since their MLP was there in training only;
    supervised ones go through the trained MLP (Linear + Tanh), which becomes a Dense module. Both the published form
    (``princeton-nlp/sup-simcse-bert-base-uncased``: the MLP stands where BERT has its pooler) and the one that the
    training script writes (``mlp.dense``) are understood.

    Args:
        name_or_path: a folder, or a model's name on the Hugging Face hub.
        supervised: which of the two it is; told from ``unsup-simcse`` or ``sup-simcse`` in the name when left out.
        max_seq_length: longer texts are cut off after so many tokens.
        device: where the model is put; ST chooses when left out.
        **transformer_kwargs: for :func:`~st_simcse.build_model`.

    Raises:
        ValueError: if the name does not tell and ``supervised`` is left out, or if the MLP is missing.
        OSError: as :func:`~st_simcse.build_model`; also for weights that are not in safetensors files.

    Example:
        ::

            model = load_simcse("princeton-nlp/sup-simcse-bert-base-uncased")
            model.encode(["A man plays a guitar."])
    """
    name = Path(name_or_path).name.lower()
    if supervised is None:
        if "sup-simcse" not in name:
            raise ValueError(
                f"{name_or_path}: the name holds neither unsup-simcse nor sup-simcse, and the two need different "
                "poolers; pass supervised=True or supervised=False"
            )
        supervised = "unsup-simcse" not in name
    model = build_model(str(name_or_path), "cls", max_seq_length, device=device, **transformer_kwargs)
    if supervised:
        weight, bias = _mlp(model.transformers_model, Path(name_or_path, "model.safetensors"))
        model.append(_dense(weight, bias).to(model.device))
    return model


def load_model(name_or_path: str | os.PathLike[str]) -> SentenceTransformer:
    """Any model to evaluate or search with: SimCSE's checkpoints by :func:`load_simcse`, all others as ST loads them.

    Example:
        >>> load_model(getfixture("pretrained")).get_embedding_dimension()
        384
    """
    is_simcse = "sup-simcse" in Path(name_or_path).name.lower()
    if is_simcse and not Path(name_or_path, "modules.json").exists():
        return load_simcse(name_or_path)
    return SentenceTransformer(str(name_or_path))


def save_transformer(model: SentenceTransformer, folder: str | os.PathLike[str]) -> str:
    """Save a model for users of transformers alone, who get the same embeddings from ``AutoModel``.

    An MLP (the Dense module of ``build_model(..., dense=True)``) is written into BERT's pooler, as published SimCSE
    checkpoints have it.

    Args:
        model: a Transformer with CLS or mean pooling, and perhaps one Dense module with Tanh of the same width.
        folder: where the files go.

    Returns:
        The expression that gives the embeddings, with ``inputs`` the tokenized texts and ``outputs`` the model's:
        ``outputs.pooler_output``, for example.

    Raises:
        ValueError: for modules that AutoModel cannot stand in for.

    Example:
        >>> from st_simcse.demo import tiny_model
        >>> save_transformer(tiny_model(["Two dogs run."], pooling="cls"), getfixture("tmp_path"))
        'outputs.last_hidden_state[:, 0]'
    """
    transformer, pooling, *rest = model
    kinds = [type(module).__name__ for module in model]
    if not (isinstance(transformer, Transformer) and isinstance(pooling, Pooling)) or len(rest) > 1:
        raise ValueError(f"AutoModel gives what a Transformer and a Pooling give, this model has {kinds}")
    mode = pooling.pooling_mode
    backbone = transformer.model
    if rest:
        dense = rest[0]
        pooler = _pooler(backbone)
        fits = isinstance(dense, Dense) and isinstance(dense.activation_function, nn.Tanh) and mode == "cls"
        if not fits or pooler is None or pooler.weight.shape != dense.linear.weight.shape:
            raise ValueError(
                "only a Dense module with Tanh, of the transformer's width and after CLS pooling, can become its "
                f"pooler, and only where the architecture has one; this model has {kinds} with {mode!r} pooling"
            )
        backbone = copy.deepcopy(backbone)
        _pooler(backbone).load_state_dict(dense.linear.state_dict())
        expression = "outputs.pooler_output"
    elif mode == "cls":
        expression = "outputs.last_hidden_state[:, 0]"
    elif mode == "mean":
        mask = "inputs.attention_mask[..., None]"
        expression = f"(outputs.last_hidden_state * {mask}).sum(1) / {mask}.sum(1)"
    else:
        raise ValueError(f"save_transformer knows CLS and mean pooling, this model has {mode!r}")
    backbone.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return expression


def _dense(weight: Tensor, bias: Tensor) -> Dense:
    dense = Dense(weight.shape[1], weight.shape[0], activation_function=nn.Tanh())
    with torch.no_grad():
        dense.linear.weight.copy_(weight)
        dense.linear.bias.copy_(bias)
    return dense


def _pooler(transformer: PreTrainedModel) -> nn.Linear | None:
    return getattr(getattr(transformer, "pooler", None), "dense", None)


def _mlp(transformer: PreTrainedModel, path: Path) -> tuple[Tensor, Tensor]:
    if path.exists():
        with safe_open(path, "pt") as file:
            for name in _MLP_NAMES:
                if f"{name}.weight" in file.keys():  # noqa: SIM118 (safe_open is no mapping)
                    return file.get_tensor(f"{name}.weight"), file.get_tensor(f"{name}.bias")
        raise ValueError(
            f"{path} has no MLP, that is none of {', '.join(_MLP_NAMES)}: if it was trained without supervision, pass "
            "supervised=False"
        )
    pooler = _pooler(transformer)
    if pooler is None:
        raise ValueError(f"{type(transformer).__name__} has no pooler that a supervised SimCSE checkpoint would fill")
    return pooler.weight, pooler.bias
