"""Which structures go into which batch: an order from (seed, epoch) alone, cut by a fixed count or by a budget."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dataloader.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Limits of one batch; None means no limit of that kind."""

    structures: int | None = None
    atoms: int | None = None
    edges: int | None = None

    def admits(self, structures: int, atoms: int, edges: int) -> bool:
        """Whether a batch of this size stays within every limit."""
        limits = ((self.structures, structures), (self.atoms, atoms), (self.edges, edges))
        return all(limit is None or size <= limit for limit, size in limits)


def epoch_order(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of ``n`` structures in one epoch: a pure function of (seed, epoch).

    Nothing else enters, so a resumed run needs no sampler state, and workers or ranks cannot change it. numpy's
    SeedSequence mixes both numbers: torch's generator looks at the lower 32 bits of a seed only.
    """
    return np.random.default_rng([seed, epoch]).permutation(n)


def pack(
    order: NDArray[np.int64], n_atoms: NDArray[np.int64], n_edges: NDArray[np.int64] | None, budget: Budget
) -> list[NDArray[np.int64]]:
    """Cut an order into batches: each takes structures until the next one would break the budget.

    Args:
        order: indices of structures.
        n_atoms: atoms of every structure of the dataset.
        n_edges: edges of every structure; needed only where the budget limits edges.
        budget: the limits.
    """
    edges = np.zeros_like(n_atoms) if n_edges is None else n_edges
    batches: list[NDArray[np.int64]] = []
    start = total_atoms = total_edges = 0
    for position, i in enumerate(order):
        total_atoms, total_edges = total_atoms + int(n_atoms[i]), total_edges + int(edges[i])
        if position > start and not budget.admits(position - start + 1, total_atoms, total_edges):
            batches.append(order[start:position])
            start, total_atoms, total_edges = position, int(n_atoms[i]), int(edges[i])
    if len(order):
        batches.append(order[start:])
    return batches


def refuse_oversized(
    n_atoms: NDArray[np.int64], n_edges: NDArray[np.int64] | None, budget: Budget, name: Callable[[int], str]
) -> None:
    """Raise InputError where a single structure is larger than the budget."""
    for what, sizes, limit in (("atoms", n_atoms, budget.atoms), ("edges", n_edges, budget.edges)):
        if limit is not None and sizes is not None and len(sizes) and sizes.max() > limit:
            worst = int(sizes.argmax())
            raise InputError(
                f"{name(worst)} has {sizes[worst]} {what}, more than --max_{what}_per_batch {limit}; "
                f"raise it to at least {sizes.max()} or leave the structure out"
            )
