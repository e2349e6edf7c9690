"""The parser shared by all commands, which turns the fields of dataclasses into command-line options."""

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

# The choices of build_model and fast_encode. They are repeated here because those modules import torch, which is too
# slow for --help.
Pooling = Literal["as saved", "cls", "pooler", "mean", "lasttoken", "weightedmean", "first_last_avg", "last2_avg"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]
PRECISION: Any = dataclasses.field(
    default="auto",
    metadata={"help": "Precision of the computation. auto is bf16 if the hardware is faster with it, else float32."},
)

_IN_SEVERAL_PROCESSES = {"train"}
# The options that name the inputs of a command.
_INPUT_FILES = {
    *("corpus", "query_file", "pairs_file", "recipe_file", "train_file", "dev_file", "test_file"),
    *("knn_dev_file", "knn_test_file", "retrieval_dev_file", "retrieval_test_file"),
}
_INPUT_FOLDERS = {
    **dict.fromkeys(("sts_dir", "sts_zh_dir", "senteval_dir"), "st-simcse data"),
    "index": "st-simcse index",
}

# Names of the options in other programs.
_SYNONYMS = {
    "scale": "temperature, which is 1 / scale",
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
    """Shows the default of each option, or that it is required, and keeps the line breaks of the example."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.required:
            return f"{action.help} (required)"
        # If the default of `--x` is True, `--no_x` has the default False.
        has_none = action.default is None or action.default is False or action.default in ([], {})
        return action.help if has_none else super()._get_help_string(action)


def _hf_argument_parser() -> Any:
    """Returns transformers' parser. Loads only its file if possible, because importing the package takes a second."""
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
        sys.exit(f"{self.prog}: {message}\nRun {self.prog} --help for a list of the options.")


def parse(command: str, argv: Sequence[str], *types: type, example: str) -> tuple[Any, ...]:
    """Parses the arguments of a command into instances of ``types``. Each type is a group of options in ``--help``.

    Args:
        command: The name of the command, for messages.
        argv: The arguments that follow the name of the command.
        types: Dataclasses. Each field is an option, and the ``help`` of its metadata is the help text.
        example: A command line to show under ``--help``.

    Raises:
        SystemExit: If an option is unknown or abbreviated, or a value does not fit. The message says which.
        ValueError: If the command was started in several processes but runs in one only.

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
    """Parses like :func:`parse`, but returns unknown arguments as a list after the instances of ``types``."""
    found = tuple(
        _parser(command, types, example).parse_args_into_dataclasses(
            list(argv), look_for_args_file=False, return_remaining_strings=True
        )
    )
    _check_processes(command)
    return found


def _check_processes(command: str) -> None:
    """Raises ValueError if a launcher started several processes, because each would do all the work."""
    processes = int(os.environ.get("WORLD_SIZE") or 1)
    if processes > 1 and command not in _IN_SEVERAL_PROCESSES:
        raise ValueError(
            f"{command} runs in one process only, but WORLD_SIZE={processes} means that it was started in several. "
            "Start it without torchrun or accelerate launch, or unset WORLD_SIZE. Only train runs in several processes"
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
    """Converts the option ``--pooling`` for the library, where None keeps the pooling of the model.

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
    """Converts a column for the readers: a number from 0 (for a file without a header), or a name.

    Example:
        >>> parse_column("0"), parse_column("text")
        (0, 'text')
    """
    return int(word) if word and word.isdecimal() else word


def parse_columns(words: Sequence[str] | None) -> list[str | int] | None:
    """Converts several columns for the readers. Returns None if none are given.

    Example:
        >>> parse_columns(["title", "2"]), parse_columns(None)
        (['title', 2], None)
    """
    return [parse_column(word) for word in words or []] or None


# Matches readers (with or without arguments) and arguments (with or without a value) in messages of the library.
_STRING = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
_VALUE = rf"{_STRING}|\[(?:{_STRING}|[^]'\"])*\]|csv\.QUOTE_\w+|True|\d+"
_MENTION = re.compile(
    r"\b(?P<reader>[A-Z]\w*Reader)\b(?:\((?P<arguments>[^()]*)\))?"
    rf"|\b(?P<name>[a-z]\w*)=(?P<value>{_VALUE})?(?=[\s,;:.)]|$)"
)


@contextmanager
def named_options(**options: str) -> Iterator[None]:
    """Replaces Python arguments in error messages by the options of the command.

    Remedies that the command has no option for are dropped.

    Args:
        **options: The option for each argument, argument with a certain value, or reader. If the items of a list have
            separate options, they are separated by spaces.

    Example:
        >>> with named_options(columns="--dev_columns"):
        ...     raise DataError("a.csv: no column 'score'", "pass columns=[0, 1, 2]", "NLIReader reads such a file")
        Traceback (most recent call last):
        ...
        st_simcse.data.remedies.DataError: a.csv: no column 'score'; pass --dev_columns 0 1 2
    """
    try:
        yield
    except DataError as error:  # only the remedies: the problem may quote data that looks like an argument
        remedies = (_translated(remedy, options) for remedy in error.remedies)
        raise DataError(error.problem, *(told for told, is_known in remedies if is_known)) from error
    except ValueError as error:
        raise ValueError(_translated(str(error), options)[0]) from error


def _translated(message: str, options: Mapping[str, str]) -> tuple[str, bool]:
    """Returns the message with the options of the command, and whether all that it mentions has an option."""
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
    """Returns the options and a Python value as they are typed. Several options get one item of the value each."""
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
    """Returns the name of the option: ``eval_steps`` for ``--eval_steps``, ``--eval-steps`` and ``--eval_steps=5``."""
    return word.split("=")[0].removeprefix("--").replace("-", "_")


def check_positive(args: object, *names: str) -> None:
    """Raises ValueError if one of the named options is less than 1. None is accepted.

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
    """Raises ValueError if a seed occurs twice.

    Example:
        >>> check_seeds([0, 1, 0])
        Traceback (most recent call last):
        ...
        ValueError: --seeds 0 1 0 names a seed twice, and both runs would be the same: pass different seeds
    """
    if len(set(seeds)) < len(seeds):
        raise ValueError(
            f"--seeds {' '.join(map(str, seeds))} names a seed twice, and both runs would be the same: pass different "
            "seeds"
        )


def check_inputs(args: object) -> None:
    """Checks that the input files and folders that the options name exist.

    Raises:
        FileNotFoundError: If one of them does not exist.

    Example:
        >>> check_inputs(argparse.Namespace(sts_dir="absent"))
        Traceback (most recent call last):
        ...
        FileNotFoundError: --sts_dir: there is no folder absent: check its name, or make one with st-simcse data
    """
    for name, place in vars(args).items():
        if name in _INPUT_FILES and place is not None and not Path(place).exists():
            folder = Path(place).absolute().parent
            raise FileNotFoundError(f"--{name}: there is no file {place}: check its name and the folder {folder}")
        if name in _INPUT_FOLDERS and place is not None and not Path(place).is_dir():
            how = _INPUT_FOLDERS[name]
            raise FileNotFoundError(f"--{name}: there is no folder {place}: check its name, or make one with {how}")


def check_outputs(args: object) -> None:
    """Checks that the output files and the output folder that the options name can be written.

    Raises:
        OSError: If a file is a folder, its folder does not exist, or it cannot be written, or if ``output_dir`` is a
            file.
        ValueError: If two options name the same file, or a picture has an unknown format.

    Example:
        >>> check_outputs(argparse.Namespace(csv_file="absent/a.csv"))
        Traceback (most recent call last):
        ...
        FileNotFoundError: cannot write absent/a.csv: there is no folder absent
    """
    folder = Path(getattr(args, "output_dir", None) or ".")
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"cannot write to {folder}: it is a file, not a folder")
    pictures = ("plot_file", "map_file", "histogram_file")
    names = ("output_file", "json_file", "csv_file", *pictures)
    files = {name: Path(file) for name in names if (file := getattr(args, name, None))}
    for name, path in files.items():
        if path.is_dir():
            raise IsADirectoryError(f"cannot write {path}: it is a folder")
        if not path.parent.is_dir():
            raise FileNotFoundError(f"cannot write {path}: there is no folder {path.parent}")
        # An output_file is written under another name in the same folder, and then replaces the old file.
        if not os.access(path if path.exists() and name != "output_file" else path.parent, os.W_OK):
            raise PermissionError(f"cannot write {path}: permission denied")
    places = [path.resolve() for path in files.values()]
    if same := [name for name, place in zip(files, places, strict=True) if places.count(place) > 1]:
        raise ValueError(f"{', '.join(f'--{name}' for name in same)} name the same file: give each its own name")
    for name in files.keys() & pictures:
        check_picture(files[name])
