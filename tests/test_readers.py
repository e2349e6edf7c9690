import bz2
import csv
import gzip
import io
import json
import logging
import lzma
import os
import random
import re
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pyarrow
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from huggingface_hub import constants
from hypothesis import given, settings
from hypothesis import strategies as st

from st_simcse import (
    HubDataset,
    NLIReader,
    SentenceReader,
    SimCSETrainer,
    SimCSETrainingArguments,
    SupSimCSELoss,
    TripletReader,
    cli,
    load_sts,
)
from st_simcse.corpus import generate_corpus
from st_simcse.data.formats import file_format
from st_simcse.data.scored_pairs import STSReader
from st_simcse.evaluation import load_classes


def _write(folder, name, content):
    path = folder / name
    data = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


def _texts(reader, name, **options):
    return [example.texts for example in reader.get_examples(name, **options)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "One.\nTwo.\n"),
        ("a.txt", "One.\nTwo."),
        ("a.text", "One.\r\nTwo.\r\n"),
        ("a.txt", b"\xef\xbb\xbfOne.\nTwo.\n"),
        ("a.txt.gz", "One.\nTwo.\n"),
        ("a.txt", "\n One. \n\t\nTwo.\n\n"),
        ("a.csv", "sentence\nOne.\nTwo.\n"),
        ("a.csv", "id,text\n1,One.\n2,Two.\n"),
        ("a.csv", b"\xef\xbb\xbfsentence\r\nOne.\r\nTwo.\r\n"),
        ("a.tsv", "text\tid\nOne.\t1\nTwo.\t2\n"),
        ("a.tsv.gz", "text\tid\nOne.\t1\nTwo.\t2\n"),
        ("a.jsonl", '{"sentence": "One."}\n\n{"sentence": "Two.", "id": 2}\n'),
        ("a.jsonl.gz", '{"text": "One."}\r\n{"text": "Two."}\r\n'),
    ],
)
def test_sentences(tmp_path, name, content):
    _write(tmp_path, name, content)
    reader = SentenceReader(tmp_path)
    assert _texts(reader, name) == [["One.", "One."], ["Two.", "Two."]]
    assert reader.get_dataset(name).to_dict() == {"sentence": ["One.", "Two."]}
    assert _texts(reader, name, max_examples=1) == [["One.", "One."]]


def test_line_separators_inside_a_sentence_do_not_split_it(tmp_path):
    _write(tmp_path, "a.txt", "One\u2028still one.\x0cstill\nTwo.\n")
    assert len(_texts(SentenceReader(tmp_path), "a.txt")) == 2


def test_column_by_name_and_number(tmp_path):
    _write(tmp_path, "a.csv", "1,One.\n2,Two.\n")
    assert _texts(SentenceReader(tmp_path, column=1), "a.csv")[1] == ["Two.", "Two."]
    _write(tmp_path, "b.csv", "id,body\n1,One.\n")
    assert _texts(SentenceReader(tmp_path, column="body"), "b.csv") == [["One.", "One."]]


def test_skipped_rows_are_counted_and_logged(tmp_path, caplog):
    path = _write(tmp_path, "a.txt", "One.\n\nTwo.\nOne.\n  \n")
    reader = SentenceReader(tmp_path, drop_duplicates=True)
    with caplog.at_level(logging.WARNING):
        assert len(reader.get_dataset("a.txt")) == 2
        assert len(reader.get_dataset("a.txt")) == 2  # a second reading counts again
    assert reader.skipped == {"blank": 2, "duplicate": 1}
    assert caplog.messages == [f"{path}: read 2, skipped 2 blank, 1 duplicate"] * 2
    assert len(SentenceReader(tmp_path).get_dataset("a.txt")) == 3  # duplicates stay unless asked for


def test_a_changed_file_is_read_anew(tmp_path):
    path = _write(tmp_path, "a.txt", "One.\n")
    assert SentenceReader(tmp_path).get_dataset("a.txt")["sentence"][:] == ["One."]
    path.write_text("Two.\n")
    assert SentenceReader(tmp_path).get_dataset("a.txt")["sentence"][:] == ["Two."]


TRIPLET = ["A, b.", 'C "d".', "E\tf."]


@pytest.mark.parametrize(
    ("name", "content", "options"),
    [
        ("t.csv", 'sent0,sent1,hard_neg\n"A, b.","C ""d"".",E\tf.\n', {}),
        ("t.csv.gz", 'hard_neg,sent1,sent0\r\nE\tf.,"C ""d"".","A, b."\r\n', {}),
        ("t.csv", 'anchor,positive,negative\n"A, b.","C ""d"".",E\tf.\n', {}),
        ("t.csv", '"A, b.","C ""d"".",E\tf.\n', {"columns": [0, 1, 2]}),
        ("t.csv", 'x,q,p,n\n1,"A, b.","C ""d"".",E\tf.\n', {"columns": ["q", "p", "n"]}),
        ("t.tsv", 'sent0\tsent1\thard_neg\nA, b.\t"C ""d""."\t"E\tf."\n', {"quoting": csv.QUOTE_MINIMAL}),
        ("t.jsonl", '{"sent0": "A, b.", "sent1": "C \\"d\\".", "hard_neg": "E\\tf."}\n', {}),
    ],
)
def test_triplets(tmp_path, name, content, options):
    _write(tmp_path, name, content)
    reader = TripletReader(tmp_path, **options)
    assert _texts(reader, name) == [TRIPLET]
    assert reader.get_dataset(name)[0] == dict(zip(("anchor", "positive", "negative"), TRIPLET, strict=True))


def test_quotes_in_tsv_are_ordinary_characters(tmp_path):
    _write(tmp_path, "t.tsv", 'sent0\tsent1\n"Hi" he said.\tHe "greets.\n"Open.\tClosed."\n')
    expected = [['"Hi" he said.', 'He "greets.'], ['"Open.', 'Closed."']]
    assert _texts(TripletReader(tmp_path), "t.tsv") == expected


def test_quoted_cells_may_span_lines(tmp_path):
    _write(tmp_path, "t.csv", 'sent0,sent1,hard_neg\n"A\nb",C,D\nE,F,\n')
    reader = TripletReader(tmp_path)
    assert _texts(reader, "t.csv") == [["A\nb", "C", "D"]]
    assert reader.skipped == {"with an empty 'hard_neg'": 1}


def test_pairs_and_several_negatives(tmp_path):
    _write(tmp_path, "p.csv", "sent0,sent1\nA,B\n")
    assert TripletReader(tmp_path).get_dataset("p.csv").to_dict() == {"anchor": ["A"], "positive": ["B"]}
    _write(tmp_path, "n.csv", "A,B,C,D\n")
    dataset = TripletReader(tmp_path, columns=[0, 1, 2, 3]).get_dataset("n.csv")
    assert dataset.column_names == ["anchor", "positive", "negative_1", "negative_2"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (
            "n.tsv",
            "premise\thypothesis\tlabel\nP\tE\tentailment\nP\tN\tneutral\nP\tC\tcontradiction\nQ\tE\tentailment\n",
        ),
        (
            "n.csv",
            "label,sentence1,sentence2,gold_label\nx,P,E,Entailment\nx,P,C,CONTRADICTION\nx,Q,?,-\nx,Q,E,neutral\n",
        ),
        (
            "n.jsonl",
            '{"premise": "P", "hypothesis": "C", "label": "c"}\n{"premise": "P", "hypothesis": "E", "label": "e"}\n'
            '{"premise": "P", "hypothesis": "X", "label": -1}\n{"premise": "P", "hypothesis": "Y", "label": "N"}\n',
        ),
        (
            "n.jsonl.gz",
            '{"sentence1": "P", "sentence2": "E", "gold_label": "entailment"}\n'
            '{"sentence1": "P", "sentence2": "C", "gold_label": "contradictory"}\n',
        ),
    ],
)
def test_nli(tmp_path, name, content):
    _write(tmp_path, name, content)
    assert _texts(NLIReader(tmp_path), name) == [["P", "E", "C"]]
    assert NLIReader(tmp_path).get_dataset(name).to_dict() == {"anchor": ["P"], "positive": ["E"], "negative": ["C"]}


def test_nli_counts_what_it_cannot_pair(tmp_path):
    rows = ["P\tE1\tentailment", "Q\tC\tcontradiction", "P\tE2\tentailment", "P\tC1\tcontradiction", "P\t?\t-"]
    _write(tmp_path, "n.tsv", "\n".join(["premise\thypothesis\tlabel", *rows]))
    reader = NLIReader(tmp_path)
    assert _texts(reader, "n.tsv") == [["P", "E1", "C1"]]
    unpaired = "unpaired entailments or contradictions"
    assert reader.skipped == {"without a gold label": 1, unpaired: 2}


def test_the_generated_corpus_comes_back(generated):
    corpus = generate_corpus(size=3000)
    assert SentenceReader(generated).get_dataset("wiki/wiki_sentences.txt")["sentence"][:] == corpus.sentences
    triplets = [list(triplet) for triplet in corpus.triplets]
    assert _texts(TripletReader(generated), "nli/nli_triplets.csv") == triplets
    assert sorted(_texts(NLIReader(generated), "nli/snli-dev.tsv")) == sorted(triplets)  # rows stand by premise
    pairs = generate_corpus(size=800, seed=1).scored_pairs
    evaluator = load_sts(generated / "sts/raw/STS12.tsv")
    assert list(zip(evaluator.sentences1, evaluator.sentences2, evaluator.scores, strict=True)) == pairs


def test_snli_becomes_the_papers_triplets(shared):
    """The NLI reader on SNLI gives exactly the rows of the file in the layout of nli_for_simcse.csv."""
    reader = NLIReader(shared / "nli")
    triplets = [tuple(texts) for name in ("snli-dev.tsv", "snli-test.tsv") for texts in _texts(reader, name)]
    expected = [tuple(texts) for texts in _texts(TripletReader(shared / "nli"), "nli_triplets.csv")]
    assert len(triplets) == len(expected) == 5883
    assert set(triplets) == set(expected)


@pytest.mark.parametrize(
    ("subset", "name", "rows"),
    [("raw", "STS12", 3108), ("senteval", "STSB-test", 1379), ("zh", "STSB-dev", 1500), ("de", "STSB-test", 1379)],
)
def test_sts_of_the_real_files(shared, subset, name, rows):
    evaluator = load_sts(shared / f"sts/{subset}" / f"{name}.tsv")
    assert evaluator.name == name
    assert len(evaluator.scores) == len(evaluator.sentences1) == rows
    assert 0 <= min(evaluator.scores) < max(evaluator.scores) <= 5


def test_sts_formats(tmp_path):
    _write(tmp_path, "a.csv.gz", "score,sentence2,sentence1\n4.5,B,A\n")
    _write(tmp_path, "a.jsonl", '{"sentence1": "A", "sentence2": "B", "score": 4.5}\n')
    _write(tmp_path, "a.tsv", "x\t4.5\tA\tB\n")
    for name, options in (("a.csv.gz", {}), ("a.jsonl", {}), ("a.tsv", {"columns": [2, 3, 1]})):
        evaluator = load_sts(tmp_path / name, **options)
        assert (evaluator.sentences1, evaluator.sentences2, evaluator.scores) == (["A"], ["B"], [4.5])


# Layouts that are published with all their splits in one file, a row a split each, the third one in upper case.
SPLIT_FILES = {
    "stsbenchmark.tsv.gz": (
        "split\tgenre\tdataset\tyear\tsid\tscore\tsentence1\tsentence2",
        "{split}\tmain-news\tMSRpar\t2012\t0\t{score}\tA {split}\tB",
        ("train", "dev", "test"),
        load_sts,
    ),
    "SICK.tsv": (
        "pair_ID\tsentence_A\tsentence_B\tentailment_label\trelatedness_score\tSemEval_set",
        "1\tA {split}\tB\tNEUTRAL\t{score}\t{split}",
        ("TRAIN", "TRIAL", "TEST"),
        load_sts,
    ),
    "sts.jsonl": (
        "",
        '{{"partition": "{split}", "text1": "A {split}", "text2": "B", "label": {score}}}',
        ("train", "validation", "test"),
        load_sts,
    ),
    "headless.tsv": (
        "",
        "{split}\t{score}\tA {split}\tB",
        ("train", "dev", "test"),
        lambda path, **options: load_sts(path, columns=[2, 3, 1], **options),
    ),
}


# As the archive of SICK has it.
SICK = """\
pair_ID\tsentence_A\tsentence_B\tentailment_label\trelatedness_score\tentailment_AB\tentailment_BA\
\tsentence_A_original\tsentence_B_original\tsentence_A_dataset\tsentence_B_dataset\tSemEval_set
1\tSome kids play\tA group of boys is playing\tNEUTRAL\t4.5\tA_neutral_B\tB_neutral_A\tA\tB\tFLICKR\tFLICKR\tTRAIN
2\tA man sings\tA man says "no"\tNEUTRAL\t2.7\tA_neutral_B\tB_neutral_A\tA\tB\tSEMEVAL2012\tFLICKR\tTRIAL
3\tTwo dogs run\tNo dog runs\tCONTRADICTION\t3.7\tA_contradicts_B\tB_contradicts_A\tA\tB\tFLICKR\tFLICKR\tTEST
4\tA cat sleeps\tA man sings\tNEUTRAL\t1\tA_neutral_B\tB_neutral_A\tA\tB\tFLICKR\tFLICKR\tTEST
"""


def test_sick_as_it_is_released(tmp_path):
    path = _write(tmp_path, "SICK.txt", SICK)
    with pytest.raises(
        ValueError, match=r"line 3: the row belongs to the split 'TRIAL' \(column 'SemEval_set'\).*pass split="
    ):
        load_sts(path)
    evaluator = load_sts(path, split="TEST")
    assert evaluator.name == "SICK"
    assert evaluator.sentences1 == ["Two dogs run", "A cat sleeps"]
    assert evaluator.sentences2 == ["No dog runs", "A man sings"]
    assert evaluator.scores == [3.7, 1.0]
    assert load_sts(path, split="trial").sentences2 == ['A man says "no"']
    columns = ["sentence_B", "sentence_A", "relatedness_score"]
    assert load_sts(path, columns=columns, split="TRAIN").sentences1 == ["A group of boys is playing"]


def _with_splits(folder, name, order=(0, 1, 2)):
    header, row, splits, load = SPLIT_FILES[name]
    rows = [row.format(split=splits[split], score=split + 1) for split in order]
    return _write(folder, name, "\n".join([*([header] if header else []), *rows])), splits, load


@pytest.mark.parametrize("name", list(SPLIT_FILES))
def test_a_split_has_to_be_chosen(tmp_path, name, caplog):
    path, splits, load = _with_splits(tmp_path, name)
    with pytest.raises(
        ValueError, match=rf"(line|row) \d: the row belongs to the split '{splits[1]}' .*'{splits[0]}'; pass split="
    ):
        load(path)
    for number, split in enumerate(splits):
        for spelled in (split.lower(), split.upper()):
            evaluator = load(path, split=spelled)
            assert (evaluator.sentences1, evaluator.scores) == ([f"A {split}"], [number + 1])
    others = f"1 from the split '{splits[0]}', 1 from the split '{splits[1]}'"
    assert f"{path}: read 1, skipped {others}" in caplog.messages
    with pytest.raises(ValueError, match="nothing to read, all rows were skipped: 1 from the split"):
        load(path, split="absent")
    path, splits, load = _with_splits(tmp_path, name, order=(2, 2))  # one alone need not be chosen
    assert load(path).sentences1 == [f"A {splits[2]}"] * 2


def test_the_case_of_a_split_is_no_other_split(tmp_path):
    path = _write(tmp_path, "a.csv", "sentence,split\nA,train\nB,Train\nC,TRAIN\n")
    assert _texts(SentenceReader(), path) == [["A", "A"], ["B", "B"], ["C", "C"]]


def test_a_column_of_ids_gives_no_endless_message(tmp_path):
    path = _write(tmp_path, "a.tsv", "\n".join(f"id-{number}\tA {number}\tB {number}" for number in range(300)))
    with pytest.raises(ValueError, match="1 from the split 'id-0', .* 295 for other reasons") as error:
        TripletReader(columns=[1, 2], split="train").get_dataset(path)
    assert len(str(error.value)) < 400


def test_readers_of_training_data_choose_a_split(tmp_path):
    """AllNLI.tsv.gz as sentence-transformers publishes it."""
    rows = [
        f"{split}\tSNLI\tx\tP {split}\t{hypothesis}\t{label}"
        for split in ("train", "dev")
        for hypothesis, label in (("E", "entailment"), ("C", "contradiction"), ("N", "neutral"))
    ]
    header = "split\tdataset\tfilename\tsentence1\tsentence2\tlabel"
    path = _write(tmp_path, "AllNLI.tsv.gz", "\n".join([header, *rows]))
    assert _texts(NLIReader(split="dev"), path) == [["P dev", "E", "C"]]
    assert _texts(SentenceReader(column="sentence1", split="train"), path)[0] == ["P train"] * 2
    assert _texts(TripletReader(columns=["sentence1", "sentence2"], split="dev"), path)[2] == ["P dev", "N"]
    for reader in (NLIReader(), SentenceReader(column="sentence1"), TripletReader(columns=["sentence1", "sentence2"])):
        for read in (
            reader.get_examples,
            reader.get_dataset,
            lambda path, r=reader: list(r.get_iterable_dataset(path)),
        ):
            with pytest.raises(
                ValueError, match="line 5: the row belongs to the split 'dev' .*earlier rows belong to 'train'"
            ):
                read(path)


def test_what_is_no_column_of_splits(tmp_path):
    path = _write(tmp_path, "a.csv", "subset,sentence1,sentence2,score\nMSRvid,A,B,1\nOnWN,A,B,2\n")
    assert load_sts(path).scores == [1, 2]
    path = _write(tmp_path, "b.csv", "class,text\ntest,A\ntrain,B\n")
    assert _texts(SentenceReader(), path) == [["A", "A"], ["B", "B"]]
    with pytest.raises(
        ValueError, match=r"line 2: there is no column of splits .*found \['class', 'text'\]; leave split= out"
    ):
        SentenceReader(split="test").get_examples(path)
    path = _write(tmp_path, "a.txt", "A\n")
    with pytest.raises(ValueError, match=r"a text file has .* no column of splits; leave split= out"):
        SentenceReader(split="test").get_examples(path)


@pytest.mark.parametrize(
    ("reader", "columns"),
    [
        (TripletReader, ["origin", "entailment", "contradiction"]),
        (TripletReader, ["query", "pos", "neg"]),
        (NLIReader, ["sentence1", "sentence2", "label"]),
        (NLIReader, ["sentence_A", "sentence_B", "entailment_judgment"]),
        (STSReader, ["text1", "text2", "label"]),
        (STSReader, ["text1", "text2", "score"]),
        (STSReader, ["sentence1", "sentence2", "label"]),
        (STSReader, ["sentence_A", "sentence_B", "relatedness_score"]),
    ],
)
def test_other_usual_names_of_columns(tmp_path, reader, columns):
    rows = {
        TripletReader: ["A,B,C"],
        NLIReader: ["A,B,entailment", "A,C,contradiction"],
        STSReader: ["A,B,4.5"],
    }[reader]
    path = _write(tmp_path, "a.csv", "\n".join(["id," + ",".join(columns), *(f"7,{row}" for row in rows)]))
    assert _texts(reader(), path) == [["A", "B", "4.5" if reader is STSReader else "C"]]
    if reader is STSReader:
        path.write_text(path.read_text().replace("4.5", "good"))
        with pytest.raises(ValueError, match=f"line 2, column '{columns[2]}': 'good' is not a score"):
            reader().get_examples(path)


ERRORS = {
    "absent": (SentenceReader, "a.txt", None, FileNotFoundError, "a.txt"),
    "empty": (SentenceReader, "a.txt", "", ValueError, "a.txt: there is nothing to read"),
    "only blank": (SentenceReader, "a.txt", "\n\n", ValueError, "a.txt: there is nothing to read.*2 blank"),
    "only a header": (TripletReader, "a.csv", "sent0,sent1\n", ValueError, "a.csv: there is nothing to read"),
    "undecodable": (SentenceReader, "a.txt", b"Ok.\ncaf\xe9\n", ValueError, "a.txt, line 2, byte 4: not UTF-8.*iconv"),
    "undecodable csv": (SentenceReader, "a.csv", b"text\nOk\ncaf\xe9\n", ValueError, "a.csv, line 3, byte 4"),
    "infinite": (
        SentenceReader,
        "a.jsonl",
        '{"text": "A"}\n{"text": 1e999}\n',
        ValueError,
        "line 2, column 'text'.*got inf",
    ),
    "name twice": (
        SentenceReader,
        "a.jsonl",
        '{"text": "A", "text": "B"}\n',
        ValueError,
        r"line 1: not JSON.*\['text'\]",
    ),
    "return": (
        TripletReader,
        "a.csv",
        "sent0,sent1\nA\rB,C\n",
        ValueError,
        r"line 2: an unquoted cell contains the line end \\r",
    ),
    "nameless": (
        TripletReader,
        "a.csv",
        "sent0,sent1,,\nA,B,,C\n",
        ValueError,
        "line 2: the row has 4 cells, but the header has 2",
    ),
    **{
        constant: (
            SentenceReader,
            "a.jsonl",
            f'{{"text": "A"}}\n{{"text": "B", "x": {constant}}}\n',
            ValueError,
            f"a.jsonl, line 2: not JSON .{constant} is no",
        )
        for constant in ("NaN", "Infinity", "-Infinity")
    },
    **{
        f"lone {half}": (
            SentenceReader,
            "a.jsonl",
            f'{{"text": "A"}}\n{{"text": "B \\{half}!"}}\n',
            ValueError,
            rf"a.jsonl, line 2, column 'text': '\\{half}' is half",
        )
        for half in ("ud83d", "ude00")
    },
    "missing column": (
        TripletReader,
        "a.csv",
        "sent0,other\nA,B\n",
        ValueError,
        r"line 2: there are no columns.*\['sent0', 'other'\]; name the columns",
    ),
    "sentences for triplets": (
        TripletReader,
        "a.csv",
        "id,sentence\n1,A\n",
        ValueError,
        r"line 2: there are no columns.*found \['id', 'sentence'\]; read it with SentenceReader",
    ),
    "nli for triplets": (
        TripletReader,
        "a.jsonl",
        '{"premise": "A", "hypothesis": "B", "label": 0}\n',
        ValueError,
        r"line 1: there are no columns.*; read it with NLIReader",
    ),
    "a negative from the second row on": (
        TripletReader,
        "a.jsonl",
        '{"sent0": "A", "sent1": "B"}\n{"sent0": "A", "sent1": "B", "hard_neg": "C"}\n',
        ValueError,
        r"line 2: the row has the columns .*'hard_neg'\], but the first row only \['sent0', 'sent1'\]",
    ),
    "a short first row": (
        TripletReader,
        "a.csv",
        "sent0,sent1,hard_neg\nA,B\nA,B,C\n",
        ValueError,
        r"line 2: there is no column 'hard_neg', found \['sent0', 'sent1'\]",
    ),
    "missing json key": (
        TripletReader,
        "a.jsonl",
        '{"sent0": "A", "sent1": "B"}\n{"sent0": "A"}\n',
        ValueError,
        "line 2: there is no column 'sent1'",
    ),
    "short row": (
        TripletReader,
        "a.csv",
        "sent0,sent1,hard_neg\nA,B,C\nA,B\n",
        ValueError,
        "line 3: there is no column 'hard_neg'",
    ),
    "long row": (
        TripletReader,
        "a.tsv",
        'sent0\tsent1\n"A\tB"\tC\n',
        ValueError,
        "line 2: the row has 3 cells.*QUOTE_MINIMAL",
    ),
    "open quote": (TripletReader, "a.csv", 'sent0,sent1\nA,B\n"C,D\nE,F\n', ValueError, "line 3.*QUOTE_NONE"),
    "header twice": (TripletReader, "a.csv", "sent0,sent0\nA,B\n", ValueError, "line 1: the header names"),
    "not json": (SentenceReader, "a.jsonl", '{"text": "A"}\n{oops\n', ValueError, "a.jsonl, line 2: not JSON"),
    "json list": (SentenceReader, "a.jsonl", '["A"]\n', ValueError, "line 1: expected one JSON object"),
    "nested json": (SentenceReader, "a.jsonl", '{"text": ["A"]}\n', ValueError, "line 1, column 'text': expected text"),
    "table wanted": (TripletReader, "a.txt", "A\n", ValueError, "expected a .csv, .tsv, .jsonl or .parquet"),
    "no parquet": (
        TripletReader,
        "a.parquet",
        "sent0,sent1\nA,B\n",
        ValueError,
        "a.parquet: the file is damaged or not a parquet file",
    ),
    "absent parquet": (SentenceReader, "a.parquet", None, FileNotFoundError, "a.parquet"),
    "label": (
        NLIReader,
        "a.csv",
        "premise,hypothesis,label\nP,H,maybe\n",
        ValueError,
        "line 2: unknown label 'maybe'",
    ),
}


@pytest.mark.parametrize(("reader", "name", "content", "error", "message"), ERRORS.values(), ids=ERRORS)
def test_errors_name_file_line_and_column(tmp_path, reader, name, content, error, message):
    if content is not None:
        _write(tmp_path, name, content)
    for read in (reader(tmp_path).get_examples, reader(tmp_path).get_dataset):
        with pytest.raises(error, match=message):
            read(name)


def _zip(data):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.txt", data)
    return buffer.getvalue()


def _tar(data):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo("a.txt")
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def _parquet(data):
    buffer = io.BytesIO()
    Dataset.from_dict({"sentence": data.decode().splitlines()}).to_parquet(buffer)
    return buffer.getvalue()


ENGLISH = b"sentence\nA man plays a guitar.\nTwo dogs run.\n"
OTHERS = {
    "gzip": (gzip.compress, ENGLISH, "gzip data"),
    "zip": (_zip, ENGLISH, "a zip archive"),
    "bz2": (bz2.compress, ENGLISH, "bzip2 data"),
    "xz": (lzma.compress, ENGLISH, "xz data"),
    "zst": (lambda data: pyarrow.compress(data, "zstd", asbytes=True), ENGLISH, "zstandard data"),
    "tar": (_tar, ENGLISH, "a tar archive"),
    "parquet": (_parquet, ENGLISH, "a parquet file"),
}
for _encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32"):
    _named = "UTF-32" if _encoding == "utf-32" else "UTF-16"
    OTHERS |= {
        f"{_encoding} {_language}": (
            lambda data, to=_encoding: data.decode().encode(to),
            _text,
            f"{_named} text.*iconv",
        )
        for _language, _text in {
            "English": ENGLISH,
            "Russian": "sentence\nДве собаки бегут.\nМужчина играет на гитаре.\n".encode(),
            "Chinese": "两只狗在奔跑，其中一只是棕色的。\n一个男人在弹吉他。\n".encode(),
        }.items()
    }


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.jsonl", "a.txt.gz", "a.gz", "a.parquet"])
@pytest.mark.parametrize(("encode", "text", "kind"), OTHERS.values(), ids=OTHERS)
def test_what_is_no_utf8_text_is_named(tmp_path, name, encode, text, kind):
    path = tmp_path / name
    data = encode(text)
    path.write_bytes(gzip.compress(data) if name == "a.txt.gz" else data)
    if (name, kind) in (("a.gz", "gzip data"), ("a.parquet", "a parquet file")):
        assert len(_texts(SentenceReader(), path)) >= 2
        return
    for read in (SentenceReader().get_examples, SentenceReader().get_dataset):
        with pytest.raises(ValueError, match=kind) as error:
            read(path)
        assert str(path) in str(error.value)
        assert "LATIN1" not in str(error.value)


def test_a_stray_zero_is_a_character(tmp_path):
    line = "A man plays a guitar, and two dogs run.\0"
    _write(tmp_path, "a.txt", f"{line}\n" * 3)
    assert _texts(SentenceReader(tmp_path), "a.txt") == [[line, line]] * 3


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "One.\rTwo.\rThree.\r"),
        ("a.txt.gz", "One.\rTwo."),
        ("a.csv", 'text\r"One."\rTwo.\r'),
        ("a.tsv", "text\tid\rOne.\t1\rTwo.\t2"),
        ("a.jsonl", '{"text": "One."}\r{"text": "Two."}\r'),
    ],
)
def test_line_ends_of_old_macs_are_named(tmp_path, name, content):
    _write(tmp_path, name, content)
    with pytest.raises(ValueError, match=rf"{name}: the lines end in \\r only, .* tr"):
        SentenceReader(tmp_path).get_dataset(name)


def test_a_single_line_may_end_in_a_return(tmp_path):
    _write(tmp_path, "a.txt", "One.\r")
    assert _texts(SentenceReader(tmp_path), "a.txt") == [["One.", "One."]]


def test_an_escaped_pair_of_surrogates_is_a_character(tmp_path):
    _write(tmp_path, "a.jsonl", r'{"text": "\ud83d\ude00 caf\u00e9"}')
    assert SentenceReader(tmp_path).get_dataset("a.jsonl")["sentence"][:] == ["😀 café"]


def test_a_nan_in_a_parquet_file_is_no_text(tmp_path):
    Dataset.from_dict({"text": [1.5, float("nan")]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="a.parquet, row 2, column 'text': expected text or a number, got nan"):
        SentenceReader(tmp_path).get_dataset("a.parquet")


@pytest.mark.parametrize("separator", [",", "\t"])
def test_commas_that_a_spreadsheet_adds_are_no_columns(tmp_path, separator):
    name = "a.csv" if separator == "," else "a.tsv"
    rows = ["sent0,sent1,hard_neg,,,", "A,B,C,,,", "D,E,F", "G,H,I,,,,,", ",,,,,", "J,K,, ,,", "L,M,N,,,"]
    _write(tmp_path, name, "\r\n".join(rows).replace(",", separator))
    reader = TripletReader(tmp_path)
    assert _texts(reader, name) == [["A", "B", "C"], ["D", "E", "F"], ["G", "H", "I"], ["L", "M", "N"]]
    assert reader.skipped == {"blank": 1, "with an empty 'hard_neg'": 1}
    _write(tmp_path, name, "sent0,sent1,hard_neg\nA,B,C,,\nD,E,F,\n".replace(",", separator))
    assert _texts(reader, name) == [["A", "B", "C"], ["D", "E", "F"]]


LINES = [f'{{"sentence": "{random.Random(number).randbytes(50).hex()}."}}\n' for number in range(3000)]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.txt.gz", "a.parquet"])
@pytest.mark.parametrize("change", ["cut", "cut to nothing", "grown", "written over"])
@pytest.mark.parametrize("way", ["get_examples", "get_dataset", "get_iterable_dataset"])
def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path, name, change, way):
    path = tmp_path / name
    if name == "a.parquet":
        Dataset.from_list([json.loads(line) for line in LINES]).to_parquet(path, batch_size=1000)
    else:
        _write(tmp_path, name, "".join(LINES))
    whole = path.read_bytes()
    os.utime(path, (1e9, 1e9))

    class Writer(SentenceReader):
        """Reads while somebody writes."""

        def _records(self, path):
            for number, record in enumerate(super()._records(path)):
                if number == 300 and change.startswith("cut"):
                    os.truncate(path, 0 if change == "cut to nothing" else len(whole) * 2 // 3)
                elif number == 300:
                    with open(path, "ab" if change == "grown" else "r+b") as file:
                        file.write(whole)
                yield record

    with pytest.raises(ValueError, match=r"changed while it was read|damaged") as error:
        len(list(getattr(Writer(), way)(path)))
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("columns", "lacking"),
    [
        (["sent0", "sent1", "hard_negative"], ["hard_negative"]),
        (["sent0", "sent2"], ["sent2"]),
        (["sent", "sent1", "hard_neg", "hard_neg_2"], ["sent", "hard_neg_2"]),
        ([0, 1, 3], [0, 1, 3]),
        (["sent0", 1], [1]),
    ],
)
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_all_columns_that_the_user_names_are_required(tmp_path, name, columns, lacking):
    row = {"sent0": "A", "sent1": "B", "hard_neg": "C"}
    _write(tmp_path, name, json.dumps(row) if name == "a.jsonl" else "sent0,sent1,hard_neg\nA,B,C\n")
    if columns == [0, 1, 3] and name == "a.csv":  # numbers mean that there is no header
        lacking = [3]
    reader = TripletReader(tmp_path, columns=columns)
    for read in (reader.get_examples, reader.get_dataset, reader.get_iterable_dataset):
        with pytest.raises(
            ValueError, match=rf"{name}, line \d: there are no columns {re.escape(str(lacking))}, found"
        ):
            read(name)


@pytest.mark.parametrize(
    ("reader", "columns"),
    [
        (TripletReader, ["sentence"]),
        (TripletReader, "ab"),
        (TripletReader, []),
        (NLIReader, ["a", "b"]),
        (NLIReader, [0, 1, 2, 3]),
    ],
)
def test_as_many_columns_as_the_reader_takes(reader, columns):
    with pytest.raises(ValueError, match="columns= must be a list as long as") as error:
        reader(columns=columns)
    assert ("SentenceReader" in str(error.value)) == (columns == ["sentence"])


def test_a_text_file_has_no_columns(tmp_path):
    _write(tmp_path, "a.txt", "One.\n")
    with pytest.raises(ValueError, match=r"a.txt: a text file has .* no column 'body'"):
        SentenceReader(tmp_path, column="body").get_dataset("a.txt")


def test_pairs_of_a_table_with_other_columns_are_said(tmp_path, caplog):
    path = _write(tmp_path, "a.csv", "anchor,positive,hard_negative\nA,B,C\n")
    with caplog.at_level(logging.WARNING):
        assert _texts(TripletReader(), path) == [["A", "B"]]
        assert _texts(TripletReader(columns=["anchor", "positive"]), path) == [["A", "B"]]
    assert caplog.messages == [f"{path}: reading only the columns ['anchor', 'positive'], not ['hard_negative']"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("x.csv_data/sentences.txt", "txt"),
        ("x.csv/sentences", "txt"),
        ("a.csv.txt", "txt"),
        ("a.txt.csv", "csv"),
        ("A.CSV.GZ", "csv"),
        ("a.json", "jsonl"),
    ],
)
def test_the_format_is_that_of_the_files_own_ending(name, expected):
    assert file_format(Path(name)) == expected


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("a.txt", "One.\n", ["--columns", "body"], "a.txt: a text file has .* no column 'body'"),
        ("x.csv_data/a.txt", "\n", [], "x.csv_data/a.txt: there is nothing to read, .*1 blank"),  # read as text
        (
            "a.csv",
            "sentence\nOne.\n",
            [],
            "a.csv, line 2: there are no columns.*; read it with --train_format sentences",
        ),
        ("a.csv", "body\nOne.\n", ["--columns", "body"], "; --train_format sentences reads a single column"),
    ],
)
def test_what_the_command_line_says_of_files(tmp_path, name, content, options, message):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    path = _write(tmp_path, name, content)
    with pytest.raises(SystemExit, match=message):
        cli.main(["train", "--model_name_or_path", "absent", "--train_file", str(path), *options])


@pytest.mark.parametrize("score", ["good", "nan", "inf", "4,5"])
def test_a_bad_score(tmp_path, score):
    path = _write(tmp_path, "s.tsv", f"sentence1\tsentence2\tscore\nA\tB\t1\nA\tB\t{score}\n")
    with pytest.raises(ValueError, match=f"s.tsv, line 3, column 'score': '{score}' is not a score"):
        load_sts(path)


def test_damaged_gzip(tmp_path):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"One.\n" * 10_000)[:-20])
    with pytest.raises(ValueError, match="the gzip file is damaged"):
        SentenceReader().get_dataset(path)
    path.write_bytes(b"no gzip")
    with pytest.raises(ValueError, match="the gzip file is damaged"):
        SentenceReader().get_dataset(path)


@pytest.mark.slow
def test_a_million_lines_stream_to_disk(tmp_path):
    """Peak memory above the imports stays far below that of a million Python objects; the rows lie on disk."""
    path = tmp_path / "million.txt"
    with path.open("w") as file:
        file.writelines(f"This is sentence number {number} of a file that streams.\n" for number in range(1_000_000))
    code = """
import resource, sys
from st_simcse import SentenceReader
reader = SentenceReader()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
dataset = reader.get_dataset(sys.argv[1])
assert len(dataset) == 1_000_000 and dataset[999_999]["sentence"].startswith("This is sentence number 999999 ")
assert dataset.cache_files
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""
    output = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True).stdout
    assert int(output) < 300e6


def test_files_stream_as_shards(tmp_path):
    for part in range(3):
        _write(tmp_path, f"{part}.txt.gz", "\n".join(f"Sentence {part}.{row}." for row in range(50)))
    stream = SentenceReader(tmp_path).get_iterable_dataset("0.txt.gz", "1.txt.gz", "2.txt.gz")
    assert stream.num_shards == 3
    expected = [f"Sentence {part}.{row}." for part in range(3) for row in range(50)]
    assert [row["sentence"] for row in stream] == expected
    shuffled = [row["sentence"] for row in stream.shuffle(seed=1, buffer_size=20)]
    assert shuffled != expected
    assert sorted(shuffled) == sorted(expected)
    with pytest.raises(FileNotFoundError, match=r"3.txt, 4.txt"):
        SentenceReader(tmp_path).get_iterable_dataset("0.txt.gz", "3.txt", "4.txt")


def test_files_of_different_width_are_no_stream(tmp_path):
    _write(tmp_path, "pairs.csv", "sent0,sent1\nA,B\n")
    _write(tmp_path, "triplets.csv", "sent0,sent1,hard_neg\nA,B,C\n")
    for names in (["pairs.csv", "triplets.csv"], ["triplets.csv", "triplets.csv", "pairs.csv"]):
        message = r"different columns: .*pairs.csv \['anchor', 'positive'\].*; read them separately"
        with pytest.raises(ValueError, match=message):
            TripletReader(tmp_path).get_iterable_dataset(*names)
    stream = TripletReader(tmp_path, columns=["sent0", "sent1"]).get_iterable_dataset("pairs.csv", "triplets.csv")
    assert list(stream) == [{"anchor": "A", "positive": "B"}] * 2


def test_a_stream_of_no_file_or_a_pipe_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no file to read"):
        SentenceReader(tmp_path).get_iterable_dataset()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe: a pipe can be read only once; use get_dataset"):
        SentenceReader(tmp_path).get_iterable_dataset("pipe")


@pytest.mark.parametrize("way", ["get_examples", "get_dataset"])
def test_a_pipe_is_read_to_its_end(tmp_path, way):
    os.mkfifo(tmp_path / "pipe")
    lines = [f"Sentence number {number}." for number in range(20_000)]
    with ThreadPoolExecutor() as pool:
        written = pool.submit((tmp_path / "pipe").write_text, "\n".join(lines))
        read = getattr(SentenceReader(tmp_path), way)("pipe")
        written.result()
    assert [row.texts[0] if way == "get_examples" else row["sentence"] for row in read] == lines


def test_training_on_a_stream(tmp_path, model, sentences):
    _write(
        tmp_path,
        "a.csv",
        "sent0,sent1\n" + "\n".join(f"{a},{b}" for a, b in zip(sentences, sentences[::-1], strict=True)),
    )
    stream = TripletReader(tmp_path).get_iterable_dataset("a.csv", "a.csv").shuffle(seed=0, buffer_size=4)
    arguments = SimCSETrainingArguments(
        str(tmp_path / "out"), max_steps=5, per_device_train_batch_size=4, report_to="none", save_strategy="no"
    )
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainer = SimCSETrainer(model=model, args=arguments, train_dataset=stream, loss=SupSimCSELoss(model))
    trainer.train()
    assert trainer.state.global_step == 5
    assert any(not torch.equal(before[name], parameter) for name, parameter in model.named_parameters())


CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\x00"), min_size=1, max_size=30).filter(
    lambda text: text.strip().strip("\ufeff") == text.strip() != ""
)


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=8),
    ending=st.sampled_from(["\n", "\r\n"]),
    bom=st.booleans(),
    commas=st.tuples(st.integers(0, 3), st.integers(0, 3)),
)
def test_no_valid_row_is_ever_lost(tmp_path_factory, rows, ending, bom, commas):
    """Whatever the text, what a csv or json writer wrote comes back row by row."""
    folder = tmp_path_factory.mktemp("fuzz")
    expected = [[cell.strip() for cell in row] for row in rows]
    start = b"\xef\xbb\xbf" if bom else b""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator=ending).writerows(
        [("sent0", "sent1", *[""] * commas[0]), *((*row, *[""] * commas[1]) for row in rows)]
    )
    (folder / "a.csv").write_bytes(start + buffer.getvalue().encode())
    assert _texts(TripletReader(folder), "a.csv") == expected
    lines = [json.dumps(dict(zip(("sent0", "sent1"), row, strict=True)), ensure_ascii=False) for row in rows]
    (folder / "a.jsonl").write_bytes(start + ending.join(lines).encode())
    assert _texts(TripletReader(folder), "a.jsonl") == expected
    (folder / "a.txt").write_bytes(start + ending.join(row[0] for row in rows).encode())
    reader = SentenceReader(folder, format="lines")  # there may be tabs in all of them
    assert [texts[0] for texts in _texts(reader, "a.txt")] == [row[0] for row in expected]


@settings(max_examples=300, deadline=None)
@given(
    data=st.one_of(
        st.binary(max_size=200),
        st.text(alphabet='a,"\t\n\r\x00{}:[]é1', max_size=80).map(lambda text: ("sent0,sent1\n" + text).encode()),
        st.text(alphabet='a,"\t\n\r\x00{}:[]é1', max_size=80).map(lambda text: ("sent0\tsent1\n" + text).encode()),
        st.text(alphabet='a"\n\x00{}:[]1,', max_size=80).map(
            lambda text: ('{"sent0": "a", "sent1": "b"}\n' + text).encode()
        ),
    ),
    name=st.sampled_from(["f.txt", "f.csv", "f.tsv", "f.jsonl", "f.txt.gz", "f.csv.gz"]),
    reader=st.sampled_from([SentenceReader, TripletReader, NLIReader]),
    compressed=st.booleans(),
)
def test_any_bytes_are_read_or_refused_with_the_files_name(tmp_path_factory, data, name, reader, compressed):
    path = tmp_path_factory.mktemp("fuzz") / name
    path.write_bytes(gzip.compress(data) if compressed else data)
    try:
        examples = reader().get_examples(path)
    except ValueError as error:
        assert str(path) in str(error)
        assert "line" in str(error) or "nothing to read" in str(error) or "expected a .csv" in str(error)
    else:
        assert examples
        assert all(text.strip() for example in examples for text in example.texts)


def test_huge_lines(tmp_path):
    huge = "word " * 200_000
    _write(tmp_path, "a.txt", f"One.\n{huge}\nTwo.\n")
    assert [len(texts[0]) for texts in _texts(SentenceReader(tmp_path), "a.txt")] == [4, len(huge) - 1, 4]
    _write(tmp_path, "a.csv", f'sentence\nOne.\n"{huge}"\nTwo.\n')
    assert [len(texts[0]) for texts in _texts(SentenceReader(tmp_path), "a.csv")] == [4, len(huge) - 1, 4]


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.tsv.gz", "a.jsonl", "a.parquet"])
@pytest.mark.parametrize("word", ["word", "日本"])
def test_rows_up_to_a_limit_and_no_further(tmp_path, name, word):
    content = {
        ".txt": "{}\r\n{}\nEnd.",
        ".csv": "text\r\n{}\r\n{}\nEnd.",
        ".tsv": "text\n{}\n{}\nEnd.",
        ".jsonl": '{{"text":"{}"}}\n{{"text":"{}"}}\n{{"text":"End."}}\n',
    }
    text = word * 100
    ending = Path(name.removesuffix(".gz")).suffix
    place = {".csv": "line 3", ".tsv": "line 3", ".parquet": "row 2"}.get(ending, "line 2")
    # Of parquet files the characters of the cells are counted.
    limit = len(text) if ending == ".parquet" else len(text.encode()) + len('{"text":""}') * (ending == ".jsonl")
    for longer in ("", "+"):
        if ending == ".parquet":
            Dataset.from_dict({"text": [text, text + longer, "End."]}).to_parquet(tmp_path / name)
        else:
            _write(tmp_path, name, content[ending].format(text, text + longer))
        reader = SentenceReader(tmp_path, max_row_bytes=limit)
        if not longer:
            assert [texts[0] for texts in _texts(reader, name)] == [text, text, "End."]
            continue
        for read in (reader.get_examples, reader.get_dataset, reader.get_iterable_dataset):
            with pytest.raises(ValueError, match=rf"{name}, {place}: longer than {limit} bytes; .*max_row_bytes"):
                list(read(name))


def test_a_quote_that_is_never_closed_ends_at_the_limit(tmp_path):
    _write(tmp_path, "a.csv", 'text\n"A\nB"\n"' + "A man plays a guitar.\n" * 1000)
    with pytest.raises(ValueError, match="a.csv, line 4: longer than 2,000 bytes; look for an unclosed quote"):
        SentenceReader(tmp_path, max_row_bytes=2000).get_dataset("a.csv")


def test_the_limit_of_scored_pairs(tmp_path):
    path = _write(tmp_path, "a.tsv", f"sentence1\tsentence2\tscore\n{'A' * 40}\tB\t1\n")
    assert load_sts(path, max_row_bytes=44).scores == [1.0]
    with pytest.raises(ValueError, match="a.tsv, line 2: longer than 43 bytes"):
        load_sts(path, max_row_bytes=43)
    with pytest.raises(ValueError, match="max_row_bytes must be 1 or more, got 0"):
        load_sts(path, max_row_bytes=0)


@pytest.mark.parametrize(
    ("name", "start", "place"),
    [
        ("a.txt.gz", b"One.\n", "line 2"),
        ("a.csv.gz", b'text\nOne.\n"', "line 3"),
        ("a.jsonl.gz", b'{"text": "', "line 1"),
    ],
)
def test_a_row_without_an_end_takes_no_memory(tmp_path, name, start, place):
    """512 MiB behind half a megabyte of gzip: what is allocated is a few times the limit of 16 MiB."""
    piece = gzip.compress(b"word " * 2**20)
    with (tmp_path / name).open("wb") as file:
        file.write(gzip.compress(start))
        for _ in range(100):
            file.write(piece)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=f"{name}, {place}: longer than 16,777,216 bytes"):
            SentenceReader(tmp_path).get_examples(name)
        assert tracemalloc.get_traced_memory()[1] < 100 * 2**20
    finally:
        tracemalloc.stop()


NLI = {"premise": ["P", "P", "P"], "hypothesis": ["C", "E", "N"], "label": ["contradiction", "entailment", "neutral"]}
TABLES = {
    "text": (SentenceReader, {"id": [1, 2], "text": ["One.", " Two. "]}, [["One.", "One."], ["Two.", "Two."]]),
    "sent0": (TripletReader, {"hard_neg": ["C"], "sent0": ["A"], "sent1": ["B"]}, [["A", "B", "C"]]),
    "anchor": (TripletReader, {"anchor": ["A"], "positive": ["B"]}, [["A", "B"]]),
    "nli": (NLIReader, NLI, [["P", "E", "C"]]),
}


def _hub_folder(folder, columns, split="train", features=None):
    """A data set as the hub has it: parquet files by split."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    Dataset.from_dict(columns, features=features).to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")


@pytest.mark.parametrize(("reader", "columns", "expected"), TABLES.values(), ids=TABLES)
@pytest.mark.parametrize("kind", ["parquet", "folder", "streaming"])
def test_parquet_files_and_data_sets(tmp_path, reader, columns, expected, kind):
    _hub_folder(tmp_path, columns)
    source = HubDataset(str(tmp_path), streaming=kind == "streaming")
    if kind == "parquet":
        source = tmp_path / "data" / "train-00000-of-00001.parquet"
    assert _texts(reader(), source) == expected
    rows = list(map(list, zip(*reader().get_dataset(source).to_dict().values(), strict=True)))
    assert rows == ([row[:1] for row in expected] if reader is SentenceReader else expected)
    assert [list(row.values()) for row in reader().get_iterable_dataset(source)] == rows


# The orders of SNLI; of OCNLI and CMNLI in CLUE; of CDSC-E; and one in upper case.
ORDERS = [
    ["entailment", "neutral", "contradiction"],
    ["neutral", "entailment", "contradiction"],
    ["NEUTRAL", "CONTRADICTION", "ENTAILMENT"],
    ["contradictory", "entailment", "neutral"],
    ["c", "n", "e"],
]


def _classes(names):
    """Rows whose labels are numbers, and the features that say what these mean."""
    hypotheses = {"e": "E", "n": "N", "c": "C"}
    columns = {
        "premise": ["P"] * 4,
        "hypothesis": [*(hypotheses[name[0].lower()] for name in names), "X"],
        "label": [0, 1, 2, -1],
    }
    return columns, Features(premise=Value("string"), hypothesis=Value("string"), label=ClassLabel(names=names))


@pytest.mark.parametrize("names", ORDERS, ids=["snli", "clue", "cdsc-e", "contradictory", "letters"])
@pytest.mark.parametrize("kind", ["parquet", "folder", "streaming"])
def test_labels_mean_what_the_data_set_says(tmp_path, names, kind):
    columns, features = _classes(names)
    _hub_folder(tmp_path, columns, features=features)
    source = HubDataset(str(tmp_path), streaming=kind == "streaming")
    if kind == "parquet":
        source = tmp_path / "data" / "train-00000-of-00001.parquet"
    reader = NLIReader()
    assert _texts(reader, source) == [["P", "E", "C"]]
    assert reader.skipped == {"neutral": 1, "without a gold label": 1}
    assert list(reader.get_iterable_dataset(source)) == [{"anchor": "P", "positive": "E", "negative": "C"}]
    with pytest.raises(ValueError, match=r"declares the label \d as \w+, but labels= says \w+: leave"):
        NLIReader(labels=[names[1], names[0], names[2]]).get_examples(source)
    assert _texts(NLIReader(labels=names), source) == [["P", "E", "C"]]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.parquet", "folder"])
def test_numbers_that_nothing_explains_are_refused(tmp_path, name):
    columns, _ = _classes(["neutral", "entailment", "contradiction"])
    rows = list(zip(*columns.values(), strict=True))
    source = tmp_path / name
    if name == "folder":
        _hub_folder(source, columns)
        source = HubDataset(str(source))
    elif name == "a.parquet":
        Dataset.from_dict(columns).to_parquet(source)
    elif name == "a.jsonl":
        _write(tmp_path, name, "\n".join(json.dumps(dict(zip(columns, row, strict=True))) for row in rows))
    else:
        cells = [columns, *rows]
        _write(tmp_path, name, "\n".join(("," if name == "a.csv" else "\t").join(map(str, row)) for row in cells))
    with pytest.raises(
        ValueError, match=r"(line|row) \d: the meaning of the label 0 is unknown.*pass labels= with the"
    ):
        NLIReader().get_examples(source)
    for labels in (["neutral", "ENTAILMENT", "c"], {0: "neutral", "1": "entailment", 2: "contradiction"}):
        assert _texts(NLIReader(labels=labels), source) == [["P", "E", "C"]]


@pytest.mark.parametrize("labels", [["entailment", "n", "c"], {"0.0": "e", 1: "n", "2": "c"}])
def test_numbers_with_a_point_are_the_same_labels(tmp_path, labels):
    """As pandas writes them if a label is missing."""
    frame = Dataset.from_dict({"premise": ["P"] * 3, "hypothesis": ["E", "C", "N"], "label": [0, 2, None]}).to_pandas()
    frame.to_csv(tmp_path / "a.csv", index=False)
    assert "P,C,2.0" in (tmp_path / "a.csv").read_text()
    assert _texts(NLIReader(labels=labels), tmp_path / "a.csv") == [["P", "E", "C"]]
    with pytest.raises(ValueError, match="the meaning of the label 0 is unknown"):
        NLIReader().get_examples(tmp_path / "a.csv")


def test_labels_of_other_names(tmp_path):
    columns, features = _classes(["contradiction", "neutral", "entailment"])
    features["label"] = ClassLabel(names=["not_entailment", "unsure", "entailment"])
    _hub_folder(tmp_path, columns, features=features)
    source = HubDataset(str(tmp_path))
    with pytest.raises(ValueError, match="row 1: unknown label 'not_entailment'; expected entail.*pass labels="):
        NLIReader().get_examples(source)
    named = {"not_entailment": "contradiction", "unsure": -1}
    assert _texts(NLIReader(labels=named), source) == [["P", "E", "C"]]
    path = _write(tmp_path, "a.csv", "premise,hypothesis,label\nP,E,entailment\nP,C,not_entailment\n")
    assert _texts(NLIReader(labels=named), path) == [["P", "E", "C"]]
    for wrong in ("entailment", ["entailment", "maybe"], {"0": "1"}):
        with pytest.raises(ValueError, match="labels= must be entailment, neutral, contradiction, or - for no label"):
            NLIReader(labels=wrong)


def _scored(folder, names, labels, column="label"):
    """A folder of pairs whose labels are classes, and one of their numbers without names."""
    columns = {"sentence1": ["A"] * len(labels), "sentence2": ["B"] * len(labels), column: labels}
    kinds = {"sentence1": Value("string"), "sentence2": Value("string"), column: ClassLabel(names=names)}
    _hub_folder(folder, columns, features=Features(kinds))
    return HubDataset(str(folder)), folder / "data/train-00000-of-00001.parquet"


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["entailment", "neutral", "contradiction"], [0, 1, 2]),
        (["entailment", "neutral", "contradiction"], [0, 0]),  # what is declared counts, not what is there
        (["entailment", "not_entailment"], [0, 1]),  # RTE: the similar pairs have the lower number
        (["not_entailment", "entailment"], [0, 1]),
        (["duplicate", "not_duplicate"], [0, 1]),
        (["low", "middle", "high"], [0, 1, 2]),
        (["5", "3", "1"], [0, 1, 2]),
    ],
)
def test_classes_are_no_scores(tmp_path, names, labels):
    for source in _scored(tmp_path, names, labels):
        for columns in (None, ["sentence1", "sentence2", "label"]):
            with pytest.raises(ValueError, match=r"the numbers in the column 'label' are classes \(.*\), not scores; "):
                load_sts(source, columns=columns)
        is_nli = "neutral" in names or "entailment" in names
        with pytest.raises(ValueError, match="read it with NLIReader, or" if is_nli else "not scores; name a column"):
            load_sts(source)


@pytest.mark.parametrize(
    ("names", "labels", "scores"),
    [
        (["not_equivalent", "equivalent"], [1, 0, 1], [1, 0, 1]),  # MRPC
        (["0", "1"], [0, 1], [0, 1]),  # PAWS
        (["1", "2", "3.5"], [2, 0, 1], [2, 0, 1]),  # the order is that of the names
    ],
)
def test_classes_whose_order_is_similarity_are_scores(tmp_path, names, labels, scores):
    for source in _scored(tmp_path, names, labels):
        assert load_sts(source).scores == scores


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
@pytest.mark.parametrize("labels", [[0, 1, 2], [2, -1, 1, 0, 2]])
def test_numbers_as_nli_data_have_them_are_scores_if_they_are_said_to_be(tmp_path, name, labels):
    rows = [{"sentence1": "A", "sentence2": "B", "label": label} for label in labels]
    lines = ["sentence1,sentence2,label", *(",".join(map(str, row.values())) for row in rows)]
    path = _write(tmp_path, name, "\n".join(map(json.dumps, rows) if name == "a.jsonl" else lines))
    with pytest.raises(ValueError, match=r"0, 1 and 2.*NLI data.*read it with NLIReader, .*pass columns="):
        load_sts(path)
    assert load_sts(path, columns=["sentence1", "sentence2", "label"]).scores == labels
    for others in ([0, 1], [0, 1, 2, 3], [0, 0.5, 1, 2]):
        table = "".join(f"A,B,{label}\n" for label in others)
        assert load_sts(_write(tmp_path, "b.csv", f"sentence1,sentence2,label\n{table}")).scores == others
    with pytest.raises(ValueError, match="empty.csv: there is nothing to read"):
        load_sts(_write(tmp_path, "empty.csv", ""))
    path = _write(tmp_path, "c.csv", "sentence1,sentence2,score\n" + "".join(f"A,B,{label}\n" for label in labels))
    assert load_sts(path).scores == labels


@pytest.mark.parametrize("label", ["entailment", "CONTRADICTION", "contradictory", "neutral"])
def test_nli_labels_in_words_are_no_scores(tmp_path, label):
    path = _write(tmp_path, "a.tsv", f"sentence1\tsentence2\tlabel\nA\tB\t{label}\n")
    message = f"line 2, column 'label': '{label}' is an NLI label, not a score; read it with NLIReader, or"
    with pytest.raises(ValueError, match=message):
        load_sts(path)


def test_rows_of_a_data_set_are_checked(tmp_path, caplog):
    _hub_folder(tmp_path, {"sentence": ["One.", None, "  "]})
    reader = SentenceReader()
    with caplog.at_level(logging.WARNING):
        assert len(reader.get_dataset(HubDataset(str(tmp_path)))) == 1
    assert f"{tmp_path} (train): read 1, skipped 2 blank" in caplog.messages
    with pytest.raises(ValueError, match=r"\(train\), row 1: there are no columns .*'anchor'.*found \['sentence'\]"):
        TripletReader().get_dataset(HubDataset(str(tmp_path)))
    with pytest.raises(ValueError, match="parquet, row 1: there are no columns"):
        TripletReader().get_dataset(tmp_path / "data" / "train-00000-of-00001.parquet")


def test_subset_and_split_are_taken_or_named(tmp_path):
    for subset, text in (("pair", "A"), ("other", "B")):
        (tmp_path / subset).mkdir()
        for split in ("train", "dev"):
            (tmp_path / subset / f"{split}.jsonl").write_text(json.dumps({"text": f"{text} {split}"}))
    files = "".join(
        f"- config_name: {subset}\n  data_files:\n  - split: train\n    path: {subset}/train.jsonl\n"
        f"  - split: dev\n    path: {subset}/dev.jsonl\n"
        for subset in ("pair", "other")
    )
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{files}---\n")
    read = SentenceReader().get_dataset
    assert read(HubDataset(str(tmp_path), "other", "dev"))["sentence"][:] == ["B dev"]
    assert read(HubDataset(str(tmp_path), "pair"))["sentence"][:] == ["A train"]
    for source, message in (
        (HubDataset(str(tmp_path)), "'pair', 'other'"),
        (HubDataset(str(tmp_path), "triplet"), "'triplet' not found.*'pair', 'other'"),
        (HubDataset(str(tmp_path), "pair", "test"), 'split "test".*train.*dev'),
    ):
        with pytest.raises(ValueError, match=message):
            read(source)


def test_scored_pairs_of_a_data_set(tmp_path):
    _hub_folder(tmp_path / "stsb", {"sentence1": ["A"], "sentence2": ["B"], "score": [0.9]}, "validation")
    evaluator = load_sts(HubDataset(str(tmp_path / "stsb"), split="validation"))
    assert (evaluator.name, evaluator.sentences2, evaluator.scores) == ("stsb-validation", ["B"], [0.9])
    _hub_folder(tmp_path / "bad", {"sentence1": ["A"], "sentence2": ["B"], "score": ["good"]}, "test")
    with pytest.raises(ValueError, match=r"bad \(test\), row 1, column 'score': 'good' is not a score"):
        load_sts(HubDataset(str(tmp_path / "bad"), split="test"))


@pytest.mark.parametrize("name", ["./absent", "/absent/set", "a/b/c"])
def test_an_absent_folder(name):
    with pytest.raises(FileNotFoundError, match=f"there is no folder {name}"):
        HubDataset(name).load()


@pytest.mark.parametrize("streaming", [False, True])
def test_a_damaged_data_set(tmp_path, streaming):
    (tmp_path / "train.jsonl").write_text('{"text": "One."}\n{oops\n')
    with pytest.raises(ValueError, match=r"JSON|pars"):
        SentenceReader().get_dataset(HubDataset(str(tmp_path), streaming=streaming))


def test_an_unreachable_hub_is_an_error_at_once(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    # A closed local port refuses the connection, as a machine without a network does.
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("st_simcse.data.hub_dataset.load_dataset", None)  # which would try again and again
    with pytest.raises(OSError, match=r"nobody/nothing is not a local folder, and .* cannot be reached"):
        HubDataset("nobody/nothing").load()


def test_columns_whose_names_are_numbers(tmp_path):
    """As pandas writes a table without names; the command line takes digits for a number."""
    path = tmp_path / "table.jsonl"
    path.write_text('{"0": "Two dogs run.", "1": "A cat sleeps."}\n')
    for column in (1, "1"):
        assert list(SentenceReader(column=column).get_dataset(path)["sentence"]) == ["A cat sleeps."]


@pytest.mark.parametrize(
    ("reader", "content", "remedy"),
    [
        (
            TripletReader(),
            "body\nA dog runs.\n",
            "read its only column with SentenceReader(column='body')",
        ),
        (
            TripletReader(),
            "A dog runs.,A hound runs.,A cat sleeps.\nA bird sings.,A finch sings.,A dog barks.\n",
            "pass columns=[0, 1, 2], or other numbers from 0, to read it without a header",
        ),
        (
            SentenceReader(),
            "1,A dog runs\n2,A cat sleeps\n",
            "pass column=0, or other numbers from 0, to read it without a header",
        ),
        (
            TripletReader(),
            "id,body\n1,A dog runs.\n",
            "name the columns to read with columns=, as in the header or, if the file has none, by number from 0",
        ),
    ],
)
def test_a_table_without_the_usual_columns_says_what_to_pass(tmp_path, reader, content, remedy):
    with pytest.raises(ValueError, match=f"; {re.escape(remedy)}$"):
        reader.get_examples(_write(tmp_path, "a.csv", content))


def test_a_missing_file_gets_a_sentence(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=f"^there is no file {re.escape(str(tmp_path / 'a.csv'))}: check its name"
    ):
        TripletReader(tmp_path).get_dataset("a.csv")


@pytest.mark.parametrize("name", ["set", ""])
def test_a_folder_is_no_file(tmp_path, name):
    _hub_folder(tmp_path / name, {"sentence": ["A"]})
    folder = re.escape(str(tmp_path / name))
    for read in (SentenceReader(tmp_path).get_dataset, SentenceReader(tmp_path).get_iterable_dataset):
        with pytest.raises(ValueError, match=f"^{folder} is a folder, not a file; .* HubDataset.name='{folder}'."):
            read(name)
    assert _texts(SentenceReader(), HubDataset(name=str(tmp_path / name))) == [["A", "A"]]
    with pytest.raises(SystemExit, match=f"{folder} is a folder, not a file; pass one of its files$"):
        cli.main(["train", "--model_name_or_path", "absent", "--train_file", str(tmp_path / name)])


@pytest.mark.parametrize("data", [["Two dogs run."], pd.DataFrame({"sentence": ["Two dogs run."]}), None])
@pytest.mark.parametrize("reader", [SentenceReader(), TripletReader(), NLIReader()])
def test_data_in_place_of_a_file_name(reader, data):
    message = f"expected a file name or a HubDataset, got data of the type {type(data).__name__}: .* SimCSETrainer"
    for read in (reader.get_dataset, reader.get_examples, reader.get_iterable_dataset, load_sts, load_classes):
        with pytest.raises(ValueError, match=message):
            read(data)
