"""The options that say how a file is read: the same in every command, under a prefix where it reads several files."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, make_dataclass
from typing import Any, ClassVar, Literal, get_type_hints

from st_simcse.cli.parsing import parse_column, parse_columns

__all__ = ["FileArguments", "check_has_file", "file_flags", "file_options", "table_arguments"]

_QUOTING = {"minimal": csv.QUOTE_MINIMAL, "none": csv.QUOTE_NONE}
# The readers' arguments, and what makes each of an option's words.
_PARSERS: dict[str, Callable[..., Any]] = {
    "column": parse_column,
    "columns": parse_columns,
    "split": str,
    "format": str,
    "delimiter": lambda word: "\t" if word == "\\t" else word,
    "encoding": str,
    "quoting": _QUOTING.get,
}


@dataclass
class FileArguments:
    """Those of a file of texts."""

    _argument_group_name: ClassVar[str] = "file"

    column: str | None = field(
        default=None, metadata={"help": "Of a table, by name or number from 0; sentence or text if none."}
    )
    split: str | None = field(default=None, metadata={"help": "Which split, of a table with a column of splits."})
    format: Literal["lines", "csv", "tsv", "jsonl"] | None = field(
        default=None, metadata={"help": "What the file is; if none, what its name and first lines say."}
    )
    delimiter: str | None = field(default=None, metadata={"help": "What separates its cells, such as ||."})
    encoding: str | None = field(default=None, metadata={"help": "Of the file, such as gb18030; UTF-8 if none."})
    quoting: Literal["minimal", "none"] | None = field(
        default=None, metadata={"help": "Whether its cells may stand in quotes; if none, those commas separate may."}
    )


def table_arguments(prefix: str, columns: str, has_split: bool = True) -> Any:
    """A dataclass of those of a table, such as ``--knn_columns`` and ``--knn_delimiter``.

    Args:
        prefix: what the options begin with, such as ``knn_``.
        columns: help for the columns.
        has_split: whether there is an option for the split.

    Example:
        >>> table_arguments("knn_", "Text and class.")(knn_delimiter="||").knn_delimiter
        '||'
    """
    kinds: dict[str, Any] = get_type_hints(FileArguments) | {
        "columns": list[str] | None,
        "format": Literal["csv", "tsv", "jsonl"] | None,
    }
    helps = {"columns": columns} | {option.name: option.metadata["help"] for option in fields(FileArguments)}
    left_out = {"column"} if has_split else {"column", "split"}
    return make_dataclass(
        f"{prefix.title().replace('_', '')}FileArguments",
        [
            (prefix + part, kinds[part], field(default=None, metadata={"help": text}))
            for part, text in helps.items()
            if part not in left_out
        ],
        namespace={"_argument_group_name": f"{prefix.replace('_', ' ').strip()} file"},
    )


def file_options(args: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    r"""What the options say, as arguments of the readers; nothing of what is None.

    Args:
        args: the command's options by name. As a delimiter ``\t`` is a tab, which few shells let one type.
        prefix: of the file's options.

    Example:
        >>> file_options({"dev_delimiter": "\\t", "dev_columns": ["0", "1", "2"], "dev_encoding": None}, "dev_")
        {'columns': [0, 1, 2], 'delimiter': '\t'}
    """
    words = {part: args.get(prefix + part) for part in _PARSERS}
    return {part: _PARSERS[part](word) for part, word in words.items() if word is not None}


def file_flags(args: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """What the readers' arguments are called here, for :func:`~st_simcse.cli.parsing.named_options`.

    Example:
        >>> file_flags({"dev_delimiter": None, "train_delimiter": None}, "dev_")
        {'delimiter': '--dev_delimiter'}
    """
    return {part: f"--{prefix}{part}" for part in _PARSERS if prefix + part in args}


def check_has_file(args: Mapping[str, Any], prefix: str, file: str, has_file: bool) -> None:
    """ValueError for an option of a file that is not there.

    Args:
        args: the command's options by name.
        prefix: of the file's options.
        file: the option that names it.
        has_file: whether there is one.

    Example:
        >>> check_has_file({"dev_delimiter": "||"}, "dev_", "--dev_file", has_file=False)
        Traceback (most recent call last):
        ...
        ValueError: --dev_delimiter goes with --dev_file: leave it out, or pass that
    """
    given = [] if has_file else list(file_options(args, prefix))
    if given:
        raise ValueError(f"--{prefix}{given[0]} goes with {file}: leave it out, or pass that")
