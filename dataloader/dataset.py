"""A data set as the loop sees it: structures by number over all its sources, their graphs, and batches of them."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from dataloader.batch import Batch, ModelFacts, collate
from dataloader.errors import InputError
from dataloader.neighbors import Graph, GraphFault, build_graph
from dataloader.packing import epoch_order
from dataloader.sources import Source
from dataloader.structure import Structure, symbols

CACHED_EDGES = 20_000_000  # 14 bytes each; beyond it graphs are built again every epoch, 0.3 ms for 54 atoms


class Dataset:
    """Structures of one or several sources that the model can take.

    Args:
        sources: opened files.
        facts: of the model.
        dtype: working precision of the batches.
        elements: atomic numbers to keep; structures with others are left out and counted. None keeps all.
        free_atoms_only: see ``batch.collate``.

    Raises:
        InputError: a structure holds an element or a head that the model lacks, or a graph shows a broken structure.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        facts: ModelFacts,
        dtype: torch.dtype,
        *,
        elements: Sequence[int] | None = None,
        free_atoms_only: bool = True,
    ) -> None:
        self.sources, self.facts, self.dtype, self.free_atoms_only = list(sources), facts, dtype, free_atoms_only
        self.left_out: Counter[str] = Counter()
        self._graphs: dict[tuple[int, int], Graph] = {}
        self._cached_edges = 0
        self._n_edges: NDArray[np.int64] | None = None
        places = [(s, i) for s, source in enumerate(self.sources) for i in range(len(source))]
        self.places = np.array([p for p in places if self._accept(*p, elements)], dtype=np.int64).reshape(-1, 2)

    def _accept(self, s: int, i: int, elements: Sequence[int] | None) -> bool:
        source = self.sources[s]
        if elements is not None and not source.elements[i] <= set(elements):
            self.left_out["an element outside --elements"] += 1
            return False
        unknown, head = source.elements[i] - set(self.facts.atomic_numbers), source.heads[i]
        if unknown:
            raise InputError(
                f"{source.path}: {source.identifier(i)}: element {symbols(list(unknown))} "
                f"(Z={', '.join(map(str, sorted(unknown)))}) is not in model.json, which has "
                f"{symbols(self.facts.atomic_numbers)}; leave such structures out with --elements"
            )
        if head is not None and head not in self.facts.heads:
            raise InputError(
                f"{source.path}: {source.identifier(i)}: head {head!r} is not in model.json, which has "
                f"{list(self.facts.heads)}"
            )
        if head is None and len(self.facts.heads) > 1:
            raise InputError(
                f"{source.path}: {source.identifier(i)}: names no head but model.json has {list(self.facts.heads)}; "
                "write `head` into the record or give the source a head in the YAML's list of sources"
            )
        return True

    def __len__(self) -> int:
        return len(self.places)

    @property
    def n_atoms(self) -> NDArray[np.int64]:
        """Atoms of every structure, (len,)."""
        sizes = [source.n_atoms for source in self.sources]
        return np.array([sizes[s][i] for s, i in self.places], dtype=np.int64)

    @property
    def n_edges(self) -> NDArray[np.int64]:
        """Directed edges of every structure, (len,); builds every graph once."""
        if self._n_edges is None:
            progress = tqdm(range(len(self)), desc="neighbour lists", unit="structures", disable=len(self) < 5000)
            self._n_edges = np.array([self.graph(i).n_edges for i in progress], dtype=np.int64)
        return self._n_edges

    def structure(self, i: int) -> Structure:
        """The i-th structure."""
        s, local = self.places[i]
        return self.sources[s].structure(int(local))

    def in_memory(self, i: int) -> bool:
        """Whether the i-th structure is read without touching the disk."""
        return self.sources[self.places[i][0]].in_memory

    def name(self, i: int) -> str:
        """A name under which a person finds the i-th structure again."""
        s, local = self.places[i]
        return self.sources[s].identifier(int(local))

    def names(self, indices: Sequence[int], shown: int = 5) -> str:
        """Names of several structures for a message, the first few of many."""
        more = f" and {len(indices) - shown} more" if len(indices) > shown else ""
        return ", ".join(self.name(i) for i in indices[:shown]) + more

    def graph(self, i: int, structure: Structure | None = None) -> Graph:
        """Neighbour list of the i-th structure; kept where the data are in memory and small enough."""
        s, local = int(self.places[i][0]), int(self.places[i][1])
        if (s, local) in self._graphs:
            return self._graphs[s, local]
        try:
            graph = build_graph(structure or self.structure(i), self.facts.r_max)
        except GraphFault as fault:
            raise InputError(f"{self.sources[s].path}: {self.name(i)}: {fault}") from None
        if self.sources[s].in_memory and self._cached_edges < CACHED_EDGES:
            self._graphs[s, local] = graph
            self._cached_edges += graph.n_edges
        return graph

    def batch(self, indices: Sequence[int]) -> Batch:
        """The structures of these numbers as one batch."""
        structures = [self.structure(i) for i in indices]
        graphs = [self.graph(i, s) for i, s in zip(indices, structures, strict=True)]
        return collate(
            structures, graphs, [int(i) for i in indices], self.facts, self.dtype, free_atoms_only=self.free_atoms_only
        )

    def subset(self, indices: NDArray[np.int64]) -> "Dataset":
        """The same data set with only these structures, in this order; sources and graphs are shared."""
        part = object.__new__(Dataset)
        part.__dict__.update(self.__dict__)
        part.places, part._n_edges = self.places[indices], None
        return part

    def by_source(self) -> dict[str, NDArray[np.int64]]:
        """Numbers of the structures of each source, by the source's file name."""
        owners, found = self.places[:, 0], dict[str, NDArray[np.int64]]()
        for s, source in enumerate(self.sources):
            name = str(source.path)
            found[name if name not in found else f"{name} ({s + 1})"] = np.nonzero(owners == s)[0]
        return found


def split(dataset: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Split off a share for validation: a permutation by ``seed`` alone, both parts kept in their original order.

    Raises:
        InputError: one of the two parts would be empty.
    """
    n_valid = round(fraction * len(dataset))
    if not 0 < n_valid < len(dataset):
        raise InputError(
            f"--valid_fraction {fraction:g} of {len(dataset)} structures leaves {n_valid} for validation and "
            f"{len(dataset) - n_valid} for training; give a validation file or another share"
        )
    order = epoch_order(len(dataset), seed, epoch=0)
    return dataset.subset(np.sort(order[n_valid:])), dataset.subset(np.sort(order[:n_valid]))
