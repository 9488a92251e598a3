"""Make the quickstart's data set: small C/H/O molecules at 500-600 K, labelled
with GFN2-xTB by tblite.

Run: OMP_NUM_THREADS=1 python configs/quickstart/make_data.py

It takes about a minute. With more threads the sums change order, the trajectories
part and the files differ.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
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
    "ethanol": "CH3CH2OH",
    "methanol": "CH3OH",
    "dimethyl_ether": "CH3OCH3",
    "acetaldehyde": "CH3CHO",
    "acetic_acid": "CH3COOH",
    "formic_acid": "HCOOH",
}
GROUND_STATE_MULTIPLICITY = {"H": 2, "C": 3, "O": 3}

TIMESTEP = 1.0 * units.fs
FRICTION = 0.01 / units.fs
# Ten relaxation times of the thermostat: enough to start from the minimum at rest.
EQUILIBRATION_STEPS = 1000
# Two relaxation times: neighbouring frames share little.
STEPS_BETWEEN_FRAMES = 200


@dataclass(frozen=True)
class Split:
    """One output file; every molecule gets a trajectory of its own in each split."""

    name: str
    frames_per_molecule: int
    temperature: float  # K


# The test set is hotter than the training set: it asks for a little
# extrapolation, as real use does.
SPLITS = (Split("train", 34, 500.0), Split("valid", 5, 500.0), Split("test", 10, 600.0))


def xtb(accuracy: float = 1.0, multiplicity: int | None = None) -> TBLite:
    """Return a silent GFN2-xTB calculator; a smaller `accuracy` converges it tighter."""
    return TBLite(method="GFN2-xTB", verbosity=0, accuracy=accuracy, multiplicity=multiplicity)


def relaxed(g2_name: str) -> Atoms:
    """Return a molecule of the g2 collection at its GFN2-xTB minimum, calculator attached."""
    atoms = molecule(g2_name)
    atoms.calc = xtb()
    BFGS(atoms, logfile=None).run(fmax=0.01)
    return atoms


def sample(
    start: Atoms, n_frames: int, temperature: float, rng: np.random.Generator
) -> list[Atoms]:
    """Return `n_frames` snapshots of one equilibrated Langevin trajectory at `temperature` (K)."""
    atoms = start.copy()
    atoms.calc = xtb()
    # ASE's fixcm=True samples small molecules wrongly; they may drift, `labelled` centres them.
    dynamics = Langevin(
        atoms, TIMESTEP, temperature_K=temperature, friction=FRICTION, fixcm=False, rng=rng
    )
    dynamics.run(EQUILIBRATION_STEPS)
    frames = []
    for _ in range(n_frames):
        dynamics.run(STEPS_BETWEEN_FRAMES)
        frames.append(atoms.copy())
    return frames


def labelled(frame: Atoms, config_type: str, multiplicity: int | None = None) -> Atoms:
    """Return a clean copy with `REF_energy` (eV) and `REF_forces` (n_atoms, 3) (eV/Å).

    The label is computed at the rounded positions that are written, by a fresh calculator: one
    that has followed a trajectory starts from its last density, and its result depends on that
    within the convergence.
    """
    positions = np.round(frame.positions - frame.get_center_of_mass(), 6)  # (n_atoms, 3), Å
    atoms = Atoms(frame.symbols, positions)
    atoms.calc = xtb(accuracy=0.01, multiplicity=multiplicity)
    energy = atoms.get_potential_energy()
    forces = atoms.get_forces()
    atoms.calc = None
    atoms.info = {"REF_energy": round(float(energy), 6), "config_type": config_type}
    # Adding 0.0 turns -0.0 into 0.0.
    atoms.arrays["REF_forces"] = np.round(forces, 6) + 0.0
    return atoms


def isolated_atoms() -> list[Atoms]:
    """Return one labelled frame per element: the reference energies E0 of the training set."""
    return [
        labelled(Atoms(element), "IsolatedAtom", multiplicity)
        for element, multiplicity in GROUND_STATE_MULTIPLICITY.items()
    ]


def make_split(split: Split, starts: dict[str, Atoms], scale: float) -> list[Atoms]:
    """Return the shuffled, labelled molecules of one split; `scale`
    multiplies the number of frames.
    """
    n_frames = max(1, round(scale * split.frames_per_molecule))
    rng = np.random.default_rng([SEED, SPLITS.index(split)])
    frames = []
    for (name, start), molecule_rng in zip(starts.items(), rng.spawn(len(starts)), strict=True):
        frames += [
            labelled(frame, name)
            for frame in sample(start, n_frames, split.temperature, molecule_rng)
        ]
    return [frames[i] for i in rng.permutation(len(frames))]


def main() -> None:
    """Make the three files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent, help="folder of the three files"
    )
    parser.add_argument(
        "--scale", type=float, default=1.0, help="multiplies the number of frames (0.1 for a trial)"
    )
    args = parser.parse_args()

    args.out.mkdir(parents=True, exist_ok=True)
    starts = {name: relaxed(g2_name) for name, g2_name in MOLECULES.items()}
    for split in SPLITS:
        frames = make_split(split, starts, args.scale)
        if split.name == "train":
            frames = isolated_atoms() + frames
        path = args.out / f"{split.name}.xyz"
        write(path, frames, format="extxyz", write_results=False)
        print(f"{path}: {len(frames)} frames")


if __name__ == "__main__":
    main()
