"""The loss of ``st-simcse train``. Its flags are made from the fields of the option classes."""

from __future__ import annotations

import dataclasses
import inspect
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from sentence_transformers import SentenceTransformer

from st_simcse.cli.flags import as_fields, field_flags, given_values, made_of
from st_simcse.losses import OPTIONS, SimCSELoss, SupSimCSELoss, UnsupSimCSELoss
from st_simcse.losses.options import option_name

__all__ = ["LossArguments", "make_loss", "make_options"]


@dataclass
class _Arguments:
    _argument_group_name: ClassVar[str] = "objective"

    temperature: float = field(default=0.05, metadata={"help": "Temperature of the softmax."})
    symmetric: bool = field(default=False, metadata={"help": "Use positives (or second views) as anchors too."})
    directions: list[str] = field(
        default_factory=lambda: ["query_to_doc"],
        metadata={
            "help": "Comparisons in the loss: query_to_doc, query_to_query, doc_to_query and doc_to_doc, as in "
            "sentence-transformers."
        },
    )
    partition_mode: Literal["joint", "per_direction"] = field(
        default="joint", metadata={"help": "One softmax over all directions, or one per direction."}
    )
    projection_head: bool = field(default=False, metadata={"help": "Train with an MLP on top that is not saved."})
    mini_batch_size: int | None = field(
        default=None, metadata={"help": "Rows per forward pass. Turns on gradient caching, which saves memory."}
    )
    gather_across_devices: bool = field(
        default=False, metadata={"help": "Use the rows of all processes as negatives of each other."}
    )
    mask_duplicates: bool = field(
        default=True, metadata={"help": "Do not use equal texts of a batch as negatives of each other."}
    )


_FLAGS = {option: field_flags(option, option_name(option)) for option in OPTIONS}


def _described(option: type) -> list[tuple[str, Any, Any]]:
    """Returns the flags of an option as dataclass fields. The default is None, or False for a flag without a value."""
    incompatible = getattr(option, "incompatible", ())
    of_one = " Unsupervised only." if "SupSimCSELoss" in incompatible else ""
    of_one += " Supervised only." if "UnsupSimCSELoss" in incompatible else ""
    if _FLAGS[option]:
        return as_fields(option, _FLAGS[option], of_one)
    summary = (inspect.getdoc(option) or "").partition("\n\n")[0].replace("\n", " ")
    return [(option_name(option), bool, field(default=False, metadata={"help": summary + of_one}))]


LossArguments = dataclasses.make_dataclass(
    "LossArguments", [one for option in OPTIONS for one in _described(option)], bases=(_Arguments,)
)


def make_loss(model: SentenceTransformer, columns: int, arguments: Any) -> SimCSELoss:
    """Makes the unsupervised loss for data with one column, and the supervised loss for data with more.

    Args:
        model: The model to train.
        columns: The number of columns of the training data.
        arguments: An instance of LossArguments.

    Raises:
        ValueError: If a flag belongs to an option that is not used or to the other loss, or if an option or the loss
            refuses its values.

    Example:
        >>> from st_simcse.demo import tiny_model
        >>> arguments = LossArguments(momentum_queue=8, momentum_queue_momentum=0.9)
        >>> make_loss(tiny_model(["Two dogs run."]), 1, arguments).options
        [MomentumQueue(size=8, momentum=0.9)]
    """
    kind, data = (UnsupSimCSELoss, "sentences") if columns == 1 else (SupSimCSELoss, "triplets")
    options = make_options(arguments)
    for option in options:
        if kind.name in getattr(option, "incompatible", ()):
            raise ValueError(f"--{option_name(option)} cannot be used with {data}: leave it out")
    others = {one.name: getattr(arguments, one.name) for one in dataclasses.fields(_Arguments)}
    return kind(model, options=options, **others)


def make_options(arguments: Any) -> list[Any]:
    """Makes the options of the loss, which need no model.

    Args:
        arguments: An instance of LossArguments.

    Raises:
        ValueError: If a flag belongs to an option that is not used, or if an option refuses its values.

    Example:
        >>> make_options(LossArguments(focal_margin=0.2))
        [FocalMargin(margin=0.2)]
    """
    options: list[Any] = []
    for option, flags in _FLAGS.items():
        name, given = option_name(option), given_values(arguments, flags)
        if name in given or (not flags and getattr(arguments, name)):
            options.append(made_of(option, flags, given))
        elif given:
            raise ValueError(f"--{next(iter(given))} needs --{name}: pass both, or neither")
    return options
