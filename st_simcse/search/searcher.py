"""Search by meaning: a corpus is embedded once, into a folder, and its nearest sentences to a query are looked up."""

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
from datasets import Dataset
from huggingface_hub import cached_assets_path
from sentence_transformers import SentenceTransformer
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from st_simcse.data.hub_dataset import HubDataset
from st_simcse.data.lengths import rows_unknown, texts_without_tokens, warn_of_cut_texts
from st_simcse.data.readers import SentenceReader
from st_simcse.data.training_data import check_texts
from st_simcse.models.checkpoints import load_model
from st_simcse.models.fast_encode import fast_encode, fast_encode_own
from st_simcse.models.precision import Precision
from st_simcse.search.fingerprint import fingerprint, text_digest
from st_simcse.search.index_folder import IndexFolder
from st_simcse.search.neighbours import ExactIndex, Index, Neighbours

__all__ = ["Hit", "Searcher", "cached_searcher"]

logger = logging.getLogger(__name__)

Comparable: TypeAlias = str | Sequence[str] | np.ndarray | Tensor
Texts: TypeAlias = Sequence[str] | Dataset | str | os.PathLike[str] | HubDataset

# What stands before a sentence of a corpus and before a query, where the model has it: as ST's encode_document and
# encode_query look for it.
DOCUMENT: Any = {"prompt_names": ("document", "passage", "corpus"), "task": "document"}
QUERY: Any = {"prompt_names": ("query",), "task": "query"}

# Sentences that are embedded, and written to the disk, at a time: what is lost at most when the work is interrupted.
CHUNK_SIZE = 16_384


class Hit(TypedDict):
    """What a search finds: as ST's ``semantic_search`` says it, and the text.

    Attributes:
        corpus_id: the sentence's row in the corpus, from 0.
        score: its cosine similarity with the query.
        text: the sentence.
    """

    corpus_id: int
    score: float
    text: str


class Searcher:
    """Embeds texts, compares them, and finds the most similar ones of a corpus, by cosine similarity.

    The corpus is embedded by ``model.encode_document`` and the queries by ``model.encode_query``, so that a model's
    prompts for the two are used. An index is a folder: the sentences as Arrow tables, ``embeddings.npy``, both mapped
    from the disk rather than read into memory, and what faiss makes of them.

    Args:
        model: a SentenceTransformer, a folder of one or of a published SimCSE checkpoint, or a name on the hub, such as
            ``princeton-nlp/sup-simcse-bert-base-uncased``.
        precision: what the model computes in, as :func:`~st_simcse.fast_encode` has it, which embeds the texts. A model
            that is loaded here by its name is converted to float32 if that asks for it.

    Attributes:
        model: the SentenceTransformer.
        sentences: the corpus, a ``datasets.Dataset`` with the column ``sentence``, N rows; None before there is one.
        embeddings: float32 of shape (N, d), rows of unit length.

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
        """Embeddings of unit length, float32 of shape (N, d), or (d,) for one text.

        Args:
            texts: a text, or N of them.
            batch_size: texts a forward pass.
            device: as in ``SentenceTransformer.encode``: one, or several for a process each.
            pool: what ``model.start_multi_process_pool`` gives, instead of devices.
            show_progress_bar: as in ``SentenceTransformer.encode``.

        Raises:
            ValueError: for what is no text, and for a text without a token, such as an empty one where the tokenizer
                adds no special tokens.
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
        """Cosine similarities of texts, or of embeddings of shape (d,) or (N, d).

        Returns:
            A float for two texts; float32 of shape (N,) for one and N, and (N, M) for N and M.

        Raises:
            ValueError: for embeddings that ``encode(precision=...)`` has quantized.

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
        """Embed a corpus, chunk by chunk, and have it ready for :meth:`search`.

        If that is interrupted, even by ``kill -9``, the same call goes on with the chunk that it was at. With the
        texts of a finished index it embeds nothing, and may choose another ``index``.

        Args:
            texts: sentences, a Dataset with the column ``sentence``, or a file or data set that
                :class:`~st_simcse.SentenceReader` reads; equal lines of a file are listed once.
            folder: where the index is kept; a temporary one, for :meth:`save`, when left out.
            index: how neighbours are found: :class:`~st_simcse.search.neighbours.ExactIndex` when left out, or
                :class:`~st_simcse.search.neighbours.IVFIndex` or :class:`~st_simcse.search.neighbours.HNSWIndex`.
            batch_size: sentences a forward pass.
            device: as in :meth:`encode`.

        Raises:
            ValueError: without a sentence, for one without a token, if an embedding is not finite, or if the folder
                holds an index of other texts or of another model.
            FileExistsError: for a folder that holds something else.
            FileNotFoundError, ValueError: as the reader does.
            ImportError: for IVF and HNSW without faiss.
        """
        corpus, made_by = _Corpus.of(texts), fingerprint(self.model)
        self._build(corpus, made_by, IndexFolder(folder), index or ExactIndex(), batch_size=batch_size, device=device)

    def add_to_index(self, texts: Texts, batch_size: int = 64, device: str | list[str] | None = None) -> None:
        """Embed further sentences and append them to the index, in its folder.

        Interrupted, it goes on when it is called again with the same texts. Arguments and errors are those of
        :meth:`build_index`; the model must be as it was when the index was built.
        """
        folder = self._built()
        corpus, made_by = _Corpus.of(texts), fingerprint(self.model)
        with folder.lock():
            folder.read()
            folder.check_model(made_by, self.model)
            self._check_tokens("sentence", corpus.sentences, **DOCUMENT)
            folder.add(*corpus)
            self._complete(folder, batch_size, device)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Copy the index to a folder, which must not exist or be empty; the model is saved apart, as ST does.

        Raises:
            FileExistsError: if there is something in the folder.
            ValueError: without an index.
        """
        source = self._built()
        if os.path.isdir(folder) and os.listdir(folder):
            raise FileExistsError(f"{os.fspath(folder)} is not empty: save the index to a new folder")
        shutil.copytree(source.path, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.lock", "*.tmp"))

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        model: SentenceTransformer | str | os.PathLike[str],
        precision: Precision = "auto",
    ) -> Searcher:
        """Open a folder that :meth:`save`, or :meth:`build_index` with a folder, wrote.

        Raises:
            FileNotFoundError: if there is no index.
            ValueError: if another model made it.
        """
        index = IndexFolder(folder)
        if not index.exists():
            raise FileNotFoundError(f"{index.path} holds no index: st-simcse index, or build_index, makes one")
        searcher = cls(model, precision)
        index.read()  # as it is now: loading a model takes a while, in which another program may have added texts
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
        """The sentences of the corpus that are most similar to a query, the most similar first.

        For a query of which the model's tokenizer knows no part, what is found means nothing: a warning says so.

        Args:
            queries: a text, or Q of them, which are embedded together.
            top_k: how many sentences at most.
            threshold: the least cosine similarity; any when left out.

        Returns:
            A list of :class:`Hit` for one query, and a list of Q such lists for Q of them.

        Raises:
            ValueError: without an index, for an unfinished one, for ``top_k`` below 1, for what is no text, and for a
                query without a token.
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
                "The model knows no word and no character of %s of %s queries, the first of which is %r: it finds the "
                "same sentences for all such queries, whatever they say",
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
            raise ValueError("there is no index yet: call build_index first, or Searcher.load")
        return self._folder

    def _check_tokens(self, what: str, texts: Sequence[str] | Dataset, **options: Any) -> None:
        """ValueError for texts of which the model reads nothing; names the first."""
        if found := texts_without_tokens(self.model, texts, **options):
            row, text = next(iter(found.items()))
            more = f" and {len(found) - 1:,} more," if len(found) > 1 else ""
            raise ValueError(
                f"{what} {row:,}, {text[:50]!r},{more} has no token: the model's tokenizer finds none in "
                "it and adds no special ones, so that there is nothing to embed; leave it out"
            )

    def _open(self, folder: IndexFolder) -> None:
        self._folder, self.sentences, self.embeddings = folder, folder.sentences(), folder.embeddings()
        self._neighbours = folder.neighbours() if folder.is_embedded() else None

    def _build(self, corpus: _Corpus, made_by: str, folder: IndexFolder, index: Index, **options: Any) -> None:
        """As :meth:`build_index`, of what has been hashed: a large corpus or model takes seconds."""
        with folder.lock():
            if folder.exists():
                folder.read()  # as it is now: another process may have made it while this one waited
                folder.check_model(made_by, self.model)
            else:
                folder.create(made_by, self.model)
            if not folder.description["texts"]:
                self._check_tokens("sentence", corpus.sentences, **DOCUMENT)
                folder.append(*corpus)
            elif [part["digest"] for part in folder.description["texts"]] != [corpus.digest]:
                raise ValueError(
                    f"{folder.path} holds an index of other texts: choose another folder, or delete it; add_to_index "
                    "adds texts to an index"
                )
            folder.choose(index)
            self._complete(folder, **options)

    def _complete(self, folder: IndexFolder, batch_size: int = 64, device: str | list[str] | None = None) -> None:
        """Embed what is not embedded yet, open it, and record that it came to its end."""
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
    """A corpus indexed in a cache, or the index of the same texts and model that is there.

    Args:
        model: embeds the corpus and the queries.
        corpus: as for :meth:`~st_simcse.Searcher.build_index`.
        cache_dir: the folder for st_simcse in the cache of huggingface_hub (``HF_HOME``) when left out.

    Raises:
        FileNotFoundError, ValueError: as the reader and :meth:`~st_simcse.Searcher.build_index` do.

    Example:
        >>> from st_simcse.demo import tiny_model
        >>> from pathlib import Path
        >>> _ = Path("corpus.txt").write_text("Two dogs run.\\nA man plays a guitar.")
        >>> searcher = cached_searcher(tiny_model(["Two dogs run."]), "corpus.txt", "cache")
        >>> searcher.search("two dogs run", top_k=1)[0]["text"]
        'Two dogs run.'
    """
    found, made_by = _Corpus.of(corpus), fingerprint(model)
    folder = Path(cache_dir or cached_assets_path("st_simcse", "embeddings"), text_digest([made_by, found.digest]))
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # for the user alone
    searcher = Searcher(model)
    searcher._build(found, made_by, IndexFolder(folder), ExactIndex())
    return searcher


def _as_texts(what: str, texts: Any) -> list[str]:
    """A text or several as a list; ValueError for what is no text, naming its row."""
    if isinstance(texts, (pd.DataFrame, Dataset)):
        raise ValueError("expected a text or a list of texts, got a table: pass one of its columns")
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        texts = [texts]
    several = list(texts)
    for row, text in enumerate(several):
        if not isinstance(text, str):
            raise ValueError(f"{what} {row:,} is {text!r}, expected a text")
    return several


class _Corpus(NamedTuple):
    """Sentences, and what tells them from others."""

    sentences: Dataset
    digest: str

    @classmethod
    def of(cls, texts: Texts) -> _Corpus:
        if isinstance(texts, (str, os.PathLike, HubDataset)):
            sentences = SentenceReader(drop_duplicates=True).get_dataset(texts)
        elif isinstance(texts, Dataset):
            sentences = texts
        else:
            sentences = Dataset.from_dict({"sentence": _as_texts("sentence", texts)})
        if not len(sentences):
            raise ValueError("there are no sentences to search")
        if sentences.column_names != ["sentence"]:
            raise ValueError(f"expected a Dataset with the one column 'sentence', got {sentences.column_names}")
        check_texts(sentences, "the corpus", [])
        # A batch at a time in memory.
        return cls(sentences, text_digest(text for batch in sentences.iter(1000) for text in batch["sentence"]))


def _unit(embeddings: Any) -> np.ndarray:
    """Here rather than in the model, whose own precision may be bfloat16."""
    tensor = torch.as_tensor(embeddings)
    if tensor.dtype in (torch.int8, torch.uint8, torch.bool):
        raise ValueError(
            f"embeddings of {tensor.dtype} are quantized or packed bits, of which there is no cosine similarity: pass "
            "those of encode without precision, or compare with sentence_transformers.quantization"
        )
    # Forced: off a GPU, and out of a graph.
    return normalize(tensor.float(), dim=-1).numpy(force=True)


def _finite(embeddings: np.ndarray, start: int) -> np.ndarray:
    if bad := np.flatnonzero(~np.isfinite(embeddings).all(axis=1)).tolist():
        raise ValueError(
            f"the model embeds sentence {start + bad[0]:,} and {len(bad) - 1:,} more as NaN or infinity: its "
            "training went wrong, or its files are damaged"
        )
    return embeddings
