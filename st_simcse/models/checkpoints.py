"""Checkpoints of the original SimCSE code to a SentenceTransformer with the right pooler, and back to plain ones."""

from __future__ import annotations

import copy
import os
from typing import Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from torch import nn
from transformers import MODEL_MAPPING, PreTrainedModel

from st_simcse.models.lora import adapters, merge_adapters
from st_simcse.models.model_files import cached_file
from st_simcse.models.modeling import PoolingMode, build_model, load_pooled
from st_simcse.models.original import recognise

__all__ = ["load_model", "load_simcse", "loading_class", "save_transformer"]


def load_simcse(
    name_or_path: str | os.PathLike[str],
    supervised: bool | None = None,
    max_seq_length: int | None = None,
    device: str | None = None,
    **options: Any,
) -> SentenceTransformer:
    """A checkpoint of princeton-nlp/SimCSE as a SentenceTransformer with the pooler that it was evaluated with.

    Unsupervised checkpoints are read at the CLS token before the pooler, since their MLP was there in training only;
    supervised ones go through the trained MLP (Linear + Tanh), which becomes a Dense module. Both the published form
    (``princeton-nlp/sup-simcse-bert-base-uncased``: the MLP stands where BERT has its pooler) and the one that the
    training script writes (``mlp.dense``) are understood, here and on the hub. What was saved as a SentenceTransformer
    knows its pooler and comes as it is.

    Args:
        name_or_path: a folder, or a model's name on the Hugging Face hub.
        supervised: which of the two it is; told from ``unsup-simcse`` or ``sup-simcse`` in the path when left out.
        max_seq_length: longer texts are cut off after so many tokens; 128, as the authors' tool does, when left out.
        device: where the model is put; ST chooses when left out.
        **options: for :func:`~st_simcse.build_model`.

    Raises:
        ValueError: if the name does not tell and ``supervised`` is left out, if it is given for a SentenceTransformer,
            or if the MLP is missing.
        OSError: as :func:`~st_simcse.build_model`.

    Example:
        >>> from st_simcse.demo import save_tiny_transformer
        >>> save_tiny_transformer("sup-simcse-tiny", ["A man plays a guitar."], width=32, layers=2)
        >>> model = load_simcse("sup-simcse-tiny")
        >>> [type(module).__name__ for module in model], model.encode("A man.").shape
        (['Transformer', 'Pooling', 'Dense'], (32,))
    """
    model = build_model(name_or_path, None, max_seq_length, device=device, supervised=supervised, **options)
    is_plain = cached_file(name_or_path, "modules.json", **options) is None
    if is_plain and supervised is None and recognise(name_or_path, **options) is None:
        raise ValueError(
            f"{name_or_path}: the name holds neither unsup-simcse nor sup-simcse, and the two need different "
            "poolers; pass supervised=True or supervised=False"
        )
    return model


def load_model(
    name_or_path: str | os.PathLike[str], pooling: PoolingMode | None = None, max_seq_length: int | None = None
) -> SentenceTransformer:
    """Any model to evaluate or search with, which embeds as what :func:`~st_simcse.build_model` makes of it to train.

    A checkpoint of the original SimCSE code gets its pooler, any other transformer that was saved without a pooling
    gets ``cls``, and both are logged.

    Args:
        name_or_path: as in :func:`~st_simcse.build_model`.
        pooling: as in :func:`~st_simcse.build_model`.
        max_seq_length: as in :func:`~st_simcse.build_model`.

    Raises:
        ValueError: as :func:`~st_simcse.build_model`.
        OSError: as :func:`~st_simcse.build_model`.

    Example:
        >>> load_model("sentence-transformers/all-MiniLM-L6-v2").get_embedding_dimension()
        384
    """
    return load_pooled(name_or_path, pooling, max_seq_length)


def save_transformer(model: SentenceTransformer, folder: str | os.PathLike[str]) -> str:
    """Save a model for users of transformers alone, who get the same embeddings from ``AutoModel``.

    Where another class has to load it, :func:`loading_class` names it. An MLP (the Dense module of
    ``build_model(..., dense=True)``) is written into BERT's pooler, as published SimCSE checkpoints have it. LoRA's
    adapters are merged into what is saved; the model itself stays as it is. Its prompts are not saved: whoever needs
    one puts it before the texts.

    Args:
        model: a Transformer with CLS or mean pooling, perhaps one Dense module with Tanh of the same width, and perhaps
            Normalize; ``truncate_dim`` becomes a part of the expression.
        folder: where the files go.

    Returns:
        The expression that gives the embeddings, with ``inputs`` the tokenized texts and ``outputs`` the model's:
        ``outputs.pooler_output``, for example; ``torch.nn.functional.normalize`` is a part of it after Normalize.

    Raises:
        ValueError: for modules that AutoModel cannot stand in for, for a default prompt, which it does not know, and
            for prompts that the pooling leaves out.

    Example:
        >>> from st_simcse.demo import tiny_model
        >>> save_transformer(tiny_model(["Two dogs run."], pooling="cls"), "output")
        'outputs.last_hidden_state[:, 0]'
    """
    transformer, pooling, *rest = model
    kinds = [type(module).__name__ for module in model]
    if model.default_prompt_name is not None and (prompt := model.prompts.get(model.default_prompt_name)):
        raise ValueError(
            f"the model puts {prompt!r} before every text (its prompt {model.default_prompt_name!r}), which AutoModel "
            "does not: set model.default_prompt_name = None, save the model and put the prompt there yourself"
        )
    normalizes = bool(rest) and isinstance(rest[-1], Normalize)
    if normalizes:
        rest.pop()
    if not (isinstance(transformer, Transformer) and isinstance(pooling, Pooling)) or len(rest) > 1:
        raise ValueError(f"AutoModel gives what a Transformer and a Pooling give, this model has {kinds}")
    if not pooling.include_prompt and any(model.prompts.values()):
        raise ValueError(
            "the pooling leaves the tokens of prompts out (include_prompt=False), which AutoModel does not: call "
            "model.prompts.clear() and save the model, if its users are to embed without prompts"
        )
    mode = pooling.pooling_mode
    backbone = transformer.model
    if adapters(model):
        backbone = copy.deepcopy(backbone)
        merge_adapters(backbone)
    if rest:
        dense: Any = rest[0]
        pooler = _pooler(backbone)
        is_pooler = isinstance(dense, Dense) and isinstance(dense.activation_function, nn.Tanh) and mode == "cls"
        if not is_pooler or pooler is None or pooler.weight.shape != dense.linear.weight.shape:
            raise ValueError(
                "only a Dense module with Tanh, of the transformer's width and after CLS pooling, can become its "
                f"pooler, and only where the architecture has one; this model has {kinds} with {mode!r} pooling"
            )
        backbone, pooler = copy.deepcopy((backbone, pooler))
        pooler.load_state_dict(dense.linear.state_dict())
        expression = "outputs.pooler_output"
    elif mode == "cls":
        expression = "outputs.last_hidden_state[:, 0]"
    elif mode == "mean":
        mask = "inputs.attention_mask[..., None]"
        expression = f"(outputs.last_hidden_state * {mask}).sum(1) / {mask}.sum(1)"
    else:
        raise ValueError(f"save_transformer knows CLS and mean pooling, this model has {mode!r}")
    if normalizes:
        expression = f"torch.nn.functional.normalize({expression}, dim=-1)"
    if model.truncate_dim is not None:
        expression = f"({expression})[:, :{model.truncate_dim}]"
    backbone.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return expression


def loading_class(model: SentenceTransformer) -> str:
    """The class of transformers that loads what :func:`save_transformer` saved.

    AutoModel, unless that would be another model, as with T5: sentence-transformers takes its encoder alone.

    Example:
        >>> from st_simcse.demo import tiny_model
        >>> loading_class(tiny_model(["Two dogs run."]))
        'AutoModel'
    """
    transformer: Any = model.transformers_model
    auto = MODEL_MAPPING.get(type(transformer.config), type(transformer))
    is_auto = type(transformer) in (auto if isinstance(auto, tuple) else (auto,))
    return "AutoModel" if is_auto else type(transformer).__name__


def _pooler(transformer: PreTrainedModel) -> nn.Linear | None:
    return getattr(getattr(transformer, "pooler", None), "dense", None)
