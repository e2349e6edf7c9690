"""Recipes to compare: names, and the options of ``st-simcse train`` that they stand for."""

from __future__ import annotations

import argparse
import logging
import os
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import yaml

__all__ = ["parse_recipe", "read_recipes", "split_baseline"]

logger = logging.getLogger(__name__)

NULL = "tag:yaml.org,2002:null"


def read_recipes(path: str | os.PathLike[str]) -> list[tuple[str, list[str]]]:
    """The recipes of a YAML or JSON file: by name, a list of words or one line as on a command line.

    Raises:
        OSError: for a file that cannot be read.
        ValueError: for one that is neither, for other contents, and for a name that is there twice; names the file.

    Example:
        >>> path = getfixture("tmp_path") / "recipes.yaml"
        >>> _ = path.write_text('base: []\\nfocal: --focal_margin 0.2\\nsharp: ["--temperature", 0.02]\\n')
        >>> read_recipes(path)
        [('base', []), ('focal', ['--focal_margin', '0.2']), ('sharp', ['--temperature', '0.02'])]
    """
    try:
        # JSON is YAML. Nodes keep each word as it was written, where values make True of `on` and 8 of `010`.
        found = yaml.compose(Path(path).read_text(encoding="utf-8"), yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is neither YAML nor JSON: {error}") from error
    if not isinstance(found, yaml.MappingNode) or not found.value:
        raise ValueError(f"{path} holds no recipes: expected names with their options, such as `base: --pooling mean`")
    if not all(isinstance(key, yaml.ScalarNode) for key, _ in found.value):
        raise ValueError(f"{path}: a list or an object stands where a recipe's name is expected")
    names = [key.value for key, _ in found.value]
    if twice := [name for name, times in Counter(names).items() if times > 1]:
        raise ValueError(f"{path} has the recipe {twice[0]!r} twice")
    return [
        (_checked(name, str(path)), _written_words(words, f"{path}, recipe {name!r}"))
        for name, (_, words) in zip(names, found.value, strict=True)
    ]


def parse_recipe(text: str) -> tuple[str, list[str]]:
    """A recipe as it stands on the command line.

    Raises:
        ValueError: if it has no name, or one that is no file name.

    Example:
        >>> parse_recipe("focal: --focal_margin 0.2")
        ('focal', ['--focal_margin', '0.2'])
    """
    name, colon, line = text.partition(":")
    if not colon:
        raise ValueError(f'--recipe {text!r} has no name: write "NAME: --option value"')
    return _checked(name.strip(), "--recipe"), _words(line, f"--recipe {name!r}")


def split_baseline(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """The value of ``--baseline`` (once ``--peer``), which is no option of train, and the other words.

    Raises:
        SystemExit: without a value.

    Example:
        >>> split_baseline(["--baseline", "tsdae", "--learning_rate", "1e-5"])
        ('tsdae', ['--learning_rate', '1e-5'])
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, prog="st-simcse compare")
    parser.add_argument("--baseline")
    parser.add_argument("--peer")
    found, others = parser.parse_known_args(list(words))
    if found.peer is not None:
        logger.warning("--peer is now called --baseline: write that instead")
    return found.baseline or found.peer, others


def _checked(name: str, where: str) -> str:
    if not re.fullmatch(r"\w[\w.+-]*", name):
        raise ValueError(f"{where}: the recipe's name {name!r} becomes a file's: use letters, digits and . + - _")
    return name


def _written_words(node: yaml.Node, where: str) -> list[str]:
    if isinstance(node, yaml.ScalarNode):
        return [] if node.tag == NULL else _words(node.value, where)
    words = node.value if isinstance(node, yaml.SequenceNode) else [node]
    if not all(isinstance(word, yaml.ScalarNode) and word.tag != NULL for word in words):
        line = node.start_mark.line + 1
        raise ValueError(f"{where}, line {line}: expected options of st-simcse train as a list of words or as one line")
    return [word.value for word in words]


def _words(line: str, where: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
