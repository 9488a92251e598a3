"""Slopes: forces and stress are derivatives of the energy, by central differences of energies of fourth order."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dataloader.structure import Structure
from model_utils.physics.records import Measured, Outcome
from model_utils.physics.subject import Subject, moved, volume

SEED = 23
N_SINGLE = 6  # components of single atoms that are compared, for each structure
N_COLLECTIVE = 3  # directions in which all atoms move at once
STEP = {"float64": 1e-3, "float32": 2e-2}  # Å; rounding of a float32 energy is divided by it
STRAIN_STEP = {"float64": 3e-4, "float32": 5e-3}
POINTS = (-2, -1, 1, 2)
WEIGHTS = np.array([1.0, -8.0, 8.0, -1.0]) / 12.0
VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))


def forces(subject: Subject, structures: Sequence[Structure]) -> Outcome:
    """Forces are minus the slope of the energy along single coordinates and along common directions of all atoms."""
    step = STEP[subject.precision]
    rng = np.random.default_rng(SEED)
    measured = []
    for structure, answer in zip(structures, subject.answers(structures), strict=True):
        directions = _directions(structure.n_atoms, rng)  # (n, n_atoms, 3)
        variants = [moved(structure, k * step * d) for d in directions for k in POINTS]
        slopes = subject.energies(variants).reshape(-1, len(POINTS)) @ WEIGHTS / step
        along = np.einsum("nij,ij->n", directions, answer.forces)
        measured.append(
            Measured(
                quantity="forces",
                value=float(np.abs(slopes + along).max()),
                scale=max(1.0, float(np.abs(answer.forces).max())),
                structure=structure.identifier,
            )
        )
    return Outcome(measured=measured)


def stress(subject: Subject, structures: Sequence[Structure]) -> Outcome:
    """The stress is the slope of the energy along six strains of cell and atoms, over the volume."""
    step = STRAIN_STEP[subject.precision]
    periodic = [structure for structure in structures if volume(structure) > 0]
    if not periodic:
        return Outcome(why_not="no structure is periodic in three directions")
    measured = []
    for structure, answer in zip(periodic, subject.answers(periodic), strict=True):
        variants = [_strained(structure, k * step, *pair) for pair in VOIGT for k in POINTS]
        slopes = subject.energies(variants).reshape(-1, len(POINTS)) @ WEIGHTS / step
        given = np.array([answer.stress[i, j] for i, j in VOIGT])
        space = volume(structure) / structure.n_atoms
        measured.append(
            Measured(
                quantity="stress",
                value=float(np.abs(slopes / volume(structure) - given).max()),
                scale=max(1.0, space * float(np.abs(given).max())) / space,  # relative to a virial per atom
                structure=structure.identifier,
            )
        )
    return Outcome(measured=measured)


def _directions(n_atoms: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Unit vectors of the space of all coordinates, (n, n_atoms, 3): of single atoms, then of all."""
    n_single = min(N_SINGLE, 3 * n_atoms)
    single = np.zeros((n_single, 3 * n_atoms))
    single[np.arange(n_single), rng.choice(3 * n_atoms, n_single, replace=False)] = 1.0
    collective = rng.standard_normal((N_COLLECTIVE, 3 * n_atoms))
    collective /= np.linalg.norm(collective, axis=1, keepdims=True)
    return np.concatenate([single, collective]).reshape(-1, n_atoms, 3)


def _strained(structure: Structure, amount: float, i: int, j: int) -> Structure:
    deformation = np.eye(3)
    deformation[i, j] += 0.5 * amount
    deformation[j, i] += 0.5 * amount
    positions = structure.positions @ deformation
    return replace(structure, positions=positions, cell=structure.cell @ deformation)
