"""The views of ``st-simcse train``. Their flags are made from the fields of the view classes."""

from __future__ import annotations

from dataclasses import make_dataclass
from typing import Any, ClassVar

from st_simcse.cli.flags import as_fields, field_flags, given_values, made_of
from st_simcse.data.views import VIEWS, View

__all__ = ["ViewArguments", "make_view"]

_FLAGS = {name: field_flags(kind, name, is_chosen_by_first=False) for name, kind in VIEWS.items()}


class _Arguments:
    _argument_group_name: ClassVar[str] = "views"


ViewArguments = make_dataclass(
    "ViewArguments",
    [one for name, flags in _FLAGS.items() for one in as_fields(VIEWS[name], flags, f" Used with --views {name}.")],
    bases=(_Arguments,),
)


def make_view(name: str | None, arguments: Any) -> View | str | None:
    """Returns the view with the fields that were passed, or its name if none were.

    Raises:
        ValueError: If a field belongs to another view, or a number is out of bounds.

    Example:
        >>> make_view("crops", ViewArguments(crops_longest=0.3))
        Crops(shortest=0.1, longest=0.3, least=8)
    """
    for other, flags in _FLAGS.items():
        given = given_values(arguments, flags)
        if given and other != name:
            raise ValueError(f"--{next(iter(given))} needs --views {other}: pass both, or neither")
        if given:
            view: View = made_of(VIEWS[other], flags, given)
            return view
    return name
