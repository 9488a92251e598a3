"""ASE's databases in one file (``.db``, SQLite), read within bounds and without ASE.

ASE finds the kind of a database by its name, and would connect to a server; here a file is a
file. It is opened for reading only, and nothing of what a schema can compute (views, triggers,
generated columns) is let in.
"""

import contextlib
import json
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from dataloader import input_files
from dataloader.errors import RowError
from dataloader.limits import ASE_JSON_BYTES, HDF5_VALUES
from dataloader.lmdb_shards import ase_rows
from dataloader.record import RawRecord

BEGINS = b"SQLite format 3\0"
OLDEST = 5  # of ASE's layouts, of 2015; before it columns were others
_COLUMNS = (
    *(
        "id",
        "numbers",
        "positions",
        "cell",
        "pbc",
        "constraints",
        "energy",
        "free_energy",
        "forces",
        "stress",
    ),
    *("dipole", "magmoms", "charges", "key_value_pairs", "data"),
    *("masses", "tags", "momenta", "initial_magmoms", "initial_charges"),
)
_BLOBS: Mapping[str, tuple[str, tuple[int, ...]]] = {  # little-endian, and how they are laid out
    "numbers": ("<i4", (-1,)),
    "positions": ("<f8", (-1, 3)),
    "cell": ("<f8", (3, 3)),
    "forces": ("<f8", (-1, 3)),
    "stress": ("<f8", (-1,)),
    "dipole": ("<f8", (-1,)),
    "magmoms": ("<f8", (-1,)),
    "charges": ("<f8", (-1,)),
    "masses": ("<f8", (-1,)),
    "tags": ("<i4", (-1,)),
    "momenta": ("<f8", (-1, 3)),
    "initial_magmoms": ("<f8", (-1,)),
    "initial_charges": ("<f8", (-1,)),
}


def records(path: Path) -> Iterator[tuple[int, RawRecord]]:
    """The rows of one file with their ids, in the order of these.

    Raises:
        OSError: it cannot be read.
        RowError: it is no database of ASE, is being written, or is damaged.
    """
    input_files.require_regular(path)
    beside = path.with_name(f"{path.name}-wal")
    if beside.exists() and beside.stat().st_size:
        raise RowError(
            f"{beside.name} beside it holds what was written last; close the program that writes it"
        )
    try:
        with contextlib.closing(_connected(path)) as connection:
            _refuse_another_schema(connection)
            for row in connection.execute(f"SELECT {', '.join(_COLUMNS)} FROM systems ORDER BY id"):
                yield int(row[0]), RawRecord(_record(dict(zip(_COLUMNS, row, strict=True))))
    except (sqlite3.Error, OverflowError) as error:
        raise RowError(f"SQLite: {error!s:.100}") from None


def _connected(path: Path) -> sqlite3.Connection:
    place = f"file:{quote(str(path.absolute()))}?mode=ro&immutable=1"
    connection = sqlite3.connect(place, uri=True, isolation_level=None)
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 8 * HDF5_VALUES)
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA cell_size_check = ON")
    return connection


def _refuse_another_schema(connection: sqlite3.Connection) -> None:
    """Raise RowError where what is read would not be what was stored."""
    kinds = connection.execute(
        "SELECT type, sql FROM sqlite_master WHERE name = 'systems'"
    ).fetchall()
    if (
        len(kinds) != 1
        or kinds[0][0] != "table"
        or not str(kinds[0][1]).upper().startswith("CREATE TABLE")
    ):
        raise RowError("it has no table of systems, so it is no database of ASE")
    columns = connection.execute("PRAGMA table_xinfo(systems)").fetchall()
    if any(column[6] for column in columns):
        raise RowError("its table computes columns, which ASE's does not")
    information = connection.execute("SELECT name, value FROM information").fetchall()
    version = str(dict(information).get("version"))
    if not version.isdecimal() or int(version) < OLDEST:
        raise RowError(
            f"its layout is {version:.10}, at least {OLDEST} is read; write it anew: "
            "ase db OLD -i NEW.db"
        )


def _record(row: dict[str, object]) -> dict[str, object]:
    """One row: what was kept in ``data``, then key-value pairs, then what ASE itself stores."""
    values: dict[str, object] = {}
    for part in (_unpacked(row.pop("data")), _unpacked(row.pop("key_value_pairs"))):
        if isinstance(part, dict):
            values |= part
    row.pop("id")
    constraints = _unpacked(row.pop("constraints"))
    own = {name: _array(value, name) if name in _BLOBS else value for name, value in row.items()}
    own["pbc"] = (
        None if row["pbc"] is None else [bool(int(str(row["pbc"])) & bit) for bit in (1, 2, 4)]
    )
    values |= {name: value for name, value in own.items() if value is not None}
    values["constraints"] = constraints
    ase_rows.take_constraints(values)
    return {name: value for name, value in values.items() if value is not None}


def _array(stored: object, name: str) -> NDArray[np.generic] | None:
    if stored is None:
        return None
    kind, shape = _BLOBS[name]
    if not isinstance(stored, bytes):
        raise RowError(f"{name} is no array")
    try:
        return np.frombuffer(stored, kind).reshape(shape)
    except ValueError:
        raise RowError(f"{name} has {len(stored)} bytes, which is no array of its shape") from None


def _unpacked(stored: object) -> object:
    """A text of JSON, or bytes that hold arrays beside the JSON, as ASE
    stores ``data`` since 2019.
    """
    if stored is None or stored == b"":
        return None
    if not isinstance(stored, str | bytes) or len(stored) > ASE_JSON_BYTES:
        raise RowError("an entry is no JSON, or too large")
    if isinstance(stored, str):
        return ase_rows.from_json(stored.encode())
    place = int(np.frombuffer(stored[:8], "<i8")[0]) if len(stored) >= 8 else -1
    if not 8 <= place <= len(stored):
        raise RowError("an entry of data is cut off")
    return _with_arrays(_json(stored[place:]), stored, 0)


def _json(text: bytes) -> object:
    """JSON whose ``__ndarray__`` holds a place in place of values."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RowError(f"an entry of data is damaged JSON ({error!s:.60})") from None


def _with_arrays(value: object, stored: bytes, depth: int) -> object:
    if depth > 32:
        raise RowError("an entry of data is nested too deep")
    if isinstance(value, list):
        return [_with_arrays(item, stored, depth + 1) for item in value]
    if not isinstance(value, dict):
        return value
    match value.get("__ndarray__"):
        case None:
            return {name: _with_arrays(item, stored, depth + 1) for name, item in value.items()}
        case [list() as shape, str() as dtype, int() as place] if (
            dtype in ase_rows.DTYPES and place >= 0
        ):
            return _placed(shape, dtype, place, stored)
        case _:
            return None  # of complex numbers or texts, of which nothing here knows a meaning


def _placed(shape: list[object], dtype: str, place: int, stored: bytes) -> NDArray[np.generic]:
    """An array that lies among the bytes of an entry."""
    count = 1
    for n in shape:
        if type(n) is not int or not 0 <= n <= len(stored):
            raise RowError("an array of data has no shape")
        count *= n
    kind = np.dtype(dtype).newbyteorder("<")
    if place + count * kind.itemsize > len(stored):
        raise RowError("an array of data is cut off")
    return np.frombuffer(stored, kind, count, place).reshape([int(str(n)) for n in shape])
