"""A faster ``encode``: it embeds equal texts once, forms batches with little padding, and uses bf16 if it is faster."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any, get_args

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import batch_to_device, get_world_size, truncate_embeddings
from sentence_transformers.util.decorators import deprecated_kwargs
from torch import Tensor
from tqdm.auto import tqdm

from st_simcse.models.layers import reads_padding
from st_simcse.models.precision import HALF, Precision, computing_in

__all__ = ["FastModel", "fast_encode", "fast_encode_own"]

Features = dict[str, Any]

# The texts to tokenize at a time, while the previous ones are embedded. Long texts are padded alike, so fewer of them.
WINDOW = 1024
WINDOW_CHARACTERS = 2**20
# The maximum number of tokens per batch on a CPU. The activations of more tokens do not fit into its cache.
CPU_TOKENS = 1024
# The default values of encode's options that need no special treatment.
USUAL: dict[str, tuple[Any, ...]] = {
    "output_value": ("sentence_embedding",),
    "precision": ("float32", None),  # evaluators of sentence-transformers pass None
    "pool": (None,),
    "chunk_size": (None,),
}
ENCODERS = {name: getattr(SentenceTransformer, name) for name in ("encode", "encode_query", "encode_document")}
ENCODE = inspect.signature(SentenceTransformer.encode)


def fast_encode(model: SentenceTransformer, precision: Precision = "auto") -> SentenceTransformer:
    """Returns the same model, with the same modules and settings, but with a faster ``encode``.

    Equal texts are embedded once. Texts with similar numbers of tokens share a batch, while
    ``SentenceTransformer.encode`` sorts by characters. A batch has at most as many tokens as ``batch_size`` of the
    longest texts, and at most 1,024 on a CPU. The embeddings are returned in float32, in the order of the texts.

    ``encode`` works as before for token embeddings, quantized embeddings, several processes and inputs that are not
    texts, and for architectures that read padding, such as FNet. Models whose inputs are not rows of tokens, such as
    static embeddings, keep their batches.

    Args:
        model: The model. The returned model shares all of its state. If the model's class overrides ``encode``, the
            model itself is returned. A model from this function keeps its precision if ``precision`` is ``auto``.
        precision: ``auto`` computes in bf16 by autocast if the hardware is faster in it and the weights are float32;
            otherwise it computes in the precision of the weights. ``bfloat16`` and ``float16`` always use autocast,
            ``float32`` never.

    Raises:
        ValueError: If the precision is unknown, ``float32`` is combined with half-precision weights, or ``bfloat16`` or
            ``float16`` with a model class that overrides ``encode``. With ``bfloat16`` or ``float16``, ``encode``
            raises it later if it is called with several processes.

    Example:
        >>> from st_simcse.demo import tiny_model
        >>> model = tiny_model(["Two dogs run."])
        >>> fast_encode(model).encode(["Two dogs run.", "Two dogs.", "Two dogs run."]).shape
        (3, 64)
    """
    if precision not in get_args(Precision):
        raise ValueError(f"unknown precision {precision!r}: choose {', '.join(get_args(Precision))}")
    if precision == "float32" and model.dtype in HALF:
        raise ValueError(f"the model's weights are in {model.dtype}: convert them with model.float(), or choose auto")
    if isinstance(model, FastModel):
        return model if precision == "auto" else FastModel(model.plain, precision)
    if any(name in vars(model) or getattr(type(model), name, None) is not plain for name, plain in ENCODERS.items()):
        if precision in ("bfloat16", "float16"):
            raise ValueError(
                f"{type(model).__name__} has its own encode, which may not compute in {precision}: choose auto"
            )
        return model
    return FastModel(model, precision)


def fast_encode_own(model: SentenceTransformer, precision: Precision) -> SentenceTransformer:
    """Returns :func:`fast_encode` of a model that nothing else uses. ``float32`` converts half-precision weights."""
    return fast_encode(model.float() if precision == "float32" and model.dtype in HALF else model, precision)


def _check_one_process(precision: Precision) -> None:
    """Refuses a precision set by autocast, because other processes would not use it.

    Raises:
        ValueError: If the precision is ``bfloat16`` or ``float16``.
    """
    if precision in ("bfloat16", "float16"):
        raise ValueError(
            f"several processes compute in the precision of the weights, not in {precision}. Choose one device, or the "
            "precision auto or float32."
        )


@dataclass
class _Asked:
    """Options of ``SentenceTransformer.encode`` for one embedding per text, computed in this process."""

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
    def by(cls, options: dict[str, Any]) -> _Asked | None:
        """Parses the options of encode. Returns None if they request anything else."""
        options = {name: value for name, value in options.items() if value not in USUAL.get(name, ())}
        asks_for_more = options.keys() - {field.name for field in fields(cls)}
        return None if asks_for_more or isinstance(options.get("device"), list) else cls(**options)

    def resolved_prompt(self, model: SentenceTransformer) -> str | None:
        """Returns the text of the prompt."""
        if self.prompt is not None:
            return self.prompt
        name = self.prompt_name or model.default_prompt_name
        return None if name is None else model.prompts.get(name)

    @property
    def to_numpy(self) -> bool:
        return self.convert_to_numpy and not self.convert_to_tensor


class FastModel(SentenceTransformer):
    """A second object that shares the whole state of ``plain``."""

    # Slots are not part of the state.
    __slots__ = ("compute", "plain")
    compute: Precision
    plain: SentenceTransformer

    def __init__(self, plain: SentenceTransformer, compute: Precision) -> None:
        # nn.Module's own __setattr__ would register ``plain`` as a module.
        for name, value in (("__dict__", plain.__dict__), ("plain", plain), ("compute", compute)):
            object.__setattr__(self, name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        return FastModel, (self.plain, self.compute)

    def start_multi_process_pool(self, *args: Any, **options: Any) -> Any:
        """Starts a pool like ``SentenceTransformer.start_multi_process_pool``.

        Raises:
            ValueError: If the processes would not compute in the model's precision.
        """
        _check_one_process(self.compute)
        return self.plain.start_multi_process_pool(*args, **options)

    @deprecated_kwargs(sentences="inputs")
    def encode(self, inputs: Any, *args: Any, **options: Any) -> Any:
        """Embeds texts as ``SentenceTransformer.encode`` does, which documents the arguments."""
        options = ENCODE.bind(self, inputs, *args, **options).arguments
        del options["self"], options["inputs"]
        options |= options.pop("kwargs", {})
        if options.get("pool") is not None or isinstance(options.get("device"), list):
            _check_one_process(self.compute)
            return self.plain.encode(inputs, **options)
        is_one = isinstance(inputs, str)
        if not is_one and not self.plain.is_singular_input(inputs):
            inputs = inputs.tolist() if isinstance(inputs, np.ndarray) else list(inputs)
        # This call checks the options, moves the model to the requested device and turns dropout off.
        self.plain.encode([], **options | {"show_progress_bar": False})
        asked = _Asked.by(options)
        texts = [inputs] if is_one else inputs
        are_texts = isinstance(texts, list) and len(texts) > 0 and all(isinstance(text, str) for text in texts)
        with computing_in(self.compute, self.plain.device, self.plain.dtype):
            # Several processes may share the work, which only SentenceTransformer.encode supports.
            if asked is None or not are_texts or get_world_size() > 1 or reads_padding(self.plain[0]):
                return self.plain.encode(inputs, **options)
            found: Any = self._embed(texts, asked, options)
        if asked.to_numpy:
            found = found.numpy()
        elif not asked.convert_to_tensor:
            found = list(found)
        return found[0] if is_one else found

    @torch.inference_mode()
    def _embed(self, texts: list[str], asked: _Asked, options: dict[str, Any]) -> Tensor:
        """Returns float32 (N, d), on the CPU for a numpy array and otherwise on the model's device."""
        row_of: dict[str, int] = {}
        for row, text in enumerate(texts):
            row_of.setdefault(text, row)
        different = sorted(row_of, key=len, reverse=True)
        found = torch.empty(0)
        for some, embeddings in self._embedded(different, asked, options):
            embeddings = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
            if asked.to_numpy:
                embeddings = embeddings.cpu()
            if not len(found):
                found = embeddings.new_empty(len(texts), embeddings.shape[1])
            found[[row_of[text] for text in some]] = embeddings
        return found if len(different) == len(texts) else found[[row_of[text] for text in texts]]

    def _embedded(
        self, texts: list[str], asked: _Asked, options: dict[str, Any]
    ) -> Iterator[tuple[Sequence[str], Tensor]]:
        """Yields batches of texts, which must be sorted longest first, with their embeddings."""
        task = {} if asked.task is None else {"task": asked.task}
        prompt = asked.resolved_prompt(self.plain)
        # A single text needs no batches.
        if len(texts) == 1 or not _are_rows_of_tokens(self.plain.preprocess(texts[:1], prompt=prompt, **task), 1):
            yield texts, self.plain.encode(texts, **options | {"convert_to_tensor": True})
            return
        width = self.plain.truncate_dim if asked.truncate_dim is None else asked.truncate_dim
        budget = 0
        with tqdm(total=len(texts), unit=" texts", disable=not _is_shown(asked.show_progress_bar)) as bar:
            for window, features in self._windows(texts, prompt=prompt, **task):
                mask = features["attention_mask"]
                budget = budget or self._tokens(asked.batch_size * int(mask.sum(1).max()))
                for rows in _batches(mask, budget):
                    batch = batch_to_device(_take(features, rows), self.plain.device)
                    embeddings = self.plain(batch, **task)["sentence_embedding"]
                    if width is not None:
                        embeddings = truncate_embeddings(embeddings, width)
                    if asked.normalize_embeddings:
                        embeddings = torch.nn.functional.normalize(embeddings, p=2, dim=1)
                    yield [window[row] for row in rows], embeddings
                    bar.update(len(rows))

    def _tokens(self, asked: int) -> int:
        return min(asked, CPU_TOKENS) if self.plain.device.type == "cpu" else asked

    def _windows(self, texts: list[str], **options: Any) -> Iterator[tuple[list[str], Features]]:
        """Yields windows of texts with their tokens. The next window is tokenized while the caller embeds this one."""
        windows = list(_split(texts))
        with ThreadPoolExecutor(1) as thread:
            following = thread.submit(self.plain.preprocess, windows[0], **options)
            for window, after in zip(windows, [*windows[1:], None], strict=True):
                features = following.result()
                if after:
                    following = thread.submit(self.plain.preprocess, after, **options)
                yield window, features


def _split(texts: list[str]) -> Iterator[list[str]]:
    """Yields windows of texts, which must be sorted longest first."""
    start = 0
    while start < len(texts):
        count = max(1, min(WINDOW, WINDOW_CHARACTERS // max(1, len(texts[start]))))
        yield texts[start : start + count]
        start += count


def _are_rows_of_tokens(features: Features, count: int) -> bool:
    """Returns whether all tensors have one row per text and, if they have columns, one column per token."""
    mask = features.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.ndim != 2 or len(mask) != count:
        return False
    tensors = [value for value in features.values() if isinstance(value, Tensor)]
    others = [value for value in features.values() if not isinstance(value, Tensor)]
    return all(value.shape in (mask.shape, mask.shape[:1]) for value in tensors) and not any(
        isinstance(value, list | tuple | dict) for value in others
    )


def _batches(mask: Tensor, budget: int) -> Iterator[list[int]]:
    """Yields rows with similar numbers of tokens, longest first, of at most ``budget`` tokens including padding."""
    lengths = mask.sum(1).tolist()
    rows = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    start = 0
    while start < len(rows):
        count = max(1, budget // max(1, lengths[rows[start]]))
        yield rows[start : start + count]
        start += count


def _take(features: Features, rows: list[int]) -> Features:
    """Returns these rows without the columns that are padding in all of them."""
    mask = features["attention_mask"]
    columns = mask[rows].any(0).nonzero()[:, 0]
    if not len(columns):  # texts without tokens keep one column of padding
        columns = torch.zeros(1, dtype=torch.long)
    taken: Features = {}
    for name, value in features.items():
        if isinstance(value, Tensor):
            value = value[rows][:, columns] if value.ndim == 2 else value[rows]
        taken[name] = value
    return taken


def _is_shown(show_progress_bar: bool | None) -> bool:
    """Returns whether to show a progress bar, by the rule of ``SentenceTransformer.encode``."""
    if show_progress_bar is None:
        return logging.getLogger(SentenceTransformer.__module__).getEffectiveLevel() in (logging.INFO, logging.DEBUG)
    return show_progress_bar
