"""Dictionary encoding: a value for every row where few differ.

Each is stored once, a row costs a small number.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

Value = TypeVar("Value")


@dataclass(frozen=True)
class Lookup(Generic[Value]):
    """``values[ids[i]]`` is the value of row i."""

    ids: NDArray[Any]  # (n,), into values
    values: Sequence[Value]

    @classmethod
    def of(cls, items: Iterable[Value]) -> "Lookup[Value]":
        """The lookup of a list of hashable values."""
        numbers: dict[Value, int] = {}
        ids = np.array([numbers.setdefault(item, len(numbers)) for item in items], dtype=np.int32)
        return cls(ids, list(numbers))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> Value:
        return self.values[int(self.ids[i])]


@dataclass(frozen=True)
class Elements:
    """The set of elements of every row: which sets there are as bits, and the number
    of its set for each row.
    """

    ids: NDArray[Any]  # (n,), into bits
    bits: NDArray[np.uint64]  # (k, 2), bit Z of 128

    @classmethod
    def of(cls, sets: Iterable[frozenset[int]]) -> "Elements":
        """The element sets of all rows, given as atomic numbers."""
        distinct = Lookup.of(sets)
        bits = [element_bits(values) for values in distinct.values]
        return cls(distinct.ids, np.array(bits, dtype=np.uint64).reshape(-1, 2))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> frozenset[int]:
        low, high = self.bits[int(self.ids[i])].tolist()
        both = low | high << 64
        return frozenset(z for z in range(128) if both >> z & 1)

    def within(self, numbers: Iterable[int]) -> NDArray[np.bool_]:
        """(n,) whether a row has no other elements than these."""
        allowed = np.array(element_bits(numbers), dtype=np.uint64)
        inside = ((self.bits & ~allowed) == 0).all(axis=1)
        return inside[self.ids] if len(inside) else np.zeros(len(self.ids), dtype=bool)


def element_bits(numbers: Iterable[int]) -> tuple[int, int]:
    """Atomic numbers as two words of 64 bits."""
    both = sum(1 << z for z in set(numbers))
    return both & (2**64 - 1), both >> 64
