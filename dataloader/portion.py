"""Which part of a work is this process's own, where several processes divide it without
talking to one another.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")

MOST = 1_000_000  # processes that may divide a work


@dataclass(frozen=True)
class Portion:
    """One of ``size`` equal shares of a work whose items are numbered.

    Attributes:
        number: which share, counted from 0.
        size: how many there are.
    """

    number: int
    size: int

    @property
    def is_whole(self) -> bool:
        """Whether there is nothing that another process does."""
        return self.size == 1

    def of(self, items: Sequence[Item]) -> list[Item]:
        """The items of this share: every ``size``-th, so that large and small
        ones come to all alike.
        """
        return list(items[self.number :: self.size])

    def __str__(self) -> str:
        return f"{self.number}/{self.size}"


WHOLE = Portion(0, 1)


def portion_of(text: str | None) -> Portion:
    """The share that ``3/64`` names, the fourth of 64; the whole where nothing is named.

    Raises:
        ValueError: it names none; the message says what was expected.
    """
    if text is None:
        return WHOLE
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text.strip())
    if match is None:
        raise ValueError(
            f"{text!r:.40} is no share; expected NUMBER/SHARES, for example 3/64 "
            "for the fourth of 64"
        )
    number = int(match[1])
    size = int(match[2])
    if not 1 <= size <= MOST:
        raise ValueError(f"{text!r:.40} is no share; there are 1 to {MOST} shares")
    if number >= size:
        raise ValueError(
            f"{text!r:.40} is no share; they are counted from 0, and the last of {size} "
            f"is {size - 1}/{size}"
        )
    return Portion(number, size)
