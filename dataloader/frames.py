"""Structures as ASE's atoms, with labels or predictions under names that cannot be
taken for one another.
"""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from ase import Atoms

from dataloader.quantities import QUANTITIES
from dataloader.structure import LabelValue, Structure

LABEL = "REF_"  # before a quantity's name
PREDICTION = "mace_"


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
