"""An entry of one of the tables that a user chooses from by name."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TypeVar

from model_utils.errors import InputError

Entry = TypeVar("Entry")


def entry_of(table: Mapping[str, Entry], name: str, what: str) -> Entry:
    """The entry of a name.

    Args:
        table: the entries by name, those that plug-ins added among them.
        name: that was given.
        what: was given by it, for the message: ``--loss``.

    Raises:
        InputError: naming the nearest and all that there are.
    """
    if name not in table:
        near = get_close_matches(name, table, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError(f"{what} {name!r} is not known; {hint}there are {', '.join(table)}")
    return table[name]
