import pytest
from matplotlib import pyplot
from matplotlib.container import ErrorbarContainer

from st_simcse.plots import plot_alignment_uniformity, plot_scores


@pytest.fixture
def drawn(monkeypatch):
    """The axes of the picture that is drawn."""
    axes = []
    subplots = pyplot.subplots
    monkeypatch.setattr(pyplot, "subplots", lambda **options: axes.append(made := subplots(**options)) or made)
    yield axes
    pyplot.close("all")


def test_paths_have_uniformity_on_x_and_alignment_on_y(tmp_path, drawn):
    history = [
        {"loss": 1.0},
        {"eval_dev_alignment": 0.3, "eval_dev_uniformity": -1.0, "eval_dev_spearman_cosine": 0.5},
        {"eval_dev_alignment": 0.2, "eval_dev_uniformity": -2.0},
    ]
    plot_alignment_uniformity({"a": history, "b": [{"uniformity": -3.0, "alignment": 0.1}]}, tmp_path / "paths.png")
    lines = drawn[0][1].get_lines()
    assert lines[0].get_xydata().tolist() == [[-1.0, 0.3], [-2.0, 0.2]]
    assert lines[1].get_xydata().tolist() == [[-3.0, 0.1]]
    assert (tmp_path / "paths.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="run 'c' has no metrics"):
        plot_alignment_uniformity({"c": history[:1]}, tmp_path / "none.png")


def test_bars_are_the_numbers(tmp_path, drawn):
    plot_scores(
        {"a": {"STS-B": 80.0, "Avg.": 70.0}, "b": {"STS-B": 81.0, "Avg.": 71.5}}, tmp_path / "b.svg", "Spearman"
    )
    heights = [[bar.get_height() for bar in bars] for bars in drawn[0][1].containers]
    assert heights == [[80.0, 70.0], [81.0, 71.5]]
    assert [label.get_text() for label in drawn[0][1].get_xticklabels()] == ["STS-B", "Avg."]
    assert "<svg" in (tmp_path / "b.svg").read_text()
    spreads = {"a": {"STS-B": 1.0, "Avg.": 2.0}}
    plot_scores({"a": {"STS-B": 80.0, "Avg.": 70.0}}, tmp_path / "c.png", "Spearman", spreads)
    bars = next(one for one in drawn[1][1].containers if isinstance(one, ErrorbarContainer))
    ends = [segment[:, 1].tolist() for segment in bars.lines[2][0].get_segments()]
    assert ends == [[79.0, 81.0], [68.0, 72.0]]


def test_a_number_that_is_nan_has_no_bar(tmp_path, drawn):
    plot_scores({"a": {"STS-B": float("nan")}, "b": {"STS-B": 81.0}}, tmp_path / "b.png", "Spearman")
    assert drawn[0][1].get_ylim()[0] == 80.0
    with pytest.raises(ValueError, match=r"b.doc: the ending says the format"):
        plot_scores({"a": {"STS-B": 81.0}}, tmp_path / "b.doc", "Spearman")
