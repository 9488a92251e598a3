"""JSON without surprises: a key twice, endless numbers and bottomless nesting are
refused, whoever reads it.
"""

import json
from collections.abc import Callable, Iterable
from typing import Any

from dataloader.limits import INTEGER_BITS, JSON_DEPTH

_MAX_DIGITS = 39  # of 2¹²⁸


def loads(text: str | bytes, constant: Callable[[str], Any] | None = None) -> Any:
    """The value of a text.

    Args:
        text: of one JSON value.
        constant: makes something of NaN, Infinity and -Infinity, or raises
            ValueError; floats unless given.

    Raises:
        ValueError: it is not JSON, or not plain; the message is a phrase. Nothing else is
            raised, whatever the text.
    """
    try:
        value = json.loads(
            text, object_pairs_hook=_unique, parse_int=integer, parse_constant=constant
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None
    refuse_depth(value)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError(f"{repeated([name for name, _ in pairs])!r:.80} stands twice")
    return values


def repeated(names: list[str]) -> str:
    """The first name that was there before."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    raise ValueError("every name is there once")


def integer(digits: str) -> int:
    """A whole number of JSON, no longer than any that is in use; Python's own may have 4300 digits.

    Raises:
        ValueError: it is longer.
    """
    if len(digits.lstrip("-")) > _MAX_DIGITS:
        raise ValueError(
            f"a whole number of {len(digits)} digits, which nothing here has (more than "
            f"{INTEGER_BITS} bits)"
        )
    return int(digits)


def refuse_depth(value: object, deepest: int = JSON_DEPTH) -> None:
    """Raise ValueError where lists and objects lie in one another more than ``deepest`` times."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(deepest):
        inner = (item for container in level for item in _items(container))
        level = [item for item in inner if isinstance(item, dict | list)]
        if not level:
            return
    raise ValueError(f"nested too deeply (more than {deepest} levels)")


def _items(container: Any) -> Iterable[Any]:
    return container.values() if isinstance(container, dict) else container
