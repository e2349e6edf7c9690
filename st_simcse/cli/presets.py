"""``st-simcse presets``: the presets as the options that they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from st_simcse.cli.parsing import parse
from st_simcse.presets import PRESETS, preset_options


@dataclass
class PresetsArguments:
    names: list[str] = field(default_factory=list, metadata={"help": "The presets to print; all when left out."})


def run(argv: Sequence[str]) -> None:
    """Print them."""
    # `presets NAME` is short for `presets --names NAME`.
    words = ["--names", *argv] if argv and not argv[0].startswith("-") else argv
    (args,) = parse("presets", words, PresetsArguments, example="st-simcse presets unsup-bert-base")
    for name in args.names or PRESETS:
        print(f"{name}:\n  {' '.join(preset_options(name))}")
