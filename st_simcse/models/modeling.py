"""Models to train: a saved SentenceTransformer, or a transformer with one of SimCSE's poolers made of ST's modules."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import (
    Dense,
    Normalize,
    Pooling,
    Transformer,
    WeightedLayerPooling,
)
from sentence_transformers.util import batch_to_device
from torch import nn
from transformers.utils import ADAPTER_CONFIG_NAME, ADAPTER_SAFE_WEIGHTS_NAME

from st_simcse.models.dropout import set_dropout
from st_simcse.models.hub import hub_error
from st_simcse.models.initialisation import initialise, trained_dimension
from st_simcse.models.layers import keep_layers
from st_simcse.models.lora import adapters, add_lora, check_peft, restore_adapter, train_adapter
from st_simcse.models.model_files import cached_file, full_name, weights_file
from st_simcse.models.original import MLP_NAMES, is_mlp, recognise, trained_dense
from st_simcse.models.pickling import make_picklable
from st_simcse.models.precision import HALF

if TYPE_CHECKING:
    from peft import PeftConfig

__all__ = ["build_model", "check_length", "load_pooled"]

logger = logging.getLogger(__name__)

# Tokenizers without a known maximum length report a larger value.
_UNKNOWN_LENGTH = 10**9

PoolingMode = Literal["cls", "pooler", "mean", "lasttoken", "weightedmean", "first_last_avg", "last2_avg"]


def build_model(
    name_or_path: str | os.PathLike[str],
    pooling: PoolingMode | None = None,
    max_seq_length: int | None = None,
    dense: bool = False,
    device: str | None = None,
    *,
    layers: int | None = None,
    dropout: float | None = None,
    bidirectional: bool = False,
    lora: PeftConfig | None = None,
    supervised: bool | None = None,
    dtype: torch.dtype | str | None = None,
    **options: Any,
) -> SentenceTransformer:
    """Builds a SentenceTransformer to train: one that was saved, or a transformer with one of the paper's poolings.

    A model that was saved as a SentenceTransformer keeps its modules, prompts and length. Code that comes with a model
    runs only with ``trust_remote_code=True``. Weights are read from safetensors files. If there is only a pickle
    (``pytorch_model.bin``), its tensors are read without running code (``weights_only=True``), which is logged.

    If the tokenizer of a decoder has no padding token, its end token is used. If an architecture counts positions from
    the padding (GPT-2), padding moves from the left to the right side, which is logged.

    Args:
        name_or_path: A folder, or a model's name on the Hugging Face Hub.
        pooling: The pooling of the model:

            - None: the pooling that the model was saved with. A checkpoint of the original SimCSE code gets its own
              (:func:`~st_simcse.load_simcse`), and any other bare transformer gets ``cls``, which is logged.
            - ``cls``: the first token of the last layer, before BERT's own pooler.
            - ``pooler``: the first token after BERT's own pooler, the layer (Linear + Tanh) that BERT was pretrained
              with. It becomes a Dense module.
            - ``mean``: the average of the last layer's tokens.
            - ``lasttoken``: the last token of the last layer, for causal decoders.
            - ``weightedmean``: the average of the last layer's tokens with weights 1, 2, 3, ... (SGPT), for causal
              decoders.
            - ``first_last_avg`` and ``last2_avg``: the average of the tokens of the first and last, or the last two
              layers (section 6.3). The first layer is the first transformer layer, as in the authors' current code.
              The paper does not define it, and its numbers come from older code (docs/pooling.md).

            A pooling other than the saved one replaces all modules after the transformer, which is logged.
        max_seq_length: The number of tokens of a text that the model reads, now and when it is saved. It is limited by
            the model's positions. If None, the saved value, or for a bare transformer 128 or its limit if that is
            less. Training may truncate texts further: ``SimCSETrainingArguments(max_length=32)``.
        dense: Whether to append the MLP (Linear + Tanh) as a Dense module that stays at inference, as in the paper's
            supervised models. It is inserted before a final Normalize. For an MLP in training only, pass
            ``projection_head=True`` to the loss instead.
        device: The device of the model. If None, ST chooses it.
        layers: The number of the transformer's lowest layers to keep. This gives a small fast model, for example to
            train with the whole model as its teacher. Keeps all if None.
        dropout: The probability that training drops a value, whatever the architecture calls it
            (:func:`~st_simcse.set_dropout`). The saved model keeps the checkpoint's dropout. If None, training uses it
            too.
        bidirectional: Whether the tokens of a decoder also see the tokens after them. This sets ``is_causal=False`` in
            the configuration, which is saved with the model, but not with an adapter alone; see ``lora``.
        lora: A ``peft.LoraConfig`` (``pip install "st_simcse[lora]"``). Adapters are trained, and the transformer's
            weights stay unchanged. Checkpoints and ``save_pretrained`` write only the adapter. SentenceTransformer
            loads it with the original model but without the settings passed here; pass them to ``build_model`` again.
            :func:`~st_simcse.merge_lora` makes a plain model of both. If None, a saved adapter is trained further.
        supervised: Whether a checkpoint of the original SimCSE code keeps its MLP. If None, its name decides.
        dtype: The precision of the weights, such as ``"bfloat16"``. If None, float32, whatever the saved precision,
            which is logged: bfloat16 and float16 round most steps of a small learning rate to nothing. Mixed precision
            (``bf16=True``) makes training faster with float32 weights. With an adapter, None is the saved precision,
            because the model's weights are frozen. The model is saved in this precision.
        **options: Further options of SentenceTransformer, such as ``config_kwargs={"layer_norm_eps": 1e-6}`` or
            ``revision``.

    Raises:
        ValueError: If an argument is unknown or out of range, or the model does not support it:

            - The pooling is unknown, needs more layers or a trained pooler that the model does not have, needs token
              embeddings of a model without them, or is ``cls`` for a causal decoder.
            - ``dense`` is combined with ``pooling="pooler"``.
            - ``layers`` is out of range, or removes layers that the model's saved pooling averages.
            - The architecture ignores ``bidirectional``.
            - ``lora`` is passed for a model that has an adapter.
            - ``max_seq_length`` leaves no room for text.
            - ``dropout`` is outside [0, 1), or also in ``config_kwargs``.
            - A pickle contains more than tensors.
            - A checkpoint of the original SimCSE code does not reveal its pooler, and neither ``supervised`` nor
              ``pooling`` is passed.
        ImportError: If an adapter is requested or loaded and peft is missing or too old for transformers.
        OSError: If a folder does not exist, or a model on the Hub is neither cached nor reachable.

    Example:
        >>> model = build_model("sentence-transformers/all-MiniLM-L6-v2", pooling="first_last_avg")
        >>> model.encode(["A man plays a guitar.", "Two dogs run."]).shape
        (2, 384)
    """
    twice = [name for name in options.get("config_kwargs") or {} if "drop" in name]
    if dropout is not None and twice:
        raise ValueError(f"dropout={dropout} and {', '.join(twice)} in config_kwargs both set dropout: pass only one")
    if dense and pooling == "pooler":
        raise ValueError("pooling='pooler' already is an MLP and is trained further: omit dense (--dense)")
    if dtype is not None:
        options["model_kwargs"] = (options.get("model_kwargs") or {}) | {"dtype": dtype}
    model = load_pooled(
        name_or_path,
        pooling,
        max_seq_length,
        device,
        layers=layers,
        bidirectional=bidirectional,
        supervised=supervised,
        **options,
    )
    if not _asks_for_precision(options) and lora is None and not adapters(model):
        _set_float32(model, name_or_path)
    if dropout is not None:
        set_dropout(model, dropout)
    if dense:
        width = trained_dimension(model)
        mlp = Dense(width, width, activation_function=nn.Tanh())
        initialise(mlp.linear)
        model.insert(len(model) - isinstance(model[-1], Normalize), mlp.to(model.device, model.dtype))
    if lora is not None:
        add_lora(model, lora)
    elif adapters(model):
        train_adapter(model, cached_file(name_or_path, ADAPTER_SAFE_WEIGHTS_NAME, **options))
    return model


def load_pooled(
    name_or_path: str | os.PathLike[str],
    pooling: PoolingMode | None = None,
    max_seq_length: int | None = None,
    device: str | None = None,
    *,
    layers: int | None = None,
    bidirectional: bool = False,
    supervised: bool | None = None,
    **options: Any,
) -> SentenceTransformer:
    """Loads a model with its pooling for :func:`build_model` and :func:`~st_simcse.models.checkpoints.load_model`.

    Both therefore get the same embeddings. The arguments and errors are those of :func:`build_model`.

    Example:
        >>> load_pooled("sentence-transformers/all-MiniLM-L6-v2").max_seq_length
        256
    """
    if not isinstance(name_or_path, (str, os.PathLike)):
        raise ValueError(
            f"expected the folder of a model or its name on the Hub, got an object of type "
            f"{type(name_or_path).__name__}"
        )
    if pooling is not None and pooling not in get_args(PoolingMode):
        *modes, last = get_args(PoolingMode)
        raise ValueError(f"unknown pooling {pooling!r}: choose {', '.join(modes)} or {last}")
    if pooling in ("first_last_avg", "last2_avg"):
        options["config_kwargs"] = (options.get("config_kwargs") or {}) | {"output_hidden_states": True}
    model = _load(name_or_path, device, **options)
    was_saved = cached_file(name_or_path, "modules.json", **options) is not None
    if supervised is not None and (was_saved or pooling is not None):
        reason = f"pooling={pooling!r} is passed" if pooling else f"{name_or_path} was saved as a SentenceTransformer"
        raise ValueError(f"{reason}, so its pooling is already known: omit supervised")
    if layers is not None:
        if pooling is None and any(isinstance(module, WeightedLayerPooling) for module in model):
            raise ValueError(f"{name_or_path} averages layers that layers={layers} would remove: pass pooling too")
        keep_layers(model, layers)
    pools = any(isinstance(module, Pooling) for module in model)
    if pooling is not None:
        if not (pools and isinstance(model[0], Transformer)):
            raise ValueError(f"pooling needs token embeddings of a transformer, but {name_or_path} has {_kinds(model)}")
        behind = [] if pooling != "pooler" or _has_pooler(model) else [_pooler(model, name_or_path, options)]
        _set_pooling(model, pooling, f"{name_or_path} was saved with" if was_saved else None, behind)
    elif pools and not was_saved:
        _pool_bare(model, name_or_path, supervised, options)
    if bidirectional:
        _look_both_ways(model, name_or_path)
    if _takes_first_token(model) and not _first_token_sees_last(model):
        raise ValueError(
            f"{name_or_path}: the first token does not see the tokens after it, as in causal decoders, so CLS pooling "
            "would embed every text alike. Pass pooling='mean' (--pooling mean), lasttoken or weightedmean, or "
            "bidirectional=True (--bidirectional). For a command without these options, pass the folder written by "
            f"build_model({str(name_or_path)!r}, pooling='mean').save_pretrained(folder)."
        )
    _set_padding(model, name_or_path)
    _set_length(model, max_seq_length, was_saved)
    return model


def _load(name_or_path: str | os.PathLike[str], device: str | None = None, **options: Any) -> SentenceTransformer:
    """Loads ``SentenceTransformer(name_or_path)`` by the rules of :func:`build_model` for weights and code."""
    name = full_name(name_or_path)
    if not options.get("local_files_only"):
        options["local_files_only"] = not _is_reachable(name, options)
    if cached_file(name, ADAPTER_CONFIG_NAME, **options) is not None:
        check_peft()
    try:
        model = SentenceTransformer(name, device=device, **options)
    except UnpicklingError as error:
        raise ValueError(
            f"{name}: its pickled weights contain more than tensors, which could run code. Nothing of them was read or "
            "run. Ask the authors of the model for safetensors files."
        ) from error
    make_picklable(model)
    adapter = cached_file(name, ADAPTER_SAFE_WEIGHTS_NAME, **options) if adapters(model) else None
    if adapter is not None:
        restore_adapter(model, adapter)
    modules = cached_file(name, "modules.json", **options)
    for folder in [module["path"] for module in json.loads(modules.read_bytes())] if modules else [""]:
        weights = weights_file(name, folder, **options)
        if weights and weights.name.startswith("pytorch_model.bin"):
            logger.warning(
                "%s has no safetensors: its pickled weights were read as plain tensors, without running code", name
            )
    return model


def _pool_bare(
    model: SentenceTransformer, name: str | os.PathLike[str], supervised: bool | None, options: dict[str, Any]
) -> None:
    """Gives a transformer without a saved pooling the original code's pooler if it comes from it, else CLS."""
    original = recognise(name, **options)
    evidence = "supervised is passed"
    if original is not None and supervised is None:
        evidence, supervised = original.evidence, original.supervised
        if original.has_lost_pooler:
            raise ValueError(
                f"{name} is a checkpoint of princeton-nlp/SimCSE ({evidence}) without the MLP, so it was trained with "
                "another --pooler_type than cls, which no file records. Pass pooling (--pooling): mean for avg, cls "
                "for cls_before_pooler, first_last_avg for avg_first_last, last2_avg for avg_top2. "
                "build_model(folder, pooling=...).save_pretrained(...) saves the choice."
            )
        if supervised is None:
            raise ValueError(
                f"{name} is a checkpoint of princeton-nlp/SimCSE ({evidence}), but nothing shows whether it is "
                "supervised and needs its MLP, or unsupervised and does not. Pass supervised=True or supervised=False "
                "to load_simcse, or, on the command line, name the folder sup-simcse-... or unsup-simcse-..."
            )
    _set_pooling(model, "cls", None)
    if supervised:
        mlp = trained_dense(name, MLP_NAMES, **options)
        if mlp is None:
            raise ValueError(
                f"{weights_file(name, **options) or name} has no MLP (none of {', '.join(MLP_NAMES)}). If it was "
                "trained without supervision, pass supervised=False."
            )
        model.append(mlp.to(model.device, model.dtype))
    if supervised is None:
        logger.warning("%s was saved without a pooling and gets 'cls', the first token of the last layer", name)
    else:
        pooler = "'cls' and its trained MLP, as a supervised" if supervised else "'cls', as an unsupervised"
        logger.warning("%s gets the pooling %s checkpoint of princeton-nlp/SimCSE (%s)", name, pooler, evidence)


def _asks_for_precision(options: dict[str, Any]) -> bool:
    return bool({"dtype", "torch_dtype"} & (options.get("model_kwargs") or {}).keys())


def _set_float32(model: SentenceTransformer, name: str | os.PathLike[str]) -> None:
    saved = model.dtype
    if saved in HALF:
        model.float()
        precision = str(saved).removeprefix("torch.")
        logger.warning(
            "%s was saved in %s, which rounds small training steps to nothing. Its weights are now float32 and will be "
            "saved so. Call model.to(torch.%s) before saving for smaller files. dtype=%r (--dtype %s) trains in it",
            *(name, precision, precision, precision, precision),
        )


def _has_pooler(model: SentenceTransformer) -> bool:
    """Returns whether the model was saved with CLS and one square MLP, like a trained pooler."""
    kinds = [type(module) for module in model]
    if kinds[1:] not in ([Pooling, Dense], [Pooling, Dense, Normalize]):
        return False
    pooling, dense = cast(Pooling, model[1]), cast(Dense, model[2])
    width = pooling.get_embedding_dimension()
    is_square = (dense.in_features, dense.out_features) == (width, width)
    return pooling.pooling_mode == "cls" and is_mlp(dense) and is_square


def _pooler(model: SentenceTransformer, name: str | os.PathLike[str], options: dict[str, Any]) -> Dense:
    """Returns BERT's own pooler with its pretrained weights."""
    backbone: Any = cast(Transformer, model[0]).model
    layer = getattr(backbone, "pooler", None)
    is_linear, is_tanh = (
        isinstance(getattr(layer, part, None), kind) for part, kind in (("dense", nn.Linear), ("activation", nn.Tanh))
    )
    modules = cached_file(name, "modules.json", **options)
    folder = json.loads(modules.read_bytes())[0]["path"] if modules else ""
    places = ("pooler.dense", f"{backbone.base_model_prefix}.pooler.dense")
    # A pooler that is in none of the files was initialized randomly when the model was loaded.
    dense = trained_dense(name, places, folder, **options) if is_linear and is_tanh else None
    if dense is None:
        raise ValueError(
            f"{name} has no trained pooler, the layer after the first token that BERT was pretrained with. Pass "
            "pooling='cls' (--pooling cls), and dense=True (--dense) for a new layer after it."
        )
    return dense


def _set_pooling(
    model: SentenceTransformer, pooling: PoolingMode, of_saved: str | None, behind: Sequence[nn.Module] = ()
) -> None:
    transformer = cast(Transformer, model[0])
    width = transformer.get_embedding_dimension()
    average_layers = pooling in ("first_last_avg", "last2_avg")
    first_stage: Any = "mean" if average_layers else "cls" if pooling == "pooler" else pooling
    modules: list[nn.Module] = [Pooling(width, pooling_mode=first_stage), *behind]
    if average_layers:
        modules.insert(0, _layer_average(pooling, width, transformer.model.config.num_hidden_layers))
    saved = list(model)[1:]
    if [_settings(module) for module in modules] == [_settings(module) for module in saved[: len(modules)]]:
        return
    if of_saved:
        logger.warning("pooling %r replaces %s, which %s", pooling, _kinds(saved), of_saved)
    del model[1:]
    for module in modules:
        model.append(module.to(model.device, model.dtype))


def _takes_first_token(model: SentenceTransformer) -> bool:
    return isinstance(model[0], Transformer) and len(model) > 1 and "cls" in getattr(model[1], "pooling_mode", "")


def _first_token_sees_last(model: SentenceTransformer) -> bool:
    """Tests on the model whether the first token changes with the last token of a text."""
    text = batch_to_device(model.preprocess(["one two three"]), model.device)
    other = text | {"input_ids": text["input_ids"].clone()}
    config: Any = cast(Transformer, model[0]).config
    # CANINE reads characters and has no vocabulary, but its tokenizer knows how many there are.
    words = getattr(config.get_text_config(), "vocab_size", None) or len(model.tokenizer)
    other["input_ids"][:, -1] = (other["input_ids"][:, -1] + 1) % words
    with torch.no_grad():
        states = [model[0](dict(features))["token_embeddings"][:, 0] for features in (text, other)]
    return not torch.equal(*states)


def _look_both_ways(model: SentenceTransformer, name: str | os.PathLike[str]) -> None:
    if not isinstance(model[0], Transformer):
        raise ValueError(f"bidirectional needs a transformer, but this model has {_kinds(model)}: omit it")
    if _first_token_sees_last(model):
        return
    model[0].model.config.is_causal = False
    if not _first_token_sees_last(model):
        raise ValueError(
            f"{name}: {type(model[0].model).__name__} stays causal even with is_causal=False in its configuration, "
            "which is all that bidirectional (--bidirectional) sets. Omit it."
        )


def _set_padding(model: SentenceTransformer, name: str | os.PathLike[str]) -> None:
    """Adds a missing padding token, and pads on the side where padding changes no embedding. Both are saved."""
    tokenizer = model.tokenizer
    if not isinstance(model[0], Transformer) or tokenizer is None:
        return
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # the attention mask hides it
    if tokenizer.padding_side == "left" and tokenizer.pad_token is not None and not _survives_left_padding(model):
        logger.warning("%s counts positions from the padding, so texts are now padded on the right", name)
        tokenizer.padding_side = "right"


def _survives_left_padding(model: SentenceTransformer) -> bool:
    text = "one two three"
    with torch.no_grad():
        alone, padded = (
            model(batch_to_device(model.preprocess(texts), model.device))["sentence_embedding"][0].float()
            for texts in ([text], [text, f"{text} {text}"])
        )
    rounding = torch.finfo(cast(torch.dtype, model.dtype)).eps ** 0.5
    return bool((alone - padded).norm() <= rounding * alone.norm())


def _settings(module: nn.Module) -> tuple[Any, ...]:
    """Returns the properties that must match if two poolings are equal."""
    weights = [weight.tolist() for weight in module.parameters()]
    return type(module), getattr(module, "pooling_mode", None), getattr(module, "layer_start", None), weights


def _kinds(modules: Iterable[nn.Module]) -> str:
    modes = ((type(module).__name__, getattr(module, "pooling_mode", None)) for module in modules)
    return ", ".join(f"{kind} ({mode})" if mode else kind for kind, mode in modes)


def check_length(name: str, length: int, model: SentenceTransformer) -> None:
    """Checks that a maximum number of tokens leaves room for text besides the tokens that the tokenizer adds.

    Args:
        name: The name of the argument, for the message.
        length: The maximum number of tokens.
        model: The model whose tokenizer is used.

    Raises:
        ValueError: If there is no room.

    Example:
        >>> from st_simcse.demo import tiny_model
        >>> check_length("max_length", 2, tiny_model(["Two dogs run."]))
        Traceback (most recent call last):
        ...
        ValueError: max_length=2 leaves no room for text, because the tokenizer adds 2 tokens of its own: pass at ...
    """
    count = getattr(model.tokenizer, "num_special_tokens_to_add", None)
    special = count(False) if count else 0
    if length <= special:
        raise ValueError(
            f"{name}={length} leaves no room for text, because the tokenizer adds {special} tokens of its own: pass at "
            f"least {special + 1}"
        )


def _set_length(model: SentenceTransformer, asked: int | None, was_saved: bool) -> None:
    if not isinstance(model[0], Transformer):
        if asked is not None:
            raise ValueError(f"max_seq_length needs a transformer, but this model has {_kinds(model)}: omit it")
        return
    if asked is not None:
        check_length("max_seq_length", asked, model)
    saved = model.max_seq_length
    longest = _positions(model[0].model, of_config=asked is not None)
    length = asked or (saved if was_saved else min(128, saved or 128))
    if length is None:
        return
    if length > longest and (asked or saved is None or saved < _UNKNOWN_LENGTH):
        logger.warning("max_seq_length is reduced to %d, the longest texts that the transformer reads", longest)
    model.max_seq_length = min(length, longest)


def _positions(transformer: nn.Module, of_config: bool) -> int:
    """Returns the number of positions of a transformer, from its table or, if requested, its configuration.

    A transformer without a table, with relative or rotary positions, may read more tokens than that.
    """
    for module in transformer.modules():
        table = getattr(module, "position_embeddings", None)
        if isinstance(table, nn.Embedding):
            # RoBERTa and its relatives start to count positions after the padding index.
            return table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)
    of_gpt2 = getattr(transformer, "wpe", None)
    if isinstance(of_gpt2, nn.Embedding):
        return of_gpt2.num_embeddings
    limit = getattr(transformer.config, "max_position_embeddings", None) if of_config else None
    return limit or sys.maxsize


def _layer_average(pooling: PoolingMode, width: int, layers: int) -> WeightedLayerPooling:
    if layers < 2:
        raise ValueError(f"pooling {pooling!r} needs at least two layers, but the transformer has {layers}")
    # Hidden state 0 is the output of the embedding layer.
    start = 1 if pooling == "first_last_avg" else layers - 1
    weights = [1.0] + [0.0] * (layers - start - 1) + [1.0]
    return WeightedLayerPooling(
        width, num_hidden_layers=layers, layer_start=start, layer_weights=nn.Parameter(torch.tensor(weights), False)
    )


def _is_reachable(name: str, options: dict[str, Any]) -> bool:
    """Returns whether the name is a folder or a repository that the Hub has, and False if it is only in the cache.

    Raises:
        OSError: If the model is not a folder, on the Hub or in the cache.
    """
    if Path(name).exists():
        return True
    try:
        unreachable = hub_error(name, token=options.get("token"))
    except OSError:  # the Hub refuses, such as after too many requests, or has removed the model since
        if not _is_cached(name, options):
            raise
        return False
    if unreachable is None:
        return True
    if not _is_cached(name, options):
        raise OSError(
            f"{name} is not a local folder, is not in the local cache, and the Hugging Face Hub cannot be reached "
            f"({unreachable}). Check the name and the network, or pass the path of a downloaded model."
        ) from unreachable
    return False


def _is_cached(name: str, options: dict[str, Any]) -> bool:
    return any(cached_file(name, file, **options) for file in ("config.json", "modules.json"))
