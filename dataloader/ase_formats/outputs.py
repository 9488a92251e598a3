"""Outputs and structure files of other programs, read by the functions of
``ase.io`` that only parse.

A function is called directly, never found by a name: what picks readers by name would also pick
those of plug-ins. Every function here was read in ASE 3.29: it opens no other file (or is kept from
it), starts nothing, and makes nothing but structures. What it raises on a damaged file becomes one
sentence, and a file that ends too early ends its loops.
"""

import io
import os
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers
from numpy.typing import NDArray

from dataloader import input_files
from dataloader.entry_values import RecordError
from dataloader.limits import ASE_HEADER_BYTES, ASE_STRUCTURE_BYTES, ASE_TEXT_BYTES
from dataloader.record import RawRecord

# at the end of a file, after which a reader is taken to wait for what never comes
_EMPTY_READS = 1000
_LABELS = ("energy", "free_energy", "forces", "stress", "dipole")
# a folder that cannot be: readers that look for a further file beside theirs find none
NOWHERE = "/dev/null/"


class _Text(io.TextIOWrapper):
    """Text of a file for readers of ASE, whose loops do not all look for the end of a file."""

    def __init__(self, file: BinaryIO, called: str) -> None:
        super().__init__(file, encoding="utf-8", errors="replace")
        self._called = called
        self._empty = 0

    @property
    def name(self) -> str:
        """A path that is not there, with the last part of the file's."""
        return NOWHERE + self._called

    def readline(self, size: int = -1, /) -> str:  # type: ignore[override]
        """The next line; at the end an empty one, but not for ever."""
        line = super().readline(size)
        if not line:
            self._empty += 1
            if self._empty > _EMPTY_READS:
                raise RecordError("it ends too early")
        return line


_OUTCAR_ATOMS = re.compile(rb"ions per type =([\d ]+)")
_AIMS_ATOMS = re.compile(rb"\| Number of atoms +: *(\d+)")

Parse = Callable[[Any], Any]  # of a text: one structure, or several


def frames(
    path: Path, parse: Parse, *, most: int = ASE_TEXT_BYTES, binary: bool = False
) -> Iterator[Atoms]:
    """The structures that a reader of ASE finds in a file.

    Args:
        path: the file.
        parse: the reader.
        most: bytes that the file may have.
        binary: whether the reader takes bytes.

    Raises:
        OSError: the file cannot be read.
        RecordError: it is not as the reader expects it.
    """
    with input_files.opened(path) as file:
        if os.fstat(file.fileno()).st_size > most:
            raise RecordError(f"it has more than {most} bytes")
        stream = file if binary else _Text(file, path.name)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                parsed = parse(stream)
                yield from [parsed] if isinstance(parsed, Atoms) else parsed
        except (OSError, RecordError):
            raise
        except Exception as error:  # readers of ASE raise whatever a line makes of their arithmetic
            raise RecordError(
                f"ASE's reader stops with {type(error).__name__}: {str(error)[:120]}"
            ) from None


def record_of(atoms: Atoms, held: NDArray[np.bool_] | None = None) -> RawRecord:
    """A structure with the results of its calculator and its held atoms.

    Args:
        atoms: of a reader.
        held: (n_atoms, 3), components that were held, where another file says it.
    """
    values: dict[str, object] = {
        "numbers": atoms.numbers,
        "positions": atoms.positions,
        "cell": atoms.cell.array,
        "pbc": atoms.pbc,
    }
    if atoms.calc is not None:
        results = atoms.calc.results
        values |= {name: results[name] for name in _LABELS if results.get(name) is not None}
    components = held_by(atoms) if held is None else held
    if components.any():
        values["fixed"] = components
    return RawRecord(values)


def held_by(atoms: Atoms) -> NDArray[np.bool_]:
    """Which components of which atoms constraints hold, (n_atoms, 3); of ``FixScaled``
    along lattice vectors.
    """
    held = np.zeros((len(atoms), 3), dtype=bool)
    if not atoms.constraints:
        return held
    from ase.constraints import FixAtoms, FixCartesian  # half a second

    for constraint in atoms.constraints:
        if isinstance(constraint, FixAtoms):
            held[constraint.index] = True
        elif isinstance(constraint, FixCartesian) or type(constraint).__name__ == "FixScaled":
            held[constraint.index] |= np.asarray(constraint.mask, dtype=bool)
    return held


def vasp_outcar(path: Path) -> Iterator[RawRecord]:
    """Every ionic step of an OUTCAR; held atoms are those of CONTCAR or POSCAR where the
    file is called OUTCAR.
    """
    from ase.io.vasp import iread_vasp_out

    held: NDArray[np.bool_] | None = None
    _refuse_more_atoms_than_bytes(path, _OUTCAR_ATOMS)
    for number, atoms in enumerate(
        frames(path, lambda text: iread_vasp_out(text, index=slice(None)))
    ):
        if number == 0:
            held = _held_beside(path, len(atoms))
        yield record_of(atoms, held)


def _held_beside(path: Path, n_atoms: int) -> NDArray[np.bool_] | None:
    """What CONTCAR or POSCAR in the folder of an OUTCAR hold; None where there is none,
    or of another structure.
    """
    if path.name != "OUTCAR":
        return None
    for name in ("CONTCAR", "POSCAR"):
        place = path.with_name(name)
        if place.is_file() and place.stat().st_size:
            beside = next(frames(place, _poscar, most=ASE_STRUCTURE_BYTES))
            return held_by(beside) if len(beside) == n_atoms else None
    return None


def _refuse_more_atoms_than_bytes(path: Path, stated: re.Pattern[bytes]) -> None:
    """Raise RecordError where a file states more atoms than it can hold: readers take memory
    for as many as it says.
    """
    with input_files.opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        for match in stated.finditer(file.read(ASE_HEADER_BYTES)):
            words = match[1].split()
            if sum(int(word[:18]) for word in words) > size or any(
                len(word) > 18 for word in words
            ):
                raise RecordError(
                    f"it states {match[1].decode().strip()[:60]} atoms and has {size} bytes"
                )


def vasp_xml(path: Path) -> Iterator[RawRecord]:
    """Every ionic step of a vasprun.xml."""
    from ase.io.vasp import read_vasp_xml

    for atoms in frames(path, lambda file: read_vasp_xml(file, index=slice(None)), binary=True):
        yield record_of(atoms)


def espresso_output(path: Path) -> Iterator[RawRecord]:
    """Every structure of an output of pw.x that has results."""
    from ase.io.espresso import read_espresso_out

    for atoms in frames(path, lambda text: read_espresso_out(text, index=slice(None))):
        yield record_of(atoms)


def aims_output(path: Path) -> Iterator[RawRecord]:
    """Every structure of an output of FHI-aims; one that did not converge is refused."""
    from ase.io.aims import read_aims_output

    _refuse_more_atoms_than_bytes(path, _AIMS_ATOMS)
    for atoms in frames(path, lambda text: read_aims_output(text, index=slice(None))):
        yield record_of(atoms)


def cif(path: Path) -> Iterator[RawRecord]:
    """Every structure of a CIF; one whose sites are partly occupied is refused."""
    from ase.io.cif import read_cif

    def parse(file: BinaryIO) -> object:
        return read_cif(file, index=slice(None), reader="ase")

    for atoms in frames(path, parse, most=ASE_STRUCTURE_BYTES, binary=True):
        for site in atoms.info.get("occupancy", {}).values():
            if len(site) > 1 or any(share < 1 for share in site.values()):
                raise RecordError(
                    f"a site is occupied in part ({site}); a model needs whole atoms: "
                    "order the structure"
                )
        yield record_of(atoms)


def poscar(path: Path) -> Iterator[RawRecord]:
    """The structure of a POSCAR or CONTCAR."""
    for atoms in frames(path, _poscar, most=ASE_STRUCTURE_BYTES):
        yield record_of(atoms)


def _poscar(text: io.TextIOBase) -> Atoms:
    """One structure, after its number of atoms was compared with its lines."""
    from ase.io.vasp import read_vasp

    lines = text.read().splitlines(keepends=True)
    words = lines[5].split() if len(lines) > 5 else []
    if words and not words[0].isdigit():
        words = lines[6].split() if len(lines) > 6 else []
    elif words:
        symbols = lines[0].split()
        if len(symbols) < len(words) or not all(
            re.split(r"[_/.]", symbol)[0] in atomic_numbers for symbol in symbols[: len(words)]
        ):
            raise RecordError(
                "it names no elements; write their symbols in a line before their "
                "numbers, as VASP 5 does"
            )
    counts = [int(word) for word in words if word.isdigit()]
    if sum(counts) > len(lines):
        raise RecordError(f"it states {sum(counts)} atoms and has {len(lines)} lines")
    return read_vasp(_Named("".join(lines)))


class _Named(io.StringIO):
    """Text with the name that readers of ASE ask for."""

    name = f"{NOWHERE}POSCAR"
