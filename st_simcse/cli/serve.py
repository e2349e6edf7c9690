"""``st-simcse serve``: serves the search page."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from st_simcse.cli.files import FileArguments, check_has_file, file_flags, file_options
from st_simcse.cli.libraries import import_libraries
from st_simcse.cli.parsing import PRECISION, Precision, check_inputs, named_options, parse


@dataclass
class ServeArguments:
    model: str = field(metadata={"help": "Folder of a saved model, or its name on the hub."})
    corpus: str | None = field(
        default=None, metadata={"help": "Sentences to search: a .txt file, or a table with a column sentence or text."}
    )
    index: str | None = field(default=None, metadata={"help": "Folder made by st-simcse index, instead of --corpus."})
    precision: Precision = PRECISION
    port: int = field(default=7860, metadata={"help": "Port of the page, which is at http://127.0.0.1:PORT."})
    cache_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder that keeps the embeddings of the corpus for the next start. Defaults to assets/st_simcse "
            "under HF_HOME."
        },
    )


def run(argv: Sequence[str]) -> None:
    """Serves the page until interrupted."""
    example = "st-simcse serve --model output --corpus sentences.txt"
    args, file = parse("serve", argv, ServeArguments, FileArguments, example=example)

    if (args.corpus is None) == (args.index is None):
        raise ValueError("pass either --corpus with a file of sentences, or --index with a folder of st-simcse index")
    if args.index and args.cache_dir:
        raise ValueError(
            "--cache_dir goes with --corpus; an index keeps its embeddings in its own folder. Leave it out"
        )
    check_has_file(vars(file), "", "--corpus", has_file=args.corpus is not None)
    check_inputs(args)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        import_libraries()
        from st_simcse.data.readers import SentenceReader
        from st_simcse.models.checkpoints import load_model
        from st_simcse.models.fast_encode import fast_encode_own
        from st_simcse.search.page import check_port, launch, search_page
        from st_simcse.search.searcher import Searcher, cached_searcher

        check_port(args.port)
        if args.index:
            searcher = Searcher.load(args.index, args.model, args.precision)
        else:
            with named_options(**file_flags(vars(file))):
                reader = SentenceReader(drop_duplicates=True, **file_options(vars(file)))
                sentences = reader.get_dataset(args.corpus)
            model = fast_encode_own(load_model(args.model), args.precision)
            searcher = cached_searcher(model, sentences, args.cache_dir)
        page = search_page(searcher, args.model, args.index or args.corpus)
        launch(page, args.port)
        with suppress(KeyboardInterrupt):
            print(f"The page is at http://127.0.0.1:{args.port}. Press Ctrl-C to stop it.", flush=True)
            while True:
                time.sleep(60)
        print("st-simcse serve: stopped", file=sys.stderr)
        page.close(verbose=False)
    except KeyboardInterrupt:
        sys.exit("st-simcse serve: interrupted before the page was up")
    finally:
        signal.signal(signal.SIGTERM, before)
