"""What the fast step needs of a batch besides its arrays: orders of atoms and edges, made once per batch.

Atoms are sorted by species, so that all atoms of one element are a slice and no one-hot vector is ever multiplied.
Directed edges are sorted by receiver, then sender (CSR), so that sums over neighbours are sums over rows; senders of
one element are then neighbours too (the *segments* of the first layer). Every directed edge has its reverse in the
list, of opposite vector: radial functions, path weights and, up to the sign (−1)^l, spherical harmonics are the same
for both and are computed once per undirected *pair*. A sum over the edges that leave an atom is a sum over its row of
reverse edges.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from dataloader.batch import Batch
from model_utils.models.fast.orders import orders_of


@dataclass(frozen=True, kw_only=True)
class BatchGraph:
    """Orders of one batch; "atom k" below is the k-th in species order, except where the batch's order is named."""

    n_atoms: int
    order: Tensor  # (n_atoms,), the batch's index of atom k
    rank: Tensor  # (n_atoms,), its inverse: k of the batch's atoms
    present: Tensor  # (n_present,), the elements that occur, as indices into the model's atomic_numbers
    species: Tensor  # (n_atoms,), index into ``present``, ascending
    species_ptr: Tensor  # (n_present + 1,), first atom of each element
    species_bounds: tuple[int, ...]  # what species_ptr holds, on the host: bounds of slices
    structure: Tensor  # (n_atoms,)
    head: Tensor  # (n_atoms,)
    pair_edge: Tensor  # (n_pairs,), the batch's index of the directed edge that gives the pair its vector
    pair_receiver: Tensor  # (n_pairs,), the batch's index of that edge's atoms
    pair_sender: Tensor
    row_ptr: Tensor  # (n_atoms + 1,), first edge of each receiver
    sender: Tensor  # (n_edges,), int32
    pair: Tensor  # (n_edges,), int32
    flipped: Tensor  # (n_edges,), int8: 1 where the edge runs against its pair's vector
    reverse: Tensor  # (n_edges,), int32, position of the reverse edge
    segment: Tensor  # (n_segments,), receiver times n_present plus the element of the senders
    segment_ptr: Tensor  # (n_segments + 1,), first edge of each run of one receiver and one element of senders
    dense_segments: bool  # every atom has a segment of every element, some of them empty
    row_width: int  # edges of the longest row, at least 1
    segment_width: int  # edges of the longest segment, at least 1
    kept: dict[Any, Any] = field(default_factory=dict)  # what a backend made of these arrays

    @property
    def n_pairs(self) -> int:
        """Number of undirected pairs."""
        return self.pair_edge.shape[0]

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
        return self.segment.shape[0]

    @cached_property
    def segment_atom(self) -> Tensor:
        """The receiver of every segment, (n_segments,)."""
        return self.segment // self.n_present

    @cached_property
    def segment_species(self) -> Tensor:
        """The element of every segment's senders, (n_segments,), index into ``present``."""
        return self.segment % self.n_present

    @cached_property
    def rows(self) -> "Slots":
        """The rows of edges padded to one length, for plain torch."""
        return Slots.of(self, self.row_ptr, self.row_width)

    @cached_property
    def segments(self) -> "Slots":
        """The segments padded to one length, for plain torch."""
        return Slots.of(self, self.segment_ptr, self.segment_width)


@dataclass(frozen=True, kw_only=True)
class Slots:
    """Rows of edges as a table (n_rows, width); what is empty points one behind the last entry."""

    pair: Tensor  # (n_rows, width), n_pairs where empty
    sender: Tensor  # (n_rows, width), n_atoms where empty
    sign: Tensor  # (n_rows, width), −1 for edges that run against their pair's vector
    of_pair: Tensor  # (n_pairs, 2), the slots of a pair: two, or one in ``graph_views.directed``
    of_sender: Tensor  # (n_atoms, width of the rows), the slots whose sender is the atom

    @classmethod
    def of(cls, graph: BatchGraph, pointer: Tensor, width: int) -> "Slots":
        """The table of rows that begin at ``pointer``, of which the longest has ``width`` edges."""
        n_rows = len(pointer) - 1
        flipped = graph.flipped.long()
        edge = torch.arange(graph.n_edges, device=pointer.device)
        row = _rows(pointer, graph.n_edges)
        slot = row * width + edge - pointer[row]
        size = n_rows * width
        pair = slot.new_full((size,), graph.n_pairs)
        pair[slot] = graph.pair.long()
        sender = slot.new_full((size,), graph.n_atoms)
        sender[slot] = graph.sender.long()
        sign = slot.new_ones(size)
        sign[slot] = 1 - 2 * flipped
        of_pair = slot.new_full((graph.n_pairs, 2), size)
        of_pair[graph.pair.long(), flipped] = slot
        receiver = _rows(graph.row_ptr, graph.n_edges)
        of_sender = slot.new_full((graph.n_atoms, graph.row_width), size)
        of_sender[receiver, edge - graph.row_ptr[receiver]] = slot[graph.reverse.long()]
        return cls(
            pair=pair.view(n_rows, width),
            sender=sender.view(n_rows, width),
            sign=sign.view(n_rows, width),
            of_pair=of_pair,
            of_sender=of_sender,
        )


def _rows(pointer: Tensor, n_edges: int) -> Tensor:
    """The row of every edge, (n_edges,), of rows that begin at ``pointer``."""
    rows = torch.arange(len(pointer) - 1, device=pointer.device)
    return torch.repeat_interleave(rows, pointer.diff(), output_size=n_edges)


def graph_of(batch: Batch) -> BatchGraph:
    """The orders that a batch brings, or that are made now where it brings none, with the batch's arrays in them.

    Raises:
        ValueError: the neighbour list is not symmetric, or reaches across absurdly many cells.
    """
    orders: Any = dict(batch.orders or orders_of(batch))
    bounds = orders.pop("bounds")
    row_width, segment_width, dense = orders.pop("host")
    structure = batch.structure[orders["order"]]
    return BatchGraph(
        n_atoms=batch.n_atoms,
        species_bounds=bounds,
        structure=structure,
        head=batch.head[structure],
        pair_receiver=batch.receivers[orders["pair_edge"]],
        pair_sender=batch.senders[orders["pair_edge"]],
        dense_segments=bool(dense),
        row_width=row_width,
        segment_width=segment_width,
        **orders,
    )
