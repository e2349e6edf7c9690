"""What a file is found to be by its lines, and what the readers are told of it."""

import csv
import gzip
import json
import logging
import os
import re
from concurrent.futures import ThreadPoolExecutor

import pandas
import pytest
import torch
from datasets import Dataset
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer

from st_simcse import HubDataset, NLIReader, SentenceReader, SimCSETrainer, TripletReader, cli, load_sts
from st_simcse.cli import compare, evaluate, plot, runs, train
from st_simcse.cli.corpus import CorpusArguments
from st_simcse.cli.files import FileArguments
from st_simcse.cli.parsing import named_options, parse
from st_simcse.cli.train import _reader, parse_train
from st_simcse.data.encodings import fitting_encodings
from st_simcse.data.formats import FileFormat
from st_simcse.data.layouts import found_format
from st_simcse.data.remedies import DataError
from st_simcse.data.senteval import SUBSETS
from st_simcse.demo import tiny_model
from st_simcse.evaluation import load_classes, load_retrieval, sts_evaluators

PAIRS = [("A dog runs.", "A hound runs.", "4.5"), ("A dog, a cat.", "A car.", "0.5"), ("Two men.", "Two.", "2")]
OBJECTS = [dict(zip(("sentence1", "sentence2", "score"), pair, strict=True)) for pair in PAIRS]
HEADER = ("sentence1", "sentence2", "score")


def _write(path, content, encoding="utf-8"):
    data = content if isinstance(content, bytes) else content.encode(encoding)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def _joined(separator, rows=PAIRS):
    return "".join(separator.join(row) + "\n" for row in rows)


def _sentences(path, **options):
    return SentenceReader(**options).get_dataset(path)["sentence"][:]


ENDINGS = ("txt", "data", "dat", "txt.gz", "")


@pytest.mark.parametrize(
    ("kind", "ending"),
    [
        *(("tabs", ending) for ending in (*ENDINGS, "tab")),
        *(("||", ending) for ending in ENDINGS),
        *(
            (kind, ending)
            for kind in ("objects", "array", "one line array")
            for ending in (*ENDINGS, "ndjson", "jsonlines", "json")
        ),
    ],
)
def test_a_table_is_read_as_one_whatever_its_name(tmp_path, ending, kind):
    content = {
        "tabs": _joined("\t", [HEADER, *PAIRS]),
        "||": _joined("||", [HEADER, *PAIRS]),
        "objects": "\n".join(map(json.dumps, OBJECTS)),
        "array": json.dumps(OBJECTS, indent=2),
        "one line array": json.dumps(OBJECTS),
    }[kind]
    path = _write(tmp_path / f"a.{ending}", content)
    evaluator = load_sts(path)
    assert list(zip(evaluator.sentences1, evaluator.sentences2, evaluator.scores, strict=True)) == [
        (one, two, float(score)) for one, two, score in PAIRS
    ]
    assert _sentences(path, column="sentence2") == [pair[1] for pair in PAIRS]
    with pytest.raises(
        ValueError, match=r"no columns \['sentence'\] or \['text'\], found \['sentence1'.*columns"
    ) as error:
        _sentences(path)
    assert ("pass format='lines'" in str(error.value)) == (ending in ENDINGS)


@pytest.mark.parametrize(("name", "separator"), [("cnsd-sts-dev.txt", "||"), ("LCQMC.test.data", "\t"), ("b", "\t")])
def test_columns_by_number_of_a_file_without_a_header(tmp_path, name, separator):
    path = _write(tmp_path / name, _joined(separator))
    assert load_sts(path, columns=[0, 1, 2]).scores == [4.5, 0.5, 2.0]
    assert _sentences(path, column=1) == [pair[1] for pair in PAIRS]
    assert TripletReader(columns=[1, 0]).get_dataset(path)["positive"][:] == [pair[0] for pair in PAIRS]


CHINESE = [
    ("一个女孩在梳头。", "一个女孩在做头发。", "2"),
    ("有人在弹吉他", "男人弹吉他", "5"),
    ("狗在跑", "飞机起飞了", "0"),
]


@pytest.mark.parametrize(
    ("name", "separator"),
    [("cnsd-sts-train.txt", "||"), ("ATEC.train.data", "\t"), ("train.txt", "\t"), ("dev.tsv", "\t")],
)
def test_scored_pairs_without_a_header(tmp_path, name, separator):
    """The layouts of CNSD's STS-B, which has ids, and of senteval_cn, without an option."""
    has_id = separator == "||"
    rows = [[f"2012test-{row:04}"] * has_id + list(pair) for row, pair in enumerate(CHINESE * 7)]
    path = _write(tmp_path / name, content := _joined(separator, rows))
    evaluator = load_sts(path)
    assert list(zip(evaluator.sentences1, evaluator.sentences2, evaluator.scores, strict=True)) == [
        (one, two, float(score)) for one, two, score in CHINESE * 7
    ]
    both = [text for one, two, _ in CHINESE * 7 for text in (one, two)]
    places = [1, 2] if has_id else [0, 1]
    assert _sentences(path) == _sentences(path, columns=places) == both
    assert [example.texts for example in SentenceReader().get_examples(path)] == [[text, text] for text in both]
    with pytest.raises(ValueError, match=r"found \[0, 1, 2.*read it with SentenceReader"):
        TripletReader().get_dataset(path)
    width = 3 + has_id
    _write(path, content + separator.join("好" * (width - 1)) + "\n")
    with pytest.raises(
        ValueError, match=rf"{name}, line 22: the row has {width - 1} cells, but the first row has {width} .separated"
    ):
        load_sts(path)
    _write(path, content + separator.join("好" * width) + "\n")
    with pytest.raises(ValueError, match=rf"{name}, line 22, column {width - 1}: '好' is not a score"):
        load_sts(path)


def test_a_first_row_that_may_be_a_header_is_one(tmp_path):
    for row in ("a\tb\tc", "sentence1\tsentence2\t2019", "a\tb\tc d\t1", "a\tb\t1\t2\t3", "a\t\t1"):
        path = _write(tmp_path / "a.tsv", f"{row}\n" * 3)
        with pytest.raises(ValueError, match=f"no column.*found .'{row.split()[0]}'"):
            load_sts(path)
    path = _write(tmp_path / "a.csv", "a,b,1\n" * 3)
    with pytest.raises(ValueError, match="no column.*found .'a', 'b', '1'.*by number from 0"):
        load_sts(path)


def test_cnsd_snli(tmp_path):
    """As it is released, and as SimCSE-Chinese-Pytorch leaves it: a row an object, in files of several names."""
    rows = [
        {"sentence1": "两个人在跑步。", "sentence2": "有人在运动。", "gold_label": "entailment"},
        {"sentence1": "两个人在跑步。", "sentence2": "他们是兄弟。", "gold_label": "neutral"},
        {"sentence1": "两个人在跑步。", "sentence2": "他们在睡觉。", "gold_label": "contradiction"},
        {"sentence1": "一只狗。", "sentence2": "一只猫。", "gold_label": "-"},
    ]
    triplet = {"anchor": "两个人在跑步。", "positive": "有人在运动。", "negative": "他们在睡觉。"}
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path = _write(tmp_path / "cnsd_snli_v1.0.train.jsonl", "\n".join(lines))
    reader = NLIReader()
    assert reader.get_examples(path)[0].texts == list(triplet.values())
    assert reader.skipped == {"neutral": 1, "without a gold label": 1}
    assert _sentences(path, columns=["sentence1", "sentence2"])[:3] == [
        "两个人在跑步。",
        "有人在运动。",
        "两个人在跑步。",
    ]
    origin = dict(zip(("origin", "entailment", "contradiction"), triplet.values(), strict=True))
    path = _write(tmp_path / "train.txt", f"{json.dumps(origin, ensure_ascii=False)}\n" * 7)
    assert TripletReader().get_dataset(path)[:] == {column: [text] * 7 for column, text in triplet.items()}
    assert _sentences(path, column="origin") == [triplet["anchor"]] * 7
    _write(path, json.dumps(origin) + "\n" + json.dumps({"origin": "一"}) + "\n")
    with pytest.raises(ValueError, match=r"train.txt, line 2: there is no column 'entailment', found \['origin'\]"):
        TripletReader().get_dataset(path)


def test_one_column_or_several():
    with pytest.raises(ValueError, match=r"pass column=0 or columns=\[0, 1\], not both"):
        SentenceReader(column=0, columns=[0, 1])
    with pytest.raises(ValueError, match="columns= must be a list as long as"):
        SentenceReader(columns=[])


def test_what_was_found_is_said(tmp_path, caplog):
    path = _write(tmp_path / "a.data", _joined("\t"))
    with caplog.at_level(logging.INFO):
        _sentences(path, column=0)
    assert f"{path} is read as cells separated by tabs" in caplog.messages


PLAIN = {
    "one tab among others": ["One.", "Two\tof them.", "Three."],
    "tabs at the ends": ["One.\t", "Two.\t", "Three.\t"],
    "indented": ["\tOne.", "\tTwo.", "\tThree."],
    "commas": ["One, two.", "Three, four.", "Five, six."],
    "semicolons": ["One; two.", "Three; four."],
    "brackets": ["[1] Smith, 2001.", "[2] Jones, 2002."],
    "braces": ["{ One }", "{Two}"],
    "a tag": ["<b>One</b> is a number.", "Two.", "Three."],
    "less": ["< 5 is few.", "a < b"],
    "bars": ["a || b", "c"],
    "objects in one": ['{"a": 1} is JSON.', "Two."],
    "commas in known words": ["text, sentence by sentence", "Two."],
}


@pytest.mark.parametrize("name", ["a.txt", "a", "a.txt.gz"])
@pytest.mark.parametrize("lines", PLAIN.values(), ids=PLAIN)
def test_sentences_stay_sentences(tmp_path, name, lines):
    path = _write(tmp_path / name, "\n".join(lines))
    assert _sentences(path) == [line.strip() for line in lines]
    assert found_format(path, FileFormat()) == "lines"


def test_real_sentences_stay_sentences(shared):
    path = shared / "wiki/wiki_sentences.txt"
    lines = path.read_text(encoding="utf-8").split("\n")
    assert _sentences(path) == [line.strip() for line in lines if line.strip()]


MARKUP = {
    "xml": '<?xml version="1.0"?>\n<doc>\n<s>One.</s>\n</doc>\n',
    "no declaration": '<doc id="1">\n<s>One.</s>\n</doc>\n',
    "html": "<!DOCTYPE html>\n<p>One.\n",
}


@pytest.mark.parametrize("name", ["a.xml", "a.txt", "a"])
@pytest.mark.parametrize("content", MARKUP.values(), ids=MARKUP)
def test_markup_is_refused(tmp_path, name, content):
    path = _write(tmp_path / name, content)
    with pytest.raises(ValueError, match=r"the lines are XML or HTML.*format='lines'"):
        _sentences(path)
    assert _sentences(path, format="lines") == [line.strip() for line in content.splitlines()]


AMBIGUOUS = {
    "other numbers of tabs": "a\tb\tc\nd\te\nf\tg\th\n",
    "an object and text": '{"text": "a"}\n{"text": "b"}\n{"text": "c"}\nText.\n',
    "two separators": "a||b\tc\nd||e\tf\n",
}


@pytest.mark.parametrize("content", AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_what_may_be_sentences_or_a_table_is_refused(tmp_path, content):
    path = _write(tmp_path / "a.txt", content)
    table = "format='jsonl'" if "{" in content else "delimiter="
    with pytest.raises(ValueError, match=rf"a.txt: most of the first .*format='lines'.*{table}"):
        _sentences(path)
    assert _sentences(path, format="lines") == content.splitlines()


def test_a_delimiter_decides_between_two(tmp_path):
    path = _write(tmp_path / "a.txt", AMBIGUOUS["two separators"])
    assert _sentences(path, column=0, delimiter="||") == ["a", "d"]
    assert _sentences(path, column=1, delimiter="\t") == ["c", "f"]


def test_snli_as_it_is_released(tmp_path):
    """Its header is no sentence."""
    rows = [
        ("gold_label", "sentence1", "sentence2", "pairID"),
        ("entailment", "P", "E", "1"),
        ("contradiction", *"PC2"),
    ]
    path = _write(tmp_path / "snli_1.0_dev.txt", _joined("\t", rows))
    assert NLIReader().get_dataset(path)[0] == {"anchor": "P", "positive": "E", "negative": "C"}
    with pytest.raises(ValueError, match="read it with NLIReader"):
        _sentences(path)


@pytest.mark.parametrize(
    ("content", "found"), [('{"origin": "A", "x": "B"}\n' * 3, "origin"), ("a\tb\tc\n" * 3, "'a'")]
)
def test_the_command_line_does_not_train_on_tables_as_sentences(tmp_path, content, found):
    path = _write(tmp_path / "a.txt", content)
    with pytest.raises(SystemExit, match=f"no column.*{found}"):
        cli.main(["train", "--model_name_or_path", "absent", "--train_file", str(path)])
    with pytest.raises(SystemExit, match=f"no column.*{found}"):
        cli.main(["train", "--model_name_or_path", "absent", "--train_file", str(path), "--train_format", "sentences"])


def test_the_separator_of_a_pipe_is_found(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    rows = [(f"Sentence {number}.", str(number)) for number in range(20_000)]
    with ThreadPoolExecutor() as pool:
        written = pool.submit((tmp_path / "pipe").write_text, _joined("\t", rows))
        assert _sentences(tmp_path / "pipe", column=0) == [row[0] for row in rows]
        written.result()


CONTRADICTED = {
    "tabs in csv": ("a.csv", "\t", "separated by tabs, not by commas; rename the file to .tsv, or pass delimiter="),
    "bars in csv": ("a.csv", "||", r"separated by \|\|, not by commas; pass delimiter='\|\|'"),
    "semicolons in csv": ("a.csv", ";", "separated by semicolons, not by commas; pass delimiter=';'"),
    "commas in tsv": ("a.tsv", ",", "separated by commas, not by tabs; rename the file to .csv, or pass delimiter=','"),
    "semicolons in tsv": ("a.tsv.gz", ";", "separated by semicolons, not by tabs; pass delimiter=';'"),
}


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize(("name", "separator", "message"), CONTRADICTED.values(), ids=CONTRADICTED)
def test_another_separator_than_the_name_says(tmp_path, name, separator, message, header):
    rows = [tuple(cell.replace(",", "") for cell in row) for row in PAIRS]
    path = _write(tmp_path / name, _joined(separator, [HEADER, *rows] if header else rows))
    column = "sentence1" if header else 0
    with pytest.raises(ValueError, match=message):
        _sentences(path, column=column)
    assert _sentences(path, column=column, delimiter=separator) == [row[0] for row in rows]


def test_tabs_of_a_csv_file_whose_sentences_have_commas(tmp_path):
    path = _write(tmp_path / "sts.csv", _joined("\t"))
    with pytest.raises(ValueError, match="separated by tabs"):
        _sentences(path, column=0)
    assert load_sts(path, columns=[0, 1, 2], delimiter="\t").sentences1 == [pair[0] for pair in PAIRS]


def test_semicolons_of_a_csv_file_whose_sentences_have_commas(tmp_path):
    path = _write(tmp_path / "a.csv", "sentence1;sentence2;score\nA, b;C;1\nD;E, f;0\n")
    with pytest.raises(ValueError, match="separated by semicolons, not by commas; pass delimiter=';'"):
        load_sts(path)
    assert load_sts(path, delimiter=";").sentences1 == ["A, b", "D"]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_objects_under_another_name(tmp_path, name):
    with pytest.raises(
        ValueError, match="lines are JSON objects, not cells; rename the file to .jsonl, or pass format='jsonl'$"
    ):
        _sentences(_write(tmp_path / name, '{"text": "a", "b": 1}\n' * 3))


WIDTHS = {
    "more": (
        "a.csv",
        "Hello,Hi\nHello, world,Hi\n",
        r"line 2: the row has 3 cells, but the first row has 2 \(separated by commas",
    ),
    "fewer": ("a.csv", "Hello,Hi,Yo\nHello,Hi\n", "line 2: the row has 2 cells, but the first row has 3"),
    "tabs": ("a.tsv", "a\tb\na\tb\tc\n", r"line 2: the row has 3 cells, but the first row has 2 \(separated by tabs"),
    "later": (
        "a.txt",
        "a||b\n" * 30 + "c||d||e\n",
        r"line 31: the row has 3 cells, but the first row has 2 \(separated by \|\|",
    ),
}


@pytest.mark.parametrize(("name", "content", "message"), WIDTHS.values(), ids=WIDTHS)
def test_rows_by_number_have_the_same_number_of_cells(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message):
        TripletReader(columns=[0, 1]).get_dataset(_write(tmp_path / name, content))


def test_empty_cells_at_the_end_are_none_too_many(tmp_path):
    path = _write(tmp_path / "a.csv", "A,B,,\nC,D\nE,F,,,,\n")
    assert TripletReader(columns=[0, 1]).get_dataset(path)["anchor"][:] == ["A", "C", "E"]


@pytest.mark.parametrize("header", ["sentence1\tsentence2\tscore", "text\tlabel\tother", "Sentence_A\tsentence_B\tx"])
def test_a_header_is_no_row(tmp_path, caplog, header):
    path = _write(tmp_path / "a.tsv", f"{header}\nA dog.\tA cat.\t1\n")
    with caplog.at_level(logging.WARNING):
        assert _sentences(path, column=0) == ["A dog."]
    assert any("a.tsv, line 1" in message and "skipped the header" in message for message in caplog.messages)


@pytest.mark.parametrize("index", [False, True])
@pytest.mark.parametrize(("name", "separator"), [("a.csv", ","), ("a.tsv", "\t")])
def test_the_numbers_that_pandas_writes_are_a_header(tmp_path, caplog, name, separator, index):
    rows = [["A dog.", "A hound.", 4.5], ["A cat.", "A bird.", 0.5]]
    pandas.DataFrame(rows).to_csv(tmp_path / name, sep=separator, index=index)
    columns = [0 + index, 1 + index]
    triplets = TripletReader(columns=columns).get_dataset(tmp_path / name)
    assert triplets.to_dict() == {"anchor": ["A dog.", "A cat."], "positive": ["A hound.", "A bird."]}
    assert any(f"{name}, line 1: skipped the header" in message for message in caplog.messages)
    assert load_sts(tmp_path / name, columns=[*columns, 2 + index]).scores == [4.5, 0.5]


def test_a_row_with_a_label_is_no_header(tmp_path):
    path = _write(tmp_path / "a.tsv", "A dog.\tA cat.\tcontradiction\nA.\tB.\tentailment\n")
    assert _sentences(path, column=0) == ["A dog.", "A."]


TEXTS = {
    "gb18030": ("gbk", "一个男人在弹吉他。\n两只狗在公园里跑。\n他们说这是我们的国家。\n"),
    "big5": ("big5", "一個男人在彈吉他。\n兩隻狗在公園裡跑。\n他們說這是我們的國家。\n"),
    "cp932": ("shift_jis", "男の人がギターを弾いています。\n二匹の犬が公園を走っている。\n"),
    "euc_jp": ("euc_jp", "男の人がギターを弾いています。\n二匹の犬が公園を走っている。\n"),
    "cp949": ("euc_kr", "남자가 기타를 연주하고 있다.\n두 마리의 개가 공원에서 달린다.\n"),
    "cp1251": ("cp1251", "Мужчина играет на гитаре.\nДве собаки бегут в парке.\n"),
    "koi8_r": ("koi8_r", "Мужчина играет на гитаре.\nДве собаки бегут в парке.\n"),
    "cp1252": ("latin-1", "Le garçon a mangé à la fenêtre.\nDie Männer hören Musik über Köln.\n"),
}


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.csv", "a.jsonl"])
@pytest.mark.parametrize(("fits", "written", "text"), [(fits, *rest) for fits, rest in TEXTS.items()], ids=TEXTS)
def test_the_encoding_that_the_bytes_fit_is_named_and_taken(tmp_path, name, fits, written, text):
    lines = text.splitlines()
    content = {
        "a.csv": "text\n" + text,
        "a.jsonl": "\n".join(json.dumps({"text": line}, ensure_ascii=False) for line in lines),
    }.get(name, text)
    path = _write(tmp_path / name, content, written)
    with pytest.raises(ValueError, match=r"a\..*line \d, byte \d+: not UTF-8") as error:
        _sentences(path)
    assert re.search(rf"its bytes fit {fits} \([\w ,-]+\); pass encoding='{fits}'", str(error.value))  # and no other
    assert "LATIN1" not in str(error.value)
    assert _sentences(path, encoding=fits) == lines


@pytest.mark.parametrize(("written", "fits"), [("gbk", "gb18030"), ("big5", "big5"), ("cp932", "cp932")])
def test_the_encoding_of_real_sentences(shared, written, fits):
    """Also of a single one, that one is among those named."""
    if written == "gbk":
        lines = load_sts(shared / "sts/zh/STSB-dev.tsv").sentences1[:300]
    else:
        lines = TEXTS[fits][1].splitlines()
    encoded = [line.encode(written, errors="ignore") for line in lines]
    assert list(fitting_encodings(encoded)) == [fits]
    long = [line for line in encoded if len(line) > 20]
    assert sum(fits in fitting_encodings([line]) for line in long) > 0.95 * len(long)


def test_scored_pairs_in_another_encoding(tmp_path):
    path = _write(tmp_path / "a.txt", "sentence1\tsentence2\tscore\n一只狗\t两只狗\t3\n", "gbk")
    assert load_sts(path, encoding="gbk").sentences2 == ["两只狗"]


def test_utf8_that_is_damaged_is_no_other_encoding(tmp_path):
    path = _write(tmp_path / "a.txt", "一个男人\n在弹吉他\n".encode() + "他们".encode()[:-1])
    with pytest.raises(ValueError, match="line 3, byte 4: not UTF-8.*this line is damaged") as error:
        _sentences(path)
    assert "gb18030" not in str(error.value)


def test_utf8_under_another_encoding_is_said(tmp_path, caplog):
    path = _write(tmp_path / "a.txt", "café\n")
    _sentences(path, encoding="latin-1")
    assert f"The first lines of {path} are valid UTF-8, but the file is read as latin-1" in caplog.messages


@pytest.mark.parametrize("encoding", [None, "utf-8", "UTF8", "utf-8-sig"])
@pytest.mark.parametrize(
    "content", ["sentence,label\nA dog.,1\n", '{"sentence": "A dog."}\n', '[{"sentence": "A dog."}]']
)
def test_a_byte_order_mark_hides_no_table(tmp_path, content, encoding):
    path = _write(tmp_path / "a.txt", content.encode("utf-8-sig"))
    assert _sentences(path, encoding=encoding) == ["A dog."]


@pytest.mark.parametrize(
    ("encoding", "message"),
    [("klingon", "not a text encoding"), ("base64", "not a text encoding"), ("utf-16", "iconv -f UTF-16")],
)
def test_an_encoding_that_cannot_be_read(encoding, message):
    with pytest.raises(ValueError, match=message):
        SentenceReader(encoding=encoding)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "xml"}, "format='xml' is unknown: choose lines, csv, tsv or jsonl"),
        ({"format": "lines", "delimiter": ","}, "leave delimiter= out"),
        ({"delimiter": ""}, "cannot separate cells"),
        ({"delimiter": "\n"}, "cannot separate cells"),
        ({"delimiter": "||", "quoting": csv.QUOTE_MINIMAL}, "quoting= needs a delimiter of one character"),
        ({"format": "lines", "quoting": csv.QUOTE_MINIMAL}, "no cells in quotes: leave quoting= out"),
        ({"format": "jsonl", "quoting": csv.QUOTE_ALL}, "no cells in quotes: leave quoting= out"),
        ({"quoting": 17}, "quoting=17 is unknown: pass csv.QUOTE_MINIMAL if"),
        ({"quoting": "none"}, "quoting='none' is unknown: .* or csv.QUOTE_NONE if"),
    ],
)
def test_formats_that_do_not_go_together(options, message):
    with pytest.raises(ValueError, match=message):
        TripletReader(**options)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", '"A dog."\n', "a.txt: lines and JSON objects have no cells in quotes: leave quoting= out"),
        ("b.txt", '{"sentence": "A dog."}\n', "b.txt: lines and JSON objects have no cells in quotes"),
        ("c.jsonl", '{"sentence": "A dog."}\n', "c.jsonl: lines and JSON objects have no cells in quotes"),
        ("d.txt", "A||B\nC||D\n", "d.txt: quoting= needs a delimiter of one character"),
    ],
)
def test_quotes_are_for_cells(tmp_path, name, content, message):
    path = _write(tmp_path / name, content)
    with pytest.raises(ValueError, match=message):
        _sentences(path, quoting=csv.QUOTE_MINIMAL)
    assert _sentences(path, quoting=csv.QUOTE_NONE, column=0 if name == "d.txt" else None)


def test_quotes_of_cells_between_bars_are_ordinary_characters(tmp_path):
    """No option reads them otherwise, so no message may name one."""
    path = _write(tmp_path / "a.txt", 'A||"B ""c"" d"\nE||F\n')
    assert _sentences(path, column=1) == ['"B ""c"" d"', "F"]
    _write(path, "A||B\nC||D||E\n")
    with pytest.raises(ValueError, match=r"line 2: the row has 3 cells.*remove \|\| from the texts") as error:
        _sentences(path, column=0, delimiter="||")
    assert "quoting" not in str(error.value)


def test_parquet_files_and_data_sets_have_one_format(tmp_path):
    Dataset.from_dict({"text": ["A"]}).to_parquet(tmp_path / "train.parquet")
    for source in (tmp_path / "train.parquet", HubDataset(str(tmp_path))):
        with pytest.raises(ValueError, match="is not a text file .*: leave encoding='gbk' out"):
            _sentences(source, encoding="gbk")


ARRAYS = {
    "empty": ("[]", "nothing to read"),
    "texts": ('["a"]', "line 1: expected one JSON object per line, or an array of objects, got '\"a\"'"),
    "cut": ('[\n{"text": "a"},\n{"text": "b"', "line 3: not JSON"),
    "not closed": ('[\n{"text": "a"}\n', r"line 3: not JSON, expected ',' or the end of the array"),
    "no comma": ('[\n{"text": "a"}\n{"text": "b"}]', r"line 3: not JSON, expected ',' or the end of the array"),
    "behind": ('[{"text": "a"}]\n{"text": "b"}', r"line 2: not JSON, expected ',' or the end of the array"),
    "bad cell": ('[\n{"text": "a"},\n\n{"text": {}}]', "line 4, column 'text': expected text"),
    "constant": ('[{"text": "a", "x": NaN}]', "NaN is not a JSON value"),
}


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.json.gz"])
@pytest.mark.parametrize(("content", "message"), ARRAYS.values(), ids=ARRAYS)
def test_damaged_arrays(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message):
        _sentences(_write(tmp_path / name, content))


def test_a_large_array_is_refused_before_it_fills_the_memory(tmp_path):
    path = _write(tmp_path / "a.json", json.dumps([{"text": "word " * 10}] * 100))
    assert len(_sentences(path, max_row_bytes=400)) == 100
    with pytest.raises(ValueError, match=r"a JSON array of more than 3,200 bytes.*jq -c"):
        _sentences(path, max_row_bytes=200)
    with pytest.raises(ValueError, match="a.json, line 1: longer than 20 bytes"):
        _sentences(_write(path, json.dumps([{"text": "word " * 10}])), max_row_bytes=20)


def test_lists_of_positives_and_negatives(tmp_path):
    """FlagEmbedding's layout."""
    rows = [
        {"query": "Q", "pos": ["P1", "P2"], "neg": ["N1", "N2"]},
        {"query": "R", "pos": ["P3"], "neg": ["N3", "N4"]},
        {"query": "S", "pos": [], "neg": ["N3", "N4"]},
    ]
    expected = [["Q", "P1", "N1", "N2"], ["Q", "P2", "N1", "N2"], ["R", "P3", "N3", "N4"]]
    path = _write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))
    reader = TripletReader(columns=["query", "pos", "neg"])
    dataset = reader.get_dataset(path)
    assert dataset.column_names == ["anchor", "positive", "negative_1", "negative_2"]
    assert [list(row.values()) for row in dataset] == expected
    assert reader.skipped == {"with an empty 'pos'": 1}
    Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    assert [row.texts for row in reader.get_examples(tmp_path / "a.parquet")] == expected


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"query": "Q", "pos": ["P"], "neg": ["N"]},
            r"line 2: the row has 1 negative\(s\), but the first row has 2.*; shorten .*, or .* one column of lists,",
        ),
        ({"query": "Q", "pos": ["P"], "neg": [["N"], "M"]}, "line 2, column 'neg': expected text or a number"),
        ({"query": ["Q"], "pos": ["P"], "neg": ["N", "M"]}, "line 2, column 'query': expected text or a number"),
    ],
)
def test_lists_that_do_not_fit(tmp_path, row, message):
    first = {"query": "Q", "pos": ["P"], "neg": ["N1", "N2"]}
    path = _write(tmp_path / "a.jsonl", f"{json.dumps(first)}\n{json.dumps(row)}\n")
    reader = TripletReader(columns=["query", "pos", "neg"])
    for read in (reader.get_examples, reader.get_dataset):
        with pytest.raises(ValueError, match=message):
            read(path)


def test_true_and_false_are_scores(tmp_path):
    rows = [{"sentence1": "A", "sentence2": "B", "score": True}, {"sentence1": "A", "sentence2": "C", "score": False}]
    json_file = _write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))
    table = _write(tmp_path / "a.csv", "sentence1,sentence2,score\nA,B,True\nA,C,False\n")
    for path in (json_file, table):
        assert load_sts(path).scores == [1.0, 0.0]
    with pytest.raises(ValueError, match="column 'score': expected text or a number, got True"):
        _sentences(json_file, column="score")


def test_doubled_quotes_of_a_tsv_file_are_refused_until_told(tmp_path):
    """As pandas writes them."""
    sentences = ["Plain.", 'He said "hi" and left.', 'A "b".']
    frame = Dataset.from_dict({"sentence": sentences, "id": [1, 2, 3]}).to_pandas()
    path = tmp_path / "a.tsv"
    frame.to_csv(path, sep="\t", index=False)
    with pytest.raises(ValueError, match=r"a.tsv, line 3: .* doubled quotes.*quoting=csv.QUOTE_MINIMAL"):
        _sentences(path)
    assert _sentences(path, quoting=csv.QUOTE_MINIMAL) == sentences
    assert _sentences(path, quoting=csv.QUOTE_NONE)[1] == '"He said ""hi"" and left."'
    # A quote that a csv writer would have doubled comes first: here quotes are ordinary characters.
    path = _write(tmp_path / "b.tsv", 'sentence\tid\nA "b".\t1\n"The battery""s state"\t2\n')
    assert _sentences(path) == ['A "b".', '"The battery""s state"']


@pytest.mark.parametrize(("name", "column"), [("a.tsv", "sentence"), ("a.txt", "sentence"), ("a.tsv", 0)])
def test_a_first_row_in_quotes_is_refused_until_told(tmp_path, name, column):
    """As R writes it without the names of rows."""
    header = '"sentence"\t"id"\n' if column else ""
    path = _write(tmp_path / name, f'{header}"A dog runs."\t"1"\n"A cat sleeps."\t"2"\n')
    with pytest.raises(ValueError, match=rf"{name}, line 1: all cells .*quoting=csv.QUOTE_MINIMAL .*csv.QUOTE_NONE"):
        _sentences(path, column=column)
    assert _sentences(path, column=column, quoting=csv.QUOTE_MINIMAL) == ["A dog runs.", "A cat sleeps."]
    told = column if column == 0 else '"sentence"'
    assert _sentences(path, column=told, quoting=csv.QUOTE_NONE) == ['"A dog runs."', '"A cat sleeps."']


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
def test_cells_in_quotes_and_cells_without_are_read(tmp_path, quoting):
    path = _write(tmp_path / "a.csv", 'sentence,"score"\n"A dog, running.",NA\nA cat.,2.0\n')
    assert TripletReader(columns=["sentence", "score"], quoting=quoting).get_dataset(path).to_list() == [
        {"anchor": "A dog, running.", "positive": "NA"},
        {"anchor": "A cat.", "positive": "2.0"},
    ]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_a_return_in_a_cell_is_removed_as_told(tmp_path, name):
    separator = {"a.csv": ",", "a.tsv": "\t"}[name]
    path = _write(tmp_path / name, f"sentence{separator}id\r\nA dog \rruns.{separator}1\r\n")
    with pytest.raises(ValueError, match=r"line 2: an unquoted cell contains the line end \\r; remove it") as error:
        _sentences(path)
    assert "quoting=" not in str(error.value)
    assert ("put quotes around the cell" in str(error.value)) == (name == "a.csv")
    content = path.read_bytes()
    path.write_bytes(content.replace(b"\r", b""))
    assert _sentences(path) == ["A dog runs."]
    if name == "a.csv":
        path.write_bytes(content.replace(b"A dog \rruns.", b'"A dog \rruns."'))
        assert _sentences(path) == ["A dog \rruns."]


@pytest.mark.parametrize("name", [r"C:\models\x", r"models\x", "C:/x", r"\\server\share"])
def test_a_path_of_windows_is_no_name_on_the_hub(name):
    with pytest.raises(FileNotFoundError) as error:
        HubDataset(name).load()
    assert str(error.value) == f"there is no folder {name}"


FLAG_ROWS = [
    {
        "query": f"query guitar {row}",
        "pos": [f"positive {row}", f"other positive {row}"],
        "neg": [f"negative {row}", f"other negative {row}"],
        "pos_scores": [0.9, 0.8],
        "neg_scores": [0.1, 0.2],
        "prompt": "Represent this sentence for searching relevant passages: ",
        "type": "normal",
    }
    for row in range(4)
]
FLAG_RECORDS = [
    (f"query guitar {row}", f"{positive} {row}", f"negative {row}", f"other negative {row}")
    for row in range(4)
    for positive in ("positive", "other positive")
]
TRIPLETS = [(f"anchor guitar {row}", f"positive {row}", f"negative {row}") for row in range(4)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "content", "records"),
    [
        ("flag.jsonl", "\n".join(map(json.dumps, FLAG_ROWS)), FLAG_RECORDS),
        ("minedHN.txt", "\n".join(map(json.dumps, FLAG_ROWS)), FLAG_RECORDS),
        ("cnsd.csv", _joined(",", [("origin", "entailment", "contradiction"), *TRIPLETS]), TRIPLETS),
        (
            "cnsd.txt",
            "\n".join(
                json.dumps(dict(zip(("origin", "entailment", "contradiction"), row, strict=True))) for row in TRIPLETS
            ),
            TRIPLETS,
        ),
    ],
)
def test_published_layouts_are_trained_on_without_an_option(tmp_path, tiny_bert, monkeypatch, name, content, records):
    """And scored pairs with the columns text1, text2, label evaluate what comes of it."""
    pairs = [("A man.", "A woman.", "0"), ("A dog runs.", "Two dogs run.", "1"), ("A cat.", "The train.", "0")]
    path = _write(tmp_path / name, content)
    dev = _write(tmp_path / "dev.tsv", _joined("\t", [("text1", "text2", "label"), *pairs]))
    given = []

    class Recording(SimCSETrainer):
        def __init__(self, *args, train_dataset, **options):
            given.append(train_dataset)
            super().__init__(*args, train_dataset=train_dataset, **options)

    monkeypatch.setattr("st_simcse.cli.train.SimCSETrainer", Recording)
    words = ["--model_name_or_path", tiny_bert, "--train_file", str(path), "--dev_file", str(dev), "--use_cpu"]
    words += ["--output_dir", str(tmp_path / "out"), "--report_to", "none", "--max_steps", "2", "--save_strategy", "no"]
    results = train.run(words)
    assert [tuple(row.values()) for row in given[0]] == records
    assert given[0].column_names[:2] == ["anchor", "positive"]
    model = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    first, second = (model.encode([pair[side] for pair in pairs], convert_to_tensor=True) for side in (0, 1))
    cosines = torch.nn.functional.cosine_similarity(first, second).tolist()
    assert results["after"]["dev"] == pytest.approx(spearmanr(cosines, [0, 1, 0]).statistic)


def test_the_command_line_says_how_files_are_read(tmp_path, monkeypatch):
    """Each of the files in another way, down to what is trained and evaluated on."""
    rows = [("一只狗", "两只狗", "4"), ("一只猫", "两只猫", "1")]
    train = _write(tmp_path / "train.txt", "一只狗||两只狗\n" * 2, "gbk")
    dev = _write(tmp_path / "dev.csv", _joined("\t", [HEADER, *rows]))
    test = _write(tmp_path / "test.tsv", 'sentence1\tsentence2\tscore\n"A ""b""."\tB\t1\n"C ""d""."\tD\t2\n', "big5")
    words = ["--train_file", str(train), "--train_delimiter", "||", "--train_encoding", "gbk", "--columns", "0", "1"]
    words += ["--dev_file", str(dev), "--dev_delimiter", r"\t"]
    words += ["--test_file", str(test), "--test_encoding", "big5", "--test_quoting", "minimal"]
    found = {}

    def build(*args, **options):
        raise ValueError("as far as this")

    def load(source, **options):
        found[source] = load_sts(source, **options)
        return found[source]

    monkeypatch.setattr("st_simcse.cli.train.load_sts", load)
    monkeypatch.setattr("st_simcse.cli.train.build_model", build)
    with pytest.raises(SystemExit, match="as far as this"):
        cli.main(["train", "--model_name_or_path", "absent", "--output_dir", str(tmp_path / "out"), *words])
    assert found[str(dev)].sentences2 == ["两只狗", "两只猫"]
    assert found[str(test)].sentences1 == ['A "b".', 'C "d".']


@pytest.mark.parametrize("option", ["--dev_encoding", "--train_delimiter"])
def test_options_of_a_file_that_is_not_there_are_refused(tmp_path, option):
    words = ["--model_name_or_path", "absent", "--train_dataset", str(tmp_path), "--output_dir", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match=f"{option} needs --"):
        cli.main(["train", *words, option, "gbk"])


def test_a_single_line_of_cells_has_nothing_below_it(tmp_path):
    path = _write(tmp_path / "a.txt", "One\tsentence.\n")
    with pytest.raises(
        ValueError, match=r"a.txt: there is nothing to read below the header .* separated by tabs\);.*format='lines'"
    ):
        _sentences(path)
    assert _sentences(path, format="lines") == ["One\tsentence."]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--format", "lines"], ["一\t1", "二\t2"]),
        (["--column", "0"], ["一", "二"]),
        (["--column", "1", "--delimiter", r"\t"], ["1", "2"]),
    ],
)
def test_the_command_line_says_how_a_corpus_is_read(tmp_path, options, expected):
    path = _write(tmp_path / "corpus.txt", "一\t1\n二\t2\n", "gbk")
    (corpus,) = parse("index", ["--corpus", str(path), "--encoding", "gbk", *options], CorpusArguments, example="")
    assert corpus.read(drop_duplicates=False)["sentence"][:] == expected


def test_a_table_with_tabs_in_every_line_is_trained_on_as_lines_when_told(tmp_path):
    path = _write(tmp_path / "a.txt", "One\tlast.\nTwo\tlast.\n")
    _, args, _, _ = parse_train(
        ["--model_name_or_path", "m", "--train_file", str(path), "--train_format", "lines", "--output_dir", "o"]
    )
    assert _reader(str(path), args).get_dataset(path)["sentence"][:] == ["One\tlast.", "Two\tlast."]


def test_classes_and_queries_of_other_formats(tmp_path):
    path = _write(tmp_path / "a.csv", "一只狗||动物\n一只猫||动物\n一辆车||物\n", "gbk")
    how = {"delimiter": "||", "encoding": "gbk", "columns": [0, 1]}
    assert load_classes(path, k=1, **how).classes == ["动物", "动物", "物"]
    assert sorted(load_retrieval(path, batch_size=2, **how).corpus) == ["动物", "物"]


# By command: its words, the option that names a file, and what the file's options begin with.
_COMPARE = ["compare", "--model_name_or_path", "absent", "--train_file", ".", "--recipe", "a:"]
_PLOT = ["plot", "--model", "absent"]
_TRAIN = ["train", "--model_name_or_path", "absent", "--output_dir", "out"]
OF_TEXTS = {
    "encode": (["encode", "--model", "absent", "--output_file", "e.npy"], "--corpus", "--"),
    "index": (["index", "--model", "absent", "--output_dir", "index"], "--corpus", "--"),
    "search": (["search", "--model", "absent", "--index", "."], "--query_file", "--"),
    "serve": (["serve", "--model", "absent"], "--corpus", "--"),
    "adapt": (["adapt", "--model_name_or_path", "absent", "--output_dir", "out"], "--corpus", "--"),
    "plot a map": ([*_PLOT, "--map_file", "m.png"], "--corpus", "--"),
}
OF_TABLES = {
    "plot pairs": ([*_PLOT, "--histogram_file", "m.png"], "--pairs_file", "--pair_"),
    "dev": ([*_TRAIN, "--train_file", "good.txt"], "--dev_file", "--dev_"),
    "test": ([*_TRAIN, "--train_file", "good.txt"], "--test_file", "--test_"),
    "knn": (_COMPARE, "--knn_dev_file", "--knn_"),
    "retrieval": (_COMPARE, "--retrieval_test_file", "--retrieval_"),
}
TRAINING = {"train": (_TRAIN, "--train_file", "--train_")}


@pytest.fixture
def told(tmp_path, monkeypatch):
    """A function of a command, the option for its file, that file's name and content: the command's message."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("st_simcse.search.page.check_port", lambda port: None)
    _write(tmp_path / "good.txt", "A dog runs.\nA cat sleeps.\n")

    def message(words, option, name, content, encoding="utf-8"):
        _write(tmp_path / name, content, encoding)
        with pytest.raises(SystemExit) as error:
            cli.main([*words, option, name])
        return str(error.value)

    return message


@pytest.mark.parametrize("command", [*OF_TEXTS, *OF_TABLES, *TRAINING])
def test_each_command_names_its_own_option_for_the_encoding(told, command):
    words, option, prefix = (OF_TEXTS | OF_TABLES | TRAINING)[command]
    said = told(words, option, "a.tsv", "text\tlabel\n我的狗在公园里跑。\t1\n", "gbk")
    remedies = f"pass {prefix}encoding gb18030, or convert it with iconv -f GB18030 -t UTF-8"
    assert said.endswith(f"its bytes fit gb18030 (Chinese, GBK); {remedies}")


@pytest.mark.parametrize("command", [*OF_TEXTS, *OF_TABLES, *TRAINING])
def test_each_command_names_its_own_option_for_the_format(told, command):
    words, option, prefix = (OF_TEXTS | OF_TABLES | TRAINING)[command]
    said = told(words, option, "a.csv", '{"text": "a", "b": 1}\n' * 3)
    # --train_format is what the rows are for, so that there the name of the file is all that helps.
    remedies = "rename the file to .jsonl" + ("" if command == "train" else f", or pass {prefix}format jsonl")
    assert said.endswith(f"the lines are JSON objects, not cells; {remedies}")


@pytest.mark.parametrize("command", [*OF_TEXTS, *OF_TABLES, *TRAINING])
def test_lines_are_offered_where_sentences_are_read(told, command):
    words, option, prefix = (OF_TEXTS | OF_TABLES | TRAINING)[command]
    said = told(words, option, "a.txt", "a\tb\tc\nd\te\nf\tg\th\n")
    lines = "" if command in OF_TABLES else f"pass {prefix}format lines to read each line as a sentence, or "
    assert said.endswith(f"may hold sentences or a table; {lines}pass {prefix}delimiter '\\t' to read it as a table")


@pytest.mark.parametrize("command", OF_TEXTS)
def test_commands_that_read_sentences_offer_no_other_reader(told, command):
    words, option, _ = OF_TEXTS[command]
    said = told(words, option, "a.csv", "anchor,positive,negative\nA,B,C\n")
    named = "name the columns to read with --column, as in the header or, if the file has none, by number from 0"
    assert said.endswith(f"found ['anchor', 'positive', 'negative']; {named}")
    assert told(words, option, "b.csv", "A dog runs.,x.\n" * 2).endswith(
        "no header; pass --column 0, or other numbers from 0, to read it without a header"
    )


def test_training_names_the_options_of_train(told):
    words, option, _ = TRAINING["train"]
    said = told(words, option, "a.csv", "A dog runs.,A hound runs.,A cat sleeps.\n" * 2)
    assert said.endswith("pass --columns 0 1 2, or other numbers from 0, to read it without a header")
    said = told(words, option, "b.csv", "long name\nA dog runs.\n")
    assert said.endswith("; read its only column with --train_format sentences --columns 'long name'")
    said = told(words, option, "c.txt", "anchor,text\n")
    assert said.endswith("if this line is not a header, or read each line as a sentence with --train_format lines")
    said = told(words, option, "d.tsv", 'anchor\tpositive\n"A ""b""."\tB\n')
    assert said.endswith(
        "pass --train_quoting minimal if the file's cells are quoted, or --train_quoting none if quotes are ordinary "
        "characters"
    )
    said = told([*words, "--train_format", "lines", "--train_delimiter", ","], option, "e.txt", "A\n")
    assert said.endswith("--train_format lines has no cells to separate: leave --train_delimiter out")


def test_labels_that_may_be_scores_are_named_as_columns(told):
    """And nobody is sent to a reader of training data."""
    table = "text1\ttext2\tlabel\nA\tB\t0\nA\tC\t1\nA\tD\t2\n"
    words, option, _ = OF_TABLES["dev"]
    said = told(words, option, "dev.tsv", table)
    assert said.endswith("neutral and contradiction; pass --dev_columns text1 text2 label if they are scores")
    with pytest.raises(ValueError, match=r"pass columns=\['text1', 'text2', 'label'\] if they are scores$"):
        load_sts("dev.tsv")
    assert load_sts("dev.tsv", columns=["text1", "text2", "label"]).scores == [0, 1, 2]


@pytest.mark.parametrize(
    ("remedy", "options", "expected"),
    [
        ("pass columns=['a b', 2]", {"columns": "--columns"}, "pass --columns 'a b' 2"),
        ("pass columns=[0, 1]", {"columns": "--column --class_column"}, "pass --column 0 --class_column 1"),
        ("pass columns=", {"columns": "--column --class_column"}, "pass --column and --class_column"),
        ("pass quoting=csv.QUOTE_NONE", {"quoting": "--quoting"}, "pass --quoting none"),
        ('pass delimiter="\'"', {"delimiter": "--delimiter"}, "pass --delimiter ''\"'\"''"),
        ("pass format='lines'", {"format='lines'": "--train_format lines"}, "pass --train_format lines"),
        ("pass format='csv'", {"format='lines'": "--train_format lines"}, None),
        ("pass allow_partial=True", {"allow_partial": "--allow_partial"}, "pass --allow_partial"),
        (
            "AReader(column='x') reads it",
            {"AReader": "--kind a", "column": "--columns"},
            "--kind a --columns x reads it",
        ),
        ("AReader(column='x') reads it", {"AReader": "--kind a"}, None),
        ("raise max_row_bytes=", {}, None),
        ("mend it", {}, "mend it"),
    ],
)
def test_a_remedy_in_the_words_of_the_command_line(remedy, options, expected):
    with pytest.raises(DataError) as error, named_options(**options):
        raise DataError("the cell 'columns= x'", remedy)
    assert str(error.value) == "the cell 'columns= x'" + (f"; {expected}" if expected else "")


def test_queries_are_read_as_the_command_line_says(tmp_path, monkeypatch, capsys):
    path = _write(tmp_path / "queries.txt", "狗\ttest\n猫\ttrain\n狗\ttest\n", "gbk")
    asked = []

    class Found:
        def search(self, queries, *others):
            asked.extend(queries)
            return [[{"score": 1.0, "text": query}] for query in queries]

    monkeypatch.setattr("st_simcse.search.searcher.Searcher.load", lambda *given: Found())
    words = ["search", "--model", "m", "--index", ".", "--query_file", str(path), "--encoding", "gbk"]
    cli.main([*words, "--format", "lines"])
    cli.main([*words, "--column", "0"])
    assert asked == ["狗\ttest", "猫\ttrain", "狗\ttest", "狗", "猫", "狗"]
    with pytest.raises(SystemExit, match="--encoding needs --query_file: pass both, or neither"):
        cli.main(["search", "--model", "m", "--index", ".", "--queries", "a", "--encoding", "gbk"])


def test_the_page_searches_a_corpus_that_is_read_as_told(tmp_path, monkeypatch):
    path = _write(tmp_path / "corpus.txt", "text||split\n狗||test\n猫||train\n狗||test\n", "gbk")
    given = []

    def cached(model, corpus, cache_dir):
        given.extend(corpus["sentence"])
        raise ValueError("as far as this")

    monkeypatch.setattr("st_simcse.search.page.check_port", lambda port: None)
    monkeypatch.setattr("st_simcse.models.checkpoints.load_model", lambda name: tiny_model(["狗"]))
    monkeypatch.setattr("st_simcse.search.searcher.cached_searcher", cached)
    words = ["serve", "--model", "m", "--corpus", str(path), "--encoding", "gbk", "--split", "test"]
    with pytest.raises(SystemExit, match="as far as this"):
        cli.main(words)
    assert given == ["狗"]
    with pytest.raises(SystemExit, match="--encoding needs --corpus: pass both, or neither"):
        cli.main(["serve", "--model", "m", "--index", ".", "--encoding", "gbk"])


def test_plots_are_of_files_that_are_read_as_told(tmp_path):
    path = _write(tmp_path / "a.txt", "test||狗||犬||x\ntrain||猫||貓||y\n", "gb18030")
    words = ["--model", "m", "--corpus", str(path), "--map_file", "m.png", "--column", "1", "--class_column", "3"]
    words += ["--pairs_file", str(path), "--histogram_file", "h.png", "--pair_columns", "1", "2"]
    words += ["--pair_delimiter", "||", "--pair_encoding", "gb18030", "--pair_split", "train"]
    words += ["--delimiter", "||", "--encoding", "gb18030", "--split", "test"]
    args, file, pairs = parse("plot", words, plot.PlotArguments, FileArguments, plot.PairArguments, example="")
    assert plot._corpus(args, file) == (["狗"], ["x"])
    assert plot._pairs(args, pairs) == [["猫"], ["貓"]]
    for option, needed in (("--delimiter", "--corpus"), ("--pair_encoding", "--pairs_file")):
        other = ["--pairs_file", "a", "--histogram_file", "h.png"] if needed == "--corpus" else ["--corpus", "a"]
        other += ["--map_file", "m.png"] if needed == "--pairs_file" else []
        with pytest.raises(SystemExit, match=f"{option} needs {needed}: pass both, or neither"):
            cli.main(["plot", "--model", "m", *other, option, "||"])


SICK = (
    "pair_ID\tsentence_A\tsentence_B\tentailment_label\trelatedness_score\tSemEval_set\n"
    "1\tA dog runs.\tA hound runs.\tNEUTRAL\t4.5\tTRAIN\n"
    "2\tA cat sleeps.\tA dog runs.\tNEUTRAL\t1.5\tTEST\n"
    "3\tTwo men talk.\tTwo men speak.\tENTAILMENT\t4.9\tTEST\n"
    "4\tA cat sleeps.\tA cat is asleep.\tENTAILMENT\t5\tTRIAL\n"
    "5\tA man sings.\tA car stops.\tNEUTRAL\t1.1\tTEST\n"
)
SICK_TEST = [("A cat sleeps.", "A dog runs."), ("Two men talk.", "Two men speak."), ("A man sings.", "A car stops.")]
SICK_SCORES = [1.5, 4.9, 1.1]


def _spearman(folder, pairs, scores):
    model = SentenceTransformer(str(folder), device="cpu")
    first, second = (model.encode([pair[side] for pair in pairs], convert_to_tensor=True) for side in (0, 1))
    cosines = torch.nn.functional.cosine_similarity(first, second).tolist()
    return spearmanr(cosines, scores).statistic


def test_the_test_split_of_sick_is_evaluated(tmp_path, tiny_bert):
    """As its authors publish it, with all three splits in one file."""
    corpus, sick = _write(tmp_path / "a.txt", "A dog.\nA cat.\n" * 4), _write(tmp_path / "SICK.txt", SICK)
    words = ["--model_name_or_path", tiny_bert, "--train_file", str(corpus), "--test_file", str(sick), "--use_cpu"]
    words += ["--output_dir", str(tmp_path / "out"), "--report_to", "none", "--max_steps", "1"]
    results = train.run([*words, "--test_split", "TEST"])
    expected = _spearman(tmp_path / "out", SICK_TEST, SICK_SCORES)
    assert results["after"]["SICK"] == pytest.approx(expected)
    _write(tmp_path / "SICKR-test.tsv", SICK)
    words = ["--model", str(tmp_path / "out"), "--sts_dir", str(tmp_path), "--tasks", "SICK-R", "--allow_partial"]
    scores = evaluate.run([*words, "--sts_split", "TEST"])
    assert scores[str(tmp_path / "out")]["SICK-R"] == pytest.approx(100 * expected)
    with pytest.raises(ValueError, match=r"earlier rows belong to 'TRAIN'; pass --sts_split to choose one, or write"):
        evaluate.run(words)


def test_sts_tables_are_read_as_told(tmp_path):
    rows = SICK.replace("\t", "||").replace("sentence_A", "sentence_甲")
    _write(tmp_path / "SICKR-test.tsv", rows, "gbk")
    evaluator = sts_evaluators(
        tmp_path,
        tasks=["SICK-R"],
        columns=["sentence_甲", "sentence_B", "relatedness_score"],
        allow_partial=True,
        split="test",
        delimiter="||",
        encoding="gbk",
    ).evaluators[0]
    assert list(zip(evaluator.sentences1, evaluator.sentences2, strict=True)) == SICK_TEST
    assert list(evaluator.scores) == SICK_SCORES


def test_sentevals_files_have_a_layout_of_their_own(tmp_path):
    folder = tmp_path / "STS/STS12-en-test"
    folder.mkdir(parents=True)
    for subset in SUBSETS["STS12"]:
        _write(folder / f"STS.input.{subset}.txt", "Une élève.\tUn café.\n", "cp1252")
        _write(folder / f"STS.gs.{subset}.txt", "1\n")
    read = {"tasks": ["STS12"], "allow_partial": True}
    with pytest.raises(ValueError, match="leave delimiter='x' and columns= and split='test' out"):
        sts_evaluators(tmp_path, **read, columns=[0, 1, 2], split="test", delimiter="x")
    with pytest.raises(ValueError, match="line 1, byte 5: not UTF-8 .* pass encoding='cp1252'"):
        sts_evaluators(tmp_path, **read)
    evaluator = sts_evaluators(tmp_path, **read, encoding="cp1252").evaluators[0]
    assert set(evaluator.sentences1) == {"Une élève."}


def test_comparisons_measure_on_files_that_are_read_as_told(tmp_path):
    classes = _write(tmp_path / "news.txt", "".join(f"dev||狗{row}||{row % 2}\n" for row in range(12)), "gbk")
    with classes.open("ab") as file:
        file.write("".join(f"test||猫{row}||{row % 2}\n" for row in range(13)).encode("gbk"))
    words = ["--knn_dev_file", str(classes), "--knn_dev_split", "dev", "--knn_columns", "1", "2"]
    words += ["--knn_test_file", str(classes), "--knn_test_split", "test", "--knn_delimiter", "||"]
    words += ["--knn_encoding", "gbk", "--retrieval_dev_file", str(classes), "--retrieval_dev_split", "dev"]
    words += ["--retrieval_columns", "2", "1", "--retrieval_delimiter", "||", "--retrieval_encoding", "gbk"]
    groups = parse("compare", words, compare.MeasureArguments, *compare.TABLES, example="")
    tests = {name: value for group in groups for name, value in vars(group).items()}
    dev, test, retrieval = (measure.evaluator for measure in runs.measures(tests))
    assert dev.texts == [f"狗{row}" for row in range(12)]
    assert test.texts == [f"猫{row}" for row in range(13)]
    assert test.classes == [str(row % 2) for row in range(13)]
    assert sorted(retrieval.queries) == ["0", "1"]
    for option, needed in (("sts_encoding", "--sts_dir"), ("retrieval_test_split", "--retrieval_test_file")):
        with pytest.raises(ValueError, match=f"--{option} needs {needed}: pass both, or neither"):
            runs.measures(tests | {option: "gbk"})


def test_a_stream_that_breaks_off_while_it_is_trained_on_names_the_option(tmp_path, tiny_bert):
    """It is read long after the options were."""
    path = _write(tmp_path / "a.txt", b"A dog runs.\nA cat sleeps.\n" * 4 + "我的狗在公园里跑。\n".encode("gbk"))
    words = ["train", "--model_name_or_path", tiny_bert, "--train_file", str(path), "--streaming", "--max_steps", "4"]
    words += ["--output_dir", str(tmp_path / "out"), "--report_to", "none", "--use_cpu"]
    with pytest.raises(SystemExit, match=r"line 9, byte 1: not UTF-8 .*; pass --train_encoding gb18030, or convert"):
        cli.main(words)


def test_options_of_text_files_are_refused_for_parquet_files_and_data_sets(tmp_path):
    Dataset.from_dict({"text": ["A"]}).to_parquet(tmp_path / "train.parquet")
    for source in (["--corpus", str(tmp_path / "train.parquet")], ["--dataset", str(tmp_path)]):
        with pytest.raises(SystemExit, match=r"is not a text file .*: leave --delimiter '\\t' and --quoting out$"):
            cli.main(
                ["encode", "--model", "m", "--output_file", "e.npy", *source, "--delimiter", "\\t", "--quoting", "none"]
            )
