import csv
import gzip
import json
import logging
import shutil
import tarfile
from dataclasses import replace
from hashlib import sha256

import pytest
from datasets import Dataset
from huggingface_hub import constants

from st_simcse import HubDataset, TripletReader, build_model, load_sts, sts_evaluators, sts_zh_evaluators
from st_simcse.cli import data, main, train
from st_simcse.data.download import DATA_SETS, PRINCETON, download
from st_simcse.data.senteval import STS_ROWS, SUBSETS, SentEvalReader, transfer_examples
from st_simcse.evaluation import STS_TASKS

# What the releases have, and what mteb's descriptive statistics and the authors' repositories say.
ROWS = {
    "sts/STS12.tsv": 3108,
    "sts/STS13.tsv": 1500,
    "sts/STS14.tsv": 3750,
    "sts/STS15.tsv": 3000,
    "sts/STS16.tsv": 1186,
    "sts/STSB-train.tsv": 5749,
    "sts/STSB-dev.tsv": 1500,
    "sts/STSB-test.tsv": 1379,
    "senteval": None,
    "sts/SICKR-test.tsv": 4927,
    "wiki1m_for_simcse.txt": 1_000_000,
    "nli_for_simcse.csv": 275_601,
    "all_nli_triplets.csv": 557_850,
}


# Train, valid and test: the cards of C-MTEB's ATEC, PAWSX and STSB, that of hellonlp/promcse-bert-large-zh for all
# five, and mteb's descriptive statistics of the splits that it evaluates.
CHINESE_ROWS = {
    "ATEC": (62_477, 20_000, 20_000),
    "BQ": (100_000, 10_000, 10_000),
    "LCQMC": (238_766, 8_802, 12_500),
    "PAWSX": (49_401, 2_000, 2_000),
    "STS-B": (5_231, 1_458, 1_361),
}


def _make_senteval(sts, sick):
    """SentEval's layout, two pairs a subset of which the second has no gold score."""
    for task, subsets in SUBSETS.items():
        folder = sts / f"{task}-en-test"
        folder.mkdir(parents=True)
        for subset in subsets:
            (folder / f"STS.input.{subset}.txt").write_text(f'{subset} "one .\ttwo . \nthree .\tfour .\n')
            (folder / f"STS.gs.{subset}.txt").write_text("4.25\n\n")
    (sts / "STSBenchmark").mkdir()
    (sts / "STSBenchmark" / "sts-test.csv").write_text(
        'main-news\tMSRpar\t2012test\t0001\t1.500\ta "b, c\td .\tsource\tx\n'
    )
    sick.mkdir(parents=True)
    header = "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment\r\n"
    (sick / "SICK_test_annotated.txt").write_text(f"{header}6\tA dog runs\tA hound runs\t4.5\tNEUTRAL\r\n", newline="")


# The examples of the transfer tasks, as SentEval and the papers of the data sets have them.
TRANSFER = {
    **{"MR": 10662, "CR": 3775, "SUBJ": 10000, "MPQA": 10606},
    **{"SST2": 67349 + 872 + 1821, "TREC": 5452 + 500, "MRPC": 4076 + 1725},
}
TRANSFER_LINES = {
    **{"MR/rt-polarity.pos": 5331, "MR/rt-polarity.neg": 5331, "CR/custrev.pos": 2407, "CR/custrev.neg": 1368},
    **{"SUBJ/subj.objective": 5000, "SUBJ/subj.subjective": 5000, "MPQA/mpqa.pos": 3312, "MPQA/mpqa.neg": 7294},
    **{"SST/binary/sentiment-train": 67349, "SST/binary/sentiment-dev": 872, "SST/binary/sentiment-test": 1821},
    **{"TREC/train_5500.label": 5452, "TREC/TREC_10.label": 500},
    **{"MRPC/msr_paraphrase_train.txt": 4076, "MRPC/msr_paraphrase_test.txt": 1725},
}


def _make_transfer(folder, lines=TRANSFER_LINES):
    """The seven transfer tasks with so many examples a file, all alike."""
    for name, rows in lines.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        row = {"SST": "fine .\t1\n", "TREC": "HUM:ind Who ?\n", "MRPC": "1\t1\t2\ta\tb\n"}.get(
            name.split("/")[0], "fine .\n"
        )
        (folder / name).write_text("Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n" * ("MRPC" in name) + row * rows)


@pytest.mark.parametrize(
    ("sts", "sick", "folder"),
    [
        ("STS", "SICK", ""),
        ("STS", "SICK", "STS"),
        ("STS", "STS/SICK", "STS"),
        ("SentEval/data/downstream/STS", "SentEval/data/downstream/SICK", ""),
        ("SentEval/data/downstream/STS", "SentEval/data/downstream/SICK", "SentEval"),
        ("SentEval/data/downstream/STS", "SentEval/data/downstream/SICK", "SentEval/data/downstream"),
    ],
)
def test_sentevals_folder_is_found(tmp_path, sts, sick, folder, caplog):
    _make_senteval(tmp_path / sts, tmp_path / sick)
    with caplog.at_level(logging.WARNING):
        evaluators = sts_evaluators(tmp_path / folder, allow_partial=True).evaluators
    assert [evaluator.name for evaluator in evaluators] == list(STS_TASKS)
    assert evaluators[1].sentences1 == ['FNWN "one .', 'headlines "one .', 'OnWN "one .']
    assert evaluators[1].scores == [4.25] * 3
    assert (evaluators[5].sentences1, evaluators[5].sentences2, evaluators[5].scores) == (['a "b, c'], ["d ."], [1.5])
    assert (evaluators[6].sentences1, evaluators[6].scores) == (["A dog runs"], [4.5])
    path = (tmp_path / sts / "STS13-en-test").absolute()
    assert f"{path}: read 3, skipped 3 without a gold score" in caplog.messages


@pytest.mark.parametrize("task", list(STS_TASKS))
def test_sentevals_pairs_are_those_of_the_tables(shared, task):
    """The tables were made of the same release by another hand."""
    evaluator = sts_evaluators(shared / "senteval").evaluators[list(STS_TASKS).index(task)]
    with open(shared / "sts" / "senteval" / f"{STS_TASKS[task]}.tsv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert evaluator.sentences1 == [row["sentence1"] for row in rows]
    assert evaluator.sentences2 == [row["sentence2"] for row in rows]
    assert evaluator.scores == [float(row["score"]) for row in rows]


def test_pairs_without_a_gold_score_are_counted(shared):
    reader = SentEvalReader(shared / "senteval" / "STS")
    assert len(reader.get_examples("STS16-en-test")) == 1186
    lines = sum(len(path.open().readlines()) for path in (shared / "senteval/STS/STS16-en-test").glob("STS.input.*"))
    assert reader.skipped == {"without a gold score": lines - 1186}


@pytest.mark.parametrize(
    ("file", "content", "error", "message"),
    [
        ("STS/STS14-en-test", None, FileNotFoundError, "lacks STS14-en-test$"),
        ("SICK/SICK_test_annotated.txt", None, FileNotFoundError, "lacks SICK_test_annotated.txt$"),
        ("STS/STS12-en-test/STS.gs.MSRvid.txt", None, FileNotFoundError, "STS.gs.MSRvid.txt"),
        ("STS/STS12-en-test/STS.gs.MSRvid.txt", "1\n2\n3\n", ValueError, "STS.input.MSRvid.txt and STS.gs.MSRvid"),
        ("STS/STS12-en-test/STS.gs.MSRvid.txt", "1\n", ValueError, "have different numbers of lines"),
        ("STS/STS12-en-test/STS.gs.MSRvid.txt", "1\nx\n", ValueError, "MSRvid.txt, line 2, column 'score': 'x'"),
        (
            "STS/STS12-en-test/STS.input.MSRvid.txt",
            "a\tb\nc d\n",
            ValueError,
            r"line 2: the line has 1 tab-separated cell\(s\)",
        ),
        (
            "STS/STSBenchmark/sts-test.csv",
            "a,b,3\n",
            ValueError,
            r"sts-test.csv, line 1: the line has 1 tab-separated cell\(s\)",
        ),
    ],
)
def test_what_is_wrong_in_sentevals_folder_is_named(tmp_path, file, content, error, message):
    _make_senteval(tmp_path / "STS", tmp_path / "SICK")
    path = tmp_path / file
    if content is not None:
        path.write_text(content)
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    with pytest.raises(error, match=message):
        sts_evaluators(tmp_path, allow_partial=True)


def test_tables_come_before_sentevals_folder(tmp_path):
    _make_senteval(tmp_path / "STS", tmp_path / "SICK")
    for stem in STS_TASKS.values():
        (tmp_path / f"{stem}.tsv").write_text("sentence1\tsentence2\tscore\nA\tB\t1\n")
    assert [evaluator.sentences1 for evaluator in sts_evaluators(tmp_path, allow_partial=True).evaluators] == [
        ["A"]
    ] * 7


def test_published_number_of_sentevals_folder(shared, pretrained):
    """The smallest task; the pairs of all are compared above."""
    evaluator = sts_evaluators(shared / "senteval").evaluators[4]
    scores = evaluator(build_model(pretrained, pooling="mean", max_seq_length=128))
    assert 100 * scores["STS16_spearman_cosine"] == pytest.approx(78.99, abs=0.01)


def _scored(rows):
    """Cells with what tsv files cannot hold; every score another."""
    return [
        {"sentence1": f'"{row} one.', "sentence2": f"two\t{row}\nthree", "score": row / rows} for row in range(rows)
    ]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The repositories as folders in the working directory, in the layout that they have on the hub."""
    monkeypatch.chdir(tmp_path)
    splits = {f"sts{year}-sts": {"test": ROWS[f"sts/STS{year}.tsv"]} for year in range(12, 17)}
    for repository, rows in (splits | {"stsbenchmark-sts": {"train": 5749, "validation": 1500, "test": 1379}}).items():
        folder = tmp_path / "mteb" / repository
        folder.mkdir(parents=True)
        (folder / "README.md").write_text("---\nlanguage:\n- en\n---\n")
        for split, count in rows.items():
            with gzip.open(folder / f"{split}.jsonl.gz", "wt") as file:
                file.writelines(json.dumps({"split": split} | row) + "\n" for row in _scored(count))
    (tmp_path / "sentence-transformers" / "all-nli" / "triplet").mkdir(parents=True)
    triplets = {"anchor": ["A, b.", "C"], "positive": ['"D"', "E"], "negative": ["F\ng", "H"]}
    parquet = tmp_path / "sentence-transformers/all-nli/triplet/train-00000-of-00001.parquet"
    Dataset.from_dict(triplets).to_parquet(parquet)
    (tmp_path / "sentence-transformers/all-nli/README.md").write_text(
        "---\nconfigs:\n- config_name: triplet\n  data_files:\n  - split: train\n    path: triplet/train-*\n---\n"
    )
    princeton = tmp_path / PRINCETON
    princeton.mkdir(parents=True)
    (princeton / "wiki1m_for_simcse.txt").write_text("One.\n\nThree.\n")
    (princeton / "nli_for_simcse.csv").write_text('sent0,sent1,hard_neg\nA,"B, c",D\n')
    _make_senteval(tmp_path / "tar/STS", tmp_path / "tar/SICK")
    for task, subsets in SUBSETS.items():
        folder = tmp_path / "tar" / "STS" / f"{task}-en-test"
        for index, subset in enumerate(subsets):
            rows = ROWS[f"sts/{task}.tsv"] - len(subsets) + 1 if index == 0 else 1
            (folder / f"STS.input.{subset}.txt").write_text("a\tb\n" * (rows + 1))
            (folder / f"STS.gs.{subset}.txt").write_text("1\n" * rows + "\n")
    benchmark, sick = (
        tmp_path / "tar" / name for name in ("STS/STSBenchmark/sts-test.csv", "SICK/SICK_test_annotated.txt")
    )
    benchmark.write_text(benchmark.read_text() * 1379)
    header, row = sick.read_text().splitlines()
    sick.write_text("\n".join([header, *[row] * 4927]) + "\n")
    _make_transfer(tmp_path / "tar")
    with tarfile.open(princeton / "senteval.tar", "w") as tar:
        for path in sorted((tmp_path / "tar").iterdir()):
            tar.add(path, path.name)
    return tmp_path


@pytest.fixture
def small(monkeypatch):
    """The large files may be small."""
    for name, rows in (("wiki1m", 3), ("nli", 1), ("all-nli", 2)):
        monkeypatch.setitem(DATA_SETS, name, [replace(DATA_SETS[name][0], rows=rows)])


def test_the_rows_that_files_must_have():
    rows = {file.path: file.rows for files in DATA_SETS.values() for file in files}
    assert {path: rows.pop(path) for path in list(rows) if path.startswith("senteval_cn")} == {
        f"senteval_cn/{task}/{task}.{split}.data": count
        for task, counts in CHINESE_ROWS.items()
        for split, count in zip(("train", "valid", "test"), counts, strict=True)
    }
    assert rows == ROWS


def test_chinese_tasks_from_the_hub(tmp_path, monkeypatch):
    """C-MTEB's repositories as folders, in their layout; what is fetched is what --sts_zh_dir reads."""
    monkeypatch.chdir(tmp_path)
    files = DATA_SETS["sts_zh"]
    small = [file if "STS-B" in file.path else replace(file, rows=4 + number) for number, file in enumerate(files)]
    monkeypatch.setitem(DATA_SETS, "sts_zh", small)
    texts = ["怎么\t还款", "如何\n还钱", '"花呗"怎么还款', "2019年"]
    for file in small:
        folder, split = tmp_path / file.source.name, file.source.split
        (folder / "data").mkdir(parents=True, exist_ok=True)
        rows = range(file.rows)
        columns = {"sentence1": [texts[row % 4] for row in rows], "sentence2": [f"第{row}句" for row in rows]}
        table = Dataset.from_dict(columns | {"score": [row % 2 for row in rows]})
        table.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
        splits = "".join(f"  - split: {name}\n    path: data/{name}-*\n" for name in ("train", "validation", "test"))
        (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files:\n{splits}---\n")
    assert {path.name for path in (tmp_path / "C-MTEB").iterdir()} == {"ATEC", "BQ", "LCQMC", "PAWSX", "STSB"}
    assert [rows for _, rows in download("data", ["sts_zh"])] == [file.rows for file in small]
    lines = (tmp_path / "data/senteval_cn/ATEC/ATEC.valid.data").read_text().splitlines()
    assert lines == [
        f"{text}\t第{row}句\t{row % 2}"
        for row, text in enumerate(["怎么 还款", "如何 还钱", '"花呗"怎么还款', "2019年", "怎么 还款"])
    ]
    evaluators = sts_zh_evaluators("data/senteval_cn", allow_partial=True).evaluators
    assert [(evaluator.name, len(evaluator.scores)) for evaluator in evaluators] == [
        (file.path.split("/")[2].removesuffix(".data").replace(".", "-"), file.rows) for file in small
    ]
    assert evaluators[0].sentences1[:3] == ["怎么 还款", "如何 还钱", '"花呗"怎么还款']
    monkeypatch.setitem(DATA_SETS, "sts_zh", [replace(small[0], rows=3)])
    with pytest.raises(ValueError, match="ATEC.train.data has 4 rows, expected 3: delete it to download it again"):
        list(download("data", ["sts_zh"]))


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "taken").touch()
    with pytest.raises(SystemExit, match="cannot write to .*taken: it is a file, not a folder"):
        main(["data", "--output_dir", str(tmp_path / "taken"), "--sets", "sts"])


def test_sts_from_the_hub(hub):
    files = {str(path): rows for path, rows in download("data", ["sts"])}
    expected = {f"data/{path}": ROWS[path] for path in list(ROWS)[:10]}
    expected["data/senteval"] = 3108 + 1500 + 3750 + 3000 + 1186 + 1379 + 4927 + sum(TRANSFER.values())
    assert files == expected
    assert sorted(path.name for path in (hub / "data").rglob("*.tsv")) == sorted(
        path.split("/")[1] for path in ROWS if path.endswith(".tsv")
    )
    dev = load_sts("data/sts/STSB-dev.tsv")
    expected = _scored(1500)
    assert dev.sentences1 == [row["sentence1"] for row in expected]
    assert dev.sentences2 == [f"two {row} three" for row in range(1500)]
    assert dev.scores == [row["score"] for row in expected]
    for folder in ("data/sts", "data/senteval"):
        evaluators = sts_evaluators(folder).evaluators
        assert [len(evaluator.scores) for evaluator in evaluators] == [3108, 1500, 3750, 3000, 1186, 1379, 4927]
    assert (evaluators[6].sentences1[0], evaluators[6].scores[0]) == ("A dog runs", 4.5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("SUBJ/subj.objective", "SUBJ/subj.objective has 1 rows, expected 5,000"),
        ("SST/binary/sentiment-train", "sentiment-train has 1 rows, expected 67,349 or 6,920"),
        ("STS/STS12-en-test/STS.gs.MSRpar.txt", "STS12-en-test has 3,107 rows, expected 3,108"),
    ],
)
def test_a_task_of_sentevals_folder_that_is_cut_short_is_not_fetched(hub, file, message):
    text = (hub / "tar" / file).read_text()
    with tarfile.open(hub / PRINCETON / "senteval.tar", "w") as tar:
        short = text.replace("1\n", "\n", 1) if "STS.gs" in file else text[: text.index("\n") + 1]
        (hub / "tar" / file).write_text(short)
        for path in sorted((hub / "tar").iterdir()):
            tar.add(path, path.name)
    with pytest.raises(ValueError, match=f"partial-senteval/.*{message}: the data on the hub has changed"):
        list(download("data", ["sts"]))
    (hub / "data/partial-senteval").rename(hub / "data/senteval")
    with pytest.raises(ValueError, match=f"data/senteval/.*{message}: delete it to download it again"):
        list(download("data", ["sts"]))


def test_the_rows_of_all_fourteen_tasks(shared):
    """Counted by hand: lines that are not empty, without headers; of the STS files the gold scores."""
    senteval = shared / "senteval"
    for task, subsets in SUBSETS.items():
        golds = [(senteval / "STS" / f"{task}-en-test" / f"STS.gs.{name}.txt").read_text().split() for name in subsets]
        assert sum(map(len, golds)) == STS_ROWS[task]
    assert len((senteval / "STS" / "STSBenchmark" / "sts-test.csv").read_text().splitlines()) == STS_ROWS["STS-B"]
    assert len((senteval / "SICK" / "SICK_test_annotated.txt").read_text().splitlines()) - 1 == STS_ROWS["SICK-R"]
    for name, rows in TRANSFER_LINES.items():
        # This release's training file of SST2 has no phrases, and that of MRPC four pairs more.
        rows = {"SST/binary/sentiment-train": 6920, "MRPC/msr_paraphrase_train.txt": 4080}.get(name, rows)
        assert (senteval / name).read_bytes().count(b"\n") - ("MRPC" in name) == rows, name
    sizes = {task: sum(map(len, transfer_examples(senteval, task).values())) for task in TRANSFER}
    assert sizes == TRANSFER | {"SST2": 6920 + 872 + 1821, "MRPC": 4080 + 1725}
    for folder in ("sts/raw", "sts/senteval", "senteval"):
        sizes = {evaluator.name: len(evaluator.scores) for evaluator in sts_evaluators(shared / folder).evaluators}
        assert sizes == STS_ROWS


@pytest.mark.slow
@pytest.mark.parametrize("task", list(TRANSFER))
def test_a_transfer_task_that_is_cut_short_is_refused(tmp_path, task):
    folder = {"SST2": "SST"}.get(task, task)
    lines = {name: rows for name, rows in TRANSFER_LINES.items() if name.startswith(f"{folder}/")}
    _make_transfer(tmp_path, lines)
    assert sum(map(len, transfer_examples(tmp_path, task).values())) == TRANSFER[task]
    for name, rows in lines.items():
        for wrong in (rows - 1, rows + 5):
            _make_transfer(tmp_path, {name: wrong})
            with pytest.raises(ValueError, match=rf"{name} has {wrong:,} rows, expected {rows:,}.*allow_partial="):
                transfer_examples(tmp_path, task)
            if wrong < rows:
                assert sum(map(len, transfer_examples(tmp_path, task, True).values())) == TRANSFER[task] - 1
            else:  # more than there are is no smaller set
                with pytest.raises(ValueError, match="rows, expected"):
                    transfer_examples(tmp_path, task, allow_partial=True)
        _make_transfer(tmp_path, {name: rows})


@pytest.mark.parametrize("task", list(STS_ROWS))
def test_an_sts_table_that_is_cut_short_is_refused(tmp_path, task):
    path = tmp_path / f"{STS_TASKS[task]}.tsv"
    for rows in (STS_ROWS[task] - 1, STS_ROWS[task], STS_ROWS[task] + 1):
        path.write_text("sentence1\tsentence2\tscore\n" + "A\tB\t1\n" * rows)
        if rows == STS_ROWS[task]:
            assert len(sts_evaluators(tmp_path, tasks=[task]).evaluators[0].scores) == rows
            continue
        message = rf"{path.name} has {rows:,} rows, expected {STS_ROWS[task]:,}: .*allow_partial="
        with pytest.raises(ValueError, match=message):
            sts_evaluators(tmp_path, tasks=[task])
        if rows < STS_ROWS[task]:
            assert len(sts_evaluators(tmp_path, tasks=[task], allow_partial=True).evaluators[0].scores) == rows


def test_a_dev_set_that_is_cut_short_is_refused(tmp_path):
    for name, rows in (("STSB-dev.tsv", 1500), ("SICKR-dev.tsv", 499)):
        (tmp_path / name).write_text("sentence1\tsentence2\tscore\n" + "A\tB\t1\n" * rows)
    assert len(sts_evaluators(tmp_path, tasks=["STS-B"], dev=True).evaluators[0].scores) == 1500
    with pytest.raises(ValueError, match="SICKR-dev.tsv has 499 rows, expected 500"):
        sts_evaluators(tmp_path, dev=True)


def test_training_data_from_the_hub(hub, small):
    assert [rows for _, rows in download("data", ["wiki1m", "nli", "all-nli"])] == [3, 1, 2]
    assert (hub / "data/wiki1m_for_simcse.txt").read_bytes() == b"One.\n\nThree.\n"
    assert TripletReader("data").get_examples("nli_for_simcse.csv")[0].texts == ["A", "B, c", "D"]
    assert TripletReader("data").get_examples("all_nli_triplets.csv")[0].texts == ["A, b.", '"D"', "F\ng"]


def _version(path):
    """Another once the file is written again; reading changes nothing of it."""
    return path.stat().st_ino, path.stat().st_mtime_ns


def test_a_second_call_goes_on(hub, small, monkeypatch):
    """Stopped in the middle of a file, nothing half done has a file's name, and what is complete stays."""
    with monkeypatch.context() as stopping:
        stopping.setattr("st_simcse.data.download.shutil.copyfile", lambda _, target: target.write_text("On") and 1 / 0)
        with pytest.raises(ZeroDivisionError):
            list(download("data", ["all-nli", "wiki1m"]))
    assert not (hub / "data/wiki1m_for_simcse.txt").exists()
    complete = _version(hub / "data/all_nli_triplets.csv")
    shutil.rmtree(hub / "sentence-transformers")  # nothing to fetch it from again
    assert [rows for _, rows in download("data", ["all-nli", "wiki1m"])] == [2, 3]
    assert _version(hub / "data/all_nli_triplets.csv") == complete
    assert sorted(path.name for path in (hub / "data").iterdir()) == ["all_nli_triplets.csv", "wiki1m_for_simcse.txt"]


def test_other_rows_than_expected_are_an_error(hub, small):
    source = hub / PRINCETON / "wiki1m_for_simcse.txt"
    source.write_text("One.\n")
    with pytest.raises(
        ValueError, match="wiki1m_for_simcse.txt has 1 rows, expected 3: the data on the hub has changed"
    ):
        list(download("data", ["wiki1m"]))
    assert not (hub / "data/wiki1m_for_simcse.txt").exists()
    (hub / "data/wiki1m_for_simcse.txt").write_text("My own.\n")
    with pytest.raises(ValueError, match="expected 3: delete it to download it again"):
        list(download("data", ["wiki1m"]))
    assert (hub / "data/wiki1m_for_simcse.txt").read_text() == "My own.\n"


def test_files_come_from_the_hubs_cache_in_offline_mode(tmp_path, monkeypatch, small):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "cache" / f"datasets--{PRINCETON.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots" / ("0" * 40)).mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=f"nli_for_simcse.csv of {PRINCETON} is not in the local cache"):
        list(download(tmp_path / "data", ["nli"]))
    (repository / "snapshots" / ("0" * 40) / "nli_for_simcse.csv").write_text("sent0,sent1,hard_neg\nA,B,C\n")
    assert list(download(tmp_path / "data", ["nli"])) == [(tmp_path / "data/nli_for_simcse.csv", 1)]


def test_a_file_with_other_bytes_than_the_hub_announced_is_refused(tmp_path, monkeypatch, small):
    """The cache names a file by its announced SHA-256; here the content is as long as announced, and another."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "cache" / f"datasets--{PRINCETON.replace('/', '--')}"
    for folder in ("refs", "blobs", f"snapshots/{'0' * 40}"):
        (repository / folder).mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    content = b"One.\nTwo.\nThree.\n"
    blob = repository / "blobs" / sha256(content).hexdigest()
    (repository / "snapshots" / ("0" * 40) / "wiki1m_for_simcse.txt").symlink_to(blob)
    blob.write_bytes(content.replace(b"Two", b"2wo"))
    with pytest.raises(ValueError, match=f"{blob.name} is damaged: its SHA-256 is not the one .* delete it"):
        list(download(tmp_path / "data", ["wiki1m"]))
    assert not (tmp_path / "data/wiki1m_for_simcse.txt").exists()
    blob.write_bytes(content)
    assert list(download(tmp_path / "data", ["wiki1m"])) == [(tmp_path / "data/wiki1m_for_simcse.txt", 3)]


def _sparse(tar, name, size):
    """A member that says to be of this size."""
    member = tarfile.TarInfo(name)
    member.size = size
    tar.addfile(member)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bomb", "message"),
    [
        (
            lambda tar: _sparse(tar, "STS/zeros", 2**31),
            "senteval.tar would unpack to more than .* nothing was unpacked",
        ),
        (lambda tar: [_sparse(tar, f"STS/{number}", 0) for number in range(10_001)], "would unpack to more than"),
        (lambda tar: _sparse(tar, "../outside", 0), "senteval.tar is damaged or not a tar archive .*outside"),
    ],
)
def test_an_archive_that_is_no_sentevals_is_refused(hub, bomb, message):
    with tarfile.open(hub / PRINCETON / "senteval.tar", "w") as tar:
        bomb(tar)
    with pytest.raises(ValueError, match=message):
        list(download("data", ["sts"]))
    assert not [path for path in hub.rglob("*") if path.name in ("zeros", "outside", "0")]


def test_a_damaged_archive_is_an_error_in_one_line(hub):
    (hub / PRINCETON / "senteval.tar").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="senteval.tar is damaged or not a tar archive .*: delete it"):
        list(download("data", ["sts"]))


@pytest.mark.parametrize("name", list(DATA_SETS))
def test_without_a_network_the_error_comes_at_once(tmp_path, monkeypatch, name):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    # A closed local port refuses the connection, as a machine without a network does.
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", "http://127.0.0.1:9")
    for loader in ("load_dataset", "hf_hub_download"):  # which would try again and again
        monkeypatch.setattr(f"st_simcse.data.hub_dataset.{loader}", None)
    source = DATA_SETS[name][0].source
    repository = source.name if isinstance(source, HubDataset) else PRINCETON
    with pytest.raises(
        OSError, match=f"{repository} is not a local folder, and the Hugging Face hub cannot be reached"
    ):
        list(download(tmp_path, [name]))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_the_command_downloads_and_tells(hub, small, capsys):
    assert list(DATA_SETS) == data.SETS
    main(["data", "--output_dir", "here", "--sets", "nli", "all-nli"])
    assert capsys.readouterr().out == "here/nli_for_simcse.csv: 1 rows\nhere/all_nli_triplets.csv: 2 rows\n"
    with pytest.raises(SystemExit, match="invalid choice: 'snli'"):
        main(["data", "--sets", "snli"])
    shutil.rmtree(hub / PRINCETON)
    with pytest.raises(SystemExit, match="st-simcse data: .*is not in the local cache"):
        main(["data", "--sets", "wiki1m"])


@pytest.fixture
def data_sets(tmp_path, sentences):
    """Folders in the hub's layout: sentences; triplets as a subset; scored pairs."""
    rotated = sentences[1:] + sentences[:1]
    for path, columns in {
        "wiki/train.parquet": {"id": list(range(8)), "text": sentences},
        "nli/triplet/train.parquet": {"anchor": sentences, "positive": rotated, "negative": rotated[::-1]},
        "nli/pair-class/train.parquet": {"premise": ["P"] * 8, "hypothesis": sentences, "label": [1, 0] * 4},
        "stsb/validation.parquet": {"sentence1": sentences, "sentence2": rotated, "score": list(range(8))},
        "stsb/test.parquet": {"sentence1": sentences, "sentence2": rotated, "score": list(range(8))},
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        Dataset.from_dict(columns).to_parquet(tmp_path / path)
    subsets = "".join(f"- config_name: {name}\n  data_files: {name}/*\n" for name in ("triplet", "pair-class"))
    (tmp_path / "nli" / "README.md").write_text(f"---\nconfigs:\n{subsets}---\n")
    return tmp_path


def _train(folder, tiny_bert, *options):
    return train.run(
        [
            *("--model_name_or_path", tiny_bert, "--output_dir", str(folder / "out"), "--report_to", "none"),
            *("--per_device_train_batch_size", "4", "--learning_rate", "0.01", *options),
        ]
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "loss"),
    [
        (["--train_dataset", "wiki"], "UnsupSimCSELoss"),
        (["--train_dataset", "wiki", "--streaming", "--max_steps", "2"], "UnsupSimCSELoss"),
        (["--train_file", "wiki/train.parquet", "--train_format", "sentences"], "UnsupSimCSELoss"),
        (["--train_file", "nli/triplet/train.parquet", "--streaming", "--max_steps", "2"], "SupSimCSELoss"),
        (["--train_dataset", "nli", "--train_subset", "triplet", "--train_split", "train[:4]"], "SupSimCSELoss"),
        (["--train_dataset", "nli", "--train_subset", "triplet", "--columns", "negative"], "UnsupSimCSELoss"),
        (
            ["--train_dataset", "nli", "--train_subset", "pair-class", "--labels", "contradiction", "entailment"],
            "SupSimCSELoss",
        ),
    ],
)
def test_training_on_data_sets(data_sets, monkeypatch, tiny_bert, options, loss):
    monkeypatch.chdir(data_sets)
    seen = []
    monkeypatch.setattr("st_simcse.cli.train.SimCSETrainer.compute_loss", _record(seen))
    results = _train(data_sets, tiny_bert, *options, "--dev_dataset", "stsb", "--test_dataset", "stsb")
    assert list(results["after"]) == ["stsb-validation", "stsb-test"]
    assert {type(part).__name__ for part in seen} == {loss}
    state = json.loads(next((data_sets / "out").glob("checkpoint-*/trainer_state.json")).read_text())
    assert "eval_stsb-validation_spearman_cosine" in state["log_history"][-1]


def _record(seen):
    from st_simcse import SimCSETrainer

    compute_loss = SimCSETrainer.compute_loss

    def recorded(trainer, *args, **kwargs):
        seen.append(trainer.loss)
        return compute_loss(trainer, *args, **kwargs)

    return recorded


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "there is no training data: pass --train_file"),
        (["--train_file", "a.txt", "--train_dataset", "wiki"], "pass --train_file or --train_dataset, not both"),
        (["--train_file", "a.txt", "--train_subset", "x"], "--train_subset and --train_split need --train_dataset"),
        (["--train_dataset", "wiki", "--dev_split", "x"], "--dev_subset and --dev_split need --dev_dataset"),
        (["--train_file", "a.txt", "--train_split", "x"], "a.txt: a text file has .*; leave --train_split out"),
        (["--train_dataset", "wiki", "--dev_columns", "x"], "--dev_columns needs --dev_file or --dev_dataset"),
        (
            ["--train_dataset", "wiki", "--dev_file", "table.csv"],
            r"table.csv, line 2: there are no columns .*; name the columns .* --dev_columns, as in the header",
        ),
        (
            ["--train_dataset", "wiki", "--test_file", "table.csv"],
            r"table.csv, line 2: there are no columns .*; name the columns .* --test_columns, as in the header",
        ),
        (
            ["--train_dataset", "wiki", "--test_file", "table.csv", "--test_columns", "sentence", "other", "rating"],
            "line 3: the row belongs to the split 'test' .*; pass --test_split to choose one",
        ),
        (
            ["--train_dataset", "wiki", "--test_file", "table.csv", "--test_columns", "0"],
            "--test_columns must be a list as long as",
        ),
        (["--train_file", "table.csv"], "line 2: there are no columns.*; read it with --train_format sentences"),
        (
            ["--train_file", "table.csv", "--train_format", "nli"],
            "line 2: there are no columns.*; read it with --train_format sentences",
        ),
        (
            ["--train_file", "table.csv", "--train_format", "sentences"],
            "line 3: the row belongs to the split 'test' .*; pass --train_split to choose one",
        ),
        (["--train_dataset", "wiki", "--streaming"], "--streaming needs --max_steps"),
        (["--train_dataset", "./absent"], "there is no folder ./absent"),
        (["--train_dataset", "nli"], "triplet.*pair-class"),
        (["--train_dataset", "wiki", "--train_split", "dev"], "dev.*train"),
        (
            ["--train_dataset", "stsb", "--train_split", "test"],
            r"stsb \(test\) has the columns sentence1, .*expected sentence or",
        ),
        (
            ["--train_dataset", "nli", "--train_subset", "pair-class"],
            "row 1: the meaning of the label 1 is unknown.*; pass --labels with the meanings",
        ),
        (
            ["--train_dataset", "wiki", "--labels", "entailment"],
            "--labels needs .*nli, but the format is sentences",
        ),
        (
            ["--train_dataset", "nli", "--train_subset", "pair-class", "--labels", "0=entailment", "neutral"],
            "--labels 0=entailment neutral mixes two forms: write NAME=MEANING for all labels",
        ),
        (["--train_dataset", "wiki", "--columns", "body"], r"wiki \(train\), row 1: there are no columns \['body'\]"),
        (
            ["--train_dataset", "wiki", "--dev_dataset", "wiki", "--dev_split", "train"],
            r"row 1: there are no columns.*'score'",
        ),
    ],
)
def test_what_is_wrong_with_data_is_said(data_sets, monkeypatch, tiny_bert, options, message):
    monkeypatch.chdir(data_sets)
    (data_sets / "a.txt").write_text("One.\nTwo.\n")
    (data_sets / "table.csv").write_text("sentence,other,rating,split\nA,B,1,dev\nC,D,2,test\n")
    with pytest.raises((ValueError, OSError), match=message):
        _train(data_sets, tiny_bert, *options)


def test_scored_pairs_of_a_table_by_columns_and_split(data_sets, monkeypatch, tiny_bert, sentences):
    """Of one file the dev and the test pairs, under names of its own."""
    monkeypatch.chdir(data_sets)
    rows = [
        f"{a},{b},{(score * step) % 8},{split}"
        for split, step in (("dev", 1), ("test", 3))
        for score, (a, b) in enumerate(zip(sentences, sentences[::-1], strict=True))
    ]
    (data_sets / "table.csv").write_text("\n".join(["a,b,rating,split", *rows]))
    measured = []

    def record(evaluators, model):
        measured.append([(len(one.scores), one.scores[:3]) for one in evaluators])
        return {one.name: 0.5 for one in evaluators}

    monkeypatch.setattr(train, "spearman", record)
    options = [
        word
        for name in ("dev", "test")
        for word in (f"--{name}_file", "table.csv", f"--{name}_split", name, f"--{name}_columns", "a", "b", "rating")
    ]
    _train(data_sets, tiny_bert, "--train_dataset", "wiki", "--max_steps", "1", *options)
    assert measured == [[(8, [0, 1, 2]), (8, [0, 3, 6])]] * 2
