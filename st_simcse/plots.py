"""The paper's figures for your own results, and maps of a corpus. They need matplotlib (the extra "plots")."""

from __future__ import annotations

import logging
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

from st_simcse.fonts import boxes_are_no_warnings, choose_fonts

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

logger = logging.getLogger(__name__)

Projection = Literal["pca", "umap"]

MAX_CLASSES = 20  # the number of colours in matplotlib's largest palette
MARKERS = "os^DvP*X"  # different markers, because colours are lost in black-and-white print
DPI = 300  # the resolution that journals ask for
NAME_WIDTH = 70  # characters per line of a legend
BINS = np.linspace(-1, 1, 101)  # cosine similarities


def check_picture(path: str | os.PathLike[str]) -> None:
    """Checks that a picture can be saved under this name. Call it before the work whose result the picture shows.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If the file extension is not a picture format of matplotlib.

    Example:
        >>> check_picture("bars.png")
    """
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError as error:
        raise ImportError('Pictures need matplotlib. Install it with: pip install "st_simcse[plots]"') from error

    endings = FigureCanvasBase.get_supported_filetypes()
    if Path(path).suffix[1:].lower() not in endings:
        raise ValueError(f"{path} does not have the file extension of a picture. Use one of .{', .'.join(endings)}")


def check_projection(projection: Projection) -> None:
    """Checks that the package for a projection is installed.

    Raises:
        ImportError: If the projection is ``umap`` and umap-learn is not installed.

    Example:
        >>> check_projection("pca")
    """
    if projection == "umap" and find_spec("umap") is None:
        raise ImportError("The projection umap needs UMAP. Install it with pip install umap-learn, or use pca.")


def plot_alignment_uniformity(
    runs: Mapping[str, Sequence[Mapping[str, float]]], path: str | os.PathLike[str], name: str = ""
) -> None:
    """Plots the paths of training runs in the plane of uniformity and alignment, as in figure 2 of the paper.

    Args:
        runs: The metrics of each run in order of time, by the name of the run. ``trainer.state.log_history`` has this
            format. Entries without the two metrics are skipped.
        path: The picture to write. The file extension determines the format.
        name: The name of the evaluator, if there are several. By default, the first metrics whose names end in
            ``alignment`` and ``uniformity`` are used.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If a run does not have these metrics, or if the file extension is not a picture format.

    Example:
        >>> history = [{"dev_alignment": 0.3, "dev_uniformity": -1.5}, {"dev_alignment": 0.2, "dev_uniformity": -2.0}]
        >>> plot_alignment_uniformity({"cls": history}, "paths.png")
    """
    figure, axes = make_figure(path)
    lines, names = [], []
    for number, (run, history) in enumerate(runs.items()):
        points = [point for entry in history if (point := _point(entry, name)) is not None]
        if not points:
            raise ValueError(
                f"The run {run!r} has no metrics that end in {name}_alignment and {name}_uniformity. Evaluate it with "
                "AlignmentUniformityEvaluator."
            )
        lines += axes.plot(*zip(*points, strict=True), marker=MARKERS[number % len(MARKERS)], markersize=5)
        uniformity, alignment = points[-1]
        numbers = f"uniformity {uniformity:.2f}, alignment {alignment:.2f}".replace("-", "−")  # as on the axes
        names.append(f"{run}: {numbers} at the end")
        colour = lines[-1].get_color()
        for begin, end in pairwise(points):
            axes.annotate("", xy=end, xytext=begin, arrowprops={"arrowstyle": "-|>", "color": colour})
    axes.set(xlabel="uniformity (lower is better)", ylabel="alignment (lower is better)")
    grid_behind(axes)
    legend_outside(figure, lines, names)
    save_figure(figure, path)


def plot_scores(
    rows: Mapping[str, Mapping[str, float]],
    path: str | os.PathLike[str],
    label: str,
    spreads: Mapping[str, Mapping[str, float]] | None = None,
) -> None:
    """Plots a table of numbers as labelled dots. Each column is a group of dots, and each row has a colour.

    The axis covers the range of the numbers and need not include zero, because dots do not show lengths as bars do. A
    number that is nan is written without a dot.

    Args:
        rows: The numbers by row and column, as for :func:`~st_simcse.evaluation.format_table`.
        path: The picture to write.
        label: The label of the axis.
        spreads: The spread of each number, which is drawn as an error bar to both sides. nan for no error bar.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If the file extension is not a picture format.

    Example:
        >>> plot_scores({"ours": {"STS-B": 80.0, "Avg.": 78.0}}, "dots.png", "Spearman")
    """
    columns = list(next(iter(rows.values())))
    figure, axes = make_figure(path, height=1.5 + 0.2 * len(columns) * (len(rows) + 1))
    step = 1 / (len(rows) + 1)
    dots = []
    for number, (name, row) in enumerate(rows.items()):
        values = [row[column] for column in columns]
        errors = [spreads[name][column] if spreads else math.nan for column in columns]
        places = [group + (number - (len(rows) - 1) / 2) * step for group in range(len(columns))]
        marker = MARKERS[number % len(MARKERS)]
        style = {"fmt": marker, "color": f"C{number}", "capsize": 3, "markersize": 5}
        dots.append(axes.errorbar(values, places, xerr=errors if spreads else None, **style))
        for value, error, place in zip(values, errors, places, strict=True):
            _write_value(axes, value, error, place, f"C{number}")
    _leave_room(axes, 0.3 if spreads else 0.16)
    for group in range(1, len(columns), 2):
        axes.axhspan(group - 0.5, group + 0.5, color="0.95", zorder=0, linewidth=0)
    axes.set(xlabel=label, yticks=range(len(columns)), yticklabels=columns, ylim=(len(columns) - 0.5, -0.5))
    axes.tick_params(axis="y", length=0)
    grid_behind(axes, axis="x")
    legend_outside(figure, dots, list(rows))
    save_figure(figure, path)


def name_clusters(embeddings: NDArray[Any], texts: Sequence[str], clusters: int) -> list[str]:
    """Clusters texts by k-means and returns the name of each text's cluster.

    The name has the number of the cluster, where 1 is the largest, and the text nearest to its centre.

    Args:
        embeddings: The embeddings of the texts, of shape (n, d). They are normalized to unit length.
        texts: The n texts.
        clusters: The number of clusters. K-means is run ten times with the seed 0.

    Raises:
        ValueError: If the numbers of embeddings and texts differ, or if there are fewer different embeddings than
            clusters.

    Example:
        >>> name_clusters(np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), ["A dog.", "A hound.", "A train."], 2)
        ['1: A dog.', '1: A dog.', '2: A train.']
    """
    from sklearn.cluster import KMeans

    points = _unit("the embeddings", embeddings, len(texts))
    if clusters < 1 or len(np.unique(points, axis=0)) < clusters:
        raise ValueError(
            f"{len(np.unique(points, axis=0))} different embeddings cannot be divided into {clusters} clusters. Choose "
            "from 1 to that number."
        )
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
    """Plots a map of a corpus with a panel for each model, a dot for each text and a colour for each class.

    The embeddings are normalized to unit length. PCA shows the two directions in which they vary most. UMAP (McInnes et
    al., 2018, arXiv:1802.03426, with cosine distance) shows which texts are neighbours. Each model has its own
    directions. You can compare how well the classes are separated in different panels, but not the positions of dots.

    Args:
        embeddings: The embeddings of the same n texts by the name of the model, each of shape (n, d). d may differ
            between models.
        classes: The classes of the n texts, with at most 20 different ones. :func:`name_clusters` can create them.
        path: The picture to write.
        projection: ``pca``, or ``umap``, which needs the package umap-learn.

    Raises:
        ImportError: If matplotlib is not installed, or if the projection is ``umap`` and umap-learn is not installed.
        ValueError: If the numbers of embeddings and classes differ, if there are fewer than three texts (four for
            UMAP) or more than 20 classes, if embeddings are not finite, or if the file extension is not a picture
            format.

    Example:
        >>> import numpy as np
        >>> before, after = np.eye(4), np.eye(4)[:, :2] + 1
        >>> classes = ["animal", "animal", "vehicle", "vehicle"]
        >>> plot_map({"before": before, "after": after}, classes, "map.png")
    """
    check_projection(projection)
    sizes = Counter(classes)
    if len(sizes) > MAX_CLASSES:
        raise ValueError(
            f"{len(sizes)} classes are too many: colours can distinguish at most {MAX_CLASSES}. Merge some classes."
        )
    points = {name: _unit(name, rows, len(classes)) for name, rows in embeddings.items()}
    figure = make_figure(path, len(points))[0]
    import matplotlib

    palette = matplotlib.colormaps["tab10" if len(sizes) <= 10 else "tab20"](range(MAX_CLASSES))
    colours = dict(zip((name for name, _ in sizes.most_common()), palette, strict=False))
    # In random order, because the class drawn last would hide the others.
    order = np.random.default_rng(0).permutation(len(classes))
    for axes, (name, rows) in zip(figure.axes, points.items(), strict=True):
        places, labels = _project(rows, projection)
        x, y = places[order].T
        axes.scatter(x, y, s=12, alpha=0.6, linewidths=0, c=[colours[classes[row]] for row in order])
        axes.set(title=name, xlabel=labels[0], ylabel=labels[1], xticks=[], yticks=[])
        axes.set_aspect("equal", "datalim")
    dots = [axes.scatter([], [], color=colour) for colour in colours.values()]
    names = [f"{name} ({sizes[name]:,})" for name in colours]
    legend_outside(figure, dots, names)
    save_figure(figure, path)


def plot_similarities(
    embeddings: Mapping[str, Sequence[NDArray[Any]]], texts: Sequence[Sequence[str]], path: str | os.PathLike[str]
) -> None:
    """Plots histograms of the cosine similarities of positive pairs and of negative pairs, with a panel for each model.

    As in the losses, the negatives of an anchor are the positives of the other rows, except for texts that are a
    positive of the same anchor in any row. If there are hard negatives, their similarities are a third histogram. Each
    histogram has an area of 1, because there are many more negatives than positives.

    Args:
        embeddings: The embeddings by the name of the model: those of the anchors, of the positives and optionally of
            hard negatives, each of shape (n, d).
        texts: The texts of the same columns, n each.
        path: The picture to write.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If the columns do not match, if embeddings are not finite, if no row has a negative, or if the file
            extension is not a picture format.

    Example:
        >>> import numpy as np
        >>> columns = [["A dog runs.", "A train stops."], ["A hound runs.", "A train halts."]]
        >>> embeddings = [np.eye(2), np.eye(2) + 0.1]
        >>> plot_similarities({"ours": embeddings}, columns, "similarities.png")
    """
    if len(texts) not in (2, 3):
        raise ValueError(
            f"Expected anchors, positives and optionally hard negatives, got {len(texts)} columns of texts"
        )
    lengths = [len(column) for column in texts]
    if len(set(lengths)) > 1:
        raise ValueError(
            f"The columns of texts have {', '.join(map(str, lengths))} rows. They must have the same number of rows."
        )
    names = ["positives", "negatives", "hard negatives"][: len(texts)]
    panels = {name: _histograms(name, columns, texts) for name, columns in embeddings.items()}
    figure = make_figure(path, len(panels), sharex=True, sharey=True)[0]
    for axes, (model, histograms) in zip(figure.axes, panels.items(), strict=True):
        for number, (name, (counts, mean)) in enumerate(zip(names, histograms, strict=True)):
            density, colour = counts / counts.sum() / np.diff(BINS), f"C{number}"
            axes.stairs(density, BINS, fill=True, alpha=0.4, color=colour, label=f"{name}, mean {mean:.2f}")
            axes.stairs(density, BINS, color=colour)
        axes.set(title=model, xlabel="cosine similarity", xlim=_range(panels.values()))
        grid_behind(axes)
        # A separate legend below each panel, because the means differ between panels.
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), fontsize="small", frameon=False)
    figure.axes[0].set_ylabel("density")
    figure.axes[0].set_ylim(bottom=0)
    save_figure(figure, path)


def _point(entry: Mapping[str, float], name: str) -> tuple[float, float] | None:
    uniformity, alignment = (
        next((value for key, value in entry.items() if key == metric or key.endswith(f"{name}_{metric}")), None)
        for metric in ("uniformity", "alignment")
    )
    return None if uniformity is None or alignment is None else (uniformity, alignment)


def _unit(name: str, embeddings: NDArray[Any], texts: int) -> NDArray[Any]:
    """Returns the embeddings at unit length in float64, and checks that there is one for each text."""
    rows = np.asarray(embeddings, dtype=np.float64)
    if rows.ndim != 2 or len(rows) != texts:
        raise ValueError(f"{name}: expected embeddings of {texts} texts with shape (n, d), got shape {rows.shape}")
    if not np.isfinite(rows).all():
        raise ValueError(f"{name}: some embeddings are NaN or infinite. Check the training of the model.")
    unit: NDArray[Any] = rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-12)
    return unit


def _project(points: NDArray[Any], projection: Projection) -> tuple[NDArray[Any], list[str]]:
    """Returns the positions, of shape (n, 2), and the names of the axes."""
    least = 4 if projection == "umap" else 3
    if len(points) < least or points.shape[1] < 2:
        raise ValueError(
            f"A map needs at least {least} texts and 2 dimensions, got embeddings with shape {points.shape}"
        )
    if projection == "umap":
        from umap import UMAP

        return UMAP(metric="cosine", random_state=0, n_jobs=1).fit_transform(points), ["UMAP 1", "UMAP 2"]
    from sklearn.decomposition import PCA

    pca = PCA(2, svd_solver="covariance_eigh")  # one solver for all sizes, without randomness
    places = pca.fit_transform(points)
    return places, [f"PC {n} ({share:.0%} of the variance)" for n, share in enumerate(pca.explained_variance_ratio_, 1)]


def _histograms(
    name: str, columns: Sequence[NDArray[Any]], texts: Sequence[Sequence[str]]
) -> list[tuple[NDArray[Any], float]]:
    """Returns the counts per bin and the mean for the positives, the negatives and any hard negatives."""
    import torch

    from st_simcse.objective.known_positives import KnownPositives

    if len(columns) != len(texts):
        raise ValueError(f"{name}: {len(columns)} columns of embeddings, but {len(texts)} of texts")
    anchors, positives, *hard = (_unit(name, rows, len(texts[0])) for rows in columns)
    numbers: dict[str, int] = {}
    pairs = torch.tensor([[numbers.setdefault(text, len(numbers)) for text in column] for column in texts[:2]])
    known = KnownPositives(queries=pairs[0], candidates=pairs[1], pairs=pairs)
    counts, total = np.zeros(len(BINS) - 1), 0.0
    for begin in range(0, len(anchors), 1024):  # a matrix of all pairs may not fit into memory
        rows = slice(begin, begin + 1024)
        negatives = (anchors[rows] @ positives.T)[~known.mask(rows).numpy()]
        counts += np.histogram(negatives.clip(-1, 1), BINS)[0]
        total += negatives.sum()
    if not counts.sum():
        raise ValueError("No row has a negative. Pass pairs with different texts.")
    of_pairs = [(anchors * others).sum(axis=1) for others in (positives, *hard)]
    own = [(np.histogram(values.clip(-1, 1), BINS)[0], float(values.mean())) for values in of_pairs]
    return [own[0], (counts, total / counts.sum()), *own[1:]]


def _range(panels: Iterable[Sequence[tuple[NDArray[Any], float]]]) -> tuple[float, float]:
    """Returns the range from the first to the last bin that is not empty."""
    full = np.flatnonzero(sum(counts for histograms in panels for counts, _ in histograms))
    return BINS[full[0]], BINS[full[-1] + 1]


def _write_value(axes: Axes, value: float, error: float, place: float, colour: str) -> None:
    """Writes a number to the right of its dot and error bar, or next to the axis if it has no dot."""
    style: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontsize": "small"}
    if not math.isfinite(value):
        of_axis = axes.get_yaxis_transform()
        axes.annotate(f"{value}", (0, place), (6, 0), xycoords=of_axis, color=colour, **style)
        return
    spread = error if math.isfinite(error) else 0.0
    text = f"{value:.2f} ± {error:.2f}" if math.isfinite(error) else f"{value:.2f}"
    axes.annotate(text, (value + spread, place), (7, 0), **style)


def _leave_room(axes: Axes, share: float) -> None:
    """Sets limits of the x axis with room for the numbers to the right of the dots, even if these are almost equal."""
    low, high = axes.dataLim.intervalx
    if not math.isfinite(low):
        low, high = 0.0, 1.0
    middle, span = (low + high) / 2, max(high - low, 0.01 * max(abs(low), abs(high)))
    axes.set_xlim(middle - 0.6 * span, middle + (0.5 + share) * span)


def make_figure(
    path: str | os.PathLike[str], panels: int = 1, height: float = 5.0, **options: Any
) -> tuple[Figure, Any]:
    """Creates a figure for this file with its axes, side by side if there are several.

    ``options`` are passed on to ``subplots``.

    Raises:
        ImportError, ValueError: As in :func:`check_picture`.
    """
    check_picture(path)
    from matplotlib.figure import Figure

    # A figure of pyplot would stay open and change how a notebook draws.
    figure = Figure(figsize=(8 if panels == 1 else 6 * panels, height), layout="constrained")
    return figure, figure.subplots(ncols=panels, **options)


def grid_behind(axes: Axes, axis: Literal["both", "x", "y"] = "both") -> None:
    """Adds a grid behind the data, and labels the ticks with full numbers instead of differences from an offset."""
    from matplotlib.ticker import ScalarFormatter

    axes.set_axisbelow(True)
    axes.grid(axis=axis, color="0.85", linewidth=0.8)
    for side in (axes.xaxis, axes.yaxis):
        if isinstance(formatter := side.get_major_formatter(), ScalarFormatter):
            formatter.set_useOffset(False)


def legend_outside(figure: Figure, handles: Sequence[Any], names: Sequence[str]) -> None:
    """Adds a legend below the axes, where it covers no data, with as many columns as fit.

    Unlike in matplotlib, names with a leading underscore are included.
    """
    labels = list(map(str, range(len(names))))
    shown = ["\n".join(textwrap.wrap(name, NAME_WIDTH)) if len(name) > NAME_WIDTH else name for name in names]
    for columns in range(min(len(names), 4), 0, -1):
        legend = figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize="small")
        for text, name in zip(legend.get_texts(), shown, strict=True):
            text.set(text=name, parse_math=False)
        choose_fonts(legend.get_texts())
        with boxes_are_no_warnings():
            width = legend.get_window_extent().width
        if columns == 1 or width <= figure.bbox.width:
            return
        legend.remove()


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Saves the picture at 300 dpi. A `$` in a name is shown as it is and does not begin a formula.

    Characters that no installed font has are boxes in the picture, and a warning is logged.
    """
    from matplotlib.text import Text

    texts = [text for text in figure.findobj(Text) if isinstance(text, Text)]
    for text in texts:
        if "$" in text.get_text():
            text.set_parse_math(False)
    if lacking := choose_fonts(texts):
        logger.warning(
            "%s shows boxes for %s characters, such as %r, because no installed font has them. Install a font for this "
            "script, such as Noto Sans CJK for Chinese, and make the picture again.",
            *(os.fspath(path), f"{len(lacking):,}", min(lacking)),
        )
    with boxes_are_no_warnings():
        figure.savefig(path, dpi=DPI)
