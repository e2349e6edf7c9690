"""`st-simcse compare` on a tiny model: what is run, what is not run again, and the numbers of the table."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sklearn.neighbors import KNeighborsClassifier
from transformers import set_seed

from st_simcse import (
    HubDataset,
    KNNEvaluator,
    SimCSETrainer,
    SimCSETrainingArguments,
    build_model,
    load_classes,
    load_retrieval,
    load_sts,
)
from st_simcse.cli import compare, runs, train
from st_simcse.cli.baselines import BASELINES
from st_simcse.cli.inputs import identities
from st_simcse.demo import tiny_model
from st_simcse.recipes import read_recipes
from st_simcse.training.plain_trainer import PlainTrainer


@pytest.fixture
def words(tmp_path, tiny_bert, sentences, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("\n".join(sentences))
    pairs = zip(sentences, sentences[3:] + sentences[:3], strict=True)
    rows = ["sentence1\tsentence2\tscore", *(f"{a}\t{b}\t{score}" for score, (a, b) in enumerate(pairs))]
    for split in ("dev", "test"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "pairs.tsv").write_text("\n".join(rows if split == "dev" else rows[:6]))
    (tmp_path / "seconds.tsv").write_text("\n".join(rows))
    (tmp_path / "equal.tsv").write_text("\n".join([rows[0], "A dog.\tA cat.\t3", "A dog.\tA car.\t3"]))
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
        result["inputs"] = identities(one.options, one.tests)
        result["cost"] = {"seconds": 1000.0 * one.seed, "CPU seconds": 1.0, "MiB": 2.0}
        one.file.parent.mkdir(exist_ok=True)
        one.file.write_text(json.dumps(result))
        return result

    monkeypatch.setattr(runs, "in_a_process", train)
    return done


@pytest.mark.slow
def test_runs_in_processes_are_what_train_does_alone(words, tmp_path, sentences, capsys):
    recipes = ["--recipe", "hot: --temperature 0.5 --projection_head", "--plot_file", "plot.svg"]
    rows = [f"{row % 2},{text} {row}" for row, text in enumerate(sentences * 2)]
    Path("news.csv").write_text("\n".join(["class,body", *rows]))
    for kind, columns in ("knn", ["body", "class"]), ("retrieval", ["0", "1"]):
        recipes += [f"--{kind}_dev_file", "news.csv", f"--{kind}_columns", *columns]
    numbers = compare.run([*words, *recipes, "--seeds", "3"])
    out = capsys.readouterr().out
    table = (tmp_path / "out/table.md").read_text()
    assert table in out
    header = ["recipe", "runs", "dev avg.", "dev", "knn dev", "retrieval dev", "test", "seconds", "CPU seconds", "MiB"]
    assert table.startswith(f"| {' | '.join(header)} |\n")
    assert "<svg" in Path("plot.svg").read_text()
    result = json.loads((tmp_path / "out/hot/seed-3.json").read_text())
    dev, test, cost = (result[part] for part in ("dev", "test", "cost"))
    average = {"dev avg.": sum(dev.values()) / 3}
    assert numbers["hot"] == {name: [value] for name, value in {**average, **dev, **test, **cost}.items()}
    assert cost["MiB"] > 1
    assert [path.name for path in (tmp_path / "out/hot").iterdir()] == ["seed-3.json"]
    alone = train.run([*words, "--output_dir", "alone", "--temperature", "0.5", "--projection_head", "--seed", "3"])
    assert {"dev": dev["dev"], **test} == {name: 100 * value for name, value in alone["after"].items()}
    model = SentenceTransformer("alone", device="cpu")
    assert dev["knn dev"] == 100 * load_classes("news.csv", columns=["body", "class"])(model)["news_accuracy"]
    assert dev["retrieval dev"] == 100 * load_retrieval("news.csv", columns=[0, 1])(model)["news_cosine_ndcg@10"]
    assert dev["dev"] != 100 * alone["before"]["dev"]


@pytest.mark.parametrize("more", ["", " --baseline mnrl"])
def test_no_epochs_are_the_model_as_it_was(words, tiny_bert, monkeypatch, more):
    monkeypatch.setattr(runs, "in_a_process", lambda one, keep_model: runs.train_and_measure(one))
    numbers = compare.run([*words, "--recipe", f"before: --num_train_epochs 0{more}", "--seeds", "0"])
    model = build_model(tiny_bert, pooling="mean")
    for split in ("dev", "test"):
        evaluator = load_sts(f"{split}/pairs.tsv", name=split)
        assert numbers["before"][split] == [pytest.approx(100 * evaluator(model)[f"{split}_spearman_cosine"])]


def test_evaluation_and_saving_are_no_part_of_the_seconds(words, monkeypatch):
    """With a clock that only the steps, evaluations and checkpoints move."""
    clock = np.zeros(2)
    monkeypatch.setattr(runs, "_now", clock.copy)

    def takes(owner, name, seconds):
        method = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, **k: (clock.__iadd__(seconds), method(*a, **k))[1])

    takes(SimCSETrainer, "training_step", [1.0, 2.0])
    takes(SimCSETrainer, "evaluate", 100.0)
    takes(SimCSETrainer, "_save_checkpoint", 1000.0)
    cost = runs.Cost()
    train.run([*words, "--max_steps", "3", "--eval_steps", "1", "--eval_on_start"], None, [cost])
    assert cost.measured["seconds"] == 3.0
    assert cost.measured["CPU seconds"] == 6.0


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
    assert f"best by DEV: {best}, with the options --model_name_or_path " in out


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
    assert compare.run([*words, *recipes, "--only", "b"]) == {"b": numbers["b"]}
    changed = ["--recipe", "a:", "b: --temperature 0.1", "--seeds", "0", "1"]
    with pytest.raises(
        ValueError, match=r"out/b/seed-0.json \(its options were .* --symmetric\); out/b/seed-1.json .* --redo"
    ):
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
        (["--recipe", "a:", "b: --preset x"], "recipe 'b': 'x' is not a preset"),
        (
            ["--recipe", "a:", "b: --test-file x"],
            "recipe 'b': --test_file .* all recipes are compared on the same data",
        ),
        (["--recipe", "a:", "b: --seed=1"], "recipe 'b': --seed is not allowed here: compare sets it itself"),
        (["--recipe", "a:", "--only", "b"], "--only b: there is no such recipe; choose from a"),
        (["--recipe", "a:", "a:"], "two recipes are named 'a'"),
        (["--recipe", "--symmetric"], "expected at least one argument"),
        (["--recipe", "../a: --symmetric"], "the recipe's name '../a' is also used as a file name"),
        (["--recipe", "a: --symmetric", "--seeds", "1", "1"], "--seeds 1 1 names a seed twice"),
        (["--recipe", "a:", "--sts_dir", "."], "lacks STS12.tsv"),
        (["--recipe", "a:", "--knn_dev_file", "dev/pairs.tsv"], "there are no columns .*'text', 'label'"),
        (
            ["--recipe", "a:", "b: --baseline x"],
            "recipe 'b': unknown baseline 'x': choose one of mnrl, gist, tsdae, ct",
        ),
        (["--recipe", "a: --baseline mnrl --symmetric"], "--symmetric is an option of SimCSE's losses"),
        (["--recipe", "a: --baseline mnrl --no-mask-duplicates"], "--mask_duplicates is an option of SimCSE's losses"),
        (
            ["--recipe", "a: --baseline mnrl --views crops"],
            "no --views, --start_weight, --tokenize_once or --streaming: leave them out",
        ),
        (["--recipe", "a: --baseline mnrl --start_weight 0.9"], "no --views, --start_weight"),
        (["--recipe", "a: --baseline mnrl --preset unsup-bert-base"], "--projection_head is an option of SimCSE's"),
        (["--recipe", "a: --baseline gist --run_name symmetric"], "gist needs exactly one teacher"),
        (["--recipe", "a: --baseline gist"], "gist needs exactly one teacher, and the others take none"),
        (["--recipe", "a: --baseline ct --teacher x"], "gist needs exactly one teacher, and the others take none"),
        (["--recipe", "a:", "--plot_file", "a.doc"], "a.doc does not have the file extension"),
        (["--recipe_file", "a.txt"], "a.txt has no recipes"),
        (["--recipe", "a:", "b: --momentum_queue -1"], "recipe 'b': MomentumQueue needs an integer size of at least 1"),
        (["--recipe", "a:", "b: --momentum_queue_momentum 0.9"], "recipe 'b': .* needs --momentum_queue"),
        (["--recipe", "a:", "b: --rank_distillation 1"], "recipe 'b': --rank_distillation needs a teacher"),
        (["--recipe", "a:", "b: --teacher x"], "recipe 'b': --teacher is used by .* only"),
        (["--recipe", "a:", "--test_file", "seconds.tsv"], "has a column 'seconds' of its own, .*: rename the file"),
        (["--recipe", "a:", "--dev_file", "equal.tsv"], "equal.tsv: all scores are 3 .2 in total.*different scores"),
        (["--recipe", "_unfinished:"], "'_unfinished' has the name of a file or folder that compare writes"),
        (["--recipe", "a:", "table.md: --symmetric"], "'table.md' has the name .*: give it another name"),
        (["--recipe", "_training.lock:"], "'_training.lock' has the name of a file"),
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
        ("a: {b: c}", "recipes, recipe 'a', line 1: expected options"),
        ("a: []\nb: [--x, [y]]", "recipes, recipe 'b', line 2: expected options"),
        ("? [a, b]\n: --x", "has a list or an object instead of a recipe's name"),
        ("a: [", "recipes is neither YAML nor JSON.*line 1"),
        ("", "recipes has no recipes"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=f"(?s){message}"):
            read_recipes(path)


def test_names_and_words_of_recipe_files_stay_as_they_were_written(tmp_path):
    path = tmp_path / "recipes.yaml"
    path.write_text("on: --temperature 0.10\n1: [--seed, 010]\n1.0: [--x, yes, 1e5]\n010: ~\nno:\n2020-01-01: []\n")
    assert read_recipes(path) == [
        ("on", ["--temperature", "0.10"]),
        ("1", ["--seed", "010"]),
        ("1.0", ["--x", "yes", "1e5"]),
        ("010", []),
        ("no", []),
        ("2020-01-01", []),
    ]
    path.write_text("1: --x\n'1': --y")
    with pytest.raises(ValueError, match="has the recipe '1' twice"):
        read_recipes(path)


def _grown(name):
    with open(name, "a") as file:
        file.write("\n")


@pytest.mark.parametrize("changed", ["a.txt", "dev/pairs.tsv", "test/pairs.tsv", "model", "news.csv"])
def test_results_of_other_data_or_models_are_not_mixed_in(words, trained, tiny_bert, changed):
    shutil.copytree(tiny_bert, "model")
    Path("news.csv").write_text("text,label\n" + "".join(f"{row},{row % 2}\n" for row in range(12)))
    words[words.index(tiny_bert)] = "model"
    words += ["--knn_test_file", "news.csv", "--recipe", "a:", "b: --symmetric", "--seeds", "0"]
    numbers = compare.run(words)
    assert compare.run(words) == numbers
    assert trained == [("a", 0), ("b", 0)]
    _grown("model/config.json" if changed == "model" else changed)
    with pytest.raises(ValueError, match=rf"out/a/seed-0.json \(changed since then: {changed}\); out/b/.* --redo"):
        compare.run(words)
    assert compare.run([*words, "--redo"]) != numbers
    assert trained == [("a", 0), ("b", 0)] * 2


def test_what_changes_between_two_runs_gives_no_table(words, trained, monkeypatch):
    train = runs.in_a_process
    monkeypatch.setattr(runs, "in_a_process", lambda *run: (train(*run), _grown("a.txt"))[0])
    with pytest.raises(ValueError, match=r"a.txt changed between two runs \(one is b, seed 0\).* --redo"):
        compare.run([*words, "--recipe", "a:", "b: --symmetric", "--seeds", "0"])
    assert not Path("out/table.md").exists()


def test_data_that_changes_during_a_run_fails_it(words, monkeypatch):
    monkeypatch.setattr(train, "run", lambda *args, **options: (_grown("a.txt"), {"after": {"dev": 0.5}})[1])
    monkeypatch.setattr(runs, "load_model", lambda folder: tiny_model(["A dog runs."]))
    monkeypatch.setattr(runs.Cost, "measured", {"seconds": 1.0}, raising=False)
    monkeypatch.setattr(runs.Cost, "device", "cpu", raising=False)
    one = runs.Run("a", 0, words, vars(compare.MeasureArguments()), "out")
    with pytest.raises(ValueError, match="a.txt changed during the run: run it again"):
        runs.train_and_measure(one)


@pytest.mark.parametrize("text", ['{"recipe": "a"', "[]", "{}", "NaN", '{"dev": {"dev": "x"}}', "inputs", "other seed"])
def test_a_damaged_result_file_is_named(words, trained, text):
    words += ["--recipe", "a:", "--seeds", "0"]
    numbers = compare.run(words)
    file = Path("out/a/seed-0.json")
    result = json.loads(file.read_text())
    if text == "inputs":
        result.pop(text)
    whole = {"inputs": result, "other seed": result | {"seed": 1}}
    file.write_text(json.dumps(whole[text]) if text in whole else text)
    reason = {
        "inputs": "damaged: expected an object",
        "other seed": "it belongs to the recipe 'a' with the seed 1",
    }
    with pytest.raises(ValueError, match=rf"out/a/seed-0.json \({reason.get(text, 'damaged: ')}.* --redo"):
        compare.run(words)
    assert compare.run([*words, "--redo"]).keys() == numbers.keys()
    assert trained == [("a", 0)] * 2


def test_baselines_read_no_more_tokens_than_the_model(tiny_bert, sentences, tmp_path):
    model = build_model(tiny_bert, "mean", device="cpu")
    args = SimCSETrainingArguments(str(tmp_path), max_length=1_000, report_to="none", use_cpu=True)
    data = Dataset.from_dict({"a": sentences, "b": sentences})
    trainer = PlainTrainer(model, args, data, loss=MultipleNegativesRankingLoss(model))
    assert trainer.data_collator.max_length == model.max_seq_length < 1_000


@pytest.mark.slow
@pytest.mark.parametrize("name", BASELINES)
def test_baselines_train(words, name, tiny_bert, sentences, monkeypatch):
    trainers = []
    init = SentenceTransformerTrainer.__init__
    monkeypatch.setattr(
        SentenceTransformerTrainer, "__init__", lambda self, **given: trainers.append(self) or init(self, **given)
    )
    teacher = ["--teacher", tiny_bert] if name == "gist" else []
    train.run([*words, *teacher, "--logging_steps", "1", "--max_steps", "2"], BASELINES[name])
    (trainer,) = trainers
    assert not isinstance(trainer, SimCSETrainer)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 2
    assert min(losses) > 0
    before, after = (dict(SentenceTransformer(path).named_parameters()) for path in (tiny_bert, "out"))
    moved = " ".join(name for name, weight in after.items() if not torch.equal(weight, before[name]))
    assert "word_embeddings" in moved
    assert "layer.1.attention.output" in moved
    assert not any(text in Path("out/README.md").read_text() for text in sentences)


@pytest.mark.slow
def test_sts_recipe_is_the_one_that_its_users_write(words, sentences, tiny_bert):
    train.run([*words, "--max_steps", "2", "--seed", "5"], BASELINES["mnrl"])
    set_seed(5)
    model = build_model(tiny_bert, "mean", device="cpu")
    options = {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 0.01, "use_cpu": True, "seed": 5}
    args = SentenceTransformerTrainingArguments("by-hand", save_strategy="no", report_to="none", **options)
    pairs, loss = Dataset.from_dict({"a": sentences, "b": sentences}), MultipleNegativesRankingLoss(model)
    SentenceTransformerTrainer(model=model, args=args, train_dataset=pairs, loss=loss).train()
    saved = SentenceTransformer("out", device="cpu")
    for name, weight in saved.state_dict().items():
        torch.testing.assert_close(weight, model.state_dict()[name])


def test_baselines_pair_and_damage_sentences_as_their_papers_do(model, tiny_bert):
    texts = [" ".join(f"{row}.{word}" for word in range(10)) for row in range(400)]
    model = build_model(tiny_bert, device="cpu")
    data, _ = BASELINES["ct"](model, Dataset.from_dict({"sentence": texts}), [], SimpleNamespace(seed=0))
    assert sum(row["first"] == row["second"] for row in data) == pytest.approx(400 / 8, abs=20)
    data, _ = BASELINES["tsdae"](model, Dataset.from_dict({"sentence": texts}), [], None)
    first, second = data[:], data[:]
    assert first["text"] == texts
    assert sum(len(text.split()) for text in first["damaged"]) == pytest.approx(0.4 * 4000, abs=150)
    assert first["damaged"] != second["damaged"]
    for text, damaged in zip(texts, first["damaged"], strict=True):
        assert damaged
        assert [word for word in text.split() if word in damaged.split()] == damaged.split()


def test_nearest_neighbours_and_retrieval_in_a_corpus(tmp_path, tiny_bert, sentences):
    """Against scikit-learn's classifier, leaving each text out in turn, and ranks by hand."""
    draw = np.random.default_rng(0)
    words = " ".join(sentences).split()
    rows = [(" ".join(draw.choice(words, 5)), "abc"[draw.integers(3)]) for _ in range(40)]
    (tmp_path / "a.csv").write_text("class,body\n" + "".join(f"{label},{text}\n" for text, label in rows))
    model = build_model(tiny_bert, "mean", device="cpu")
    embeddings, labels = model.encode([text for text, _ in rows]), np.array([label for _, label in rows])
    hits = []
    for row in range(40):
        others = np.arange(40) != row
        nearest = KNeighborsClassifier(10, metric="cosine").fit(embeddings[others], labels[others])
        hits.append(nearest.predict(embeddings[[row]])[0] == labels[row])
    evaluator = load_classes(tmp_path / "a.csv", columns=["body", "class"])
    assert evaluator(model) == {"a_accuracy": pytest.approx(np.mean(hits))}
    seen = []
    model[0].register_forward_hook(lambda module, inputs, output: seen.append(len(output["input_ids"])))
    columns = ["body", "class"]
    load_classes(tmp_path / "a.csv", columns=columns, batch_size=8, write_csv=False)(model, str(tmp_path / "out"))
    assert seen == [8] * 5
    assert not (tmp_path / "out").exists()

    pairs = [(text, sentences[row % 8]) for row, (text, _) in enumerate(rows[:16])]
    (tmp_path / "b.csv").write_text("title,text\n" + "".join(f"{title},{text}\n" for title, text in pairs))
    titles, texts = model.encode([title for title, _ in pairs]), model.encode(sentences)
    cosine = model.similarity(titles, texts).numpy()
    ranks = [(cosine[row] > cosine[row, row % 8]).sum() for row in range(16)]
    evaluator = load_retrieval(tmp_path / "b.csv")
    assert evaluator(model)["b_cosine_ndcg@10"] == pytest.approx(np.mean(1 / np.log2(np.array(ranks) + 2)))
    assert evaluator.primary_metric == "b_cosine_ndcg@10"
    (tmp_path / "hub/news").mkdir(parents=True)
    (tmp_path / "a.csv").rename(tmp_path / "hub/news/test.csv")
    source = HubDataset(str(tmp_path / "hub/news"), split="test")
    assert load_classes(source, columns=["body", "class"]).name == "news-test"
    assert load_retrieval(source, columns=["body", "class"]).name == "news-test"
    for classes, k in (["a"] * 3, 1), (["a", "b", "a"], 3), (["a", "b"], 1):
        with pytest.raises(ValueError, match="pass at least two classes|every text needs a class"):
            KNNEvaluator(["x", "y", "z"], classes, k)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            ["A dog.,a", "A cat.,b"],
            "^pets.csv: 2 text(s) are too few to have 10 neighbours each; pass more than 10 texts",
        ),
        (["A dog.,a"] * 11, "^pets.csv: all texts have the class a; pass texts of at least two classes"),
    ],
)
def test_classes_that_no_vote_can_find_are_refused_with_their_file(words, trained, rows, message):
    Path("pets.csv").write_text("\n".join(["text,class", *rows]) + "\n")
    with pytest.raises(ValueError, match=re.escape(message).replace(r"\^", "^")) as error:
        compare.run(["--recipe", "a:", "--knn_dev_file", "pets.csv", *words])
    assert "k=" not in str(error.value)
    with pytest.raises(ValueError, match="or pass a smaller k=" if len(rows) < 11 else "two classes"):
        load_classes("pets.csv")


def test_aliases_of_a_recipe_file_are_no_bomb(tmp_path):
    """Each line is ten times the one before: written out, the last would be a hundred million words."""
    lines = [f"a0: &a0 [{', '.join(['x'] * 10)}]"]
    lines += [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]" for level in range(1, 9)]
    (tmp_path / "recipes.yaml").write_text("\n".join(lines))
    with pytest.raises(ValueError, match="recipe 'a1', line 2: expected options of st-simcse train as a list of words"):
        read_recipes(tmp_path / "recipes.yaml")
