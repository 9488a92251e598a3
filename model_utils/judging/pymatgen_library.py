"""The only place that knows pymatgen: crystals, matchers of crystals, phase diagrams, symmetry.

The library is an extra. It is imported when something of it is needed, which takes about a second.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from ase import Atoms

from model_utils.report.libraries import needed

EXTRA = "pipeline"
SYMPREC = 0.1  # Å; of Materials Project, and so of MatterGen's matcher

Crystal = Any  # pymatgen.core.Structure
Matcher = Any  # pymatgen.analysis.structure_matcher.StructureMatcher


def require(what: str) -> None:
    """Raise InputError where pymatgen is not installed.

    Args:
        what: needs it, for the message.
    """
    needed("pymatgen.core", "pymatgen.analysis.structure_matcher", what=what, extra=EXTRA)


def crystal(atoms: Atoms) -> Crystal:
    """Atoms of a cell that is periodic in three directions as pymatgen's Structure; Å."""
    from pymatgen.core import Lattice, Structure

    return Structure(
        Lattice(atoms.cell.array),
        atoms.get_chemical_symbols(),
        atoms.positions,
        coords_are_cartesian=True,
    )


def matcher(**settings: Any) -> Matcher:
    """A StructureMatcher with the settings of its constructor."""
    from pymatgen.analysis.structure_matcher import StructureMatcher

    return StructureMatcher(**settings)


def alloy_matcher(**settings: Any) -> Matcher:
    """A StructureMatcher to which sites with several elements are those with any of them."""
    from pymatgen.analysis.structure_matcher import OrderDisorderElementComparator, StructureMatcher

    return StructureMatcher(comparator=OrderDisorderElementComparator(), **settings)


def space_group_number(structure: Crystal) -> int:
    """Number of the space group within ``SYMPREC``; -1 where symmetry cannot be found."""
    from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

    try:
        return int(SpacegroupAnalyzer(structure, symprec=SYMPREC).get_space_group_number())
    except Exception:  # spglib's own, and TypeError of what it did not find
        return -1


def reduced(structure: Crystal) -> Crystal:
    """The primitive cell of a crystal, refined by symmetry and reduced; as it is where
    symmetry cannot be found.

    MatterGen does this to a candidate before it is compared with what a relaxation made of it.
    """
    from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

    try:
        refined = SpacegroupAnalyzer(structure).get_refined_structure()
        return refined.get_primitive_structure().get_reduced_structure(reduction_algo="LLL")
    except Exception:  # spglib's own, and TypeError of what it did not find
        return structure


def reduced_formula(atoms: Atoms) -> str:
    """The formula in lowest terms, as MgO for Mg4O4."""
    from pymatgen.core import Composition

    return str(Composition(atoms.get_chemical_formula()).reduced_formula)


def composition_of(formula: str) -> dict[str, int]:
    """Elements and numbers of a formula, as {"Mg": 1, "O": 1}.

    Raises:
        ValueError: it is none; the message is a phrase.
    """
    from pymatgen.core import Composition

    try:
        amounts = Composition(formula, strict=True).get_el_amt_dict()
    except Exception as error:  # ValueError, or what its parser meets
        raise ValueError(
            f"{formula!r:.60} is no chemical formula ({str(error).partition(chr(10))[0]:.80})"
        ) from None
    if not amounts or any(amount != round(amount) or amount < 1 for amount in amounts.values()):
        raise ValueError(f"{formula!r:.60} has no whole numbers of atoms")
    return {element: round(amount) for element, amount in amounts.items()}


def volume_of_difference(first: Crystal, second: Crystal) -> float:
    """Volume of the cell between two, whose lengths and angles are the means of theirs, Å³."""
    from pymatgen.core import Lattice

    means = (np.array(first.lattice.parameters) + np.array(second.lattice.parameters)) / 2
    return float(Lattice.from_parameters(*means).volume)


def entry(atoms: Atoms, energy: float) -> Any:
    """A crystal as a point of a phase diagram.

    Args:
        atoms: of the cell.
        energy: of the cell, eV.
    """
    from pymatgen.analysis.phase_diagram import PDEntry
    from pymatgen.core import Composition

    return PDEntry(Composition(atoms.get_chemical_formula()), energy)


def phase_diagram(entries: Sequence[Any]) -> Any:
    """The convex hull of entries, each element of which is among them."""
    from pymatgen.analysis.phase_diagram import PhaseDiagram

    return PhaseDiagram(list(entries))


def above_hull(diagram: Any, point: Any) -> float:
    """Energy of an entry above the hull, eV an atom; negative where it lies below."""
    return float(diagram.get_e_above_hull(point, allow_negative=True))


def shortest_distance(structure: Crystal) -> float:
    """Shortest distance between two sites of a cell or their images, Å; infinite where
    there is one site alone. A site and its own images are not compared, as in MatterGen.
    """
    distances = np.array(structure.distance_matrix)
    np.fill_diagonal(distances, np.inf)
    return float(distances.min())


def may_substitute(first: str, second: str, *, radius: float, electronegativity: float) -> bool:
    """Whether two elements may take each other's sites in an alloy.

    Args:
        first: symbol.
        second: symbol.
        radius: largest difference of atomic radii, over their mean.
        electronegativity: largest difference on Pauling's scale.
    """
    from pymatgen.core import Element

    radii: list[Any] = [Element(symbol).atomic_radius for symbol in (first, second)]
    if None in radii:
        return False
    a = float(radii[0])
    b = float(radii[1])
    apart = abs(float(Element(first).X) - float(Element(second).X))
    return abs(a - b) / ((a + b) / 2) <= radius and apart <= electronegativity


def with_mixed_sites(structure: Crystal, groups: Iterable[Sequence[str]]) -> Crystal:
    """A crystal in which the elements of each group share their sites, in the shares that
    they have in the whole.
    """
    mixed = structure.copy()
    for group in groups:
        shares = {symbol: structure.composition.get_atomic_fraction(symbol) for symbol in group}
        total = sum(shares.values())
        species = {symbol: share / total for symbol, share in shares.items()}
        mixed.replace_species({symbol: species for symbol in group})
    return mixed
