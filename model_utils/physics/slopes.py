"""Slopes: forces and stress are derivatives of the energy, by central differences of
energies of fourth order.

An energy that bends sharply (high radial functions, many layers, large scales) needs a shorter
step than one whose rounding counts: where the first step does not agree, shorter ones are tried,
and the closest counts.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from dataloader.structure import Structure
from model_utils.physics.records import Measured, Outcome
from model_utils.physics.subject import Subject, moved, volume

SEED = 23
N_SINGLE = 6  # components of single atoms that are compared, for each structure
N_COLLECTIVE = 3  # directions in which all atoms move at once
# Å; rounding of an energy is divided by it
STEPS = {"float64": (1e-3, 2e-4, 4e-5), "float32": (2e-2, 5e-3)}
STRAIN_STEPS = {"float64": (3e-4, 6e-5, 1.2e-5), "float32": (5e-3, 1.2e-3)}
# of the scale, a tenth of what passes: no shorter step is tried
AGREES = {"float64": 1e-6, "float32": 1e-3}
POINTS = (-2, -1, 1, 2)
WEIGHTS = np.array([1.0, -8.0, 8.0, -1.0]) / 12.0
VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))


def forces(subject: Subject, structures: Sequence[Structure]) -> Outcome:
    """Forces are minus the slope of the energy along single coordinates and along common
    directions of all atoms.
    """
    rng = np.random.default_rng(SEED)
    measured = []
    for structure, answer in zip(structures, subject.answers(structures), strict=True):
        directions = _directions(structure.n_atoms, rng)  # (n, n_atoms, 3)
        along = np.einsum("nij,ij->n", directions, answer.forces)
        scale = max(1.0, float(np.abs(answer.forces).max()))
        deviation = partial(_off_along, subject, structure, directions, along)
        value = _closest(deviation, STEPS[subject.precision], AGREES[subject.precision] * scale)
        measured.append(
            Measured(quantity="forces", value=value, scale=scale, structure=structure.identifier)
        )
    return Outcome(measured=measured)


def stress(subject: Subject, structures: Sequence[Structure]) -> Outcome:
    """The stress is the slope of the energy along six strains of cell and
    atoms, over the volume.
    """
    periodic = [structure for structure in structures if volume(structure) > 0]
    if not periodic:
        return Outcome(why_not="no structure is periodic in three directions")
    measured = []
    for structure, answer in zip(periodic, subject.answers(periodic), strict=True):
        given = np.array([answer.stress[i, j] for i, j in VOIGT])
        space = volume(structure) / structure.n_atoms
        # relative to a virial per atom
        scale = max(1.0, space * float(np.abs(given).max())) / space
        deviation = partial(_off_under_strain, subject, structure, given)
        value = _closest(
            deviation, STRAIN_STEPS[subject.precision], AGREES[subject.precision] * scale
        )
        measured.append(
            Measured(quantity="stress", value=value, scale=scale, structure=structure.identifier)
        )
    return Outcome(measured=measured)


def _closest(deviation: Callable[[float], float], steps: Sequence[float], agrees: float) -> float:
    """The smallest deviation of some steps, of which the shorter ones are tried only where
    the longer do not agree.
    """
    smallest = math.nan
    for step in steps:
        value = deviation(step)
        smallest = value if math.isnan(smallest) else min(smallest, value)
        if not smallest > agrees:  # no number stays none at any step
            break
    return smallest


def _off_along(
    subject: Subject,
    structure: Structure,
    directions: NDArray[np.float64],
    along: NDArray[np.float64],
    step: float,
) -> float:
    """The largest difference, eV/Å, of slopes along directions (n, n_atoms, 3) from the
    forces along them (n,).
    """
    variants = [moved(structure, k * step * d) for d in directions for k in POINTS]
    slopes = subject.energies(variants).reshape(-1, len(POINTS)) @ WEIGHTS / step
    return float(np.abs(slopes + along).max())


def _off_under_strain(
    subject: Subject, structure: Structure, given: NDArray[np.float64], step: float
) -> float:
    """The largest difference, eV/Å³, of slopes under six strains from the stress,
    (6,) in Voigt's order.
    """
    variants = [_strained(structure, k * step, *pair) for pair in VOIGT for k in POINTS]
    slopes = subject.energies(variants).reshape(-1, len(POINTS)) @ WEIGHTS / step
    return float(np.abs(slopes / volume(structure) - given).max())


def _directions(n_atoms: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Unit vectors of the space of all coordinates, (n, n_atoms, 3): of
    single atoms, then of all.
    """
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
