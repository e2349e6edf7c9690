import contextlib
import gc
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from gradio.state_holder import SessionState
from gradio_client import Client
from sentence_transformers import SentenceTransformer

from st_simcse import cli
from st_simcse.demo import tiny_model
from st_simcse.models.checkpoints import load_model
from st_simcse.search import page as page_module
from st_simcse.search import searcher as search
from st_simcse.search.page import (
    COMPARISON,
    MAX_QUERY_LENGTH,
    MAX_SESSIONS,
    SEARCH,
    UNKNOWN,
    UNKNOWN_IN_PAIR,
    launch,
    search_page,
)
from st_simcse.search.searcher import Searcher, cached_searcher
from tests.inputs import without_special_tokens


@pytest.fixture(scope="module")
def tiny(sentences):
    return tiny_model(sentences)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, sentences):
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text("\n".join([*sentences, sentences[0]]))
    return path


@pytest.fixture(scope="module")
def url(tiny, corpus, tmp_path_factory):
    """Of a running page."""
    folder = tmp_path_factory.mktemp("page")
    page = search_page(cached_searcher(tiny, corpus, folder / "cache"), "tiny <model>", str(corpus))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder / "gradio"))
        launch(page, port := _free_port())
    yield f"http://127.0.0.1:{port}"
    page.close()
    assert not (folder / "gradio").exists(), "the page wrote files"


EVENT = {"time", "status", "process_time", "function", "session_hash"}  # what gradio's statistics have of a query
JSON = {"Content-Type": "application/json"}


def _free_port():
    """A free port below those that systems give to outgoing connections and to other tests."""
    for port in random.sample(range(20_000, 30_000), 100):
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port
    raise OSError("no port is free")


def _ask(url, *data, event="search"):
    """The last event of the answer and its data, as a client without gradio's library gets them."""
    joined = httpx.post(f"{url}/gradio_api/call/{event}", content=json.dumps({"data": data}), headers=JSON)
    if joined.is_error:
        return joined.status_code, joined.json()["detail"]
    answer = httpx.get(f"{url}/gradio_api/call/{event}/{joined.json()['event_id']}", timeout=60).text
    *_, event, data = answer.strip().split("\n")
    return event.removeprefix("event: "), data.removeprefix("data: ")


def test_the_page_finds_what_is_most_similar(url, tiny, sentences):
    """Over HTTP, as the page in the browser asks."""
    client = Client(url, verbose=False)
    found, said = client.predict(sentences[2], 3, 0.0, api_name="/search")
    assert said == ""
    found = found["data"]
    assert client.predict(sentences[2], 8, 0.9999, api_name="/search")[0]["data"] == [[1.0, sentences[2]]]
    cosine = tiny.similarity(tiny.encode([sentences[2]]), tiny.encode(sentences))[0]
    expected = [sentences[row] for row in cosine.argsort(descending=True)[:3]]
    assert [sentence for _, sentence in found] == expected
    assert [value for value, _ in found] == pytest.approx(sorted(cosine.tolist(), reverse=True)[:3], abs=1e-3)


@pytest.mark.parametrize("query", ["\N{UMBRELLA}\N{UMBRELLA}", "\N{GRINNING FACE}", "x" * 1_500, "zzz qqq"])
def test_the_page_says_that_the_model_knows_nothing_of_a_query(url, query):
    table, said = Client(url, verbose=False).predict(query, 3, 0.0, api_name="/search")
    assert (table["data"], said) == ([], UNKNOWN)
    assert "does not know any word or character of this query" in UNKNOWN
    table, said = Client(url, verbose=False).predict(query, "a dog", api_name="/compare")
    assert (table["data"], said) == ([[None, query, "a dog"]], UNKNOWN_IN_PAIR)


def test_the_page_says_why_there_is_nothing(url, tiny, sentences):
    client = Client(url, verbose=False)
    for query in ("", "  \n"):
        assert client.predict(query, 3, 0.0, api_name="/search")[1] == "Type a query."
    best = tiny.similarity(tiny.encode(["a guitar"]), tiny.encode(sentences)).max().item()
    assert best < 0.9995
    table, said = client.predict("a guitar", 3, 1.0, api_name="/search")
    assert (table["data"], said) == ([], f"Nothing above 1. The most similar sentence has {best:.3f}.")
    assert "Nothing above 1:" not in client.predict("a guitar", 3, round(best - 0.01, 2), api_name="/search")[1]


def test_the_page_names_the_model_and_the_corpus_and_fits_a_phone(url, corpus, sentences):
    config = httpx.get(f"{url}/config").json()
    parts = [component["props"] for component in config["components"]]
    (heading,) = [part["value"] for part in parts if "Search 8 sentences" in str(part.get("value"))]
    assert f"Corpus: <code>{corpus}</code>" in heading
    assert "Model: <code>tiny &lt;model&gt;</code>" in heading
    assert "overflow-wrap: anywhere" in heading  # a path is one long word
    said = {part["elem_id"]: part["value"] for part in parts if str(part.get("elem_id")).endswith("-remark")}
    assert said["search-remark"] == "Type a query."
    assert "#search-remark" in config["css"]
    for table in (part for part in parts if part.get("headers")):
        # Monospaced letters of 8.4 pixels and 8 of padding on both sides, in a table of a phone 350 pixels wide.
        share = float(table["column_widths"][0].rstrip("%")) / 100
        assert share * 288 >= 8.4 * len(table["headers"][0]) + 16


def test_the_page_compares_texts_line_by_line(url, tiny, sentences):
    client = Client(url, verbose=False)
    firsts, seconds = "\n\n".join(sentences[:3]), "\n".join(sentences[2:5]) + "\n"
    rows = client.predict(firsts, seconds, api_name="/compare")[0]["data"]
    assert [row[1:] for row in rows] == [list(pair) for pair in zip(sentences[:3], sentences[2:5], strict=True)]
    cosines = tiny.similarity_pairwise(tiny.encode(sentences[:3]), tiny.encode(sentences[2:5]))
    assert [row[0] for row in rows] == pytest.approx(cosines.tolist(), abs=1e-3)
    nothing, said = client.predict("", "", api_name="/compare")
    assert (nothing["data"], said) == ([], "Type a text on both sides, or the same number of lines.")
    lines = "expected equally many lines on both sides, 50 at most, got"
    for data, message in [
        (["a\nb", "a"], f"{lines} 2 and 1"),
        (["a\n" * 51, "a\n" * 51], f"{lines} 51 and 51"),
        (["a", "a" * 2001], "a text has 2,001 characters, but at most 2,000 are allowed"),
        (["a", 1], "expected two texts"),
        (["a"], "expected the data [text, text]"),
    ]:
        assert _ask(url, *data, event="compare") == (422, message)
        body = {"data": data, "fn_index": 1, "session_hash": "a"}  # as the browser asks
        joined = httpx.post(f"{url}/gradio_api/queue/join", json=body)
        assert (joined.status_code, joined.json()["detail"]) == (422, message)


@pytest.mark.slow
def test_queries_that_wait_are_embedded_together_and_a_bad_one_fails_alone(url, tiny, sentences, monkeypatch):
    """The model is held until all queries have arrived; each gets its own answer, whatever its neighbours sent."""
    everybody_asked, batches = threading.Event(), []
    encode = tiny.encode_query

    def held(queries, **options):
        batches.append(len(queries))
        assert everybody_asked.wait(60)
        return encode(queries, **options)

    monkeypatch.setattr(tiny, "encode_query", held)
    bad = [
        ("a" * (MAX_QUERY_LENGTH + 1), 1, 0.0, "the query has 2,001 characters, but at most 2,000 are allowed"),
        (["a dog"], 1, 0.0, "the query is not a text"),
        ("a dog", 1_000_000, 0.0, "expected 1 to 50 results and a cosine similarity from 0 to 1"),
        ("a dog", 1, float("nan"), "expected 1 to 50 results and a cosine similarity from 0 to 1"),
        ("a dog", "many", 0.0, "expected the data [query, number of results, minimum cosine similarity]"),
        ("a dog", "expected the data [query, number of results, minimum cosine similarity]"),
        (
            "a \ud83d dog",
            1,
            0.0,
            "the text has half a surrogate pair, which is not a character: send both halves, or neither",
        ),
    ]
    with ThreadPoolExecutor(40) as pool:
        answers = [pool.submit(_ask, url, sentence, 1, 0.0) for sentence in sentences * 3]
        for *data, message in bad:
            assert _ask(url, *data) == (422, message)
        time.sleep(1)
        everybody_asked.set()
        answers = [future.result() for future in answers]
    for sentence, (event, data) in zip(sentences * 3, answers, strict=True):
        assert event == "complete"
        assert f"[[1.0,{sentence!r}]]".replace("'", '"') in data.replace(": ", ":").replace(", ", ",")
    assert sum(batches) == 24
    assert len(batches) <= 3


def test_searches_and_comparisons_take_turns(url, tiny, sentences, monkeypatch):
    """Both tokenize with the model's one tokenizer, whose settings are those of the latest call in any thread."""
    inside, together, lock = [], [], threading.Lock()

    def watched(call):
        def wrapper(*args, **options):
            with lock:
                inside.append(threading.get_ident())
                together.append(len(set(inside)))
            time.sleep(0.02)
            try:
                return call(*args, **options)
            finally:
                with lock:
                    inside.remove(threading.get_ident())

        return wrapper

    monkeypatch.setattr(tiny, "encode", watched(tiny.encode))
    monkeypatch.setattr(page_module, "rows_unknown", watched(page_module.rows_unknown))
    with ThreadPoolExecutor(12) as pool:
        searches = [pool.submit(_ask, url, sentence, 1, 0.0) for sentence in sentences]
        comparisons = [pool.submit(_ask, url, sentence, sentence, event="compare") for sentence in sentences]
    for sentence, search_answer, comparison in zip(sentences, searches, comparisons, strict=True):
        for event, data in (search_answer.result(), comparison.result()):
            assert event == "complete"
            assert json.loads(data)[0]["data"][0][:2] == [1.0, sentence]
    assert set(together) == {1}


def test_a_text_without_a_token_finds_nothing_and_fails_alone(sentences):
    """Where the tokenizer adds no special tokens; the texts of other callers are in the same batch."""
    model = without_special_tokens(tiny_model(sentences))
    searcher = Searcher(model)
    searcher.build_index(sentences)
    page = search_page(searcher)
    find, compare = (page.fns[number].fn for number in (SEARCH, COMPARISON))
    tables, said = find(["", sentences[0], "\u200b", sentences[1]], [1] * 4, [0.0] * 4)
    assert tables == [[], [[1.0, sentences[0]]], [], [[1.0, sentences[1]]]]
    assert said == ["Type a query.", "", UNKNOWN, ""]
    tables, said = compare([f"\u200b\n{sentences[0]}", sentences[1]], [f"a\n{sentences[0]}", "\u200b"])
    assert tables == [[[None, "\u200b", "a"], [1.0, sentences[0], sentences[0]]], [[None, sentences[1], "\u200b"]]]
    assert said == [UNKNOWN_IN_PAIR] * 2


def test_half_a_surrogate_is_refused_on_either_side_of_a_comparison_and_a_whole_pair_is_text(url):
    half = "the text has half a surrogate pair, which is not a character: send both halves, or neither"
    for data in (["\ud83d", "a"], ["a", "\ude00"]):
        assert _ask(url, *data, event="compare") == (422, half)
    body = b'{"data": ["\\ud83d\\ude00", 1, 0.0]}'
    assert httpx.post(f"{url}/gradio_api/call/search", content=body, headers=JSON).status_code == 200


@pytest.mark.parametrize("number", ["1", True, 1.0, 2, -1, None, [1]])
def test_an_event_has_its_number_and_no_other_spelling_of_it(url, number):
    """What gradio would take for the comparison is not looked at as a search, nor the reverse."""
    for data in (["a dog", 5, 0.3], ["a", "b"]):
        body = {"data": data, "fn_index": number, "session_hash": "abc"}
        answer = httpx.post(f"{url}/gradio_api/queue/join", json=body)
        expected = (422, "expected fn_index 0 for a search or 1 for a comparison")
        assert (answer.status_code, answer.json()["detail"]) == expected
    whole = {"data": ["a dog", 5, 0.3], "session_hash": "abc"}
    answer = httpx.post(f"{url}/gradio_api/queue/join", json=whole | {"fn_index": 0, "batched": True})
    assert (answer.status_code, answer.json()["detail"]) == (422, "expected one query, not a batch")
    joined = httpx.post(f"{url}/gradio_api/call/compare/", json={"data": ["a dog", 5, 0.3]})
    assert (joined.status_code, joined.json()["detail"]) == (422, "expected the data [text, text]")


@pytest.mark.slow
def test_queries_leave_nothing_of_their_callers_behind(url):
    """Objects that gradio keeps, in thousands, of everybody who asked: 15 to 30 KB a query."""

    def kept():
        gc.collect()
        objects = gc.get_objects()
        sessions = sum(type(one) is SessionState for one in objects)
        return sessions, sum(type(one) is dict and one.keys() == EVENT for one in objects)

    for number in range(3 * MAX_SESSIONS):
        assert _ask(url, f"a dog {number}", 1, 0.0)[0] == "complete"
    sessions, events = kept()
    assert sessions <= MAX_SESSIONS + 1  # and one that is being answered
    assert events <= 1


def test_a_long_query_is_refused_with_the_limit(url):
    assert _ask(url, "\N{GRINNING FACE}" * MAX_QUERY_LENGTH, 1, 0.0)[0] == "complete"
    assert _ask(url, "a" * (MAX_QUERY_LENGTH + 1), 1, 0.0)[0] == 422
    assert httpx.post(f"{url}/gradio_api/call/search", json={"data": ["a" * 10_000_000, 5, 0.3]}).status_code == 413
    chunks = (b"a" * 1000 for _ in range(1000))
    assert httpx.post(f"{url}/gradio_api/queue/join", content=chunks).status_code == 413


def test_the_page_is_closed_to_what_it_does_not_need(url):
    """The fixture sees to it that nothing was written."""
    files = {"files": ("a.txt", b"a" * 1000)}
    assert httpx.post(f"{url}/gradio_api/upload", files=files).status_code == 404
    assert httpx.post(f"{url}/gradio_api/run/search", json={"data": ["a", 5, 0.3]}).status_code == 404
    for path in ("deep_link?session_hash=a", "file=/etc/passwd", "proxy=https://example.org"):
        assert httpx.get(f"{url}/gradio_api/{path}").status_code == 404, path
    assert not httpx.get(f"{url}/monitoring").is_success


@pytest.mark.parametrize("path", ["/", "/config", "/gradio_api/info"])
def test_foreign_hosts_and_origins_are_refused(url, path):
    port = url.rsplit(":", 1)[1]
    assert httpx.get(url + path, headers={"Host": f"localhost:{port}"}).status_code == 200
    assert httpx.get(url + path, headers={"Host": f"evil.example:{port}"}).status_code == 400
    assert httpx.get(url + path, headers={"Origin": url}).status_code == 200
    for origin in ("http://evil.example", "http://[", "http://[x]", "null", ""):
        assert httpx.get(url + path, headers={"Origin": origin}).status_code == 403, origin


@pytest.fixture
def options(tmp_path, tiny_bert, corpus):
    return ["--model", tiny_bert, "--corpus", str(corpus), "--cache_dir", str(tmp_path / "cache")]


@pytest.mark.parametrize("port", ["99999", "0", "-1"])
def test_an_impossible_port_is_a_line(options, port):
    with pytest.raises(SystemExit, match=f"{port} is not a port. Choose one from 1 to 65535"):
        cli.main(["serve", *options, "--port", port])


def test_a_taken_port_is_found_before_the_model_is_loaded(options, monkeypatch):
    monkeypatch.setattr("st_simcse.models.checkpoints.load_model", lambda name: pytest.fail("loaded"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit, match=f"Port {port} cannot be used .*Choose a different one with --port"):
            cli.main(["serve", *options, "--port", str(port)])


def test_the_corpus_is_a_file_or_an_index(options, tiny_bert, tmp_path):
    for words in (["--model", tiny_bert], [*options, "--index", "folder"]):
        with pytest.raises(SystemExit, match="pass either --corpus with a file of sentences, or --index"):
            cli.main(["serve", *words])
    with pytest.raises(SystemExit, match="--cache_dir goes with --corpus"):
        cli.main(["serve", "--model", tiny_bert, "--index", "folder", "--cache_dir", "folder"])
    with pytest.raises(SystemExit, match=f"--index: there is no folder {tmp_path}.nowhere"):
        cli.main(["serve", "--model", tiny_bert, "--index", str(tmp_path / "nowhere"), "--port", str(_free_port())])


def test_the_corpus_is_embedded_once(tiny_bert, corpus, tmp_path, monkeypatch):
    hashed = []
    fingerprint = search.fingerprint
    monkeypatch.setattr(search, "fingerprint", lambda model: (hashed.append(model), fingerprint(model))[1])
    searcher = cached_searcher(load_model(tiny_bert), corpus, tmp_path)
    assert hashed == [searcher.model]
    (folder,) = tmp_path.iterdir()
    assert folder.stat().st_mode & 0o077 == 0
    monkeypatch.setattr(SentenceTransformer, "encode_document", lambda *args, **options: pytest.fail("embedded"))
    again = cached_searcher(load_model(tiny_bert), corpus, tmp_path)
    assert again.search(["a dog"]) == searcher.search(["a dog"])
    other = load_model(tiny_bert)
    other.max_seq_length = 3
    with pytest.raises(pytest.fail.Exception, match="embedded"):
        cached_searcher(other, corpus, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_end_is_a_line_and_leaves_nothing_behind(options, tmp_path, sent):
    (tmp_path / "tmp").mkdir()
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent), "TMPDIR": str(tmp_path / "tmp")}
    command = [sys.executable, "-m", "st_simcse", "serve", *options, "--port", str(_free_port())]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        line = process.stdout.readline()
        expected = f"The page is at http://127.0.0.1:{command[-1]}. Press Ctrl-C to stop it.\n"
        assert line == expected, line or process.stderr.read()
        process.send_signal(sent)
        try:
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()  # or else the test waits for it
    assert out == ""
    assert err.splitlines()[-1] == "st-simcse serve: stopped"
    assert "Traceback" not in err
    assert process.returncode == 0
    assert not [path for path in (tmp_path / "tmp").rglob("*") if path.is_file()]


def test_an_interrupted_start_is_a_line(options, monkeypatch):
    def interrupted(*args):
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("st_simcse.search.searcher.Searcher", interrupted)
    with pytest.raises(SystemExit, match="st-simcse serve: interrupted before the page was up"):
        cli.main(["serve", *options, "--port", str(_free_port())])
    assert signal.getsignal(signal.SIGTERM) is before
