"""Make the data of configs/pipeline_quick.yaml: crystals of carbon with the energies of
Tersoff's potential, by ASE.

Run: OMP_NUM_THREADS=1 python configs/pipeline/make_data.py

It takes seconds. The potential (Tersoff, Phys. Rev. Lett. 61, 2879, 1988) knows diamond and
graphite: it is cheap and exact in any cell, and not what any model of a table of elements was
trained on, so that there is something to learn.
"""

import argparse
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.tersoff import Tersoff, TersoffParameters
from ase.filters import FrechetCellFilter
from ase.io import write
from ase.optimize import BFGS
from ase.spacegroup import crystal

SEED = 2026
CARBON = TersoffParameters(
    m=3.0,
    gamma=1.0,
    lambda3=0.0,
    c=38049.0,
    d=4.3484,
    h=-0.57058,
    n=0.72751,
    beta=1.5724e-7,
    lambda2=2.2119,
    B=346.74,
    R=1.95,
    D=0.15,
    lambda1=3.4879,
    A=1393.6,
)
RATTLE = 0.06  # Å
STRAIN = 0.04
SCALES = (0.94, 1.0, 1.06)  # of lengths
# frames for each crystal and scale; of valid and test at the middle one
SPLITS = {"train": 3, "valid": 1, "test": 2}


def potential() -> Tersoff:
    """Tersoff's carbon."""
    return Tersoff({("C", "C", "C"): CARBON})


def prototypes() -> dict[str, Atoms]:
    """Crystals of carbon near their equilibrium, with 1 to 8 atoms."""
    lonsdaleite = crystal(
        "C", [(1 / 3, 2 / 3, 0.0625)], spacegroup=194, cellpar=[2.52, 2.52, 4.12, 90, 90, 120]
    )
    graphite = crystal(
        "CC",
        [(0, 0, 0.25), (1 / 3, 2 / 3, 0.25)],
        spacegroup=194,
        cellpar=[2.53, 2.53, 6.7, 90, 90, 120],
    )
    return {
        "diamond": bulk("C", "diamond", a=3.566),
        "diamond_cubic": bulk("C", "diamond", a=3.566, cubic=True),
        "lonsdaleite": lonsdaleite,
        "graphite": graphite,
        "sc": bulk("C", "sc", a=1.77) * (2, 1, 1),
        "bcc": bulk("C", "bcc", a=2.35, cubic=True),
        "fcc": bulk("C", "fcc", a=2.95, cubic=True),
    }


def labelled(atoms: Atoms, config_type: str) -> Atoms:
    """A clean copy with energy (eV), forces (eV/Å) and stress (eV/Å³), computed at the
    numbers that are written.
    """
    copy = Atoms(
        atoms.symbols,
        np.round(atoms.positions, 8),
        cell=np.round(atoms.cell.array, 8),
        pbc=atoms.pbc,
    )
    copy.calc = potential()
    energy = float(copy.get_potential_energy())
    forces = copy.get_forces()
    stress = copy.get_stress(voigt=False) if copy.pbc.all() else None
    copy.calc = None
    copy.info = {"REF_energy": round(energy, 8), "config_type": config_type}
    if stress is not None:
        copy.info["REF_stress"] = np.round(stress, 8) + 0.0
    copy.arrays["REF_forces"] = np.round(forces, 8) + 0.0
    return copy


def displaced(atoms: Atoms, scale: float, rng: np.random.Generator) -> Atoms:
    """A crystal of other size, strained, with rattled atoms."""
    copy = atoms.copy()
    strain = rng.normal(0.0, STRAIN, (3, 3))
    deformation = scale * (np.eye(3) + 0.5 * (strain + strain.T))
    copy.set_cell(atoms.cell.array @ deformation, scale_atoms=True)
    copy.positions += rng.normal(0.0, RATTLE, copy.positions.shape)
    return copy


def drawn(atoms: Atoms, config_type: str, scale: float, rng: np.random.Generator) -> Atoms:
    """A displaced crystal with its labels."""
    while True:
        try:
            return labelled(displaced(atoms, scale, rng), config_type)
        except ZeroDivisionError:  # in ASE's code, of an atom with a single neighbour
            continue


def make_split(number: int, name: str, frames: int) -> list[Atoms]:
    """The frames of one split, in random order."""
    rng = np.random.default_rng([SEED, number])
    scales = SCALES if name == "train" else (1.0,)
    made = [
        drawn(atoms, crystal_name, scale, rng)
        for crystal_name, atoms in prototypes().items()
        for scale in scales
        for _ in range(frames)
    ]
    return [made[position] for position in rng.permutation(len(made))]


def references() -> list[Atoms]:
    """Known crystals at the minimum of the potential: the hull, and what is not novel."""
    frames = []
    for name in ("diamond", "lonsdaleite", "graphite"):
        atoms = prototypes()[name]
        atoms.calc = potential()
        BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=0.005, steps=200)
        frames.append(labelled(atoms, name))
    return frames


def main() -> None:
    """Make the four files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent, help="folder of the files"
    )
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    splits = {name: make_split(k, name, frames) for k, (name, frames) in enumerate(SPLITS.items())}
    for name, frames in {**splits, "references": references()}.items():
        write(out / f"{name}.xyz", frames, format="extxyz", write_results=False)
        print(f"{out / name}.xyz: {len(frames)} frames")


if __name__ == "__main__":
    main()
