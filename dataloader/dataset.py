"""A data set as the loop sees it: structures by number over all its sources, their
graphs, and batches of them.
"""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dataloader import progress
from dataloader.batch import Batch, added_rows, collate
from dataloader.batching import Share, epoch_order
from dataloader.data_file import Source
from dataloader.errors import InputError
from dataloader.filters import OTHER_ELEMENT
from dataloader.needs import ModelFacts
from dataloader.neighbors import MAX_NEIGHBORS, Graph, GraphFault, build_graph
from dataloader.structure import Structure, symbols

# 14 bytes each; beyond it graphs are built again every epoch, 0.3 ms for 54 atoms
CACHED_EDGES = 20_000_000

OF_HEAD = ", head "  # between file and head in the name of a part

# beside the seed: another stream of random numbers than the orders of epochs have
SAMPLING = 1_000_003


class Dataset:
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
        self.sources = list(sources)
        self.facts = facts
        self.dtype = dtype
        self.free_atoms_only = free_atoms_only
        self.max_neighbors = max_neighbors
        self._folders = _folders_to_tell_apart([source.path for source in sources])
        self.left_out: Counter[str] = Counter()
        self._graphs: dict[tuple[int, int], Graph] = {}
        self._cached_edges = 0
        self._n_edges: NDArray[np.int64] | None = None
        kept = [self._accepted(s, elements) for s in range(len(self.sources))]
        # (len, 2): source, structure in it
        self.places = np.concatenate([np.zeros((0, 2), np.int32), *kept])

    def _accepted(self, s: int, elements: Sequence[int] | None) -> NDArray[np.int32]:
        """Places of the structures of one source that the model can take; looks at values,
        not at every structure.
        """
        source = self.sources[s]
        usable = np.ones(len(source), dtype=bool)
        if elements is not None:
            usable &= source.elements.within(elements)
            if not usable.all():
                self.left_out[OTHER_ELEMENT] += int((~usable).sum())
        for fault in (self._unknown_element(source, usable), self._unknown_head(source, usable)):
            if fault is not None:
                raise InputError(fault)
        rows = np.nonzero(usable)[0].astype(np.int32)
        return np.stack([np.full_like(rows, s), rows], axis=1)

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
            f"{list(heads)}; name it with --head, write `head` into the record, or give the source "
            "one in the YAML's list of sources"
        )

    def __len__(self) -> int:
        return len(self.places)

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

    def _by_place(self, columns: Sequence[NDArray[np.integer]]) -> NDArray[np.int64]:
        values = np.zeros(len(self), dtype=np.int64)
        for s, column in enumerate(columns):
            mine = self.places[:, 0] == s
            values[mine] = column[self.places[mine, 1]]
        return values

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
        return self._folders[s] + self.sources[s].identifier(int(local))

    def names(self, indices: Sequence[int], shown: int = 5) -> str:
        """Names of several structures for a message, the first few of many."""
        more = f" and {len(indices) - shown} more" if len(indices) > shown else ""
        return ", ".join(self.name(i) for i in indices[:shown]) + more

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
        part = object.__new__(Dataset)
        part.__dict__.update(self.__dict__)
        part.places = self.places[indices]
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

    def shares(self) -> tuple[NDArray[np.int64], list[Share]]:
        """The structures of which an epoch has all, and for every source with a ratio
        how many it takes of it.
        """
        return shares_of([source.ratio for source in self.sources], self.places[:, 0])

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
            pairs = np.stack([numbers[rows], source.elements.ids[self.places[rows, 1]]], axis=1)
            _, firsts = np.unique(pairs, axis=0, return_index=True)
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
        for s, source in enumerate(self.sources):
            name = str(source.path)
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


def _folders_to_tell_apart(paths: Sequence[Path]) -> list[str]:
    """What is put before the names of structures of each file: its folder, where several files
    have one name.
    """
    distinct = Counter(path.name for path in set(paths))
    return [f"{path.parent}{os.sep}" if distinct[path.name] > 1 else "" for path in paths]


def _first(usable: NDArray[np.bool_], ids: NDArray[np.integer], bad: Sequence[bool]) -> int | None:
    """The first usable row whose value is a bad one."""
    if not any(bad):
        return None
    rows = usable & np.array(bad, dtype=bool)[ids]
    return int(rows.argmax()) if rows.any() else None


def sample(dataset: Dataset, n: int, seed: int) -> Dataset:
    """``n`` structures of the LMDBs and all others, in their order; which, is a pure
    function of (seed, counts).

    A source with a ratio stays whole.

    Raises:
        InputError: there are fewer.
    """
    whole = [source.in_memory or source.ratio is not None for source in dataset.sources]
    kept = np.array(whole, dtype=bool)[dataset.places[:, 0]]
    rows = np.nonzero(~kept)[0]
    if n > len(rows):
        raise InputError(
            f"{n} samples were asked for, but the LMDBs have {len(rows)} that can be "
            "used; ask for fewer"
        )
    chosen = np.random.default_rng([seed, SAMPLING]).choice(rows, n, replace=False, shuffle=False)
    return dataset.subset(np.sort(np.concatenate([np.nonzero(kept)[0], chosen])))


def split(dataset: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Split off a share for validation: a permutation by ``seed`` alone, both parts kept
    in their original order.

    Of a source with a ratio as many are set aside as the ratio says, so that validation has an
    epoch's mixture; but no larger share than of the others.

    Raises:
        InputError: one of the two parts would be empty.
    """
    train, valid = set_aside(*dataset.shares(), fraction, seed)
    return dataset.subset(train), dataset.subset(valid)


def shares_of(
    ratios: Sequence[float | None], owners: NDArray[np.integer]
) -> tuple[NDArray[np.int64], list[Share]]:
    """The structures of which an epoch has all, and for every source with a ratio how many
    it takes of it.

    Args:
        ratios: of each source; None of one that is taken whole.
        owners: (n_structures,), the source of each structure.
    """
    has_ratio = np.array([ratio is not None for ratio in ratios], dtype=bool)[owners]
    own = np.nonzero(~has_ratio)[0]
    shares = []
    for s, ratio in enumerate(ratios):
        rows = np.nonzero(owners == s)[0]
        if ratio is not None and len(rows):
            shares.append(Share(rows=rows, taken=max(round(ratio * len(own)), 1)))
    return own, shares


def set_aside(
    own: NDArray[np.int64], shares: Sequence[Share], fraction: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which structures train and which validate, in their order; the arguments are those of
    ``split``, with what ``shares_of`` gives.

    Raises:
        InputError: one of the two parts would be empty.
    """
    n_valid = round(fraction * len(own))
    if not 0 < n_valid < len(own):
        raise InputError(
            f"--valid_fraction {fraction:g} of {len(own)} structures leaves {n_valid} "
            f"for validation and {len(own) - n_valid} for training; give a validation "
            "file or another share"
        )
    parts = [(own, n_valid)]
    for share in shares:
        parts.append(
            (
                share.rows,
                min(round(fraction * len(share.rows)), round(n_valid * share.taken / len(own))),
            )
        )
    train = []
    valid = []
    for rows, n in parts:
        order = epoch_order(len(rows), seed, epoch=0)
        train.append(rows[order[n:]])
        valid.append(rows[order[:n]])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(valid))
