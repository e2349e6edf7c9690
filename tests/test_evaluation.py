import pytest
import torch
from datasets import Dataset, DatasetDict
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer

from st_simcse import AlignmentUniformityEvaluator, build_model, load_sts, sts_evaluators
from st_simcse.evaluation import STS_TASKS, format_table, mteb_scores, sts_scores
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
    results = sts_evaluators(shared / "sts/raw")(model)
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
    with pytest.raises(ValueError, match="no pair is scored above 4.0"):
        AlignmentUniformityEvaluator(["A"], ["B"], [0.9])


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
