"""Orders of a batch, made by the loader where the batch is made and carried with it: nothing
within a step reads back.

What the orders are is said in ``graph``. Tensors go to the device with the batch; what the host
must know of them, bounds of slices and widths of tables, stays on the host as whole numbers.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dataloader.batch import Batch

Orders = Mapping[str, Tensor | tuple[int, ...]]
Array = NDArray[np.integer]
LARGEST = 2**63  # of the numbers by which edges are sorted


def prepared(batch: Batch) -> Batch:
    """Add the orders to a batch, in the loader's workers.

    Raises:
        ValueError: the neighbour list is not symmetric, or reaches across absurdly many cells.
    """
    return replace(batch, orders=orders_of(batch))


def orders_of(batch: Batch) -> Orders:
    """The orders of a batch, on its device. They are made on the host, by numpy, whose calls cost
    a third of torch's on arrays of this size: the batch of a GPU should bring them along.

    Raises:
        ValueError: the neighbour list is not symmetric, or reaches across absurdly many cells.
    """
    atoms, rank, bounds = _atoms(_on_host(batch.species))
    edges, receiver, sender = _edges(batch, atoms["order"], rank)
    segments, dense = _segments(
        receiver, atoms["species"][sender], batch.n_atoms, len(atoms["present"])
    )
    row_ptr = _first_of_each(receiver, batch.n_atoms)
    row_width = _widest(row_ptr)
    segment_width = _widest(segments["segment_ptr"])
    structure_width = _widest(_on_host(batch.ptr))
    arrays = {**atoms, "rank": rank, **edges, "row_ptr": row_ptr, **segments}
    device = batch.species.device
    tensors = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
    host = (row_width, segment_width, structure_width, dense)
    return {**tensors, "bounds": bounds, "host": host}


def _on_host(tensor: Tensor) -> Array:
    """A tensor's numbers, (n, …); on a GPU this waits."""
    array: Array = tensor.cpu().numpy()
    return array


def _atoms(of_atoms: Array) -> tuple[dict[str, Array], Array, tuple[int, ...]]:
    """Atoms by species; the rank of every atom of the batch; the first atom of
    each species.
    """
    order = np.argsort(of_atoms, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    present, species, counts = np.unique(of_atoms[order], return_inverse=True, return_counts=True)
    species_ptr = _pointer(counts)
    atoms = {"order": order, "present": present, "species": species, "species_ptr": species_ptr}
    return atoms, rank, tuple(species_ptr.tolist())


def _edges(batch: Batch, order: Array, rank: Array) -> tuple[dict[str, Array], Array, Array]:
    """Directed edges by receiver and sender with pairs and reverses; then their
    receivers and senders alone.
    """
    n_atoms = batch.n_atoms
    n_edges = batch.n_edges
    receiver = rank[_on_host(batch.receivers)]
    sender = rank[_on_host(batch.senders)]
    code, codes = _shift_codes(_on_host(batch.cell_shifts))
    if n_atoms**2 * codes >= LARGEST:
        raise ValueError(
            "a cell is so skewed that its edges cannot be numbered: reduce it, or "
            "use --step reference"
        )
    key = (receiver * n_atoms + sender) * codes + code
    mirrored = (sender * n_atoms + receiver) * codes + (codes - 1 - code)
    edge_order = np.argsort(key)
    key = key[edge_order]
    mirrored = mirrored[edge_order]
    receiver = receiver[edge_order]
    sender = sender[edge_order]
    reverse = np.searchsorted(key, mirrored)
    if n_edges and not np.array_equal(key[np.minimum(reverse, n_edges - 1)], mirrored):
        raise ValueError(
            "the neighbour list is not symmetric: an edge has no reverse of opposite shift"
        )
    # of the two edges of a pair the one whose receiver comes first in the batch gives the vector;
    # pairs are numbered in the order of the batch: kernels that go through it meet both edges of a
    # pair within one structure
    own_reverse = (receiver == sender) & (reverse < np.arange(n_edges))
    flipped = (order[receiver] > order[sender]) | own_reverse
    gives_vector = np.zeros(n_edges, dtype=bool)
    gives_vector[edge_order[~flipped]] = True
    numbered = (np.cumsum(gives_vector) - 1)[edge_order]
    edges = {
        "pair_edge": np.flatnonzero(gives_vector),
        "sender": sender.astype(np.int32),
        "pair": np.where(flipped, numbered[reverse], numbered).astype(np.int32),
        "reverse": reverse.astype(np.int32),
        "flipped": flipped.astype(np.int8),
    }
    return edges, receiver, sender


def _segments(
    receiver: Array, species_of_sender: Array, n_atoms: int, n_present: int
) -> tuple[dict[str, Array], bool]:
    """Runs of edges of one receiver and one element of senders, and whether every atom
    has one of every element.
    """
    key = receiver * n_present + species_of_sender
    begins = np.flatnonzero(np.diff(key, prepend=-1))  # sorted by receiver alone: runs, not sets
    dense = n_atoms * n_present <= 2 * len(begins) or len(key) == 0
    if dense:
        occupied = np.arange(n_atoms * n_present)
        return {
            "segment": occupied,
            "segment_ptr": _first_of_each(key, n_atoms * n_present),
        }, dense
    return {"segment": key[begins], "segment_ptr": np.append(begins, len(key))}, dense


def _first_of_each(sorted_numbers: Array, n: int) -> Array:
    """Where each of 0 to n − 1 begins among sorted numbers, and their end, (n + 1,)."""
    return np.searchsorted(sorted_numbers, np.arange(n + 1))


def _pointer(counts: Array) -> Array:
    return np.concatenate([[0], np.cumsum(counts)])


def _widest(pointer: Array) -> int:
    """Entries of the longest row, at least one."""
    return max(int(np.diff(pointer).max(initial=0)), 1)


def _shift_codes(shifts: Array) -> tuple[Array, int]:
    """A number per lattice shift below the count that is returned too; that of the opposite
    shift is count − 1 − it.
    """
    if len(shifts) == 0:
        return np.zeros(0, dtype=np.int64), 1
    largest = [int(n) for n in np.abs(shifts).max(axis=0)]
    x, y, z = (shifts[:, axis].astype(np.int64) + largest[axis] for axis in range(3))
    bases = [2 * n + 1 for n in largest]
    codes = (x * bases[1] + y) * bases[2] + z
    return codes, bases[0] * bases[1] * bases[2]
