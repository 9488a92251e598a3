"""Make a small data set with dipoles: molecules of H, C, N, O at 500 K, labelled
with GFN2-xTB by tblite.

Run: OMP_NUM_THREADS=1 python configs/dipoles/make_data.py

It takes about a minute. With more threads the sums change order, the trajectories
part and the files differ.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.build import molecule
from ase.io import write
from ase.md.langevin import Langevin
from ase.optimize import BFGS
from tblite.ase import TBLite

SEED = 2026
MOLECULES = {  # our name: name in ASE's g2 collection
    "water": "H2O",
    "ammonia": "NH3",
    "methanol": "CH3OH",
    "formaldehyde": "H2CO",
    "methylamine": "H3CNH2",
    "formic_acid": "HCOOH",
}
GROUND_STATE_MULTIPLICITY = {"H": 2, "C": 3, "N": 4, "O": 3}
FRAMES_PER_MOLECULE = {"train": 30, "valid": 5, "test": 10}
TEMPERATURE = 500.0  # K
TIMESTEP = 1.0 * units.fs
FRICTION = 0.01 / units.fs
EQUILIBRATION_STEPS = 500
STEPS_BETWEEN_FRAMES = 100  # one relaxation time of the thermostat


def xtb(accuracy: float = 1.0, multiplicity: int | None = None) -> TBLite:
    """Return a silent GFN2-xTB calculator; a smaller `accuracy` converges it tighter."""
    return TBLite(method="GFN2-xTB", verbosity=0, accuracy=accuracy, multiplicity=multiplicity)


def relaxed(g2_name: str) -> Atoms:
    """Return a molecule of the g2 collection at its GFN2-xTB minimum."""
    atoms = molecule(g2_name)
    atoms.calc = xtb()
    BFGS(atoms, logfile=None).run(fmax=0.01)
    return atoms


def sample(start: Atoms, n_frames: int, rng: np.random.Generator) -> list[Atoms]:
    """Return snapshots of one equilibrated Langevin trajectory, each turned at random."""
    atoms = start.copy()
    atoms.calc = xtb()
    dynamics = Langevin(
        atoms, TIMESTEP, temperature_K=TEMPERATURE, friction=FRICTION, fixcm=False, rng=rng
    )
    dynamics.run(EQUILIBRATION_STEPS)
    frames = []
    for _ in range(n_frames):
        dynamics.run(STEPS_BETWEEN_FRAMES)
        frame = atoms.copy()
        frame.euler_rotate(*np.degrees(rng.uniform(0.0, 2 * np.pi, 3)))
        frames.append(frame)
    return frames


def labelled(frame: Atoms, config_type: str, multiplicity: int | None = None) -> Atoms:
    """Return a clean copy with `REF_energy` (eV), `REF_forces` (eV/Å) and, of a
    molecule, `REF_dipole` (e·Å).

    The labels are computed at the rounded positions that are written, by a fresh calculator.
    """
    positions = np.round(frame.positions - frame.get_center_of_mass(), 6)  # (n_atoms, 3), Å
    atoms = Atoms(frame.symbols, positions)
    atoms.calc = xtb(accuracy=0.01, multiplicity=multiplicity)
    energy = atoms.get_potential_energy()
    forces = atoms.get_forces()
    dipole = atoms.get_dipole_moment()
    atoms.calc = None
    atoms.info = {"REF_energy": round(float(energy), 6), "config_type": config_type}
    atoms.arrays["REF_forces"] = np.round(forces, 6) + 0.0  # + 0.0 turns -0.0 into 0.0
    if len(atoms) > 1:
        atoms.info["REF_dipole"] = np.round(dipole, 6) + 0.0
    return atoms


def isolated_atoms() -> list[Atoms]:
    """Return one labelled frame per element: the reference energies E0."""
    return [
        labelled(Atoms(symbol), "IsolatedAtom", spin)
        for symbol, spin in GROUND_STATE_MULTIPLICITY.items()
    ]


def main() -> None:
    """Make the three files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent, help="folder of the three files"
    )
    args = parser.parse_args()

    args.out.mkdir(parents=True, exist_ok=True)
    starts = {name: relaxed(g2_name) for name, g2_name in MOLECULES.items()}
    for number, (split, n_frames) in enumerate(FRAMES_PER_MOLECULE.items()):
        rng = np.random.default_rng([SEED, number])
        frames = []
        for (name, start), of_molecule in zip(starts.items(), rng.spawn(len(starts)), strict=True):
            frames += [labelled(frame, name) for frame in sample(start, n_frames, of_molecule)]
        frames = [frames[i] for i in rng.permutation(len(frames))]
        atoms = isolated_atoms() if split == "train" else []
        path = args.out / f"{split}.xyz"
        write(path, atoms + frames, format="extxyz", write_results=False)
        print(f"{path}: {len(atoms) + len(frames)} frames")


if __name__ == "__main__":
    main()
