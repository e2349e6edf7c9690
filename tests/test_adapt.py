"""`st-simcse adapt` on tiny models: what it finds, plans, tries, chooses and saves."""

import csv
import json
import math
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router

from st_simcse import build_model, load_sts
from st_simcse.budget import Pace, Share, parse_duration, share_budget, shown_duration
from st_simcse.choice import choose, noise
from st_simcse.cli import adapt, main, runs
from st_simcse.cli.adapt import plan as plan_module
from st_simcse.cli.adapt import report as report_module
from st_simcse.cli.adapt import trials as trials_module
from st_simcse.cli.compare import parse_comparison, train_all
from st_simcse.cli.inputs import identities
from st_simcse.corpus import generate_corpus
from st_simcse.data.corpus_profile import CorpusProfile, profile_corpus
from st_simcse.data.senteval import transfer_examples
from st_simcse.demo import tiny_model
from st_simcse.evaluation import STS_TASKS, TRANSFER_TASKS
from st_simcse.models.embed_once import embed_once
from st_simcse.models.model_profile import ModelProfile, profile_model
from st_simcse.report import Command, Heading, Paragraph, Picture, Table, as_html, as_markdown
from st_simcse.shortlist import safest, shortlist, start_model, training_length

SENTENCES = CorpusProfile(1000, 0, 80, 14, 0.02, "Latin")
PARAGRAPHS = CorpusProfile(1000, 0, 300, 50, 0.9, "Latin")
POOLED = ModelProfile(is_pooled=True, has_dropout=True, is_whitened=False, width=32, reads=64)
BARE = ModelProfile(is_pooled=False, has_dropout=True, is_whitened=False, width=32, reads=64)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (
            ["A dog runs.", "A cat sleeps on the couch.", "A dog runs."],
            CorpusProfile(3, 1, 11, 3, 0.0, "Latin"),
        ),
        (["两只狗在公园里跑。", "一个人在弹吉他！"], CorpusProfile(2, 0, 8, 8, 0.0, "Han")),
        (["今天天气很好。我们去公园跑步。然后我们回家吃饭。"], CorpusProfile(1, 0, 24, 24, 1.0, "Han")),
        (["Собака бежит. 3.5 км"], CorpusProfile(1, 0, 20, 4, 0.0, "Cyrillic")),
        (["犬が公園で走る。"], CorpusProfile(1, 0, 8, 8, 0.0, "Han")),
        (["いぬがはしる。"], CorpusProfile(1, 0, 7, 7, 0.0, "Kana")),
        (["123 456"], CorpusProfile(1, 0, 7, 2, 0.0, "none")),
        (
            ["It costs 3.50 dollars at the shop around the corner, he said. Then he went home with it again."],
            CorpusProfile(1, 0, 94, 19, 1.0, "Latin"),
        ),
        (["Hi there! " + "word " * 20], CorpusProfile(1, 0, 110, 22, 1.0, "Latin")),
        (["v. 1.5.2 of " + "word " * 20], CorpusProfile(1, 0, 112, 23, 1.0, "Latin")),
        (["A dog. A cat."], CorpusProfile(1, 0, 13, 4, 0.0, "Latin")),
    ],
)
def test_what_a_corpus_is(texts, expected):
    assert profile_corpus(iter(texts)) == expected


ENGLISH, CHINESE = "sentence-transformers/all-MiniLM-L6-v2", "BAAI/bge-small-zh-v1.5"
OTHER = "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2"


@pytest.mark.parametrize(
    ("texts", "name"),
    [
        (["Stocks fall for the third day.", "Nintendo to launch a new console"], ENGLISH),
        (["A man is playing a flute with two friends."], ENGLISH),
        (["苹果公司发布iPhone新品", "两只狗在公园里跑。"], CHINESE),
        (["犬が公園で走る。", "東京大学入学試験"], OTHER),
        (["Der Hund läuft durch den Park.", "Zwei Männer spielen im Garten Fußball."], OTHER),
        (["Le chien court dans le parc avec un ballon.", "Deux hommes jouent au football."], OTHER),
        (["De hond is in het park, of in de tuin van de buren, zei hij."], OTHER),
        (["Собака бежит по парку."], OTHER),
        (["123"], OTHER),
    ],
)
def test_the_language_chooses_the_start_model(texts, name):
    assert start_model(texts) == name


def test_paragraphs_are_a_quarter_of_the_texts():
    paragraph = "word " * 10 + "end. " + "word " * 10 + "end."
    assert profile_corpus(["A dog."] * 3 + [paragraph]).has_paragraphs
    assert not profile_corpus(["A dog."] * 4 + [paragraph]).has_paragraphs
    with pytest.raises(ValueError, match="there are no texts"):
        profile_corpus([])


def test_what_a_model_is(tmp_path, tiny_bert, static_model):
    tiny_model(["A dog."], pooling="mean").save_pretrained(str(tmp_path / "mean"))
    static_model.save_pretrained(str(tmp_path / "static"))
    for folder, pooling, is_pooled, has_dropout, width in (
        (tiny_bert, None, False, True, 32),
        (tiny_bert, "mean", False, True, 32),
        (tmp_path / "mean", None, True, True, 64),
        (tmp_path / "mean", "mean", True, True, 64),
        (tmp_path / "mean", "cls", False, True, 64),
        (tmp_path / "static", None, True, True, 32),
    ):
        found = profile_model(folder, pooling)[1]
        assert (found.is_pooled, found.has_dropout, found.width) == (is_pooled, has_dropout, width)


def test_a_model_without_a_known_width_is_refused(tiny_bert, monkeypatch):
    monkeypatch.setattr(SentenceTransformer, "get_embedding_dimension", lambda model: None)
    with pytest.raises(ValueError, match="the width of the embeddings is unknown.* a method get_embedding_dimension"):
        profile_model(tiny_bert, "mean")


def test_the_width_is_the_whole_one_of_a_model_that_truncates(tiny_bert, monkeypatch):
    target = "st_simcse.models.model_profile.load_pooled"
    monkeypatch.setattr(target, lambda *names: build_model(*names, truncate_dim=8))
    assert profile_model(tiny_bert, "mean")[1].width == 32


@pytest.mark.parametrize(
    ("corpus", "model", "teachers", "expected"),
    [
        (SENTENCES, POOLED, [], "before centred whitened-0.5 whitened-1 simcse whitened-simcse"),
        (PARAGRAPHS, POOLED, [], "before centred whitened-0.5 whitened-1 simcse crops whitened-simcse"),
        (SENTENCES, BARE, ["T"], "before centred whitened-0.5 whitened-1 simcse teacher whitened-simcse"),
    ],
)
def test_the_short_list(corpus, model, teachers, expected):
    assert " ".join(candidate.name for candidate in shortlist(corpus, model, teachers)) == expected


@pytest.mark.parametrize(
    ("texts", "model", "expected"),
    [
        (33, BARE, "before centred whitened-0.5 whitened-1 simcse whitened-simcse"),
        (32, POOLED, "before centred simcse whitened-simcse"),
        (32, BARE, "before centred simcse"),
        (1000, ModelProfile(True, True, True, 32, 64), "before simcse"),
    ],
)
def test_what_cannot_be_whitened_is_not_on_the_list(texts, model, expected):
    found = shortlist(SENTENCES, model)
    assert " ".join(one.name for one in found if one.obstacle(texts, model) is None) == expected


def test_the_words_of_the_short_list():
    def words(*args):
        return {candidate.name: " ".join(candidate.words) for candidate in shortlist(*args)}

    pooled, bare = words(PARAGRAPHS, POOLED, ["T", "U"]), words(PARAGRAPHS, BARE, ["T"])
    assert pooled["before"] == "--num_train_epochs 0"
    assert pooled["whitened-0.5"] == "--whiten --whiten_power 0.5 --num_train_epochs 0"
    assert pooled["simcse"] == "--learning_rate 3e-05"
    assert "--views crops" in pooled["crops"]
    assert pooled["teacher"] == "--teacher T U --learning_rate 3e-05 --rank_distillation 1"
    assert pooled["whitened-simcse"] == "--whiten --whiten_power 0 " + pooled["crops"]
    short = words(SENTENCES, POOLED)["whitened-simcse"]
    assert short == "--whiten --whiten_power 0 --learning_rate 3e-05 --views word_repetition"
    assert bare["simcse"] == "--projection_head --learning_rate 1e-04"
    assert bare["whitened-simcse"] == (
        "--whiten --whiten_power 0.5 --views word_repetition --temperature 0.05 --per_device_train_batch_size 64 "
        "--learning_rate 6e-05 --lr_scheduler_type linear"
    )
    none = ModelProfile(True, False, False, 32, None)
    with_dropout = {name for name, line in words(SENTENCES, none, ["T"]).items() if "--dropout 0.1" in line}
    assert with_dropout == {"simcse", "teacher", "whitened-simcse"}
    assert (safest(POOLED), safest(BARE)) == ("before", "whitened-0.5")


def test_training_sees_nine_of_ten_texts_whole():
    def longer(limit):
        return sum(length > limit for length in lengths) / len(lengths)

    lengths = [30] * 9 + [300]
    assert training_length(longer, 256) == 32
    lengths = [30] * 8 + [40, 300]
    assert training_length(longer, None) == 64
    assert training_length(longer, 48) == 48
    lengths = [500]
    assert training_length(longer, 512) == 256


def test_budgets_by_hand():
    assert [parse_duration(text) for text in ("600s", "10m", "1.5h")] == [600, 600, 5400]
    for text in ("10", "m", "0m", "-1m", "10 minutes"):
        with pytest.raises(ValueError, match=f"--budget {text} is not a duration. Pass one such as 600s, 10m or 2h"):
            parse_duration(text)
    assert [shown_duration(s) for s in (1, 90, 3600, 7200)] == ["1 second", "1.5 minutes", "60 minutes", "2 hours"]
    # 100 rows of 10 are 10 steps: 10 x 2 s and 100 x 0.1 s.
    assert Pace(2.0, 0.1).seconds(100, 10) == 30
    assert Pace(2.0, 0.1, 5.0).seconds(100, 10) == 35
    # A batch of each takes 1 + 2 + 10 x 0.1 = 4 s: three seeds have 1200 / 3 / 4 = 100 batches.
    paces = [Pace(1.0), Pace(2.0, 0.1)]
    assert share_budget(1200, paces, texts=5000, batch=10) == Share(1000, 3)
    assert share_budget(1200, paces, texts=404, batch=10) == Share(404, 3)
    # 120 / 3 / 4 = 10 steps are fewer than 20: two seeds, 15 steps.
    assert share_budget(120, paces, texts=5000, batch=10) == Share(150, 2)
    assert share_budget(8, paces, texts=5000, batch=10) == Share(10, 2)
    with pytest.raises(ValueError, match="too small for one step of each of 2 recipes with 2 seeds. Pass --budget 8s"):
        share_budget(7.9, paces, texts=5000, batch=10)
    assert share_budget(1, [], texts=5000, batch=10) == Share(5000, 1)
    # Runs that take 50 s and 30 s besides leave 1200 / 3 - 80 = 320 s a seed, which are 80 batches.
    paces = [Pace(1.0, 0.0, 50.0), Pace(2.0, 0.1, 30.0)]
    assert share_budget(1200, paces, texts=5000, batch=10) == Share(800, 3)
    with pytest.raises(ValueError, match="Pass --budget 168s"):
        share_budget(100, paces, texts=5000, batch=10)


def test_the_choice():
    def chosen(least=0.1, **scores):
        return choose({"before": [80.0], **scores}, "before", least).name

    assert chosen() == "before"
    assert chosen(a=[80.05]) == "before"  # less than the least
    assert chosen(a=[80.2]) == "a"
    assert chosen(a=[79.0, 82.0]) == "before"  # 80.5, with a deviation of 2.1
    assert chosen(a=[80.3, 80.7]) == "a"  # 80.5, with 0.28
    assert chosen(a=[81.0], b=[81.1, 81.3]) == "b"  # 81.2 with 0.14
    assert chosen(a=[81.0], b=[81.0, 81.4]) == "a"  # 81.2 with 0.28
    assert chosen(a=[81.0], b=[81.0]) == "a"
    assert chosen(a=[79.5, 83.5], b=[81.4]) == "b"  # 81.5 with 2.83 is no better than chance
    assert "up to 0.28 may be chance" in choose({"before": [80.0], "a": [80.3, 80.7]}, "before", 0.1).why
    assert noise([("pairs", 400)]) == 0.5
    assert noise([("pairs", 100), ("classes", 400)]) == pytest.approx(math.sqrt(1 + 1) / 2)


class _Page(HTMLParser):
    """Open elements have to be closed in their order."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.text, self.addresses = [], [], "", []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def _page(text):
    page = _Page()
    page.feed(text)
    page.close()
    assert not page.open
    return page


def test_reports_escape_what_is_in_them(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    nasty = "</p><script>alert('x')</script> | a_b* `c` [d](e) & \"f\""
    blocks = [Heading(nasty), Paragraph(nasty), Command(f"st-simcse {nasty} ```"), Picture(tmp_path / "a.png", nasty)]
    blocks.append(Table({nasty: {nasty: nasty}, "b": {"other": "1"}}, nasty, chosen=nasty))
    page = _page(as_html(nasty, blocks))
    assert "script" not in page.seen
    assert page.text.count(nasty) == 10
    assert page.addresses == ["data:image/png;base64,iVBORw=="]
    text = as_markdown(nasty, blocks, tmp_path)
    escaped = r"\</p\>\<script\>alert('x')\</script\> \| a\_b\* \`c\` \[d\](e) \& " + '"f"'
    assert text.count(escaped) == 8
    assert f"````bash\nst-simcse {nasty} ```\n````" in text
    assert f"![{escaped}](<a.png>)" in text
    assert f"| **{escaped}** | {escaped} |  |" in text


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """Texts, twenty of them twice and twenty of the dev pairs among them; and the pairs."""
    monkeypatch.chdir(tmp_path)
    made = generate_corpus(size=300)
    pairs = made.scored_pairs[:60]
    texts = [*made.sentences, *made.sentences[:20], *(first for first, _, _ in pairs[:20])]
    Path("texts.txt").write_text("\n".join(texts) + "\n")
    for split in ("dev", "test"):
        with Path(f"{split}.tsv").open("w") as file:
            csv.writer(file, delimiter="\t").writerows([("sentence1", "sentence2", "score"), *pairs])
    tiny_model(texts, width=32).save_pretrained("model")
    return texts, pairs


WORDS = ["--model_name_or_path", "model", "--corpus", "texts.txt", "--dev_file", "dev.tsv", "--output_dir", "out"]


@pytest.fixture
def here(monkeypatch):
    """What was run, without training or with it."""
    done = []

    def recorded(execute):
        def run(one, keep_model):
            done.append((one.recipe, one.seed))
            return execute(one, keep_model)

        return run

    untrained = trials_module.Untrained
    monkeypatch.setattr(trials_module, "Untrained", lambda task: recorded(untrained(task)))
    monkeypatch.setattr(trials_module, "in_this_process", recorded(trials_module.in_this_process))
    return done


def _run_by(monkeypatch, run):
    """All runs, without training and with it, are made by this function."""
    monkeypatch.setattr(trials_module, "Untrained", lambda task: run)
    monkeypatch.setattr(trials_module, "in_this_process", run)


@pytest.fixture
def made_up(monkeypatch):
    """Runs give made up scores, by recipe, and steps take a second; returns the scores to set, and what was run."""
    scores, done = {}, []

    def train(one, keep_model):
        done.append((Path(one.folder).name, one.recipe, one.seed))
        score = scores.get((Path(one.folder).name, one.recipe), scores.get(one.recipe, 50.0))
        result = {"dev": {"dev": score}, "test": {}, "recipe": one.recipe, "seed": one.seed}
        result |= {"options": one.options, "tests": one.tests, "inputs": identities(one.options, one.tests)}
        result["cost"] = {"seconds": 1.0, "CPU seconds": 1.0, "MiB": 2.0}
        one.file.parent.mkdir(parents=True, exist_ok=True)
        if keep_model:
            tiny_model(["A dog runs."], width=32, seed=1).save_pretrained(str(one.model))
        one.file.write_text(json.dumps(result))
        return result

    _run_by(monkeypatch, train)
    monkeypatch.setattr(plan_module, "step_seconds", lambda *args: done.append("timed") or 1.0)
    monkeypatch.setattr(plan_module, "encoding_seconds", lambda *args: 0.0)
    monkeypatch.setattr(plan_module, "OVERHEAD", 0.0)
    return scores, done


def _jsonl(name):
    return [json.loads(line)["sentence"] for line in Path("out/data", f"{name}.jsonl").read_text().splitlines()]


def test_from_texts_to_a_model(corpus, here, capsys, monkeypatch):
    """In process, and the choice by what an evaluator says of each trial, computed here from the files."""
    texts, pairs = corpus
    chosen = adapt.run([*WORDS, "--budget", "10h", "--test_file", "test.tsv"])
    out, bars = capsys.readouterr()
    assert bars.count("train_runtime") <= 1  # trials are quiet, the training on all texts is not
    untrained = ["before", "centred", "whitened-0.5", "whitened-1"]
    trained = ["simcse", "whitened-simcse"]
    runs_of_trials = [(name, 0) for name in untrained] + [(name, seed) for seed in range(3) for name in trained]
    assert here[:10] == runs_of_trials

    of_pairs = {text for first, second, _ in pairs for text in (first, second)}
    left = [text for text in dict.fromkeys(texts) if text not in of_pairs]
    assert _jsonl("corpus") == left
    assert _jsonl("sample") == _jsonl("whitening") == left
    assert f"{len(left):,} texts remain" in out

    def score(folder, name, seed):
        return json.loads(Path("out", folder, name, f"seed-{seed}.json").read_text())["dev"]["dev"]

    means = {name: np.mean([score("trials", name, seed) for seed in range(3)]) for name in trained}
    spreads = {name: np.std([score("trials", name, seed) for seed in range(3)], ddof=1) for name in trained}
    means |= {name: score("trials", name, 0) for name in untrained}
    margins = {name: max(spreads.get(name, 0), 10 / math.sqrt(len(pairs))) for name in means}
    winners = [name for name in untrained + trained if means[name] - means["before"] > margins[name]]
    best = max(winners, key=means.get, default="before")
    expected = next((name for name in winners if means[best] - means[name] <= margins[best]), "before")
    if expected != "before":
        assert here[10:] == [(expected, 0)]
        expected = expected if score("final", expected, 0) > means["before"] else "before"
    assert chosen == expected
    saved = SentenceTransformer("out/model", device="cpu")
    after = 100 * load_sts("dev.tsv", name="dev")(saved)["dev_spearman_cosine"]
    assert after == pytest.approx(means["before"] if chosen == "before" else score("final", chosen, 0), abs=1e-3)

    card = Path("out/model/README.md").read_text()
    assert "## How it was chosen" in card
    assert "st-simcse adapt --model_name_or_path model --corpus texts.txt" in card
    report = Path("out/report.md").read_text()
    page = _page(Path("out/report.html").read_text())
    for text in (report, page.text):
        assert "st-simcse adapt --model_name_or_path model --corpus texts.txt" in text
        for name, mean in means.items():
            assert name in text
            assert f"{mean:.2f}" in text
    assert len(page.addresses) == 3
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)

    weights = {file: file.read_bytes() for file in Path("out/model").rglob("*.safetensors")}
    _run_by(monkeypatch, None)
    monkeypatch.setattr(plan_module, "step_seconds", None)
    assert adapt.run([*WORDS, "--budget", "10h", "--test_file", "test.tsv"]) == chosen
    assert weights == {file: file.read_bytes() for file in Path("out/model").rglob("*.safetensors")}
    assert Path("out/report.md").read_text() == report


@pytest.mark.slow
def test_runs_without_training_are_as_train_makes_them(corpus, monkeypatch):
    """The same scores, though each text goes through the transformer once for all of them."""
    texts, pairs = corpus
    with Path("pets.csv").open("w") as file:
        rows = [(text, text.split()[0], pair[0]) for text, pair in zip(texts[:60], pairs, strict=True)]
        csv.writer(file).writerows([("text", "class", "title"), *rows])
    data = ["--dev_file", "dev.tsv", "--knn_dev_file", "pets.csv", "--retrieval_dev_file", "pets.csv"]
    data += ["--knn_columns", "text", "class", "--retrieval_columns", "title", "text"]
    words = ["--model_name_or_path", "model", "--train_file", "texts.txt", "--output_dir", "out", "--seeds", "0"]
    recipes = ["before:", "centred: --whiten --whiten_power 0", "half: --whiten --whiten_power 0.5"]
    recipes = [f"{recipe} --num_train_epochs 0" for recipe in recipes]
    asked = parse_comparison([*words, *data, "--recipe", *recipes])
    task = SimpleNamespace(args=SimpleNamespace(model_name_or_path="model"), pooling=None)
    untrained, seen = trials_module.Untrained(task), []
    untrained.model[0].model[0].register_forward_pre_hook(
        lambda module, inputs: seen.append(len(inputs[0]["input_ids"]))
    )
    found, _ = train_all(asked, execute=untrained)
    assert sum(seen) == len({*texts, *(text for first, second, _ in pairs for text in (first, second))})
    Path("out").rename("once")
    expected, _ = train_all(asked, execute=runs.in_this_process)
    assert list(expected) == ["before", "centred", "half"]
    for recipe, scores in expected.items():
        assert set(scores) == {"dev avg.", "dev", "knn dev", "retrieval dev", "seconds", "CPU seconds"}
        for column in ("dev avg.", "dev", "knn dev", "retrieval dev"):
            assert found[recipe][column] == pytest.approx(scores[column], abs=1e-3)
    assert expected["half"]["dev"] != expected["before"]["dev"]
    with pytest.raises(NotImplementedError, match="save the model that it was made from"):
        untrained.model.save_pretrained("out/model")


def test_what_is_remembered_knows_prompts_and_tasks():
    texts = ["A dog runs.", "A cat sleeps.", "A dog runs."]
    whole, other = tiny_model(texts), tiny_model(texts, seed=1)
    routed = SentenceTransformer(
        modules=[Router.for_query_document([*whole], [*other])], prompts={"query": "cat: "}, default_prompt_name="query"
    )
    for model in (tiny_model(texts), routed):
        once = embed_once(model)
        for name in ("encode", "encode_query", "encode_document", "encode_query"):
            embeddings = getattr(once, name)(texts)
            np.testing.assert_allclose(embeddings, getattr(model, name)(texts), atol=1e-6)
            np.testing.assert_array_equal(embeddings, getattr(embed_once(once), name)(texts))
    assert np.abs(once.encode_query(texts) - once.encode_document(texts)).max() > 1e-3


def test_what_is_remembered_knows_the_lengths_of_queries_and_documents():
    model = tiny_model(["A dog runs."])
    model[0].query_length, model[0].document_length = 3, 4
    once, text = embed_once(model), "A dog runs."
    found = [once.encode_query(text), once.encode_document(text), once.encode(text)]
    expected = [model.encode(text, processing_kwargs={"text": {"max_length": length}}) for length in (3, 4, 6)]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(found[0] - found[1]).max() > 1e-3


@pytest.mark.parametrize("default", [None, "cat"])
def test_texts_are_remembered_with_the_default_prompt(default):
    texts, rows = ["A dog runs.", "A cat sleeps.", "A dog runs."], []
    model = tiny_model(texts)
    model.prompts, model.default_prompt_name = {"cat": "cat: "}, default
    expected = model.encode(texts)
    model[0].register_forward_hook(lambda *call: rows.append(len(call[2]["input_ids"])))
    once = embed_once(model)
    once.remember(texts)
    assert sum(rows) == 2
    np.testing.assert_allclose(once.encode(texts), expected, atol=1e-6)
    assert sum(rows) == 2
    once.encode(texts, prompt="dog: ")
    assert sum(rows) == 4


@pytest.mark.slow
def test_checkpoints_are_saved_where_scored_pairs_choose_among_them(corpus, made_up):
    with Path("pets.csv").open("w") as file:
        csv.writer(file).writerows([("text", "class"), *((text, text.split()[-2]) for text in corpus[0][:60])])
    adapt.run([*_without_dev(WORDS)[:-1], "classes", "--knn_dev_file", "pets.csv"])
    adapt.run(WORDS)
    for folder, saves in (("classes", False), ("out", True)):
        options = json.loads(Path(folder, "trials/simcse/seed-0.json").read_text())["options"]
        assert ("--save_strategy no" not in " ".join(options)) == saves


@pytest.mark.slow
def test_the_costs_that_are_told(corpus, made_up, monkeypatch, capsys):
    """By hand: a text takes a tenth of a second, a step a second."""
    _, pairs = corpus
    monkeypatch.setattr(plan_module, "encoding_seconds", lambda *args: 0.1)
    monkeypatch.setattr(plan_module, "OVERHEAD", 3.0)
    adapt.run([*WORDS, "--budget", "100s"])
    plan = json.loads(Path("out/plan.json").read_text())
    seconds, share = plan["seconds"], plan["share"]
    left = _jsonl("corpus")
    assert len(left) == len(_jsonl("whitening")) == 300
    some = [left[row] for row in sorted(random.Random(0).sample(range(300), 192))]
    of_pairs = {text for first, second, _ in pairs for text in (first, second)}
    measuring = 0.1 * sum(map(len, of_pairs)) / np.mean([len(text) for text in some])
    # A seed has two recipes of some batches of 64, each measured once; one embeds its rows before, to whiten them.
    seed = 2 * (math.ceil(share["rows"] / 64) + 3 + measuring) + 0.1 * share["rows"]
    assert seconds["trials"] == pytest.approx(share["seeds"] * seed)
    assert 64 <= share["rows"] < 300
    assert seconds["trials"] <= 100 < share["seeds"] * (seed + 2 + 6.4)
    assert seconds["other"] == pytest.approx(3 + measuring + 30)
    assert seconds["final"] == pytest.approx(5 + 30 + 3 + measuring)
    assert seconds["report"] == pytest.approx(120)
    total = round(sum(seconds.values()) / 60, 1)
    assert f"cost: about {total:g} minutes in total" in capsys.readouterr().out


def test_averages_of_tasks_cost_time_and_their_texts_are_not_trained_on(corpus, made_up, monkeypatch, capsys, senteval):
    """The texts of the tasks are read from the files here. A text takes a tenth of a second."""
    texts, pairs = corpus
    monkeypatch.setattr(plan_module, "encoding_seconds", lambda *args: 0.1)
    others = generate_corpus(size=60, seed=3).scored_pairs
    of_tasks = {text for first, second, _ in [*pairs, *others] for text in (first, second)}
    Path("sts").mkdir()
    for stem in STS_TASKS.values():
        with Path(f"sts/{stem}.tsv").open("w") as file:
            csv.writer(file, delimiter="\t").writerows([("sentence1", "sentence2", "score"), *pairs, *others])
    reviews = [line for line in (senteval / "CR/custrev.pos").read_text().splitlines() if line]
    Path("texts.txt").write_text("\n".join([*texts, *others[0][:2], *reviews]) + "\n")
    words = [*WORDS, "--budget", "10h", "--sts_dir", "sts", "--senteval_dir", str(senteval), "--allow_partial"]
    adapt.run(words)
    assert not {*_jsonl("corpus")} & (of_tasks | {*reviews})
    plan, out = json.loads(Path("out/plan.json").read_text()), capsys.readouterr().out
    assert plan["measured"] == len({*texts, *others[0][:2], *reviews} & (of_tasks | {*reviews}))
    left = _jsonl("corpus")
    some = [left[row] for row in sorted(random.Random(0).sample(range(len(left)), min(len(left), 192)))]
    of_transfer = {
        text
        for task in TRANSFER_TASKS
        for rows in transfer_examples(senteval, task, allow_partial=True).values()
        for row, _ in rows
        for text in row
    }
    measuring = 0.1 * sum(map(len, of_tasks | of_transfer)) / np.mean([len(text) for text in some])
    assert plan["seconds"]["other"] == pytest.approx(measuring + 0.1 * len(_jsonl("whitening")))
    assert "The classifiers of the transfer tasks are not included" in out


@pytest.mark.slow
def test_a_run_that_was_stopped_repeats_nothing(corpus, made_up, monkeypatch, capsys):
    scores, done = made_up
    scores |= {"simcse": 60.0}
    train, left = trials_module.in_this_process, iter([True] * 5)

    def interrupted(one, keep_model):
        if not next(left, False):
            raise KeyboardInterrupt
        return train(one, keep_model)

    _run_by(monkeypatch, interrupted)
    words = [*WORDS, "--budget", "12s"]
    with pytest.raises(KeyboardInterrupt):
        adapt.run(words)
    assert "Run the same command again to continue" in capsys.readouterr().out
    first = [*done]
    assert first[:2] == ["timed", "timed"]
    assert len(first) == 7
    plan, sample = Path("out/plan.json").read_text(), _jsonl("sample")
    assert len(sample) == 192  # 12 s for two seeds of two recipes: three steps of a second each
    _run_by(monkeypatch, train)
    assert adapt.run(words) == "simcse"
    again = done[len(first) :]
    assert not set(again) & set(first)
    assert again[-1] == ("final", "simcse", 0)
    assert (Path("out/plan.json").read_text(), _jsonl("sample")) == (plan, sample)
    capsys.readouterr()
    assert adapt.run(words) == "simcse"
    assert len(done) == len(first) + len(again)
    assert "was not kept" not in capsys.readouterr().out  # it is in out/model


@pytest.mark.slow
def test_where_nothing_wins_the_model_stays_as_it_was(corpus, made_up, capsys):
    scores, done = made_up
    scores |= {"simcse": 51.2, "whitened-1": 51.2}  # chance is 10 / sqrt(60) = 1.29
    assert adapt.run(WORDS) == "before"
    assert not any(run[0] == "final" for run in done)
    told = "No recipe is better than the model before training by more than chance"
    assert told in capsys.readouterr().out
    assert told in Path("out/report.md").read_text()
    texts = corpus[0][:8]
    before, after = (SentenceTransformer(folder, device="cpu").encode(texts) for folder in ("model", "out/model"))
    np.testing.assert_array_equal(before, after)
    assert "st-simcse train" not in Path("out/report.md").read_text().split("How to repeat this")[1]
    adapt.run(["--model_name_or_path", "out/model", *WORDS[2:-1], "again"])
    card = Path("again/model/README.md").read_text()
    assert card.count("## How it was chosen") == 1
    assert "--output_dir again" in card
    assert "--output_dir out" not in card


@pytest.mark.slow
def test_a_winner_that_is_no_gain_on_all_texts_is_not_saved(corpus, made_up):
    scores, done = made_up
    scores |= {"simcse": 60.0, ("final", "simcse"): 50.0}
    assert adapt.run(WORDS) == "before"
    assert done[-1] == ("final", "simcse", 0)
    texts = corpus[0][:8]
    before, after = (SentenceTransformer(folder, device="cpu").encode(texts) for folder in ("model", "out/model"))
    np.testing.assert_array_equal(before, after)
    report = Path("out/report.md").read_text()
    assert "Trained on all texts, it scores 50.00, and the original model 50.00. This is no gain" in report
    assert "| **before** |" in report


@pytest.mark.slow
def test_a_recipe_that_fails_is_left_out(corpus, made_up, monkeypatch, caplog):
    scores, _ = made_up
    scores |= {"simcse": 60.0, "whitened-simcse": 70.0}
    train = trials_module.in_this_process

    def fails(one, keep_model):
        if (one.recipe, one.seed) == ("whitened-simcse", 1):
            raise ValueError("out of memory")
        return train(one, keep_model)

    _run_by(monkeypatch, fails)
    assert adapt.run(WORDS) == "simcse"
    assert "whitened-simcse, seed 1: ValueError: out of memory" in caplog.text
    assert "whitened-simcse, seed 1: ValueError: out of memory" in Path("out/report.md").read_text()
    scores["before"] = 80.0
    _run_by(monkeypatch, lambda *run: 1 / 0)
    with pytest.raises(ValueError, match="the original model could not be measured: before, seed 0: ZeroDivision"):
        adapt.run([*WORDS[:-1], "other"])


@pytest.mark.slow
def test_a_recipe_that_cannot_be_timed_is_left_out(corpus, made_up, monkeypatch, caplog):
    def step_seconds(task, length, candidate, texts):
        if candidate.name == "simcse":
            raise ValueError("this model has no attention mask")
        return 1.0

    monkeypatch.setattr(plan_module, "step_seconds", step_seconds)
    tiny_model(corpus[0], width=192).save_pretrained("model")
    made_up[0]["whitened-0.5"] = 60.0
    assert adapt.run([*WORDS, "--pooling", "cls", "--budget", "4s"]) == "whitened-0.5"
    trials = {recipe for folder, recipe, _ in made_up[1] if folder == "trials"}
    assert trials == {"before", "centred", "whitened-0.5", "whitened-1"}
    report = Path("out/report.md").read_text()
    for name, reason in (
        ("simcse", "ValueError: this model has no attention mask"),
        ("whitened-simcse", "128 texts are too few to whiten 192 dimensions: pass a larger --budget"),
    ):
        assert f"the recipe {name} is left out: {reason}" in caplog.text
        assert f"left out: {name}: {reason}" in report


@pytest.mark.slow
@pytest.mark.parametrize("has_dev", [True, False])
def test_whitenings_of_too_few_texts_are_named(corpus, made_up, caplog, has_dev):
    tiny_model(corpus[0], width=512).save_pretrained("model")
    words = [*(WORDS if has_dev else _without_dev(WORDS)), "--pooling", "cls"]
    assert adapt.run(words) == "before"
    reason = f"{len(_jsonl('corpus'))} texts are too few to whiten 512 dimensions"
    report = Path("out/report.md").read_text()
    names = ["whitened-0.5", "whitened-1", "whitened-simcse"] if has_dev else ["whitened-0.5"]
    assert re.findall(rf"the recipe (\S+) is left out: {reason}", caplog.text) == names
    assert re.findall(rf"left out: (\S+): {reason}", report) == names
    told = f"whitened-0.5 was the safest in our measurements, but {reason}, so the original model is saved."
    assert (told in report) == (not has_dev)


def _without_dev(words):
    return [word for word in words if word not in ("--dev_file", "dev.tsv")]


@pytest.mark.slow
def test_without_dev_data_the_safest_recipe_is_taken(corpus, here, caplog):
    words = _without_dev(WORDS)
    assert adapt.run([*words, "--test_file", "test.tsv"]) == "before"
    assert here == [("before", 0)]
    assert "adapt cannot choose a recipe without dev data, because none of 25 measures" in caplog.text
    assert "a hundred scored pairs" in caplog.text
    assert re.findall(r"docs/\w+\.md", caplog.text) == ["docs/choosing.md"]
    assert (
        "Without dev data, adapt cannot measure which recipe is best. The original model was the safest in our "
        "measurements, so it is saved unchanged."
    ) in Path("out/report.md").read_text()
    texts = corpus[0][:8]
    before, after = (SentenceTransformer(folder, device="cpu").encode(texts) for folder in ("model", "out/model"))
    np.testing.assert_array_equal(before, after)

    words[-1] = "cls"
    assert adapt.run([*words, "--pooling", "cls"]) == "whitened-0.5"
    assert here[1:] == [("whitened-0.5", 0)]
    left = [json.loads(line)["sentence"] for line in Path("cls/data/corpus.jsonl").read_text().splitlines()]
    # Every direction is divided by the square root of its deviation: what is left of it is the square root.
    had = np.linalg.svd(_centred(build_model("model", "cls", device="cpu").encode(left)), compute_uv=False)
    has = np.linalg.svd(_centred(SentenceTransformer("cls/model", device="cpu").encode(left)), compute_uv=False)
    deviations = [np.sort(values / math.sqrt(len(left) - 1))[::-1][:30] for values in (had, has)]
    np.testing.assert_allclose(deviations[1], deviations[0] ** 0.5, rtol=1e-3)
    assert (
        "Without dev data, adapt cannot measure which recipe is best. whitened-0.5 was the safest"
        in Path("cls/report.md").read_text()
    )


def _centred(embeddings):
    return embeddings.astype(np.float64) - embeddings.mean(0, dtype=np.float64)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--budget", "10"], "--budget 10 is not a duration. Pass one such as 600s"),
        (["--budget", "3s"], "too small for one step of each of 2 recipes with 2 seeds. Pass --budget 4s or more"),
        (["--model_name_or_path", "absent/model"], "absent/model is not a local folder|there is no folder"),
        (["--corpus", "absent.txt"], "there is no file absent.txt"),
        (["--corpus", "few.txt"], "3 different texts, not counting .* are too few to adapt a model: pass at least 128"),
        (["--corpus", "empty.txt"], "empty.txt"),
        (["--dev_file", "absent.tsv"], "absent.tsv"),
        (["--pooling", "max"], "max"),
        (["--dev_delimiter", ";"], "dev.tsv"),
        (["--knn_columns", "0", "1"], "--knn_columns needs --knn_dev_file"),
        (["--output_dir", "."], "has 'dev.tsv', which adapt did not write: choose a new folder"),
        (["--learning_rate", "1"], "unknown option --learning_rate"),
    ],
)
def test_what_does_not_fit_is_refused(corpus, made_up, more, message):
    Path("few.txt").write_text("A dog.\nA cat.\nA cow.\nA cow.\n")
    Path("empty.txt").write_text("\n")
    with pytest.raises((SystemExit, ValueError, OSError), match=message):
        adapt.run([*WORDS, *more])
    assert set(made_up[1]) <= {"timed"}


def test_a_folder_of_other_options_or_data_is_refused(corpus, made_up):
    adapt.run([*WORDS, "--budget", "12s"])
    for more, message in (
        (
            ["--budget", "13s"],
            r"--budget was '12s' and is now '13s'\): pass the same options again, or choose another --output_dir",
        ),
        (["--budget", "12s", "--test_file", "test.tsv"], "--test_file was None and is now 'test.tsv'"),
    ):
        with pytest.raises(ValueError, match=message):
            adapt.run([*WORDS, *more])
    with Path("texts.txt").open("a") as file:
        file.write("One more.\n")
    with pytest.raises(ValueError, match=r"texts.txt changed since out/plan.json was written: choose another"):
        adapt.run([*WORDS, "--budget", "12s"])
    Path("out/plan.json").write_text("{")
    with pytest.raises(ValueError, match="out/plan.json is damaged"):
        adapt.run([*WORDS, "--budget", "12s"])


def test_without_matplotlib_the_report_says_so(corpus, made_up, monkeypatch):
    monkeypatch.setattr(report_module, "find_spec", lambda name: None)
    main(["adapt", *WORDS])
    page = _page(Path("out/report.html").read_text())
    assert 'Pictures need matplotlib: pip install "st_simcse[plots]"' in page.text
    assert not page.addresses


def test_texts_may_hold_anything(corpus, made_up):
    """Line ends, tabs and markup, in a table."""
    texts = [f'{text} <b>|\n\t"{number}"' for number, text in enumerate(corpus[0][:200])]
    Path("texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    adapt.run([*WORDS, "--corpus", "texts.jsonl", "--column", "text"])
    assert _jsonl("corpus") == texts


def test_without_a_model_the_texts_choose_it(corpus, made_up, capsys):
    Path(ENGLISH).parent.mkdir()
    Path("model").rename(ENGLISH)
    words = WORDS[2:]
    adapt.run(words)
    assert f"start model: {ENGLISH}, by the language" in capsys.readouterr().out
    assert json.loads(Path("out/plan.json").read_text())["options"]["model_name_or_path"] == ENGLISH
    made_up[1].clear()
    adapt.run(["--model_name_or_path", ENGLISH, *words])  # the same run, which is finished
    assert not made_up[1]
    with pytest.raises(ValueError, match="pass either --corpus with a file, or --dataset"):
        adapt.run([word for word in words if word not in ("--corpus", "texts.txt")])


def test_a_corpus_may_be_a_data_set(corpus, made_up):
    texts = list(dict.fromkeys(corpus[0]))[:150]
    Path("news").mkdir()
    Dataset.from_dict({"text": texts}).to_parquet("news/train.parquet")
    words = [word for word in WORDS if word not in ("--corpus", "texts.txt")]
    with pytest.raises(ValueError, match="pass either --corpus with a file, or --dataset"):
        adapt.run(words)
    of_pairs = {text for first, second, _ in corpus[1] for text in (first, second)}
    adapt.run([*words, "--dataset", "news"])
    assert _jsonl("corpus") == [text for text in texts if text not in of_pairs]
    Dataset.from_dict({"text": texts[1:]}).to_parquet("news/train.parquet")
    with pytest.raises(ValueError, match=r"news changed since out/plan.json was written"):
        adapt.run([*words, "--dataset", "news"])
