"""One labelled structure, the same record whatever file it came from, and the faults
that one structure shows.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import cast

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from dataloader.quantities import ENERGY, FORCES, STRESS

LabelValue = float | NDArray[np.float64]

# Å; beyond it, without periodicity, a float32 position is worth less than 0.01 Å
MAX_OPEN_COORDINATE = 1e5
MIN_VOLUME_PER_ATOM = 1.0  # Å³; hydrogen at 500 GPa still has 1.5
MIN_EDGE = 0.1  # Å, of a cell; below it a neighbour list has 10⁵ edges per atom and more
MIN_FACE = 0.1  # Å²
# Å; a float64 position is worth 1e-8 Å there, and beyond it neighbour lists overflow
MAX_LENGTH = 1e8


@dataclass(frozen=True, slots=True)
class Edges:
    """Directed edges that a record brings along, sorted by receiver; shifts belong to
    the positions as stored.

    The vector of an edge is ``positions[receiver] - positions[sender] + shift @ cell``.
    """

    r_max: float  # Å
    senders: NDArray[np.int32]  # (n_edges,)
    receivers: NDArray[np.int32]  # (n_edges,)
    shifts: NDArray[np.int16]  # (n_edges, 3), whole lattice vectors


@dataclass(frozen=True, slots=True, kw_only=True)
class Structure:
    """A configuration of atoms with its labels; an absent label is None, never zero."""

    atomic_numbers: NDArray[np.int64]  # (n_atoms,)
    positions: NDArray[np.float64]  # (n_atoms, 3), Å
    # (3, 3), Å, rows are the lattice vectors; zero rows where there is none
    cell: NDArray[np.float64]
    pbc: tuple[bool, bool, bool]
    identifier: str
    # by quantity, in its unit and shape
    labels: Mapping[str, LabelValue] = field(default_factory=dict)
    # (n_atoms,), True where the atom was free to move; None: all are
    free_atoms: NDArray[np.bool_] | None = None
    # of the whole structure, in elementary charges; None where the record names none
    charge: float | None = None
    spin: float | None = None  # multiplicity 2S + 1
    weight: float = 1.0
    weights: Mapping[str, float] = field(default_factory=dict)  # by quantity, where it is not 1
    head: str | None = None
    config_type: str = "Default"
    # inputs of embedding_specs, by name
    features: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    # numbers and texts that were asked for by name
    extra: Mapping[str, object] = field(default_factory=dict)
    columns: Mapping[str, NDArray[np.generic]] = field(
        default_factory=dict
    )  # (n_atoms, …), where everything was asked for
    # where the record holds a neighbour list; within its cutoff it is taken
    edges: Edges | None = None

    @property
    def energy(self) -> float | None:
        """Label of the energy of the whole configuration, eV."""
        return cast("float | None", self.labels.get(ENERGY.name))

    @property
    def forces(self) -> NDArray[np.float64] | None:
        """Labels of the forces, (n_atoms, 3), eV/Å."""
        return cast("NDArray[np.float64] | None", self.labels.get(FORCES.name))

    @property
    def stress(self) -> NDArray[np.float64] | None:
        """Label of the stress, (3, 3), eV/Å³: (1/V) dE/dstrain, positive
        under tension (ASE's sign).
        """
        return cast("NDArray[np.float64] | None", self.labels.get(STRESS.name))

    def weight_of(self, quantity: str) -> float:
        """The structure's weight in the term of a quantity."""
        return self.weight * self.weights.get(quantity, 1.0)

    def teaches(self, quantity: str) -> bool:
        """Whether it has a label of a quantity from which something is to be learned: one of
        weight 0 may stand for a label that is not there, as in files made for mace-torch.
        """
        return quantity in self.labels and self.weight_of(quantity) > 0

    def taught(self) -> "Structure":
        """The structure with the labels alone from which something is to be learned."""
        labels = {name: label for name, label in self.labels.items() if self.teaches(name)}
        return self if len(labels) == len(self.labels) else replace(self, labels=labels)

    @property
    def n_atoms(self) -> int:
        """Number of atoms."""
        return len(self.atomic_numbers)

    @property
    def periodic(self) -> bool:
        """Periodic in all three directions: only then is there a volume, and so a stress."""
        return all(self.pbc)

    @property
    def charged(self) -> bool:
        """Whether a charge other than zero is named."""
        return self.charge not in (None, 0)

    @property
    def open_shell(self) -> bool:
        """Whether a multiplicity other than one is named; 0 is written for unknown."""
        return self.spin not in (None, 0, 1)

    @property
    def is_isolated_atom(self) -> bool:
        """A frame that gives a reference energy E0 and is left out of
        training (mace's convention).
        """
        # IsolatedAtom, isolated_atom: both are written
        name = (self.config_type or "").replace("_", "").casefold()
        return self.n_atoms == 1 and name == "isolatedatom"


def symbols(atomic_numbers: object) -> str:
    """Element symbols of the numbers that occur, in order: ``H, C, O``."""
    return ", ".join(chemical_symbols[z] for z in sorted(set(np.asarray(atomic_numbers).tolist())))


def volume_of(cell: NDArray[np.float64], pbc: Sequence[bool]) -> float:
    """Volume in Å³; 0 where the cell is not periodic in three directions or is none,
    without numpy's warnings.
    """
    if not all(pbc) or not (np.abs(cell) <= MAX_LENGTH).all():  # False for NaN
        return 0.0
    # nine Python numbers: numpy's det and cross cost ten times as much, for every record
    a, b, c = cell.tolist()
    return abs(_dot(a, _cross(b, c)))


def geometry_fault(structure: Structure) -> str | None:
    """The first fault that makes a structure unusable whatever its labels, as a phrase;
    None where it is sound.

    mace-torch builds finite energies from several of these (a zero periodic cell becomes a 1 Å
    cube, a NaN position an isolated atom), so they are refused here, before any graph is built.
    """
    positions = structure.positions
    cell = structure.cell
    pbc = np.array(structure.pbc)
    if structure.n_atoms == 0:
        return "no atoms"
    if structure.atomic_numbers.min() < 1 or structure.atomic_numbers.max() >= len(
        chemical_symbols
    ):
        return (
            f"atomic number {_first_bad_number(structure.atomic_numbers)} is no element "
            "(expected 1 to 118)"
        )
    if not np.isfinite(positions).all():
        return f"position of atom {_first_row(~np.isfinite(positions))} is not finite"
    if not np.isfinite(cell).all():
        return "cell is not finite"
    for what, values in (("position", positions), ("cell vector", cell)):
        if max(values.max(), -values.min()) > MAX_LENGTH:
            return f"a {what} is longer than {MAX_LENGTH:.0e} Å"
    fault = _cell_fault(structure, cell[pbc]) if pbc.any() else None
    if fault is None and not pbc.all():
        far = np.abs(_open_part(positions, cell[pbc])) > MAX_OPEN_COORDINATE
        fault = (
            f"atom {_first_row(far)} lies more than {MAX_OPEN_COORDINATE:.0e} Å away"
            if far.any()
            else None
        )
    return fault


def surely_sound(
    positions: NDArray[np.float64],
    cells: NDArray[np.float64],
    numbers: NDArray[np.int64],
    *,
    periodic: bool,
) -> NDArray[np.bool_]:
    """Which of several structures have no `geometry_fault`: True is certain, False is
    not, and most get True.

    Args:
        positions: (m, n_atoms, 3), Å.
        cells: (m, 3, 3), Å.
        numbers: (m, n_atoms).
        periodic: in three directions, all of them; otherwise in none.
    """
    n_atoms = numbers.shape[1]
    if n_atoms == 0:
        return np.zeros(len(numbers), dtype=bool)
    sound = (numbers.min(axis=1) >= 1) & (numbers.max(axis=1) < len(chemical_symbols))
    for values in (positions, cells):
        sound &= (np.abs(values) <= MAX_LENGTH).all(axis=(1, 2))  # False for NaN
    with np.errstate(invalid="ignore", over="ignore"):
        if not periodic:
            return sound & (np.ptp(positions, axis=1).max(axis=1) <= MAX_OPEN_COORDINATE)
        a = cells[:, 0]
        b = cells[:, 1]
        c = cells[:, 2]
        normals = np.stack([np.cross(b, c), np.cross(c, a), np.cross(a, b)], axis=1)
        lengths = np.sqrt(np.square(cells).sum(axis=2))
        faces = np.sqrt(np.square(normals).sum(axis=2))
        volumes = np.abs((a * normals[:, 0]).sum(axis=1))
        more = 1 + 1e-9  # what rounding could turn is in doubt
        sound &= (lengths.min(axis=1) >= more * MIN_EDGE) & (faces.min(axis=1) >= more * MIN_FACE)
        sound &= volumes >= more * MIN_VOLUME_PER_ATOM * n_atoms
        return np.asarray(sound & (volumes >= more * 1e-6 * lengths.prod(axis=1)))


def _open_part(positions: NDArray[np.float64], vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Positions from their mean, across the periodic directions only."""
    centred = positions - positions.mean(axis=0)
    return centred - centred @ np.linalg.pinv(vectors) @ vectors if len(vectors) else centred


def _cell_fault(structure: Structure, vectors: NDArray[np.float64]) -> str | None:
    rows: list[list[float]] = vectors.tolist()
    lengths = [math.hypot(*row) for row in rows]
    if min(lengths) < 1e-6:
        return (
            f"periodic in direction(s) {_directions(structure.pbc)} but the cell has "
            "a zero vector there"
        )
    if min(lengths) < MIN_EDGE:
        return f"a cell vector is shorter than {MIN_EDGE:g} Å"
    faces = [math.hypot(*_cross(a, b)) for a, b in combinations(rows, 2)]
    sizes = (
        lengths[:1],
        faces[:1],
        [abs(_dot(rows[0], _cross(*rows[1:])))] if len(rows) == 3 else [],
    )
    area = sizes[len(rows) - 1][0]  # length, area or volume of the periodic directions
    if area < 1e-6 * math.prod(lengths):
        return "cell is singular: its vectors are not independent"
    if faces and min(faces) < MIN_FACE:
        return f"a face of the cell is smaller than {MIN_FACE:g} Å²"
    if structure.periodic and area < MIN_VOLUME_PER_ATOM * structure.n_atoms:
        return (
            f"volume per atom is {area / structure.n_atoms:.3g} Å³ (expected at least "
            f"{MIN_VOLUME_PER_ATOM:g})"
        )
    return None


def _cross(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float]:
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def weight_fault(structure: Structure) -> str | None:
    """What is wrong with a weight, as a phrase; None where all can be used."""
    weights = (structure.weight, *structure.weights.values())
    if all(math.isfinite(weight) and weight >= 0 for weight in weights):
        return None
    return "a configuration weight is negative or not finite"


def _first_row(mask: NDArray[np.bool_]) -> int:
    return int(np.nonzero(mask.any(axis=1))[0][0])


def _first_bad_number(numbers: NDArray[np.int64]) -> int:
    return int(numbers[(numbers < 1) | (numbers >= len(chemical_symbols))][0])


def _directions(pbc: tuple[bool, bool, bool]) -> str:
    return "".join(name for name, periodic in zip("abc", pbc, strict=True) if periodic)
