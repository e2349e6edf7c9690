"""A SentenceTransformer with one of SimCSE's poolers, made of ST's own modules so that plain ST loads it again."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import try_to_load_from_cache
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Transformer, WeightedLayerPooling
from torch import nn, tensor

from st_simcse.hub import hub_error

__all__ = ["build_model"]

logger = logging.getLogger(__name__)

PoolingMode = Literal["cls", "mean", "first_last_avg", "last2_avg"]


def build_model(
    name_or_path: str,
    pooling: PoolingMode = "cls",
    max_seq_length: int = 32,
    dense: bool = False,
    device: str | None = None,
    **transformer_kwargs: Any,
) -> SentenceTransformer:
    """A SentenceTransformer of a pretrained transformer and one of the paper's poolings (section 6.3).

    Weights are read from safetensors files only, and code that comes with a model is not run unless
    ``trust_remote_code=True`` is passed.

    Args:
        name_or_path: a folder, or a model's name on the Hugging Face hub.
        pooling: ``cls`` the last layer's first token, before BERT's own pooler; ``mean`` the average of the last
            layer's tokens; ``first_last_avg`` and ``last2_avg`` the tokens' average over the first and the last, or
            the last two layers.
        max_seq_length: longer texts are cut off after so many tokens; 32 is the paper's. At most what the
            model reads.
        dense: append the MLP (Linear + Tanh) as a Dense module that stays at inference, as in the paper's supervised
            models. For an MLP in training only leave it out and pass ``projection_head=True`` to the loss.
        device: where the model is put; ST chooses when left out.
        **transformer_kwargs: for ST's Transformer module, such as ``config_kwargs={"hidden_dropout_prob": 0.2}``.

    Raises:
        ValueError: for an unknown pooling, or a transformer too shallow for it.
        OSError: for a folder that does not exist, and a hub model neither cached nor reachable.

    Example:
        >>> model = build_model(getfixture("tiny_bert"), pooling="first_last_avg")
        >>> model.encode(["A man plays a guitar.", "Two dogs run."]).shape
        (2, 32)
    """
    if pooling not in ("cls", "mean", "first_last_avg", "last2_avg"):
        raise ValueError(f"unknown pooling {pooling!r}: choose cls, mean, first_last_avg or last2_avg")
    name_or_path = str(name_or_path)
    average_layers = pooling in ("first_last_avg", "last2_avg")
    if average_layers:
        config = transformer_kwargs.pop("config_kwargs", {})
        transformer_kwargs["config_kwargs"] = config | {"output_hidden_states": True}
    # Pickled weights could run code.
    transformer_kwargs["model_kwargs"] = {"use_safetensors": True} | transformer_kwargs.get("model_kwargs", {})
    _use_cache_when_offline(name_or_path, transformer_kwargs)
    transformer = Transformer(name_or_path, **transformer_kwargs)
    longest = transformer.max_seq_length
    if longest is not None and max_seq_length > longest:
        logger.warning("max_seq_length is %d: %s reads no longer texts", longest, name_or_path)
    else:
        transformer.max_seq_length = max_seq_length
    width = transformer.get_embedding_dimension()
    modules: list[nn.Module] = [transformer]
    if average_layers:
        modules.append(_layer_average(pooling, width, transformer.model.config.num_hidden_layers))
    modules.append(Pooling(width, pooling_mode="mean" if average_layers else pooling))
    if dense:
        modules.append(Dense(width, width, activation_function=nn.Tanh()))
    return SentenceTransformer(modules=modules, device=device)


def _layer_average(pooling: PoolingMode, width: int, layers: int) -> WeightedLayerPooling:
    if layers < 2:
        raise ValueError(f"pooling {pooling!r} needs at least two layers, the transformer has {layers}")
    # Hidden state 0 is the embedding layer; the paper's first layer is hidden state 1.
    start = 1 if pooling == "first_last_avg" else layers - 1
    weights = [1.0] + [0.0] * (layers - start - 1) + [1.0]
    return WeightedLayerPooling(
        width, num_hidden_layers=layers, layer_start=start, layer_weights=nn.Parameter(tensor(weights), False)
    )


def _use_cache_when_offline(name_or_path: str, transformer_kwargs: dict[str, Any]) -> None:
    """Ask the hub once, with a time limit: the loading code would retry every file of the model for minutes."""
    if Path(name_or_path).exists():
        return
    unreachable = hub_error(name_or_path, token=transformer_kwargs.get("token"))
    if unreachable is None:
        return
    if not isinstance(try_to_load_from_cache(name_or_path, "config.json"), str):
        raise OSError(
            f"{name_or_path} is no folder here, is not in the local cache, and the Hugging Face hub cannot be reached "
            f"({unreachable}): check the name and the network, or pass the path of a downloaded model"
        ) from unreachable
    transformer_kwargs["local_files_only"] = True
