import json

import mteb
import pytest
import torch
from datasets import Dataset, DatasetDict
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer

from conftest import CHINESE
from st_simcse import (
    AlignmentUniformityEvaluator,
    build_model,
    fast_encode,
    load_sts,
    sts_evaluators,
    sts_zh_evaluators,
)
from st_simcse.cli import evaluate
from st_simcse.data.senteval import STS_ZH_ROWS
from st_simcse.evaluation import MTEB_LANGUAGES, STS_TASKS, STS_ZH_TASKS, format_table, mteb_scores, sts_scores
from tests.reference import alignment_loop, uniformity_loop

# Measured with all-MiniLM-L6-v2 by an evaluator of another hand; MTEB publishes the same to the last digit or two.
PUBLISHED = {
    "STS12": 72.37,
    "STS13": 80.60,
    "STS14": 75.60,
    "STS15": 85.39,
    "STS16": 78.99,
    "STS-B": 82.03,
    "SICK-R": 77.15,
}


def test_published_numbers(shared, pretrained):
    model = build_model(pretrained, pooling="mean", max_seq_length=128)
    results = sts_evaluators(shared / "sts/raw")(fast_encode(model, "float32"))
    for task, published in PUBLISHED.items():
        assert 100 * results[f"{task}_spearman_cosine"] == pytest.approx(published, abs=0.01), task
    assert 100 * results["sequential_score"] == pytest.approx(78.87, abs=0.01)
    row = format_table({"MiniLM": sts_scores(results)}).splitlines()[-1]
    assert row.startswith("| MiniLM | 72.3")
    assert row.endswith("| 78.87 |")


def test_the_score_is_spearman_of_all_pairs(files, tiny_bert):
    evaluator = sts_evaluators(files / "sts/raw", allow_partial=True).evaluators[5]
    model = SentenceTransformer(tiny_bert)
    first, second = model.encode(evaluator.sentences1), model.encode(evaluator.sentences2)
    cosine = model.similarity_pairwise(first, second)
    assert evaluator(model)["STS-B_spearman_cosine"] == pytest.approx(spearmanr(evaluator.scores, cosine)[0], abs=1e-3)


def test_chinese_tasks(senteval_cn, chinese_bert, tmp_path, capsys):
    """Spearman of each split by scipy on embeddings cut at the task's length, plain and weighted averages by hand."""
    model = build_model(chinese_bert, pooling="cls", device="cpu")
    model.max_seq_length = 7
    expected, sizes = {}, {}
    for task in STS_ZH_TASKS:
        for split in ("train", "valid", "test"):
            rows = [line.split("\t") for line in (senteval_cn / task / f"{task}.{split}.data").read_text().splitlines()]
            one, two, scores = zip(*rows, strict=True)
            cosine = model.similarity_pairwise(model.encode(one), model.encode(two))
            expected[f"{task}-{split}"] = 100 * spearmanr(list(map(float, scores)), cosine)[0]
            sizes[f"{task}-{split}"] = len(rows)
    assert sorted(set(sizes.values())) == [20, 40, 60]
    total = sum(expected[name] * size for name, size in sizes.items())
    expected |= {"Avg.": sum(expected.values()) / 15, "Weighted avg.": total / (5 * 120)}
    files = {f"--{kind}_file": str(tmp_path / f"a.{kind}") for kind in ("csv", "json")}
    words = ["--model", chinese_bert, "--sts_zh_dir", str(senteval_cn), "--max_seq_length", "7", "--allow_partial"]
    found = evaluate.run(
        [*words, "--plot_file", str(tmp_path / "a.png"), *(word for pair in files.items() for word in pair)]
    )
    assert found == {chinese_bert: pytest.approx(expected, abs=0.01)}
    assert list(found[chinese_bert]) == list(expected)
    table = capsys.readouterr().out
    assert table.startswith("| model | ATEC-train | ATEC-valid | ATEC-test | BQ-train |")
    assert table.splitlines()[0].endswith("| STS-B-test | Avg. | Weighted avg. |")
    assert json.loads((tmp_path / "a.json").read_text()) == found
    assert (tmp_path / "a.csv").read_text().splitlines()[0].endswith(",STS-B-test,Avg.,Weighted avg.")
    some = evaluate.run([*words, "--tasks", "PAWSX", "BQ", "--sts_zh_splits", "test"])[chinese_bert]
    assert some == pytest.approx(
        {name: expected[name] for name in ("PAWSX-test", "BQ-test")}
        | dict.fromkeys(("Avg.", "Weighted avg."), (expected["PAWSX-test"] + expected["BQ-test"]) / 2),
        abs=0.01,
    )


def test_chinese_texts_are_cut_as_in_the_reference(tmp_path, chinese_bert, monkeypatch, caplog):
    """64 tokens, 128 in PAWSX, without a trace in the model; a model that reads less is left so."""
    long = {task: CHINESE[1] * 40 for task in ("BQ", "PAWSX")}
    for task, text in long.items():
        (tmp_path / task).mkdir()
        (tmp_path / task / f"{task}.test.data").write_text(f"{text}\t{CHINESE[0]}\t1\n{CHINESE[0]}\t{CHINESE[2]}\t0\n")
    model = build_model(chinese_bert, device="cpu")
    seen = []
    monkeypatch.setattr(SentenceTransformer, "encode", lambda model, *args, **kwargs: seen.append(model.max_seq_length))
    for reads, expected in ((200, [64, 128]), (100, [64, 100]), (32, [32, 32])):
        model.max_seq_length = reads
        evaluators = sts_zh_evaluators(tmp_path, tasks=list(long), allow_partial=True).evaluators
        for evaluator in evaluators:
            evaluator.embed_inputs(model, ["一"])
        assert (seen, model.max_seq_length) == (expected, reads)
        seen.clear()
    evaluator = sts_zh_evaluators(tmp_path, tasks=["PAWSX"], max_length=20, allow_partial=True).evaluators[0]
    evaluator.embed_inputs(model, ["一"])
    assert seen == [20]
    monkeypatch.undo()
    words = ["--model", chinese_bert, "--sts_zh_dir", str(tmp_path), "--tasks", "BQ", "--allow_partial"]
    evaluate.run([*words, "--max_seq_length", "10"])
    assert "1 of 3 texts are cut: they are longer than the 10 tokens" in caplog.text


def test_static_embeddings_on_the_chinese_tasks(senteval_cn, static_model):
    """A model that cuts nothing."""
    evaluator = sts_zh_evaluators(senteval_cn, tasks=["BQ"], splits=["test"], allow_partial=True).evaluators[0]
    before = static_model.max_seq_length
    embeddings = evaluator.embed_inputs(static_model, CHINESE)
    assert (embeddings == static_model.encode(CHINESE)).all()
    assert static_model.max_seq_length == before


def test_chinese_files_as_they_are_released(tmp_path):
    """LCQMC's own names, and CNSD's STS-B with its ids; a row that does not fit is named, also an early one."""
    for name, line in {
        "LCQMC/train.txt": "怎么还款\t如何还钱\t1\n",
        "LCQMC/dev.tsv": "怎么还款\t如何还钱\t1\n",
        "STS-B/cnsd-sts-dev.txt": "2012test-0001||有人在弹吉他||男人弹吉他||5\n",
        "STS-B/cnsd-sts-test.txt": "2012test-0001||有人在弹吉他||男人弹吉他||5\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(line * (2 if "dev" in name else 3))
    evaluators = sts_zh_evaluators(tmp_path, tasks=["LCQMC", "STS-B"], allow_partial=True).evaluators
    assert [(evaluator.name, len(evaluator.scores)) for evaluator in evaluators] == [
        *(("LCQMC-train", 3), ("LCQMC-valid", 2)),
        *(("STS-B-valid", 2), ("STS-B-test", 3)),
    ]
    assert (evaluators[2].sentences2, evaluators[2].scores) == (["男人弹吉他"] * 2, [5.0] * 2)
    for name, line, place in (
        ("LCQMC/dev.tsv", "怎么还款\t1\n", "line 3: the row has 2 cells, but the first row has 3"),
        ("STS-B/cnsd-sts-test.txt", "17||有人||男人||五\n", "line 4, column 3: '五' is not a score"),
    ):
        with (tmp_path / name).open("a") as file:
            file.write(line)
        with pytest.raises(ValueError, match=f"{name}, {place}"):
            sts_zh_evaluators(tmp_path, tasks=[name.split("/")[0]], allow_partial=True)


@pytest.mark.parametrize(("task", "split"), [(task, split) for task in STS_ZH_ROWS for split in STS_ZH_ROWS[task]][-6:])
def test_chinese_sets_are_complete_or_refused(tmp_path, task, split):
    (tmp_path / task).mkdir()
    path = tmp_path / task / f"{task}.{split}.data"
    released = STS_ZH_ROWS[task][split]
    for rows in (min(released) - 1, *released, max(released) + 1):
        path.write_text("一\t二\t1\n" * rows)
        if rows in released:
            assert len(sts_zh_evaluators(tmp_path, tasks=[task]).evaluators[0].scores) == rows
        else:
            with pytest.raises(
                ValueError, match=rf"{path.name} has {rows:,} rows, expected {released[0]:,}.*allow_part"
            ):
                sts_zh_evaluators(tmp_path, tasks=[task])


def test_chinese_tasks_that_are_not_there(tmp_path, senteval_cn):
    with pytest.raises(FileNotFoundError, match=r"lacks ATEC, BQ, LCQMC, PAWSX, STS-B.*ATEC.test.data.*--sets sts_zh"):
        sts_zh_evaluators(tmp_path)
    (tmp_path / "BQ").mkdir()
    (tmp_path / "BQ/BQ.test.data").write_text("一\t二\t1\n")
    with pytest.raises(FileNotFoundError, match=r"lacks BQ/BQ.train.data$"):
        sts_zh_evaluators(tmp_path, tasks=["BQ"], splits=["test", "train"])
    with pytest.raises(
        ValueError, match="there is no Chinese STS task STS12: choose from ATEC, BQ, LCQMC, PAWSX, STS-B"
    ):
        sts_zh_evaluators(senteval_cn, tasks=["STS12"])
    with pytest.raises(ValueError, match="there is no Chinese STS split dev: choose from train, valid, test"):
        sts_zh_evaluators(senteval_cn, splits=["dev"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--sts_zh_dir", "x", "--sts_dir", "y"],
            "--sts_zh_dir cannot be used with --sts_dir: run evaluate once for each",
        ),
        (["--sts_zh_dir", "x", "--mteb", "--mode", "dev"], "--sts_zh_dir cannot be used with --mteb, --mode"),
        (["--sts_dir", "x", "--sts_zh_splits", "test"], "--sts_zh_splits needs --sts_zh_dir"),
        (["--sts_dir", "x", "--mteb_languages", "zho"], "--mteb_languages needs --mteb: pass both"),
        (["--mteb", "--mteb_languages", "zh"], "--mteb_languages: zh is unknown; choose from eng, zho"),
    ],
)
def test_options_of_languages_that_do_not_go_together(options, message):
    with pytest.raises(ValueError, match=message):
        evaluate.run(["--model", "/absent", *options])


def test_missing_tasks_are_named(tmp_path):
    (tmp_path / "STS12.tsv").write_text("sentence1\tsentence2\tscore\nA\tB\t1\n")
    with pytest.raises(FileNotFoundError, match=r"lacks STS13.tsv, .*SICKR-test.tsv"):
        sts_evaluators(tmp_path)
    assert len(STS_TASKS) == 7


def test_alignment_and_uniformity(files, tiny_bert, tmp_path):
    model = build_model(tiny_bert)
    dev = load_sts(files / "sts/raw" / "STSB-dev.tsv", name="dev")
    for side in ("sentences1", "sentences2", "scores"):
        setattr(dev, side, getattr(dev, side)[:60])
    evaluator = AlignmentUniformityEvaluator.from_sts(dev)
    metrics = evaluator(model, str(tmp_path), epoch=0.5, steps=3)

    first, second = (torch.tensor(model.encode(side)) for side in (dev.sentences1, dev.sentences2))
    positive = torch.tensor(dev.scores) > 4
    assert metrics["dev_alignment"] == pytest.approx(alignment_loop(first[positive], second[positive]), abs=1e-5)
    texts = list(dict.fromkeys(dev.sentences1 + dev.sentences2))
    expected = uniformity_loop(torch.tensor(model.encode(texts)))
    assert metrics["dev_uniformity"] == pytest.approx(expected, abs=1e-5)
    evaluator(model, str(tmp_path), epoch=1, steps=6)
    lines = (tmp_path / "alignment_uniformity_dev_results.csv").read_text().splitlines()
    assert lines[0] == "epoch,steps,alignment,uniformity"
    assert [line.split(",")[:2] for line in lines[1:]] == [["0.5", "3"], ["1", "6"]]


def test_no_positive_pairs_is_an_error():
    with pytest.raises(ValueError, match="no pair has a score above 4.0"):
        AlignmentUniformityEvaluator(["A"], ["B"], [0.9])


@pytest.mark.parametrize("longer", range(3))
def test_pairs_of_alignment_have_two_sentences_and_a_score(longer):
    columns = [["A"], ["B"], [5.0]]
    columns[longer] = columns[longer] * 2
    counts = [len(column) for column in columns]
    with pytest.raises(ValueError, match="got {} first sentences, {} second sentences and {} scores".format(*counts)):
        AlignmentUniformityEvaluator(*columns)


@pytest.mark.slow
def test_mteb_agrees_on_the_same_pairs(generated, pretrained, monkeypatch):
    """MTEB itself, its seven tasks reading the first rows of generated files instead of downloading its own."""
    files = {"STSBenchmark": "STSB-test", "SICK-R": "SICKR-test"}

    def load_data(task, *args, **kwargs):
        dev = load_sts(generated / "sts/raw" / f"{files.get(task.metadata.name, task.metadata.name)}.tsv")
        columns = {"sentence1": dev.sentences1, "sentence2": dev.sentences2, "score": dev.scores}
        rows = Dataset.from_dict({name: values[:80] for name, values in columns.items()})
        task.dataset, task.data_loaded = DatasetDict({split: rows for split in task.metadata.eval_splits}), True

    monkeypatch.setattr("mteb.abstasks.AbsTask.load_data", load_data)
    model = build_model(pretrained, pooling="mean")
    scores = mteb_scores(model)
    ours = sts_evaluators(generated / "sts/raw", allow_partial=True)
    for evaluator in ours.evaluators:
        for side in ("sentences1", "sentences2", "scores"):
            setattr(evaluator, side, getattr(evaluator, side)[:80])
    expected = sts_scores(ours(model))
    assert list(scores) == list(expected)
    assert list(scores.values()) == pytest.approx(list(expected.values()), abs=1e-2)


@pytest.mark.slow
def test_mteb_in_chinese(senteval_cn, chinese_bert, monkeypatch):
    """The STS tasks of the installed C-MTEB, which read generated files instead of downloading their own."""
    benchmark = mteb.get_benchmark("MTEB(cmn, v1)")
    names = {task.metadata.name for task in benchmark.tasks if task.metadata.type == "STS"}
    assert set(MTEB_LANGUAGES["zho"].values()) == names
    rows = {
        name: load_sts(senteval_cn / task / f"{task}.test.data")
        for task, name in MTEB_LANGUAGES["zho"].items()
        if task in STS_ZH_TASKS
    }

    def load_data(task, *args, **kwargs):
        pairs = rows.get(task.metadata.name, rows["BQ"])
        table = Dataset.from_dict({"sentence1": pairs.sentences1, "sentence2": pairs.sentences2, "score": pairs.scores})
        task.dataset, task.data_loaded = DatasetDict({split: table for split in task.eval_splits}), True

    monkeypatch.setattr("mteb.abstasks.AbsTask.load_data", load_data)
    words = ["--model", chinese_bert, "--mteb", "--pooling", "mean", "--mteb_languages", "zho"]
    found = evaluate.run(words)[chinese_bert]
    assert list(found) == ["ATEC", "BQ", "LCQMC", "PAWSX", "STS-B", "AFQMC", "QBQTC", "Avg."]
    model = build_model(chinese_bert, pooling="mean", device="cpu")
    for task, name in MTEB_LANGUAGES["zho"].items():
        if task in STS_ZH_TASKS:
            expected = rows[name](model)[f"{task}_spearman_cosine"]
            assert found[task] == pytest.approx(100 * expected, abs=1e-2)
    assert found["Avg."] == pytest.approx(sum(list(found.values())[:-1]) / 7)
    both = evaluate.run([*words, "eng"])[chinese_bert]
    assert {name for name in both if "STS-B" in name or "Avg." in name} == {
        *("STS-B STS", "STS-B STS zho", "Avg. STS", "Avg. STS zho")
    }
    assert both["STS-B STS zho"] == found["STS-B"]
    with pytest.raises(ValueError, match="MTEB's STS tasks are not supported for 'deu': choose eng or zho"):
        mteb_scores(model, "deu")
