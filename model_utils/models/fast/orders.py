"""Orders of a batch, made by the loader where the batch is made and carried with it: nothing
within a step reads back.

What the orders are is said in ``graph``. Tensors go to the device with the batch; what the host
must know of them, bounds of slices and widths of tables, stays on the host as whole numbers.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from dataloader.batch import Batch

Orders = Mapping[str, Tensor | tuple[int, ...]]


def prepared(batch: Batch) -> Batch:
    """Add the orders to a batch, in the loader's workers.

    Raises:
        ValueError: the neighbour list is not symmetric, or reaches across absurdly many cells.
    """
    return replace(batch, orders=orders_of(batch))


def orders_of(batch: Batch) -> Orders:
    """The orders of a batch, on its device; on a GPU this waits some ten times, so it belongs
    before the copy there.

    Raises:
        ValueError: the neighbour list is not symmetric, or reaches across absurdly many cells.
    """
    atoms, rank, bounds = _atoms(batch)
    edges, receiver, sender = _edges(batch, atoms["order"], rank)
    segments, dense = _segments(
        receiver, atoms["species"][sender], batch.n_atoms, len(atoms["present"])
    )
    row_ptr = torch.searchsorted(receiver, torch.arange(batch.n_atoms + 1, device=receiver.device))
    row_width = _widest(row_ptr)
    segment_width = _widest(segments["segment_ptr"])
    structure_width = _widest(batch.ptr)
    on_host = {"bounds": bounds, "host": (row_width, segment_width, structure_width, dense)}
    return {**atoms, "rank": rank, **edges, "row_ptr": row_ptr, **segments, **on_host}


def _atoms(batch: Batch) -> tuple[dict[str, Tensor], Tensor, tuple[int, ...]]:
    """Atoms by species; the rank of every atom of the batch; the first atom of
    each species, on the host.
    """
    order = torch.argsort(batch.species, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(batch.n_atoms, device=order.device)
    present, species, counts = torch.unique_consecutive(
        batch.species[order], return_inverse=True, return_counts=True
    )
    species_ptr = _pointer(counts)
    atoms = {"order": order, "present": present, "species": species, "species_ptr": species_ptr}
    return atoms, rank, tuple(species_ptr.tolist())


def _edges(batch: Batch, order: Tensor, rank: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Directed edges by receiver and sender with pairs and reverses; then their
    receivers and senders alone.
    """
    n_atoms = batch.n_atoms
    n_edges = batch.n_edges
    receiver = rank[batch.receivers]
    sender = rank[batch.senders]
    code, codes = _shift_codes(batch.cell_shifts)
    if n_atoms**2 * codes >= 2**63:
        raise ValueError(
            "a cell is so skewed that its edges cannot be numbered: reduce it, or "
            "use --step reference"
        )
    key = (receiver * n_atoms + sender) * codes + code
    mirrored = (sender * n_atoms + receiver) * codes + (codes - 1 - code)
    key, edge_order = key.sort()
    mirrored = mirrored[edge_order]
    receiver = receiver[edge_order]
    sender = sender[edge_order]
    reverse = torch.searchsorted(key, mirrored)
    if n_edges and not bool((key[reverse.clamp(max=n_edges - 1)] == mirrored).all()):
        raise ValueError(
            "the neighbour list is not symmetric: an edge has no reverse of opposite shift"
        )
    edge = torch.arange(n_edges, device=key.device)
    # of the two edges of a pair the one whose receiver comes first in the batch gives the vector;
    # pairs are numbered in the order of the batch: kernels that go through it meet both edges of a
    # pair within one structure
    flipped = (order[receiver] > order[sender]) | ((receiver == sender) & (reverse < edge))
    gives_vector = torch.zeros(n_edges, dtype=torch.bool, device=key.device)
    gives_vector[edge_order[~flipped]] = True
    pair_edge = gives_vector.nonzero().squeeze(1)
    numbered = (gives_vector.cumsum(0) - 1)[edge_order]
    pair = torch.where(flipped, numbered[reverse], numbered) if n_edges else numbered
    edges = {
        "pair_edge": pair_edge,
        "sender": sender.int(),
        "pair": pair.int(),
        "reverse": reverse.int(),
        "flipped": flipped.to(torch.int8),
    }
    return edges, receiver, sender


def _segments(
    receiver: Tensor, species_of_sender: Tensor, n_atoms: int, n_present: int
) -> tuple[dict[str, Tensor], bool]:
    """Runs of edges of one receiver and one element of senders, and whether every atom
    has one of every element.
    """
    key = receiver * n_present + species_of_sender
    occupied, sizes = torch.unique_consecutive(key, return_counts=True)
    dense = n_atoms * n_present <= 2 * len(occupied) or len(key) == 0
    if dense:
        occupied = torch.arange(n_atoms * n_present, device=key.device)
        segment_ptr = torch.searchsorted(
            key, torch.arange(n_atoms * n_present + 1, device=key.device)
        )
    else:
        segment_ptr = _pointer(sizes)
    return {"segment": occupied, "segment_ptr": segment_ptr}, dense


def _pointer(counts: Tensor) -> Tensor:
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _widest(pointer: Tensor) -> int:
    """Entries of the longest row, at least one."""
    length = pointer.diff()
    return max(int(length.max()) if len(length) else 0, 1)


def _shift_codes(shifts: Tensor) -> tuple[Tensor, int]:
    """A number per lattice shift below the count that is returned too; that of the opposite
    shift is count − 1 − it.
    """
    if len(shifts) == 0:
        return shifts.new_zeros(0, dtype=torch.int64), 1
    largest = shifts.abs().amax(dim=0).long()
    x, y, z = (shifts + largest).unbind(1)
    bases = [2 * n + 1 for n in largest.tolist()]
    codes = (x * bases[1] + y) * bases[2] + z
    return codes, bases[0] * bases[1] * bases[2]
