"""Neighbour lists by vesin, in one canonical order, with the checks that need distances."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from vesin import NeighborList

from dataloader.structure import Edges, Structure

# Å; mace gives NaN for two atoms in one place and finite nonsense just beside it
MIN_DISTANCE = 0.1
MANY_ATOMS = 200  # from here on all pairs cost more than a neighbour list
# per atom of a structure, unless asked for more: at the usual cutoffs there are 20 to 150
MAX_NEIGHBORS = 500


class GraphFault(ValueError):
    """A structure whose neighbour list shows that it is broken; the reader adds file and frame."""


@dataclass(frozen=True, slots=True)
class Graph:
    """Directed edges of one structure, sorted by receiver, then sender, then shift.

    The vector of an edge is ``positions[receiver] - positions[sender] + shift @ cell``, mace's
    convention. Positions are wrapped into the cell and centred: an energy does not depend on it,
    and a float32 position close to zero is worth more digits than one 10⁵ Å away.
    """

    positions: NDArray[np.float64]  # (n_atoms, 3), Å
    senders: NDArray[np.int32]  # (n_edges,)
    receivers: NDArray[np.int32]  # (n_edges,)
    shifts: NDArray[np.int16]  # (n_edges, 3), whole lattice vectors

    @property
    def n_edges(self) -> int:
        """Number of directed edges."""
        return len(self.senders)


def build_graph(structure: Structure, r_max: float, max_neighbors: int = MAX_NEIGHBORS) -> Graph:
    """All directed edges shorter than ``r_max`` (Å).

    Raises:
        GraphFault: two atoms lie closer than ``MIN_DISTANCE``, or there are more than
            ``max_neighbors`` edges per atom in the mean over the structure, which is
            taken for a broken cell.
    """
    if structure.edges is not None and structure.edges.r_max >= r_max:
        return _from_stored(structure, structure.edges, r_max, max_neighbors)
    positions, _ = _wrapped(structure)
    i, j, shifts, distances = _pairs(structure, positions, r_max, "ijSd")
    _refuse_many(2 * len(i), structure.n_atoms, max_neighbors)
    refuse_close(i, j, distances)
    if len(shifts) and max(shifts.max(), -shifts.min()) > np.iinfo(np.int16).max:
        raise GraphFault(
            "the cell is so skewed that neighbours lie 32768 lattice vectors apart: reduce it"
        )
    senders = np.concatenate([i, j], dtype=np.int32)
    receivers = np.concatenate([j, i], dtype=np.int32)
    shifts = np.concatenate([shifts, -shifts], dtype=np.int16)
    order = edge_order(senders, receivers, shifts, structure.n_atoms)
    return Graph(positions, senders[order], receivers[order], shifts[order])


def closest_pair(structure: Structure, within: float = 1.0) -> tuple[float, int, int] | None:
    """Distance (Å) and indices of the closest two atoms no further apart than ``within``;
    None where there are none.
    """
    i, j, distances = _pairs(structure, structure.positions, within, "ijd")
    if len(distances) == 0:
        return None
    closest = int(distances.argmin())
    return float(distances[closest]), int(i[closest]), int(j[closest])


def count_edges(structure: Structure, r_max: float, max_neighbors: int = MAX_NEIGHBORS) -> int:
    """The number of edges of ``build_graph``, without putting them in order.

    Raises:
        GraphFault: as there.
    """
    if structure.edges is not None and structure.edges.r_max >= r_max:
        return build_graph(structure, r_max, max_neighbors).n_edges
    i, j, distances = _pairs(structure, _wrapped(structure)[0], r_max, "ijd")
    _refuse_many(2 * len(i), structure.n_atoms, max_neighbors)
    refuse_close(i, j, distances)
    return 2 * len(i)


def _pairs(
    structure: Structure, positions: NDArray[np.float64], r_max: float, quantities: str
) -> list[NDArray[Any]]:
    """Every pair of atoms or images once; to mirror them here takes half the time of
    asking for both directions.
    """
    neighbors = NeighborList(cutoff=r_max, full_list=False, n_threads=1)  # workers share the cores
    pairs: list[NDArray[Any]] = neighbors.compute(
        positions, structure.cell, structure.pbc, quantities
    )
    return pairs


def edge_order(
    senders: NDArray[np.integer],
    receivers: NDArray[np.integer],
    shifts: NDArray[np.integer],
    n_atoms: int,
) -> NDArray[np.intp]:
    """The order by receiver, then sender, then shift: no two edges agree in all, so
    that one number says it.
    """
    if len(senders) == 0:
        return np.zeros(0, dtype=np.intp)
    columns: NDArray[Any] = np.ascontiguousarray(shifts.T)  # (3, n_edges)
    low = columns.min(axis=1).tolist()
    spans = [
        high - least + 1 for high, least in zip(columns.max(axis=1).tolist(), low, strict=True)
    ]
    n_keys = n_atoms * n_atoms * spans[0] * spans[1] * spans[2]
    if n_keys >= 2**62:
        return np.lexsort((*columns[::-1], senders, receivers))
    key: Any = receivers.astype(np.int32 if n_keys < 2**31 else np.int64)
    key = key * n_atoms + senders
    for column, span, least in zip(columns, spans, low, strict=True):
        key = key * span + (column - least)
    return np.argsort(key)  # a third of the time of np.lexsort over five arrays


def surely_apart(
    positions: NDArray[np.float64], cells: NDArray[np.float64] | None
) -> NDArray[np.bool_]:
    """Which of several structures have no two atoms closer than ``MIN_DISTANCE``; True is
    certain, False is not.

    In fractional coordinates two such atoms differ, up to whole numbers, by less than the distance
    over the height of the cell, in every direction. Whole multiples of 2⁻³² of a cell vector wrap
    by themselves when they are subtracted: 4 µs for 54 atoms, where a neighbour list takes 60.

    Args:
        positions: (m, n_atoms, 3), Å, finite.
        cells: (m, 3, 3), Å, with a volume; None for structures that are not periodic.
    """
    m, n_atoms = positions.shape[:2]
    apart = np.zeros(m, dtype=bool)
    if not 0 < n_atoms < MANY_ATOMS:
        return apart
    if cells is None:
        low = positions.min(axis=1, keepdims=True)
        # twice the extent: nothing meets across its border
        box = 2.0 * (positions.max(axis=1) - low[:, 0] + 1.0)
        fractions = (positions - low) / box[:, None]
        limits = 1.001 * MIN_DISTANCE / box
    else:
        inverse = np.linalg.inv(cells)
        fractions = positions @ inverse
        limits = 1.001 * MIN_DISTANCE * np.sqrt(np.square(inverse).sum(axis=1))
    high = limits.max(axis=1) < 0.5  # heights of the cell; else an atom may be near its own image
    places = np.rint(fractions * 2.0**32).astype(np.int64).astype(np.uint32)
    reach = np.where(high[:, None], np.ceil(limits * 2.0**32) + 2, 0).astype(np.uint32)
    at_once = max(2**18 // n_atoms**2, 1)  # as many as stay in the cache
    for begin in range(0, m, at_once):
        part = slice(begin, begin + at_once)
        close = np.ones((len(places[part]), n_atoms, n_atoms), dtype=bool)
        for axis in range(3):
            column = places[part, :, axis]
            most = reach[part, axis][:, None]
            close &= ((column + most)[:, :, None] - column[:, None, :]) <= 2 * most[:, :, None]
        apart[part] = np.count_nonzero(close, axis=(1, 2)) == n_atoms  # each atom and itself
    return apart & high


def stored_edges(structure: Structure, graph: Graph, r_max: float) -> Edges:
    """The edges of a graph with shifts that belong to the positions as the structure has them."""
    whole = _wrapped(structure)[1]
    shifts = graph.shifts - (whole[graph.receivers] - whole[graph.senders])
    if len(shifts) and np.abs(shifts).max() > np.iinfo(np.int16).max:
        raise GraphFault("an atom lies 32768 lattice vectors outside its cell: wrap it")
    return Edges(r_max, graph.senders, graph.receivers, shifts.astype(np.int16))


def _from_stored(structure: Structure, edges: Edges, r_max: float, max_neighbors: int) -> Graph:
    """The graph out of stored edges, cut where the cutoff is shorter than theirs."""
    positions, whole = _wrapped(structure)
    senders = edges.senders
    receivers = edges.receivers
    shifts = edges.shifts + (whole[receivers] - whole[senders])
    vectors = positions[receivers] - positions[senders] + shifts @ structure.cell
    distances = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    refuse_close(senders, receivers, distances)
    if edges.r_max > r_max:
        near = distances < r_max
        senders = senders[near]
        receivers = receivers[near]
        shifts = shifts[near]
    _refuse_many(len(senders), structure.n_atoms, max_neighbors)
    order = edge_order(senders, receivers, shifts, structure.n_atoms)
    return Graph(positions, senders[order], receivers[order], shifts[order].astype(np.int16))


def _wrapped(structure: Structure) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Positions inside the cell and centred, and the whole lattice vectors
    (n_atoms, 3) taken from each.
    """
    positions = structure.positions
    whole = np.zeros((structure.n_atoms, 3), dtype=np.int64)
    if any(structure.pbc):
        pbc = np.array(structure.pbc)
        vectors = structure.cell[pbc]
        # 10 and 40 µs
        inverse = np.linalg.inv(vectors) if structure.periodic else np.linalg.pinv(vectors)
        taken = np.floor(positions @ inverse)
        positions = positions - taken @ vectors
        whole[:, pbc] = taken
    return positions - positions.mean(axis=0), whole


def too_many(n_edges: int, n_atoms: int, max_neighbors: int) -> str:
    """What is said of a structure with more edges than a whole cell is expected to have."""
    return (
        f"{n_edges / n_atoms:.0f} neighbours per atom, at most {max_neighbors} are expected: is "
        "the cell right? --max_neighbors allows more, and a shorter r_max gives fewer"
    )


def _refuse_many(n_edges: int, n_atoms: int, max_neighbors: int) -> None:
    if n_edges > max_neighbors * n_atoms:
        raise GraphFault(too_many(n_edges, n_atoms, max_neighbors))


def refuse_close(
    i: NDArray[np.integer], j: NDArray[np.integer], distances: NDArray[np.float64]
) -> None:
    """Raise GraphFault where two atoms of a pair are closer than
    ``MIN_DISTANCE``; distances in Å.
    """
    if len(distances) and distances.min() < MIN_DISTANCE:
        pair = int(distances.argmin())
        raise GraphFault(
            f"atoms {int(i[pair])} and {int(j[pair])} are {distances[pair]:.3g} Å apart "
            f"(expected at least {MIN_DISTANCE} Å)"
        )
