"""`st-simcse compare` on a tiny model: what is run, what is not run again, and the numbers of the table."""

import json
import re

import numpy as np
import pytest

from st_simcse import cli
from st_simcse.cli import compare, runs
from st_simcse.recipes import read_recipes


@pytest.fixture
def words(tmp_path, tiny_bert, sentences, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("\n".join(sentences))
    pairs = zip(sentences, sentences[3:] + sentences[:3], strict=True)
    rows = ["sentence1\tsentence2\tscore", *(f"{a}\t{b}\t{score}" for score, (a, b) in enumerate(pairs))]
    for split in ("dev", "test"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "pairs.tsv").write_text("\n".join(rows if split == "dev" else rows[:6]))
    words = ["--model_name_or_path", tiny_bert, "--train_file", "a.txt", "--pooling", "mean", "--report_to", "none"]
    words += ["--per_device_train_batch_size", "4", "--use_cpu", "--bf16", "false", "--learning_rate", "0.01"]
    return [*words, "--dev_file", "dev/pairs.tsv", "--test_file", "test/pairs.tsv", "--output_dir", "out"]


@pytest.fixture
def trained(monkeypatch):
    """The runs that are trained; here, not each in a process, and with made up numbers."""
    done = []

    def train(one, keep_model):
        done.append((one.recipe, one.seed))
        if one.recipe == "broken":
            raise ValueError("no data")
        draw = np.random.default_rng(len(done))
        result = {name: {name.upper(): 100 * draw.random()} for name in ("dev", "test")}
        result |= {"recipe": one.recipe, "seed": one.seed, "options": one.options, "tests": one.tests}
        result["cost"] = {"seconds": 1000.0 * one.seed, "CPU seconds": 1.0, "MiB": 2.0}
        one.file.parent.mkdir(exist_ok=True)
        one.file.write_text(json.dumps(result))
        return result

    monkeypatch.setattr(runs, "in_a_process", train)
    return done


def test_runs_in_processes_are_what_train_does_alone(words, tmp_path, capsys):
    recipes = ["--recipe", "hot: --temperature 0.5 --projection_head"]
    numbers = compare.run([*words, *recipes, "--seeds", "3"])
    out = capsys.readouterr().out
    table = (tmp_path / "out/table.md").read_text()
    assert table in out
    assert re.match(r"\| recipe \| runs \| dev \| test \| seconds \| CPU seconds \| MiB \|\n", table)
    result = json.loads((tmp_path / "out/hot/seed-3.json").read_text())
    assert numbers["hot"] == {name: [value] for part in ("dev", "test", "cost") for name, value in result[part].items()}
    assert result["cost"]["MiB"] > 1
    assert [path.name for path in (tmp_path / "out/hot").iterdir()] == ["seed-3.json"]
    alone = cli.train.run([*words, "--output_dir", "alone", "--temperature", "0.5", "--projection_head", "--seed", "3"])
    assert {**result["dev"], **result["test"]} == {name: 100 * value for name, value in alone["after"].items()}
    assert result["dev"] != result["before"]["dev"]


def test_mean_and_spread_and_the_best_on_dev(words, trained, tmp_path, capsys):
    recipes = ["--recipe", "a:", "b: --symmetric", "broken:"]
    with pytest.raises(ValueError, match="1 of 3 recipes failed: broken, seed 0: ValueError: no data"):
        compare.run([*words, *recipes])
    assert trained == [("a", 0), ("b", 0), ("broken", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2)]
    lines, means = [], {}
    for recipe in "ab":
        results = [json.loads((tmp_path / f"out/{recipe}/seed-{seed}.json").read_text()) for seed in range(3)]
        scores = [[result[split][split.upper()] for result in results] for split in ("dev", "test")]
        means[recipe] = np.mean(scores[0])
        cells = " | ".join(f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}" for values in scores)
        lines.append(f" | 3 | {cells} | 1,000 | 1 | 2 |")
    best = max(means, key=means.get)
    names = [f"**{name}**" if name == best else name for name in means]
    table = (tmp_path / "out/table.md").read_text()
    assert table.splitlines()[2:] == [f"| {name}{line}" for name, line in zip(names, lines, strict=True)]
    out = capsys.readouterr().out
    assert table in out
    assert f"best on DEV: {best}, st-simcse train --model_name_or_path " in out


def test_what_is_done_is_not_run_again_and_changed_recipes_are_refused(words, trained, tmp_path, monkeypatch):
    recipes = ["--recipe", "a:", "b: --symmetric", "--seeds", "0", "1"]
    killed, train = iter(range(9)), runs.in_a_process
    monkeypatch.setattr(runs, "in_a_process", lambda *run: (next(killed) == 3 and exit()) or train(*run))
    with pytest.raises(SystemExit):
        compare.run([*words, *recipes])
    monkeypatch.setattr(runs, "in_a_process", train)
    first = [("a", 0), ("b", 0), ("a", 1)]
    assert trained == first
    numbers = compare.run([*words, *recipes])
    assert trained == [*first, ("b", 1)]
    assert compare.run([*words, *recipes]) == numbers
    changed = ["--recipe", "a:", "b: --temperature 0.1", "--seeds", "0", "1"]
    with pytest.raises(ValueError, match=r"out/b/seed-0.json \(with .* --symmetric\); out/b/seed-1.json .* --redo"):
        compare.run([*words, *changed])
    assert trained == [*first, ("b", 1)]
    compare.run([*words, *changed, "--redo"])
    assert trained == [*first, ("b", 1), ("b", 0), ("b", 1)]
    assert json.loads((tmp_path / "out/b/seed-0.json").read_text())["options"][-2:] == ["--temperature", "0.1"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--recipe", "a:", "b: --temprature 1"], "recipe 'b': .*unknown option --temprature, did you mean --temperat"),
        (["--recipe", "a:", "b: --temperature warm"], "recipe 'b': .*--temperature: invalid float value: 'warm'"),
        (["--recipe", "a:", "b: --preset x"], "recipe 'b': unknown preset 'x'"),
        (["--recipe", "a:", "b: --test-file x"], "recipe 'b': --test_file .* recipes are compared on the same data"),
        (["--recipe", "a:", "b: --seed=1"], "recipe 'b': --seed is not for a recipe: compare sets it itself"),
        (["--recipe", "a:", "a:"], "the recipe 'a' is there twice"),
        (["--recipe", "--symmetric"], "expected at least one argument"),
        (["--recipe", "../a: --symmetric"], "the recipe's name '../a' becomes a file's"),
        (["--recipe", "a: --symmetric", "--seeds", "1", "1"], "--seeds 1 1 names a seed twice"),
        (["--recipe", "a:", "--sts_dir", "."], "lacks STS12.tsv"),
        (["--recipe_file", "a.txt"], "a.txt holds no recipes"),
        ([], "nothing to compare"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_run(words, trained, options, message):
    with pytest.raises((SystemExit, ValueError, OSError), match=message):
        compare.run([*words, *options])
    assert not trained


def test_recipe_files(tmp_path):
    path = tmp_path / "recipes"
    path.write_text('{"base": [], "other": ["--learning_rate", 1e-4, "--symmetric"]}')
    assert read_recipes(path) == [("base", []), ("other", ["--learning_rate", "1e-4", "--symmetric"])]
    for text, message in (
        ("a: []\na: [--x]", "recipes has the recipe 'a' twice"),
        ("a: {b: c}", "recipes, recipe 'a': expected options"),
        ("a: [", "recipes is neither YAML nor JSON.*line 1"),
        ("", "recipes holds no recipes"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=f"(?s){message}"):
            read_recipes(path)
