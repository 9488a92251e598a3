"""ASE's own trajectories (``.traj``), read within bounds and without making objects.

The file (``ase.io.ulm``) holds items of JSON and arrays of numbers beside them. ASE's reader takes
every size from the file on trust; here each is compared with the file's own. What an item says is
what a row of ASE's databases says.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from dataloader import input_files
from dataloader.errors import RowError
from dataloader.limits import ASE_JSON_BYTES
from dataloader.lmdb_shards import ase_rows
from dataloader.record import RawRecord

BEGINS = (b"- of UlmASE-Trajectory", b"AFFormatASE-Trajectory")
# bytes: eight of the kind, a tag of 16, then version, number of items and place of their offsets
_HEADER = 48
_SHARED = ("numbers", "pbc", "constraints")  # stated by the first item for those that follow
# what a structure itself has for each atom, and as what ASE has it
_COLUMNS = {
    "masses": "masses",
    "tags": "tags",
    "momenta": "momenta",
    "magmoms": "initial_magmoms",
    "charges": "initial_charges",
}
_DTYPES = {
    "bool",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float32",
    "float64",
}
Order = Literal["<", ">"]
_DEEPEST = 4  # of items in items; a calculator is one


def records(path: Path) -> Iterator[RawRecord]:
    """The frames of one file, as names and values.

    Raises:
        OSError: it cannot be read.
        RowError: it is damaged, or states sizes that it does not have.
    """
    with input_files.opened(path) as file:
        reader = _Items(file)
        shared: dict[str, object] = {}
        for number in range(len(reader)):
            item = reader.item(number)
            if number == 0:
                shared = {name: item[name] for name in _SHARED if name in item}
            yield RawRecord(_record(item, shared))


def _record(item: Mapping[str, object], shared: Mapping[str, object]) -> dict[str, object]:
    """One frame: what was kept in ``info``, then the results of its calculator,
    then the structure itself.
    """
    frame = dict(item) if "numbers" in item else {**shared, **item}
    info = frame.pop("info", None)
    calculator = frame.pop("calculator", None)
    values: dict[str, object] = dict(info) if isinstance(info, dict) else {}
    if isinstance(calculator, dict):
        values |= {
            name: value for name, value in calculator.items() if name not in ("name", "parameters")
        }
    values |= {name: frame.get(name) for name in ("numbers", "positions", "cell", "pbc")}
    values |= {name: frame[stored] for stored, name in _COLUMNS.items() if stored in frame}
    constraints = frame.get("constraints")
    if isinstance(constraints, str):
        constraints = ase_rows.from_json(constraints.encode())
    values["constraints"] = constraints
    ase_rows.take_constraints(values)
    return {name: value for name, value in values.items() if value is not None}


class _Items:
    """The items of a file, read one after another."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = os.fstat(file.fileno()).st_size
        header = self._bytes(0, _HEADER)
        count, place = np.frombuffer(header[32:], "<i8").tolist()
        self._offsets = np.frombuffer(self._bytes(place, 8 * count), "<i8").tolist()

    def __len__(self) -> int:
        return len(self._offsets)

    def item(self, number: int) -> dict[str, object]:
        """One item, with its arrays."""
        offset = self._offsets[number]
        length = int(np.frombuffer(self._bytes(offset, 8), "<i8")[0])
        if length > ASE_JSON_BYTES:
            raise RowError(
                f"item {number} has {length} bytes of JSON, at most {ASE_JSON_BYTES} are read"
            )
        content = ase_rows.from_json(self._bytes(offset + 8, length))
        if not isinstance(content, dict):
            raise RowError(f"item {number} is no JSON object")
        order: Order = "<" if content.pop("_little_endian", True) else ">"
        return self._with_arrays(content, order, 0)

    def _with_arrays(
        self, content: Mapping[str, object], order: Order, depth: int
    ) -> dict[str, object]:
        """Names that end in a dot stand for an array or for a further item."""
        if depth > _DEEPEST:
            raise RowError("its items are nested too deep")
        values: dict[str, object] = {}
        for name, value in content.items():
            if name.endswith(".") and isinstance(value, dict):
                stored = value.get("ndarray")
                inner = (
                    self._with_arrays(value, order, depth + 1)
                    if stored is None
                    else self._array(stored, order)
                )
                values[name.removesuffix(".")] = inner
            else:
                values[name] = value
        return values

    def _array(self, stored: object, order: Order) -> NDArray[np.generic]:
        match stored:
            case [list() as shape, str() as dtype, int() as offset] if dtype in _DTYPES:
                pass
            case _:
                raise RowError("an array is not stated as [shape, type, place]")
        if len(shape) > 3 or not all(type(n) is int and 0 <= n <= self._size for n in shape):
            raise RowError(f"an array has the shape {str(shape)[:60]}")
        count = 1
        for n in shape:
            count *= n
        kind = np.dtype(dtype).newbyteorder(order)
        return np.frombuffer(self._bytes(offset, count * kind.itemsize), kind).reshape(shape)

    def _bytes(self, offset: int, length: int) -> bytes:
        """Bytes of the file, all of them."""
        if offset < 0 or length < 0 or offset + length > self._size:
            raise RowError("it is cut off or damaged: it states more than it has; copy it again")
        self._file.seek(offset)
        return self._file.read(length)
