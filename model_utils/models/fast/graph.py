"""What the fast step needs of a batch besides its arrays: orders of atoms and edges, made once per batch.

Atoms are sorted by species, so that all atoms of one element are a slice and no one-hot vector is ever multiplied.
Directed edges are sorted by receiver, then sender (CSR), so that sums over neighbours are sums over rows; senders of
one element are then neighbours too (the *segments* of the first layer). Every directed edge has its reverse in the
list, of opposite vector: radial functions, path weights and, up to the sign (−1)^l, spherical harmonics are the same
for both and are computed once per undirected *pair*. A sum over the edges that leave an atom is a sum over its row of
reverse edges.
"""

import ctypes
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from dataloader.batch import Batch
from model_utils.models.fast import kernels


@dataclass(frozen=True, kw_only=True)
class Graph:
    """Orders of one batch; "atom k" below is the k-th in species order, except where the batch's order is named."""

    n_atoms: int
    n_pairs: int
    order: Tensor  # (n_atoms,), the batch's index of atom k
    rank: Tensor  # (n_atoms,), its inverse: k of the batch's atoms
    present: Tensor  # (n_present,), the elements that occur, as indices into the model's atomic_numbers
    species: Tensor  # (n_atoms,), index into ``present``, ascending
    species_ptr: Tensor  # (n_present + 1,), first atom of each element
    species_bounds: tuple[int, ...]  # the same on the host
    structure: Tensor  # (n_atoms,)
    head: Tensor  # (n_atoms,)
    pair_edge: Tensor  # (n_pairs,), the batch's index of the directed edge that gives the pair its vector
    pair_receiver: Tensor  # (n_pairs,), the batch's index of that edge's atoms
    pair_sender: Tensor
    row_ptr: Tensor  # (n_atoms + 1,), first edge of each receiver
    receiver: Tensor  # (n_edges,)
    sender: Tensor  # (n_edges,)
    pair: Tensor  # (n_edges,)
    flipped: Tensor  # (n_edges,), bool: the edge runs against its pair's vector
    reverse: Tensor  # (n_edges,), position of the reverse edge
    segment_ptr: Tensor  # (n_segments + 1,), first edge of each run of one receiver and one element of senders
    segment_atom: Tensor  # (n_segments,), its receiver
    segment_species: Tensor  # (n_segments,), its senders' element, index into ``present``
    dense_segments: bool  # every atom has a segment of every element, some of them empty
    kept: dict[Any, Any] = field(default_factory=dict)  # tables that layers made for this batch

    @property
    def n_edges(self) -> int:
        """Number of directed edges."""
        return self.sender.shape[0]

    @property
    def n_present(self) -> int:
        """Number of elements that occur."""
        return self.present.shape[0]

    @property
    def n_segments(self) -> int:
        """Number of segments."""
        return self.segment_atom.shape[0]

    @cached_property
    def edges(self) -> kernels.Edges:
        """The rows of edges, for kernels."""
        tensors = [self.rank, self.order, self.row_ptr, self.sender.int(), self.pair.int(), self.flipped.to(torch.int8)]
        self.kept["edges"] = tensors
        return kernels.Edges(self.n_atoms, self.n_edges, self.n_pairs, *(t.data_ptr() for t in tensors))

    @cached_property
    def atoms(self) -> kernels.Atoms:
        """Atoms by element, for kernels."""
        return kernels.Atoms(self.n_atoms, self.n_present, self.species_ptr.data_ptr())

    def runs(self, odd: "ctypes.Array[ctypes.c_int8]") -> kernels.Segments:
        """The segments, for kernels."""
        if "runs" not in self.kept:
            edges = self.edges
            pointers = self.segment_ptr.data_ptr(), edges.pair, edges.flipped, ctypes.addressof(odd)
            self.kept["runs"] = kernels.Segments(self.n_segments, self.n_edges, *pointers), odd
        return self.kept["runs"][0]

    @cached_property
    def rows(self) -> "Slots":
        """The rows of edges padded to one length, for plain torch."""
        return Slots.of(self, self.row_ptr)

    @cached_property
    def segments(self) -> "Slots":
        """The segments padded to one length, for plain torch."""
        return Slots.of(self, self.segment_ptr)


@dataclass(frozen=True, kw_only=True)
class Slots:
    """Rows of edges as a table (n_rows, width); what is empty points one behind the last entry."""

    pair: Tensor  # (n_rows, width), n_pairs where empty
    sender: Tensor  # (n_rows, width), n_atoms where empty
    sign: Tensor  # (n_rows, width), −1 for edges that run against their pair's vector
    of_pair: Tensor  # (n_pairs, 2), the two slots of a pair
    of_sender: Tensor  # (n_atoms, width of the rows), the slots whose sender is the atom

    @classmethod
    def of(cls, graph: Graph, pointer: Tensor) -> "Slots":
        """The table of rows that begin at ``pointer``."""
        length = pointer.diff()
        n_rows, width = len(length), max(int(length.max()) if len(length) else 0, 1)
        edge = torch.arange(graph.n_edges, device=pointer.device)
        row = torch.repeat_interleave(torch.arange(n_rows, device=pointer.device), length, output_size=graph.n_edges)
        slot = row * width + edge - pointer[row]
        size = n_rows * width
        pair = slot.new_full((size,), graph.n_pairs)
        pair[slot] = graph.pair
        sender = slot.new_full((size,), graph.n_atoms)
        sender[slot] = graph.sender
        sign = slot.new_ones(size)
        sign[slot] = 1 - 2 * graph.flipped.long()
        of_pair = slot.new_empty((graph.n_pairs, 2))
        of_pair[graph.pair, graph.flipped.long()] = slot
        degree = graph.row_ptr.diff()
        widest = max(int(degree.max()) if len(degree) else 0, 1)
        of_sender = slot.new_full((graph.n_atoms, widest), size)
        of_sender[graph.receiver, edge - graph.row_ptr[graph.receiver]] = slot[graph.reverse]
        return cls(
            pair=pair.view(n_rows, width),
            sender=sender.view(n_rows, width),
            sign=sign.view(n_rows, width),
            of_pair=of_pair,
            of_sender=of_sender,
        )


def prepare(batch: Batch) -> Graph:
    """The orders of a batch, on its device.

    Raises:
        ValueError: the neighbour list is not symmetric, or reaches across absurdly many cells.
    """
    n_atoms, n_edges, device = batch.n_atoms, batch.n_edges, batch.species.device
    order = torch.argsort(batch.species, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(n_atoms, device=device)
    present, species, counts = torch.unique_consecutive(batch.species[order], return_inverse=True, return_counts=True)
    species_ptr = _pointer(counts)

    receiver, sender = rank[batch.receivers], rank[batch.senders]
    code, codes = _shift_codes(batch.cell_shifts)
    if n_atoms**2 * codes >= 2**63:
        raise ValueError("a cell is so skewed that its edges cannot be numbered: reduce it, or use --step reference")
    key = (receiver * n_atoms + sender) * codes + code
    mirrored = (sender * n_atoms + receiver) * codes + (codes - 1 - code)
    key, edge_order = key.sort()
    mirrored, receiver, sender = mirrored[edge_order], receiver[edge_order], sender[edge_order]
    reverse = torch.searchsorted(key, mirrored)
    if n_edges and not bool((key[reverse.clamp(max=n_edges - 1)] == mirrored).all()):
        raise ValueError("the neighbour list is not symmetric: an edge has no reverse of opposite shift")
    edge = torch.arange(n_edges, device=device)
    # of the two edges of a pair the one whose receiver comes first in the batch gives the vector; pairs are numbered
    # in the order of the batch: kernels that go through it meet both edges of a pair within one structure
    flipped = (order[receiver] > order[sender]) | ((receiver == sender) & (reverse < edge))
    gives_vector = torch.zeros(n_edges, dtype=torch.bool, device=device)
    gives_vector[edge_order[~flipped]] = True
    pair_edge = gives_vector.nonzero().squeeze(1)
    numbered = (gives_vector.cumsum(0) - 1)[edge_order]
    pair = torch.where(flipped, numbered[reverse], numbered) if n_edges else numbered

    n_present = present.shape[0]
    segment_key = receiver * n_present + species[sender]
    occupied, sizes = torch.unique_consecutive(segment_key, return_counts=True)
    dense = n_atoms * n_present <= 2 * len(occupied) or n_edges == 0
    if dense:
        occupied = torch.arange(n_atoms * n_present, device=device)
        segment_ptr = torch.searchsorted(segment_key, torch.arange(n_atoms * n_present + 1, device=device))
    else:
        segment_ptr = _pointer(sizes)
    structure = batch.structure[order]
    return Graph(
        n_atoms=n_atoms,
        n_pairs=len(pair_edge),
        order=order,
        rank=rank,
        present=present,
        species=species,
        species_ptr=species_ptr,
        species_bounds=tuple(species_ptr.tolist()),
        structure=structure,
        head=batch.head[structure],
        pair_edge=pair_edge,
        pair_receiver=batch.receivers[pair_edge],
        pair_sender=batch.senders[pair_edge],
        row_ptr=torch.searchsorted(receiver, torch.arange(n_atoms + 1, device=device)),
        receiver=receiver,
        sender=sender,
        pair=pair,
        flipped=flipped,
        reverse=reverse,
        segment_ptr=segment_ptr,
        segment_atom=occupied // n_present,
        segment_species=occupied % n_present,
        dense_segments=dense,
    )


def _pointer(counts: Tensor) -> Tensor:
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _shift_codes(shifts: Tensor) -> tuple[Tensor, int]:
    """A number per lattice shift below the count that is returned too; that of the opposite shift is count − 1 − it."""
    if len(shifts) == 0:
        return shifts.new_zeros(0, dtype=torch.int64), 1
    largest = shifts.abs().amax(dim=0).long()
    x, y, z = (shifts + largest).unbind(1)
    bases = [2 * n + 1 for n in largest.tolist()]
    return (x * bases[1] + y) * bases[2] + z, bases[0] * bases[1] * bases[2]
