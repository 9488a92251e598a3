"""Read the row of an ASE LMDB (`.aselmdb` of OMat24, OMol25, fairchem: zlib and JSON)
within bounds, without ASE.

ASE's own decoder fills an array of any size from one number (75 bytes become 4 GB) and
makes objects by name.
"""

import json
import math
import zlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from dataloader import plain_json
from dataloader.errors import RowError
from dataloader.limits import ROW_SPARE_BYTES, ROW_UNFOLDING
from dataloader.lmdb_shards.pickle_scanner import printable

MAX_BYTES = 64 * 2**20  # of a row, packed or unpacked
_MAX_ITEMS = 2**21  # values of a row; each costs up to 64 bytes once parsed. 10⁴ atoms have 10⁵
_MAX_NDIM = 4
_MAX_DEPTH = 32
DTYPES = {
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64"),
}
_MACE_PARTS = ("__info__", "__arrays__")
# constraints that hold single atoms, and which of three directions where they have no mask: of a
# plane or a line, how many are held is known and not which
_HOLDING = {
    "FixAtoms": (True, True, True),
    "FixCartesian": (True, True, True),
    "FixScaled": (True, True, True),
    "FixedPlane": (True, False, False),
    "FixedLine": (True, True, False),
}
_MASKED = ("FixCartesian", "FixScaled")
_WITHOUT_EFFECT = ("FixCom",)  # forces of a network add up to nothing
ZLIB_BEGINS = (b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda")


def loads(data: bytes) -> dict[str, object]:
    """The row as one flat record: what ASE stores at its top, then `key_value_pairs`, then `data`.

    `__ndarray__` becomes an array, the atoms that constraints hold become the mask `fixed`, and
    what mace's own writer keeps in `data` under `__info__` and `__arrays__` is laid out beside the
    rest.

    Raises:
        RowError: whatever is wrong; no other exception leaves this function.
    """
    row = plain(data)
    if not isinstance(row, dict):
        raise RowError(f"row is a JSON {type(row).__name__}, expected an object")
    record: dict[str, object] = {}
    further = row.get("data")
    of_mace: list[object] = []
    if isinstance(further, dict):
        of_mace = [further.pop(name, None) for name in _MACE_PARTS]
    for part in (*of_mace, further, row.get("key_value_pairs")):
        if isinstance(part, Mapping):
            _refuse_another_meaning(record, part, row)
            record.update(part)
    # what ASE itself reads; mace's writer leaves results of other rows in `data` beside it
    record.update(row)
    take_constraints(record)
    return record


def _refuse_another_meaning(
    record: Mapping[str, object], part: Mapping[str, object], row: Mapping[str, object]
) -> None:
    """Raise RowError where two parts of a row give one name two values, and the row itself none."""
    for name in record.keys() & part.keys() - row.keys():
        before = record[name]
        now = part[name]
        if before is None or now is None or _equal(before, now):
            continue
        raise RowError(
            f"{name} is there twice in the row, {_short(before)} and {_short(now)}; remove one"
        )


def _equal(first: object, second: object) -> bool:
    try:
        return bool(np.array_equal(np.asarray(first), np.asarray(second)))
    except ValueError:  # ragged
        return False


def _short(value: object) -> str:
    return printable(str(value).replace("\n", " "))[:40]


def plain(data: bytes) -> object:
    """Any JSON value of an ASE LMDB: a row, `deleted_ids`, `metadata`.

    Raises:
        RowError: whatever is wrong.
    """
    return from_json(_unpacked(data))


def from_json(text: bytes) -> object:
    """A JSON value as ASE writes it, with ``__ndarray__`` as arrays; nothing
    else becomes an object.

    Raises:
        RowError: whatever is wrong.
    """
    items = text.count(b",") + text.count(b"[") + text.count(b"{")
    if items > _MAX_ITEMS:
        raise RowError(f"row holds too many values ({items}, at most {_MAX_ITEMS})")
    try:
        return _value(
            json.loads(text, object_pairs_hook=_without_repeats, parse_int=plain_json.integer), 0
        )
    except RowError:
        raise
    except (MemoryError, RecursionError) as error:
        raise RowError(f"row cannot be unfolded ({type(error).__name__})") from None
    except Exception as error:  # JSON, UTF-8, numbers of 5,000 digits: no common class
        raise RowError(f"damaged JSON ({type(error).__name__}: {printable(str(error))})") from None


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object; of a name that is there twice json itself would take the last."""
    values = dict(pairs)
    if len(values) < len(pairs):
        repeated = plain_json.repeated([name for name, _ in pairs])
        shown = " and ".join(_short(value) for name, value in pairs if name == repeated)[:120]
        raise RowError(f"{printable(repeated)} is there twice in the row, {shown}; remove one")
    return values


def _unpacked(data: bytes) -> bytes:
    if len(data) > MAX_BYTES:
        raise RowError(f"row is too large ({len(data)} bytes, at most {MAX_BYTES} are read)")
    most = min(MAX_BYTES, ROW_UNFOLDING * len(data) + ROW_SPARE_BYTES)
    stream = zlib.decompressobj()
    try:
        text = stream.decompress(data, most)
    except zlib.error as error:
        raise RowError(f"damaged zlib stream ({printable(str(error))})") from None
    if stream.unconsumed_tail:
        raise RowError(f"row unfolds to too much (more than {most} bytes out of {len(data)})")
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
    if dtype not in DTYPES:
        raise RowError(f"__ndarray__ of dtype {printable(dtype)} is not allowed")
    if len(shape) > _MAX_NDIM or not all(type(n) is int and 0 <= n <= _MAX_ITEMS for n in shape):
        raise RowError(f"__ndarray__ has no shape of at most {_MAX_NDIM} numbers")
    if math.prod(shape) != len(flat):
        raise RowError(f"__ndarray__ has {len(flat)} values for shape {tuple(shape)}")
    values = np.asarray(flat) if flat else np.zeros(0)
    if values.ndim != 1 or values.dtype.kind not in "biuf":
        raise RowError("__ndarray__ holds something else than numbers")
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(dtype).reshape(shape)


def take_constraints(record: dict[str, object]) -> None:
    """Put which components of which atoms ASE's constraints hold, (n_atoms, 3), into ``fixed``,
    unless that is there; constraints that hold no single atoms stay.

    Raises:
        RowError: a constraint names atoms that are not there, or has no mask of three.
    """
    constraints = record.pop("constraints", None)
    numbers = record.get("numbers")
    n_atoms = len(numbers) if isinstance(numbers, np.ndarray | list) else 0
    held = np.zeros((n_atoms, 3), dtype=bool)
    others: list[object] = []
    for constraint in constraints if isinstance(constraints, list) else ():
        name = constraint.get("name") if isinstance(constraint, dict) else None
        if not isinstance(name, str) or name in _WITHOUT_EFFECT:
            continue
        if name not in _HOLDING:
            others.append(constraint)
        elif isinstance(arguments := constraint.get("kwargs"), dict):
            _hold(held, name, arguments)
        else:
            raise RowError(f"{name} does not say what it holds")
    if others:
        record["constraints"] = others
    if record.get("fixed") is None and held.any():
        record["fixed"] = held


def _hold(held: NDArray[np.bool_], name: str, arguments: Mapping[str, object]) -> None:
    """Add what one constraint holds, (n_atoms, 3)."""
    n_atoms = len(held)
    try:
        indices = np.asarray(arguments.get("indices", arguments.get("a", ()))).reshape(-1)
    except ValueError:
        raise RowError(f"{name} names its atoms by a ragged list") from None
    if indices.size == 0:
        return
    if indices.dtype.kind not in "iu" or indices.min() < -n_atoms or indices.max() >= n_atoms:
        raise RowError(f"{name} names atoms that are not there")
    mask = np.array(_HOLDING[name])
    if name in _MASKED:
        mask = np.asarray(arguments.get("mask", mask)).reshape(-1)
    if mask.shape != (3,) or mask.dtype.kind not in "biu":
        raise RowError(f"the mask of {name} is not three of true and false")
    held[indices] |= mask.astype(bool)
