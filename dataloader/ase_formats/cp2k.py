"""Outputs of CP2K: energy and forces of single points, read here since ``ase.io``
has no reader for them.

Of a run with several structures (a relaxation, molecular dynamics) CP2K writes the positions to
other files, in which energies are in Hartree and forces in Hartree/Bohr: such an output is refused.
Stress is not read: which sign it has depends on the version.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ase.geometry import cellpar_to_cell
from ase.units import create_units
from numpy.typing import NDArray

from dataloader import input_files
from dataloader.entry_values import RecordError
from dataloader.limits import ASE_TEXT_BYTES, XYZ_LINE_BYTES
from dataloader.record import RawRecord

BEGINS = b"CP2K| version string"
_UNITS = create_units("2018")  # CP2K takes CODATA 2006 to 2010, which differ by 1e-8
_START = "CP2K| version string"
_ENERGY = re.compile(
    r" ENERGY\| Total FORCE_EVAL.*?(?:\[(?:a\.u\.|hartree)\])?:?\s+(-?\d+\.\d+(?:E[+-]\d+)?)\s*$"
)
_VECTOR = re.compile(
    r" CELL\| Vector ([abc]) \[angstrom\]?:?\s+(-?[\d.]+)\s+(-?[\d.]+)\s+(-?[\d.]+)"
    r"(?:\s+\|\1\|\s*=\s*([\d.]+))?"
)
_ANGLE = re.compile(r" CELL\| Angle \(\w,\w\), (alpha|beta|gamma)\s+\[degree\]:?\s+([\d.]+)\s*$")
_PRINTED = 5e-4  # Å, half of the last digit of a vector's components
_CHARGE = re.compile(r" DFT\| Charge\s+(-?\d+)\s*$")
_MULTIPLICITY = re.compile(r" DFT\| Multiplicity\s+(\d+)\s*$")
_PERIODIC = re.compile(r" (?:CELL|POISSON)\| Periodicity\s+(\w+)\s*$")
_COORDINATES = "ATOMIC COORDINATES IN"
_FORCES = re.compile(
    r" (?:ATOMIC FORCES in \[a\.u\.\]|FORCES\| Atomic forces \[hartree/bohr\])", re.IGNORECASE
)


def records(path: Path) -> Iterator[RawRecord]:
    """The structures of an output, one for each time that CP2K was started into it.

    Raises:
        OSError: it cannot be read.
        RecordError: a run is not one that is read.
    """
    run: list[str] = []
    with input_files.opened(path) as file:
        while line := file.readline(XYZ_LINE_BYTES):
            text = line.decode("utf-8", "replace").rstrip("\n")
            if _START in text and run:
                yield _record(run)
                run = []
            if _START in text or run:
                run.append(text)
            if file.tell() > ASE_TEXT_BYTES:
                raise RecordError(f"it has more than {ASE_TEXT_BYTES} bytes")
    yield _record(run)


def _record(lines: list[str]) -> RawRecord:
    energies = [float(match[1]) for line in lines if (match := _ENERGY.match(line))]
    if any("SCF run NOT converged" in line for line in lines):
        raise RecordError("its SCF run did not converge; leave it out")
    if len(energies) > 1:
        raise RecordError(
            f"it has {len(energies)} energies: of relaxations and molecular dynamics CP2K writes "
            "the positions to other files; make an extended-XYZ file of -pos-1.xyz and "
            "-frc-1.xyz, with energy_unit=hartree and forces_unit=hartree/bohr"
        )
    start = next((number for number, line in enumerate(lines) if _COORDINATES in line), None)
    if start is None:
        raise RecordError("it has no ATOMIC COORDINATES; let CP2K print them (PRINT_LEVEL MEDIUM)")
    length = _UNITS.Bohr if "BOHR" in lines[start].upper() else 1.0
    rows = _rows(lines, start + 1, 7)
    values: dict[str, object] = {
        "numbers": np.array([int(row[3]) for row in rows]),
        "positions": length * np.array([[float(word) for word in row[4:7]] for row in rows]),
    }
    cell, pbc = _cell(lines)
    values |= {"cell": cell, "pbc": pbc}
    if energies:
        values["energy"] = energies[0] * _UNITS.Hartree
    for name, pattern in (("charge", _CHARGE), ("spin", _MULTIPLICITY)):
        stated = next((match[1] for line in lines if (match := pattern.match(line))), None)
        if stated is not None:
            values[name] = float(stated)
    forces = _forces(lines, len(rows))
    if forces is not None:
        values["forces"] = forces
    return RawRecord(values)


def _rows(lines: list[str], start: int, least: int) -> list[list[str]]:
    """The words of a table: the lines that begin with a whole number, until one does not."""
    rows: list[list[str]] = []
    for line in lines[start:]:
        words = line.split()
        if len(words) >= least and words[0].isdigit():
            rows.append(words)
        elif rows:
            break
    return rows


def _cell(lines: list[str]) -> tuple[NDArray[np.float64], tuple[bool, ...]]:
    """Lattice vectors in Å as rows, and the periodic directions; all where
    CP2K does not say them.
    """
    vectors = {match[1]: match.groups()[1:] for line in lines if (match := _VECTOR.match(line))}
    if len(vectors) != 3:
        raise RecordError("its cell is not there; let CP2K print it (PRINT_LEVEL MEDIUM)")
    cell = np.array([[float(word) for word in vectors[name][:3]] for name in "abc"])
    angles = {match[1]: float(match[2]) for line in lines if (match := _ANGLE.match(line))}
    lengths = [float(vectors[name][3] or 0.0) for name in "abc"]
    if all(lengths) and len(angles) == 3:
        cell = _sharpened(cell, [*lengths, *(angles[name] for name in ("alpha", "beta", "gamma"))])
    stated = next((match[1].upper() for line in lines if (match := _PERIODIC.match(line))), None)
    if stated is None:
        raise RecordError(
            "it does not say its periodic directions; let CP2K print them (PRINT_LEVEL MEDIUM)"
        )
    return cell, tuple(axis in stated and stated != "NONE" for axis in "XYZ")


def _sharpened(cell: NDArray[np.float64], shape: list[float]) -> NDArray[np.float64]:
    """Lattice vectors (3, 3) whose components have three decimals, with the lengths (Å) and angles
    (degrees) that are printed beside them with six.

    Where the vectors do not lie as CP2K lays them itself (a along x, b in the xy plane), the shape
    is turned to where they lie.
    """
    try:
        exact = cellpar_to_cell(shape)
    except (AssertionError, ValueError):  # angles that make no cell
        return cell
    left, _, right = np.linalg.svd(exact.T @ cell)
    turned = exact @ (left @ right)  # a left-handed cell is mirrored as well
    for candidate in (exact, turned):
        if np.abs(candidate - cell).max() <= 1.01 * _PRINTED:
            return np.asarray(candidate)
    return cell


def _forces(lines: list[str], n_atoms: int) -> NDArray[np.float64] | None:
    """Forces in eV/Å, (n_atoms, 3); None where they were not printed."""
    start = next((number for number, line in enumerate(lines) if _FORCES.match(line)), None)
    if start is None:
        return None
    table = [line.replace(" FORCES|", " ") for line in lines[start + 1 : start + n_atoms + 10]]
    rows = _rows(table, 0, 4)
    if len(rows) != n_atoms:
        raise RecordError(f"it has forces of {len(rows)} atoms, and positions of {n_atoms}")
    first = 1 if "FORCES|" in lines[start] else 3
    values = np.array([[float(word) for word in row[first : first + 3]] for row in rows])
    return values * _UNITS.Hartree / _UNITS.Bohr
