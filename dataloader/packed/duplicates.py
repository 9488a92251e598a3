"""Which structures are one and the same, or belong together, by numbers that fit into arrays."""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dataloader.structure import Structure

DECIMALS = 3  # Å; positions from the first atom and cells that agree to it are the same structure


def fingerprint(structure: Structure) -> int:
    """64 bits of elements, periodicity, cell and positions; labels are not in it, nor is
    where the origin lies.
    """
    cell = structure.cell if any(structure.pbc) else np.zeros((3, 3))
    geometry = np.concatenate([cell, structure.positions - structure.positions[0]])
    rounded = np.round(geometry, DECIMALS) + 0.0  # no −0
    data = [structure.atomic_numbers.astype(np.int16), np.array(structure.pbc), rounded]
    return hashed(b"".join(array.tobytes() for array in data))


def hashed(data: bytes) -> int:
    """A hash of some bytes as a number of 64 bits."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def components(columns: Sequence[NDArray[np.uint64]]) -> NDArray[np.int64]:
    """Rows that belong together: two are in one component where they agree in any column; 0
    in a column is no value.

    Returns:
        (n,) the smallest row of each row's component.
    """
    n = len(columns[0])
    if n == 0:
        return np.zeros(0, dtype=np.int64)
    # a fifth of a second, for those alone who split data by groups
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    pairs = np.concatenate([_links(column) for column in columns])
    graph = coo_array(
        (np.ones(len(pairs), dtype=np.int8), (pairs[:, 0], pairs[:, 1])), shape=(n, n)
    )
    _, labels = connected_components(graph, directed=False)
    _, smallest_row = np.unique(labels, return_index=True)
    return smallest_row[labels].astype(np.int64)


def _links(column: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Pairs (n_pairs, 2) of rows: the first row of a value, and each other
    row that has the value.
    """
    order = np.argsort(column, kind="stable")
    values = column[order]
    starts = (
        np.concatenate([[True], values[1:] != values[:-1]])
        if len(values)
        else np.zeros(0, dtype=bool)
    )
    first = order[np.nonzero(starts)[0]][np.cumsum(starts) - 1] if len(values) else order
    linked = (order != first) & (values != 0)
    return np.stack([first[linked], order[linked]], axis=1)
