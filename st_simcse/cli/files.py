"""Options for reading files. They are the same in all commands; a command that reads several files adds prefixes."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, make_dataclass
from typing import Any, ClassVar, Literal, get_type_hints

from st_simcse.cli.parsing import parse_column, parse_columns

__all__ = ["FileArguments", "check_has_file", "file_flags", "file_options", "table_arguments"]

_QUOTING = {"minimal": csv.QUOTE_MINIMAL, "none": csv.QUOTE_NONE}
# The arguments of the readers, and the functions that convert the options to them.
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
    """The options for a file of texts."""

    _argument_group_name: ClassVar[str] = "file"

    column: str | None = field(
        default=None, metadata={"help": "Column of a table: a name, or a number from 0. Defaults to sentence or text."}
    )
    split: str | None = field(default=None, metadata={"help": "Split to read from a table with a column of splits."})
    format: Literal["lines", "csv", "tsv", "jsonl"] | None = field(
        default=None, metadata={"help": "Format of the file. Detected from its name and first lines if not given."}
    )
    delimiter: str | None = field(
        default=None, metadata={"help": "Delimiter of the cells, such as ||. Detected if not given."}
    )
    encoding: str | None = field(
        default=None, metadata={"help": "Encoding of the file, such as gb18030. Defaults to UTF-8."}
    )
    quoting: Literal["minimal", "none"] | None = field(
        default=None,
        metadata={
            "help": "minimal: cells may be quoted; none: quotes are part of the text. If not given, cells may be "
            "quoted if they are separated by commas or semicolons."
        },
    )


def table_arguments(prefix: str, columns: str, has_split: bool = True) -> Any:
    """Makes a dataclass of the options for a table, such as ``--knn_columns`` and ``--knn_delimiter``.

    Args:
        prefix: The prefix of the options, such as ``knn_``.
        columns: The help text of the option for the columns.
        has_split: If True, there is an option for the split.

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
    r"""Converts options of the command to arguments of the readers. Options that are None are left out.

    Args:
        args: The options of the command by name. The delimiter ``\t`` means a tab, which is hard to type in a shell.
        prefix: The prefix of the options of the file.

    Example:
        >>> file_options({"dev_delimiter": "\\t", "dev_columns": ["0", "1", "2"], "dev_encoding": None}, "dev_")
        {'columns': [0, 1, 2], 'delimiter': '\t'}
    """
    words = {part: args.get(prefix + part) for part in _PARSERS}
    return {part: _PARSERS[part](word) for part, word in words.items() if word is not None}


def file_flags(args: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Maps arguments of the readers to options of the command, for :func:`~st_simcse.cli.parsing.named_options`.

    Example:
        >>> file_flags({"dev_delimiter": None, "train_delimiter": None}, "dev_")
        {'delimiter': '--dev_delimiter'}
    """
    return {part: f"--{prefix}{part}" for part in _PARSERS if prefix + part in args}


def check_has_file(args: Mapping[str, Any], prefix: str, file: str, has_file: bool) -> None:
    """Checks that no option describes a file that was not given.

    Args:
        args: The options of the command by name.
        prefix: The prefix of the options of the file.
        file: The option that names the file.
        has_file: True if the file was given.

    Raises:
        ValueError: If an option describes the file, and the file was not given.

    Example:
        >>> check_has_file({"dev_delimiter": "||"}, "dev_", "--dev_file", has_file=False)
        Traceback (most recent call last):
        ...
        ValueError: --dev_delimiter needs --dev_file: pass both, or neither
    """
    given = [] if has_file else list(file_options(args, prefix))
    if given:
        raise ValueError(f"--{prefix}{given[0]} needs {file}: pass both, or neither")
