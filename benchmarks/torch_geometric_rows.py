"""Rows made by the genuine torch_geometric, read without it: ``python
benchmarks/torch_geometric_rows.py FOLDER``.

FOLDER holds torch_geometric and what it needs beside torch (``pip install --target FOLDER
torch_geometric``, or for 1.x ``pip install --no-deps --target FOLDER torch_geometric==1.7.2 six``:
``Data`` needs no more than the names of the compiled parts, which the child makes up where they are
not there); only a child process sees it. Rows like OC20's (S2EF), OC22's (oc22, nads, no fixed
energies) and with every numpy and torch type that occurs are pickled there by ``Data``; here they
are read by the restricted reader and compared bit by bit.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROWS = 50
WRITER = """
import importlib.metadata, importlib.util, pickle, sys, types
import lmdb, numpy as np, torch
class Names(types.ModuleType):
    __path__ = []
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})
for name in ("torch_scatter", "torch_sparse", "torch_cluster", "networkx", "sklearn", "rdflib"):
    is_there = importlib.util.find_spec(name) is not None
    if importlib.metadata.version("torch_geometric") < "2" and not is_there:
        sys.modules[name] = Names(name)
import torch_geometric
from torch_geometric.data import Data
rng, expected = np.random.default_rng(0), {}
new = lmdb.open(sys.argv[1], subdir=False, map_size=2**30, lock=False)
with new as environment, environment.begin(write=True) as put:
    for i in range(int(sys.argv[3])):
        n = int(rng.integers(3, 90))
        places = rng.normal(0, 4, (n, 3)) + 3 * np.arange(n)[:, None]
        values = dict(
            pos=torch.tensor(places, dtype=torch.float32),
            cell=torch.tensor(3.0 * (n + 2) * np.eye(3)[None], dtype=torch.float32),
            atomic_numbers=torch.tensor(
                rng.integers(1, 80, n), dtype=torch.float32 if i % 2 else torch.long
            ),
            natoms=n, tags=torch.tensor(rng.integers(0, 3, n)),
            fixed=torch.tensor(rng.integers(0, 2, n), dtype=torch.float32),
            force=torch.tensor(rng.normal(0, 1, (n, 3)), dtype=torch.float32),
            y=[
                float(rng.normal()),
                np.float64(rng.normal()),
                torch.tensor(float(rng.normal())),
            ][i % 3],
            edge_index=torch.tensor(rng.integers(0, n, (2, 40 * n))),
            cell_offsets=torch.zeros(40 * n, 3),
            distances=torch.rand(40 * n), sid=i, fid=torch.tensor([i]),
        )
        if i % 5 == 0:
            values |= dict(oc22=1, nads=2)
        put.put(str(i).encode(), pickle.dumps(Data(**values), protocol=-1 if i % 2 else 4))
        for name, value in values.items():
            expected[f"{i}/{name}"] = np.asarray(value)
    put.put(b"length", pickle.dumps(int(sys.argv[3])))
np.savez(sys.argv[2], **expected)
print(torch_geometric.__version__)
"""


def main() -> int:
    """Write in a child, read here; 0 where everything is equal."""
    sys.path[0] = str(ROOT)
    import numpy as np

    from dataloader.labels import TO_TRAIN, LabelKeys
    from dataloader.lmdb_file import LmdbFile
    from dataloader.lmdb_shards.lmdb_record import record_of
    from dataloader.lmdb_shards.lmdb_source import LmdbSource

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows.lmdb")
        arrays = Path(folder, "expected.npz")
        environment = os.environ | {"PYTHONPATH": sys.argv[1], "PYTORCH_JIT": "0"}
        command = [sys.executable, "-c", WRITER, str(path), str(arrays), str(ROWS)]
        version = subprocess.run(
            command, env=environment, check=True, stdout=subprocess.PIPE, text=True
        ).stdout.strip()
        assert "torch_geometric" not in sys.modules
        expected = np.load(arrays)
        compared = 0
        file = LmdbFile(path)
        source = LmdbSource(path, LabelKeys(), needs=TO_TRAIN, max_dropped=0.0)
        for i in range(ROWS):
            record, layout = record_of(file.get(str(i).encode()))
            names = [name.partition("/")[2] for name in expected if name.startswith(f"{i}/")]
            assert set(names) == set(record), (set(names) ^ set(record), i)
            for name in names:
                theirs = expected[f"{i}/{name}"]
                ours = np.asarray(record[name])
                assert ours.dtype == theirs.dtype, (i, name, layout)
                assert np.array_equal(ours, theirs), (i, name, layout)
                compared += 1
            assert np.array_equal(source.structure(i).positions, expected[f"{i}/pos"])
    print(
        f"torch_geometric {version}: {ROWS} rows, {compared} values equal; layouts "
        f"{dict(source.census.layouts)}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
