"""``st-simcse serve``: the search page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from st_simcse.cli.parsing import parse


@dataclass
class ServeArguments:
    model: str = field(metadata={"help": "Folder of a saved model, or its name on the hub."})
    corpus: str = field(metadata={"help": "Sentences to search: .txt, or a table with the column sentence or text."})
    port: int = field(default=7860, metadata={"help": "The page is at http://127.0.0.1:PORT."})


def run(argv: Sequence[str]) -> None:
    """Serve it until interrupted."""
    example = "st-simcse serve --model output --corpus sentences.txt"
    (args,) = parse("serve", argv, ServeArguments, example=example)

    from st_simcse.checkpoints import load_model
    from st_simcse.serve import search_page

    page = search_page(load_model(args.model), args.corpus)
    page.launch(server_name="127.0.0.1", server_port=args.port)
