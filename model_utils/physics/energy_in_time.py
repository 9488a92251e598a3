"""A short run of dynamics at constant energy: what drifts although no timestep can be blamed."""

from collections.abc import Sequence

import numpy as np
from ase import units
from ase.data import atomic_masses
from numpy.typing import NDArray

from dataloader.structure import Structure
from model_utils.physics.records import Measured, Outcome
from model_utils.physics.subject import Subject, moved

SEED = 5
TEMPERATURE = 300.0  # K
TIMESTEP = 0.25  # fs, and half of it
N_STEPS = 100


def nve(subject: Subject, structures: Sequence[Structure]) -> Outcome:
    """The energy of the smallest structure does not drift.

    Velocity Verlet keeps a conservative energy up to an error of second order in the timestep. The
    same 25 fs are run with a timestep and with half of it, and the drift is extrapolated to no
    timestep, (4 D(h/2) − D(h)) / 3: what is left comes from the forces.
    """
    several = [structure for structure in structures if structure.n_atoms > 1]
    if not several:
        return Outcome(why_not="no structure has two atoms")
    structure = min(several, key=lambda s: s.n_atoms)
    coarse = _total_energies(subject, structure, TIMESTEP, N_STEPS)
    fine = _total_energies(subject, structure, TIMESTEP / 2, 2 * N_STEPS)
    n_atoms = structure.n_atoms
    drift = _slope(coarse, TIMESTEP) / n_atoms
    drift_of_fine = _slope(fine, TIMESTEP / 2) / n_atoms
    value = abs(4.0 * drift_of_fine - drift) / 3.0
    curve = {
        "structure": structure.identifier,
        "timestep_fs": TIMESTEP,
        "temperature_K": TEMPERATURE,
        "times_fs": (TIMESTEP * np.arange(N_STEPS + 1)).tolist(),
        "energies_meV_per_atom": (1000.0 * (coarse - coarse[0]) / n_atoms).tolist(),
        "drift_meV_per_atom_ps": drift,
        "drift_of_half_timestep_meV_per_atom_ps": drift_of_fine,
    }
    scale = max(1.0, float(np.abs(subject.answers([structure])[0].forces).max()))
    measured = [
        Measured(
            quantity="drift per atom", value=value, scale=scale, structure=structure.identifier
        )
    ]
    return Outcome(measured=measured, curves=[curve] if np.isfinite(coarse).all() else [])


def _total_energies(
    subject: Subject, structure: Structure, timestep: float, n_steps: int
) -> NDArray[np.float64]:
    """Potential and kinetic energy after every step, (n_steps + 1,), eV; no numbers
    where a force is none.
    """
    masses = atomic_masses[structure.atomic_numbers][:, None]
    rng = np.random.default_rng(SEED)
    momenta = rng.standard_normal(structure.positions.shape) * np.sqrt(
        units.kB * TEMPERATURE * masses
    )
    momenta -= momenta.mean(axis=0)
    h = timestep * units.fs
    [answer] = subject.answers([structure])
    energies = [answer.energy + float((momenta**2 / (2 * masses)).sum())]
    for _ in range(n_steps):
        if not np.isfinite(answer.forces).all():
            return np.full(n_steps + 1, np.nan)
        momenta = momenta + 0.5 * h * answer.forces
        structure = moved(structure, h * momenta / masses)
        [answer] = subject.answers([structure])
        momenta = momenta + 0.5 * h * answer.forces
        energies.append(answer.energy + float((momenta**2 / (2 * masses)).sum()))
    return np.array(energies)


def _slope(energies: NDArray[np.float64], timestep: float) -> float:
    """Slope of a straight line through energies (eV) that lie a timestep (fs) apart, meV/ps."""
    if not np.isfinite(energies).all():
        return float("nan")
    times = timestep * np.arange(len(energies)) / 1000.0
    return float(1000.0 * np.polyfit(times, energies - energies[0], 1)[0])
