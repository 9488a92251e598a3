"""Neighbour lists of atoms that move: made anew only when an atom has gone far enough to meet new neighbours."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dataloader.neighbors import MAX_NEIGHBORS, MIN_DISTANCE, Graph, build_graph, refuse_close
from dataloader.structure import Structure


class MovingGraph:
    """The graph of one structure whose atoms move from call to call.

    Pairs are kept up to r_max + skin. While no atom has moved by more than half the skin, nothing else can have come
    within r_max, and only those pairs are measured: the edges are those of a new list. Where they are also those of
    the call before, their arrays are the same objects, so that what was made of them can be used again.

    Args:
        r_max: cutoff of the network, Å.
        skin: beyond it, Å; 0 makes every list anew.
        max_neighbors: as in ``build_graph``.
    """

    def __init__(self, r_max: float, skin: float, max_neighbors: int = MAX_NEIGHBORS) -> None:
        self.r_max = r_max
        self.skin = skin
        self.max_neighbors = max_neighbors
        self.n_lists = 0  # made so far
        self._made_for: Structure | None = None
        self._candidates: Graph | None = None
        self._offsets = np.zeros((0, 3))  # (n_candidates, 3), Å, lattice vectors that an edge crosses
        self._mask = np.zeros(0, dtype=bool)
        self._latest: Graph | None = None

    def of(self, structure: Structure) -> Graph:
        """Edges shorter than r_max, as ``build_graph`` gives them.

        Positions are those of the structure up to a shift of single atoms by whole lattice vectors and of all by the
        same vector, to which the shifts of the edges belong.

        Raises:
            GraphFault: two atoms lie in one place, or there are absurdly many neighbours.
        """
        if self._must_be_made_anew(structure):
            self._make(structure)
        assert self._made_for is not None
        assert self._candidates is not None
        positions = self._candidates.positions + (structure.positions - self._made_for.positions)
        return self._within_cutoff(self._candidates, positions)

    def _must_be_made_anew(self, structure: Structure) -> bool:
        before = self._made_for
        if before is None or before.pbc != structure.pbc or before.n_atoms != structure.n_atoms:
            return True
        if not np.array_equal(before.atomic_numbers, structure.atomic_numbers):
            return True
        if not np.array_equal(before.cell, structure.cell):
            return True
        moved = structure.positions - before.positions
        return bool(np.einsum("ij,ij->i", moved, moved).max() >= (0.5 * self.skin) ** 2)

    def _make(self, structure: Structure) -> None:
        # edges beyond r_max are more than the network will see: the limit is for these alone
        wider = self.max_neighbors * (1.0 + self.skin / self.r_max) ** 3
        self._candidates = build_graph(structure, self.r_max + self.skin, int(wider) + 1)
        self._offsets = self._candidates.shifts @ structure.cell
        self._made_for = replace(structure, positions=structure.positions.copy())
        self._latest = None
        self.n_lists += 1

    def _within_cutoff(self, candidates: Graph, positions: NDArray[np.float64]) -> Graph:
        vectors = positions[candidates.receivers] - positions[candidates.senders] + self._offsets
        squares = np.einsum("ij,ij->i", vectors, vectors)
        if len(squares) and squares.min() < MIN_DISTANCE**2:
            refuse_close(candidates.receivers, candidates.senders, np.sqrt(squares))
        mask = squares < self.r_max**2
        if self._latest is None or not np.array_equal(mask, self._mask):
            self._mask = mask
            self._latest = Graph(
                positions, candidates.senders[mask], candidates.receivers[mask], candidates.shifts[mask]
            )
        return replace(self._latest, positions=positions)
