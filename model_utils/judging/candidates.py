"""Candidates from a file in which some may be broken: each with its fault, and the others
are read all the same.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ase import Atoms

from dataloader import input_files
from dataloader.errors import InputError
from dataloader.in_memory import RawFrame
from dataloader.labels import LabelError
from dataloader.record import EVERYTHING, read_record
from dataloader.structure import Structure, geometry_fault
from dataloader.xyz import raw_frames
from model_utils.simulation.inputs import NO_LABELS, NamedAtoms, atoms_of

GENERATED = "generated_crystals.extxyz"
FAILED = "GENERATION_FAILED.txt"
# of a frame's info
ORIGIN = ("generator", "parent", "parents", "space_group", "operation", "seed", "file")
INPUTS = ("charge", "spin")  # of a frame's info, which networks may take
PLAIN = (bool, int, float, str)
SHOWN = 500  # characters of a reason


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One frame.

    Attributes:
        number: of the frame, from 0 on.
        identifier: as the frame names itself with ``id``, else file and frame.
        fault: why it is no crystal; empty where it is one.
        named: its atoms; None where it is no structure at all.
        info: what the frame says besides.
    """

    number: int
    identifier: str
    fault: str
    named: NamedAtoms | None
    info: dict[str, Any]

    @property
    def origin(self) -> dict[str, Any]:
        """What the frame says of how it was made, as plain values."""
        said = {name: self.info[name] for name in ORIGIN if name in self.info}
        return {
            name: value if isinstance(value, PLAIN) else str(value) for name, value in said.items()
        }


def candidates_in(folder: Path) -> list[Candidate]:
    """The candidates of a folder, in the order of the file.

    Raises:
        InputError: there is no file of them, it cannot be read, or it holds none.
    """
    path = folder / GENERATED
    if not path.exists():
        raise InputError(f"{path} is not there: there are no candidates to judge{_why_not(folder)}")
    return crystals_in(path)


def crystals_in(path: Path) -> list[Candidate]:
    """The frames of an extended-XYZ file, each as a crystal or with the reason why it is none.

    Raises:
        InputError: the file cannot be read, is not written as extended XYZ, or holds no frame.
    """
    return [_candidate(number, frame, path) for number, frame in enumerate(raw_frames(path))]


def _why_not(folder: Path) -> str:
    """What a failed generation left in the folder; else what makes candidates."""
    try:
        reason = " ".join(input_files.read_text(folder / FAILED, 2**16).split())
    except (OSError, UnicodeDecodeError):
        return "; generate.py makes them"
    return f"; {FAILED} there says: {reason[:SHOWN]}"


def _candidate(number: int, frame: RawFrame, path: Path) -> Candidate:
    raw = frame.raw
    # as it is spelt: 12e45678 is no number
    name = str(raw.texts.get("id", raw.values.get("id", frame.identifier)))
    try:
        structure = read_record(
            raw, frame.identifier, NO_LABELS, (), EVERYTHING, frame.pbc_rule
        ).structure
    except LabelError as error:
        return Candidate(
            number=number,
            identifier=name,
            fault=str(error),
            named=None,
            info=dict(raw.values),
        )
    atoms = free_atoms_of(structure)
    info = {**structure.extra, **raw.values}
    return Candidate(
        number=number,
        identifier=name,
        fault=crystal_fault(structure),
        named=NamedAtoms(atoms=atoms, identifier=name, file=str(path)),
        info=info,
    )


def free_atoms_of(structure: Structure) -> Atoms:
    """Atoms of a crystal that is judged: none is held; charge and spin go along, for
    networks that take them.
    """
    atoms = atoms_of(structure)
    atoms.set_constraint()
    for name in INPUTS:
        value = getattr(structure, name)
        if value is not None:
            atoms.info[name] = value
    return atoms


def inputs_of(atoms: Atoms) -> dict[str, Any]:
    """Charge and spin of a crystal, where they are said."""
    return {name: atoms.info[name] for name in INPUTS if name in atoms.info}


def crystal_fault(structure: Structure) -> str:
    """Why a structure is no crystal, as a phrase; empty where it is one."""
    fault = geometry_fault(structure)
    if fault is None and not structure.periodic:
        fault = "not periodic in three directions, which a crystal is"
    return fault or ""
