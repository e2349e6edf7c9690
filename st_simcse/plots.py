"""The paper's figures from our numbers, and maps of a corpus. Needs matplotlib (the extra "plots")."""

from __future__ import annotations

import math
import os
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

__all__ = [
    "MAX_CLASSES",
    "check_picture",
    "check_projection",
    "name_clusters",
    "plot_alignment_uniformity",
    "plot_map",
    "plot_scores",
    "plot_similarities",
]

Projection = Literal["pca", "umap"]

MAX_CLASSES = 20  # as many colours as matplotlib's largest palette has
BINS = np.linspace(-1, 1, 101)  # of cosine similarities


def check_picture(path: str | os.PathLike[str]) -> None:
    """Whether a picture could be drawn under this name; asked before the work whose result it shows.

    Raises:
        ImportError: without matplotlib.
        ValueError: for an ending that is no format of matplotlib's.

    Example:
        >>> check_picture("bars.png")
    """
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError as error:
        raise ImportError('pictures need matplotlib: pip install "st_simcse[plots]"') from error

    endings = FigureCanvasBase.get_supported_filetypes()
    if Path(path).suffix[1:].lower() not in endings:
        raise ValueError(f"{path}: the ending says the format of a picture, choose one of .{', .'.join(endings)}")


def check_projection(projection: Projection) -> None:
    """ImportError for UMAP where it is not installed.

    Example:
        >>> check_projection("pca")
    """
    if projection == "umap" and find_spec("umap") is None:
        raise ImportError("the projection umap needs UMAP: pip install umap-learn, or take pca")


def plot_alignment_uniformity(
    runs: Mapping[str, Sequence[Mapping[str, float]]], path: str | os.PathLike[str], name: str = ""
) -> None:
    """The paths of training runs in the plane of uniformity and alignment, as in figure 2 of the paper.

    Args:
        runs: by the name of a run, its metrics in order of time; ``trainer.state.log_history`` will do, entries
            without the two metrics are passed over.
        path: the picture to write; its ending says in which format.
        name: of the evaluator, if there are several; the first metrics whose names end in ``alignment`` and
            ``uniformity`` when left out.

    Raises:
        ImportError: without matplotlib.
        ValueError: for a run without these metrics, and for an ending that is no format.

    Example:
        >>> history = [{"dev_alignment": 0.3, "dev_uniformity": -1.5}, {"dev_alignment": 0.2, "dev_uniformity": -2.0}]
        >>> plot_alignment_uniformity({"cls": history}, "paths.png")
    """
    figure, axes = _figure(path)
    lines = []
    for run, history in runs.items():
        points = [point for entry in history if (point := _point(entry, name)) is not None]
        if not points:
            raise ValueError(f"run {run!r} has no metrics that end in {name}_alignment and {name}_uniformity")
        lines += axes.plot(*zip(*points, strict=True), marker=".")
        for begin, end in pairwise(points):
            axes.annotate("", xy=end, xytext=begin, arrowprops={"arrowstyle": "->", "alpha": 0.5})
    axes.set(xlabel="uniformity (less is better)", ylabel="alignment (less is better)")
    _legend(axes, lines, list(runs))
    _save(figure, path)


def plot_scores(
    rows: Mapping[str, Mapping[str, float]],
    path: str | os.PathLike[str],
    label: str,
    spreads: Mapping[str, Mapping[str, float]] | None = None,
) -> None:
    """Numbers by row and column as grouped bars: a group a column, a colour a row.

    Args:
        rows: as for :func:`~st_simcse.evaluation.format_table`.
        path: the picture to write.
        label: of the axis.
        spreads: of each number, drawn as an error bar up and down.

    Raises:
        ImportError: without matplotlib.
        ValueError: for an ending that is no format.

    Example:
        >>> plot_scores({"ours": {"STS-B": 80.0, "Avg.": 78.0}}, "bars.png", "Spearman")
    """
    figure, axes = _figure(path)
    width = 0.8 / len(rows)
    bars = []
    for number, (name, row) in enumerate(rows.items()):
        places = [group + (number - (len(rows) - 1) / 2) * width for group in range(len(row))]
        errors = [spreads[name][column] for column in row] if spreads else None
        bars.append(axes.bar(places, list(row.values()), width, yerr=errors, capsize=3))
    columns = list(next(iter(rows.values())))
    lowest = min((value for row in rows.values() for value in row.values() if math.isfinite(value)), default=0)
    axes.set(ylabel=label, xticks=range(len(columns)), xticklabels=columns, ylim=(10 * ((lowest - 1) // 10), None))
    axes.grid(axis="y", alpha=0.3)
    _legend(axes, bars, list(rows))
    _save(figure, path)


def name_clusters(embeddings: NDArray[Any], texts: Sequence[str], clusters: int) -> list[str]:
    """Of each text the name of its k-means cluster: its number, by size, and the text nearest to its centre.

    Args:
        embeddings: (n, d), brought to unit length.
        texts: n of them.
        clusters: the k of k-means, started ten times from the seed 0.

    Raises:
        ValueError: for embeddings and texts that do not fit, and for fewer different embeddings than clusters.

    Example:
        >>> name_clusters(np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), ["A dog.", "A hound.", "A train."], 2)
        ['1: A dog.', '1: A dog.', '2: A train.']
    """
    from sklearn.cluster import KMeans

    points = _unit("the embeddings", embeddings, len(texts))
    if clusters < 1 or len(np.unique(points, axis=0)) < clusters:
        raise ValueError(f"{clusters} clusters of {len(np.unique(points, axis=0))} different embeddings cannot be made")
    distances = KMeans(clusters, n_init=10, random_state=0).fit(points).transform(points)
    nearest = distances.argmin(axis=1)
    names = {
        cluster: f"{number}: {textwrap.shorten(texts[distances[:, cluster].argmin()], 40, placeholder=' ...')}"
        for number, (cluster, _) in enumerate(Counter(nearest.tolist()).most_common(), start=1)
    }
    return [names[cluster] for cluster in nearest.tolist()]


def plot_map(
    embeddings: Mapping[str, NDArray[Any]],
    classes: Sequence[str],
    path: str | os.PathLike[str],
    projection: Projection = "pca",
) -> None:
    """A corpus as dots in a plane: a panel a model, a dot a text, a colour a class.

    Embeddings are brought to unit length. PCA shows the two directions in which they differ most, UMAP (McInnes et
    al., 2018, arXiv:1802.03426, with the cosine) who is whose neighbour. Each model has directions of its own, so that
    places of two panels cannot be compared, but how well classes lie apart can.

    Args:
        embeddings: by the name of a model (n, d), of the same texts; d may differ.
        classes: of the n texts, 20 different ones at most; :func:`name_clusters` makes some.
        path: the picture to write.
        projection: ``pca`` or ``umap``, for which the package umap-learn is needed.

    Raises:
        ImportError: without matplotlib, or without umap-learn where it is asked for.
        ValueError: for embeddings that are not as many as the classes, fewer than three (four for UMAP) or not finite,
            for more than 20 classes, and for an ending that is no format.

    Example:
        >>> import numpy as np
        >>> before, after = np.eye(4), np.eye(4)[:, :2] + 1
        >>> classes = ["animal", "animal", "vehicle", "vehicle"]
        >>> plot_map({"before": before, "after": after}, classes, "map.png")
    """
    check_projection(projection)
    sizes = Counter(classes)
    if len(sizes) > MAX_CLASSES:
        raise ValueError(f"{len(sizes)} classes are more than the {MAX_CLASSES} that colours tell apart: join some")
    points = {name: _unit(name, rows, len(classes)) for name, rows in embeddings.items()}
    figure = _figure(path, len(points))[0]
    import matplotlib

    palette = matplotlib.colormaps["tab10" if len(sizes) <= 10 else "tab20"](range(MAX_CLASSES))
    colours = dict(zip((name for name, _ in sizes.most_common()), palette, strict=False))
    # In random order, since the class drawn last would hide the others.
    order = np.random.default_rng(0).permutation(len(classes))
    for axes, (name, rows) in zip(figure.axes, points.items(), strict=True):
        places, labels = _project(rows, projection)
        x, y = places[order].T
        axes.scatter(x, y, s=12, alpha=0.6, linewidths=0, c=[colours[classes[row]] for row in order])
        axes.set(title=name, xlabel=labels[0], ylabel=labels[1], xticks=[], yticks=[])
        axes.set_aspect("equal", "datalim")
    dots = [axes.scatter([], [], color=colour) for colour in colours.values()]
    names = [f"{name} ({sizes[name]:,})" for name in colours]
    _legend(figure, dots, names, loc="outside lower center", ncols=2, fontsize="small")
    _save(figure, path)


def plot_similarities(
    embeddings: Mapping[str, Sequence[NDArray[Any]]], texts: Sequence[Sequence[str]], path: str | os.PathLike[str]
) -> None:
    """Histograms of the cosine similarities of positive pairs and of negatives, a panel a model.

    The negatives of an anchor are the other rows' positives, without those texts that are the anchor's own positives
    in some row, as in the losses. Of rows with a hard negative the similarities to it are a third histogram. Areas are
    1, since there are far more negatives than positives.

    Args:
        embeddings: by the name of a model (n, d) of the anchors, of their positives and perhaps of hard negatives.
        texts: the same columns as texts, n each.
        path: the picture to write.

    Raises:
        ImportError: without matplotlib.
        ValueError: for columns that do not fit, for embeddings that are not finite, for texts that leave no negatives,
            and for an ending that is no format.

    Example:
        >>> import numpy as np
        >>> columns = [["A dog runs.", "A train stops."], ["A hound runs.", "A train halts."]]
        >>> embeddings = [np.eye(2), np.eye(2) + 0.1]
        >>> plot_similarities({"ours": embeddings}, columns, "similarities.png")
    """
    if len(texts) not in (2, 3):
        raise ValueError(f"expected anchors, positives and perhaps hard negatives, got {len(texts)} columns of texts")
    lengths = [len(column) for column in texts]
    if len(set(lengths)) > 1:
        raise ValueError(f"the columns of texts have {', '.join(map(str, lengths))} rows: one a pair")
    names = ["positives", "negatives", "hard negatives"][: len(texts)]
    panels = {name: _histograms(name, columns, texts) for name, columns in embeddings.items()}
    figure = _figure(path, len(panels), sharex=True, sharey=True)[0]
    for axes, (model, histograms) in zip(figure.axes, panels.items(), strict=True):
        for name, (counts, mean) in zip(names, histograms, strict=True):
            density = counts / counts.sum() / np.diff(BINS)
            axes.stairs(density, BINS, fill=True, alpha=0.5, label=f"{name}, mean {mean:.2f}")
        axes.set(title=model, xlabel="cosine similarity", xlim=_range(panels.values()))
        axes.legend()
    figure.axes[0].set_ylabel("density")
    _save(figure, path)


def _point(entry: Mapping[str, float], name: str) -> tuple[float, float] | None:
    uniformity, alignment = (
        next((value for key, value in entry.items() if key == metric or key.endswith(f"{name}_{metric}")), None)
        for metric in ("uniformity", "alignment")
    )
    return None if uniformity is None or alignment is None else (uniformity, alignment)


def _unit(name: str, embeddings: NDArray[Any], texts: int) -> NDArray[Any]:
    """The rows at unit length in float64, if they are as many as the texts."""
    rows = np.asarray(embeddings, dtype=np.float64)
    if rows.ndim != 2 or len(rows) != texts:
        raise ValueError(f"{name}: expected embeddings of {texts} texts, (n, d), got the shape {rows.shape}")
    if not np.isfinite(rows).all():
        raise ValueError(f"{name}: some embeddings are not finite; look at the model's training")
    unit: NDArray[Any] = rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-12)
    return unit


def _project(points: NDArray[Any], projection: Projection) -> tuple[NDArray[Any], list[str]]:
    """(n, 2), and the axes' names."""
    least = 4 if projection == "umap" else 3
    if len(points) < least or points.shape[1] < 2:
        raise ValueError(f"a map needs {least} texts and 2 dimensions or more, got embeddings {points.shape}")
    if projection == "umap":
        from umap import UMAP

        return UMAP(metric="cosine", random_state=0, n_jobs=1).fit_transform(points), ["UMAP 1", "UMAP 2"]
    from sklearn.decomposition import PCA

    pca = PCA(2, svd_solver="covariance_eigh")  # all sizes have the same, and no randomness
    places = pca.fit_transform(points)
    return places, [f"PC {n} ({share:.0%} of the variance)" for n, share in enumerate(pca.explained_variance_ratio_, 1)]


def _histograms(
    name: str, columns: Sequence[NDArray[Any]], texts: Sequence[Sequence[str]]
) -> list[tuple[NDArray[Any], float]]:
    """Counts in the bins, and the mean, of the positives, the negatives and, if there are, the hard negatives."""
    import torch

    from st_simcse.objective.known_positives import KnownPositives

    if len(columns) != len(texts):
        raise ValueError(f"{name}: {len(columns)} columns of embeddings, but {len(texts)} of texts")
    anchors, positives, *hard = (_unit(name, rows, len(texts[0])) for rows in columns)
    keys = np.unique([list(column) for column in texts[:2]], return_inverse=True)[1].reshape(2, -1)
    pairs = torch.from_numpy(keys)
    known = KnownPositives(queries=pairs[0], candidates=pairs[1], pairs=pairs)
    counts, total = np.zeros(len(BINS) - 1), 0.0
    for begin in range(0, len(anchors), 1024):  # a matrix of all pairs may not fit
        rows = slice(begin, begin + 1024)
        negatives = (anchors[rows] @ positives.T)[~known.mask(rows).numpy()]
        counts += np.histogram(negatives.clip(-1, 1), BINS)[0]
        total += negatives.sum()
    if not counts.sum():
        raise ValueError("no row has a negative: the pairs need different texts")
    of_pairs = [(anchors * others).sum(axis=1) for others in (positives, *hard)]
    own = [(np.histogram(values.clip(-1, 1), BINS)[0], float(values.mean())) for values in of_pairs]
    return [own[0], (counts, total / counts.sum()), *own[1:]]


def _range(panels: Iterable[Sequence[tuple[NDArray[Any], float]]]) -> tuple[float, float]:
    """From the first to the last bin in which there is something."""
    full = np.flatnonzero(sum(counts for histograms in panels for counts, _ in histograms))
    return BINS[full[0]], BINS[full[-1] + 1]


def _figure(path: str | os.PathLike[str], panels: int = 1, **options: Any) -> tuple[Figure, Axes]:
    check_picture(path)
    from matplotlib.figure import Figure

    # Not pyplot's, which would keep it open, and change how a notebook draws.
    figure = Figure(figsize=(8 if panels == 1 else 6 * panels, 5), layout="constrained")
    return figure, figure.subplots(ncols=panels, **options)


def _legend(owner: Figure | Axes, handles: Sequence[Any], names: Sequence[str], **options: Any) -> None:
    """A legend of all names, also of those with an underscore in front, which matplotlib would leave out."""
    legend = owner.legend(handles, list(map(str, range(len(names)))), **options)
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(name)


def _save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write the picture with names as they are: `$` would begin mathematics, which few names are."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        if isinstance(text, Text) and "$" in text.get_text():
            text.set_parse_math(False)
    figure.savefig(path, dpi=120)
