"""The flags of what is chosen by name, an option of a loss or a view: its fields, as its class describes them."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

__all__ = ["as_fields", "field_flags", "given_values", "made_of"]


def field_flags(kind: type, name: str, is_chosen_by_first: bool = True) -> dict[str, dataclasses.Field[Any]]:
    """The fields of a dataclass by their flags, which have its name before their own.

    Args:
        kind: the dataclass.
        name: its name on the command line.
        is_chosen_by_first: whether the flag of the first field is the name alone, and chooses the class.

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
    """Flags as fields for ``make_dataclass``; what is not given is None. The help ends with the note."""
    types = typing.get_type_hints(kind)
    described = []
    for flag, one in flags.items():
        left_out = "" if one.default is dataclasses.MISSING else f" {one.default} when left out."
        text = (one.metadata.get("help", "") + left_out + note).strip()
        described.append((flag, types[one.name] | None, dataclasses.field(default=None, metadata={"help": text})))
    return described


def given_values(arguments: Any, flags: Mapping[str, Any]) -> dict[str, Any]:
    """The values of those flags that are given."""
    return {flag: value for flag in flags if (value := getattr(arguments, flag)) is not None}


def made_of(kind: type, flags: Mapping[str, dataclasses.Field[Any]], given: Mapping[str, Any]) -> Any:
    """The option or view with the given values of its flags."""
    return kind(**{flags[flag].name: value for flag, value in given.items()})
