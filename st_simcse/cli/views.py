"""The views of ``st-simcse train``: their flags are the fields of the views, as their classes describe them."""

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
    [one for name, flags in _FLAGS.items() for one in as_fields(VIEWS[name], flags, f" For --views {name}.")],
    bases=(_Arguments,),
)


def make_view(name: str | None, arguments: Any) -> View | str | None:
    """The view of that name with the fields that are given; the name alone where none is.

    Raises:
        ValueError: for fields of another view, and numbers out of bounds.

    Example:
        >>> make_view("crops", ViewArguments(crops_longest=0.3))
        Crops(shortest=0.1, longest=0.3, least=8)
    """
    for other, flags in _FLAGS.items():
        given = given_values(arguments, flags)
        if given and other != name:
            raise ValueError(f"--{next(iter(given))} is part of --views {other}: pass that too")
        if given:
            view: View = made_of(VIEWS[other], flags, given)
            return view
    return name
