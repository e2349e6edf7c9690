"""Prompts in training: which there are, whether they fit the data and the model, and whether the model knows them."""

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
    """Whether training with these prompts does what their user means; says so where encoding would do something else.

    Args:
        prompts: as ST's training arguments take them: one text, or texts by column, by dataset, or by both.
        model: the model to train.
        max_length: tokens of a text that training sees, the prompt's among them; None is what the model reads.
        names: the columns and the datasets of the training data; empty if nobody knows them.

    Raises:
        ValueError: for a prompt of a column or dataset that is not there, and one that leaves nothing of a text.

    Example:
        >>> from st_simcse.demo import tiny_model
        >>> check_prompts({"query": "query: "}, tiny_model(["query: Two dogs run."]), None, ["anchor", "positive"])
        Traceback (most recent call last):
        ...
        ValueError: prompts are by column or dataset, and there is no query: the data has anchor, positive
    """
    if names and (unknown := sorted(set(_names(prompts)) - set(names))):
        raise ValueError(
            f"prompts are by column or dataset, and there is no {', '.join(unknown)}: the data has {', '.join(names)}"
        )
    used = dict.fromkeys(_texts(prompts))
    for prompt in used if isinstance(unwrapped(model)[0], Transformer) else ():
        limit = max_length or model.max_seq_length
        options: dict[str, Any] = {} if max_length is None else {"max_length": max_length}
        features = model.preprocess([prompt], **options)
        if limit and "attention_mask" in features and features["attention_mask"].shape[1] >= limit:
            raise ValueError(
                f"the prompt {prompt!r} takes all of the {limit} tokens of a text that training sees: raise max_length "
                "(--max_seq_length), which counts the prompt"
            )
    default = model.prompts.get(model.default_prompt_name or "")
    if default and default not in used:
        logger.warning(
            "The model's default prompt %r stands before texts in encode and in evaluation, but not in training: pass "
            "prompts (--prompts)",
            default,
        )
    elif unknown := [prompt for prompt in used if prompt not in model.prompts.values()]:
        logger.warning(
            "The model does not know the prompt %s of the training: its users have to pass it, encode(prompt=...), "
            "unless the model gets it, build_model(prompts=..., default_prompt_name=...) (--model_prompts, "
            "--default_prompt_name)",
            ", ".join(map(repr, unknown)),
        )


def set_prompt(model: SentenceTransformer, prompt: str | None, name: str | None) -> None:
    """Let the model put a prompt, or its own of that name, before every text where none is asked for.

    Raises:
        ValueError: for both, and for a name that the model does not have.

    Example:
        >>> from st_simcse.demo import tiny_model
        >>> model = tiny_model(["query: Two dogs run."])
        >>> set_prompt(model, "query: ", None)
        >>> bool((model.encode("Two dogs") == model.encode("Two dogs", prompt="query: ")).all())
        True
    """
    if prompt is not None and name is not None:
        raise ValueError("pass a prompt or the name of one, not both")
    if prompt is not None:
        name = "prompt"
        model.prompts[name] = prompt
    if name is not None and name not in model.prompts:
        raise ValueError(f"the model has no prompt {name!r}, it has {', '.join(model.prompts)}")
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
