"""``--generator prototypes``: known crystals with other elements, fitted to their
radii, strained and rattled.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import permutations
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, covalent_radii

from dataloader.errors import InputError
from dataloader.filters import KEEP_CHARGES
from dataloader.structure import Structure
from model_utils.generation.candidate import Candidate, Maker, NotMade
from model_utils.generation.compositions import (
    Composition,
    as_text,
    elements_of,
    formulas_of,
    is_multiple,
)
from model_utils.generation.guards import symbols_of
from model_utils.judging.candidates import crystal_fault, free_atoms_of, inputs_of
from model_utils.runtime import log
from model_utils.settings.options import GenerateOptions
from model_utils.simulation.inputs import NamedAtoms, structures_in

AS_IT_IS = "as it is"


def prepared(options: GenerateOptions, _: Path) -> Maker:
    """A maker of crystals from prototypes.

    Raises:
        InputError: there are none, one is no crystal, or none can have a
            composition that is asked for.
    """
    if not options.sources.prototypes:
        raise InputError(
            "--generator prototypes needs crystals to begin with; name them with --prototypes"
        )
    prototypes = crystals_of(options.sources.prototypes, "--prototypes")
    _say_dropped_states(prototypes)
    formulas = formulas_of(options.wanted)
    elements = elements_of(options.wanted)
    _refuse_what_fits_none(formulas, elements, prototypes)

    def make(_: int, rng: np.random.Generator) -> Candidate:
        prototype = prototypes[int(rng.integers(len(prototypes)))]
        new = _drawn_elements(prototype.atoms, formulas, elements, rng)
        atoms = substituted(prototype.atoms, new)
        _strain(atoms, options.sources.strain, rng)
        atoms.positions += rng.normal(0.0, 1.0, atoms.positions.shape) * options.sources.rattle
        atoms.wrap()
        changed = {f"{old}→{symbol}" for old, symbol in new.items() if old != symbol}
        operation = ", ".join(sorted(changed)) or AS_IT_IS
        return Candidate(
            atoms=atoms, origin={"parent": prototype.identifier, "operation": operation}
        )

    return make


def crystals_of(
    paths: Sequence[Path], flag: str, takes: Callable[[Structure], bool] = lambda _: True
) -> list[NamedAtoms]:
    """The crystals of files; isolated atoms among them are passed over.

    Args:
        paths: files of any format, folders of them, patterns.
        flag: that names them.
        takes: whether a structure is asked for; others may be no crystals.

    Raises:
        InputError: a file cannot be read, or a structure is no crystal, or there is none.
    """
    crystals = []
    for source, structure in structures_in(paths, filters=KEEP_CHARGES):
        if structure.is_isolated_atom or not takes(structure):
            continue
        fault = crystal_fault(structure)
        if fault:
            raise InputError(f"{flag} {source.path}, {structure.identifier}: {fault}")
        atoms = free_atoms_of(structure)
        atoms.info |= structure.extra
        crystals.append(
            NamedAtoms(atoms=atoms, identifier=structure.identifier, file=str(source.path))
        )
    if not crystals:
        raise InputError(
            f"{flag} {', '.join(map(str, paths))}: there is no crystal that can be used"
        )
    return crystals


def _say_dropped_states(prototypes: Sequence[NamedAtoms]) -> None:
    """Warn of charges and spins: they belong to the elements that are replaced."""
    stated = [prototype for prototype in prototypes if inputs_of(prototype.atoms)]
    if stated:
        log.warning(
            "warning: %d of %d prototypes have a charge or a spin, which their candidates have "
            "not: the first is %s",
            *(len(stated), len(prototypes), stated[0].identifier),
        )


def substituted(atoms: Atoms, new: dict[str, str]) -> Atoms:
    """A crystal with other elements, and with the volume that goes with the cubes
    of their covalent radii.

    Args:
        atoms: of the prototype.
        new: element for each of its own.
    """
    symbols = [new[symbol] for symbol in atoms.get_chemical_symbols()]
    changed = Atoms(
        symbols, cell=atoms.cell, pbc=True, scaled_positions=atoms.get_scaled_positions(wrap=False)
    )
    before = (covalent_radii[atoms.numbers] ** 3).sum()
    after = (covalent_radii[changed.numbers] ** 3).sum()
    changed.set_cell(atoms.cell.array * (after / before) ** (1 / 3), scale_atoms=True)
    return changed


def _strain(atoms: Atoms, deviation: float, rng: np.random.Generator) -> None:
    """Strain a cell at random, without turning it."""
    drawn = rng.normal(0.0, 1.0, (3, 3)) * deviation
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + (drawn + drawn.T) / 2), scale_atoms=True)


def _drawn_elements(
    atoms: Atoms, formulas: Sequence[Composition], elements: Sequence[str], rng: np.random.Generator
) -> dict[str, str]:
    """An element for each of a prototype's: of a formula that has its proportions, of
    the elements, or its own.

    Raises:
        NotMade: none of these can be.
    """
    old = symbols_of(atoms)
    if formulas:
        choices = [choice for formula in formulas for choice in _assignments(atoms, formula)]
        if not choices:
            raise NotMade("the prototype has no whole multiple of a formula")
        return choices[int(rng.integers(len(choices)))]
    if not elements:
        return {symbol: symbol for symbol in old}
    if len(elements) < len(old):
        raise NotMade("the prototype has more elements than are asked for")
    drawn = rng.choice(len(elements), size=len(old), replace=False).tolist()
    return {symbol: elements[k] for symbol, k in zip(old, drawn, strict=True)}


def _assignments(atoms: Atoms, formula: Composition) -> Iterator[dict[str, str]]:
    """All ways to put a formula's elements on a prototype's so that its cell has a
    whole multiple of the formula.
    """
    counts = Counter(atoms.get_chemical_symbols())
    if len(counts) != len(formula):
        return
    old = sorted(counts, key=lambda symbol: atomic_numbers[symbol])
    for new in permutations(formula):
        if is_multiple({b: counts[a] for a, b in zip(old, new, strict=True)}, formula):
            yield dict(zip(old, new, strict=True))


def _refuse_what_fits_none(
    formulas: Sequence[Composition], elements: Sequence[str], prototypes: Sequence[NamedAtoms]
) -> None:
    """Raise InputError where no attempt could give anything."""
    for formula in formulas:
        if not any(list(_assignments(prototype.atoms, formula)) for prototype in prototypes):
            raise InputError(
                f"--composition {as_text(formula)}: no prototype has a whole multiple of its "
                "atoms; give another of --prototypes"
            )
    fewest = min(len(symbols_of(prototype.atoms)) for prototype in prototypes)
    if not formulas and elements and len(elements) < fewest:
        raise InputError(
            f"--elements names {len(elements)}, and every prototype has {fewest} or "
            "more; name as many"
        )
