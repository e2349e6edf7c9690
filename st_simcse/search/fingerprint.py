"""Hashes of models and texts, to check whether stored embeddings are still those that a model would compute."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Module
from transformers import PreTrainedModel

from st_simcse.models.lora import adapter_settings

__all__ = ["DIGESTS", "fingerprint", "settings", "text_digest"]

# The settings that are hashes, so their values mean nothing to a reader.
DIGESTS = ("tokenizer",)


def fingerprint(model: SentenceTransformer) -> str:
    """Returns a hexadecimal hash of everything that a model's embeddings depend on.

    The hash covers the weights, the modules and their settings, the adapters, the tokenizer and the prompts. It does
    not depend on the folder or the name of the model.

    Example:
        >>> from st_simcse.demo import tiny_model
        >>> model = tiny_model(["Two dogs run."])
        >>> before = fingerprint(model)
        >>> model.max_seq_length = 2
        >>> fingerprint(model) == before
        False
    """
    return _sha256(_parts(model))


def settings(model: SentenceTransformer) -> dict[str, Any]:
    """Returns the parts of a model's fingerprint that are short enough for a message, by name.

    Example:
        >>> from st_simcse.demo import tiny_model
        >>> settings(tiny_model(["Two dogs run."]))["modules"]
        ['Transformer', 'Pooling (mean)']
    """
    modes = [getattr(module, "pooling_mode", None) for module in model]
    kinds = [type(module).__name__ for module in model]
    return {
        "prompts": model.prompts,
        "default_prompt_name": model.default_prompt_name,
        "truncate_dim": model.truncate_dim,
        "max_seq_length": model.max_seq_length,
        "dtype": str(model.dtype).removeprefix("torch."),
        "modules": [f"{kind} ({mode})" if mode else kind for kind, mode in zip(kinds, modes, strict=True)],
        "tokenizer": _sha256([_tokenizer_state(model.tokenizer)]),
    }


def text_digest(texts: Iterable[str]) -> str:
    """Returns a hexadecimal hash of texts, which depends on their order.

    Example:
        >>> text_digest(["two dogs"]) == text_digest(["two", "dogs"])
        False
    """
    return _sha256(text.encode("utf-8", "surrogatepass") for text in texts)


def _sha256(parts: Iterable[bytes | memoryview]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def _parts(model: SentenceTransformer) -> Iterator[bytes | memoryview]:
    yield _json([model.prompts, model.default_prompt_name, model.truncate_dim, model.max_seq_length])
    first = _tokenizer_state(model.tokenizer)
    yield first
    for name, module in model.named_modules():
        if isinstance(module, Module):
            yield _json([name, type(module).__name__, module.get_config_dict()])
            if (tokenizer := getattr(module, "tokenizer", None)) is not None:
                length = getattr(module, "max_seq_length", None)
                state = first if tokenizer is model.tokenizer else _tokenizer_state(tokenizer)
                # The model's tokenizer is that of a Router's first route. Other routes may have a different one.
                if (state, length) != (first, model.max_seq_length):
                    yield _json([name, length])
                    yield state
        elif isinstance(module, PreTrainedModel):
            config = module.config.to_dict() | {"_name_or_path": None, "transformers_version": None}
            yield _json([name, type(module).__name__, config])
    if adapted := adapter_settings(model):
        yield _json(adapted)
    for name, tensor in model.state_dict().items():
        yield _json([name, str(tensor.dtype), tensor.shape])
        yield memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def _tokenizer_state(tokenizer: Any) -> bytes:
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if hasattr(backend, "to_str"):
        state = json.loads(backend.to_str())
        if backend is not tokenizer:
            # Transformers sets both at every call. A StaticEmbedding truncates according to its tokenizer.
            state |= {"truncation": None, "padding": None}
    else:
        state = tokenizer.get_vocab()
    sides = [getattr(tokenizer, f"{name}_side", "right") for name in ("truncation", "padding")]
    # Default sides are left out as in earlier versions, so that most indexes keep their fingerprints.
    return _json(state) if sides == ["right", "right"] else _json([state, sides])


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, default=str).encode()
