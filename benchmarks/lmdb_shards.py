"""Write synthetic LMDB shards: ``python benchmarks/lmdb_shards.py KIND N OUTPUT``; KIND is
oc20, small, or aselmdb.

oc20: rows of torch_geometric 1.x as OC20 has them, 44 to 64 atoms with 2,400 to 3,600 stored edges,
54 and 3,000 on average. small: plain dicts of 6 to 10 atoms. aselmdb: rows as ASE's LMDB backend
writes them, 54 atoms in a cell that gives 3,000 edges at 5 Å.
"""

import argparse
import pickle
import sys
import types
import zlib
from collections.abc import Iterator
from pathlib import Path

import lmdb
import numpy as np
import torch
from ase.io.jsonio import encode

TEMPLATES = 64  # different rows; written again and again under other keys, with another energy each


def main() -> None:
    """Write what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("oc20", "small", "aselmdb"))
    parser.add_argument("n", type=int)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    write(arguments.kind, arguments.n, arguments.output)


def write(kind: str, n: int, output: Path) -> Path:
    """A shard of ``n`` rows; keys count from 0, in ASE's files from 1."""
    rng = np.random.default_rng(0)
    rows = {"oc20": _oc20, "small": _small, "aselmdb": _ase}[kind](rng)
    first = 1 if kind == "aselmdb" else 0
    with lmdb.open(str(output), subdir=False, map_size=2**40, lock=False) as environment:
        for begin in range(0, n, 10_000):
            with environment.begin(write=True) as transaction:
                for i in range(begin, min(begin + 10_000, n)):
                    transaction.put(str(i + first).encode(), next(rows))
        with environment.begin(write=True) as transaction:
            if kind == "aselmdb":
                transaction.put(b"nextid", zlib.compress(str(n + 1).encode()))
            else:
                transaction.put(b"length", pickle.dumps(n))
    return output


def crystal(
    rng: np.random.Generator, n_atoms: int, volume_per_atom: float
) -> tuple[np.ndarray, np.ndarray]:
    """Positions on a rattled cubic grid and the cell, no two atoms close."""
    side = (volume_per_atom * n_atoms) ** (1 / 3)
    n = int(np.ceil(n_atoms ** (1 / 3)))
    grid = np.stack(np.meshgrid(*[np.arange(n)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)[
        :n_atoms
    ]
    return grid * side / n + rng.normal(0, 0.1, (n_atoms, 3)), side * np.eye(3)


def _small(rng: np.random.Generator) -> Iterator[bytes]:
    while True:
        n = int(rng.integers(6, 11))
        positions, cell = crystal(rng, n, 12.0)
        record = {"pos": positions.astype(np.float32), "cell": cell.astype(np.float32)}
        record |= {"atomic_numbers": rng.integers(1, 20, n), "energy": float(rng.normal())}
        yield pickle.dumps(
            record | {"forces": rng.normal(0, 1, (n, 3)).astype(np.float32)}, protocol=4
        )


def _ase(rng: np.random.Generator) -> Iterator[bytes]:
    rows = []
    for _ in range(TEMPLATES):
        positions, cell = crystal(rng, 54, 9.42)
        record = {
            "numbers": rng.choice([1, 6, 8, 26], 54),
            "positions": positions,
            "cell": cell,
            "pbc": np.ones(3, bool),
        }
        record |= {
            "unique_id": "x" * 32,
            "ctime": 1.0,
            "user": None,
            "calculator": "unknown",
            "mtime": 1.0,
        }
        record |= {
            "energy": float(rng.normal()),
            "forces": rng.normal(0, 1, (54, 3)),
            "stress": rng.normal(0, 0.01, 6),
        }
        rows.append(
            zlib.compress(encode(record | {"calculator_parameters": {}, "data": {}}).encode())
        )
    while True:
        yield from rows


def _oc20(rng: np.random.Generator) -> Iterator[bytes]:
    for name in ("torch_geometric", "torch_geometric.data", "torch_geometric.data.data"):
        sys.modules.setdefault(name, types.ModuleType(name))
    data = type("Data", (), {"__module__": "torch_geometric.data.data", "__qualname__": "Data"})
    sys.modules["torch_geometric.data.data"].Data = data  # type: ignore[attr-defined]
    rows = []
    for _ in range(TEMPLATES):
        n = int(rng.integers(44, 65))
        n_edges = int(rng.integers(2400, 3601))
        positions, cell = crystal(rng, n, 12.0)
        row = data()
        row.__dict__.update(
            pos=torch.tensor(positions, dtype=torch.float32),
            cell=torch.tensor(cell, dtype=torch.float32).reshape(1, 3, 3),
            atomic_numbers=torch.tensor(rng.choice([1, 6, 8, 26], n), dtype=torch.float32),
            natoms=n,
            y=float(rng.normal()),
            force=torch.tensor(rng.normal(0, 1, (n, 3)), dtype=torch.float32),
            fixed=torch.tensor(rng.integers(0, 2, n), dtype=torch.float32),
            tags=torch.tensor(rng.integers(0, 3, n)),
            edge_index=torch.tensor(rng.integers(0, n, (2, n_edges))),
            cell_offsets=torch.tensor(rng.integers(-1, 2, (n_edges, 3))),
            sid=1,
            fid=2,
        )
        rows.append(pickle.dumps(row))
    while True:
        yield from rows


if __name__ == "__main__":
    main()
