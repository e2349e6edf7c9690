import json
import re

import pytest
from sentence_transformers import SentenceTransformer

from st_simcse import cli


def _scored_pairs(path, sentences):
    rows = [
        f"{a}\t{b}\t{score}" for score, (a, b) in enumerate(zip(sentences, sentences[3:] + sentences[:3], strict=True))
    ]
    path.write_text("\n".join(["sentence1\tsentence2\tscore", *rows]) + "\n")
    return str(path)


def _train(tmp_path, tiny_bert, train_file, *options):
    # --report_to none keeps installed experiment trackers out of the tests
    return cli.train(
        [
            *("--model_name_or_path", tiny_bert, "--train_file", str(train_file)),
            *("--output_dir", str(tmp_path / "out"), "--report_to", "none", *options),
        ]
    )


@pytest.mark.parametrize("head", [False, True])
def test_train_unsupervised_with_dev_and_test(tmp_path, tiny_bert, sentences, capsys, head):
    text = tmp_path / "train.txt"
    text.write_text("\n".join(sentences))
    dev, test = _scored_pairs(tmp_path / "dev.tsv", sentences), _scored_pairs(tmp_path / "test.tsv", sentences)
    options = ["--dev_file", dev, "--test_file", test, "--per_device_train_batch_size", "4", "--learning_rate", "0.01"]
    results = _train(tmp_path, tiny_bert, text, *options, "--pooling", "mean", *["--projection_head"] * head)
    assert results["before"]["test"] != results["after"]["test"]
    table = capsys.readouterr().out
    assert re.search(r"\| Spearman x 100 \| dev \| test \|\n.*\n\| before \| .*\n\| after \| ", table)
    saved = SentenceTransformer(str(tmp_path / "out"))
    assert saved.encode(sentences).shape == (8, 32)
    assert not any("projection" in name for name, _ in saved.named_parameters())
    state = json.loads(next((tmp_path / "out").glob("checkpoint-*/trainer_state.json")).read_text())
    assert state["best_model_checkpoint"]


def test_train_supervised_and_every_training_argument(tmp_path, tiny_bert):
    table = tmp_path / "nli.csv"
    table.write_text("sent0,sent1,hard_neg\n" + "A man plays.,A man plays a guitar.,Two dogs run.\n" * 8)
    options = ["--hard_negative_weight", "2", "--dense", "--max_steps", "1", "--save_strategy", "no", "--bf16"]
    _train(tmp_path, tiny_bert, table, *options, "--batch_sampler", "no_duplicates", "--logging_steps", "1")
    assert [type(module).__name__ for module in SentenceTransformer(str(tmp_path / "out"))] == [
        "Transformer",
        "Pooling",
        "Dense",
    ]


def test_train_on_nli_rows_and_on_a_column(tmp_path, tiny_bert):
    nli = tmp_path / "nli.tsv"
    nli.write_text("premise\thypothesis\tlabel\nA\tB\tentailment\nA\tC\tcontradiction\n")
    _train(tmp_path, tiny_bert, nli, "--train_format", "nli", "--save_strategy", "no")
    table = tmp_path / "t.csv"
    table.write_text("1,A man plays.\n2,Two dogs run.\n")
    _train(tmp_path, tiny_bert, table, "--train_format", "sentences", "--columns", "1", "--save_strategy", "no")


def test_evaluate_several_models(shared, tmp_path, tiny_bert, capsys, monkeypatch):
    # The seven real files, cut to their first rows: the whole of them is test_evaluation's.
    for path in (shared / "sts" / "raw").glob("*.tsv"):
        (tmp_path / path.name).write_text("".join(path.read_text().splitlines(keepends=True)[:50]))
    options = ["--pooling", "cls", "--max_seq_length", "32"]
    results = cli.evaluate(["--model", tiny_bert, "--sts_dir", str(tmp_path), *options])
    monkeypatch.setattr("sys.argv", ["st-simcse", "evaluate", "--model", tiny_bert, "--sts_dir", str(tmp_path)])
    cli.main()
    tables = capsys.readouterr().out
    assert tables.count("| model | STS12 |") == 2
    assert f"{100 * results[tiny_bert]['STS12_spearman_cosine']:.2f}" in tables


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "usage: st-simcse"),
        (["--help"], "usage: st-simcse"),
        (["oops"], "unknown command 'oops'"),
        (["evaluate", "--model", "x", "--sts_dir", "/absent"], "st-simcse evaluate: /absent lacks STS12.tsv"),
        (["train", "--model_name_or_path", "x", "--train_file", "/absent.txt"], "No such file.*/absent.txt"),
        (
            ["train", "--model_name_or_path", "x", "--train_file", "a.txt", "--columns", "a", "b"],
            "sentences are read from one column",
        ),
    ],
)
def test_errors_are_a_line(argv, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=message):
        cli.main(argv)


def test_an_option_of_the_other_objective_is_refused(tmp_path, tiny_bert, sentences):
    (tmp_path / "a.txt").write_text("\n".join(sentences))
    with pytest.raises(ValueError, match="--hard_negative_weight does not go with sentences"):
        _train(tmp_path, tiny_bert, tmp_path / "a.txt", "--hard_negative_weight", "2")
