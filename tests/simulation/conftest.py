"""What the tests of simulations share: networks with random weights,
structures of every periodicity.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111, molecule

from conftest import TINY
from losses import Loss, sum_names
from model_utils import model_loader
from model_utils.files.outputs import Outputs
from model_utils.metrics import metrics
from model_utils.model_loader import PairWriter
from model_utils.models import description as model_json

METALS = {
    **TINY,
    "r_max": 3.5,
    "atomic_numbers": [1, 8, 13, 29],
    "atomic_energies": {"H": -13.6, "O": -430.0, "Al": -10.0, "Cu": -12.5},
    "hidden_irreps": "4x0e+4x1o",
}


def written(folder: Path, seed: int, **changes: object) -> Path:
    """A ``*_model.pt`` of a network with random weights; a field that is None is left out."""
    fields = {name: value for name, value in {**METALS, **changes}.items() if value is not None}
    (folder / "m.json").write_text(json.dumps(fields))
    description = model_json.read(folder / "m.json")
    module = model_loader.build(description, torch.float64, seed=seed)
    outputs = Outputs.named(folder / f"seed{seed}_checkpoint.pt", None)
    writer = PairWriter(outputs, description, module, {})
    errors = metrics([1.0] * len(sum_names()), Loss.of())
    writer.save_best(model_loader.trainable(module), weights="raw", epoch=1, step=1, metrics=errors)
    return outputs.model


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three networks of one structure with other weights."""
    folder = tmp_path_factory.mktemp("models")
    return [written(folder, seed) for seed in (1, 2, 3)]


def rattled(atoms: Atoms, seed: int = 5) -> Atoms:
    """The atoms, each a little moved."""
    atoms.rattle(0.05, seed=seed)
    return atoms


def kinds() -> dict[str, Atoms]:
    """Structures with no, one, two and three periodic directions, and atoms without neighbours."""
    chain = Atoms(
        "CuH", positions=[[0, 0, 0], [0, 0, 1.6]], cell=[0, 0, 3.1], pbc=[False, False, True]
    )
    slab = fcc111("Al", (2, 2, 3), vacuum=None)
    slab.pbc = [True, True, False]
    skewed = bulk("Cu") * (2, 1, 1)
    shear = np.array([[0, 0, 0], [0.4, 0, 0], [0, 0.7, 0]])
    skewed.set_cell(skewed.cell.array + shear, scale_atoms=True)
    return {
        "molecule": rattled(molecule("H2O")),
        "crystal": rattled(bulk("Al", cubic=True)),
        "skewed crystal": rattled(skewed),
        "slab": rattled(slab),
        "chain": rattled(chain * (1, 1, 2)),
        "atom": Atoms("O"),
        "far apart": Atoms("OO", positions=[[0, 0, 0], [0, 0, 9.0]]),
    }
