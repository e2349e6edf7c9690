from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, Features, IterableDataset, Value
from sentence_transformers import InputExample

from st_simcse import (
    FocalMargin,
    SimCSETrainer,
    SimCSETrainingArguments,
    SupSimCSELoss,
    UnsupSimCSELoss,
    build_model,
    cli,
)
from st_simcse.data.training_data import as_dataset

PAIRS = [("A dog.", "A hound."), ("A cat.", "A feline.")]
COLUMNS = {"anchor": ["A dog.", "A cat."], "positive": ["A hound.", "A feline."]}


@pytest.mark.parametrize(
    ("given", "columns"),
    [
        (["A dog.", "A cat."], {"sentence": ["A dog.", "A cat."]}),
        (PAIRS, COLUMNS),
        ([list(pair) for pair in PAIRS], COLUMNS),
        ([(*pair, "A car.") for pair in PAIRS], COLUMNS | {"negative": ["A car."] * 2}),
        (
            [(*pair, "A car.", "A bus.") for pair in PAIRS],
            COLUMNS | {"negative_1": ["A car."] * 2, "negative_2": ["A bus."] * 2},
        ),
        ([{"text": "A dog."}, {"text": "A cat."}], {"text": ["A dog.", "A cat."]}),
        (pd.DataFrame(COLUMNS, index=[7, 3]), COLUMNS),
        ([InputExample(texts=list(pair)) for pair in PAIRS], COLUMNS),
        ([InputExample(texts=list(pair), label=0.5) for pair in PAIRS], COLUMNS | {"label": [0.5, 0.5]}),
        (pd.Series(["A dog.", "A cat."], index=[1, 1]), {"sentence": ["A dog.", "A cat."]}),
        (np.array(["A dog.", "A cat."]), {"sentence": ["A dog.", "A cat."]}),
        (Dataset.from_dict(COLUMNS)["anchor"], {"sentence": COLUMNS["anchor"]}),
        (Dataset.from_dict(COLUMNS), COLUMNS),
    ],
)
def test_data_as_users_hold_it(given, columns):
    assert as_dataset(given, "train_dataset").to_dict() == columns
    several = as_dataset({"a": given}, "train_dataset")
    assert several["a"].to_dict() == columns


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "a.txt",
            r"train_dataset is 'a.txt', but must be data: read the file with SentenceReader\(\).get_dataset\('a.txt'\)",
        ),
        (Path("a.csv"), "is 'a.csv', but must be data: .* or with TripletReader or NLIReader if it is a table"),
        ({"a": "a.txt"}, r"train_dataset\['a'\] is 'a.txt', but must be data"),
        (["A dog.", None], "train_dataset: item 1 is None, but item 0 is 'A dog.': make all items alike"),
        ([PAIRS[0], PAIRS[1][:1]], "train_dataset: item 1 is .'A cat.',., but item 0 is"),
        ([InputExample(texts=["a"]), InputExample(texts=["a", "b"])], "item 1 has 2 texts, but item 0 has 1"),
        ([1, 2], "train_dataset: item 0 is 1, expected a text, a tuple of texts, a dict or an InputExample"),
        ([], "train_dataset is empty: pass at least one text"),
        (pd.DataFrame({"s": []}, dtype=str), "train_dataset has no rows: pass at least one"),
        (Dataset.from_dict({"s": []}), "train_dataset has no rows: pass at least one"),
        ([{"s": "a"}, {"t": "b"}], "train_dataset, row 1, column 's': there is no text .None."),
        (
            [{"s": None}, {"s": "a"}, {"s": 3}],
            "train_dataset, row 2, column 's': the cell is 3, but an earlier one is 'a': make all of them texts",
        ),
        (
            [("a", "b"), ("c", 2)],
            "train_dataset, row 1, column 'positive': the cell is 2, but an earlier one is 'b': make all of them texts",
        ),
        (
            pd.DataFrame({"s": ["a", 2]}, index=[5, 7]),
            "train_dataset, row 1, column 's': the cell is 2, but an earlier one is 'a'",
        ),
        (
            Dataset.from_dict({"s": ["a"], "n": [[1.5]]}),
            "train_dataset, column 'n': expected texts, found float64 lists",
        ),
        (
            IterableDataset.from_generator(lambda: [{"s": 1}], features=Features({"s": Value("int64")})),
            "train_dataset, column 's': expected texts, found int64 values",
        ),
        (3, "train_dataset has the type int"),
        (
            Dataset.from_dict({"sentence": ["A dog.", None]}),
            "train_dataset, row 1, column 'sentence': there is no text .None.",
        ),
        (
            pd.DataFrame({"s": ["a", float("nan")]}),
            "train_dataset, row 1, column 's': there is no text .None.: fill it in or",
        ),
        (
            Dataset.from_dict({"id": [1, 2]}),
            "train_dataset, column 'id': expected texts, found int64 values: remove the",
        ),
        (
            {"a": Dataset.from_dict({"id": [True]})},
            r"train_dataset\['a'\], column 'id': expected texts, found bool values",
        ),
        (
            Dataset.from_dict(COLUMNS | {"topic": [0, 1]}).cast_column("topic", ClassLabel(names=["pets", "cars"])),
            r"train_dataset, column 'topic': expected texts, found int64 values: .*remove_columns\('topic'\)",
        ),
        (COLUMNS, r"train_dataset is a dict, .* but anchor, positive are .* columns: pass Dataset.from_dict"),
        ({name: pd.Series(texts, index=[5, 7]) for name, texts in COLUMNS.items()}, "are names of columns"),
        (
            dict(zip(["query", "pos"], COLUMNS.values(), strict=True)) | {"id": [1, 2]},
            "query, pos are names of",
        ),
    ],
)
def test_what_is_no_training_data_is_named(model, tmp_path, given, message):
    args = SimCSETrainingArguments(str(tmp_path), report_to="none", bf16=False)
    loss = {"a": UnsupSimCSELoss(model)} if isinstance(given, dict) else UnsupSimCSELoss(model)
    with pytest.raises(ValueError, match=message):
        SimCSETrainer(model, args, given, loss=loss)


def test_a_row_of_a_stream_without_a_text_is_named(model, tmp_path):
    rows = [{"anchor": "A dog.", "positive": "A hound."}, {"anchor": "A cat.", "positive": None}]
    features = Features(dict.fromkeys(rows[0], Value("string")))
    stream = IterableDataset.from_generator(lambda: rows, features=features)
    args = SimCSETrainingArguments(str(tmp_path), report_to="none", bf16=False, max_steps=1)
    trainer = SimCSETrainer(model, args, stream, loss=SupSimCSELoss(model))
    with pytest.raises(
        ValueError, match=r"column 'positive' has no text \(None\) in the row {'anchor': 'A cat.', .*Fill the text in"
    ):
        trainer.train()


def test_a_row_that_was_selected_out_may_be_empty(model, tmp_path):
    data = Dataset.from_dict({"sentence": ["A dog.", None, "A cat."]}).select([0, 2])
    args = SimCSETrainingArguments(str(tmp_path), report_to="none", bf16=False)
    assert len(SimCSETrainer(model, args, data).train_dataset) == 2


@pytest.mark.slow
def test_a_list_trains_as_its_dataset_does(model, sentences, tmp_path):
    """Whatever the data are made of, the columns are the same, and so are the losses of a seed."""
    losses = []
    for data in (list(zip(sentences, sentences[::-1], strict=True)),) * 2:
        given = data if not losses else Dataset.from_dict({"anchor": sentences, "positive": sentences[::-1]})
        args = SimCSETrainingArguments(str(tmp_path), report_to="none", bf16=False, max_steps=1, learning_rate=0.0)
        losses.append(SimCSETrainer(model, args, given, loss=SupSimCSELoss(model)).train().training_loss)
    assert losses[0] == losses[1] > 0


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda m: UnsupSimCSELoss(m, scale=20), TypeError, "UnsupSimCSELoss has no scale: pass temperature=0.05,"),
        (lambda m: UnsupSimCSELoss(m, scale=10.0), TypeError, "UnsupSimCSELoss has no scale: pass temperature=0.1,"),
        (lambda m: UnsupSimCSELoss(m, scale=0), TypeError, "UnsupSimCSELoss has no scale: pass temperature=0.05,"),
        (lambda m: SupSimCSELoss(m, margin=1), TypeError, "SupSimCSELoss has no argument margin. Changes of"),
        (lambda m: SupSimCSELoss("bert"), ValueError, r"model is the name 'bert': .* build_model\('bert'\)"),
        (lambda m: SupSimCSELoss(m[0].model), ValueError, "the model is a BertModel, expected a SentenceTran"),
        (lambda m: UnsupSimCSELoss(None), ValueError, "the model is a NoneType, expected a SentenceTransformer"),
        (lambda m: UnsupSimCSELoss(m, temperature="0.05"), ValueError, "a positive number, got '0.05'"),
        (
            lambda m: SupSimCSELoss(m, options=FocalMargin(0.2)),
            ValueError,
            r"pass options=\[FocalMargin\(margin=0.2\)\]",
        ),
        (lambda m: SimCSETrainer("bert"), ValueError, r"model is the name 'bert': .* build_model\('bert'\)"),
        (lambda m: SimCSETrainer(m, "out"), ValueError, r"args is 'out'. Pass SimCSETrainingArguments\('out'\)"),
        (lambda m: SimCSETrainer(m[0].model), ValueError, "the model is a BertModel, expected a SentenceTran"),
        (lambda m: SimCSETrainer(m, {"bf16": False}), ValueError, r"Pass SimCSETrainingArguments\(\*\*args\)"),
        (lambda m: SimCSETrainer(m, loss="simcse"), ValueError, r"loss is 'simcse'. .* UnsupSimCSELoss\(model\)"),
        (lambda m: SimCSETrainer(m, evaluator=3), ValueError, "evaluator is 3. Pass an evaluator of ST"),
        (
            lambda m: build_model(m),
            ValueError,
            "expected the folder of a model or its name .* type SentenceTransformer",
        ),
        (lambda m: SimCSETrainer(m, None, None, None, None, "a.tsv"), ValueError, r"load_sts\('a.tsv'\)"),
        (lambda m: SimCSETrainer(m, evaluator="a.tsv"), ValueError, r"evaluator is 'a.tsv'. .* load_sts\('a.tsv'\)"),
    ],
)
def test_a_name_or_a_number_in_place_of_an_object(model, tmp_path, monkeypatch, make, error, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        make(model)


@pytest.mark.parametrize(
    ("option", "meant"),
    [
        ("--scale", "--temperature, which is 1 / scale"),
        ("--lr=1", "--learning_rate"),
        ("--batch-size", "--per_device_train_batch_size"),
        ("--temprature", "--temperature"),
    ],
)
def test_what_an_option_is_called_elsewhere(option, meant):
    with pytest.raises(SystemExit, match=rf"unknown option {option}, did you mean {meant}\?"):
        cli.main(["train", "--model_name_or_path", "x", "--train_file", __file__, option])
