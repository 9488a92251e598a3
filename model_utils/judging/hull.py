"""Energies above the convex hull of references, eV an atom; pymatgen's phase
diagram does the geometry.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ase import Atoms

from model_utils.judging import pymatgen_library


@dataclass(frozen=True, kw_only=True)
class Point:
    """A crystal with its energy.

    Attributes:
        atoms: of the cell.
        energy: of the cell, eV.
    """

    atoms: Atoms
    energy: float


@dataclass
class Hull:
    """The convex hulls of references, one for each system of elements that is asked for.

    Attributes:
        references: with the energies that make the hull.
    """

    references: Sequence[Point]
    _diagrams: dict[str, Any] = field(default_factory=dict)

    def missing(self, atoms: Atoms) -> list[str]:
        """Elements of a crystal that are no references by themselves: without
        them there is no hull.
        """
        return sorted(set(atoms.get_chemical_symbols()) - self.terminals)

    @cached_property
    def terminals(self) -> set[str]:
        """Elements that are references by themselves."""
        systems = [set(point.atoms.get_chemical_symbols()) for point in self.references]
        return {next(iter(system)) for system in systems if len(system) == 1}

    def above(self, points: Sequence[Point]) -> list[float | None]:
        """Energy of each above the hull of the references, negative below it; None where
        an element is missing.
        """
        above: list[float | None] = []
        for point in points:
            if self.missing(point.atoms):
                above.append(None)
                continue
            system = chemical_system(point.atoms)
            if system not in self._diagrams:
                self._diagrams[system] = pymatgen_library.phase_diagram(
                    self._entries_within(system)
                )
            above.append(pymatgen_library.above_hull(self._diagrams[system], _entry(point)))
        return above

    def self_consistent(
        self, points: Sequence[Point], on_hull: Sequence[bool]
    ) -> list[float | None]:
        """Energy of each above the hull in which the candidates of its system stand
        for the references of it.

        References of smaller systems, elements among them, stay (MatterGen's definition).

        Args:
            points: the candidates.
            on_hull: which of them may make the hull; what is a hole of the model may not.
        """
        members: dict[str, list[int]] = defaultdict(list)
        for number, point in enumerate(points):
            if not self.missing(point.atoms):
                members[chemical_system(point.atoms)].append(number)
        above: list[float | None] = [None] * len(points)
        for system, numbers in members.items():
            entries = [_entry(points[number]) for number in numbers]
            own = [entry for number, entry in zip(numbers, entries, strict=True) if on_hull[number]]
            smaller = self._entries_within(system, itself=False)
            if not own and len(system.split("-")) == 1:
                continue  # of an element alone nothing is left
            diagram = pymatgen_library.phase_diagram([*smaller, *own])
            for number, entry in zip(numbers, entries, strict=True):
                above[number] = pymatgen_library.above_hull(diagram, entry)
        return above

    def _entries_within(self, system: str, *, itself: bool = True) -> list[Any]:
        """Entries of the references that have no other elements; of just this system
        only where ``itself``.
        """
        elements = set(system.split("-"))
        within = [
            point
            for point in self.references
            if set(point.atoms.get_chemical_symbols()) <= elements
        ]
        return [
            _entry(point) for point in within if itself or chemical_system(point.atoms) != system
        ]


def chemical_system(atoms: Atoms) -> str:
    """Elements in order, as ``Mg-O``."""
    return "-".join(sorted(set(atoms.get_chemical_symbols())))


def _entry(point: Point) -> Any:
    return pymatgen_library.entry(point.atoms, point.energy)
