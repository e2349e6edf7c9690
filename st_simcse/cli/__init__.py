"""The command line: finds the command; each is a file of its own, imported when it is called."""

from __future__ import annotations

import importlib.metadata
import logging
import sys
from collections.abc import Sequence
from importlib import import_module

from safetensors import SafetensorError

from st_simcse.cli.libraries import import_libraries
from st_simcse.cli.output import MessageHandler, printable
from st_simcse.cli.train_options import check_words

__all__ = ["main"]

COMMANDS = {
    "train": "train a model on a file of sentences, triplets or NLI rows",
    "adapt": "the best of a short list of recipes for a corpus: tried, trained, saved with a report",
    "compare": "several recipes of train over several seeds: a table and a plot with spreads",
    "whiten": "even out the spread of a model's embeddings on a corpus, without training",
    "presets": "recipes of the paper, of LLM2Vec, for ModernBERT, and ours, for train --preset",
    "evaluate": "one or several models on the seven STS tasks, or on the transfer tasks",
    "plot": "a map of a corpus, and the similarities of positives and negatives",
    "data": "download the public data sets for training and evaluation",
    "export": "save a model for users of transformers' AutoModel",
    "encode": "embeddings of a file or data set, as .npy, .safetensors or .parquet",
    "index": "a corpus, embedded and ready to be searched, as a folder",
    "search": "the sentences of an index that are most similar to queries",
    "serve": "a page to search an index or a file of sentences, on this machine",
    "demo": "both objectives on a tiny model and a generated corpus: no network, no files",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``st-simcse``; errors in the input end it with a line, not a traceback.

    Example:
        >>> main(["--version"])
        st_simcse 0.1.0
    """
    command, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if command in ("-h", "--help"):
        print(_usage())
    elif command == "--version":
        print(f"st_simcse {importlib.metadata.version('st_simcse')}")
    elif command not in COMMANDS:
        sys.exit(f"st-simcse: unknown command {command!r}: choose one of {', '.join(COMMANDS)}")
    else:
        logging.basicConfig(handlers=[MessageHandler()], level=logging.WARNING)
        logging.getLogger("st_simcse").setLevel(logging.INFO)  # notes of ours, warnings alone of other libraries
        try:
            if command == "train":  # its options and so its module import the libraries
                check_words(rest)
                import_libraries()
            import_module(f"st_simcse.cli.{command}").run(rest)
        except (ImportError, OSError, ValueError, SafetensorError) as error:
            sys.exit(printable(f"st-simcse {command}: {error}", lines=True))
        except Exception as error:
            from st_simcse.models.hub import is_network_error

            if not is_network_error(error):
                raise
            sys.exit(f"st-simcse {command}: the network failed ({error}): check it, and run the same command again")
        except KeyboardInterrupt:
            print(f"st-simcse {command}: interrupted", file=sys.stderr)
            sys.exit(130)  # 128 and the number of SIGINT, as shells expect


def _usage() -> str:
    commands = "\n".join(f"  {name:<10}{text}" for name, text in COMMANDS.items())
    return (
        f"usage: st-simcse COMMAND [options]\n\n{commands}\n\n"
        "st-simcse COMMAND --help lists the options; st-simcse --version the version."
    )
