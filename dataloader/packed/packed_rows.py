"""A structure, with its neighbour list where asked, as the few bytes that
dataloader/pack.py writes, and back.

All little-endian: the header; atomic numbers u1; positions f8; cell f8; then energy f8, forces f8,
stress f8 and the mask of fixed atoms u1, each where its flag is set; the edges: cutoff f8, number
of neighbours of each atom u4, senders u2 (u4 from 65536 atoms on), shifts i1 (i2 where a byte is
too small); JSON with all else, labels of quantities that a plug-in added among it.
"""

import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataloader import plain_json
from dataloader.errors import RowError
from dataloader.quantities import ENERGY, FORCES, QUANTITIES, STRESS
from dataloader.structure import Edges, Structure

MAGIC = b"MPK1"
_HEADER = struct.Struct("<4sIIII")  # magic, flags, atoms, edges, bytes of JSON
# the first three bits are pbc
_ENERGY, _FORCES, _STRESS, _FIXED, _EDGES, _WIDE_SHIFTS = (8 << i for i in range(6))
_MAX_BYTES = 64 * 2**20
_MAX_JSON = 2**20
_FLAGS = {ENERGY.name: _ENERGY, FORCES.name: _FORCES, STRESS.name: _STRESS}


def dumps(
    structure: Structure, *, edges: Edges | None = None, extra: Mapping[str, object] | None = None
) -> bytes:
    """The bytes of one structure.

    Args:
        structure: labels in eV, eV/Å, eV/Å³.
        edges: its neighbour list.
        extra: more names of the record, plain JSON: group, where it came from.
    """
    s = structure
    flags = sum(1 << axis for axis in range(3) if s.pbc[axis])
    parts = [s.atomic_numbers.astype("u1"), s.positions.astype("<f8"), s.cell.astype("<f8")]
    for name, flag in _FLAGS.items():
        if name in s.labels:
            flags |= flag
            parts.append(np.asarray(s.labels[name], dtype="<f8"))
    if s.free_atoms is not None:
        flags |= _FIXED
        parts.append((~s.free_atoms).astype("u1"))
    if edges is not None:
        flags |= _EDGES
        wide = len(edges.shifts) > 0 and np.abs(edges.shifts).max() > 127
        flags |= _WIDE_SHIFTS if wide else 0
        parts.append(np.array(edges.r_max, dtype="<f8"))
        parts.append(np.bincount(edges.receivers, minlength=s.n_atoms).astype("<u4"))
        parts.append(edges.senders.astype("<u2" if s.n_atoms < 2**16 else "<u4"))
        parts.append(edges.shifts.astype("<i2" if wide else "i1"))
    rest: dict[str, object] = {k: v for k, v in (extra or {}).items() if v is not None}
    rest |= {"config_weight": s.weight} if s.weight != 1.0 else {}
    rest |= {QUANTITIES[name].weight_name: weight for name, weight in s.weights.items()}
    rest |= {
        QUANTITIES[name].names[0]: np.asarray(s.labels[name]).tolist()
        for name in s.labels
        if name not in _FLAGS
    }
    rest |= {"charge": s.charge} if s.charge is not None else {}
    rest |= {"spin": s.spin} if s.spin is not None else {}
    rest |= {"head": s.head} if s.head is not None else {}
    rest |= {"config_type": s.config_type} if s.config_type != "Default" else {}
    rest |= {name: np.asarray(value).tolist() for name, value in s.features.items()}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":")).encode() if rest else b""
    header = _HEADER.pack(
        MAGIC, flags, s.n_atoms, 0 if edges is None else len(edges.senders), len(text)
    )
    return b"".join([header, *(part.tobytes() for part in parts), text])


def loads(data: bytes) -> dict[str, object]:
    """The row as a record under the names every layout uses; ``edges`` where they are stored.

    Raises:
        RowError: whatever is wrong; no other exception leaves this function.
    """
    if len(data) > _MAX_BYTES:
        raise RowError(f"row is too large ({len(data)} bytes, at most {_MAX_BYTES} are read)")
    if len(data) < _HEADER.size:
        raise RowError(f"packed row is cut off ({len(data)} bytes)")
    _, flags, n_atoms, n_edges, n_json = _HEADER.unpack_from(data)
    cursor = _Cursor(data, _HEADER.size)
    record: dict[str, object] = {
        "atomic_numbers": cursor.take("u1", n_atoms).astype(np.int64),
        "pos": cursor.take("<f8", n_atoms, 3),
        "cell": cursor.take("<f8", 3, 3),
        "pbc": np.array([bool(flags >> axis & 1) for axis in range(3)]),
    }
    if flags & _ENERGY:
        record["energy"] = float(cursor.take("<f8", 1)[0])
    if flags & _FORCES:
        record["forces"] = cursor.take("<f8", n_atoms, 3)
    if flags & _STRESS:
        record["stress"] = cursor.take("<f8", 3, 3)
    if flags & _FIXED:
        record["fixed"] = cursor.take("u1", n_atoms).astype(bool)
    if flags & _EDGES:
        record["edges"] = _edges(cursor, flags, n_atoms, n_edges)
    if cursor.position + n_json != len(data) or n_json > _MAX_JSON:
        raise RowError(f"packed row has another length than it says ({len(data)} bytes)")
    return record | _rest(data[cursor.position :]) if n_json else record


def _rest(text: bytes) -> dict[str, object]:
    try:
        rest = plain_json.loads(text)
    except ValueError:
        raise RowError("packed row holds damaged JSON") from None
    if not isinstance(rest, dict):
        raise RowError("packed row holds JSON that is no object")
    return rest


def _edges(cursor: "_Cursor", flags: int, n_atoms: int, n_edges: int) -> Edges:
    r_max = float(cursor.take("<f8", 1)[0])
    n_neighbors = cursor.take("<u4", n_atoms)
    senders = cursor.take("<u2" if n_atoms < 2**16 else "<u4", n_edges)
    shifts = cursor.take("<i2" if flags & _WIDE_SHIFTS else "i1", n_edges, 3)
    if int(n_neighbors.sum(dtype=np.int64)) != n_edges or (
        n_edges and int(senders.max()) >= n_atoms
    ):
        raise RowError("packed row has edges between atoms that are not there")
    receivers = np.repeat(np.arange(n_atoms, dtype=np.int32), n_neighbors)
    return Edges(r_max, senders.astype(np.int32), receivers, shifts.astype(np.int16))


class _Cursor:
    """Arrays one after another out of a row; each owns its memory."""

    def __init__(self, data: bytes, position: int) -> None:
        self.data = data
        self.position = position

    def take(self, dtype: str, *shape: int) -> NDArray[Any]:
        count = int(np.prod(shape, dtype=object))
        n_bytes = count * np.dtype(dtype).itemsize
        if n_bytes > len(self.data) - self.position:
            raise RowError(f"packed row is cut off ({len(self.data)} bytes)")
        values = np.frombuffer(self.data, dtype, count, self.position).reshape(shape).copy()
        self.position += n_bytes
        return values
