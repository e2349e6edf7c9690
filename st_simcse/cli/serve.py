"""``st-simcse serve``: the search page."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from st_simcse.cli.parsing import parse


@dataclass
class ServeArguments:
    model: str = field(metadata={"help": "Folder of a saved model, or its name on the hub."})
    corpus: str = field(metadata={"help": "Sentences to search: .txt, or a table with the column sentence or text."})
    port: int = field(default=7860, metadata={"help": "The page is at http://127.0.0.1:PORT."})
    cache_dir: str | None = field(
        default=None,
        metadata={"help": "Keeps the corpus's embeddings for the next start; assets/st_simcse under HF_HOME if none."},
    )


def run(argv: Sequence[str]) -> None:
    """Serve it until interrupted."""
    example = "st-simcse serve --model output --corpus sentences.txt"
    (args,) = parse("serve", argv, ServeArguments, example=example)

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        from st_simcse.checkpoints import load_model
        from st_simcse.serve import check_port, launch, search_page

        check_port(args.port)
        page = search_page(load_model(args.model), args.corpus, args.cache_dir)
        launch(page, args.port)
        with suppress(KeyboardInterrupt):
            print(f"The page is at http://127.0.0.1:{args.port}; Ctrl-C ends it.", flush=True)
            while True:
                time.sleep(60)
        print("st-simcse serve: stopped", file=sys.stderr)
        page.close(verbose=False)
    except KeyboardInterrupt:
        sys.exit("st-simcse serve: interrupted before the page was up")
    finally:
        signal.signal(signal.SIGTERM, before)
