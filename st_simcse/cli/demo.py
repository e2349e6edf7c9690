"""``st-simcse demo``: both objectives on a tiny model and a generated corpus."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from st_simcse.cli.libraries import import_libraries
from st_simcse.cli.parsing import parse


@dataclass
class DemoArguments:
    seed: int = field(default=0, metadata={"help": "Random seed of the corpus, the weights and the training."})


def run(argv: Sequence[str]) -> dict[str, float]:
    """Runs the demo and returns its results."""
    (args,) = parse("demo", argv, DemoArguments, example="st-simcse demo --seed 1")

    import_libraries()
    import torch

    from st_simcse.demo import run_demo

    torch.set_num_threads(1)  # for such small matrices, several threads spend more time waiting than computing
    return run_demo(args.seed)
