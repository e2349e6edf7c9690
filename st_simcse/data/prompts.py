"""Prompts in training: checks that they fit the data and the model, and the model's default prompt."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Transformer

from st_simcse.models.unwrapping import unwrapped

__all__ = ["check_prompts", "set_prompt"]

logger = logging.getLogger(__name__)


def check_prompts(prompts: Any, model: SentenceTransformer, max_length: int | None, names: Collection[str]) -> None:
    """Checks the prompts of training. Logs a warning if encoding with the trained model would not use them.

    Args:
        prompts: The prompts in the format of ST's training arguments: one text, or texts by column, by dataset, or by
            both.
        model: The model to train.
        max_length: The maximum number of tokens in training, including the prompt. If None, the model's own maximum.
        names: The names of the columns and datasets of the training data. Empty if they are not known.

    Raises:
        ValueError: If there is no such column or dataset, or if a prompt is not a text or leaves no room for the text.

    Example:
        >>> from st_simcse.demo import tiny_model
        >>> check_prompts({"query": "query: "}, tiny_model(["query: Two dogs run."]), None, ["anchor", "positive"])
        Traceback (most recent call last):
        ...
        ValueError: there is no column or dataset query for a prompt: the data has anchor, positive
    """
    if names and (unknown := sorted(set(_names(prompts)) - set(names))):
        raise ValueError(
            f"there is no column or dataset {', '.join(unknown)} for a prompt: the data has {', '.join(names)}"
        )
    used = dict.fromkeys(_texts(prompts))
    if others := [prompt for prompt in used if not isinstance(prompt, str)]:
        raise ValueError(f"prompts (--prompts) must be texts, or texts by column or dataset, got {others[0]!r}")
    for prompt in used if isinstance(unwrapped(model)[0], Transformer) else ():
        limit = max_length or model.max_seq_length
        options: dict[str, Any] = {} if max_length is None else {"max_length": max_length}
        features = model.preprocess([prompt], **options)
        if limit and "attention_mask" in features and features["attention_mask"].shape[1] >= limit:
            raise ValueError(
                f"the prompt {prompt!r} takes up all {limit} tokens that training reads: raise max_length "
                "(--max_seq_length), which includes the prompt"
            )
    default = model.prompts.get(model.default_prompt_name or "")
    if default and default not in used:
        logger.warning(
            "The model's default prompt %r is used by encode and in evaluation, but not in training: pass prompts "
            "(--prompts)",
            default,
        )
    elif unknown := [prompt for prompt in used if prompt not in model.prompts.values()]:
        logger.warning(
            "The model does not store the prompt %s of the training, so its users have to pass it with "
            "encode(prompt=...). To store it, use build_model(prompts=..., default_prompt_name=...) (--model_prompts, "
            "--default_prompt_name)",
            ", ".join(map(repr, unknown)),
        )


def set_prompt(model: SentenceTransformer, prompt: str | None, name: str | None) -> None:
    """Sets the model's default prompt.

    Args:
        model: The model.
        prompt: The new default prompt.
        name: The name of one of the model's prompts instead. If both are None, nothing changes.

    Raises:
        ValueError: If both are passed, or if the model has no prompt of this name.

    Example:
        >>> from st_simcse.demo import tiny_model
        >>> model = tiny_model(["query: Two dogs run."])
        >>> set_prompt(model, "query: ", None)
        >>> bool((model.encode("Two dogs") == model.encode("Two dogs", prompt="query: ")).all())
        True
    """
    if prompt is not None and name is not None:
        raise ValueError("pass either a prompt or the name of one, not both")
    if prompt is not None:
        name = "prompt"
        model.prompts[name] = prompt
    if name is not None and name not in model.prompts:
        raise ValueError(f"the model has no prompt {name!r}: choose one of {', '.join(model.prompts)}")
    model.default_prompt_name = name or model.default_prompt_name


def _names(prompts: Any) -> Iterator[str]:
    if isinstance(prompts, Mapping):
        for name, inner in prompts.items():
            yield name
            yield from _names(inner)


def _texts(prompts: Any) -> Iterator[str]:
    if isinstance(prompts, Mapping):
        for inner in prompts.values():
            yield from _texts(inner)
    elif prompts:
        yield prompts
