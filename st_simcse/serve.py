"""A page in the browser to search a file of sentences. Needs gradio (the extra "serve")."""

from __future__ import annotations

import json
import os
import socket
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from huggingface_hub import cached_assets_path
from sentence_transformers import SentenceTransformer

from st_simcse.readers import SentenceReader
from st_simcse.search import SentenceIndex

if TYPE_CHECKING:
    from gradio import Blocks
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["check_port", "launch", "search_page"]

# gradio would fetch its fonts, report its use and have the browser keep all queries; a local page does without. Its
# statistics, for a page of its own that is closed here, cost more time after each query than a search.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("GRADIO_RUN_HISTORY", "False")
os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", str(2**62))

HOST = "127.0.0.1"
MAX_QUERY_LENGTH = 2_000  # characters; what a model reads of a text is shorter
MAX_BODY_SIZE = 64 * 1024  # bytes; the longest query with every character escaped has 24,000
MAX_BATCH_SIZE = 64
MAX_WAITING = 1_000  # further queries are told that the queue is full
MAX_RESULTS = 50


def search_page(
    model: SentenceTransformer, corpus: str | os.PathLike[str], cache_dir: str | os.PathLike[str] | None = None
) -> Blocks:
    """The page: a query, and the sentences of the corpus that are most similar to it.

    The corpus is embedded once, here, or its embeddings are read from the cache. Queries that wait are embedded
    together. Longer queries than ``MAX_QUERY_LENGTH`` characters are refused.

    Args:
        model: embeds the corpus and the queries.
        corpus: a file that :class:`~st_simcse.SentenceReader` reads; equal sentences are listed once.
        cache_dir: keeps the embeddings, see :class:`~st_simcse.search.SentenceIndex`; the folder for st_simcse in the
            cache of huggingface_hub (``HF_HOME``) when left out.

    Returns:
        A gradio app, for :func:`launch`, or to be mounted elsewhere.

    Raises:
        ImportError: without gradio.
        FileNotFoundError, ValueError: as the reader and the index do.
    """
    gradio = _gradio()
    # Not the reader's Dataset, which would be a copy of the corpus on the disk while the page runs.
    examples = SentenceReader(drop_duplicates=True).get_examples(corpus)
    sentences = [texts[0] for example in examples if (texts := example.texts)]
    index = SentenceIndex(model, sentences, cache_dir or cached_assets_path("st_simcse", "embeddings"))

    def search(queries: list[str], results: list[float], thresholds: list[float]) -> tuple[list[list[list[object]]]]:
        found = index.search(queries, MAX_RESULTS)
        tables = [
            [[round(score, 3), sentence] for score, sentence in hits[: int(most)] if query.strip() and score >= least]
            for query, hits, most, least in zip(queries, found, results, thresholds, strict=True)
        ]
        return (tables,)

    with gradio.Blocks(title="SimCSE search") as page:
        gradio.Markdown(f"## Search {len(sentences):,} sentences by meaning")
        query = gradio.Textbox(
            label="Query", placeholder="A man plays a guitar.", autofocus=True, max_length=MAX_QUERY_LENGTH
        )
        with gradio.Row():
            results = gradio.Slider(1, MAX_RESULTS, value=5, step=1, label="Results")
            threshold = gradio.Slider(0.0, 1.0, value=0.3, step=0.05, label="Least cosine similarity")
        button = gradio.Button("Search", variant="primary")
        table = gradio.Dataframe(
            headers=["cosine", "sentence"], label="Most similar", wrap=True, column_widths=["15%", "85%"]
        )
        gradio.on(
            [button.click, query.submit],
            search,
            [query, results, threshold],
            table,
            api_name="search",
            batch=True,
            max_batch_size=MAX_BATCH_SIZE,
        )
    return page.queue(api_open=False, max_size=MAX_WAITING)


def check_port(port: int) -> None:
    """Find out in time whether the page can be served there.

    Raises:
        ValueError: if there is no such port.
        OSError: if it is taken, or not allowed.
    """
    if not 0 < port < 2**16:
        raise ValueError(f"there is no port {port}: choose one from 1 to 65535")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise OSError(f"port {port} cannot be used ({error.strerror}): choose another one with --port") from None


def launch(page: Blocks, port: int) -> None:
    """Serve the page at ``http://127.0.0.1:PORT``, from a thread: returns at once; ``page.close()`` ends it.

    What it has no use for is closed: other host names than this machine's (a foreign page could otherwise read the
    corpus by rebinding its name), other origins, uploads, files, gradio's direct calls beside the queue, its
    monitoring and public links, and bodies of more than ``MAX_BODY_SIZE`` bytes.

    Args:
        page: what :func:`search_page` gives.
        port: see :func:`check_port`.
    """
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    hosts = [HOST, "localhost"]
    page.launch(
        server_name=HOST,
        server_port=port,
        share=False,
        quiet=True,
        ssr_mode=False,
        enable_monitoring=False,
        prevent_thread_lock=True,
        app_kwargs={
            "middleware": [
                Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False),
                Middleware(_Guard, hosts=hosts),
            ]
        },
    )


class _Guard:
    """ASGI middleware that lets through what the page itself asks for."""

    queries = ("/gradio_api/queue/join", "/gradio_api/call/search")
    posts = (*queries, "/gradio_api/cancel", "/gradio_api/reset")
    # Files of other apps in gradio's folder, other hosts, and results that would be written to the disk.
    closed = ("/gradio_api/file", "/gradio_api/proxy=", "/gradio_api/deep_link")

    def __init__(self, app: ASGIApp, hosts: list[str]) -> None:
        self.app = app
        self.hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        from starlette.datastructures import Headers
        from starlette.responses import JSONResponse, PlainTextResponse

        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        path = scope["path"]
        origin = Headers(scope=scope).get("origin")
        if origin is not None and urlsplit(origin).hostname not in self.hosts:
            return await PlainTextResponse("foreign origin", 403)(scope, receive, send)
        if path.startswith(self.closed) or (scope["method"] == "POST" and not path.startswith(self.posts)):
            return await PlainTextResponse("not part of this page", 404)(scope, receive, send)

        body, more = b"", True
        while more:
            message = await receive()
            if len(body) <= MAX_BODY_SIZE:  # what follows is read, so that the answer arrives, and dropped
                body += message.get("body", b"")
            more = message.get("more_body", False)
        if len(body) > MAX_BODY_SIZE:
            return await PlainTextResponse(f"more than {MAX_BODY_SIZE:,} bytes", 413)(scope, receive, send)
        if scope["method"] == "POST" and path.startswith(self.queries) and (wrong := _wrong_with(body)):
            return await JSONResponse({"detail": wrong}, 422)(scope, receive, send)
        replayed = False

        async def replay() -> Message:
            nonlocal replayed
            if replayed:
                return await receive()
            replayed = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, replay, send)


def _wrong_with(body: bytes) -> str | None:
    """What does not fit the search; said before the query joins a batch, all of which gradio would fail otherwise."""
    try:
        query, results, threshold = json.loads(body)["data"]
        if not isinstance(query, str):
            return "the query is no text"
        if len(query) > MAX_QUERY_LENGTH:
            return f"the query has {len(query):,} characters, {MAX_QUERY_LENGTH:,} are allowed"
        if not (1 <= results <= MAX_RESULTS and 0 <= threshold <= 1):
            return f"expected 1 to {MAX_RESULTS} results and a cosine similarity from 0 to 1"
    except (ValueError, KeyError, TypeError, RecursionError):
        return "expected the data [query, number of results, least cosine similarity]"
    return None


def _gradio() -> Any:
    try:
        import gradio
    except ImportError as error:
        raise ImportError('the page needs gradio: pip install "st_simcse[serve]"') from error
    return gradio
