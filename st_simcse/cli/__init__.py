"""The command line. Each command has its own module, which is imported only when the command is called."""

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
    "adapt": "try a short list of recipes on a corpus, and save the best model with a report",
    "compare": "train several recipes with several seeds, and report mean scores and spreads",
    "whiten": "even out the spread of a model's embeddings on a corpus, without training",
    "presets": "print the recipes for train --preset: the paper's, LLM2Vec's, ModernBERT's and ours",
    "evaluate": "score one or more models on the seven STS tasks or the transfer tasks",
    "plot": "draw a map of a corpus, or the similarities of positives and negatives",
    "data": "download the public data sets for training and evaluation",
    "export": "save a model for users of transformers' AutoModel",
    "encode": "embed a file or data set, and save the embeddings as .npy, .safetensors or .parquet",
    "index": "embed a corpus, and save it as a folder that can be searched",
    "search": "find the sentences of an index that are most similar to your queries",
    "serve": "serve a web page on this machine to search an index or a file of sentences",
    "demo": "run both objectives on a tiny model and a generated corpus, without network or files",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs ``st-simcse``. Errors in the input end it with a message instead of a traceback.

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
        logging.getLogger("st_simcse").setLevel(logging.INFO)  # other libraries show warnings only
        try:
            if command == "train":  # its module imports the libraries, which its options come from
                check_words(rest)
                import_libraries()
            import_module(f"st_simcse.cli.{command}").run(rest)
        except (ImportError, OSError, ValueError, SafetensorError) as error:
            sys.exit(printable(f"st-simcse {command}: {error}", lines=True))
        except Exception as error:
            from st_simcse.models.hub import is_network_error

            if not is_network_error(error):
                raise
            sys.exit(
                f"st-simcse {command}: the network failed ({error}). Check the connection, and run the same command "
                "again"
            )
        except KeyboardInterrupt:
            print(f"st-simcse {command}: interrupted", file=sys.stderr)
            sys.exit(130)  # 128 plus the number of SIGINT, as shells expect


def _usage() -> str:
    commands = "\n".join(f"  {name:<10}{text}" for name, text in COMMANDS.items())
    return (
        f"usage: st-simcse COMMAND [options]\n\n{commands}\n\n"
        "Run st-simcse COMMAND --help for the options of a command, and st-simcse --version for the version."
    )
