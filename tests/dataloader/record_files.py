"""One record written into several kinds of file: extended XYZ, pickled dicts,
torch_geometric rows, ASE rows.
"""

import json
import pickle
import re
import sys
import types
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
import torch

from dataloader.labels import TO_TRAIN, LabelKeys, LabelNeeds
from dataloader.sources import Source, SourceSpec, open_sources

# Å, exact in single precision too
WATER = np.array([[0.0, 0.0, 0.0], [0.96875, 0.0, 0.0], [-0.25, 0.9375, 0.0]])
BOX = 10.0 * np.eye(3)
NOWHERE = np.zeros((3, 3))
OPEN, PERIODIC, SLAB = (False, False, False), (True, True, True), (True, True, False)

Record = dict[str, Any]
Write = Callable[[Path, Sequence[Record]], Path]


def record(**changes: Any) -> Record:
    """A sound water molecule in a periodic box of 10 Å, with labels, and
    what a test changes of it.
    """
    good: Record = {
        "numbers": np.array([8, 1, 1]),
        "positions": WATER,
        "cell": BOX,
        "pbc": PERIODIC,
        "energy": -457.25,
        "forces": np.array([[0.5, 0.25, 0.0], [-0.5, 0.0, 0.0], [0.0, -0.25, 0.0]]),
    }
    return {name: value for name, value in {**good, **changes}.items() if value is not None}


def moved(atom: int, axis: int, to: float) -> np.ndarray:
    positions = WATER.copy()
    positions[atom, axis] = to
    return positions


def changed(array: np.ndarray, place: tuple[int, int], value: float) -> np.ndarray:
    array = array.copy()
    array[place] = value
    return array


# The same record in three kinds of file.


def write_xyz(path: Path, records: Sequence[Record]) -> Path:
    path.write_text("".join(map(frame, records)), encoding="utf-8")
    return path


def frame(rec: Record) -> str:
    """One frame, with atomic numbers in place of symbols so that any number can be written."""
    words, columns, kinds = [], [rec["numbers"][:, None], rec["positions"]], ["Z:I:1", "pos:R:3"]
    for name, value in rec.items():
        if name in ("numbers", "positions"):
            continue
        array = np.asarray(value)
        if name == "cell":
            words.append(f'Lattice="{numbers(array)}"')
        elif name == "pbc":
            words.append('pbc="{} {} {}"'.format(*("FT"[p] for p in value)))
        elif (
            array.ndim == 2
            and len(array) == len(rec["numbers"])
            and not re.search("stress|virial", name)
        ):
            kinds.append(f"{name}:{'L' if array.dtype == bool else 'R'}:{array.shape[1]}")
            columns.append(array)
        else:
            words.append(f'{name}="{value if isinstance(value, str) else numbers(array)}"')
    lines = [
        " ".join(" ".join(map(cell, column[i].tolist())) for column in columns)
        for i in range(len(columns[0]))
    ]
    return "\n".join(
        [str(len(lines)), " ".join([f"Properties={':'.join(kinds)}", *words]), *lines, ""]
    )


def numbers(array: np.ndarray) -> str:
    return " ".join(map(cell, array.reshape(-1).tolist()))


def cell(value: object) -> str:
    return "FT"[value] if isinstance(value, bool) else repr(value)


def write_dicts(path: Path, records: Sequence[Record]) -> Path:
    return write_rows(path, [pickle.dumps(plain_row(rec)) for rec in records])


def plain_row(rec: Record) -> Record:
    return {
        {"positions": "pos", "numbers": "atomic_numbers"}.get(name, name): value
        for name, value in rec.items()
    }


def write_geometric(path: Path, records: Sequence[Record]) -> Path:
    return write_rows(path, [geometric_row(rec) for rec in records])


def geometric_row(rec: Record) -> bytes:
    """A torch_geometric 1.x row as OC20 has it, pickled by a stand-in for its class."""
    data = type("Data", (), {"__module__": "torch_geometric.data.data", "__qualname__": "Data"})
    modules = {
        n: types.ModuleType(n)
        for n in ("torch_geometric", "torch_geometric.data", "torch_geometric.data.data")
    }
    modules["torch_geometric.data.data"].Data = data  # type: ignore[attr-defined]
    row = data()
    names = {"positions": "pos", "numbers": "atomic_numbers", "energy": "y", "forces": "force"}
    row.__dict__.update(
        {names.get(name, name): value for name, value in rec.items() if name != "pbc"}
    )
    row.__dict__.update(pos=torch.tensor(rec["positions"]), natoms=len(rec["numbers"]), x=None)
    row.atomic_numbers = torch.tensor(rec["numbers"], dtype=torch.float32)
    if "cell" in rec:
        row.cell = torch.tensor(np.asarray(rec["cell"], dtype=float)).reshape(1, 3, 3)
    if isinstance(rec.get("forces"), np.ndarray):
        row.force = torch.tensor(rec["forces"])
    if tuple(rec["pbc"]) != PERIODIC:
        row.pbc = torch.tensor(rec["pbc"])
    with pytest.MonkeyPatch.context() as patch:
        for name, module in modules.items():
            patch.setitem(sys.modules, name, module)
        return pickle.dumps(row)


def write_ase_rows(path: Path, records: Sequence[Record]) -> Path:
    return write_rows(path, [ase_row_of(rec) for rec in records])


def ase_row_of(rec: Record) -> bytes:
    """What ASE stores at the top stands there, other numbers and texts in
    key_value_pairs, arrays in data.
    """
    top = {"numbers", "positions", "cell", "pbc", "energy", "forces", "stress", "constraints"}
    row: Record = {"key_value_pairs": {}, "data": {}}
    for name, value in rec.items():
        plain = np.asarray(value).tolist() if isinstance(value, np.ndarray | tuple) else value
        part = (
            row
            if name in top
            else row["key_value_pairs" if isinstance(plain, str | int | float) else "data"]
        )
        part[name] = plain
    return zlib.compress(json.dumps(row).encode())


def write_rows(path: Path, rows: Sequence[bytes]) -> Path:
    environment = lmdb.open(str(path), subdir=False, map_size=2**24)
    with environment.begin(write=True) as transaction:
        for i, row in enumerate(rows):
            transaction.put(str(i).encode(), row)
        transaction.put(b"length", pickle.dumps(len(rows)))
    environment.close()
    return path


def opened(
    path: Path, *, max_dropped: float = 0.001, needs: LabelNeeds = TO_TRAIN, **keys: Any
) -> Source:
    kind: Any = "xyz" if path.suffix == ".xyz" else "lmdb"
    spec = SourceSpec(path=path, format=kind, keys=LabelKeys(**keys))
    return open_sources([spec], needs=needs, max_dropped=max_dropped)[0]


def path_for(write: Write, folder: Path) -> Path:
    return folder / ("some.xyz" if write is write_xyz else "some.lmdb")
