"""Semantic search: a corpus is embedded once into a folder, and then searched for the sentences nearest to a query."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypedDict, overload

import numpy as np
import pandas as pd
import torch
from datasets import Dataset, Value
from huggingface_hub import cached_assets_path
from sentence_transformers import SentenceTransformer
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from st_simcse.data.hub_dataset import HubDataset
from st_simcse.data.lengths import rows_unknown, texts_without_tokens, warn_of_cut_texts
from st_simcse.data.readers import SentenceReader, texts_of
from st_simcse.data.training_data import check_texts
from st_simcse.models.checkpoints import load_model
from st_simcse.models.fast_encode import FastModel, fast_encode, fast_encode_own
from st_simcse.models.precision import Precision, resolved
from st_simcse.search.fingerprint import fingerprint, text_digest
from st_simcse.search.index_folder import IndexFolder
from st_simcse.search.neighbours import ExactIndex, Index, Neighbours

__all__ = ["Hit", "Searcher", "cached_searcher"]

logger = logging.getLogger(__name__)

Comparable: TypeAlias = str | Sequence[str] | np.ndarray | Tensor
Texts: TypeAlias = Sequence[str] | Dataset | str | os.PathLike[str] | HubDataset
FOR_READER = (str, os.PathLike, HubDataset)

# The prompts for a sentence of a corpus and for a query, if the model has them. ST's encode_document and encode_query
# use the same names.
DOCUMENT: Any = {"prompt_names": ("document", "passage", "corpus"), "task": "document"}
QUERY: Any = {"prompt_names": ("query",), "task": "query"}

# The number of sentences that are embedded and written to disk at a time. An interruption loses at most this many.
CHUNK_SIZE = 16_384


class Hit(TypedDict):
    """A search result with the keys of ST's ``semantic_search`` and the text.

    Attributes:
        corpus_id: The row of the sentence in the corpus, counted from 0.
        score: The cosine similarity of the sentence and the query.
        text: The sentence.
    """

    corpus_id: int
    score: float
    text: str


class Searcher:
    """Semantic search: embeds texts, compares them, and finds the most similar sentences of a corpus.

    Similarity is the cosine similarity of embeddings.

    The corpus is embedded with ``model.encode_document`` and the queries with ``model.encode_query``, so the model's
    prompts for documents and queries are used. An index is a folder with the sentences as Arrow tables,
    ``embeddings.npy``, and the files of faiss. The sentences and embeddings are memory-mapped from disk, not read into
    memory.

    Args:
        model: A SentenceTransformer, the folder of one or of a published SimCSE checkpoint, or a model name on the hub,
            such as ``princeton-nlp/sup-simcse-bert-base-uncased``.
        precision: The precision to compute embeddings in, as in :func:`~st_simcse.fast_encode`. If the model is loaded
            by its name and the precision is float32, the model itself is converted to float32.

    Attributes:
        model: The SentenceTransformer.
        sentences: The corpus, a ``datasets.Dataset`` with N rows and the column ``sentence``, or None without an index.
        embeddings: The embeddings of the corpus, float32 of shape (N, d), with rows of unit length.

    Example:
        >>> from st_simcse.demo import tiny_model
        >>> sentences = ["Two dogs run.", "A man plays a guitar."]
        >>> searcher = Searcher(tiny_model(sentences))
        >>> searcher.build_index(sentences)
        >>> searcher.search("two dogs run", top_k=1)[0]["text"]
        'Two dogs run.'
        >>> searcher.save("index")
        >>> Searcher.load("index", searcher.model).search(["a man"], top_k=1)[0][0]["corpus_id"]
        1
    """

    def __init__(self, model: SentenceTransformer | str | os.PathLike[str], precision: Precision = "auto") -> None:
        if isinstance(model, SentenceTransformer):
            self.model, self._encoder = model, fast_encode(model, precision)
        else:
            self.model = load_model(model)
            self._encoder = fast_encode_own(self.model, precision)
        self.sentences: Dataset | None = None
        self.embeddings: np.ndarray = np.empty((0, 0), dtype=np.float32)
        self._folder: IndexFolder | None = None
        self._neighbours: Neighbours | None = None

    def encode(
        self,
        texts: str | Sequence[str],
        batch_size: int = 64,
        device: str | list[str] | None = None,
        pool: dict[str, Any] | None = None,
        show_progress_bar: bool | None = None,
    ) -> np.ndarray:
        """Embeds texts.

        Args:
            texts: A text, or a list of N texts.
            batch_size: The number of texts per forward pass.
            device: One device, or several to start a process for each, as in ``SentenceTransformer.encode``.
            pool: A pool from ``model.start_multi_process_pool`` to use instead of devices.
            show_progress_bar: Whether to show a progress bar, as in ``SentenceTransformer.encode``.

        Returns:
            Embeddings of unit length, float32 of shape (N, d), or (d,) for a single text.

        Raises:
            ValueError: If something other than texts is passed, or if a text has no tokens, such as an empty text if
                the tokenizer does not add special tokens.
        """
        several = _as_texts("text", texts)
        self._check_tokens("text", several)
        options: dict[str, Any] = {
            "batch_size": batch_size,
            "device": device,
            "pool": pool,
            "show_progress_bar": show_progress_bar,
        }
        return _unit(self._encoder.encode(texts if isinstance(texts, str) else several, **options))

    def similarity(self, a: Comparable, b: Comparable) -> Any:
        """Computes cosine similarities.

        Args:
            a: A text, a list of texts, or embeddings of shape (d,) or (N, d).
            b: Likewise, with M instead of N.

        Returns:
            A float for two single texts or embeddings. Otherwise, float32 of shape (N,), (M,) or (N, M).

        Raises:
            ValueError: If the embeddings were quantized by ``encode(precision=...)``.

        Example:
            >>> from st_simcse.demo import tiny_model
            >>> searcher = Searcher(tiny_model(["Two dogs run."]))
            >>> round(searcher.similarity("Two dogs run.", "two dogs run."), 3)
            1.0
            >>> searcher.similarity(["Two dogs.", "Dogs run."], searcher.encode(["Two.", "Run.", "Dogs."])).shape
            (2, 3)
        """
        first, second = (
            _unit(side) if isinstance(side, (np.ndarray, Tensor)) else self.encode(side) for side in (a, b)
        )
        similarities = first @ second.T
        return float(similarities) if similarities.ndim == 0 else similarities

    def build_index(
        self,
        texts: Texts,
        folder: str | os.PathLike[str] | None = None,
        index: Index | None = None,
        batch_size: int = 64,
        device: str | list[str] | None = None,
    ) -> None:
        """Embeds a corpus in chunks and prepares it for :meth:`search`.

        If the call is interrupted, even by ``kill -9``, the same call continues with the interrupted chunk. For the
        texts of a finished index, nothing is embedded again, and ``index`` may differ.

        Args:
            texts: A list of sentences, a Dataset with the column ``sentence``, or a file or dataset for
                :class:`~st_simcse.SentenceReader`. Duplicate lines of a file are only kept once.
            folder: The folder of the index. If None, a temporary folder is used, which :meth:`save` can copy.
            index: The method to find neighbours. If None, :class:`~st_simcse.search.neighbours.ExactIndex` is used.
                The others are :class:`~st_simcse.search.neighbours.IVFIndex` and
                :class:`~st_simcse.search.neighbours.HNSWIndex`.
            batch_size: The number of sentences per forward pass.
            device: One or several devices, as in :meth:`encode`.

        Raises:
            ValueError: If there are no sentences, if a sentence has no tokens, if an embedding is not finite, or if the
                folder has an index of different texts or of a different model.
            FileExistsError: If the folder has other files.
            FileNotFoundError, ValueError: If the reader raises them.
            ImportError: If ``index`` needs faiss and faiss is not installed.
        """
        corpus, made_by = _Corpus.of(texts), fingerprint(self.model)
        self._build(corpus, made_by, IndexFolder(folder), index or ExactIndex(), batch_size=batch_size, device=device)

    def add_to_index(
        self,
        texts: Texts,
        batch_size: int = 64,
        device: str | list[str] | None = None,
        skip_known: bool | None = None,
    ) -> None:
        """Embeds more sentences and appends them to the index in its folder.

        If the call is interrupted, the same call continues where it stopped. The errors are those of
        :meth:`build_index`. The model must not have changed since the index was built.

        Args:
            texts: As in :meth:`build_index`.
            batch_size: As in :meth:`build_index`.
            device: As in :meth:`build_index`.
            skip_known: Whether to leave out sentences that the index has already, so a file that has grown can be
                added as a whole. If None, they are left out of a file or dataset for
                :class:`~st_simcse.SentenceReader`, but not of a list or a Dataset.
        """
        folder = self._built()
        corpus, made_by = _Corpus.of(texts), fingerprint(self.model)
        with folder.lock():
            folder.read()
            folder.check_model(made_by, self.model)
            folder.check_precision(self._asked_precision)
            if isinstance(texts, FOR_READER) if skip_known is None else skip_known:
                corpus = corpus.without(folder.finished_sentences())
                if not len(corpus.sentences) and not folder.is_interrupted():
                    return
            self._check_tokens("sentence", corpus.sentences, **DOCUMENT)
            folder.add(*corpus)
            self._complete(folder, batch_size, device)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Copies the index to a new or empty folder. The model is not saved with it.

        Raises:
            FileExistsError: If the folder is not empty.
            ValueError: If there is no index.
        """
        source = self._built()
        if os.path.isdir(folder) and os.listdir(folder):
            raise FileExistsError(f"{os.fspath(folder)} is not empty. Save the index to a new folder.")
        shutil.copytree(source.path, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.lock", "*.tmp"))

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        model: SentenceTransformer | str | os.PathLike[str],
        precision: Precision = "auto",
    ) -> Searcher:
        """Opens the folder of an index from :meth:`save`, or from :meth:`build_index` with a folder.

        Args:
            folder: The folder of the index.
            model: The model that made the index, as for :class:`~st_simcse.Searcher`.
            precision: The precision to compute embeddings in, as for :class:`~st_simcse.Searcher`.

        Raises:
            FileNotFoundError: If the folder has no index.
            ValueError: If a different model made the index.
        """
        index = IndexFolder(folder)
        if not index.exists():
            raise FileNotFoundError(f"{index.path} has no index. Build one with st-simcse index or build_index.")
        searcher = cls(model, precision)
        index.read()  # again, because another program may have added texts while the model was loaded
        index.check_model(fingerprint(searcher.model), searcher.model)
        searcher._open(index)
        return searcher

    @overload
    def search(  # type: ignore[overload-overlap]  # a str is a sequence of str
        self, queries: str, top_k: int = ..., threshold: float | None = ...
    ) -> list[Hit]: ...

    @overload
    def search(self, queries: Sequence[str], top_k: int = ..., threshold: float | None = ...) -> list[list[Hit]]: ...

    def search(self, queries: str | Sequence[str], top_k: int = 5, threshold: float | None = None) -> Any:
        """Finds the sentences of the corpus that are most similar to a query, with the most similar first.

        If the tokenizer of the model does not know any part of a query, the results are meaningless, and a warning is
        logged.

        Args:
            queries: A text, or a list of Q texts, which are embedded together.
            top_k: The maximum number of sentences per query.
            threshold: The minimum cosine similarity. If None, there is no minimum.

        Returns:
            A list of :class:`Hit` for a single query, or a list of Q such lists for Q queries.

        Raises:
            ValueError: If there is no index or an unfinished one, if ``top_k`` is below 1, if something other than
                texts is passed, or if a query has no tokens.
        """
        folder = self._built()
        if self._neighbours is None:
            raise folder.unfinished()
        assert self.sentences is not None
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}")
        several = _as_texts("query", queries)
        if not several:
            return []
        self._check_tokens("query", several, **QUERY)
        if rows := rows_unknown(self.model, several):
            logger.warning(
                "The model does not know any word or character of %s of %s queries, such as %r. It finds the same "
                "sentences for all such queries, whatever they say.",
                *(f"{len(rows):,}", f"{len(several):,}", several[rows[0]][:50]),
            )
        embedded = _unit(self._encoder.encode_query(several, show_progress_bar=False))
        hits = []
        for scores, rows in zip(*self._neighbours(embedded, min(top_k, len(self.embeddings))), strict=True):
            wanted = (rows >= 0) & (scores >= (-np.inf if threshold is None else threshold))
            texts = self.sentences[rows[wanted].tolist()]["sentence"] if wanted.any() else []
            found = zip(rows[wanted].tolist(), scores[wanted].tolist(), texts, strict=True)
            hits.append([Hit(corpus_id=row, score=score, text=text) for row, score, text in found])
        return hits[0] if isinstance(queries, str) else hits

    def _built(self) -> IndexFolder:
        if self._folder is None:
            raise ValueError("There is no index yet. Call build_index or Searcher.load first.")
        return self._folder

    @property
    def _asked_precision(self) -> Precision:
        return self._encoder.compute if isinstance(self._encoder, FastModel) else "auto"

    def _precision(self, device: str | list[str] | None) -> str:
        """Returns the precision that embeddings are computed in on this device."""
        # Several processes use no autocast, and neither do models with their own encode.
        if isinstance(device, list) or not isinstance(self._encoder, FastModel):
            return resolved(self._asked_precision, None, self.model.dtype)
        return resolved(self._asked_precision, torch.device(device or self.model.device), self.model.dtype)

    def _check_tokens(self, what: str, texts: Sequence[str] | Dataset, **options: Any) -> None:
        """Raises ValueError if texts have no tokens. The message names the first of them."""
        if found := texts_without_tokens(self.model, texts, **options):
            row, text = next(iter(found.items()))
            more = f" and {len(found) - 1:,} more," if len(found) > 1 else ""
            raise ValueError(
                f"{what} {row:,}, {text[:50]!r},{more} has no tokens, and the model's tokenizer does not add special "
                "ones, so there is nothing to embed. Leave it out."
            )

    def _open(self, folder: IndexFolder) -> None:
        self._folder, self.sentences, self.embeddings = folder, folder.sentences(), folder.embeddings()
        self._neighbours = folder.neighbours() if folder.is_embedded() else None

    def _build(self, corpus: _Corpus, made_by: str, folder: IndexFolder, index: Index, **options: Any) -> None:
        """Does the work of :meth:`build_index`. Hashing a large corpus or model takes seconds, so it is done before."""
        with folder.lock():
            if folder.exists():
                folder.read()  # again, because another process may have made it while this one waited
                folder.check_model(made_by, self.model)
                folder.check_precision(self._asked_precision)
            else:
                folder.create(made_by, self.model, self._precision(options.get("device")))
            if not folder.description["texts"]:
                self._check_tokens("sentence", corpus.sentences, **DOCUMENT)
                folder.append(*corpus)
            elif [part["digest"] for part in folder.description["texts"]] != [corpus.digest]:
                raise ValueError(
                    f"{folder.path} has an index of different texts. Choose a different folder, delete this one, or "
                    "add the texts to its index with add_to_index."
                )
            folder.choose(index)
            self._complete(folder, **options)

    def _complete(self, folder: IndexFolder, batch_size: int = 64, device: str | list[str] | None = None) -> None:
        """Embeds the sentences that are not embedded yet, opens the index, and records that it is finished."""
        sentences = folder.sentences()
        begin = folder.embedded_rows()
        if begin < len(sentences):
            warn_of_cut_texts(self.model, sentences.select(range(begin, len(sentences))), **DOCUMENT)
            pool = self._encoder.start_multi_process_pool(device) if isinstance(device, list) else None
            where = {"pool": pool} if pool else {"device": device}
            try:
                with tqdm(total=len(sentences), initial=begin, unit=" sentences", disable=None) as bar:
                    for start in range(begin, len(sentences), CHUNK_SIZE):
                        chunk = sentences[start : start + CHUNK_SIZE]["sentence"]
                        embeddings = self._encoder.encode_document(
                            list(chunk), batch_size=batch_size, show_progress_bar=False, **where
                        )
                        folder.write(_finite(_unit(embeddings), start))
                        bar.update(len(chunk))
            finally:
                if pool:
                    self.model.stop_multi_process_pool(pool)
        self._open(folder)
        folder.finish()


def cached_searcher(
    model: SentenceTransformer, corpus: Texts, cache_dir: str | os.PathLike[str] | None = None
) -> Searcher:
    """Returns a searcher for a corpus whose index is cached, and builds the index if it is not in the cache yet.

    Args:
        model: The model to embed the corpus and the queries. Each precision of :func:`~st_simcse.fast_encode` has an
            index of its own.
        corpus: The corpus, as for :meth:`~st_simcse.Searcher.build_index`.
        cache_dir: The folder of the cache. If None, the folder for st_simcse in the cache of huggingface_hub
            (``HF_HOME``) is used.

    Raises:
        FileNotFoundError, ValueError: If the reader or :meth:`~st_simcse.Searcher.build_index` raises them.

    Example:
        >>> from st_simcse.demo import tiny_model
        >>> from pathlib import Path
        >>> _ = Path("corpus.txt").write_text("Two dogs run.\\nA man plays a guitar.")
        >>> searcher = cached_searcher(tiny_model(["Two dogs run."]), "corpus.txt", "cache")
        >>> searcher.search("two dogs run", top_k=1)[0]["text"]
        'Two dogs run.'
    """
    found, made_by = _Corpus.of(corpus), fingerprint(model)
    searcher = Searcher(model)
    precision = [] if searcher._asked_precision == "auto" else [searcher._asked_precision]
    name = text_digest([made_by, found.digest, *precision])
    folder = Path(cache_dir or cached_assets_path("st_simcse", "embeddings"), name)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # only accessible to the user
    searcher._build(found, made_by, IndexFolder(folder), ExactIndex())
    return searcher


def _as_texts(what: str, texts: Any) -> list[str]:
    """Returns one or several texts as a list, and raises ValueError with the row of anything that is not a text."""
    if isinstance(texts, (pd.DataFrame, Dataset)):
        raise ValueError("Expected a text or a list of texts, got a table. Pass one of its columns.")
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        texts = [texts]
    several = list(texts)
    for row, text in enumerate(several):
        if not isinstance(text, str):
            raise ValueError(f"{what} {row:,} is {text!r}, expected a text")
    return several


class _Corpus(NamedTuple):
    """Sentences, and the hash that identifies them."""

    sentences: Dataset
    digest: str

    @classmethod
    def of(cls, texts: Texts) -> _Corpus:
        if isinstance(texts, FOR_READER):
            sentences = SentenceReader(drop_duplicates=True).get_dataset(texts)
        elif isinstance(texts, Dataset):
            sentences = texts
        else:
            sentences = Dataset.from_dict({"sentence": _as_texts("sentence", texts)})
        if not len(sentences):
            raise ValueError("The corpus has no sentences. Pass at least one.")
        if sentences.column_names != ["sentence"]:
            raise ValueError(f"Expected a Dataset with the single column 'sentence', got {sentences.column_names}")
        check_texts(sentences, "the corpus", [])
        if sentences.features["sentence"] != Value("string"):  # parts with the strings of pandas could not be joined
            sentences = sentences.cast_column("sentence", Value("string"))
        return cls(sentences, text_digest(texts_of(sentences)))

    def without(self, known: Dataset) -> _Corpus:
        """Returns the sentences that are not among known ones, and logs how many are left out."""
        seen = {hash(text) for text in texts_of(known)}  # hashes, because the texts could fill the memory
        rows = [row for row, text in enumerate(texts_of(self.sentences)) if hash(text) not in seen]
        if len(rows) == len(self.sentences):
            return self
        logger.warning(
            "%s of %s sentences are in the index already and were left out.",
            *(f"{len(self.sentences) - len(rows):,}", f"{len(self.sentences):,}"),
        )
        new = self.sentences.select(rows)
        return _Corpus(new, text_digest(texts_of(new)))


def _unit(embeddings: Any) -> np.ndarray:
    """Returns embeddings at unit length. Normalizing in the model might use bfloat16."""
    tensor = torch.as_tensor(embeddings)
    if tensor.dtype in (torch.int8, torch.uint8, torch.bool):
        raise ValueError(
            f"The embeddings are {tensor.dtype}, so they are quantized or packed bits and have no cosine similarity. "
            "Call encode without precision, or compare the embeddings with sentence_transformers.quantization."
        )
    # force=True also works for tensors on a GPU or with gradients.
    return normalize(tensor.float(), dim=-1).numpy(force=True)


def _finite(embeddings: np.ndarray, start: int) -> np.ndarray:
    if bad := np.flatnonzero(~np.isfinite(embeddings).all(axis=1)).tolist():
        raise ValueError(
            f"The embeddings of sentence {start + bad[0]:,} and {len(bad) - 1:,} more are NaN or infinite. The model's "
            "training failed, or its files are damaged. Use a different model."
        )
    return embeddings
