"""``st-simcse presets``: prints the options that each preset stands for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from st_simcse.cli.parsing import parse
from st_simcse.presets import PRESETS, preset_options


@dataclass
class PresetsArguments:
    names: list[str] = field(default_factory=list, metadata={"help": "Presets to print. Prints all if not given."})


def run(argv: Sequence[str]) -> None:
    """Prints the presets."""
    # `presets NAME` is short for `presets --names NAME`.
    words = ["--names", *argv] if argv and not argv[0].startswith("-") else argv
    (args,) = parse("presets", words, PresetsArguments, example="st-simcse presets unsup-bert-base")
    for name in args.names or PRESETS:
        print(f"{name}:\n  {' '.join(preset_options(name))}")
