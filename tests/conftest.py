"""What several tests share: where the measured data lie, a tiny network, a few labelled structures."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.io import write

if TYPE_CHECKING:
    from model_utils.models.description import ModelDescription

ROOT = Path(__file__).resolve().parents[1]
torch.set_num_threads(1)  # the networks here are tiny, and pytest-xdist uses the cores

TINY = {
    "model_class": "ScaleShiftMACE",
    "r_max": 3.0,
    "atomic_numbers": [1, 8],
    "atomic_energies": {"H": -13.6, "O": -430.0},
    "avg_num_neighbors": 2.0,
    "atomic_inter_scale": 1.0,
    "atomic_inter_shift": 0.0,
    "hidden_irreps": "4x0e+4x1o",
    "max_ell": 1,
    "correlation": 2,
    "radial_MLP": [8],
    "MLP_irreps": "4x0e",
}


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real data with independently measured answers; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("MACE_TRAIN_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"the measured real data are not at {folder} (set MACE_TRAIN_SHARED_DATA)")
    return folder


@pytest.fixture(autouse=True)
def _default_precision():
    """A command sets torch's default precision for its process; tests share one."""
    before = torch.get_default_dtype()
    yield
    torch.set_default_dtype(before)


_prototypes: dict[tuple[str, torch.dtype], torch.nn.Module] = {}


@pytest.fixture(autouse=True)
def _networks_to_be_filled_are_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that is only built to be filled from a file is built once and copied from then on, six times faster."""
    from model_utils import model_loader

    build, copied = model_loader.to_be_filled, model_loader.copied

    def to_be_filled(description: "ModelDescription", dtype: torch.dtype, where: str = "model.json") -> torch.nn.Module:
        key = (description.hash(), dtype)
        if key not in _prototypes:
            _prototypes[key] = build(description, dtype, where)
        return copied(_prototypes[key])

    monkeypatch.setattr(model_loader, "to_be_filled", to_be_filled)


@pytest.fixture
def tiny_json(tmp_path: Path) -> Path:
    """A hand-written model.json of a network with a few hundred weights."""
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(TINY))
    return path


def waters(n: int, seed: int = 0, *, prefix: str = "REF_") -> list[Atoms]:
    """Water molecules with random bends and labels of a pair potential, one to two molecules each."""
    rng = np.random.default_rng(seed)
    frames = []
    for i in range(n):
        base = np.array([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]])
        copies = 1 + i % 2
        positions = np.concatenate([base + np.array([0, 0, 2.5 * c]) for c in range(copies)])
        positions = positions + rng.normal(0, 0.05, positions.shape)
        atoms = Atoms("OHH" * copies, positions=positions)
        energy, forces = pair_potential(atoms)
        atoms.info[f"{prefix}energy"] = energy
        atoms.arrays[f"{prefix}forces"] = forces
        frames.append(atoms)
    return frames


def pair_potential(atoms: Atoms) -> tuple[float, np.ndarray]:
    """Energy (eV) and forces (eV/Å) of Gaussian wells between all pairs, on top of the tiny network's E0s."""
    energy = sum({1: -13.6, 8: -430.0}[int(z)] for z in atoms.numbers)
    forces = np.zeros((len(atoms), 3))
    for i in range(len(atoms)):
        for j in range(i):
            vector = atoms.positions[i] - atoms.positions[j]
            distance = float(np.linalg.norm(vector))
            well = -np.exp(-((distance - 1.0) ** 2))
            energy += well
            forces[i] += 2 * (distance - 1.0) * well * vector / distance
            forces[j] -= 2 * (distance - 1.0) * well * vector / distance
    return energy, forces


@pytest.fixture
def water_xyz(tmp_path: Path) -> Callable[..., Path]:
    """Write an extended-XYZ file of waters."""

    def make(name: str = "water.xyz", n: int = 8, seed: int = 0) -> Path:
        path = tmp_path / name
        write(path, waters(n, seed), format="extxyz")
        return path

    return make
