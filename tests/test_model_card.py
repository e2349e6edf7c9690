import base64
import json
import re
import shlex
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import combinations, pairwise
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import yaml
from datasets import Dataset
from huggingface_hub import constants
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator, SequentialEvaluator
from transformers.utils import hub as transformers_hub

from st_simcse import (
    AlignmentUniformityEvaluator,
    FocalMargin,
    MomentumQueue,
    SimCSETrainer,
    SimCSETrainingArguments,
    UnsupSimCSELoss,
    cli,
)
from st_simcse.demo import tiny_model
from st_simcse.training.model_card import shown_command


@pytest.mark.parametrize("columns", [["sentence"], ["anchor", "positive"]])
def test_the_readme_of_a_saved_model_shows_no_text_of_the_data_unless_asked(sentences, tmp_path, columns, capsys):
    dataset = Dataset.from_dict({column: sentences for column in columns})
    shown = {}
    for asked in (False, True):
        args = SimCSETrainingArguments(
            str(tmp_path / str(asked)), report_to="none", bf16=False, texts_in_model_card=asked, max_steps=1
        )
        trainer = SimCSETrainer(tiny_model(sentences), args, dataset, dataset)
        trainer.save_model()
        text = Path(args.output_dir, "README.md").read_text()
        assert "dataset_size:8" in text  # the rest of the card is there
        shown[asked] = [sentence for sentence in sentences if sentence.rstrip(".") in text]
        assert ("Computing widget examples" in capsys.readouterr().err) == asked
    assert shown[False] == []
    assert len(shown[True]) > 2


def test_examples_of_the_users_own_stay(sentences, tmp_path):
    model = tiny_model(sentences)
    model.model_card_data.widget = [{"source_sentence": "A bird.", "sentences": ["A plane."]}]
    args = SimCSETrainingArguments(str(tmp_path), report_to="none", bf16=False)
    SimCSETrainer(model, args, Dataset.from_dict({"sentence": sentences})).save_model()
    assert "source_sentence: A bird." in Path(tmp_path, "README.md").read_text()


class Hub(BaseHTTPRequestHandler):
    """The hub as its client sees it from the network, on this machine: it keeps the files that are pushed."""

    def do_HEAD(self):
        self.send_response(404)
        self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()

    def do_GET(self):
        self.do_HEAD()

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/repos/create":
            answer = {"url": f"{constants.ENDPOINT}/{json.loads(body)['organization']}/{json.loads(body)['name']}"}
        elif "/preupload/" in self.path:
            answer = {
                "files": [file | {"uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
            }
        elif self.path == "/api/validate-yaml":
            answer = {"warnings": [], "errors": []}
        else:
            for entry in map(json.loads, body.splitlines()):
                if entry["key"] == "file":
                    self.server.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            answer = {"commitUrl": f"{constants.ENDPOINT}/me/it/commit/1", "commitOid": "1", "success": True}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(monkeypatch):
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.files = {}
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        if hasattr(transformers_hub, "hf_api"):  # one client a process, which has the address of its first use
            monkeypatch.setattr(transformers_hub.hf_api(), "endpoint", address)
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_a_pushed_model_is_whole_and_says_how_it_was_made(sentences, tmp_path, hub):
    model = tiny_model(sentences)
    loss = UnsupSimCSELoss(model, projection_head=True, options=[FocalMargin(0.2), MomentumQueue(4)])
    args = SimCSETrainingArguments(
        str(tmp_path / "it"), report_to="none", bf16=False, max_steps=1, hub_model_id="me/it", hub_token="hf_secret"
    )
    trainer = SimCSETrainer(model, args, Dataset.from_dict({"sentence": sentences}), loss=loss)
    trainer.train()
    trainer.push_to_hub()
    pushed = dict(hub.files)
    hub.files.clear()
    model.push_to_hub("me/again", token="hf_secret")
    for files in (pushed, hub.files):
        # Of the loss, its run and its checkpoints nothing leaves.
        assert not [name for name in files if "loss" in name or "simcse_run" in name or "checkpoint" in name]
        card = files["README.md"].decode()
        metadata = yaml.safe_load(card.split("---")[1])
        assert {"simcse", "st_simcse", "loss:UnsupSimCSELoss"} <= set(metadata["tags"])
        assert re.findall("@.*{(.*),", card)[1:] == ["gao2021simcse", "hou2023focal", "wu2022esimcse"]
        assert "How it was made" in card
        assert "hf_secret" not in card
        folder = tmp_path / f"downloaded-{len(list(tmp_path.iterdir()))}"
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        downloaded = SentenceTransformer(str(folder), device="cpu").encode(sentences)
        np.testing.assert_allclose(downloaded, model.encode(sentences), atol=1e-6)


def test_the_readme_has_the_scores_of_before_and_of_the_saved_model(sentences, tmp_path):
    """Also where the best checkpoint is another one than that of the last evaluation."""
    scores = [0.3, 4.9, 1.0, 2.0, 4.5, 3.0, 0.0, 2.5]
    pairs = sentences, sentences[1:] + sentences[:1]
    similarity = EmbeddingSimilarityEvaluator(*pairs, scores, name="dev")
    model = tiny_model(sentences)

    def measured():
        """Without an evaluator, and with the definitions of the paper in float64."""
        first, second = (model.encode(side, normalize_embeddings=True).astype(float) for side in pairs)
        positive = [index for index, score in enumerate(scores) if score > 4]
        distances = [((a - b) ** 2).sum() for a, b in combinations(first, 2)]
        return {
            "dev, Spearman × 100": 100 * spearmanr((first * second).sum(1), scores)[0],
            "dev, alignment": np.mean([((first[i] - second[i]) ** 2).sum() for i in positive]),
            "dev, uniformity": np.log(np.mean(np.exp(-2 * np.array(distances)))),
        }

    args = SimCSETrainingArguments(
        *(str(tmp_path),),
        **dict(report_to="none", bf16=False, max_steps=4, learning_rate=0.05, lr_scheduler_type="constant"),
        **dict(eval_strategy="steps", eval_steps=1, save_steps=1, eval_on_start=True),
        **dict(load_best_model_at_end=True, metric_for_best_model="eval_dev_uniformity", greater_is_better=True),
    )
    evaluator = SequentialEvaluator(
        [similarity, AlignmentUniformityEvaluator.from_sts(similarity)], lambda values: values[0]
    )
    trainer = SimCSETrainer(model, args, Dataset.from_dict({"sentence": sentences}), evaluator=evaluator)
    before = measured()
    trainer.train()
    assert not trainer.state.best_model_checkpoint.endswith("-4")
    trainer.save_model()
    card = (tmp_path / "README.md").read_text()
    table = {name: (float(old), float(new)) for name, old, new in re.findall(r"\| (dev, .*) \| (.*) \| (.*) \|", card)}
    after = measured()
    assert table == {
        name: (pytest.approx(before[name], abs=6e-3), pytest.approx(after[name], abs=6e-3)) for name in after
    }
    assert before["dev, uniformity"] != pytest.approx(after["dev, uniformity"], abs=0.1)


def test_the_readme_has_the_command(sentences, tmp_path, monkeypatch, tiny_bert):
    monkeypatch.chdir(tmp_path)
    Path("my sentences.txt").write_text("\n".join(sentences))
    rows = ["sentence1\tsentence2\tscore", *(f"{a}\t{b}\t{i}" for i, (a, b) in enumerate(pairwise(sentences)))]
    Path("STSB-test.tsv").write_text("\n".join(rows))
    given = ["--model_name_or_path", tiny_bert, "--train_file", "my sentences.txt", "--test_file", "STSB-test.tsv"]
    given += ["--max_steps", "1", "--bf16", "false", "--report_to", "none", "--output_dir", str(tmp_path / "out")]
    cli.main(["train", *given, "--hub_token", "hf_secret"])
    card = Path("out/README.md").read_text()
    command = card.split("```bash\n")[-1].split("\n")[0]
    assert shlex.split(command) == [
        *("st-simcse", "train", "--model_name_or_path", Path(tiny_bert).name, "--train_file", "my sentences.txt"),
        *("--test_file", "STSB-test.tsv", "--max_steps", "1", "--bf16", "false", "--report_to", "none"),
        *("--output_dir", "out", "--hub_token", "..."),
    ]
    assert "hf_secret" not in card
    assert str(tmp_path) not in card.split("## How it was made")[1].split("##")[0]
    assert re.search(r"\| STSB-test, Spearman × 100 \| -?[\d.]+ \| -?[\d.]+ \|", card)


@pytest.mark.parametrize("option", ["--hub_token", "--hub-token", "--push_to_hub-token"])
@pytest.mark.parametrize("form", ["{} hf_secret", "{}=hf_secret"])
def test_no_spelling_of_a_token_is_shown(option, form):
    command = shown_command(["st-simcse", "train", *form.format(option).split(), "--seed", "1"])
    assert "hf_secret" not in command
    assert command.endswith(" --seed 1")
    assert option in command


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("/home/me/a.txt", "a.txt"),
        ("../me/a.txt", "a.txt"),
        ("./../../home/me/a.txt", "a.txt"),
        ("data/../../me/a.txt", "a.txt"),
        ("~/a.txt", "a.txt"),
        ("file:///home/me/a.txt", "a.txt"),
        (r"C:\Users\me\a.txt", "a.txt"),
        (r"\\server\me\a.txt", "a.txt"),
        ("https://me:secret@host/a.txt", "https://...@host/a.txt"),
        ("data/a.txt", "data/a.txt"),
        ("./a.txt", "./a.txt"),
        ("princeton-nlp/unsup-simcse-bert-base-uncased", "princeton-nlp/unsup-simcse-bert-base-uncased"),
        ("a..b", "a..b"),
    ],
)
def test_paths_into_other_folders_are_shown_by_their_last_part(given, shown):
    assert shlex.split(shown_command(["--train_file", given])) == ["--train_file", shown]
    assert shlex.split(shown_command([f"--train_file={given}"])) == [f"--train_file={shown}"]


def test_names_and_arguments_with_markup_do_not_break_the_card(sentences, tmp_path):
    """A heading is one line, a table has as many cells a row as its header, a code block ends where it should."""
    odd = "a`b\n# c|d```"
    pairs = sentences, sentences[1:] + sentences[:1]
    evaluator = EmbeddingSimilarityEvaluator(*pairs, list(range(len(sentences))), name=odd)
    model = tiny_model(sentences)
    args = SimCSETrainingArguments(
        str(tmp_path), report_to="none", bf16=False, max_steps=1, eval_strategy="steps", eval_steps=1
    )
    args.resume_from_checkpoint = "/home/me/secret/checkpoint-1"
    data = {odd: Dataset.from_dict({"sentence": sentences})}
    trainer = SimCSETrainer(model, args, data, loss={odd: UnsupSimCSELoss(model)}, evaluator=evaluator)
    model.model_card_data.command = shown_command(["st-simcse", "train", "--train_file", "a\n```\n# b"])
    trainer.train()
    trainer.save_model()
    card = Path(tmp_path, "README.md").read_text()
    assert odd not in card
    assert "/home/me" not in card
    assert "checkpoint-1" in card
    fence = re.search(r"(`{4,})bash\n(.*?)\n\1\n", card, re.DOTALL)
    assert shlex.split(fence[2]) == ["st-simcse", "train", "--train_file", "a\n```\n# b"]
    assert not re.findall(r"^# [bc]", card.replace(fence[0], ""), re.MULTILINE)
    tables = re.findall(r"(?:^\|.*\|$\n?)+", card.replace(fence[0], ""), re.MULTILINE)
    assert any("a'b # c/d'''" in table for table in tables)
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1
