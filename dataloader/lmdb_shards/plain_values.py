"""From what the unpickler left of a row, stand-ins within containers, to plain values
within a budget of memory.
"""

import math
from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataloader.errors import RowError
from dataloader.lmdb_shards.pickle_scanner import MAX_OPCODES
from dataloader.lmdb_shards.pickle_stand_ins import (
    Data,
    GlobalStorage,
    Latin1,
    NumpyArray,
    Scalar,
    Tensor,
)

_MAX_DEPTH = 32  # containers within containers
_ARRAY_BYTES = 100  # an array object without its elements


class TorchGeometricData(dict[str, object]):
    """The attributes of one torch_geometric ``Data``; a class of its own because such
    rows imply periodicity.
    """

    version = 1  # of torch_geometric: 1, or 2 where the attributes lie in a GlobalStorage


class PlainValues:
    """Turns what the unpickler left, stand-ins within containers, into plain
    values, within a budget.

    What the row shares is converted again at every place. So a value that unfolds to more than the
    row could have spelled out (a list of one list twice, of one list twice, …) is refused here and
    not met by whoever uses the row.
    """

    _ATOMS = frozenset({str, int, float, bool, bytes, type(None)})

    def __init__(self, n_bytes: int, only: Collection[str] | None = None) -> None:
        self.bytes_left = n_bytes
        self.items_left = MAX_OPCODES
        self.only = only

    def take(self, n_bytes: int) -> None:
        """Count memory before it is taken."""
        self.bytes_left -= n_bytes
        if self.bytes_left < 0:
            raise RowError("arrays of the row are out of proportion to its size")

    def value(self, value: object, depth: int = 0) -> object:
        """The plain form of a value; the top of a row has depth 0."""
        if type(value) in self._ATOMS:
            return value
        if depth > _MAX_DEPTH:
            raise RowError(f"containers are nested too deep (more than {_MAX_DEPTH})")
        if isinstance(value, dict | list | tuple):
            self.items_left -= len(value)
            if self.items_left < 0:
                raise RowError(
                    "containers hold too much, shared parts counted at each place "
                    f"(over {MAX_OPCODES})"
                )
        return self._convert(value, depth + 1)

    def _convert(self, value: object, depth: int) -> object:
        match value:
            case Tensor() | NumpyArray():
                return value.array(self)
            case Data():
                data = TorchGeometricData(self._values(value.attributes(), depth))
                data.version = 2 if isinstance(value.state.get("_store"), GlobalStorage) else 1
                return data
            case dict():
                if not all(type(key) in (str, int) for key in value):
                    raise RowError("dict has a key that is neither str nor int")
                return self._values(value, depth)
            case list():
                return [self.value(item, depth) for item in value]
            case tuple():
                return tuple([self.value(item, depth) for item in value])
            case Scalar():
                return value.value(self)
            case bytearray() | Latin1():
                return self.buffer(value)
        raise RowError(f"a bare {getattr(value, '__name__', type(value).__name__)} is no value")

    def _values(self, named: dict[Any, object], depth: int) -> dict[Any, object]:
        """The values of a dict; at the top of a row those that were asked for."""
        if self.only is not None and depth == 1:
            named = {name: named[name] for name in named if name in self.only}
        return {name: self.value(value, depth) for name, value in named.items()}

    def buffer(self, value: object) -> bytes:
        """A byte string of the row in any of its three spellings."""
        if type(value) is bytes:
            return value
        if isinstance(value, Latin1):
            return value.encoded(self)
        if isinstance(value, bytearray):
            self.take(len(value))
            return bytes(value)
        raise RowError(f"expected bytes, found {type(value).__name__}")

    def array(
        self,
        buffer: bytes,
        start: int,
        dtype: np.dtype[Any],
        shape: tuple[int, ...],
        stride: tuple[int, ...],
    ) -> NDArray[Any]:
        """Copy a strided view (stride in elements, start in bytes) out of the row:
        contiguous, aligned, writable.
        """
        count = math.prod(shape)
        self.take(count * dtype.itemsize + _ARRAY_BYTES)
        if count == 0:
            # (0, 2⁶⁰) takes nothing here, and who knows what where it is used
            self.take(max(shape))
            return np.empty(shape, dtype.newbyteorder("="))
        is_bool = dtype.kind == "b"
        view: NDArray[Any] = np.ndarray(
            shape,
            np.uint8 if is_bool else dtype,
            buffer,
            start,
            [step * dtype.itemsize for step in stride],
        )
        if is_bool:
            # a byte that is neither 0 nor 1 would be no bool
            return np.asarray(np.not_equal(view, 0, order="C"))
        return view.copy() if dtype.isnative else view.astype(dtype.newbyteorder("="), order="C")
