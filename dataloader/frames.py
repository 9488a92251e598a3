"""Structures as ASE's atoms, with labels or predictions under names that cannot be
taken for one another.
"""

import io
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
from ase import Atoms

from dataloader.labels import names_of_labels
from dataloader.names import WantedNames
from dataloader.quantities import QUANTITIES
from dataloader.structure import LabelValue, Structure

LABEL = "REF_"  # before a quantity's name
PREDICTION = "mace_"
OTHER_LABEL = "input_"  # before the name of a label that was there and was not the one to take
_WRITTEN = "bifUS"  # kinds of columns that ASE's writer knows


def bare_atoms(structure: Structure) -> Atoms:
    """A structure as ASE's atoms with its cell, without labels."""
    return Atoms(
        structure.atomic_numbers, structure.positions, cell=structure.cell, pbc=structure.pbc
    )


def as_extended_xyz(frames: Sequence[Atoms]) -> str:
    """Frames as the text of an extended XYZ file."""
    from ase.io import write  # half a second, and most runs write none

    text = io.StringIO()
    write(text, list(frames), format="extxyz")
    return text.getvalue()


def put_rest(atoms: Atoms, structure: Structure) -> None:
    """Add what a record says beside its structure and the labels that were taken.

    Labels that were not taken, such as those of another level of theory, get names under which
    nobody takes them: beside those that were, they would be mixed with them. What other models
    predicted stays behind, and so do empty texts; the lines of a text become one.
    """
    labels = _names_of_labels(tuple(QUANTITIES))

    def name_of(name: str) -> str:
        return f"{OTHER_LABEL}{name}" if name in labels else name

    for name, value in structure.extra.items():
        is_empty = isinstance(value, str) and not value
        if not is_empty and not name.startswith(PREDICTION):
            one_line = " ".join(value.splitlines()) if isinstance(value, str) else value
            atoms.info[name_of(name)] = one_line
    for name, column in structure.columns.items():
        known = column.astype(np.int64) if column.dtype.kind == "u" else column
        if known.dtype.kind in _WRITTEN and not name.startswith(PREDICTION):
            atoms.arrays[name_of(name)] = known


@cache
def _names_of_labels(quantities: tuple[str, ...]) -> WantedNames:
    """Names of labels in any case, with a table of these quantities, to which plug-ins add."""
    return WantedNames(names_of_labels())


def put(atoms: Atoms, prefix: str, values: Mapping[str, LabelValue]) -> None:
    """Add labels or predictions to atoms: ``mace_energy``, ``REF_forces``.

    Args:
        atoms: of one structure.
        prefix: ``LABEL`` or ``PREDICTION``.
        values: by quantity, in its unit and shape; a matrix is laid out in one row, as extended XYZ
            has it. One that needs a volume is left out where there is none.
    """
    for name, value in values.items():
        quantity = QUANTITIES[name]
        if quantity.needs_volume and not atoms.pbc.all():
            continue
        if quantity.per_atom:
            atoms.arrays[f"{prefix}{name}"] = np.asarray(value)
        else:
            atoms.info[f"{prefix}{name}"] = (
                value if isinstance(value, float) else np.asarray(value).reshape(-1)
            )
