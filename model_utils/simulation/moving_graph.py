"""Neighbour lists of atoms that move: made anew only when an atom has gone far enough
to meet new neighbours.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dataloader.neighbors import (
    MAX_NEIGHBORS,
    MIN_DISTANCE,
    Graph,
    build_graph,
    edge_order,
    refuse_close,
    stored_edges,
)
from dataloader.structure import Edges, Structure


class MovingGraph:
    """The graph of one structure whose atoms move from call to call.

    Pairs are kept up to r_max + skin. While no atom has moved by more than half the skin, nothing
    else can have come within r_max, and only those pairs are measured. What is given depends on the
    structure alone, to the last bit, and not on when the list was made: positions are not wrapped,
    and edges have one order. Where the edges are those of the call before, their arrays are the
    same objects, so that what was made of them can be used again.

    Args:
        r_max: cutoff of the network, Å.
        skin: beyond it, Å; 0 makes every list anew.
        max_neighbors: as in ``build_graph``.
    """

    def __init__(self, r_max: float, skin: float, max_neighbors: int = MAX_NEIGHBORS) -> None:
        self.r_max = r_max
        self.skin = skin
        # edges beyond r_max are more than the network will see: the limit is for these alone
        self.max_neighbors = int(max_neighbors * (1.0 + skin / r_max) ** 3) + 1
        self.n_lists = 0  # made so far
        self._made_for: Structure | None = None
        none = np.zeros(0, np.int32)
        self._candidates = Edges(0.0, none, none, np.zeros((0, 3), np.int16))
        # (n_candidates, 3), Å, lattice vectors that an edge crosses
        self._offsets = np.zeros((0, 3))
        self._mask = np.zeros(0, dtype=bool)
        self._latest: Graph | None = None

    def of(self, structure: Structure) -> Graph:
        """Edges shorter than r_max, sorted by receiver, sender, shift, and positions around
        their mean, not wrapped.

        Raises:
            GraphFault: two atoms lie in one place, or there are absurdly many neighbours.
        """
        if self._must_be_made_anew(structure):
            self._make(structure)
        candidates = self._candidates
        positions = structure.positions
        vectors = positions[candidates.receivers] - positions[candidates.senders] + self._offsets
        squares = np.einsum("ij,ij->i", vectors, vectors)
        if len(squares) and squares.min() < MIN_DISTANCE**2:
            refuse_close(candidates.receivers, candidates.senders, np.sqrt(squares))
        mask = squares < self.r_max**2
        if self._latest is None or not np.array_equal(mask, self._mask):
            self._mask = mask
            edges = (candidates.senders[mask], candidates.receivers[mask], candidates.shifts[mask])
            self._latest = Graph(positions, *edges)
        return replace(self._latest, positions=positions - positions.mean(axis=0))

    def _must_be_made_anew(self, structure: Structure) -> bool:
        before = self._made_for
        if before is None or before.pbc != structure.pbc or before.n_atoms != structure.n_atoms:
            return True
        if not np.array_equal(before.atomic_numbers, structure.atomic_numbers):
            return True
        if not np.array_equal(before.cell, structure.cell):
            return True
        moved: NDArray[np.float64] = structure.positions - before.positions
        return bool(np.einsum("ij,ij->i", moved, moved).max() >= (0.5 * self.skin) ** 2)

    def _make(self, structure: Structure) -> None:
        reach = self.r_max + self.skin
        edges = stored_edges(structure, build_graph(structure, reach, self.max_neighbors), reach)
        order = edge_order(edges.senders, edges.receivers, edges.shifts, structure.n_atoms)
        self._candidates = Edges(
            reach, edges.senders[order], edges.receivers[order], edges.shifts[order]
        )
        self._offsets = self._candidates.shifts @ structure.cell
        self._made_for = replace(structure, positions=structure.positions.copy())
        self._latest = None
        self.n_lists += 1
