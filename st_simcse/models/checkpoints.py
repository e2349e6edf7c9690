"""Conversion of the original SimCSE code's checkpoints to SentenceTransformers, and back to plain transformers."""

from __future__ import annotations

import copy
import os
from typing import Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from torch import nn
from transformers import MODEL_MAPPING, PreTrainedModel

from st_simcse.models.lora import adapters, merge_adapters, remove_outdated
from st_simcse.models.model_files import cached_file
from st_simcse.models.modeling import PoolingMode, build_model, load_pooled
from st_simcse.models.original import is_mlp, recognise

__all__ = ["load_model", "load_simcse", "loading_class", "save_transformer"]


def load_simcse(
    name_or_path: str | os.PathLike[str],
    supervised: bool | None = None,
    max_seq_length: int | None = None,
    device: str | None = None,
    **options: Any,
) -> SentenceTransformer:
    """Loads a checkpoint of princeton-nlp/SimCSE as a SentenceTransformer with the pooler of its evaluation.

    An unsupervised checkpoint uses the CLS token before the pooler, because its MLP was used in training only. A
    supervised checkpoint uses the trained MLP (Linear + Tanh), which becomes a Dense module. Both the published form
    (``princeton-nlp/sup-simcse-bert-base-uncased``, whose MLP replaces BERT's pooler) and that of the training script
    (``mlp.dense``) are supported, in folders and on the Hub. A model that was saved as a SentenceTransformer has its
    pooler already and is loaded unchanged.

    Args:
        name_or_path: A folder, or a model's name on the Hugging Face Hub.
        supervised: Whether the checkpoint is supervised. If None, it is read from ``unsup-simcse`` or ``sup-simcse`` in
            the path.
        max_seq_length: The maximum number of tokens of a text. If None, 128, as in the authors' tool.
        device: The device of the model. If None, ST chooses it.
        **options: Further options of :func:`~st_simcse.build_model`.

    Raises:
        ValueError: If ``supervised`` is None and the path does not show it, if ``supervised`` is passed for a
            SentenceTransformer, or if the MLP is missing.
        OSError: As in :func:`~st_simcse.build_model`.

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
            f"{name_or_path}: the name contains neither unsup-simcse nor sup-simcse, and the two need different "
            "poolers. Pass supervised=True or supervised=False."
        )
    return model


def load_model(
    name_or_path: str | os.PathLike[str], pooling: PoolingMode | None = None, max_seq_length: int | None = None
) -> SentenceTransformer:
    """Loads any model for evaluation or search, with the embeddings that :func:`~st_simcse.build_model` starts from.

    A checkpoint of the original SimCSE code gets its pooler, and another transformer that was saved without a pooling
    gets ``cls``. Both are logged.

    Args:
        name_or_path: As in :func:`~st_simcse.build_model`.
        pooling: As in :func:`~st_simcse.build_model`.
        max_seq_length: As in :func:`~st_simcse.build_model`.

    Raises:
        ValueError: As in :func:`~st_simcse.build_model`.
        OSError: As in :func:`~st_simcse.build_model`.

    Example:
        >>> load_model("sentence-transformers/all-MiniLM-L6-v2").get_embedding_dimension()
        384
    """
    return load_pooled(name_or_path, pooling, max_seq_length)


def save_transformer(model: SentenceTransformer, folder: str | os.PathLike[str]) -> str:
    """Saves a model for users of transformers without ST, who get the same embeddings from ``AutoModel``.

    If another class must load it, :func:`loading_class` returns its name. An MLP (the Dense module of
    ``build_model(..., dense=True)``) is written to BERT's pooler, as in published SimCSE checkpoints. LoRA's adapters
    are merged in the saved model; the model itself does not change. Its prompts are not saved, so users must put them
    before the texts themselves.

    Args:
        model: A Transformer with CLS or mean pooling, optionally a Dense module with Tanh and a bias, of the same
            width, and optionally Normalize. ``truncate_dim`` becomes part of the expression.
        folder: The folder for the files.

    Returns:
        The expression that computes the embeddings, where ``inputs`` are the tokenized texts and ``outputs`` those of
        the model. An example is ``outputs.pooler_output``. With Normalize it contains
        ``torch.nn.functional.normalize``.

    Raises:
        ValueError: If the model has modules that AutoModel cannot replace, a default prompt, prompts that the pooling
            excludes, a chat template, ``processing_kwargs``, or CLS pooling with a tokenizer that pads on the left.

    Example:
        >>> from st_simcse.demo import tiny_model
        >>> save_transformer(tiny_model(["Two dogs run."], pooling="cls"), "output")
        'outputs.last_hidden_state[:, 0]'
    """
    modules: list[Any] = list(model)
    kinds = [type(module).__name__ for module in modules]
    normalizes = isinstance(modules[-1], Normalize)
    if normalizes:
        modules.pop()
    if len(modules) not in (2, 3) or not (isinstance(modules[0], Transformer) and isinstance(modules[1], Pooling)):
        raise ValueError(f"AutoModel can replace a Transformer and a Pooling only, but this model has {kinds}")
    transformer, pooling, *rest = modules
    _check_tokens(model, transformer, pooling)
    mode = pooling.pooling_mode
    backbone = transformer.model
    if adapters(model):
        backbone = copy.deepcopy(backbone)
        merge_adapters(backbone)
    if rest:
        dense: Any = rest[0]
        pooler = _pooler(backbone)
        if not (is_mlp(dense) and mode == "cls") or pooler is None or pooler.weight.shape != dense.linear.weight.shape:
            raise ValueError(
                "only a Dense module with Tanh, a bias and no residual, of the transformer's width and after CLS "
                "pooling, can become its pooler, and only if the architecture has one. This model has "
                f"{kinds} with {mode!r} pooling."
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
        raise ValueError(f"save_transformer supports CLS and mean pooling, but this model has {mode!r}")
    if normalizes:
        expression = f"torch.nn.functional.normalize({expression}, dim=-1)"
    if model.truncate_dim is not None:
        expression = f"({expression})[:, :{model.truncate_dim}]"
    backbone.save_pretrained(folder)
    remove_outdated(folder, is_adapter=False)
    model.tokenizer.save_pretrained(folder)
    return expression


def _check_tokens(model: SentenceTransformer, transformer: Transformer, pooling: Pooling) -> None:
    """Raises ValueError if AutoModel would be given other tokens than the model, or the pooling reads other tokens."""
    if model.default_prompt_name is not None and (prompt := model.prompts.get(model.default_prompt_name)):
        raise ValueError(
            f"the model puts {prompt!r} before every text (its prompt {model.default_prompt_name!r}), which AutoModel "
            "does not. Set model.default_prompt_name = None, save the model, and put the prompt before the texts."
        )
    if not pooling.include_prompt and any(model.prompts.values()):
        raise ValueError(
            "the pooling excludes the tokens of prompts (include_prompt=False), but AutoModel does not. If the model "
            "will be used without prompts, call model.prompts.clear() and save it again."
        )
    if "message" in transformer.modality_config:
        raise ValueError(
            "the model puts every text into its chat template, but AutoModel and its tokenizer do not. Use the model "
            "with sentence_transformers."
        )
    if transformer.processing_kwargs:
        raise ValueError(
            f"the model calls its tokenizer with processing_kwargs={transformer.processing_kwargs}, which AutoModel's "
            "users would have to pass themselves. Remove them from the model, or use it with sentence_transformers."
        )
    if pooling.pooling_mode == "cls" and model.tokenizer.padding_side == "left":
        raise ValueError(
            "the tokenizer pads on the left, so the first token of a row may be padding and not the CLS token. Set "
            "model.tokenizer.padding_side = 'right' and save the model again."
        )


def loading_class(model: SentenceTransformer) -> str:
    """Returns the name of the transformers class that loads the result of :func:`save_transformer`.

    It is AutoModel, unless AutoModel would load another model. For T5, for example, ST uses only the encoder.

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
