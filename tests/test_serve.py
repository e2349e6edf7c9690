import pytest
from gradio_client import Client

from st_simcse.cli import serve
from st_simcse.demo import tiny_model
from st_simcse.serve import search_page


def test_the_page_finds_what_is_most_similar(tmp_path, sentences):
    """Over HTTP, as the page in the browser asks."""
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join([*sentences, sentences[0]]))
    model = tiny_model(sentences)
    page = search_page(model, corpus)
    try:
        _, url, _ = page.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)
        client = Client(url, verbose=False)
        found = client.predict(sentences[2], 3, 0.0, api_name="/search")["data"]
        assert client.predict("  ", 3, 0.0, api_name="/search")["data"] == []
        assert client.predict(sentences[2], 8, 0.9999, api_name="/search")["data"] == [[1.0, sentences[2]]]
    finally:
        page.close()
    cosine = model.similarity(model.encode([sentences[2]]), model.encode(sentences))[0]
    expected = [sentences[row] for row in cosine.argsort(descending=True)[:3]]
    assert [sentence for _, sentence in found] == expected
    assert [value for value, _ in found] == pytest.approx(sorted(cosine.tolist(), reverse=True)[:3], abs=1e-3)


def test_serve_reads_its_options(tmp_path, tiny_bert, sentences, monkeypatch):
    (tmp_path / "corpus.txt").write_text("\n".join(sentences))
    launched = {}
    monkeypatch.setattr("gradio.Blocks.launch", lambda page, **options: launched.update(options))
    serve.run(["--model", tiny_bert, "--corpus", str(tmp_path / "corpus.txt"), "--port", "7999"])
    assert launched == {"server_name": "127.0.0.1", "server_port": 7999}
