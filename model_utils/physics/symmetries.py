"""Symmetries: what turning, shifting, renumbering and repeating a structure
must leave as it was.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dataloader.structure import Structure
from model_utils.physics.records import Measured, Outcome
from model_utils.physics.subject import Answer, Subject, moved, volume

SEED = 17
N_ROTATIONS = 3  # the last one is improper: energies know no handedness

Expected = tuple[Structure, Answer]  # a structure, and what it must give


def rotation(subject: Subject, structures: Sequence[Structure]) -> Outcome:
    """Turned and mirrored with its cell: the energy stays, forces and stress turn too."""

    def turned(structure: Structure, answer: Answer, rng: np.random.Generator) -> list[Expected]:
        return [_turned(structure, answer, matrix) for matrix in _rotations(rng)]

    return _compared(subject, structures, turned)


def translation(subject: Subject, structures: Sequence[Structure]) -> Outcome:
    """Shifted as a whole, and single atoms by lattice vectors: nothing changes."""

    def shifted(structure: Structure, answer: Answer, rng: np.random.Generator) -> list[Expected]:
        whole = moved(structure, rng.uniform(-7.0, 7.0, 3))
        images = rng.integers(-1, 2, (structure.n_atoms, 3)) * np.array(structure.pbc)
        return [(whole, answer), (moved(whole, images @ structure.cell), answer)]

    return _compared(subject, structures, shifted)


def permutation(subject: Subject, structures: Sequence[Structure]) -> Outcome:
    """Atoms in another order: the energy stays, forces follow the atoms."""

    def renumbered(
        structure: Structure, answer: Answer, rng: np.random.Generator
    ) -> list[Expected]:
        order = rng.permutation(structure.n_atoms)
        return [(subject.taken(structure, order), replace(answer, forces=answer.forces[order]))]

    return _compared(subject, structures, renumbered)


def extensivity(subject: Subject, structures: Sequence[Structure]) -> Outcome:
    """Twice the cell, or two copies out of reach of each other: twice the energy, the
    same forces and stress.
    """

    def doubled(structure: Structure, answer: Answer, rng: np.random.Generator) -> list[Expected]:
        twice = Answer(
            energy=2.0 * answer.energy, forces=np.tile(answer.forces, (2, 1)), stress=answer.stress
        )
        return [(_doubled(subject, structure), twice)]

    return _compared(subject, structures, doubled)


def _compared(
    subject: Subject,
    structures: Sequence[Structure],
    variants: Callable[[Structure, Answer, np.random.Generator], list[Expected]],
) -> Outcome:
    """Deviations of what is computed for variants of the structures from what they must give."""
    rng = np.random.default_rng(SEED)
    measured: list[Measured] = []
    for structure, answer in zip(structures, subject.answers(structures), strict=True):
        expected = variants(structure, answer, rng)
        computed = subject.answers([variant for variant, _ in expected])
        for (variant, right), given in zip(expected, computed, strict=True):
            measured += _deviations(subject, variant, right, given)
    return Outcome(measured=measured)


def _deviations(
    subject: Subject, structure: Structure, right: Answer, given: Answer
) -> list[Measured]:
    n_atoms = structure.n_atoms
    name = structure.identifier
    of_energy = max(1.0, abs(subject.interaction(structure, right.energy)))
    of_forces = max(1.0, float(np.abs(right.forces).max()))
    energy = abs(given.energy - right.energy) / n_atoms
    forces = float(np.abs(given.forces - right.forces).max())
    deviations = [
        Measured(quantity="energy per atom", value=energy, scale=of_energy, structure=name),
        Measured(quantity="forces", value=forces, scale=of_forces, structure=name),
    ]
    if (space := volume(structure) / n_atoms) > 0:
        stress = float(np.abs(given.stress - right.stress).max())
        # relative to a virial per atom
        scale = max(1.0, space * float(np.abs(right.stress).max())) / space
        deviations.append(Measured(quantity="stress", value=stress, scale=scale, structure=name))
    return deviations


def _rotations(rng: np.random.Generator) -> list[NDArray[np.float64]]:
    """Random orthogonal matrices (3, 3): rotations, and at last a rotation with a reflection."""
    matrices = []
    for number in range(N_ROTATIONS):
        q, r = np.linalg.qr(rng.standard_normal((3, 3)))
        q = q * np.sign(np.diag(r))
        is_improper = number == N_ROTATIONS - 1
        matrices.append(q if (np.linalg.det(q) < 0) == is_improper else -q)
    return matrices


def _turned(structure: Structure, answer: Answer, matrix: NDArray[np.float64]) -> Expected:
    variant = replace(
        structure, positions=structure.positions @ matrix.T, cell=structure.cell @ matrix.T
    )
    stress = matrix @ answer.stress @ matrix.T
    return variant, replace(answer, forces=answer.forces @ matrix.T, stress=stress)


def _doubled(subject: Subject, structure: Structure) -> Structure:
    """Two of a structure: its cell doubled along the shortest periodic vector, or a
    copy beyond any reach.
    """
    lengths = np.linalg.norm(structure.cell, axis=1)
    cell = structure.cell.copy()
    if any(structure.pbc):
        along = int(np.where(structure.pbc, lengths, np.inf).argmin())
        step = cell[along].copy()
        cell[along] *= 2.0
    else:
        extent = float(np.ptp(structure.positions[:, 0]))
        step = np.array([extent + 3.0 * subject.facts.r_max, 0.0, 0.0])
    rows = np.tile(np.arange(structure.n_atoms), 2)
    two = subject.taken(structure, rows)
    second = np.repeat([[0.0], [1.0]], structure.n_atoms, axis=0)  # (2 n_atoms, 1)
    return replace(moved(two, second * step), cell=cell)
