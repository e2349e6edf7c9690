"""Dataclasses to command-line options: what every command's parser has in common."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import difflib
import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, overload

from st_simcse.data.remedies import DataError
from st_simcse.plots import check_picture

if TYPE_CHECKING:
    from transformers.hf_argparser import HfArgumentParser

    from st_simcse.models.modeling import PoolingMode

__all__ = [
    "PRECISION",
    "Pooling",
    "Precision",
    "check_inputs",
    "check_outputs",
    "check_positive",
    "check_seeds",
    "named_options",
    "parse",
    "parse_column",
    "parse_columns",
    "parse_known",
    "pooling_mode",
]

# Those of build_model and fast_encode, whose modules import torch, which no --help has to wait for.
Pooling = Literal["as saved", "cls", "pooler", "mean", "lasttoken", "weightedmean", "first_last_avg", "last2_avg"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]
PRECISION: Any = dataclasses.field(
    default="auto",
    metadata={"help": "What the model computes in; auto is bf16 where the hardware is faster at it, else float32."},
)

_IN_SEVERAL_PROCESSES = {"train"}
# The options that name what a command reads.
_INPUT_FILES = {
    *("corpus", "query_file", "pairs_file", "recipe_file", "train_file", "dev_file", "test_file"),
    *("knn_dev_file", "knn_test_file", "retrieval_dev_file", "retrieval_test_file"),
}
_INPUT_FOLDERS = {
    **dict.fromkeys(("sts_dir", "sts_zh_dir", "senteval_dir"), "st-simcse data makes one"),
    "index": "st-simcse index makes one",
}

# What the options are called in other programs.
_SYNONYMS = {
    "scale": "temperature, which is one over it",
    "lr": "learning_rate",
    "epochs": "num_train_epochs",
    "batch_size": "per_device_train_batch_size",
    "pooler_type": "pooling",
    "pooler": "pooling",
    "model": "model_name_or_path",
    "hard_negative_weight": "own_negative_weight, which is its exponential",
    "mlp_only_train": "projection_head",
    "do_mlm": "masked_language_model",
}


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Beside an option its default, or that it is required; the example as it was written."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.required:
            return f"{action.help} (required)"
        # `--no_x` has the default False too, where that of `--x` is True.
        has_none = action.default is None or action.default is False or action.default in ([], {})
        return action.help if has_none else super()._get_help_string(action)


def _hf_argument_parser() -> Any:
    """transformers' parser, from its file alone where it needs nothing else of the package: that takes a second."""
    package: Any = find_spec("transformers")
    try:
        spec: Any = spec_from_file_location("hf_argparser", Path(package.origin).with_name("hf_argparser.py"))
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.HfArgumentParser
    except (AttributeError, ImportError, OSError):
        from transformers.hf_argparser import HfArgumentParser

        return HfArgumentParser


if not TYPE_CHECKING:
    HfArgumentParser = _hf_argument_parser()


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        sys.exit(f"{self.prog}: {message}\n{self.prog} --help lists the options")


def parse(command: str, argv: Sequence[str], *types: type, example: str) -> tuple[Any, ...]:
    """The command's words as instances of ``types``; a group of options each, under the names of the classes.

    Args:
        command: its name, for messages.
        argv: the words that follow it.
        types: dataclasses; a field is an option, its metadata's ``help`` the text that explains it.
        example: a command line to show under ``--help``.

    Raises:
        SystemExit: for an unknown or abbreviated option or a value that does not fit, with a line that says so.
        ValueError: if the command was started in several processes and works in one.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass
        ... class Arguments:
        ...     size: int = 1
        >>> parse("demo", ["--size=3"], Arguments, example="st-simcse demo")
        (Arguments(size=3),)
    """
    *arguments, unknown = parse_known(command, argv, *types, example=example)
    if unknown:
        options = [f"--{field.name}" for kind in types for field in dataclasses.fields(kind)]
        meant = f"--{_SYNONYMS.get(option_of(unknown[0]), '')}"
        near = (
            [meant] if meant.split(",")[0] in options else difflib.get_close_matches(unknown[0].split("=")[0], options)
        )
        hint = f", did you mean {near[0]}?" if near else ""
        _parser(command, types, example).error(f"unknown option {unknown[0]}{hint}")
    return tuple(arguments)


def parse_known(command: str, argv: Sequence[str], *types: type, example: str) -> tuple[Any, ...]:
    """As :func:`parse`, and behind the instances a list of the words that are no options of ``types``."""
    found = tuple(
        _parser(command, types, example).parse_args_into_dataclasses(
            list(argv), look_for_args_file=False, return_remaining_strings=True
        )
    )
    _check_processes(command)
    return found


def _check_processes(command: str) -> None:
    """ValueError if a launcher started the command in several processes, each of which would do and write it all."""
    processes = int(os.environ.get("WORLD_SIZE") or 1)
    if processes > 1 and command not in _IN_SEVERAL_PROCESSES:
        raise ValueError(
            f"{command} works in one process, and WORLD_SIZE={processes} says that it was started in several: start it "
            "without torchrun and accelerate launch, or unset WORLD_SIZE; only train works in several processes"
        )


def _parser(command: str, types: Sequence[Any], example: str) -> _Parser:
    return _Parser(
        types,
        prog=f"st-simcse {command}",
        usage="%(prog)s [options]",
        epilog=f"example:\n  {example}",
        formatter_class=_Formatter,
        allow_abbrev=False,
    )


def pooling_mode(pooling: Pooling) -> PoolingMode | None:
    """What the option ``--pooling`` says, as the library takes it: None keeps the pooling that the model has.

    Example:
        >>> pooling_mode("mean"), pooling_mode("as saved")
        ('mean', None)
    """
    return None if pooling == "as saved" else pooling


@overload
def parse_column(word: str) -> str | int: ...


@overload
def parse_column(word: None) -> None: ...


def parse_column(word: str | None) -> str | int | None:
    """A column as the readers take it: by number from 0, which says that there is no header, or by name.

    Example:
        >>> parse_column("0"), parse_column("text")
        (0, 'text')
    """
    return int(word) if word and word.isdecimal() else word


def parse_columns(words: Sequence[str] | None) -> list[str | int] | None:
    """Several of them; None if there are none.

    Example:
        >>> parse_columns(["title", "2"]), parse_columns(None)
        (['title', 2], None)
    """
    return [parse_column(word) for word in words or []] or None


# In the library's messages: a reader, with arguments perhaps, and an argument, with a value perhaps.
_STRING = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
_VALUE = rf"{_STRING}|\[(?:{_STRING}|[^]'\"])*\]|csv\.QUOTE_\w+|True|\d+"
_MENTION = re.compile(
    r"\b(?P<reader>[A-Z]\w*Reader)\b(?:\((?P<arguments>[^()]*)\))?"
    rf"|\b(?P<name>[a-z]\w*)=(?P<value>{_VALUE})?(?=[\s,;:.)]|$)"
)


@contextmanager
def named_options(**options: str) -> Iterator[None]:
    """Errors that tell a caller in Python to pass an argument tell a user of the command line to pass the option.

    A remedy for which the command has no option is left out.

    Args:
        **options: what an argument, an argument with a certain value, or a reader is called here. Several options for
            the items of a list have spaces between them.

    Example:
        >>> with named_options(columns="--dev_columns"):
        ...     raise DataError("a.csv: no column 'score'", "pass columns=[0, 1, 2]", "NLIReader reads such a file")
        Traceback (most recent call last):
        ...
        st_simcse.data.remedies.DataError: a.csv: no column 'score'; pass --dev_columns 0 1 2
    """
    try:
        yield
    except DataError as error:  # only remedies name arguments; what is wrong may quote data that look like them
        remedies = (_translated(remedy, options) for remedy in error.remedies)
        raise DataError(error.problem, *(told for told, is_known in remedies if is_known)) from error
    except ValueError as error:
        raise ValueError(_translated(str(error), options)[0]) from error


def _translated(message: str, options: Mapping[str, str]) -> tuple[str, bool]:
    """The message with the command's options, and whether it has one for everything that is mentioned."""
    is_known = True

    def option(found: re.Match[str]) -> str:
        nonlocal is_known
        name = found["reader"] or found["name"]
        if found[0] in options:
            return options[found[0]]
        if name not in options:
            is_known = False
            return found[0]
        if found["reader"]:
            told, arguments_are_known = _translated(found["arguments"] or "", options)
            is_known = is_known and arguments_are_known
            return f"{options[name]} {told}".rstrip()
        return _with_value(options[name].split(), found["value"])

    return _MENTION.sub(option, message), is_known


def _with_value(flags: Sequence[str], value: str | None) -> str:
    """Options as they are typed with a value of Python's, each item of which is for one of several options."""
    if value is None:
        return " and ".join(flags)
    if value.startswith("csv."):
        return f"{flags[0]} {value.removeprefix('csv.QUOTE_').lower()}"
    given = ast.literal_eval(value)
    items = given if isinstance(given, list) else [] if given is True else [given]
    words = [shlex.quote(str(item).replace("\t", "\\t")) for item in items]
    if len(flags) == len(words):
        return " ".join(f"{flag} {word}" for flag, word in zip(flags, words, strict=True))
    return " ".join([*flags, *words])


def option_of(word: str) -> str:
    """``eval_steps`` of ``--eval_steps``, ``--eval-steps`` and ``--eval_steps=5``."""
    return word.split("=")[0].removeprefix("--").replace("-", "_")


def check_positive(args: object, *names: str) -> None:
    """ValueError for an option that has to be 1 or more, and is not; None is none.

    Example:
        >>> check_positive(argparse.Namespace(batch_size=0), "batch_size")
        Traceback (most recent call last):
        ...
        ValueError: --batch_size must be at least 1, got 0
    """
    for name in names:
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} must be at least 1, got {value}")


def check_seeds(seeds: Sequence[int]) -> None:
    """ValueError for a seed that is there twice.

    Example:
        >>> check_seeds([0, 1, 0])
        Traceback (most recent call last):
        ...
        ValueError: --seeds 0 1 0 names a seed twice: its runs would be the same
    """
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"--seeds {' '.join(map(str, seeds))} names a seed twice: its runs would be the same")


def check_inputs(args: object) -> None:
    """Whether what a command is to read is there: the files and folders that its options name.

    Raises:
        FileNotFoundError: for one that is not.

    Example:
        >>> check_inputs(argparse.Namespace(sts_dir="absent"))
        Traceback (most recent call last):
        ...
        FileNotFoundError: --sts_dir: there is no folder absent: check its name; st-simcse data makes one
    """
    for name, place in vars(args).items():
        if name in _INPUT_FILES and place is not None and not Path(place).exists():
            folder = Path(place).absolute().parent
            raise FileNotFoundError(f"--{name}: there is no file {place}: check its name and the folder, {folder}")
        if name in _INPUT_FOLDERS and place is not None and not Path(place).is_dir():
            how = _INPUT_FOLDERS[name]
            raise FileNotFoundError(f"--{name}: there is no folder {place}: check its name; {how}")


def check_outputs(args: object) -> None:
    """Whether the files that a command is to write could be written: those of its options that are given.

    Raises:
        OSError: for a folder, or a place that is not there or cannot be written to.
        ValueError: for one name twice, and a picture of an unknown format.

    Example:
        >>> check_outputs(argparse.Namespace(csv_file="absent/a.csv"))
        Traceback (most recent call last):
        ...
        FileNotFoundError: cannot write absent/a.csv: there is no folder absent
    """
    pictures = ("plot_file", "map_file", "histogram_file")
    names = ("output_file", "json_file", "csv_file", *pictures)
    files = {name: Path(file) for name in names if (file := getattr(args, name, None))}
    for name, path in files.items():
        if path.is_dir():
            raise IsADirectoryError(f"cannot write {path}: it is a folder")
        if not path.parent.is_dir():
            raise FileNotFoundError(f"cannot write {path}: there is no folder {path.parent}")
        # An output_file is written beside its place, and replaces what is there.
        if not os.access(path if path.exists() and name != "output_file" else path.parent, os.W_OK):
            raise PermissionError(f"cannot write {path}: permission denied")
    if len({path.resolve() for path in files.values()}) < len(files):
        raise ValueError(f"{', '.join(f'--{name}' for name in files)} need names of their own")
    for name in files.keys() & pictures:
        check_picture(files[name])
