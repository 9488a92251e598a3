"""A value for every row where few values are different: each is stored once, a row costs a small number."""

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
