"""When two crystals are one: duplicates among candidates, and what is known already.

Definitions and tolerances are MatterGen's (github.com/microsoft/mattergen,
evaluation/utils/structure_matcher.py): a candidate is unique if none before it in the file is the
same crystal, and novel if no reference is. By its default, ``disordered``, two ordered crystals are
also one where they are two orders of an alloy: elements of similar radius and electronegativity may
take each other's sites (modified rules of Hume-Rothery).
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

import numpy as np
from ase import Atoms
from scipy.cluster.hierarchy import DisjointSet

from model_utils.judging import pymatgen_library
from model_utils.judging.pymatgen_library import Crystal

TOLERANCES = {"ltol": 0.2, "stol": 0.3, "angle_tol": 5.0, "primitive_cell": True, "scale": True}
SIMILAR_RADIUS = 0.3
SIMILAR_ELECTRONEGATIVITY = 1.0
# of atoms in units of the cube root of the volume of one; what no matching reaches counts as this
FARTHEST = 0.5
LOOSE = {"ltol": 0.5, "stol": FARTHEST, "angle_tol": 10.0, "primitive_cell": True, "scale": False}

Fit = Callable[[Crystal, Crystal], bool]  # of two crystals of one reduced formula


def ordered() -> Fit:
    """Crystals are one where pymatgen's matcher maps one onto the other, whatever their volumes."""
    fit: Fit = pymatgen_library.matcher(**TOLERANCES, attempt_supercell=False).fit
    return fit


def disordered() -> Fit:
    """Crystals are one where they are by ``ordered``, with one space group, or are
    two orders of one alloy.
    """
    as_ordered = ordered()
    as_alloy = pymatgen_library.alloy_matcher(
        **TOLERANCES, attempt_supercell=True, allow_subset=True
    ).fit

    def fit(first: Crystal, second: Crystal) -> bool:
        if first == second:
            return True
        groups = (pymatgen_library.space_group_number(crystal) for crystal in (first, second))
        if len(set(groups)) == 1 and as_ordered(first, second):
            return True
        mixing = interchangeable([element.symbol for element in first.composition])
        return bool(mixing) and bool(
            as_alloy(pymatgen_library.with_mixed_sites(first, mixing), second)
        )

    return fit


MATCHERS: Mapping[str, Callable[[], Fit]] = {"ordered": ordered, "disordered": disordered}


def interchangeable(symbols: Sequence[str]) -> list[list[str]]:
    """Groups of elements that may take each other's sites, directly or through a
    third one; none are empty.
    """
    sets = DisjointSet(symbols)
    for first, second in combinations(symbols, 2):
        if pymatgen_library.may_substitute(
            first, second, radius=SIMILAR_RADIUS, electronegativity=SIMILAR_ELECTRONEGATIVITY
        ):
            sets.merge(first, second)
    return [sorted(group) for group in sets.subsets() if len(group) > 1]


class Comparison:
    """Comparisons of crystals of one list with each other and with references, each made once.

    Args:
        crystals: atoms of candidates by their number.
        references: atoms of what is known; they may be none.
        kind: name in ``MATCHERS``.
    """

    def __init__(
        self, crystals: Mapping[int, Atoms], references: Sequence[Atoms], kind: str
    ) -> None:
        self._fit = MATCHERS[kind]()
        self._crystals = {
            number: pymatgen_library.crystal(atoms) for number, atoms in crystals.items()
        }
        self._references = list(references)
        self._formulas = {
            number: pymatgen_library.reduced_formula(atoms) for number, atoms in crystals.items()
        }
        self._of_references = [pymatgen_library.reduced_formula(atoms) for atoms in references]
        self._same: dict[tuple[int, int], bool] = {}
        # of references that are looked at: files may hold very many
        self._known: dict[int, Crystal] = {}

    def first_of_equals(self, numbers: Sequence[int]) -> dict[int, int]:
        """For each of some crystals the first of them that is the same; itself
        where none before it is.

        Args:
            numbers: of the crystals that are looked at, in their order; the others are as
                if they were not there.
        """
        first: dict[int, int] = {}
        distinct: list[int] = []
        for number in numbers:
            first[number] = next(
                (other for other in distinct if self._are_one(number, other)), number
            )
            if first[number] == number:
                distinct.append(number)
        return first

    def known_as(self, number: int) -> list[int]:
        """Numbers of the references that are the same as a crystal."""
        formula = self._formulas[number]
        alike = [k for k, other in enumerate(self._of_references) if other == formula]
        return [k for k in alike if self._fit(self._crystals[number], self._reference(k))]

    def _reference(self, number: int) -> Crystal:
        if number not in self._known:
            self._known[number] = pymatgen_library.crystal(self._references[number])
        return self._known[number]

    def _are_one(self, number: int, other: int) -> bool:
        if self._formulas[number] != self._formulas[other]:
            return False
        if (number, other) not in self._same:
            self._same[number, other] = bool(
                self._fit(self._crystals[number], self._crystals[other])
            )
        return self._same[number, other]


def displacement(relaxed: Atoms, before: Atoms) -> float:
    """Root mean square by which the atoms of a cell moved in a relaxation, Å: between their places
    in the cell, in the mean of both cells, less the motion of the whole.

    Args:
        relaxed: atoms in the order of ``before``, and not wrapped since.
        before: atoms as they were.
    """
    moves = relaxed.cell.scaled_positions(relaxed.positions)
    moves -= before.cell.scaled_positions(before.positions)
    moves -= moves.mean(axis=0)
    lengths = moves @ ((relaxed.cell.array + before.cell.array) / 2)
    return float(np.sqrt((lengths**2).sum(axis=1).mean()))


def rmsd(relaxed: Atoms, before: Atoms) -> float:
    """Root mean square by which atoms moved in a relaxation, Å, as MatterGen has it.

    Both are mapped onto each other by a matcher with wide tolerances; where even these do not
    reach, it is ``FARTHEST`` times the cube root of the volume of an atom. It compares primitive
    cells: of a move that breaks the translations within the cell it sees a part, see
    ``displacement``.
    """
    after = pymatgen_library.crystal(relaxed)
    first = pymatgen_library.reduced(pymatgen_library.crystal(before))
    match = pymatgen_library.matcher(
        **LOOSE, attempt_supercell=True, allow_subset=False
    ).get_rms_dist(after, first)
    length = (pymatgen_library.volume_of_difference(after, first) / len(after)) ** (1 / 3)
    return float((FARTHEST if match is None else match[0]) * length)
