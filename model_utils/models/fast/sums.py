"""Sums over the neighbours of an atom and over the atoms of a structure, in
one order on any device.
"""

from torch import Tensor

from model_utils.models.fast.gather import adds_in_one_order, gather
from model_utils.models.fast.graph import BatchGraph


def sums_over_neighbors(graph: BatchGraph, of_pair: Tensor) -> Tensor:
    """Σ_{j → i} x(ij) of what both edges of a pair have alike, (n_pairs,
    1); returns (n_atoms, 1).
    """
    slots = graph.rows
    values = gather(of_pair, slots.of_pair).view(slots.sign.shape)
    return (values * slots.sign.abs()).sum(dim=1, keepdim=True)


def sums_over_structures(graph: BatchGraph, of_atom: Tensor) -> Tensor:
    """Sums over the atoms of every structure; (n_atoms,) in species order,
    returns (n_structures,).
    """
    n_structures = graph.structure_ptr.shape[0] - 1
    if adds_in_one_order(of_atom):
        return of_atom.new_zeros(n_structures).index_add(0, graph.structure, of_atom)
    places = graph.structures
    values = gather(of_atom, places.of_atom).view(places.is_atom.shape)
    return (values * places.is_atom).sum(dim=1)
