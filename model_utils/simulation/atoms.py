"""ASE's atoms as a structure that a network can compute, with the faults that
would give a wrong result.
"""

import warnings
from dataclasses import replace

import numpy as np
from ase import Atoms

from dataloader.errors import InputError
from dataloader.labels import CHARGE_NAMES, SPIN_NAMES, LabelError
from dataloader.names import Entries
from dataloader.needs import ModelFacts
from dataloader.record_details import RecordError, feature_of, number_named
from dataloader.structure import Structure, geometry_fault, symbols


def structure_of(atoms: Atoms, facts: ModelFacts, head: str) -> Structure:
    """The structure of atoms, with the inputs that the network takes besides.

    Charge and spin come from ``atoms.info`` under any of their names, inputs of single atoms from
    ``atoms.arrays``; they are looked for where the network has such an input.

    Args:
        atoms: in Å.
        facts: of the network.
        head: of the network.

    Raises:
        InputError: an element that the network lacks, a position that is no number, a periodic
            direction without a cell vector, a missing input.
    """
    known = set(facts.atomic_numbers)
    foreign = sorted({int(z) for z in atoms.numbers} - known)
    if foreign:
        fault = (
            f"element {symbols(foreign)} (Z={', '.join(map(str, foreign))}) is not in the model, "
            f"which has {symbols(facts.atomic_numbers)}"
        )
        raise InputError(named(atoms, fault))
    structure = Structure(
        atomic_numbers=atoms.numbers.astype("int64"),
        positions=atoms.positions.astype("float64"),
        cell=atoms.cell.array.astype("float64"),
        pbc=(bool(atoms.pbc[0]), bool(atoms.pbc[1]), bool(atoms.pbc[2])),
        identifier="",  # a formula takes 0.1 ms, a step of a small molecule a few: see ``named``
        head=head,
    )
    broken = geometry_fault(structure)
    if broken is not None:
        raise InputError(named(atoms, broken))
    return _with_inputs(structure, atoms, facts)


def with_move_mask(atoms: Atoms) -> Atoms:
    """A copy whose held atoms are said by the column ``move_mask``, as extended XYZ has
    them, and by no constraint.
    """
    frame = atoms.copy()
    held = [constraint.index for constraint in atoms.constraints]  # whole atoms alone are held here
    if held:
        is_held = np.zeros(len(atoms), dtype=bool)
        for index in held:
            is_held[index] = True
        frame.arrays["move_mask"] = ~is_held
    frame.set_constraint()
    return frame


def named(atoms: Atoms, fault: object) -> str:
    """A sentence on a fault of some atoms, with their formula."""
    return f"{atoms.get_chemical_formula()}: {fault}"


def _with_inputs(structure: Structure, atoms: Atoms, facts: ModelFacts) -> Structure:
    """The structure with charge, spin and whatever else the network takes."""
    _warn_of_unknown_states(atoms, facts)
    if not facts.features:
        return structure
    of_structure = Entries.of(atoms.info)
    of_atoms = Entries.of(atoms.arrays)
    try:
        charge = number_named(of_structure, None, CHARGE_NAMES, "charge")
        spin = number_named(of_structure, None, SPIN_NAMES, "spin")
        features = {
            spec.name: feature_of(
                spec, of_atoms if spec.per_atom else of_structure, len(atoms), charge, spin
            )
            for spec in facts.features
        }
    except (LabelError, RecordError) as error:
        raise InputError(named(atoms, f"{error}; set it in atoms.info")) from None
    return replace(structure, charge=charge, spin=spin, features=features)


def unknown_states(atoms: Atoms, facts: ModelFacts) -> list[str]:
    """Charge and multiplicity that atoms have and the network has no input for, as
    ``charge 1``: of such atoms it computes a neutral singlet.

    Args:
        atoms: say it in ``atoms.info``.
        facts: of the network.
    """
    inputs = {spec.name for spec in facts.features}
    unknown = []
    for names, usual in ((CHARGE_NAMES, (0,)), (SPIN_NAMES, (0, 1))):
        if inputs & set(names):
            continue
        for name in names:
            value = atoms.info.get(name, 0)
            if isinstance(value, int | float | np.number) and value not in usual:
                unknown.append(f"{name} {value:g}")
    return unknown


def _warn_of_unknown_states(atoms: Atoms, facts: ModelFacts) -> None:
    for state in unknown_states(atoms, facts):
        warnings.warn(
            f"atoms.info has {state}, of which the network with the elements "
            f"{symbols(facts.atomic_numbers)} knows nothing: it gives what it gives "
            "of a neutral singlet",
            stacklevel=2,
        )
