import csv
import logging
import shutil

import pytest

from st_simcse import build_model, sts_evaluators
from st_simcse.data import SUBSETS, SentEvalReader
from st_simcse.evaluation import STS_TASKS


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
        evaluators = sts_evaluators(tmp_path / folder).evaluators
    assert [evaluator.name for evaluator in evaluators] == list(STS_TASKS)
    assert evaluators[1].sentences1 == ['FNWN "one .', 'headlines "one .', 'OnWN "one .']
    assert evaluators[1].scores == [4.25] * 3
    assert (evaluators[5].sentences1, evaluators[5].sentences2, evaluators[5].scores) == (['a "b, c'], ["d ."], [1.5])
    assert (evaluators[6].sentences1, evaluators[6].scores) == (["A dog runs"], [4.5])
    path = (tmp_path / sts / "STS13-en-test").absolute()
    assert f"{path}: 3 read, skipped 3 without a gold score" in caplog.messages


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
        ("STS/STS12-en-test/STS.gs.MSRvid.txt", "1\n", ValueError, "differ in their number of lines"),
        ("STS/STS12-en-test/STS.gs.MSRvid.txt", "1\nx\n", ValueError, "MSRvid.txt, line 2, column 'score': 'x'"),
        ("STS/STS12-en-test/STS.input.MSRvid.txt", "a\tb\nc d\n", ValueError, "line 2: 1 tab-separated cells"),
        ("STS/STSBenchmark/sts-test.csv", "a,b,3\n", ValueError, "sts-test.csv, line 1: 1 tab-separated cells"),
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
        sts_evaluators(tmp_path)


def test_tables_come_before_sentevals_folder(tmp_path):
    _make_senteval(tmp_path / "STS", tmp_path / "SICK")
    for stem in STS_TASKS.values():
        (tmp_path / f"{stem}.tsv").write_text("sentence1\tsentence2\tscore\nA\tB\t1\n")
    assert [evaluator.sentences1 for evaluator in sts_evaluators(tmp_path).evaluators] == [["A"]] * 7


def test_published_number_of_sentevals_folder(shared, pretrained):
    """The smallest task; the pairs of all are compared above."""
    evaluator = sts_evaluators(shared / "senteval").evaluators[4]
    scores = evaluator(build_model(pretrained, pooling="mean", max_seq_length=128))
    assert 100 * scores["STS16_spearman_cosine"] == pytest.approx(78.99, abs=0.01)
