"""A page in the browser to search a file of sentences. Needs gradio (the extra "serve")."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from sentence_transformers import SentenceTransformer
from sentence_transformers.util import semantic_search

from st_simcse.readers import SentenceReader

if TYPE_CHECKING:
    from gradio import Blocks

__all__ = ["search_page"]

# gradio would fetch its fonts and report its use; a local page works without a network.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")


def search_page(model: SentenceTransformer, corpus: str | os.PathLike[str]) -> Blocks:
    """The page: a query, and the sentences of the corpus that are most similar to it.

    The corpus is embedded once, here.

    Args:
        model: embeds the corpus and the queries.
        corpus: a file that :class:`~st_simcse.SentenceReader` reads; equal sentences are listed once.

    Returns:
        A gradio app; its ``launch()`` serves it.

    Raises:
        ImportError: without gradio.
        FileNotFoundError, ValueError: as the reader does.
    """
    try:
        import gradio
    except ImportError as error:
        raise ImportError('the page needs gradio: pip install "st_simcse[serve]"') from error

    sentences = SentenceReader(drop_duplicates=True).get_dataset(corpus)["sentence"][:]
    embeddings = model.encode(sentences, convert_to_tensor=True, show_progress_bar=True)

    def search(query: str, results: int, threshold: float) -> list[list[object]]:
        if not query.strip():
            return []
        hits = semantic_search(model.encode([query], convert_to_tensor=True), embeddings, top_k=int(results))[0]
        return [[round(hit["score"], 3), sentences[hit["corpus_id"]]] for hit in hits if hit["score"] >= threshold]

    with gradio.Blocks(title="SimCSE search") as page:
        gradio.Markdown(f"## Search {len(sentences):,} sentences by meaning")
        query = gradio.Textbox(label="Query", placeholder="A man plays a guitar.", autofocus=True)
        with gradio.Row():
            results = gradio.Slider(1, 50, value=5, step=1, label="Results")
            threshold = gradio.Slider(0.0, 1.0, value=0.3, step=0.05, label="Least cosine similarity")
        button = gradio.Button("Search", variant="primary")
        table = gradio.Dataframe(
            headers=["cosine", "sentence"], label="Most similar", wrap=True, column_widths=["15%", "85%"]
        )
        for event in (button.click, query.submit):
            event(search, [query, results, threshold], table, api_name="search")
    return page
