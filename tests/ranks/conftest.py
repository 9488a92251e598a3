"""What the tests of several processes share: a fork server, waters in two formats,
the words of a training.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.io import write
from lmdb_material import labelled, write_dicts

from conftest import TINY, waters
from ranks.launching import Launcher


@pytest.fixture(scope="session")
def launcher() -> Iterator[Launcher]:
    """The fork server of this test process."""
    server = Launcher()
    yield server
    server.close()


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny.json, and 14 structures to train on and 5 to validate on
    in each of three forms.
    """
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "tiny.json").write_text(json.dumps(TINY))
    for part, n, seed in (("train", 14, 1), ("valid", 5, 2)):
        write(folder / f"waters-{part}.xyz", waters(n, seed), format="extxyz")
        write(
            folder / f"boxes-{part}.xyz",
            [in_a_box(atoms) for atoms in waters(n, seed)],
            format="extxyz",
        )
        write_dicts(folder / f"lmdb-{part}.lmdb", labelled(n, seed))
    return folder


def in_a_box(atoms: Atoms) -> Atoms:
    """Molecules with a cell around them and a stress that nobody computed."""
    atoms.set_cell([6.0, 6.0, 9.0])
    atoms.set_pbc(True)
    atoms.info["REF_stress"] = 1e-3 * np.cos(np.arange(6) * len(atoms) * atoms.positions[1, 0])
    return atoms


@pytest.fixture(scope="session")
def words(material: Path) -> list[object]:
    """Words of a training of four steps an epoch, the last of them with fewer
    structures than parts.
    """
    data = [
        "--xyz_train",
        material / "waters-train.xyz",
        "--xyz_val",
        material / "waters-valid.xyz",
    ]
    return [
        "--input_json",
        material / "tiny.json",
        *data,
        "--batch_size",
        2,
        "--accumulate_batches",
        2,
        "--epochs",
        2,
    ]
