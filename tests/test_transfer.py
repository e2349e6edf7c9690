import json
from types import SimpleNamespace

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from st_simcse import TransferEvaluator, build_model, transfer_evaluators
from st_simcse.cli import evaluate
from st_simcse.data.senteval import transfer_examples
from st_simcse.evaluation import STS_TASKS, TRANSFER_TASKS, transfer_scores


@pytest.fixture(scope="module")
def embeds(tiny_bert):
    return SentenceTransformer(tiny_bert, device="cpu")


def _by_hand(splits, vectors_of, folds):
    """(dev, test) accuracy and predictions: loops over strengths and folds."""

    def features(texts):
        vectors = [vectors_of[text] for text in texts]
        return vectors[0] if len(vectors) == 1 else np.array([*abs(vectors[0] - vectors[1]), *vectors[0] * vectors[1]])

    def table(rows):
        rows = sorted(rows, key=lambda row: ([len(text.split()) for text in row[0]], row[1]))
        return np.stack([features(texts) for texts, _ in rows]), np.array([label for _, label in rows])

    def accuracy(c, train, test):
        classifier = LogisticRegression(C=c).fit(*train)
        return sum(classifier.predict(test[0]) == test[1]) / len(test[1])

    def search(strengths, pairs):
        best = {c: sum(accuracy(c, *pair) for pair in pairs) / len(pairs) for c in strengths}
        return max(best, key=best.get), max(best.values())

    def folded(x, y):
        cut = StratifiedKFold(folds, shuffle=True, random_state=1111).split(x, y)
        return [((x[train], y[train]), (x[test], y[test])) for train, test in cut]

    data = {split: table(rows) for split, rows in splits.items()}
    if "dev" in data:
        c, dev = search([0.25, 0.5, 1, 2, 4, 8], [(data["train"], data["dev"])])
    elif "train" in data:
        c, dev = search([0.5, 1, 2, 4, 8, 16, 32], folded(*data["train"]))
    else:
        found = [(search([0.25, 0.5, 1, 2, 4, 8], folded(*train)), train, test) for train, test in folded(*data["all"])]
        tests = [accuracy(c, train, test) for (c, _), train, test in found]
        return sum(dev for (_, dev), _, _ in found) / len(found), sum(tests) / len(tests), None
    predicted = LogisticRegression(C=c).fit(*data["train"]).predict(data["test"][0])
    return dev, sum(predicted == data["test"][1]) / len(predicted), (predicted, data["test"][1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "mode"), [("CR", "fasttest"), ("SST2", "test"), ("TREC", "test"), ("MRPC", "fasttest")]
)
def test_the_protocol_is_that_of_a_loop(senteval, embeds, task, mode, tmp_path):
    splits = transfer_examples(senteval, task, allow_partial=True)
    evaluator = TransferEvaluator(splits, task, mode)
    encoded = []
    hook = embeds[0].register_forward_hook(lambda module, inputs, output: encoded.append(len(output["input_ids"])))
    metrics = evaluator(embeds, str(tmp_path), epoch=1, steps=2)
    hook.remove()
    assert sum(encoded) == len({text for rows in splits.values() for texts, _ in rows for text in texts})
    vectors = dict(zip(evaluator.texts, embeds.encode(evaluator.texts, batch_size=64), strict=True))
    dev, test, predictions = _by_hand(splits, vectors, {"test": 10, "fasttest": 5}[mode])
    assert metrics[f"{task}_dev_accuracy"] == pytest.approx(dev)
    assert metrics[f"{task}_accuracy"] == pytest.approx(test)
    assert 0.3 < test < 1  # where all choices give the same, nothing is shown
    if task == "MRPC":
        predicted, gold = predictions
        hits = sum((predicted == "1") & (gold == "1"))
        assert metrics["MRPC_f1"] == pytest.approx(2 * hits / (sum(predicted == "1") + sum(gold == "1")))
    assert (tmp_path / f"transfer_{task}_results.csv").read_text().startswith("epoch,steps,accuracy,dev_accuracy")


def test_the_seed_makes_the_folds(senteval, embeds):
    def metrics(seed, mode="fasttest"):
        return transfer_evaluators(senteval, ["MRPC", "SST2"], mode, seed=seed, allow_partial=True)(embeds)

    first = metrics(1)
    assert first == metrics(1) != metrics(2)
    assert first["sequential_score"] == pytest.approx((first["SST2_accuracy"] + first["MRPC_accuracy"]) / 2)
    dev = metrics(1, "dev")
    assert transfer_scores(dev, "dev")["Avg."] == pytest.approx(100 * dev["sequential_score"])
    assert list(transfer_scores(first)) == ["SST2", "MRPC", "Avg."]


@pytest.mark.parametrize(
    ("name", "metric"), [("", "dev_accuracy"), ("pets", "pets_dev_accuracy"), ("dev", "dev_dev_accuracy")]
)
def test_the_main_metric_of_dev_is_the_dev_accuracy_whatever_the_name(embeds, name, metric):
    evaluator = TransferEvaluator({"all": [(("dog",), "dog"), (("cat",), "cat")] * 6}, name, "dev")
    assert metric in evaluator(embeds)
    assert evaluator.primary_metric == metric


def test_embeddings_that_are_nan_have_no_accuracy(senteval, model):
    model[0].model.embeddings.word_embeddings.weight.data.fill_(float("nan"))
    assert np.isnan(transfer_evaluators(senteval, ["SST2"], allow_partial=True)(model)["SST2_accuracy"])


def test_the_csv_is_whole_where_the_first_model_is_nan(senteval, embeds, tmp_path):
    embeds.save_pretrained(str(tmp_path / "good"))
    broken = SentenceTransformer(str(tmp_path / "good"), device="cpu")
    broken[0].model.embeddings.word_embeddings.weight.data.fill_(float("nan"))
    broken.save_pretrained(str(tmp_path / "nan"))
    words = ["--model", str(tmp_path / "nan"), str(tmp_path / "good"), "--senteval_dir", str(senteval), "--tasks"]
    with pytest.raises(ValueError, match="no score for .*nan on MRPC"):
        evaluate.run([*words, "MRPC", "--mode", "fasttest", "--allow_partial", "--csv_file", str(tmp_path / "a.csv")])
    header, first, second = (line.split(",") for line in (tmp_path / "a.csv").read_text().splitlines())
    assert header == ["model", "MRPC", "Avg.", "MRPC F1"]
    assert first[1:] == ["nan"] * 3
    assert all(0 <= float(value) <= 100 for value in second[1:])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("CR/custrev.neg", None, r"has no file CR/custrev.neg for CR$"),
        ("CR/custrev.pos", None, r"has no file CR/custrev.pos for CR: pass SentEval's data/downstream.*st-simcse data"),
        (
            "SST/binary/sentiment-dev",
            "fine .\t1\nbad .\n",
            r"sentiment-dev, line 2: the line has 1 tab-separated cell\(s\), expected at least 2",
        ),
        ("SST/binary/sentiment-dev", "fine .\t3\n", r"sentiment-dev, line 1: '3' is not a class, expected one of 0, 1"),
        ("TREC/TREC_10.label", "HUM:ind Who ?\nWho ?\n", r"TREC_10.label, line 2: 'Who' is not a class, .*ABBR, DESC"),
        ("TREC/TREC_10.label", "Hu\0m", r"TREC_10.label.*"),
        ("MRPC/msr_paraphrase_test.txt", "head\nyes\t1\t2\ta\tb\n", r"test.txt, line 2: 'yes' is not a class"),
        ("SST/binary/sentiment-dev", b"\x1f\x8b\x08", r"sentiment-dev: expected lines of UTF-8 text, found gzip data"),
        ("CR/custrev.pos", "one .\n" * 5, r"CR: the class 1 has 5 example\(s\), but 5 folds need at least 6"),
    ],
)
def test_data_that_cannot_be_used(senteval, tmp_path, name, content, message):
    (tmp_path / "SentEval").mkdir()
    (tmp_path / "SentEval/data").mkdir()
    downstream = tmp_path / "SentEval/data/downstream"
    for path in senteval.rglob("*"):
        if path.is_file() and str(path.relative_to(senteval)) != name:
            (downstream / path.relative_to(senteval)).parent.mkdir(parents=True, exist_ok=True)
            (downstream / path.relative_to(senteval)).symlink_to(path)
    if content is not None:
        (downstream / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert transfer_evaluators(tmp_path, ["MR"], allow_partial=True).evaluators[0].texts
    task = {"SST": "SST2"}.get(name.split("/")[0], name.split("/")[0])
    with pytest.raises((OSError, ValueError), match=message):
        transfer_evaluators(tmp_path, [task], "fasttest", allow_partial=True)


def test_lines_are_read_as_senteval_leaves_them(tmp_path):
    (tmp_path / "TREC").mkdir()
    for stem in ("train_5500", "TREC_10"):
        (tmp_path / f"TREC/{stem}.label").write_bytes("LOC:other Où est  Zürich ?\r\n".encode("latin-1"))
    assert transfer_examples(tmp_path, "TREC", True)["train"] == [(("Où est Zürich ?",), "LOC")]
    (tmp_path / "CR").mkdir()
    for end in ("pos", "neg"):
        (tmp_path / f"CR/custrev.{end}").write_text("one…\u0085two \n\nthree", encoding="utf-8")
    assert [texts for texts, _ in transfer_examples(tmp_path, "CR", allow_partial=True)["all"]] == [
        ("one… two",),
        ("",),
        ("three",),
    ] * 2


def test_what_an_evaluator_refuses():
    row = (("A",), "0")
    for splits, mode, message in (
        ({"train": [row], "dev": [row]}, "test", "got the splits train, dev: pass one split, train and test, or"),
        ({"all": [row]}, "test", "at least two classes, got 0"),
        (
            {"train": [row, (("B",), "1")], "test": [(("C",), "2")]},
            "test",
            "test has the class 2, but no training example has it",
        ),
        ({"train": [row, (("B",), "1")], "test": []}, "test", "task: test has no examples"),
        (
            {"all": [row, (("B", "C"), "1"), (("D",), "1")]},
            "test",
            "task: the examples have 1 or 2 texts, but all need one text, or all need two",
        ),
        (
            {"train": [row, (("B",), "1")], "test": [(("C", "D"), "1")]},
            "test",
            "task: the examples have 1 or 2 texts",
        ),
        ({"all": [(("A", "B", "C"), "0"), (("D", "E", "F"), "1")]}, "test", "task: the examples have 3 texts"),
        ({"all": [row]}, "slow", "mode='slow' is unknown: choose one of test, fasttest, dev"),
    ):
        with pytest.raises(ValueError, match=message):
            TransferEvaluator(splits, "task", mode)
    with pytest.raises(ValueError, match="there is no transfer task IMDB: choose from MR"):
        transfer_evaluators("absent", ["IMDB"])


def _senteval_sts(folder):
    """As much of SentEval's folder as tells that it is."""
    (folder / "other" / "STS" / "STS12-en-test").mkdir(parents=True)
    (folder / "other" / "STS" / "STSBenchmark").mkdir()
    (folder / "other" / "STS" / "STSBenchmark" / "sts-test.csv").touch()
    return folder / "other"


def test_evaluate_prints_the_papers_two_tables(senteval, generated, tiny_bert, tmp_path, capsys):
    name = str(tmp_path / "model")
    build_model(tiny_bert, "mean").save_pretrained(name)
    folders = ["--sts_dir", str(generated / "sts/raw"), "--senteval_dir", str(senteval), "--allow_partial"]
    model = ["--model", name]
    tasks = ["--tasks", "MRPC", "STSBenchmark", "SST2"]
    rows = evaluate.run([*model, *folders, *tasks, "--mode", "fasttest", "--json_file", str(tmp_path / "a.json")])
    row = rows[name]
    sts, transfer = capsys.readouterr().out.strip().split("\n\n")
    assert sts.splitlines()[0] == "| model | STS-B | Avg. |"
    assert transfer.splitlines()[0] == "| model | SST2 | MRPC | Avg. |"
    assert f"| {row['SST2']:.2f} | {row['MRPC']:.2f} | {row['Avg. transfer']:.2f} |" in transfer
    assert list(row) == ["STS-B", "Avg. STS", "SST2", "MRPC", "Avg. transfer", "MRPC F1"]
    assert json.loads((tmp_path / "a.json").read_text()) == rows
    dev = evaluate.run([*model, *folders[2:], "--mode", "dev", "--tasks", "MRPC"])[name]
    assert list(dev) == ["MRPC", "Avg."]
    assert dev["MRPC"] != row["MRPC"]
    for task_set, tasks in (("transfer", TRANSFER_TASKS), ("full", (*STS_TASKS, *TRANSFER_TASKS)), ("sts", STS_TASKS)):
        asked = evaluate.EvaluateArguments([], task_set=task_set, senteval_dir="x")
        assert [task for part in evaluate._tasks(asked) for task in part] == list(tasks)
    partial = [*model, "--sts_dir", str(senteval), "--tasks", "SST2", "--allow_partial"]
    assert evaluate.run(partial)[name]["SST2"] == row["SST2"]
    (tmp_path / "STSB-test.tsv").write_text("a\tb\trating\nA dog.\tA cat.\t1\nA dog.\tA dog.\t5\nA.\tTwo.\t2\n")
    partial = [*model, "--sts_dir", str(tmp_path), "--tasks", "STS-B", "--allow_partial"]
    assert "STS-B" in evaluate.run([*partial, "--sts_columns", "a", "b", "rating"])[name]
    with pytest.raises(
        ValueError, match="STSB-test.tsv, line 2: there are no columns.*name the columns to read with --sts_columns"
    ):
        evaluate.run(partial)
    with pytest.raises(
        ValueError,
        match="holds SentEval's data, whose files have a fixed layout .*: leave --sts_columns out",
    ):
        evaluate.run([*model, "--sts_dir", str(_senteval_sts(tmp_path)), "--tasks", "STS-B", "--sts_columns", *"abc"])
    for folder in (senteval, generated / "sts/raw"):
        with pytest.raises(ValueError, match=r"rows, expected .*, or pass --allow_partial if it is meant"):
            evaluate.run([*model, "--sts_dir", str(folder), "--tasks", "SST2" if folder == senteval else "STS-B"])


def test_evaluate_says_how_far_the_transfer_tasks_are(senteval, generated, tiny_bert, tmp_path, monkeypatch, caplog):
    """What is left is told by the work of the tasks, of which each takes a second here."""
    clock = iter(range(100))
    monkeypatch.setattr(evaluate, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(TransferEvaluator, "work", property(lambda task: {"SST2": 10, "TREC": 6, "MRPC": 4}[task.name]))
    build_model(tiny_bert, "mean").save_pretrained(str(tmp_path / "model"))
    folders = ["--sts_dir", str(generated / "sts/raw"), "--senteval_dir", str(senteval), "--allow_partial"]
    caplog.set_level("INFO", logger="st_simcse.cli.evaluate")
    tasks = ["--tasks", "STS-B", "SST2", "TREC", "MRPC", "--mode", "fasttest"]
    evaluate.run(["--model", str(tmp_path / "model"), *folders, *tasks])
    said = [text.removeprefix(f"{tmp_path / 'model'}: ") for text in caplog.messages if "transfer tasks" in text]
    assert said == [
        "the classifiers of the 3 transfer tasks take longer than the embeddings; --mode fasttest trains the fewest",
        "SST2 is done (1 of 3 transfer tasks) after 1 s, about 1 s left",
        "TREC is done (2 of 3 transfer tasks) after 2 s, about 0 s left",
        "MRPC is done (3 of 3 transfer tasks) after 3 s",
    ]


def test_the_work_of_a_task_is_counted(senteval, monkeypatch):
    """Against the rows that scikit-learn's classifiers are trained on."""
    rows = []
    fit = LogisticRegression.fit
    monkeypatch.setattr(LogisticRegression, "fit", lambda self, x, y: rows.append(len(x)) or fit(self, x, y))
    for task in ("CR", "TREC", "SST2"):
        evaluator = TransferEvaluator(transfer_examples(senteval, task, True), task, "fasttest")
        rows.clear()
        evaluator._metrics(np.random.default_rng(0).normal(size=(len(evaluator.texts), 4)))
        # The best of a search is trained once more on all of its rows.
        assert evaluator.work == pytest.approx(sum(rows), rel=0.2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task_set", "transfer"], "need SentEval's data: pass its folder as --senteval_dir"),
        (["--task_set", "sts", "--tasks", "MR"], "--task_set or --tasks, not both"),
        (["--tasks", "IMDB", "--senteval_dir", "."], "--tasks: IMDB is unknown; choose from STS12, "),
        (
            ["--tasks", "STS12", "--mode", "dev", "--sts_dir", "."],
            "STS12 is unknown or has no dev set; .* STS-B, SICK-R",
        ),
        (["--mteb", "--tasks", "STS-B"], "--mteb evaluates on the test sets of all seven STS tasks"),
        (["--tasks", "STS-B", "--mode", "dev", "--sts_dir", "."], "lacks STSB-dev.tsv"),
        (["--tasks", "MR", "--sts_dir", ".", "--sts_columns", "a", "b", "c"], "--sts_columns describes STS tables"),
        (
            ["--mteb", "--sts_columns", "a", "b", "c"],
            "--sts_columns describes STS tables, but none are read here: leave it out",
        ),
        (["--mteb", "--allow_partial"], "--mteb downloads complete data: leave --allow_partial out"),
    ],
)
def test_evaluate_knows_its_tasks_before_the_work(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((OSError, ValueError), match=message):
        evaluate.run(["--model", "/absent", *options])


def test_the_real_data(shared, pretrained):
    sizes = {}
    for task, splits in {task: transfer_examples(shared / "senteval", task) for task in TRANSFER_TASKS}.items():
        sizes[task] = [len(rows) for rows in splits.values()]
    sizes["MRPC"].pop(0)  # releases differ by some pairs
    sizes["SST2"].pop(0)  # with phrases in SentEval's own
    assert sizes == {
        **{"MR": [10662], "CR": [3775], "SUBJ": [10000], "MPQA": [10606]},
        **{"SST2": [872, 1821], "TREC": [5452, 500], "MRPC": [1725]},
    }
    trec = transfer_examples(shared / "senteval", "TREC")
    some = {"train": trec["train"][:300], "test": trec["test"][:150]}
    metrics = TransferEvaluator(some, "TREC", "fasttest")(build_model(pretrained, device="cpu"))
    assert metrics["TREC_accuracy"] > 0.7
