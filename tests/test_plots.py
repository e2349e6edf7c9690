import csv
import json
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Text
from sentence_transformers import SentenceTransformer

from st_simcse import cli, fonts
from st_simcse.cli import plot
from st_simcse.plots import name_clusters, plot_alignment_uniformity, plot_map, plot_scores, plot_similarities


@pytest.fixture
def drawn(monkeypatch):
    """The axes of the picture that is drawn."""
    drawn = []
    subplots = Figure.subplots

    def noted(figure, *args, **options):
        axes = subplots(figure, *args, **options)
        drawn.append((figure, axes))
        return axes

    monkeypatch.setattr(Figure, "subplots", noted)
    return drawn


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
    both = {f"{name}_{metric}": row for row, name in enumerate("ab") for metric in ("alignment", "uniformity")}
    for name, place in (("", 0), ("a", 0), ("b", 1)):  # the first evaluator, unless one is named
        plot_alignment_uniformity({"a": [both]}, tmp_path / "paths.png", name)
        assert drawn[-1][1].get_lines()[0].get_xydata().tolist() == [[place, place]]
    with pytest.raises(ValueError, match="run 'c' has no metrics"):
        plot_alignment_uniformity({"c": history[:1]}, tmp_path / "none.png")


def test_dots_are_the_numbers(tmp_path, drawn):
    plot_scores(
        {"a": {"STS-B": 80.0, "Avg.": 70.0}, "b": {"STS-B": 81.0, "Avg.": 71.5}}, tmp_path / "b.svg", "Spearman"
    )
    places = [dots.lines[0].get_xdata().tolist() for dots in drawn[0][1].containers]
    assert places == [[80.0, 70.0], [81.0, 71.5]]
    assert [label.get_text() for label in drawn[0][1].get_yticklabels()] == ["STS-B", "Avg."]
    assert [text.get_text() for text in drawn[0][1].texts] == ["80.00", "70.00", "81.00", "71.50"]
    assert "<svg" in (tmp_path / "b.svg").read_text()
    spreads = {"a": {"STS-B": 1.0, "Avg.": 2.0}}
    plot_scores({"a": {"STS-B": 80.0, "Avg.": 70.0}}, tmp_path / "c.png", "Spearman", spreads)
    (bars,) = drawn[1][1].containers
    ends = [segment[:, 0].tolist() for segment in bars.lines[2][0].get_segments()]
    assert ends == [[79.0, 81.0], [68.0, 72.0]]
    assert [text.get_text() for text in drawn[1][1].texts] == ["80.00 ± 1.00", "70.00 ± 2.00"]


def test_a_number_that_is_nan_has_no_dot(tmp_path, drawn):
    plot_scores({"a": {"STS-B": float("nan")}, "b": {"STS-B": 81.0}}, tmp_path / "b.png", "Spearman")
    assert [text.get_text() for text in drawn[0][1].texts] == ["nan", "81.00"]
    low, high = drawn[0][1].get_xlim()
    assert 80 < low < 81 < high < 82
    plot_scores({"a": {"STS-B": float("nan")}}, tmp_path / "b.png", "Spearman")
    with pytest.raises(ValueError, match=r"b.doc does not have the file extension"):
        plot_scores({"a": {"STS-B": 81.0}}, tmp_path / "b.doc", "Spearman")


def _dots(axes):
    """Place and colour of each dot, sorted."""
    dots = axes.collections[0]
    return sorted(
        (*place, *colour[:3]) for place, colour in zip(dots.get_offsets(), dots.get_facecolors(), strict=True)
    )


def test_a_map_has_the_principal_components_and_the_colours_of_the_classes(tmp_path, drawn):
    draw = np.random.default_rng(0)
    models = {"before": draw.normal(size=(9, 5)), "after": draw.normal(size=(9, 30))}
    classes = ["a", "b", "b"] * 3
    plot_map(models, classes, tmp_path / "map.png")
    figure = drawn[0][0]
    handles = figure.legends[0].legend_handles
    colours = {
        text.get_text()[0]: to_rgb(dot.get_facecolor()[0])
        for text, dot in zip(figure.legends[0].texts, handles, strict=True)
    }
    assert [text.get_text() for text in figure.legends[0].texts] == ["b (6)", "a (3)"]
    assert len(set(colours.values())) == 2
    for axes, (name, rows) in zip(figure.axes, models.items(), strict=True):
        unit = np.stack([row / np.sqrt(sum(value**2 for value in row)) for row in rows])
        left, singular, _ = np.linalg.svd(unit - unit.mean(axis=0))
        places = left[:, :2] * singular[:2]
        # The direction of a component may be either.
        drawn_places = np.array(axes.collections[0].get_offsets())
        places *= np.sign(places[np.abs(places).argmax(axis=0), [0, 1]])
        drawn_places *= np.sign(drawn_places[np.abs(drawn_places).argmax(axis=0), [0, 1]])
        axes.collections[0].set_offsets(drawn_places)
        expected = sorted((*place, *colours[one]) for place, one in zip(places, classes, strict=True))
        np.testing.assert_allclose(_dots(axes), expected, atol=1e-6)
        assert axes.get_title() == name
        share = singular[0] ** 2 / (singular**2).sum()
        assert axes.get_xlabel() == f"PC 1 ({100 * share:.0f}% of the variance)"


def test_a_map_of_umap(tmp_path, drawn, monkeypatch):
    embeddings = np.eye(4) * 3
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ImportError, match="pip install umap-learn"):
        plot_map({"a": embeddings}, list("abcd"), tmp_path / "map.png", "umap")

    def umap(metric, **seed):
        assert metric == "cosine"
        return SimpleNamespace(fit_transform=lambda points: 7 * points[:, :2])

    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=umap, __spec__=True))
    plot_map({"a": embeddings}, list("abcd"), tmp_path / "map.png", "umap")
    places = drawn[-1][0].axes[0].collections[0].get_offsets().tolist()
    assert sorted(places) == [[0, 0], [0, 0], [0, 7], [7, 0]]


def test_what_cannot_be_a_map_is_refused(tmp_path):
    path = tmp_path / "map.png"
    for embeddings, classes, message in (
        (np.eye(3), ["a"] * 4, r"ours: expected embeddings of 4 texts with shape \(n, d\), got shape \(3, 3\)"),
        (np.full((3, 3), np.nan), ["a"] * 3, "ours: some embeddings are NaN or infinite"),
        (np.eye(2), ["a"] * 2, "A map needs at least 3 texts"),
        (np.eye(21), [str(n) for n in range(21)], "21 classes are too many: colours can distinguish at most 20"),
    ):
        with pytest.raises(ValueError, match=message):
            plot_map({"ours": embeddings}, classes, path)
    with pytest.raises(ValueError, match="3 different embeddings cannot be divided into 4"):
        name_clusters(np.eye(3)[[0, 1, 2, 2]], list("abcd"), 4)
    assert not path.exists()


def test_few_texts_have_few_clusters():
    texts = ["a", "b", "c", "c"]
    assert plot._clusters(texts, None) == 3
    assert plot._clusters([str(n) for n in range(9)], None) == 8
    with pytest.raises(ValueError, match="--clusters 4 is too many for 3 different texts: pass at most 3"):
        plot._clusters(texts, 4)


def test_clusters_are_named_by_the_text_in_their_middle():
    angles = np.array([0.0, 0.1, 0.2, 3.0, 3.2, 3.1, 3.05, 1.5])
    embeddings = 5 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    texts = [*"abcdefg", "word " * 20]
    names = ["2: b"] * 3 + ["1: f", "1: f", "1: f", "1: f", "3: word word word word word word word ..."]
    assert name_clusters(embeddings, texts, 3) == names


def test_histograms_of_similarities_against_a_loop(tmp_path, drawn):
    """A text's positives in any row are none of its negatives."""
    draw = np.random.default_rng(0)
    texts = [["a", "b", "a", "c", "d"], ["p", "q", "r", "b", "p"], ["h", "i", "j", "k", "l"]]
    embeddings = draw.normal(size=(3, 5, 4))
    plot_similarities({"one": embeddings, "two": 2 * embeddings[::-1]}, texts, tmp_path / "similarities.png")

    def cosine(one, two):
        return float(one @ two / np.sqrt(one @ one) / np.sqrt(two @ two))

    positives_of = {"a": {"p", "r"}, "b": {"q"}, "c": {"b"}, "d": {"p"}}
    for axes, (anchors, positives, hard) in zip(drawn[0][0].axes, (embeddings, embeddings[::-1]), strict=True):
        values = {
            "positives": [cosine(anchors[row], positives[row]) for row in range(5)],
            "negatives": [
                cosine(anchors[row], positives[column])
                for row in range(5)
                for column in range(5)
                if texts[1][column] not in positives_of[texts[0][row]] | {texts[0][row]}
            ],
            "hard negatives": [cosine(anchors[row], hard[row]) for row in range(5)],
        }
        assert len(values["negatives"]) == 25 - 2 * 3 - 2 - 1 - 2
        for steps, (name, expected) in zip(axes.patches[::2], values.items(), strict=True):
            assert steps.get_label() == f"{name}, mean {sum(expected) / len(expected):.2f}"
            counts = Counter(int((value + 1) // 0.02) for value in expected)
            density = [counts[place] / len(expected) / 0.02 for place in range(100)]
            np.testing.assert_allclose(steps.get_data().values, density, atol=1e-9)
    with pytest.raises(ValueError, match="No row has a negative"):
        plot_similarities({"one": embeddings[:2, :2]}, [["a", "a"], ["b", "b"]], tmp_path / "none.png")
    with pytest.raises(ValueError, match="one: 3 columns of embeddings, but 2 of texts"):
        plot_similarities({"one": embeddings}, texts[:2], tmp_path / "none.png")
    with pytest.raises(ValueError, match="texts have 5, 4 rows"):
        plot_similarities({"one": embeddings[:2]}, [texts[0], texts[1][:4]], tmp_path / "none.png")


def _every_kind(folder):
    """A picture of each kind, with many and long names, and numbers that differ little."""
    draw = np.random.default_rng(0)
    names = ["a model of a name that is longer than the line of a legend can be, so that it is broken", *"abcdefgh"]
    columns = ["STS12", "STS-B", "Avg."]
    scores = {name: {column: 82.03 + draw.random() / 1000 for column in columns} for name in names}
    spreads = {name: dict.fromkeys(columns, 0.001) for name in names}
    plot_scores(scores, folder / "scores.png", "Spearman", spreads)
    points = draw.normal(size=(9, 4, 2)) / 1e5 + 3
    paths = [[{"uniformity": -x, "alignment": y} for x, y in path] for path in points]
    plot_alignment_uniformity(dict(zip(names, paths, strict=True)), folder / "paths.png")
    rows = draw.normal(size=(90, 4))
    plot_map({"before": rows, "after": rows[:, ::-1]}, names * 10, folder / "map.png")
    texts = [[f"{row} {column}" for row in range(30)] for column in range(3)]
    plot_similarities({"before": rows.reshape(3, 30, 4)}, texts, folder / "similarities.png")


@pytest.mark.slow
def test_pictures_are_fit_to_publish(tmp_path, drawn):
    _every_kind(tmp_path)
    for path in tmp_path.iterdir():
        header = path.read_bytes()[:200]
        at = header.index(b"pHYs") + 4
        assert int.from_bytes(header[at : at + 4], "big") == pytest.approx(300 / 0.0254, abs=1), path
    for figure, _ in drawn:
        FigureCanvasAgg(figure).draw()
        whole = figure.get_tightbbox()
        assert whole.x0 >= -0.02
        assert whole.x1 <= figure.get_figwidth() + 0.02
        legends = [*figure.legends, *(axes.legend_ for axes in figure.axes if axes.legend_)]
        assert legends
        for axes in figure.axes:
            covered = [legend.get_window_extent() for legend in legends]
            assert not any(box.overlaps(axes.get_window_extent()) for box in covered)
            if len(axes.get_xticks()):  # a map has neither ticks nor a grid
                assert axes.xaxis.get_gridlines()[0].get_visible()
                assert axes.get_axisbelow() is True
            assert axes.xaxis.get_offset_text().get_text() == axes.yaxis.get_offset_text().get_text() == ""
    scores, _, _, similarities = (figure.axes[0] for figure, _ in drawn)
    low, high = scores.get_xlim()
    boxes = [text.get_window_extent() for text in scores.texts]
    assert len(boxes) == 27
    assert low < 82.03 < high
    inside = scores.get_window_extent()
    assert all(inside.x0 < box.x0 and box.x1 < inside.x1 for box in boxes)
    assert not any(one.overlaps(other) for row, one in enumerate(boxes) for other in boxes[:row])
    assert similarities.get_ylim()[0] == 0


ODD = ["_base", "$\\frac$ and $", "cost $5_6$", "a\\$b", "__"]


@pytest.mark.slow
def test_names_are_drawn_as_they_are_written(tmp_path, drawn):
    """No mathematics, and none left out of the legend."""
    history = [{"uniformity": -3.0, "alignment": 0.1}]
    points = {name: np.eye(5) + number for number, name in enumerate(ODD)}
    texts = [list("abcde"), list("fghij")]
    paths = [tmp_path / f"{name}.svg" for name in ("paths", "scores", "map", "similarities")]
    plot_alignment_uniformity(dict.fromkeys(ODD, history), paths[0])
    plot_scores({name: dict.fromkeys(ODD, 80.0) for name in ODD}, paths[1], "$x$")
    plot_map(points, ODD, paths[2])
    plot_similarities({name: [rows, rows] for name, rows in points.items()}, texts, paths[3])
    legends = [figure.legends or figure.axes[0].get_children() for figure, _ in drawn]
    legends = [next(one for one in some if isinstance(one, Legend)) for some in legends]
    numbers = "uniformity −3.00, alignment 0.10 at the end"
    assert [text.get_text() for text in legends[0].get_texts()] == [f"{name}: {numbers}" for name in ODD]
    assert [text.get_text() for text in legends[1].get_texts()] == ODD
    assert [text.get_text() for text in legends[2].get_texts()] == [f"{name} (1)" for name in ODD]
    assert [label.get_text() for label in drawn[1][1].get_yticklabels()] == ODD
    assert drawn[1][1].get_xlabel() == "$x$"
    for figure, _ in (drawn[2], drawn[3]):
        assert [axes.get_title() for axes in figure.axes] == ODD
    for path, (figure, _) in zip(paths, drawn, strict=True):
        assert "</svg>" in path.read_text()
        assert not any(text.get_parse_math() for text in figure.findobj(Text) if "$" in text.get_text())


def _font(path, name, characters):
    """Writes a font that draws these characters as full squares."""
    pen = TTGlyphPen(None)
    for step, point in enumerate([(0, 0), (0, 1000), (1000, 1000), (1000, 0)]):
        (pen.lineTo if step else pen.moveTo)(point)
    pen.closePath()
    names = [".notdef", *(f"u{ord(character)}" for character in characters)]
    font = FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder(names)
    font.setupCharacterMap(dict(zip(map(ord, characters), names[1:], strict=True)))
    font.setupGlyf(dict.fromkeys(names, pen.glyph()))
    font.setupHorizontalMetrics(dict.fromkeys(names, (1000, 0)))
    font.setupHorizontalHeader(ascent=1000, descent=0)
    font.setupNameTable({"familyName": name, "styleName": "Regular"})
    font.setupOS2(usWeightClass=400)
    font.setupPost()
    font.save(path)


def test_names_of_any_script_are_drawn_in_a_font_that_has_them(tmp_path, drawn, caplog, monkeypatch, recwarn):
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [*map(str, tmp_path.glob("*.ttf"))])
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [*font_manager.fontManager.ttflist])
    scores = {"基线模型": {"新闻 (dev)": 81.0}, "ours": {"新闻 (dev)": 82.0}}
    boxes = tmp_path / "boxes.png"
    fonts._other_fonts.cache_clear()
    plot_scores(scores, boxes, "Spearman")
    (record,) = caplog.records
    assert "boxes.png shows boxes for 6 characters, such as '型', because no installed font has them" in record.message
    _font(tmp_path / "some.ttf", "Some Signs", "基")
    _font(tmp_path / "all.ttf", "All Signs", "基线模型新")
    _font(tmp_path / "rest.ttf", "Rest Signs", "闻")
    (tmp_path / "damaged.ttf").write_bytes(b"no font")
    fonts._other_fonts.cache_clear()
    plot_scores(scores, tmp_path / "signs.png", "Spearman")
    assert len(caplog.records) == 1
    figure, axes = drawn[1]
    texts = [*figure.legends[0].get_texts(), *axes.get_yticklabels()]
    assert {tuple(text.get_fontfamily()[1:]) for text in texts} == {("All Signs", "Rest Signs")}
    assert (tmp_path / "signs.png").read_bytes() != boxes.read_bytes()
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]
    fonts._other_fonts.cache_clear()


@pytest.fixture
def files(tmp_path, monkeypatch, sentences):
    monkeypatch.chdir(tmp_path)
    with open("news.csv", "w", newline="") as file:
        csv.writer(file).writerows([("kind", "body"), *((f"kind {len(text) % 2}", text) for text in sentences)])
    with open("classes.csv", "w", newline="") as file:
        csv.writer(file).writerows([("kind", "body"), *((n, f"text {n}") for n in range(21))])
    with open("pairs.csv", "w", newline="") as file:
        csv.writer(file).writerows([("sent0", "sent1"), *zip(sentences, sentences[::-1], strict=True)])
    row = {"query": "A dog.", "pos": ["A hound."], "neg": ["A cat.", "A car.", "A bus."]}
    Path("negatives.jsonl").write_text(json.dumps(row))


def test_the_command_draws_what_the_models_say(files, tiny_bert, sentences, drawn, capsys):
    SentenceTransformer(tiny_bert, device="cpu").save("saved")
    corpus = ["--corpus", "news.csv", "--column", "body", "--map_file", "map.png"]
    pairs = ["--pairs_file", "pairs.csv", "--histogram_file", "pairs.svg"]
    cli.main(["plot", "--model", tiny_bert, "saved", *corpus, "--class_column", "kind", *pairs])
    (of_map, _), (of_pairs, _) = drawn
    assert [axes.get_title() for axes in of_map.axes] == [axes.get_title() for axes in of_pairs.axes]
    assert of_map.axes[1].get_title() == "saved"
    assert sum(int(text.get_text()[8:-1]) for text in of_map.legends[0].texts) == len(sentences)
    embeddings = SentenceTransformer("saved", device="cpu").encode(sentences, normalize_embeddings=True)
    mean = np.mean([one @ two for one, two in zip(embeddings, embeddings[::-1], strict=True)])
    assert of_pairs.axes[1].patches[0].get_label() == f"positives, mean {mean:.2f}"
    cli.main(["plot", "--model", "saved", *corpus, "--clusters", "2", "--max_texts", "6"])
    assert "news.csv: 6 of 8 rows were drawn at random" in capsys.readouterr().out
    texts = [text.get_text() for text in drawn[-1][0].legends[0].texts]
    assert [text[:3] for text in texts] == ["1: ", "2: "]
    assert sum(int(text[-2]) for text in texts) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "nothing to draw"),
        (["--corpus", "news.csv"], "--corpus and --map_file go together"),
        (["--histogram_file", "a.png"], "--pairs_file and --histogram_file go together"),
        (["--corpus", "news.csv", "--map_file", "a.doc"], "a.doc does not have the file extension"),
        (["--corpus", "news.csv", "--map_file", "lacking/a.png"], "there is no folder lacking"),
        (["--corpus", "news.csv", "--map_file", "a.png"], r"news.csv, line 2: there are no columns \['sentence'\]"),
        (["--corpus", "news.csv", "--map_file", "a.png", "--class_column", "kind"], "--class_column needs --column"),
        (
            ["--corpus", "classes.csv", "--map_file", "a.png", "--column", "body", "--class_column", "kind"],
            "--class_column kind has 21 classes, but only 20 can be coloured",
        ),
        (["--pairs_file", "news.csv", "--histogram_file", "a.png"], "news.csv, line 2: there are no columns"),
        (["--corpus", "news.csv", "--map_file", "a.png", "--clusters", "0"], "--clusters must be at least 1"),
        (
            [
                "--corpus",
                "news.csv",
                "--map_file",
                "a.png",
                "--column",
                "body",
                "--class_column",
                "a",
                "--clusters",
                "2",
            ],
            "--class_column and --clusters both choose the colours",
        ),
        (["--pairs_file", "pairs.csv", "--histogram_file", "a.png", "--clusters", "2"], "--clusters needs --corpus"),
        (
            ["--pairs_file", "pairs.csv", "--histogram_file", "a.png", "--pair_columns", "a", "b", "c", "d"],
            "--pair_columns takes two or three columns: anchor, positive",
        ),
        (["--corpus", "news.csv", "--map_file", "a.png", "--model", "m", "m"], "--model names a model twice"),
        (
            ["--pairs_file", "negatives.jsonl", "--histogram_file", "a.png"],
            "negatives.jsonl: the rows have 3 hard negatives, but the histogram has one: .*or pass --pair_columns",
        ),
    ],
)
def test_the_command_refuses_before_a_model_is_loaded(files, options, message):
    with pytest.raises(SystemExit, match=f"st-simcse plot: .*{message}"):
        cli.main(["plot", "--model", "m", *options])
