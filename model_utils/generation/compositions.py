"""What a cell holds: whole multiples of formulas that are asked for, or numbers of
atoms of some elements.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from ase.data import atomic_numbers

from dataloader.errors import InputError
from model_utils.generation.candidate import NotMade
from model_utils.judging import pymatgen_library
from model_utils.settings.options import WantedCrystals

Composition = Mapping[str, int]  # atoms of each element


def formulas_of(wanted: WantedCrystals) -> list[Composition]:
    """The formulas that are asked for.

    Raises:
        InputError: one is none, or has more atoms than a cell may have.
    """
    formulas: list[Composition] = []
    for text in wanted.composition:
        try:
            formula = pymatgen_library.composition_of(text)
        except ValueError as error:
            raise InputError(
                f"--composition: {error}; expected one such as MgO or SrTiO3"
            ) from None
        if not multiples_of(formula, wanted):
            raise InputError(
                f"--composition {text}: no multiple of its {sum(formula.values())} atoms lies "
                f"between --min_atoms {wanted.min_atoms} and --max_atoms {wanted.max_atoms}"
            )
        formulas.append(formula)
    return formulas


def elements_of(wanted: WantedCrystals) -> list[str]:
    """The elements that are asked for, in order.

    Raises:
        InputError: one is none.
    """
    elements = []
    for text in wanted.elements:
        symbol = text.strip().capitalize()
        if atomic_numbers.get(symbol, 0) < 1:
            raise InputError(
                f"--elements: {text!r:.40} is no element; expected symbols such as Mg O"
            )
        if symbol not in elements:
            elements.append(symbol)
    return elements


def multiples_of(formula: Composition, wanted: WantedCrystals) -> list[int]:
    """How often a formula may be in a cell."""
    n_atoms = sum(formula.values())
    return [n for n in range(1, wanted.max_atoms // n_atoms + 1) if n * n_atoms >= wanted.min_atoms]


def is_multiple(cell: Composition, formula: Composition) -> bool:
    """Whether a cell has a formula a whole number of times, and nothing else."""
    if set(cell) != set(formula):
        return False
    times = {divmod(cell[element], count) for element, count in formula.items()}
    return len(times) == 1 and next(iter(times))[1] == 0


def drawn_cell(
    formulas: Sequence[Composition],
    elements: Sequence[str],
    wanted: WantedCrystals,
    rng: np.random.Generator,
) -> dict[str, int]:
    """Atoms of a cell: a multiple of one of the formulas, or a number of atoms of one
    or more of the elements.

    Args:
        formulas: of which one is drawn; where there are none, the composition is.
        elements: of which some are drawn then.
        wanted: bounds of the number of atoms.
        rng: draws.
    """
    if formulas:
        formula = formulas[int(rng.integers(len(formulas)))]
        times = int(rng.choice(multiples_of(formula, wanted)))
        return {element: times * count for element, count in formula.items()}
    most = min(len(elements), wanted.max_atoms)
    chosen = sorted(
        rng.choice(len(elements), size=int(rng.integers(1, most + 1)), replace=False).tolist()
    )
    n_atoms = int(rng.integers(max(wanted.min_atoms, len(chosen)), wanted.max_atoms + 1))
    shares = rng.multinomial(n_atoms - len(chosen), [1 / len(chosen)] * len(chosen)) + 1
    return {elements[k]: int(count) for k, count in zip(chosen, shares, strict=True)}


def refuse_nothing_asked(
    formulas: Sequence[Composition], elements: Sequence[str], generator: str
) -> None:
    """Raise InputError where nothing says of which elements crystals are made."""
    if not formulas and not elements:
        raise InputError(
            f"--generator {generator} needs to know of what: give formulas with "
            "--composition, or --elements"
        )


def as_text(composition: Composition) -> str:
    """A composition as a formula, elements in the order that it has."""
    return "".join(
        f"{element}{count if count > 1 else ''}" for element, count in composition.items()
    )


def refuse_size(n_atoms: int, wanted: WantedCrystals) -> None:
    """Raise NotMade where a cell has fewer or more atoms than are asked for."""
    if not wanted.min_atoms <= n_atoms <= wanted.max_atoms:
        raise NotMade(f"not between {wanted.min_atoms} and {wanted.max_atoms} atoms")
