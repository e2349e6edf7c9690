"""Nearest neighbours among embeddings of unit length: exact, or with faiss's indexes, behind one method.

``open(embeddings, folder)`` gives a function of queries and a number k, which answers with their scores and rows.
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

# Queries (Q, d) and k to scores and rows, both (Q, k), the highest score first; row -1 where there are fewer.
Neighbours = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]

ROWS_AT_ONCE = 2**16


@dataclass(frozen=True)
class ExactIndex:
    """Every query against every embedding: by faiss where it is installed, else by ST's ``semantic_search``.

    Example:
        >>> index = ExactIndex().open(np.eye(3, dtype=np.float32), Path())
        >>> scores, rows = index(np.eye(3, dtype=np.float32)[[2]], 1)
        >>> rows.tolist()
        [[2]]
    """

    name: ClassVar[str] = "exact"

    def open(self, embeddings: np.ndarray, folder: Path) -> Neighbours:
        """Reads the embeddings where they are, such as mapped from a file, and copies nothing."""
        try:
            import faiss
        except ImportError:
            return lambda queries, k: _semantic_search(queries, embeddings, k)
        return lambda queries, k: faiss.knn(queries, embeddings, k, metric=faiss.METRIC_INNER_PRODUCT)


@dataclass(frozen=True)
class IVFIndex:
    """faiss's inverted file: k-means puts the embeddings into cells, and a query is compared with the nearest ones'.

    Args:
        cells: how many; about the square root of the number of embeddings when left out.
        probes: how many of them a query looks into; more find more and take longer.

    Raises:
        ValueError: for less than one of either.
        ImportError: without faiss.
    """

    name: ClassVar[str] = "ivf"
    cells: int | None = None
    probes: int = 64

    def __post_init__(self) -> None:
        _check(self)

    def open(self, embeddings: np.ndarray, folder: Path) -> Neighbours:
        """As it lies in the folder, with the embeddings that it lacks added; all of them, where it is not there."""
        cells = min(self.cells or round(len(embeddings) ** 0.5), len(embeddings))
        path = folder / f"ivf{self.cells or ''}.faiss"
        index = _faiss_index(f"IVF{cells},Flat", embeddings, path)
        index.nprobe = self.probes
        return index.search


@dataclass(frozen=True)
class HNSWIndex:
    """faiss's graph of neighbours (Malkov and Yashunin, 2018), in which a query walks to its own.

    Faster than :class:`IVFIndex` at the same recall, slower to build, and needs more memory.

    Args:
        links: neighbours that each embedding is joined with.
        breadth: candidates that a walk keeps; more find more and take longer.

    Raises:
        ValueError: for fewer than two links or less than one candidate.
        ImportError: without faiss.
    """

    name: ClassVar[str] = "hnsw"
    links: int = 32
    breadth: int = 64

    def __post_init__(self) -> None:
        _check(self)
        if self.links < 2:
            raise ValueError("links must be at least 2: nothing is found along a single one")

    def open(self, embeddings: np.ndarray, folder: Path) -> Neighbours:
        """As it lies in the folder, with the embeddings that it lacks added; all of them, where it is not there."""
        index = _faiss_index(f"HNSW{self.links},Flat", embeddings, folder / f"hnsw{self.links}.faiss")
        index.hnsw.efSearch = self.breadth
        return index.search


Index = ExactIndex | IVFIndex | HNSWIndex
INDEXES: dict[str, type[Index]] = {kind.name: kind for kind in (ExactIndex, IVFIndex, HNSWIndex)}


def _semantic_search(queries: np.ndarray, embeddings: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    # Of unit length already: the cosine would normalize the whole corpus for every search.
    found = semantic_search(torch.from_numpy(queries), torch.from_numpy(embeddings), top_k=k, score_function=dot_score)
    scores = np.array([[hit["score"] for hit in hits] for hits in found], dtype=np.float32)
    return scores, np.array([[hit["corpus_id"] for hit in hits] for hits in found], dtype=np.int64)


def _faiss_index(factory: str, embeddings: np.ndarray, path: Path) -> Any:
    _faiss()
    index = _written(path, embeddings)
    if index is None or index.ntotal < len(embeddings):
        # Of programs that open the folder at once, one completes the file, and the others wait for it.
        with FileLock(path.with_suffix(".lock")):
            index = _completed(factory, embeddings, path)
    return index


def _written(path: Path, embeddings: np.ndarray) -> Any:
    """What was written, perhaps of fewer embeddings; None if nothing was."""
    if not path.exists():
        return None
    try:
        index = _faiss().read_index(str(path))
        if index.d != embeddings.shape[1] or index.ntotal > len(embeddings):
            raise RuntimeError(f"it has {index.ntotal:,} embeddings of {index.d} dimensions, not {embeddings.shape}")
    except RuntimeError as error:
        raise ValueError(f"{path} is damaged, delete it: it is made anew from the embeddings ({error})") from None
    return index


def _completed(factory: str, embeddings: np.ndarray, path: Path) -> Any:
    faiss = _faiss()
    index = _written(path, embeddings)
    if index is None:
        index = faiss.index_factory(embeddings.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
    if not index.is_trained:
        index.cp.niter = 10  # more cost time and change the recall in the third place
        index.cp.min_points_per_centroid = 1  # no warning of small corpora
        count = min(len(embeddings), 64 * index.nlist)
        rows = np.random.default_rng(0).choice(len(embeddings), count, replace=False)
        index.train(embeddings[np.sort(rows)])
    for start in range(index.ntotal, len(embeddings), ROWS_AT_ONCE):
        index.add(embeddings[start : start + ROWS_AT_ONCE])
    part = path.with_suffix(".tmp")
    # Through Python's file: faiss's own reports no error of the last bytes on a full disk.
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
        raise ImportError('this index needs faiss: pip install "st_simcse[search]"') from error
    return faiss


def _check(index: IVFIndex | HNSWIndex) -> None:
    _faiss()
    for name, value in vars(index).items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
