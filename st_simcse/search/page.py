"""A web page to search a file of sentences. It needs gradio (the extra "serve")."""

from __future__ import annotations

import json
import os
import socket
from functools import partial
from html import escape
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from st_simcse.data.lengths import rows_unknown
from st_simcse.search.searcher import Searcher

if TYPE_CHECKING:
    from gradio import Blocks
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["check_port", "launch", "search_page"]

# Without these settings, gradio would fetch fonts, report its use, and keep all queries in the browser, which a local
# page does not need. Its statistics take longer than a search, and the page that shows them is closed here.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("GRADIO_RUN_HISTORY", "False")
os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", str(2**62))
os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "1")

HOST = "127.0.0.1"
MAX_QUERY_LENGTH = 2_000  # characters; models read fewer
MAX_BODY_SIZE = 64 * 1024  # bytes; the longest query takes 24,000 if every character is escaped
MAX_BATCH_SIZE = 64
MAX_WAITING = 1_000  # queries beyond this number get an answer that the queue is full
MAX_RESULTS = 50
MAX_PAIRS = 50
# The page has no state to come back to, and gradio would keep 20 KB for each of the last 10,000 visitors.
MAX_SESSIONS = 20
# The remarks of the page if a table has no rows, or rows without a similarity.
NO_QUERY = "Type a query."
NO_TEXTS = "Type a text on both sides, or the same number of lines."
UNKNOWN = (
    "The model does not know any word or character of this query, so it would find the same sentences for every such "
    "query. Write the query in a language of the model."
)
UNKNOWN_IN_PAIR = "If a pair has no similarity, the model does not know any word or character of one of its texts."
# A remark replaces the table of hits if it is empty. The hidden table keeps its place, because the browser measures it.
STYLE = "body:has(#search-remark p) #search-table { visibility: hidden }"
SEARCH, COMPARISON = 0, 1  # the numbers of the page's events


def search_page(searcher: Searcher, model: str = "", corpus: str = "") -> Blocks:
    """Creates the page. One tab finds the sentences most similar to a query, and the other compares pairs of texts.

    Queries that arrive at the same time are embedded together. Queries longer than ``MAX_QUERY_LENGTH`` characters are
    refused. If nothing is found, the page says why.

    Args:
        searcher: A searcher with an index.
        model: The name of its model to show on the page.
        corpus: The name of its corpus to show on the page.

    Returns:
        A gradio app for :func:`launch`, or to mount in another app.

    Raises:
        ImportError: If gradio is not installed.
        ValueError: If the searcher has no index, or an unfinished one.
    """
    gradio = _gradio()
    searcher.search([])  # raises an error now if there is nothing to search
    # Both events use the model's tokenizer, which keeps settings between calls. So they share an id and take turns.
    queued: dict[str, Any] = {"batch": True, "max_batch_size": MAX_BATCH_SIZE, "concurrency_id": "model"}
    with gradio.Blocks(title="SimCSE search") as page:
        with gradio.Tab("Search"):
            gradio.HTML(_heading(f"Search {len(searcher.embeddings):,} sentences by meaning", model, corpus))
            query = gradio.Textbox(
                label="Query", placeholder="A man plays a guitar.", autofocus=True, max_length=MAX_QUERY_LENGTH
            )
            with gradio.Row():
                results = gradio.Slider(1, MAX_RESULTS, value=5, step=1, label="Results")
                threshold = gradio.Slider(0.0, 1.0, value=0.3, step=0.05, label="Minimum cosine similarity")
            button = gradio.Button("Search", variant="primary")
            found = _table_and_remark(gradio, "search", "Most similar", [24, 76], ["cosine", "sentence"], NO_QUERY)
        with gradio.Tab("Compare"):
            gradio.HTML(_heading("Compare two texts, or the lines of two lists", model))
            with gradio.Row():
                sides = [
                    gradio.Textbox(label=label, placeholder=text, lines=4, max_length=MAX_QUERY_LENGTH)
                    for label, text in [("First", "A man plays a guitar."), ("Second", "Someone makes music.")]
                ]
            compare_button = gradio.Button("Compare", variant="primary")
            pairs = _table_and_remark(gradio, "compare", "Pairs", [24, 38, 38], ["cosine", "first", "second"], NO_TEXTS)
        asked = {"inputs": [query, results, threshold], "outputs": found, "show_progress_on": found[0]}
        gradio.on([button.click, query.submit], partial(_search, searcher), **asked, api_name="search", **queued)
        asked = {"inputs": sides, "outputs": pairs, "show_progress_on": pairs[0]}
        gradio.on([compare_button.click], partial(_compare, searcher), **asked, api_name="compare", **queued)
    return page.queue(api_open=False, max_size=MAX_WAITING)


def _heading(title: str, model: str, corpus: str = "") -> str:
    """Returns the heading in HTML. Long names, such as paths, wrap, so that they do not widen the page on a phone."""
    named = [(f"{what}: <code>{escape(name)}</code>") for what, name in (("Corpus", corpus), ("Model", model)) if name]
    return f'<h2>{title}</h2><p style="overflow-wrap: anywhere">{"<br>".join(named)}</p>'


def _table_and_remark(
    gradio: Any, name: str, label: str, percent: list[int], headers: list[str], remark: str
) -> tuple[Any, Any]:
    """Creates a table of results with a remark above it. The first header fits its column even on a phone."""
    said = gradio.Markdown(remark, elem_id=f"{name}-remark")
    widths = [f"{width}%" for width in percent]
    table = gradio.Dataframe(headers=headers, label=label, wrap=True, column_widths=widths, elem_id=f"{name}-table")
    return table, said


def _search(
    searcher: Searcher, queries: list[str], results: list[float], thresholds: list[float]
) -> tuple[list[list[list[object]]], list[str]]:
    """Returns the table rows for the queries of several visitors, and the remarks for tables without rows."""
    unknown = set(rows_unknown(searcher.model, queries))
    asked = [row for row in range(len(queries)) if row not in unknown]
    found = dict(zip(asked, searcher.search([queries[row] for row in asked], MAX_RESULTS), strict=True))
    tables: list[list[list[object]]] = []
    remarks = []
    for row, (query, most, least) in enumerate(zip(queries, results, thresholds, strict=True)):
        hits = found.get(row, [])
        near = [hit for hit in hits[: int(most)] if hit["score"] >= least]
        tables.append([[round(hit["score"], 3), hit["text"]] for hit in near])
        if near:
            remarks.append("")
        elif hits:
            remarks.append(f"Nothing above {least:g}. The most similar sentence has {hits[0]['score']:.3f}.")
        else:
            remarks.append(UNKNOWN if query.strip() else NO_QUERY)
    return tables, remarks


def _compare(searcher: Searcher, firsts: list[str], seconds: list[str]) -> tuple[list[list[list[object]]], list[str]]:
    """Returns the table rows for the texts of several visitors, and the remarks on them."""
    pairs = [
        list(zip(_lines(first), _lines(second), strict=True)) for first, second in zip(firsts, seconds, strict=True)
    ]
    scores = iter(_similarities(searcher, [pair for rows in pairs for pair in rows]))
    tables: list[list[list[object]]] = [[[next(scores), *pair] for pair in rows] for rows in pairs]
    remarks = [
        NO_TEXTS if not table else UNKNOWN_IN_PAIR if any(row[0] is None for row in table) else "" for table in tables
    ]
    return tables, remarks


def check_port(port: int) -> None:
    """Checks in advance that the page can be served at a port.

    Raises:
        ValueError: If the number is not a port.
        OSError: If the port is in use or not allowed.
    """
    if not 0 < port < 2**16:
        raise ValueError(f"{port} is not a port. Choose one from 1 to 65535.")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise OSError(
                f"Port {port} cannot be used ({error.strerror}). Choose a different one with --port."
            ) from None


def launch(page: Blocks, port: int) -> None:
    """Serves the page at ``http://127.0.0.1:PORT`` from a thread and returns at once. ``page.close()`` stops it.

    Everything that the page does not need is refused: host names other than this machine's (otherwise a malicious
    website could read the corpus by DNS rebinding), other origins, uploads, files, direct calls of gradio that skip the
    queue, monitoring, public links, and bodies of more than ``MAX_BODY_SIZE`` bytes.

    Args:
        page: The page as returned by :func:`search_page`.
        port: The port, see :func:`check_port`.
    """
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    hosts = [HOST, "localhost"]
    page.launch(
        server_name=HOST,
        server_port=port,
        share=False,
        quiet=True,
        css=STYLE,
        ssr_mode=False,
        enable_monitoring=False,
        state_session_capacity=MAX_SESSIONS,
        prevent_thread_lock=True,
        app_kwargs={
            "middleware": [
                Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False),
                Middleware(_Guard, hosts=hosts),
            ]
        },
    )


class _Guard:
    """ASGI middleware that only lets requests of the page itself through."""

    queries = ("/gradio_api/queue/join", "/gradio_api/call/search", "/gradio_api/call/compare")
    posts = (*queries, "/gradio_api/cancel", "/gradio_api/reset")
    # Files of other apps in gradio's folder, requests to other hosts, and results that would be written to disk.
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
        # Starlette's CORSMiddleware would answer a foreign origin and rely on the browser to hide the answer.
        origin = Headers(scope=scope).get("origin")
        if origin is not None and _hostname(origin) not in self.hosts:
            return await PlainTextResponse("foreign origin", 403)(scope, receive, send)
        if path.startswith(self.closed) or (scope["method"] == "POST" and not path.startswith(self.posts)):
            return await PlainTextResponse("not part of this page", 404)(scope, receive, send)

        body, more = b"", True
        while more:
            message = await receive()
            if len(body) <= MAX_BODY_SIZE:  # the rest is read and dropped, so that the client gets the answer
                body += message.get("body", b"")
            more = message.get("more_body", False)
        if len(body) > MAX_BODY_SIZE:
            return await PlainTextResponse(f"more than {MAX_BODY_SIZE:,} bytes", 413)(scope, receive, send)
        if scope["method"] == "POST" and path.startswith(self.queries) and (wrong := _wrong_with(path, body)):
            return await JSONResponse({"detail": wrong}, 422)(scope, receive, send)
        replayed = False

        async def replay() -> Message:
            nonlocal replayed
            if replayed:
                return await receive()
            replayed = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, replay, send)


def _hostname(origin: str) -> str | None:
    try:
        return urlsplit(origin).hostname
    except ValueError:  # such as `http://[`
        return None


def _wrong_with(path: str, body: bytes) -> str | None:
    """Returns an error message for an invalid request, or None for a valid one.

    It is checked before the request joins a batch, because gradio would fail the whole batch otherwise.
    """
    is_comparison = False
    try:
        request = json.loads(body)
        data = request["data"]
        if path.startswith(_Guard.queries[0]):
            event = request.get("fn_index")
            if type(event) is not int or event not in (SEARCH, COMPARISON):  # gradio takes "1" and true as well
                return f"expected fn_index {SEARCH} for a search or {COMPARISON} for a comparison"
            is_comparison = event == COMPARISON
        else:
            is_comparison = path.startswith("/gradio_api/call/compare")
        if request.get("batched"):
            return "expected one query, not a batch"
        if is_comparison:
            first, second = texts = data
        else:
            query, results, threshold = data
            texts = [query]
        if not all(isinstance(text, str) for text in texts):
            return "expected two texts" if is_comparison else "the query is not a text"
        if any("\ud800" <= character <= "\udfff" for text in texts for character in text):
            return "the text has half a surrogate pair, which is not a character: send both halves, or neither"
        if (longest := max(map(len, texts))) > MAX_QUERY_LENGTH:
            what = "a text" if is_comparison else "the query"
            return f"{what} has {longest:,} characters, but at most {MAX_QUERY_LENGTH:,} are allowed"
        if is_comparison:
            lines = [len(_lines(first)), len(_lines(second))]
            if lines[0] != lines[1] or lines[0] > MAX_PAIRS:
                return f"expected equally many lines on both sides, {MAX_PAIRS} at most, got {lines[0]} and {lines[1]}"
        elif not (1 <= results <= MAX_RESULTS and 0 <= threshold <= 1):
            return f"expected 1 to {MAX_RESULTS} results and a cosine similarity from 0 to 1"
    except (AttributeError, ValueError, KeyError, TypeError, RecursionError):
        kinds = "text, text" if is_comparison else "query, number of results, minimum cosine similarity"
        return f"expected the data [{kinds}]"
    return None


def _similarities(searcher: Searcher, pairs: list[tuple[str, str]]) -> list[float | None]:
    """Returns the rounded cosine similarity of each pair, or None if the model knows nothing of one of its texts."""
    unknown = {row for side in zip(*pairs, strict=True) for row in rows_unknown(searcher.model, side)}
    similarities: list[float | None] = [None] * len(pairs)
    if asked := [row for row in range(len(pairs)) if row not in unknown]:
        sides = zip(*(pairs[row] for row in asked), strict=True)
        first, second = (searcher.encode(side, show_progress_bar=False) for side in sides)
        for row, similarity in zip(asked, (first * second).sum(axis=1).tolist(), strict=True):
            similarities[row] = round(similarity, 3)
    return similarities


def _lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


def _gradio() -> Any:
    try:
        import gradio
    except ImportError as error:
        raise ImportError('The page needs gradio. Install it with: pip install "st_simcse[serve]"') from error
    return gradio
