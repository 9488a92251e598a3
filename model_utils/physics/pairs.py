"""Pairs of atoms: energies and forces where a neighbour comes or goes, and curves of dimers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
from ase.data import chemical_symbols, covalent_radii
from numpy.typing import NDArray

from dataloader.neighbors import build_graph
from dataloader.structure import Structure
from model_utils.physics.records import Measured, Outcome
from model_utils.physics.subject import Subject

AXIS = np.array([0.36, 0.48, 0.80])  # of dimers: along no axis of coordinates
MOST_PAIRS = 10
N_POINTS = 60
SHORTEST = 0.35  # of the sum of covalent radii, where a curve begins
MUST_REPEL = 0.55  # of that sum: an attraction below is worth a remark
REACH = 0.3  # Å; how far an atom of a structure is moved at most to lie at the cutoff
GAP = {"float64": 1e-4, "float32": 2e-3}  # Å, half the distance of the two points beside the cutoff
POINTS = np.array([-3.0, -1.0, 1.0, 3.0])  # gaps beyond r_max


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """Two atoms of a structure whose distance can be chosen."""

    structure: Structure
    atom: int  # that moves
    direction: NDArray[np.float64]  # (3,), unit vector, in which it moves away from the other
    distance: float  # Å, as they lie

    def at(self, distance: float) -> Structure:
        positions = self.structure.positions.copy()
        positions[self.atom] += (distance - self.distance) * self.direction
        return replace(self.structure, positions=positions)


def smoothness(subject: Subject, structures: Sequence[Structure]) -> Outcome:
    """Energy and forces have no jump where a pair of atoms passes the cutoff, alone
    and within structures.
    """
    pairs = [*_dimers(subject, structures), *_pairs_at_cutoff(subject, structures)]
    if not pairs:
        return Outcome(why_not="no pair of atoms")
    gap = GAP[subject.precision]
    distances = subject.facts.r_max + gap * POINTS
    answers = iter(subject.answers([pair.at(distance) for pair in pairs for distance in distances]))
    measured = []
    for pair in pairs:
        four = [next(answers) for _ in POINTS]
        energies = np.array([answer.energy for answer in four])
        forces = np.array([answer.forces for answer in four])  # (4, n_atoms, 3)
        along = forces[:, pair.atom] @ pair.direction
        work = gap * (along[1] + along[2])  # from the second to the third point
        # what changes across the cutoff, beyond what changes on both sides of it
        across = (forces[2] - forces[1]) - 0.5 * (forces[1] - forces[0] + forces[3] - forces[2])
        scale = max(1.0, float(np.abs(forces).max()))
        name = pair.structure.identifier
        jump = float(abs(energies[2] - energies[1] + work))
        measured.append(Measured(quantity="energy jump", value=jump, scale=scale, structure=name))
        kick = float(np.abs(across).max())
        measured.append(Measured(quantity="force jump", value=kick, scale=scale, structure=name))
    return Outcome(measured=measured)


def dimers(subject: Subject, structures: Sequence[Structure]) -> Outcome:
    """Curves of two atoms: opposite forces along the axis, and nothing left beyond the cutoff.

    Where a pair attracts at distances at which atoms repel, that is a note: a network does not know
    what no structure of its training has shown.
    """
    measured: list[Measured] = []
    curves: list[dict[str, Any]] = []
    notes: list[str] = []
    for pair in _dimers(subject, structures):
        curve, deviations, note = _curve(subject, pair)
        measured += deviations
        curves.append(curve)
        notes += note
    if not measured:
        return Outcome(why_not="no pair of atoms")
    return Outcome(measured=measured, curves=curves, notes=notes)


def _curve(subject: Subject, pair: _Pair) -> tuple[dict[str, Any], list[Measured], list[str]]:
    """The curve of a dimer as plain values, its deviations, and remarks."""
    r_max = subject.facts.r_max
    numbers = pair.structure.atomic_numbers
    contact = float(covalent_radii[numbers].sum())
    distances = np.append(
        np.linspace(SHORTEST * contact, r_max, N_POINTS), [1.05 * r_max, 2.0 * r_max]
    )
    answers = subject.answers([pair.at(distance) for distance in distances])
    apart = answers[-1].energy
    energies = np.array([answer.energy - apart for answer in answers])
    forces = np.array([answer.forces for answer in answers])  # (n, 2, 3)
    along = forces[:, 1] @ AXIS  # positive: apart
    name = pair.structure.identifier
    off_axis = np.concatenate([forces.sum(axis=1), forces[:, 1] - np.outer(along, AXIS)], axis=1)
    sizes = np.maximum(1.0, np.abs(along))  # close atoms repel with 100 eV/Å
    alone = float(np.abs(subject.energies([_atom(subject, pair, k) for k in (0, 1)]).sum() - apart))
    left = max(float(np.abs(energies[-3:]).max()), alone)
    deviations = [
        Measured(
            quantity="forces off the axis",
            value=float((np.abs(off_axis).max(axis=1) / sizes).max()),
            structure=name,
        ),
        Measured(quantity="energy beyond r_max", value=left, structure=name),
    ]
    shown = slice(0, N_POINTS + 1)
    lowest = int(energies.argmin())
    curve = {
        "pair": name,
        "distances": distances[shown].tolist(),
        "energies": _finite(energies[shown]),
        "forces": _finite(along[shown]),
        "lowest_at": float(distances[lowest]),
        "lowest_energy": _finite(energies)[lowest],
    }
    pulls = distances[shown][(along[shown] < 0) & (distances[shown] < MUST_REPEL * contact)]
    notes = [f"{name} attracts at {pulls.max():.2f} Å, where atoms repel"] if len(pulls) else []
    return curve, deviations, notes


def _finite(values: NDArray[np.float64]) -> list[float | None]:
    return [value if np.isfinite(value) else None for value in values.tolist()]


def _atom(subject: Subject, pair: _Pair, k: int) -> Structure:
    return subject.taken(pair.structure, np.array([k]))


def _dimers(subject: Subject, structures: Sequence[Structure]) -> list[_Pair]:
    """A pair of every two elements that one of the structures has, in a fixed order,
    at most ``MOST_PAIRS``.
    """
    pairs: dict[tuple[int, int], _Pair] = {}
    for structure in structures:
        numbers = structure.atomic_numbers.tolist()
        for first, second in combinations_with_replacement(sorted(set(numbers)), 2):
            if (first, second) not in pairs and len(pairs) < MOST_PAIRS:
                rows = np.array([numbers.index(first), numbers.index(second)])
                pairs[first, second] = _dimer(subject.taken(structure, rows))
    return list(pairs.values())


def _dimer(two: Structure) -> _Pair:
    names = "–".join(chemical_symbols[number] for number in two.atomic_numbers.tolist())
    structure = replace(
        two,
        positions=np.stack([np.zeros(3), AXIS]),
        cell=np.zeros((3, 3)),
        pbc=(False, False, False),
        identifier=names,
    )
    return _Pair(structure=structure, atom=1, direction=AXIS, distance=1.0)


def _pairs_at_cutoff(subject: Subject, structures: Sequence[Structure]) -> Iterator[_Pair]:
    """Of each structure the two atoms whose distance is nearest to the
    cutoff, where one is near.
    """
    r_max = subject.facts.r_max
    for structure in structures:
        graph = build_graph(structure, r_max + REACH)
        vectors = (
            graph.positions[graph.receivers]
            - graph.positions[graph.senders]
            + graph.shifts @ structure.cell
        )
        distances = np.linalg.norm(vectors, axis=1)
        away = np.where(graph.senders == graph.receivers, np.inf, np.abs(distances - r_max))
        if len(away) == 0 or away.min() > REACH:
            continue
        edge = int(away.argmin())
        yield _Pair(
            structure=structure,
            atom=int(graph.receivers[edge]),
            direction=vectors[edge] / distances[edge],
            distance=float(distances[edge]),
        )
