"""What is no candidate: broken cells, atoms that meet, volumes that no crystal has,
what is there already.
"""

from collections import Counter
from collections.abc import Mapping

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols, covalent_radii
from ase.neighborlist import neighbor_list

from dataloader.structure import Structure, geometry_fault, volume_of
from model_utils.generation.candidate import NotMade
from model_utils.generation.compositions import (
    elements_of,
    formulas_of,
    is_multiple,
    refuse_size,
)
from model_utils.judging import pymatgen_library
from model_utils.judging.matching import TOLERANCES
from model_utils.settings.options import GuardOptions, WantedCrystals


def refuse(atoms: Atoms, guards: GuardOptions, wanted: WantedCrystals) -> None:
    """Look at everything that can be seen of a crystal alone.

    Raises:
        NotMade: it is no candidate, with the reason.
    """
    refuse_size(len(atoms), wanted)
    if not is_of_wanted(atoms, wanted):
        raise NotMade("of another composition than is asked for")
    if not atoms.pbc.all():
        raise NotMade("not periodic in three directions")
    volume = volume_of(atoms.cell.array, (True, True, True)) / len(atoms)  # 0 of what is no cell
    if not guards.min_volume <= volume <= guards.max_volume:
        raise NotMade(
            f"volume of an atom not between {guards.min_volume:g} and {guards.max_volume:g} Å³"
        )
    fault = geometry_fault(
        Structure(
            atomic_numbers=atoms.numbers.astype("int64"),
            positions=atoms.positions.astype("float64"),
            cell=atoms.cell.array.astype("float64"),
            pbc=(True, True, True),
            identifier="",
        )
    )
    if fault is not None:
        raise NotMade(fault.partition(" (")[0])
    if not are_apart(atoms, guards.min_distance):
        raise NotMade(f"atoms closer than {guards.min_distance:g} of their covalent radii")


def is_of_wanted(atoms: Atoms, wanted: WantedCrystals) -> bool:
    """Whether a crystal has one of the formulas that are asked for, or a whole multiple of it, or,
    where there are none, no other elements.
    """
    formulas = formulas_of(wanted)
    symbols = atoms.get_chemical_symbols()
    if formulas:
        return any(is_multiple(Counter(symbols), formula) for formula in formulas)
    elements = set(elements_of(wanted))
    return not elements or set(symbols) <= elements


def are_apart(atoms: Atoms, share: float) -> bool:
    """Whether no two atoms or images of them are nearer than this share of the sum
    of their covalent radii.
    """
    cutoffs = share * covalent_radii[atoms.numbers]
    senders = neighbor_list("i", atoms, cutoff=cutoffs.tolist())
    return len(senders) == 0


def shortest_allowed(numbers: np.ndarray, share: float) -> Mapping[tuple[int, int], float]:
    """Shortest distances (Å) of each two elements, in both orders, as
    operators of ase-ga take them.
    """
    kinds = sorted({int(number) for number in numbers})
    return {
        (a, b): share * float(covalent_radii[a] + covalent_radii[b]) for a in kinds for b in kinds
    }


class Distinct:
    """The crystals that were taken, of which no two are one.

    Args:
        guards: whether equal ones are left out, and what is equal.
    """

    def __init__(self, guards: GuardOptions) -> None:
        self._compares = guards.deduplicate
        if not self._compares:
            return
        scale = guards.duplicate_tolerance / TOLERANCES["stol"]
        scaled = {name: scale * TOLERANCES[name] for name in ("ltol", "stol", "angle_tol")}
        self._fit = pymatgen_library.matcher(**{**TOLERANCES, **scaled}).fit
        self._taken: dict[str, list[pymatgen_library.Crystal]] = {}

    def take(self, atoms: Atoms) -> None:
        """Take a crystal.

        Raises:
            NotMade: it is there already.
        """
        if not self._compares:
            return
        crystal = pymatgen_library.crystal(atoms)
        equals = self._taken.setdefault(pymatgen_library.reduced_formula(atoms), [])
        if any(self._fit(crystal, other) for other in equals):
            raise NotMade("the same crystal as one before")
        equals.append(crystal)


def symbols_of(atoms: Atoms) -> list[str]:
    """Symbols of the elements in order of their number."""
    return [chemical_symbols[number] for number in sorted(set(atoms.numbers.tolist()))]
