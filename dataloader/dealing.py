"""A step's structures dealt to parts of equal cost, so that no device waits long for another."""

import heapq

import numpy as np
from numpy.typing import NDArray

# what an atom costs beside an edge: 8 to 13.5 over models S and M at 5 and 6 Å, on a CPU
EDGES_PER_ATOM = 12.0


def cost_of(n_edges: NDArray[np.integer], n_atoms: NDArray[np.integer]) -> NDArray[np.float64]:
    """Relative cost of computing a structure, (n,), in edges."""
    return np.asarray(n_edges, dtype=np.float64) + EDGES_PER_ATOM * np.asarray(
        n_atoms, dtype=np.float64
    )


def deal(cost: NDArray[np.float64], n_parts: int) -> list[NDArray[np.int64]]:
    """Deal items to parts: the costliest first, each to the part that has
    least so far (Graham 1969).

    A pure function of the costs; of equal items or parts the first comes first. Where there are
    fewer items than parts, the first parts have one each and the others none.

    Args:
        cost: (n,), positive.
        n_parts: how many.

    Returns:
        Positions of the items of each part, in their order.
    """
    loads = [(0.0, part) for part in range(n_parts)]
    dealt: list[list[int]] = [[] for _ in range(n_parts)]
    for item in np.argsort(-cost, kind="stable").tolist():
        load, part = loads[0]
        dealt[part].append(item)
        heapq.heapreplace(loads, (load + float(cost[item]), part))
    return [np.array(sorted(items), dtype=np.int64) for items in dealt]


def balance(cost: NDArray[np.float64], owner: NDArray[np.int64], n_owners: int) -> float:
    """Mean over largest of what the owners have to compute: the share of
    time in which none waits.
    """
    loads = np.bincount(owner, weights=cost, minlength=n_owners)
    return float(loads.mean() / loads.max()) if loads.max() > 0 else 1.0
