"""Recipes to compare, each with a name and options of ``st-simcse train``."""

from __future__ import annotations

import argparse
import os
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import yaml

__all__ = ["parse_recipe", "read_recipes", "split_baseline"]


NULL = "tag:yaml.org,2002:null"


def read_recipes(path: str | os.PathLike[str]) -> list[tuple[str, list[str]]]:
    """Reads recipes from a YAML or JSON file. The options of each are a list of words or a single command line.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If the file is neither YAML nor JSON, if its contents are not recipes, or if a name occurs twice.
            The message names the file.

    Example:
        >>> from pathlib import Path
        >>> recipes = 'base: []\\nfocal: --focal_margin 0.2\\nsharp: ["--temperature", 0.02]\\n'
        >>> _ = Path("recipes.yaml").write_text(recipes)
        >>> read_recipes("recipes.yaml")
        [('base', []), ('focal', ['--focal_margin', '0.2']), ('sharp', ['--temperature', '0.02'])]
    """
    try:
        # JSON is YAML. Nodes keep each word as it was written, but values would turn `on` into True and `010` into 8.
        found = yaml.compose(Path(path).read_text(encoding="utf-8"), yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is neither YAML nor JSON: {error}") from error
    if not isinstance(found, yaml.MappingNode) or not found.value:
        raise ValueError(f"{path} has no recipes. Write names with their options, such as `base: --pooling mean`.")
    if not all(isinstance(key, yaml.ScalarNode) for key, _ in found.value):
        raise ValueError(f"{path} has a list or an object instead of a recipe's name. Use texts as names.")
    names = [key.value for key, _ in found.value]
    if twice := [name for name, times in Counter(names).items() if times > 1]:
        raise ValueError(f"{path} has the recipe {twice[0]!r} twice. Give the recipes different names.")
    return [
        (_checked(name, str(path)), _written_words(words, f"{path}, recipe {name!r}"))
        for name, (_, words) in zip(names, found.value, strict=True)
    ]


def parse_recipe(text: str) -> tuple[str, list[str]]:
    """Parses a recipe from the command line.

    Raises:
        ValueError: If the recipe has no name, or a name that cannot be a file name.

    Example:
        >>> parse_recipe("focal: --focal_margin 0.2")
        ('focal', ['--focal_margin', '0.2'])
    """
    name, colon, line = text.partition(":")
    if not colon:
        raise ValueError(f'--recipe {text!r} has no name. Write "NAME: --option value".')
    return _checked(name.strip(), "--recipe"), _words(line, f"--recipe {name!r}")


def split_baseline(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """Splits ``--baseline``, which is not an option of train, from the other words.

    Returns:
        The value of ``--baseline``, or None, and the other words.

    Raises:
        SystemExit: If ``--baseline`` has no value.

    Example:
        >>> split_baseline(["--baseline", "tsdae", "--learning_rate", "1e-5"])
        ('tsdae', ['--learning_rate', '1e-5'])
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, prog="st-simcse compare")
    parser.add_argument("--baseline")
    found, others = parser.parse_known_args(list(words))
    return found.baseline, others


def _checked(name: str, where: str) -> str:
    if not re.fullmatch(r"\w[\w.+-]*", name):
        raise ValueError(
            f"{where}: the recipe's name {name!r} is also used as a file name. Use letters, digits and . + - _"
        )
    return name


def _written_words(node: yaml.Node, where: str) -> list[str]:
    if isinstance(node, yaml.ScalarNode):
        return [] if node.tag == NULL else _words(node.value, where)
    words = node.value if isinstance(node, yaml.SequenceNode) else [node]
    if not all(isinstance(word, yaml.ScalarNode) and word.tag != NULL for word in words):
        line = node.start_mark.line + 1
        raise ValueError(f"{where}, line {line}: expected options of st-simcse train as a list of words or in one line")
    return [word.value for word in words]


def _words(line: str, where: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
