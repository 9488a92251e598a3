"""Batches: a structure, and an atom without neighbours, give the same alone and among others."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from ase.data import chemical_symbols

from dataloader.structure import Structure
from model_utils.physics.records import Measured, Outcome
from model_utils.physics.subject import Answer, Subject


def batching(subject: Subject, structures: Sequence[Structure]) -> Outcome:
    """Structures computed together give what each gives by itself."""
    together = subject.answers(structures)
    alone = [subject.answers([structure])[0] for structure in structures]
    measured: list[Measured] = []
    for structure, among_others, by_itself in zip(structures, together, alone, strict=True):
        measured += _deviations(subject, structure, by_itself, among_others)
    return Outcome(measured=measured)


def isolated_atoms(subject: Subject, structures: Sequence[Structure]) -> Outcome:
    """An atom without neighbours has an energy and no force, alone and among the structures."""
    measured: list[Measured] = []
    for atom in _atoms(subject, structures):
        [by_itself] = subject.answers([atom])
        among_others = subject.answers([atom, *structures])[0]
        measured += _deviations(
            subject, atom, replace(by_itself, forces=np.zeros((1, 3))), among_others
        )
        force = float(np.abs(by_itself.forces).max())
        measured.append(Measured(quantity="forces", value=force, structure=atom.identifier))
    return Outcome(measured=measured)


def _atoms(subject: Subject, structures: Sequence[Structure]) -> list[Structure]:
    """One atom of every element that the structures have, in empty space."""
    atoms: dict[int, Structure] = {}
    for structure in structures:
        for row, number in enumerate(structure.atomic_numbers.tolist()):
            if number not in atoms:
                taken = subject.taken(structure, np.array([row]))
                name = f"atom of {chemical_symbols[number]}"
                no_cell = np.zeros((3, 3))
                atoms[number] = replace(
                    taken, cell=no_cell, pbc=(False, False, False), identifier=name
                )
    return list(atoms.values())


def _deviations(
    subject: Subject, structure: Structure, right: Answer, given: Answer
) -> list[Measured]:
    energy = abs(given.energy - right.energy) / structure.n_atoms
    of_energy = max(1.0, abs(subject.interaction(structure, right.energy)))
    forces = float(np.abs(given.forces - right.forces).max())
    of_forces = max(1.0, float(np.abs(right.forces).max()))
    name = structure.identifier
    return [
        Measured(quantity="energy per atom", value=energy, scale=of_energy, structure=name),
        Measured(quantity="forces", value=forces, scale=of_forces, structure=name),
    ]
