"""What a trained model is for, by our calculator and by mace's, alternating in one process each.

    python benchmarks/simulation.py [--parts steps nve relax] [--rounds 3] [--structures 200]

steps: velocity Verlet, neighbour lists included: benzene with MACE-MP-0 small, 216 atoms of MgO
with M (128x0e+128x1o, random weights); seconds of wall clock and of the processor for each step.
nve: the drift of either on the same paths, benzene 10 ps and 64 atoms of MgO 500 steps. relax:
perturbed crystals of MPtrj with their cells, by relax.py and by ASE with mace's calculator one
after another; energies and volumes compared. Needs the measured data (MACE_TRAIN_SHARED_DATA,
default ../shared/data).
"""

import argparse
import csv
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
DATA = Path(os.environ.get("MACE_TRAIN_SHARED_DATA", ROOT.parent / "shared" / "data"))
SMALL = DATA / "mace_mp" / "mace_mp_small.model"
N_STEPS = {"benzene": 400, "MgO": 10}
# of MgO, eight atoms each: mace's calculator takes 8 s for 216 atoms
CELLS = {"steps": (3, 3, 3), "nve": (2, 2, 2)}
TWIN = 1e-7  # Å; files have eight places
TWINS = 3  # one alone missed a crystal of the 200


def main() -> None:
    """Do the parts that are asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--parts", nargs="+", choices=["steps", "nve", "relax"], default=["steps", "relax"]
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--structures", type=int, default=200)
    parser.add_argument(
        "--largest", type=int, default=12, help="atoms of a crystal that is relaxed"
    )
    parser.add_argument(
        "--child", nargs=4, metavar=("PART", "WHO", "WHAT", "FOLDER"), help=argparse.SUPPRESS
    )
    asked = parser.parse_args()
    if asked.child:
        print(json.dumps(child(asked, *asked.child)))
        return
    with tempfile.TemporaryDirectory() as name:
        for part in asked.parts:
            {"steps": steps, "nve": nve, "relax": relax}[part](asked, Path(name))


def steps(asked: argparse.Namespace, folder: Path) -> None:
    """Time a step of dynamics."""
    print(
        f"steps, {asked.threads} threads, load {os.getloadavg()[0]:.1f}: ms of wall "
        "clock, of the processor"
    )
    for what in N_STEPS:
        rows: dict[str, list[dict[str, float]]] = {"ours": [], "mace": []}
        for _ in range(asked.rounds):
            for who, times in rows.items():
                times.append(in_process(asked, "steps", who, what, folder))
        medians = {
            who: [statistics.median(row[clock] for row in times) for clock in ("wall", "cpu")]
            for who, times in rows.items()
        }
        (our_wall, our_cpu), (wall, cpu) = medians["ours"], medians["mace"]
        print(
            f"  {what:8s} ours {our_wall:7.2f} {our_cpu:7.2f}   mace {wall:8.2f} {cpu:8.2f}   "
            f"times {wall / our_wall:5.1f} {cpu / our_cpu:5.1f}"
        )


def nve(asked: argparse.Namespace, folder: Path) -> None:
    """The drift of the energy by either calculator."""
    print("nve: drift in meV per atom and ps")
    for what in N_STEPS:
        drifts = {
            who: in_process(asked, "nve", who, what, folder)["drift"] for who in ("ours", "mace")
        }
        print(f"  {what:8s} ours {drifts['ours']:.5f}   mace {drifts['mace']:.5f}")


def relax(asked: argparse.Namespace, folder: Path) -> None:
    """Relax the same crystals both ways, and thrice more moved by less than matters.

    Where even that leads to another minimum, the two ways may differ as well.
    """
    perturbed(folder, asked.structures, asked.largest)
    began, before = time.monotonic(), _used_by_children()
    ours = relaxed_by_us(folder, "crystals")
    seconds = time.monotonic() - began
    cpu = _used_by_children() - before
    twins = [relaxed_by_us(folder, f"twins_{number}") for number in range(TWINS)]
    found = in_process(asked, "relax", "mace", "all", folder)
    theirs = [Relaxed(*values) for values in found["relaxed"]]
    print(
        f"relax: {len(ours)} crystals, ours {seconds:.0f} s, ASE with mace's calculator "
        f"{found['seconds']:.0f} s: {found['seconds'] / seconds:.1f} times; of processors "
        f"{cpu:.0f} and {found['cpu']:.0f} s"
    )
    numbers = range(len(ours))
    sensitive = {i for i in numbers if any(ours[i].is_elsewhere(twin[i]) for twin in twins)}
    elsewhere = {i for i in numbers if ours[i].is_elsewhere(theirs[i])}
    alike = [i for i in numbers if ours[i].converged and theirs[i].converged]
    alike = [i for i in alike if i not in sensitive]
    energies = sorted(ours[i].energies_apart(theirs[i]) for i in alike)
    volumes = sorted(ours[i].volumes_apart(theirs[i]) for i in alike)
    both = (sum(end.converged for end in ends) for ends in (ours, theirs))
    print(
        f"  {' and '.join(map(str, both))} converged; {len(sensitive)} end elsewhere when "
        f"moved by {TWIN:g} Å: {sorted(sensitive)}\n"
        f"  ours and mace's end elsewhere: {sorted(elsewhere)}\n"
        f"  {len(alike)} others: largest difference of energy {1000 * energies[-1]:.4f} meV/atom "
        f"(median {1000 * statistics.median(energies):.6f}), of volume {100 * volumes[-1]:.4f} %"
    )


class Relaxed(NamedTuple):
    """Where a relaxation ended: eV, Å³."""

    energy: float
    n_atoms: int
    volume: float
    converged: bool

    def energies_apart(self, other: "Relaxed") -> float:
        """Difference of the energies, eV per atom."""
        return abs(self.energy - other.energy) / self.n_atoms

    def volumes_apart(self, other: "Relaxed") -> float:
        """Relative difference of the volumes."""
        return abs(self.volume / other.volume - 1)

    def is_elsewhere(self, other: "Relaxed") -> bool:
        """Whether it is another end than rounding within the convergence explains."""
        apart = self.energies_apart(other) > 1e-3 or self.volumes_apart(other) > 5e-3
        return apart or self.converged != other.converged


def relaxed_by_us(folder: Path, name: str) -> list[Relaxed]:
    """What relax.py makes of a file of the folder."""
    from ase.io import read

    command = [sys.executable, str(ROOT / "model_utils" / "relax.py"), "--relax_cell"]
    command += ["--input_model", str(SMALL), "--data", str(folder / f"{name}.xyz")]
    command += ["--output_dir", str(folder / name), "--device", "cpu", "--no_trajectories"]
    subprocess.run(command, check=True, capture_output=True)
    volumes = [atoms.get_volume() for atoms in read(folder / name / "relaxed.xyz", ":")]
    with (folder / name / "relaxed.csv").open() as file:
        return [
            Relaxed(
                float(row["energy_eV"]), int(row["n_atoms"]), volume, row["converged"] == "True"
            )
            for row, volume in zip(csv.DictReader(file), volumes, strict=True)
        ]


def _used_by_children() -> float:
    """Processor seconds of all that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def in_process(asked: argparse.Namespace, *words: object) -> Any:
    """What a fresh process measures."""
    command = [
        sys.executable,
        __file__,
        "--threads",
        asked.threads,
        "--structures",
        asked.structures,
        "--child",
        *words,
    ]
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def child(asked: argparse.Namespace, part: str, who: str, what: str, folder: str) -> dict[str, Any]:
    """One measurement."""
    import torch

    torch.set_num_threads(asked.threads)
    if part == "relax":
        return relaxed_by_ase(Path(folder))
    atoms, calculator = material(what, who, part)
    atoms.calc = calculator
    return times(atoms, N_STEPS[what]) if part == "steps" else drift(atoms, what)


def material(what: str, who: str, part: str) -> tuple[Any, Any]:
    """Atoms, and the calculator of either."""
    import torch
    from ase.build import bulk, molecule

    from model_utils import model_loader
    from model_utils.models import description as model_json
    from model_utils.simulation.calculator import Calculator
    from model_utils.simulation.potential import Potential

    if what == "benzene":
        loaded = model_loader.load(SMALL, dtype=torch.float64)
        atoms = molecule("C6H6")
    else:
        described = model_json.parse(json.dumps(OF_MGO), "M")
        module = model_loader.build(described, torch.float64, 1)
        loaded = None
        atoms = bulk("MgO", "rocksalt", a=4.21, cubic=True) * CELLS[part]
    atoms.rattle(0.02, seed=1)
    if who == "mace":
        from mace.calculators import MACECalculator

        module = module if loaded is None else loaded.module
        return atoms, MACECalculator(models=[module], device="cpu", default_dtype="float64")
    if loaded is not None:
        return atoms, Calculator(SMALL, device="cpu")
    loaded = model_loader.LoadedModel(module=module, description=described, file=_Unwritten())
    return atoms, Calculator.of_potentials([Potential(loaded, torch.device("cpu"))])


class _Unwritten:
    path = Path("M")


OF_MGO = {
    "model_class": "ScaleShiftMACE",
    "r_max": 5.0,
    "atomic_numbers": [8, 12],
    "atomic_energies": {"O": 0.0, "Mg": 0.0},
    "avg_num_neighbors": 56.0,
    "atomic_inter_scale": 1.0,
    "atomic_inter_shift": 0.0,
    "hidden_irreps": "128x0e+128x1o",
}


def times(atoms: Any, n_steps: int) -> dict[str, float]:
    """ms of a step."""
    dynamics = _verlet(atoms)
    dynamics.run(5)
    wall, cpu = time.perf_counter(), time.process_time()
    dynamics.run(n_steps)
    return {
        "wall": 1000 * (time.perf_counter() - wall) / n_steps,
        "cpu": 1000 * (time.process_time() - cpu) / n_steps,
    }


def drift(atoms: Any, what: str) -> dict[str, float]:
    """Slope of the total energy, meV per atom and ps."""
    import numpy as np

    n_steps = 20_000 if what == "benzene" else 500
    energies: list[float] = []
    dynamics = _verlet(atoms)
    dynamics.attach(lambda: energies.append(atoms.get_total_energy()), interval=10)
    dynamics.run(n_steps)
    picoseconds = np.arange(len(energies)) * 10 * 0.5e-3
    return {"drift": 1000 * float(np.polyfit(picoseconds, energies, 1)[0]) / len(atoms)}


def _verlet(atoms: Any) -> Any:
    import numpy as np
    from ase import units
    from ase.md.verlet import VelocityVerlet

    from model_utils.simulation.velocities import give_velocities

    give_velocities(atoms, 300.0, np.random.default_rng(2))
    return VelocityVerlet(atoms, 0.5 * units.fs)


def perturbed(folder: Path, n: int, largest: int) -> None:
    """The first n crystals of MPtrj with at most so many atoms, with atoms and cell a little moved.

    ``twins_0.xyz`` and so on have the same with every atom moved by ``TWIN`` again.
    """
    import numpy as np
    from ase import Atoms
    from ase.io import read, write

    rng = np.random.default_rng(0)
    crystals = []
    frames = (
        atoms
        for atoms in read(DATA / "mptrj" / "mptrj-random-1k.xyz", ":")
        if len(atoms) <= largest
    )
    for atoms in itertools.islice(frames, n):
        bare = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True)
        bare.set_cell(bare.cell.array @ (np.eye(3) + rng.normal(0, 0.01, (3, 3))), scale_atoms=True)
        bare.positions += rng.normal(0, 0.05, (len(bare), 3))
        crystals.append(bare)
    write(folder / "crystals.xyz", crystals, format="extxyz")
    for number in range(TWINS):
        twins = [atoms.copy() for atoms in crystals]
        for atoms in twins:
            atoms.positions += rng.normal(0, TWIN, (len(atoms), 3))
        write(folder / f"twins_{number}.xyz", twins, format="extxyz")


def relaxed_by_ase(folder: Path) -> dict[str, Any]:
    """The crystals one after another, with mace's calculator."""
    import warnings

    from ase.filters import FrechetCellFilter
    from ase.io import read
    from ase.optimize import LBFGS
    from mace.calculators import MACECalculator

    from model_utils import model_loader

    warnings.simplefilter("ignore")
    calculator = MACECalculator(
        models=[model_loader.load(SMALL).module.double()], device="cpu", default_dtype="float64"
    )
    began, before = time.monotonic(), time.process_time()
    relaxed = []
    for atoms in read(folder / "crystals.xyz", ":"):
        atoms.calc = calculator
        minimizer = LBFGS(FrechetCellFilter(atoms), logfile=None)
        converged = bool(minimizer.run(fmax=0.05, steps=500))
        end = Relaxed(atoms.get_potential_energy(), len(atoms), atoms.get_volume(), converged)
        relaxed.append(end)
    seconds = time.monotonic() - began
    cpu = time.process_time() - before
    return {"seconds": seconds, "cpu": cpu, "relaxed": relaxed}


if __name__ == "__main__":
    main()
