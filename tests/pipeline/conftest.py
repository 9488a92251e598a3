"""What the tests of generation and judgement share: crystals of metals, a
network of these elements.
"""

from pathlib import Path

import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import write
from simulation.conftest import models

__all__ = ["models"]

LIBRARIES = ("pymatgen", "pyxtal", "ase_ga", "smact")


@pytest.fixture(scope="session")
def libraries() -> None:
    """Skip where the extra is not installed: `make test_extras` installs it."""
    for name in LIBRARIES:
        pytest.importorskip(name, reason=f"{name} is of the extra [pipeline]: make test_extras")


def cuau(kind: str = "L1_0") -> Atoms:
    """AlCu in two orders on one lattice, fcc: layers along a cube axis (L1_0) or
    along a diagonal (L1_1).
    """
    fcc = bulk("Cu", "fcc", a=3.8, cubic=True)
    if kind == "L1_0":
        fcc.symbols[[0, 1]] = "Al"
        return fcc
    a, b, c = bulk("Cu", "fcc", a=3.8).cell.array
    return Atoms("AlCu", positions=[[0, 0, 0], c], cell=[a - b, b - c, 2 * c], pbc=True)


def references(path: Path, *names: str) -> Path:
    """A file of known crystals."""
    known = {
        "Al": bulk("Al", "fcc", a=4.05),
        "Cu": bulk("Cu", "fcc", a=3.6),
        "AlCu": bulk("AlCu", "cesiumchloride", a=2.9),
    }
    write(path, [known[name] for name in names], format="extxyz")
    return path
