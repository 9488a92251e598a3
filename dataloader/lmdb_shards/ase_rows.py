"""Read the row of an ASE LMDB (`.aselmdb` of OMat24, OMol25, fairchem: zlib and JSON) within bounds, without ASE.

ASE's own decoder fills an array of any size from one number (75 bytes become 4 GB) and makes objects by name.
"""

import json
import math
import zlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from dataloader.lmdb_shards.restricted_pickle import RowError

MAX_BYTES = 64 * 2**20  # of a row, packed or unpacked
_MAX_ITEMS = 2**21  # values of a row; each costs up to 64 bytes once parsed. 10⁴ atoms have 10⁵
_MAX_NDIM = 4
_MAX_DEPTH = 32
_DTYPES = {
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64"),
}
ZLIB_BEGINS = (b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda")


def loads(data: bytes) -> dict[str, object]:
    """The row as one flat record: what ASE stores at its top, then `key_value_pairs`, then `data`.

    `__ndarray__` becomes an array, the atoms of a `FixAtoms` constraint become the mask `fixed`.

    Raises:
        RowError: whatever is wrong; no other exception leaves this function.
    """
    row = plain(data)
    if not isinstance(row, dict):
        raise RowError(f"row is a JSON {type(row).__name__}, expected an object")
    record: dict[str, object] = {}
    for part in (row.get("data"), row.get("key_value_pairs"), row):
        if isinstance(part, Mapping):
            record.update(part)
    if "fixed" not in record and isinstance(record.get("constraints"), list):
        record["fixed"] = _fixed(record)
    return record


def plain(data: bytes) -> object:
    """Any JSON value of an ASE LMDB: a row, `deleted_ids`, `metadata`.

    Raises:
        RowError: whatever is wrong.
    """
    text = _unpacked(data)
    items = text.count(b",") + text.count(b"[") + text.count(b"{")
    if items > _MAX_ITEMS:
        raise RowError(f"row holds too many values ({items}, at most {_MAX_ITEMS})")
    try:
        return _value(json.loads(text), 0)
    except RowError:
        raise
    except (MemoryError, RecursionError) as error:
        raise RowError(f"row cannot be unfolded ({type(error).__name__})") from None
    except Exception as error:  # JSON, UTF-8, numbers of 5,000 digits: no common class
        raise RowError(f"damaged JSON ({type(error).__name__}: {_printable(str(error))})") from None


def _unpacked(data: bytes) -> bytes:
    if len(data) > MAX_BYTES:
        raise RowError(f"row is too large ({len(data)} bytes, at most {MAX_BYTES} are read)")
    stream = zlib.decompressobj()
    try:
        text = stream.decompress(data, MAX_BYTES)
    except zlib.error as error:
        raise RowError(f"damaged zlib stream ({_printable(str(error))})") from None
    if stream.unconsumed_tail:
        raise RowError(f"row unfolds to too much (more than {MAX_BYTES} bytes)")
    if not stream.eof:
        raise RowError(f"zlib stream is cut off ({len(data)} bytes)")
    return text


def _value(value: object, depth: int) -> object:
    if depth > _MAX_DEPTH:
        raise RowError(f"values are nested too deep (more than {_MAX_DEPTH})")
    if isinstance(value, dict):
        if "__ndarray__" in value:
            return _array(value["__ndarray__"])
        return {name: _value(item, depth + 1) for name, item in value.items()}
    if isinstance(value, list) and value and isinstance(value[0], dict | list):
        return [_value(item, depth + 1) for item in value]
    return value


def _array(stored: object) -> NDArray[np.generic]:
    """An array from [shape, dtype, flat values], as many values as the shape has places."""
    match stored:
        case [list() as shape, str() as dtype, list() as flat]:
            pass
        case _:
            raise RowError("__ndarray__ is not [shape, dtype, values]")
    if dtype not in _DTYPES:
        raise RowError(f"__ndarray__ of dtype {_printable(dtype)} is not allowed")
    if len(shape) > _MAX_NDIM or not all(type(n) is int and 0 <= n <= _MAX_ITEMS for n in shape):
        raise RowError(f"__ndarray__ has no shape of at most {_MAX_NDIM} numbers")
    if math.prod(shape) != len(flat):
        raise RowError(f"__ndarray__ has {len(flat)} values for shape {tuple(shape)}")
    values = np.asarray(flat) if flat else np.zeros(0)
    if values.ndim != 1 or values.dtype.kind not in "biuf":
        raise RowError("__ndarray__ holds something else than numbers")
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(dtype).reshape(shape)


def _fixed(record: Mapping[str, object]) -> NDArray[np.bool_] | None:
    """Which atoms were held: FixAtoms alone says so for whole atoms; None where there is none."""
    constraints, numbers = record["constraints"], record.get("numbers")
    assert isinstance(constraints, list)
    n_atoms = len(numbers) if isinstance(numbers, np.ndarray | list) else 0
    fixed = np.zeros(n_atoms, dtype=bool)
    for constraint in constraints:
        if not isinstance(constraint, dict) or constraint.get("name") != "FixAtoms":
            continue
        arguments = constraint.get("kwargs")
        indices = np.asarray(arguments.get("indices", ())) if isinstance(arguments, dict) else np.zeros(0)
        if indices.size == 0:
            continue
        if indices.dtype.kind not in "iu" or indices.min() < -n_atoms or indices.max() >= n_atoms:
            raise RowError("FixAtoms names atoms that are not there")
        fixed[indices.reshape(-1)] = True
    return fixed if fixed.any() else None


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text[:120])
