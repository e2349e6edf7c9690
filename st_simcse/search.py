"""Search by meaning: a corpus is embedded once, and its embeddings are kept for the next time."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import sentence_transformers
import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Module
from sentence_transformers.util import dot_score, semantic_search
from torch import Tensor
from transformers import PreTrainedModel

__all__ = ["SentenceIndex", "fingerprint"]

logger = logging.getLogger(__name__)


class SentenceIndex:
    """Sentences that are found by meaning: the exact nearest neighbours, by cosine similarity.

    The sentences are embedded by ``model.encode_document`` and the queries by ``model.encode_query``, so that a model's
    prompts for the two are used.

    Args:
        model: embeds the sentences and the queries.
        sentences: the texts to search, N of them.
        cache_dir: a folder that keeps the embeddings, in a file that is named after the :func:`fingerprint` of model
            and sentences; they are read from there the next time. When left out, nothing is kept.

    Attributes:
        embeddings: float32 of shape (N, d), rows of unit length, on the model's device; those that come from the cache
            are mapped from the file and need no memory until they are used.

    Raises:
        ValueError: without a sentence, or if an embedding is not finite.
        OSError: if ``cache_dir`` cannot be made or read.

    Example:
        >>> from st_simcse.demo import tiny_model
        >>> sentences = ["Two dogs run.", "A man plays a guitar."]
        >>> index = SentenceIndex(tiny_model(sentences), sentences)
        >>> index.search(["two dogs run"], top_k=1)[0][0][1]
        'Two dogs run.'
    """

    def __init__(
        self, model: SentenceTransformer, sentences: Sequence[str], cache_dir: str | os.PathLike[str] | None = None
    ) -> None:
        if not sentences:
            raise ValueError("there are no sentences to search")
        self.model = model
        self.sentences = sentences
        embeddings = self._embed() if cache_dir is None else self._read_or_embed(Path(cache_dir))
        self.embeddings: Tensor = torch.from_numpy(embeddings).to(model.device)

    def search(self, queries: Sequence[str], top_k: int = 5) -> list[list[tuple[float, str]]]:
        """For each query the ``top_k`` nearest sentences with their cosine similarity, the nearest first."""
        embedded = self.model.encode_query(
            list(queries), convert_to_tensor=True, normalize_embeddings=True, show_progress_bar=False
        )
        # Of unit length already: the cosine would normalize the whole corpus for every search.
        found = semantic_search(embedded.float(), self.embeddings, top_k=top_k, score_function=dot_score)
        return [[(hit["score"], self.sentences[int(hit["corpus_id"])]) for hit in hits] for hits in found]

    def _read_or_embed(self, cache_dir: Path) -> np.ndarray:
        cache_dir.mkdir(parents=True, exist_ok=True)
        path = cache_dir / f"{fingerprint(self.model, self.sentences)}.npy"
        embeddings = _read(path, len(self.sentences))
        if embeddings is None:
            embeddings = self._embed()
            _write(path, embeddings)
        return embeddings

    def _embed(self) -> np.ndarray:
        embeddings = self.model.encode_document(
            list(self.sentences), convert_to_tensor=True, normalize_embeddings=True, show_progress_bar=True
        ).float()
        if bad := int((~embeddings.isfinite().all(dim=1)).sum()):
            raise ValueError(f"the model embeds {bad:,} of {len(self.sentences):,} sentences as NaN or infinity")
        return embeddings.cpu().numpy()


def fingerprint(model: SentenceTransformer, sentences: Sequence[str]) -> str:
    """A hexadecimal name of all that the embeddings depend on: it differs when they would.

    That is the model's weights, modules and settings, its tokenizer and prompts, the versions of sentence-transformers
    and transformers, and the sentences in their order. Where the model lies and what it is called does not matter.

    Example:
        >>> from st_simcse.demo import tiny_model
        >>> model = tiny_model(["Two dogs run."])
        >>> fingerprint(model, ["two dogs"]) == fingerprint(model, ["two", "dogs"])
        False
    """
    digest = hashlib.sha256()
    for part in _parts(model, sentences):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def _parts(model: SentenceTransformer, sentences: Sequence[str]) -> Iterator[bytes | memoryview]:
    yield _json([sentence_transformers.__version__, transformers.__version__])
    yield _json([model.prompts, model.default_prompt_name, model.truncate_dim, model.max_seq_length])
    tokenizer = model.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if hasattr(backend, "to_str"):
        # What the last call set, and every call sets anew.
        yield _json(json.loads(backend.to_str()) | {"truncation": None, "padding": None})
    else:
        yield _json(tokenizer.get_vocab())
    for name, module in model.named_modules():
        if isinstance(module, Module):
            yield _json([name, type(module).__name__, module.get_config_dict()])
        elif isinstance(module, PreTrainedModel):
            yield _json([name, type(module).__name__, module.config.to_dict() | {"_name_or_path": None}])
    for name, tensor in model.state_dict().items():
        yield _json([name, str(tensor.dtype), tensor.shape])
        yield memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    for sentence in sentences:
        yield sentence.encode("utf-8", "surrogatepass")


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, default=str).encode()


def _read(path: Path, rows: int) -> np.ndarray | None:
    try:
        # Copy on write, since torch warns of arrays that cannot be written.
        embeddings = np.load(path, mmap_mode="c")
        if embeddings.ndim == 2 and len(embeddings) == rows and embeddings.dtype == np.float32:
            return embeddings
        reason = f"{embeddings.dtype} of shape {embeddings.shape}"
    except FileNotFoundError:
        return None
    except (ValueError, EOFError) as error:
        reason = str(error)
    logger.warning("%s is damaged (%s): the corpus is embedded anew", path, reason)
    return None


def _write(path: Path, embeddings: np.ndarray) -> None:
    """All or nothing, readable by the user alone; without room the search goes on."""
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
        try:
            np.save(file, embeddings)
            file.flush()
            os.fsync(file.fileno())
            os.replace(file.name, path)
        except BaseException as error:
            os.unlink(file.name)
            if not isinstance(error, OSError):
                raise
            logger.warning("the embeddings are not kept for the next time: %s: %s", path, error)
