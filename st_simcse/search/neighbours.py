"""Nearest neighbours among embeddings of unit length, exact or with an index of faiss.

All indexes have the method ``open(embeddings, folder)``. It returns a function that takes queries and a number k, and
returns scores and rows.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from filelock import FileLock
from sentence_transformers.util import dot_score, semantic_search

__all__ = ["INDEXES", "ExactIndex", "HNSWIndex", "IVFIndex", "Index", "Neighbours"]

# Takes queries (Q, d) and k, and returns scores and rows, both (Q, k), with the highest score first. The row is -1 if
# fewer than k were found.
Neighbours = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]

ROWS_AT_ONCE = 2**16


@dataclass(frozen=True)
class ExactIndex:
    """Exact search, which compares every query with every embedding.

    It uses faiss if it is installed, and ST's ``semantic_search`` otherwise.

    Example:
        >>> index = ExactIndex().open(np.eye(3, dtype=np.float32), Path())
        >>> scores, rows = index(np.eye(3, dtype=np.float32)[[2]], 1)
        >>> rows.tolist()
        [[2]]
    """

    name: ClassVar[str] = "exact"

    def open(self, embeddings: np.ndarray, folder: Path) -> Neighbours:
        """Returns the search function. The embeddings, which may be mapped from a file, are not copied."""
        try:
            import faiss
        except ImportError:
            return lambda queries, k: _semantic_search(queries, embeddings, k)
        return lambda queries, k: faiss.knn(queries, embeddings, k, metric=faiss.METRIC_INNER_PRODUCT)


@dataclass(frozen=True)
class IVFIndex:
    """The inverted file of faiss, which groups embeddings into cells by k-means. A query searches the nearest cells.

    Args:
        cells: The number of cells. If None, the square root of the number of embeddings is used.
        probes: The number of cells that a query searches. More cells give a higher recall, but take longer. A query
            that finds fewer embeddings than it should in them searches all cells.

    Raises:
        ValueError: If ``cells`` or ``probes`` is below 1.
        ImportError: If faiss is not installed.
    """

    name: ClassVar[str] = "ivf"
    cells: int | None = None
    probes: int = 64

    def __post_init__(self) -> None:
        _check(self)

    def open(self, embeddings: np.ndarray, folder: Path) -> Neighbours:
        """Loads the index from the folder, adds the embeddings that it lacks, and returns the search function."""
        cells = min(self.cells or round(len(embeddings) ** 0.5), len(embeddings))
        path = folder / f"ivf{self.cells or ''}.faiss"
        index = _faiss_index(f"IVF{cells},Flat", embeddings, path)
        index.nprobe = self.probes

        def search(queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
            scores, rows = index.search(queries, k)
            # The nearest cells of these queries have fewer than k embeddings.
            if len(few := np.flatnonzero((rows < 0).any(axis=1))):
                everywhere = _faiss().SearchParametersIVF(nprobe=index.nlist)
                scores[few], rows[few] = index.search(queries[few], k, params=everywhere)
            return scores, rows

        return search


@dataclass(frozen=True)
class HNSWIndex:
    """The neighbour graph of faiss (Malkov and Yashunin, 2018), in which a query walks to its nearest neighbours.

    It is faster than :class:`IVFIndex` at the same recall, but it is slower to build and needs more memory.

    Args:
        links: The number of neighbours that each embedding is linked to.
        breadth: The number of candidates that a search keeps. More candidates give a higher recall, but take longer.

    Raises:
        ValueError: If ``links`` is below 2 or ``breadth`` is below 1.
        ImportError: If faiss is not installed.
    """

    name: ClassVar[str] = "hnsw"
    links: int = 32
    breadth: int = 64

    def __post_init__(self) -> None:
        _check(self)
        if self.links < 2:
            raise ValueError(f"links must be at least 2, got {self.links}: with a single link, a query finds nothing")

    def open(self, embeddings: np.ndarray, folder: Path) -> Neighbours:
        """Loads the index from the folder, adds the embeddings that it lacks, and returns the search function."""
        index = _faiss_index(f"HNSW{self.links},Flat", embeddings, folder / f"hnsw{self.links}.faiss")
        index.hnsw.efSearch = self.breadth
        return index.search


Index = ExactIndex | IVFIndex | HNSWIndex
INDEXES: dict[str, type[Index]] = {kind.name: kind for kind in (ExactIndex, IVFIndex, HNSWIndex)}


def _semantic_search(queries: np.ndarray, embeddings: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    # The embeddings have unit length. Cosine similarity would normalize the whole corpus in every search.
    found = semantic_search(torch.from_numpy(queries), torch.from_numpy(embeddings), top_k=k, score_function=dot_score)
    scores = np.array([[hit["score"] for hit in hits] for hits in found], dtype=np.float32)
    return scores, np.array([[hit["corpus_id"] for hit in hits] for hits in found], dtype=np.int64)


def _faiss_index(factory: str, embeddings: np.ndarray, path: Path) -> Any:
    _faiss()
    index = _written(path, embeddings)
    if index is None or index.ntotal < len(embeddings):
        # If several programs open the folder at once, one completes the file and the others wait for it.
        with FileLock(path.with_suffix(".lock")):
            index = _completed(factory, embeddings, path)
    return index


def _written(path: Path, embeddings: np.ndarray) -> Any:
    """Returns the stored index, which may have fewer embeddings, or None if there is none."""
    if not path.exists():
        return None
    try:
        index = _faiss().read_index(str(path))
        if index.d != embeddings.shape[1] or index.ntotal > len(embeddings):
            raise RuntimeError(f"it has {index.ntotal:,} embeddings of {index.d} dimensions, not {embeddings.shape}")
    except RuntimeError as error:
        raise ValueError(f"{path} is damaged ({error}). Delete it, and it will be built again.") from None
    return index


def _completed(factory: str, embeddings: np.ndarray, path: Path) -> Any:
    faiss = _faiss()
    index = _written(path, embeddings)
    if index is None:
        index = faiss.index_factory(embeddings.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
    if not index.is_trained:
        index.cp.niter = 10  # more iterations only change the third decimal of the recall
        index.cp.min_points_per_centroid = 1  # no warning about small corpora
        count = min(len(embeddings), 64 * index.nlist)
        rows = np.random.default_rng(0).choice(len(embeddings), count, replace=False)
        index.train(embeddings[np.sort(rows)])
    for start in range(index.ntotal, len(embeddings), ROWS_AT_ONCE):
        index.add(embeddings[start : start + ROWS_AT_ONCE])
    part = path.with_suffix(".tmp")
    # Through a Python file, because the files of faiss do not report an error for the last bytes on a full disk.
    try:
        with part.open("wb") as file:
            faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
    return index


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ImportError('This index needs faiss. Install it with: pip install "st_simcse[search]"') from error
    return faiss


def _check(index: IVFIndex | HNSWIndex) -> None:
    _faiss()
    for name, value in vars(index).items():
        if value is not None and not (isinstance(value, int) and value >= 1):
            raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
