"""The paper's figures from our numbers. Needs matplotlib (the extra "plots")."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["check_picture", "plot_alignment_uniformity", "plot_scores"]


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
        >>> plot_alignment_uniformity({"cls": history}, getfixture("tmp_path") / "paths.png")
    """
    figure, axes = _figure(path)
    for run, history in runs.items():
        points = [point for entry in history if (point := _point(entry, name)) is not None]
        if not points:
            raise ValueError(f"run {run!r} has no metrics that end in {name}_alignment and {name}_uniformity")
        axes.plot(*zip(*points, strict=True), marker=".", label=run)
        for begin, end in pairwise(points):
            axes.annotate("", xy=end, xytext=begin, arrowprops={"arrowstyle": "->", "alpha": 0.5})
    axes.set(xlabel="uniformity (less is better)", ylabel="alignment (less is better)")
    axes.legend()
    figure.savefig(path, dpi=120)


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
        >>> plot_scores({"ours": {"STS-B": 80.0, "Avg.": 78.0}}, getfixture("tmp_path") / "bars.png", "Spearman")
    """
    figure, axes = _figure(path)
    width = 0.8 / len(rows)
    for number, (name, row) in enumerate(rows.items()):
        places = [group + (number - (len(rows) - 1) / 2) * width for group in range(len(row))]
        errors = [spreads[name][column] for column in row] if spreads else None
        axes.bar(places, list(row.values()), width, yerr=errors, capsize=3, label=name)
    columns = list(next(iter(rows.values())))
    lowest = min((value for row in rows.values() for value in row.values() if math.isfinite(value)), default=0)
    axes.set(ylabel=label, xticks=range(len(columns)), xticklabels=columns, ylim=(10 * ((lowest - 1) // 10), None))
    axes.grid(axis="y", alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def _point(entry: Mapping[str, float], name: str) -> tuple[float, float] | None:
    found = {
        metric: value
        for metric in ("uniformity", "alignment")
        for key, value in entry.items()
        if key == metric or key.endswith(f"{name}_{metric}")
    }
    return (found["uniformity"], found["alignment"]) if len(found) == 2 else None


def _figure(path: str | os.PathLike[str]) -> tuple[Figure, Axes]:
    check_picture(path)
    import matplotlib

    matplotlib.use("Agg")  # draws without a screen
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    return figure, axes
