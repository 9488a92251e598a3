"""Small LMDBs in every layout, for the tests of what reads them."""

import faulthandler
import json
import os
import pickle
import resource
import signal
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.jsonio import encode

from conftest import HANGING, waters


def put(path: Path, rows: dict[bytes, bytes]) -> Path:
    """Write an LMDB file."""
    with (
        lmdb.open(str(path), subdir=False, map_size=2**32, lock=False) as environment,
        environment.begin(write=True) as transaction,
    ):
        for key, value in rows.items():
            transaction.put(key, value)
    return path


def labelled(n: int, seed: int = 0) -> list[Atoms]:
    """Periodic waters whose labels stand where ASE puts them."""
    frames = waters(n, seed)
    for atoms in frames:
        atoms.cell, atoms.pbc = 8.0 * np.eye(3), True
        energy, forces = atoms.info.pop("REF_energy"), atoms.arrays.pop("REF_forces")
        atoms.calc = SinglePointCalculator(
            atoms, energy=energy, forces=forces, stress=np.arange(6.0) / 100
        )
    return frames


def dict_row(atoms: Atoms, **more: Any) -> bytes:
    """A plain dict."""
    record = {
        "pos": atoms.positions,
        "atomic_numbers": atoms.numbers,
        "cell": np.array(atoms.cell),
        "pbc": atoms.pbc,
    }
    results = atoms.calc.results
    return pickle.dumps(record | {"energy": results["energy"], "forces": results["forces"]} | more)


def write_dicts(path: Path, frames: Iterable[Atoms]) -> Path:
    """One row per frame under the keys 0, 1, 2 …."""
    return put(path, {str(i).encode(): dict_row(atoms) for i, atoms in enumerate(frames)})


def ase_row(atoms: Atoms, **data: Any) -> bytes:
    """A row as ASE's LMDB backend writes it, without that backend."""
    row = {
        "numbers": atoms.numbers,
        "positions": atoms.positions,
        "cell": np.array(atoms.cell),
        "pbc": atoms.pbc,
    }
    row |= {name: value for name, value in atoms.calc.results.items() if value is not None}
    return zlib.compress(
        encode(row | {"unique_id": "x", "calculator": "unknown", "data": data}).encode()
    )


def raw_row(**content: Any) -> bytes:
    """Any JSON under zlib."""
    return zlib.compress(json.dumps(content).encode())


def write_ase(
    path: Path, frames: Sequence[Atoms], data: Sequence[dict[str, Any]] | None = None
) -> Path:
    """Written by the third-party ase-db-backends; skipped where that is not installed."""
    backend = pytest.importorskip(
        "ase_db_backends.aselmdb", reason="ase-db-backends is not installed (extra dev)"
    )
    database = backend.LMDBDatabase(str(path))
    for i, atoms in enumerate(frames):
        database.write(atoms, data=data[i] if data else {})
    database.close()
    path.with_name(f"{path.name}-lock").unlink(missing_ok=True)
    return path


def in_child(task: Callable[[], int], memory: int | None = None) -> int:
    """Exit code of a task in a forked child; negative after a signal."""
    child = os.fork()
    if child == 0:
        faulthandler.disable()
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(int(HANGING))
        code = 99
        try:
            if memory:
                resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
            code = task()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
