"""A data set as the loop sees it: structures by number over all its sources, their
graphs, and batches of them.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from dataloader import progress
from dataloader.batch import Batch, added_rows, collate
from dataloader.data_file import Source
from dataloader.errors import InputError
from dataloader.needs import ModelFacts
from dataloader.neighbors import MAX_NEIGHBORS, Graph, GraphFault, build_graph
from dataloader.selection import Selection
from dataloader.structure import Structure, symbols

# 14 bytes each; beyond it graphs are built again every epoch, 0.3 ms for 54 atoms
CACHED_EDGES = 20_000_000

OF_HEAD = ", head "  # between file and head in the name of a part


class Dataset(Selection):
    """Structures of one or several sources that the model can take.

    Args:
        sources: opened files.
        facts: of the model.
        dtype: working precision of the batches.
        elements: atomic numbers to keep; structures with others are left out and
            counted. None keeps all.
        free_atoms_only: see ``batch.collate``.
        max_neighbors: see ``neighbors.build_graph``.

    Raises:
        InputError: a structure holds an element or a head that the model lacks, or a graph
            shows a broken structure.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        facts: ModelFacts,
        dtype: torch.dtype,
        *,
        elements: Sequence[int] | None = None,
        free_atoms_only: bool = True,
        max_neighbors: int = MAX_NEIGHBORS,
    ) -> None:
        super().__init__(sources, elements)
        self.facts = facts
        self.dtype = dtype
        self.free_atoms_only = free_atoms_only
        self.max_neighbors = max_neighbors
        self.source_names = [str(source.path) for source in self.sources]  # in what is recorded
        self._graphs: dict[tuple[int, int], Graph] = {}
        self._cached_edges = 0
        self._n_edges: NDArray[np.int64] | None = None
        for s, source in enumerate(self.sources):
            self._require_known(s, source)

    def _require_known(self, s: int, source: Source) -> None:
        """Refuse structures of one source that the model cannot take; looks at values, not at
        every structure.
        """
        first, end = np.searchsorted(self.places[:, 0], [s, s + 1])
        usable = np.zeros(len(source), dtype=bool)
        usable[self.places[first:end, 1]] = True
        for fault in (self._unknown_element(source, usable), self._unknown_head(source, usable)):
            if fault is not None:
                raise InputError(fault)

    def _unknown_element(self, source: Source, usable: NDArray[np.bool_]) -> str | None:
        known = set(self.facts.atomic_numbers)
        foreign = usable & ~source.elements.within(known)
        if not foreign.any():
            return None
        i = int(foreign.argmax())
        unknown = source.elements[i] - known
        return (
            f"{source.path}: {source.identifier(i)}: element {symbols(list(unknown))} "
            f"(Z={', '.join(map(str, sorted(unknown)))}) is not in model.json, which has "
            f"{symbols(self.facts.atomic_numbers)}; leave such structures out with --elements, "
            "or take a network that has it: none learns an element that it was not made for"
        )

    def _unknown_head(self, source: Source, usable: NDArray[np.bool_]) -> str | None:
        heads = self.facts.heads
        several = len(self.facts.heads) > 1
        bad = [
            (head is None and several) or (head is not None and head not in heads)
            for head in source.heads.values
        ]
        i = _first(usable, source.heads.ids, bad)
        if i is None:
            return None
        if source.heads[i] is not None:
            return (
                f"{source.path}: {source.identifier(i)}: head {source.heads[i]!r} is not in "
                f"model.json, which has {list(heads)}"
            )
        return (
            f"{source.path}: {source.identifier(i)}: names no head but model.json has "
            f"{list(heads)}; write `head` into the record, name that of such records with --head "
            "(in evaluate.py that of all), or give the source one in the YAML's list of sources"
        )

    @property
    def n_atoms(self) -> NDArray[np.int64]:
        """Atoms of every structure, (len,)."""
        return self._by_place([source.n_atoms for source in self.sources])

    @property
    def n_edges(self) -> NDArray[np.int64]:
        """Directed edges of every structure, (len,); every neighbour list is counted once."""
        if self._n_edges is None:
            known = [source.edges(self.facts.r_max) for source in self.sources]
            if known and all(counts is not None for counts in known):
                self._n_edges = self._by_place([counts for counts in known if counts is not None])
            else:
                numbers = progress.over(range(len(self)), "neighbour lists", len(self))
                edges = (self._count_edges(i, known) for i in numbers)
                self._n_edges = np.fromiter(edges, dtype=np.int64, count=len(self))
        return self._n_edges

    def _count_edges(self, i: int, known: Sequence[NDArray[np.integer] | None]) -> int:
        counts = known[self.places[i][0]]
        return self.graph(i).n_edges if counts is None else int(counts[self.places[i][1]])

    def labelled_rows(self, indices: NDArray[np.int64]) -> dict[str, int]:
        """Rows with a label by quantity over some structures: those behind the means
        of their batch, unread.
        """
        places = self.places[indices]
        return added_rows(
            self.sources[s].labelled_rows(
                places[places[:, 0] == s, 1], free_atoms_only=self.free_atoms_only
            )
            for s in np.unique(places[:, 0]).tolist()
        )

    def graph(self, i: int, structure: Structure | None = None) -> Graph:
        """Neighbour list of the i-th structure; kept where the data are in
        memory and small enough.
        """
        s = int(self.places[i][0])
        local = int(self.places[i][1])
        if (s, local) in self._graphs:
            return self._graphs[s, local]
        try:
            graph = build_graph(
                structure or self.structure(i), self.facts.r_max, self.max_neighbors
            )
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
            structures,
            graphs,
            [int(i) for i in indices],
            self.facts,
            self.dtype,
            free_atoms_only=self.free_atoms_only,
        )

    def subset(self, indices: NDArray[np.int64]) -> "Dataset":
        """A data set of only the structures of these numbers, in this order; sources
        and graphs are shared.
        """
        part = super().subset(indices)
        part._n_edges = None
        return part

    def with_facts(self, facts: ModelFacts) -> "Dataset":
        """This data set for a model of the same elements and cutoff that has
        other reference energies.
        """
        other = self.subset(np.arange(len(self)))
        other.facts = facts
        other._n_edges = self._n_edges
        return other

    def head_numbers(self) -> NDArray[np.int64]:
        """Position of every structure's head among the model's, (len,); those that
        name none have the first.
        """
        numbers = np.zeros(len(self), dtype=np.int64)
        for s, source in enumerate(self.sources):
            rows = np.nonzero(self.places[:, 0] == s)[0]
            of_values = np.array(
                [self.facts.heads.index(h or self.facts.heads[0]) for h in source.heads.values]
            )
            if len(rows):
                numbers[rows] = of_values[source.heads.ids[self.places[rows, 1]]]
        return numbers

    def elements_by_head(self) -> dict[str, set[int]]:
        """Atomic numbers that occur in the structures of each head; looks at values,
        not at every structure.
        """
        occurring: dict[str, set[int]] = {}
        numbers = self.head_numbers()
        for s, source in enumerate(self.sources):
            rows = np.nonzero(self.places[:, 0] == s)[0]
            # one number for head and elements: pairs of numbers would be sorted ten times slower
            sets = len(source.elements.bits)
            pairs = numbers[rows] * sets + source.elements.ids[self.places[rows, 1]]
            _, firsts = np.unique(pairs, return_index=True)
            for row in rows[firsts].tolist():
                elements = source.elements[int(self.places[row, 1])]
                occurring.setdefault(self.facts.heads[numbers[row]], set()).update(elements)
        return occurring

    def by_source(self) -> dict[str, NDArray[np.int64]]:
        """Numbers of the structures of each source by its file name, and by head where
        the model has several.
        """
        owners = self.places[:, 0]
        rows_of_part = dict[str, NDArray[np.int64]]()
        names = list[str]()
        numbers = self.head_numbers()
        for s, name in enumerate(self.source_names):
            rows = np.nonzero(owners == s)[0]
            names.append(name if name not in names else f"{name} ({s + 1})")
            name = names[-1]
            if len(self.facts.heads) == 1:
                rows_of_part[name] = rows
                continue
            of_rows = numbers[rows]
            rows_of_part |= {
                f"{name}{OF_HEAD}{self.facts.heads[h]}": rows[of_rows == h]
                for h in np.unique(of_rows)
            }
        return rows_of_part


def _first(usable: NDArray[np.bool_], ids: NDArray[np.integer], bad: Sequence[bool]) -> int | None:
    """The first usable row whose value is a bad one."""
    if not any(bad):
        return None
    rows = usable & np.array(bad, dtype=bool)[ids]
    return int(rows.argmax()) if rows.any() else None
