"""One structure to a few numbers, and the numbers of many structures as columns."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from ase.data import covalent_radii
from numpy.typing import NDArray

from dataloader.neighbors import MAX_NEIGHBORS, Graph, GraphFault, build_graph
from dataloader.packed.duplicates import fingerprint, hashed
from dataloader.structure import Structure

Level = Literal["error", "warning", "note"]
MAX_Z = 119
SHOWN = 5
UNBALANCED = 1e-3  # of a sum of unit vectors that fall off with the distance


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the table."""

    level: Level
    check: str
    text: str
    data: str = ""  # which set
    factor: float | None = None
    keys: tuple[str, ...] = ()  # of the first structures that show it


class Looked(NamedTuple):
    """The numbers of one structure."""

    fingerprint: int
    energy: float  # NaN where there is none
    force_square: float  # mean over components; NaN
    max_force: float
    zero_forces: bool  # every component of several atoms, and no symmetry says so
    trace: float  # of the stress, over 3, eV/Å³; NaN
    max_stress: float
    volume: float  # per atom, Å³; NaN
    box: float  # Å³ per atom of the cell of a structure without periodic directions; NaN
    closest: float  # smallest distance over the sum of covalent radii; inf
    lonely: int  # atoms without a neighbour within the cutoff
    n_edges: int
    fault: str
    head: str  # "" where the structure names none
    charge: float  # 0 where the record has none
    spin: float
    weightless_energy: bool  # of weight 0, which is not judged
    weightless_forces: bool


@dataclass(frozen=True, kw_only=True)
class Set:
    """The structures of one role that were looked at, or those of one head among them."""

    name: str
    total: int  # structures there are
    names: Callable[[int], str]
    looked: Mapping[str, NDArray[Any]]  # the columns of Looked
    counts: NDArray[np.uint16]  # (n, MAX_Z), atoms of each element
    files: NDArray[np.int64]  # (n,), number of the file each structure is from
    sampled: Sequence[Structure] = field(default_factory=tuple)  # a few, for what needs positions

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def n_atoms(self) -> NDArray[np.float64]:
        """Atoms of each structure."""
        return self.counts.sum(axis=1, dtype=np.float64)

    @property
    def fractions(self) -> NDArray[np.float64]:
        """Share of each element in each structure, (n, MAX_Z)."""
        return self.counts / self.n_atoms[:, None]

    def keys(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> tuple[str, ...]:
        """Names of the first of these structures."""
        numbers = np.nonzero(rows)[0] if rows.dtype == bool else rows
        return tuple(self.names(int(row)) for row in numbers[:SHOWN])

    def part(self, rows: NDArray[np.bool_], name: str) -> "Set":
        """The structures where the mask is True, under a name of their own; ``sampled`` stays."""
        numbers = np.nonzero(rows)[0]
        return dataclasses.replace(
            self,
            name=name,
            total=len(numbers),
            names=lambda row: self.names(int(numbers[row])),
            looked={column: values[rows] for column, values in self.looked.items()},
            counts=self.counts[rows],
            files=self.files[rows],
        )

    def by_head(self, default: str) -> dict[str, "Set"]:
        """The structures of each head; those that name none are of the default one.

        A set of one head keeps its name, of several each has ``, head <name>`` behind it.
        """
        heads = np.where(self.looked["head"] == "", default, self.looked["head"])
        names = list(dict.fromkeys(heads.tolist()))
        if len(names) == 1:
            return {names[0]: self}
        parts = {}
        for head in names:
            part = self.part(heads == head, f"{self.name}, head {head}")
            sampled = [
                structure for structure in self.sampled if (structure.head or default) == head
            ]
            parts[head] = dataclasses.replace(part, sampled=sampled)
        return parts


def look(structure: Structure, r_max: float, max_neighbors: int = MAX_NEIGHBORS) -> Looked:
    """The numbers of one structure; neighbours are those within ``r_max`` (Å), more than so
    many per atom a fault.
    """
    nan = float("nan")
    closest = float("inf")
    lonely = 0
    n_edges = 0
    fault = ""
    balanced = True
    try:
        graph = build_graph(structure, r_max, max_neighbors)
        n_edges = graph.n_edges
        lonely = structure.n_atoms - len(np.unique(graph.receivers)) if structure.n_atoms > 1 else 0
        if n_edges:
            closest, balanced = _distances(structure, graph, r_max)
    except GraphFault as error:
        fault = str(error)
    known = structure.taught()
    forces = known.forces
    stress = known.stress
    # a force of 10²⁰⁰ eV/Å is reported as what it is, infinite when squared
    with np.errstate(over="ignore"):
        squares = None if forces is None else np.square(forces).sum(axis=1)  # (n_atoms,), (eV/Å)²
    return Looked(
        fingerprint=_fingerprint(structure),
        energy=nan if known.energy is None else known.energy,
        force_square=nan if squares is None else float(squares.mean()) / 3,
        max_force=nan if squares is None else float(np.sqrt(squares.max())),
        zero_forces=forces is not None
        and structure.n_atoms > 1
        and not balanced
        and not forces.any(),
        trace=nan if stress is None else float(np.trace(stress)) / 3,
        max_stress=nan if stress is None else float(np.abs(stress).max()),
        volume=abs(float(np.linalg.det(structure.cell))) / structure.n_atoms
        if structure.periodic
        else nan,
        box=abs(float(np.linalg.det(structure.cell))) / structure.n_atoms
        if not any(structure.pbc) and structure.n_atoms > 1
        else nan,
        closest=closest,
        lonely=lonely,
        n_edges=n_edges,
        fault=fault,
        head=structure.head or "",
        charge=structure.charge or 0.0,
        spin=structure.spin or 0.0,
        weightless_energy=known.energy is None and structure.energy is not None,
        weightless_forces=forces is None and structure.forces is not None,
    )


def _distances(structure: Structure, graph: Graph, r_max: float) -> tuple[float, bool]:
    """Smallest distance over covalent radii; whether every atom's neighbours pull it to no
    side, as in a crystal.
    """
    vectors = (
        graph.positions[graph.receivers]
        - graph.positions[graph.senders]
        + graph.shifts @ structure.cell
    )
    lengths = np.linalg.norm(vectors, axis=1)
    radii = covalent_radii[structure.atomic_numbers]
    # a shell at the cutoff counts not
    strengths = radii[graph.senders] * np.exp(-lengths) * (1 - lengths / r_max) ** 2
    pulls = np.zeros((structure.n_atoms, 3))
    np.add.at(pulls, graph.receivers, vectors * (strengths / lengths)[:, None])
    closest = float((lengths / (radii[graph.senders] + radii[graph.receivers])).min())
    return closest, bool(np.abs(pulls).max() < UNBALANCED)


def _fingerprint(structure: Structure) -> int:
    """A hash of 64 bits of the geometry, and of charge and spin where the record has them."""
    states = structure.charge or 0.0, structure.spin or 0.0
    geometry = fingerprint(structure)
    return hashed(f"{geometry}{states}".encode()) if any(states) else geometry


def counts_of(structure: Structure) -> NDArray[np.uint16]:
    """Atoms of each element, (MAX_Z,)."""
    return np.bincount(structure.atomic_numbers, minlength=MAX_Z).astype(np.uint16)
