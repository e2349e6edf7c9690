"""Command-line flags made from the fields of dataclasses: the options of a loss, and the views."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

__all__ = ["as_fields", "field_flags", "given_values", "made_of"]


def field_flags(kind: type, name: str, is_chosen_by_first: bool = True) -> dict[str, dataclasses.Field[Any]]:
    """Returns the fields of a dataclass by flag. A flag is the name of the class followed by the name of the field.

    Args:
        kind: The dataclass.
        name: The name of the dataclass on the command line.
        is_chosen_by_first: If True, the flag of the first field is ``name`` without a suffix, and passing it chooses
            the class.

    Example:
        >>> from st_simcse import Crops, MomentumQueue
        >>> list(field_flags(MomentumQueue, "momentum_queue"))
        ['momentum_queue', 'momentum_queue_momentum']
        >>> list(field_flags(Crops, "crops", is_chosen_by_first=False))
        ['crops_shortest', 'crops_longest', 'crops_least']
    """
    fields = enumerate(dataclasses.fields(kind))
    return {name if is_chosen_by_first and number == 0 else f"{name}_{one.name}": one for number, one in fields}


def as_fields(kind: type, flags: Mapping[str, dataclasses.Field[Any]], note: str = "") -> list[tuple[str, Any, Any]]:
    """Returns the flags as fields for ``make_dataclass``, with the default None. ``note`` ends each help text."""
    types = typing.get_type_hints(kind)
    described = []
    for flag, one in flags.items():
        default = "" if one.default is dataclasses.MISSING else f" Defaults to {one.default}."
        text = (one.metadata.get("help", "") + default + note).strip()
        described.append((flag, types[one.name] | None, dataclasses.field(default=None, metadata={"help": text})))
    return described


def given_values(arguments: Any, flags: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values of the flags that were passed."""
    return {flag: value for flag in flags if (value := getattr(arguments, flag)) is not None}


def made_of(kind: type, flags: Mapping[str, dataclasses.Field[Any]], given: Mapping[str, Any]) -> Any:
    """Makes the option or view from the given values of its flags."""
    return kind(**{flags[flag].name: value for flag, value in given.items()})
