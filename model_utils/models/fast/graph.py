"""What the fast step needs of a batch besides its arrays: orders of atoms and
edges, made once per batch.

Atoms are sorted by species, so that all atoms of one element are a slice and no one-hot vector
is ever multiplied. Directed edges are sorted by receiver, then sender (CSR), so that sums over
neighbours are sums over rows; senders of one element are then neighbours too (the *segments* of
the first layer). Every directed edge has its reverse in the list, of opposite vector: radial
functions, path weights and, up to the sign (−1)^l, spherical harmonics are the same for both
and are computed once per undirected *pair*. A sum over the edges that leave an atom is a sum
over its row of reverse edges.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dataloader.batch import Batch
from model_utils.models.fast.gather import Listing
from model_utils.models.fast.orders import orders_of

# atoms that cost as much as one more tile: a product's matrices are read for each tile
TILE_COST = 32


@dataclass(frozen=True, kw_only=True)
class BatchGraph:
    """Orders of one batch; "atom k" below is the k-th in species order, except where the
    batch's order is named.
    """

    n_atoms: int
    order: Tensor  # (n_atoms,), the batch's index of atom k
    rank: Tensor  # (n_atoms,), its inverse: k of the batch's atoms
    # (n_present,), the elements that occur, as indices into the model's atomic_numbers
    present: Tensor
    species: Tensor  # (n_atoms,), index into ``present``, ascending
    species_ptr: Tensor  # (n_present + 1,), first atom of each element
    species_bounds: tuple[int, ...]  # what species_ptr holds, on the host: bounds of slices
    structure: Tensor  # (n_atoms,)
    head: Tensor  # (n_atoms,)
    # (n_pairs,), the batch's index of the directed edge that gives the pair its vector
    pair_edge: Tensor
    pair_receiver: Tensor  # (n_pairs,), the batch's index of that edge's atoms
    pair_sender: Tensor
    row_ptr: Tensor  # (n_atoms + 1,), first edge of each receiver
    sender: Tensor  # (n_edges,), int32
    pair: Tensor  # (n_edges,), int32
    flipped: Tensor  # (n_edges,), int8: 1 where the edge runs against its pair's vector
    reverse: Tensor  # (n_edges,), int32, position of the reverse edge
    segment: Tensor  # (n_segments,), receiver times n_present plus the element of the senders
    # (n_segments + 1,), first edge of each run of one receiver and one element of senders
    segment_ptr: Tensor
    dense_segments: bool  # every atom has a segment of every element, some of them empty
    row_width: int  # edges of the longest row, at least 1
    segment_width: int  # edges of the longest segment, at least 1
    structure_ptr: Tensor  # (n_structures + 1,), first atom of each structure in the batch's order
    structure_width: int  # atoms of the largest structure
    directed: bool = False  # every edge is a pair of its own, as in ``graph_views.directed``
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

    @cached_property
    def tiles(self) -> "Tiles":
        """Atoms of one element each in pieces of one length, for plain torch."""
        return Tiles.of(self.species_bounds, self.species, self.species_ptr)

    @cached_property
    def segments_of_atoms(self) -> Listing:
        """Atoms as rows and segments as slots."""
        atoms = torch.arange(self.n_atoms + 1, device=self.sender.device)
        segments = torch.arange(self.n_segments, device=self.sender.device)
        return Listing(self.segment_atom, segments, torch.searchsorted(self.segment_atom, atoms))

    @cached_property
    def places_of_edges(self) -> Tensor:
        """The place of every edge in lists of the edges of each pair, the one along
        the pair's vector first.
        """
        return self._edges_each * self.pair.long() + self.flipped.long()

    @cached_property
    def edges_of_pairs(self) -> Tensor:
        """Where the edges of each pair begin in such lists, (n_pairs + 1,)."""
        return self._edges_each * torch.arange(self.n_pairs + 1, device=self.pair.device)

    @property
    def _edges_each(self) -> int:
        """Edges of a pair."""
        return 1 if self.directed else 2

    @cached_property
    def in_order(self) -> Listing:
        """Atoms in the batch's order as rows, in species order as slots."""
        return Listing(
            self.order, self.rank, torch.arange(self.n_atoms + 1, device=self.order.device)
        )

    @cached_property
    def structures(self) -> "Places":
        """The atoms of each structure padded to one length, for plain torch."""
        return Places.of(self)


@dataclass(frozen=True, kw_only=True)
class Slots:
    """Rows of edges as a table (n_rows, width), flat; what is empty shows pair 0 and sender 0."""

    width: int
    # (n_rows, width), −1 for edges that run against their pair's vector, 0 where empty
    sign: Tensor
    of_pair: Listing  # pairs as rows
    of_sender: Listing  # senders as rows

    @classmethod
    def of(cls, graph: BatchGraph, pointer: Tensor, width: int) -> "Slots":
        """The table of rows that begin at ``pointer``, of which the longest has ``width`` edges."""
        n_rows = len(pointer) - 1
        flipped = graph.flipped.long()
        edge = torch.arange(graph.n_edges, device=pointer.device)
        row = _rows(pointer, graph.n_edges)
        slot = row * width + edge - pointer[row]
        size = n_rows * width
        pair = slot.new_zeros(size)
        pair[slot] = graph.pair.long()
        sender = slot.new_zeros(size)
        sender[slot] = graph.sender.long()
        sign = slot.new_zeros(size)
        sign[slot] = 1 - 2 * flipped
        of_pair = slot.new_empty(graph.n_edges)
        of_pair[graph.places_of_edges] = slot
        return cls(
            width=width,
            sign=sign.view(n_rows, width),
            of_pair=Listing(pair, of_pair, graph.edges_of_pairs),
            of_sender=Listing(sender, slot[graph.reverse.long()], graph.row_ptr),
        )


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """Atoms in species order cut into tiles of ``width``, none of which has atoms of two
    elements; some are not full.

    What is multiplied by a matrix per element is one batched product over tiles, however
    many elements there are.
    """

    width: int
    n_tiles: int
    slot: Tensor  # (n_atoms,), the place of every atom in its tile
    of_element: Listing  # elements as rows, tiles as slots

    @classmethod
    def of(cls, bounds: tuple[int, ...], species: Tensor, species_ptr: Tensor) -> "Tiles":
        """The tiles of atoms sorted by species; ``bounds`` is what
        ``species_ptr`` holds, on the host.
        """
        counts = np.diff(bounds)
        width = tile_width(counts)
        n_tiles = int((-(-counts // width)).sum())
        per_element = (species_ptr.diff() + (width - 1)).div(width, rounding_mode="floor")
        first = torch.cat([per_element.new_zeros(1), per_element.cumsum(0)])
        within = torch.arange(bounds[-1], device=species.device) - species_ptr[species]
        elements = torch.arange(len(counts), device=species.device)
        element = torch.repeat_interleave(elements, per_element, output_size=n_tiles)
        tiles = torch.arange(n_tiles, device=species.device)
        return cls(
            width=width,
            n_tiles=n_tiles,
            slot=first[species] * width + within,
            of_element=Listing(element, tiles, first),
        )

    @property
    def n_slots(self) -> int:
        """Places of all tiles."""
        return self.n_tiles * self.width


def tile_width(counts: np.ndarray) -> int:
    """Atoms of a tile for which full and empty places and the tiles themselves cost least.

    Args:
        counts: (n_present,), atoms of each element, at least one.
    """
    pieces = np.arange(1, 9)
    widths = np.unique(-(-counts[:, None] // pieces))
    tiles = -(-counts // widths[:, None]).astype(np.int64)
    costs = tiles.sum(axis=1) * (widths + TILE_COST)
    return int(widths[costs.argmin()])


@dataclass(frozen=True, kw_only=True)
class Places:
    """The atoms of every structure as a table (n_structures, width), flat; what
    is empty shows atom 0.
    """

    is_atom: Tensor  # (n_structures, width), bool
    of_atom: Listing  # atoms in species order as rows

    @classmethod
    def of(cls, graph: BatchGraph) -> "Places":
        """The table of a batch's structures."""
        width = graph.structure_width
        begin = graph.structure_ptr[:-1].unsqueeze(1)
        place = begin + torch.arange(width, device=begin.device)
        is_atom = place < graph.structure_ptr[1:].unsqueeze(1)
        atom = graph.rank[place.clamp(max=graph.n_atoms - 1)]
        slot = graph.structure * width + graph.order - graph.structure_ptr[graph.structure]
        one_each = torch.arange(graph.n_atoms + 1, device=begin.device)
        return cls(is_atom=is_atom, of_atom=Listing(atom.view(-1), slot, one_each))


def _rows(pointer: Tensor, n_edges: int) -> Tensor:
    """The row of every edge, (n_edges,), of rows that begin at ``pointer``."""
    rows = torch.arange(len(pointer) - 1, device=pointer.device)
    return torch.repeat_interleave(rows, pointer.diff(), output_size=n_edges)


def graph_of(batch: Batch) -> BatchGraph:
    """The orders that a batch brings, or that are made now where it brings none, with the
    batch's arrays in them.

    Raises:
        ValueError: the neighbour list is not symmetric, or reaches across absurdly many cells.
    """
    orders: Any = dict(batch.orders or orders_of(batch))
    bounds = orders.pop("bounds")
    row_width, segment_width, structure_width, dense = orders.pop("host")
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
        structure_ptr=batch.ptr,
        structure_width=structure_width,
        **orders,
    )
