"""The orders of a batch read in another way: every directed edge as a pair of its own, all
atoms as of one element.

Kernels and plain torch take such a reading wherever they take a batch's own orders.
"""

from dataclasses import replace

import torch
from torch import Tensor

from model_utils.models.fast.gather import Listing, gather
from model_utils.models.fast.graph import BatchGraph


def directed(graph: BatchGraph) -> BatchGraph:
    """Edges that share nothing: for path weights that differ between the two edges of a pair.

    What belongs to a pair of the result, (n_edges, …), comes from ``of_edges``; nothing is flipped
    there, so harmonics have their signs already. Its ``pair_edge`` tells no direction.
    """
    if "directed" not in graph.kept:
        edges = torch.arange(graph.n_edges, device=graph.pair.device)
        graph.kept["directed"] = replace(
            graph,
            pair=edges.to(graph.pair.dtype),
            flipped=torch.zeros_like(graph.flipped),
            pair_edge=graph.pair_edge.index_select(0, graph.pair.long()),
            pair_receiver=graph.order.index_select(0, receivers(graph)),
            pair_sender=graph.order.index_select(0, graph.sender.long()),
            directed=True,
            kept={},
        )
    reading: BatchGraph = graph.kept["directed"]
    return reading


def receivers(graph: BatchGraph) -> Tensor:
    """The receiver of every directed edge, (n_edges,)."""
    atoms = torch.arange(graph.n_atoms, device=graph.row_ptr.device)
    return torch.repeat_interleave(atoms, graph.row_ptr.diff(), output_size=graph.n_edges)


def of_edges(graph: BatchGraph, x: Tensor) -> Tensor:
    """Rows of pairs (n_pairs, …) for every directed edge, (n_edges, …), in the order of
    the rows of receivers.
    """
    if "of_edges" not in graph.kept:
        edges = torch.empty_like(graph.places_of_edges)
        edges[graph.places_of_edges] = torch.arange(graph.n_edges, device=edges.device)
        graph.kept["of_edges"] = Listing(graph.pair.long(), edges, graph.edges_of_pairs)
    return gather(x, graph.kept["of_edges"])


def species_one_hot(graph: BatchGraph, dtype: torch.dtype) -> Tensor:
    """Which elements a directed edge joins, (n_edges, 2 n_present): its
    sender's, then its receiver's.
    """
    key = ("species_one_hot", dtype)
    if key not in graph.kept:
        columns = torch.arange(graph.n_present, device=graph.species.device)
        ends = (graph.sender.long(), receivers(graph))
        graph.kept[key] = torch.cat(
            [graph.species[end].unsqueeze(1) == columns for end in ends], dim=1
        ).to(dtype)
    table: Tensor = graph.kept[key]
    return table


def of_one_element(graph: BatchGraph) -> BatchGraph:
    """All atoms as of one element: for products whose weights do not depend on it."""
    if "of_one_element" not in graph.kept:
        ends = graph.species_ptr
        graph.kept["of_one_element"] = replace(
            graph,
            present=torch.zeros_like(ends[:1]),
            species=torch.zeros_like(graph.species),
            species_ptr=torch.stack([ends[0], ends[-1]]),
            species_bounds=(0, graph.n_atoms),
            kept={},
        )
    reading: BatchGraph = graph.kept["of_one_element"]
    return reading
