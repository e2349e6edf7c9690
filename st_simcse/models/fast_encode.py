"""``encode`` with less work: equal texts once, batches without padding, and bf16 where the hardware is faster at it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any, get_args

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import batch_to_device, truncate_embeddings
from sentence_transformers.util.decorators import deprecated_kwargs
from torch import Tensor
from tqdm.auto import tqdm

from st_simcse.models.precision import Precision, computing_in

__all__ = ["FastModel", "fast_encode"]

Features = dict[str, Any]

# Texts that are tokenized at a time, while those before are embedded.
WINDOW = 2048
# Tokens of a batch on a CPU, at most: the activations of more leave its cache.
CPU_TOKENS = 2048
# Values of options of encode that ask for nothing special.
USUAL = {"output_value": "sentence_embedding", "precision": "float32", "pool": None, "chunk_size": None}


def fast_encode(model: SentenceTransformer, precision: Precision = "auto") -> SentenceTransformer:
    """The same model, with the same modules and settings, whose ``encode`` is faster.

    Equal texts are embedded once. The batches are filled with texts of as many tokens, where
    ``SentenceTransformer.encode`` sorts by characters. A batch takes no more tokens than ``batch_size`` of the longest
    texts, and no more than 2,048 on a CPU. The embeddings are returned in float32, in the order of the texts.

    ``encode`` works as before where it is asked for something else: token embeddings, quantized embeddings, several
    processes, another device; so do models whose inputs are no rows of tokens, such as static embeddings.

    Args:
        model: the model. One whose class has an ``encode`` of its own is returned as it is, and one that this function
            returned keeps its precision unless another is asked for.
        precision: ``auto`` computes in bf16 by autocast where the hardware is faster at it, and as the weights are
            elsewhere; ``bfloat16`` and ``float16`` always compute by autocast, ``float32`` never.

    Raises:
        ValueError: for another precision.

    Example:
        >>> from st_simcse.demo import tiny_model
        >>> model = tiny_model(["Two dogs run."])
        >>> fast_encode(model).encode(["Two dogs run.", "Two dogs.", "Two dogs run."]).shape
        (3, 64)
    """
    if precision not in get_args(Precision):
        raise ValueError(f"unknown precision {precision!r}: choose {', '.join(get_args(Precision))}")
    if isinstance(model, FastModel):
        return model if precision == "auto" else FastModel(model.plain, precision)
    return FastModel(model, precision) if type(model).encode is SentenceTransformer.encode else model


@dataclass
class _Asked:
    """Options of ``SentenceTransformer.encode`` that ask for an embedding a text, computed in this process."""

    prompt_name: str | None = None
    prompt: str | None = None
    batch_size: int = 32
    show_progress_bar: bool | None = None
    convert_to_numpy: bool = True
    convert_to_tensor: bool = False
    normalize_embeddings: bool = False
    truncate_dim: int | None = None
    task: str | None = None
    device: Any = None

    @classmethod
    def by(cls, model: SentenceTransformer, options: dict[str, Any]) -> _Asked | None:
        """None where they ask for something else, or for what only ``SentenceTransformer.encode`` can refuse."""
        options = {name: value for name, value in options.items() if name not in USUAL or value != USUAL[name]}
        if options.keys() - {field.name for field in fields(cls)}:
            return None
        asked = cls(**options)
        if asked.prompt is None:
            name = asked.prompt_name or model.default_prompt_name
            if asked.prompt_name not in (None, *model.prompts):
                return None
            asked.prompt = None if name is None else model.prompts.get(name)
        elif asked.prompt_name is not None:
            return None
        return None if asked.batch_size < 1 or isinstance(asked.device, list) else asked


class FastModel(SentenceTransformer):
    """Another object with the modules and settings of ``plain``."""

    plain: SentenceTransformer
    compute: Precision

    def __init__(self, plain: SentenceTransformer, compute: Precision) -> None:
        # Not by nn.Module's own way, in which ``plain`` would become one of the modules.
        self.__dict__.update(plain.__dict__, plain=plain, compute=compute)

    @deprecated_kwargs(sentences="inputs")
    def encode(self, inputs: Any, *args: Any, **options: Any) -> Any:
        """As ``SentenceTransformer.encode``, which documents the arguments."""
        texts = [inputs] if isinstance(inputs, str) else list(inputs)
        asked = None if args else _Asked.by(self.plain, options)
        with computing_in(self.compute, self.plain.device):
            if asked is None or not texts or not all(isinstance(text, str) for text in texts):
                return self.plain.encode(inputs, *args, **options)
            found = self._embed(texts, asked)
        if found is None:
            return self.plain.encode(inputs, **options)
        if not asked.convert_to_tensor:
            found = found.cpu()
        shaped: Any = found
        if not asked.convert_to_tensor:
            shaped = found.numpy() if asked.convert_to_numpy else list(found)
        return shaped[0] if isinstance(inputs, str) else shaped

    @torch.inference_mode()
    def _embed(self, texts: list[str], asked: _Asked) -> Tensor | None:
        """Float32 (N, d) on the model's device; None for inputs that are no rows of tokens."""
        self.plain.eval()
        if asked.device is not None:
            self.plain.to(asked.device)
        options = {} if asked.task is None else {"task": asked.task}
        different = sorted(dict.fromkeys(texts), key=len, reverse=True)
        parts: list[Tensor] = []
        order: list[str] = []
        budget = 0
        with tqdm(total=len(different), unit=" texts", disable=not _is_shown(asked.show_progress_bar)) as bar:
            for window, features in self._windows(different, prompt=asked.prompt, **options):
                mask = features.get("attention_mask")
                if not isinstance(mask, Tensor) or mask.shape[0] != len(window):
                    return None
                budget = budget or self._tokens(asked.batch_size * mask.shape[1])
                for rows in _batches(mask, budget):
                    batch = batch_to_device(_take(features, rows), self.plain.device)
                    parts.append(self.plain(batch, **options)["sentence_embedding"].float())
                    order += [window[row] for row in rows]
                    bar.update(len(rows))
        found = torch.cat(parts)
        width = self.truncate_dim if asked.truncate_dim is None else asked.truncate_dim
        if width is not None:
            found = truncate_embeddings(found, width)
        if asked.normalize_embeddings:
            found = torch.nn.functional.normalize(found, p=2, dim=1)
        row_of = {text: row for row, text in enumerate(order)}
        return found[[row_of[text] for text in texts]]

    def _tokens(self, asked: int) -> int:
        return min(asked, CPU_TOKENS) if self.plain.device.type == "cpu" else asked

    def _windows(self, texts: list[str], **options: Any) -> Iterator[tuple[list[str], Features]]:
        """Texts and their tokens; the next ones are tokenized while the caller embeds these."""
        windows = [texts[start : start + WINDOW] for start in range(0, len(texts), WINDOW)]
        with ThreadPoolExecutor(1) as thread:
            following = thread.submit(self.plain.preprocess, windows[0], **options)
            for window, after in zip(windows, [*windows[1:], None], strict=True):
                features = following.result()
                if after:
                    following = thread.submit(self.plain.preprocess, after, **options)
                yield window, features


def _batches(mask: Tensor, budget: int) -> Iterator[list[int]]:
    """Rows of as many tokens, longest first, that have no more than ``budget`` with their padding."""
    lengths = mask.sum(1).tolist()
    rows = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    start = 0
    while start < len(rows):
        count = max(1, budget // max(1, lengths[rows[start]]))
        yield rows[start : start + count]
        start += count


def _take(features: Features, rows: list[int]) -> Features:
    """These rows, without the columns in which all of them are padded."""
    mask = features["attention_mask"][rows]
    columns = mask.any(0).nonzero()[:, 0]
    if not len(columns):  # texts without a token are for the model to refuse
        columns = torch.zeros(1, dtype=torch.long)
    shape = features["attention_mask"].shape
    return {
        name: value[rows][:, columns] if isinstance(value, Tensor) and value.shape[:2] == shape else value
        for name, value in features.items()
    }


def _is_shown(show_progress_bar: bool | None) -> bool:
    """As ``SentenceTransformer.encode`` decides it."""
    if show_progress_bar is None:
        return logging.getLogger(SentenceTransformer.__module__).getEffectiveLevel() in (logging.INFO, logging.DEBUG)
    return show_progress_bar
