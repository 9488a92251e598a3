"""Which structures go into which batch: an order from (seed, epoch) alone, cut by a
fixed count or by a budget.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray

from dataloader.errors import InputError

# any number but 0, which numpy would drop: keeps the seeds of shares apart from [seed, epoch]
SHARES = 1_000_033


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Limits of one batch; None means no limit of that kind."""

    structures: int | None = None
    atoms: int | None = None
    edges: int | None = None

    def admits(self, structures: int, atoms: int, edges: int) -> bool:
        """Whether a batch of this size stays within every limit, as all of ``pack`` do but a
        single large structure.
        """
        limits = ((self.structures, structures), (self.atoms, atoms), (self.edges, edges))
        return all(limit is None or size <= limit for limit, size in limits)


def epoch_order(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of ``n`` structures in one epoch: a pure function of (seed, epoch).

    Nothing else enters, so a resumed run needs no sampler state, and workers or ranks cannot
    change it. numpy's SeedSequence mixes both numbers: torch's generator looks at the lower
    32 bits of a seed only.
    """
    return np.random.default_rng([seed, epoch]).permutation(n)


@dataclass(frozen=True, kw_only=True)
class Share:
    """Structures of which every epoch uses ``taken``, going on where the epoch before it ended."""

    rows: NDArray[np.int64]
    taken: int


def mixed_order(
    rows: NDArray[np.int64], shares: Sequence[Share], seed: int, epoch: int
) -> NDArray[np.int64]:
    """The order of an epoch that has all of ``rows`` and a number of structures of every share.

    A pure function of (seed, epoch): a share is gone through in shuffled passes, and an
    epoch begins where the one before it ended. So each of its structures comes equally
    often, whatever the number.
    """
    taken = [rows]
    for k, share in enumerate(shares):
        n = len(share.rows)
        begin = epoch * share.taken
        first = begin // n
        last = (begin + share.taken - 1) // n
        passes = [
            np.random.default_rng([seed, k, i, SHARES]).permutation(n)
            for i in range(first, last + 1)
        ]
        taken.append(share.rows[np.concatenate(passes)[begin - first * n :][: share.taken]])
    members = np.concatenate(taken)
    return members[epoch_order(len(members), seed, epoch)]


def pack(
    order: NDArray[np.int64],
    n_atoms: NDArray[np.int64],
    n_edges: NDArray[np.int64] | None,
    budget: Budget,
) -> "PlannedBatches":
    """Cut an order into batches: each takes structures until the next one would break the budget.

    Args:
        order: indices of structures.
        n_atoms: atoms of every structure of the dataset.
        n_edges: edges of every structure; needed only where the budget limits edges.
        budget: the limits.
    """
    if budget.atoms is None and budget.edges is None:
        size = budget.structures or max(len(order), 1)
        return PlannedBatches(order, np.arange(0, len(order), size))
    totals = [
        np.cumsum(np.asarray(sizes, dtype=np.int64)[order])
        for sizes in (n_atoms, n_edges)
        if sizes is not None
    ]
    limits = [
        limit
        for limit, sizes in ((budget.atoms, n_atoms), (budget.edges, n_edges))
        if sizes is not None
    ]
    starts = []
    start = 0
    while start < len(order):
        starts.append(start)
        ends = [start + budget.structures] if budget.structures is not None else [len(order)]
        for total, limit in zip(totals, limits, strict=True):
            if limit is not None:
                before = int(total[start - 1]) if start else 0
                ends.append(int(np.searchsorted(total, before + limit, side="right")))
        start = max(min(ends), start + 1)
    return PlannedBatches(order, np.array(starts, dtype=np.int64))


class PlannedBatches(Sequence[NDArray[np.int64]]):
    """The batches of an order: where each begins; a batch is made when it is asked for,
    10⁷ of them cost 80 MB.
    """

    def __init__(self, order: NDArray[np.int64], starts: NDArray[np.int64]) -> None:
        self._order = order
        self._starts = starts

    def __len__(self) -> int:
        return len(self._starts)

    def totals(self, sizes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Sum of a size of the structures over each batch, (len,)."""
        return (
            np.add.reduceat(sizes[self._order], self._starts)
            if len(self)
            else np.zeros(0, np.int64)
        )

    @overload
    def __getitem__(self, i: int) -> NDArray[np.int64]: ...
    @overload
    def __getitem__(self, i: slice) -> "Sequence[NDArray[np.int64]]": ...
    def __getitem__(self, i: int | slice) -> "NDArray[np.int64] | Sequence[NDArray[np.int64]]":
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        k = range(len(self))[i]
        end = self._starts[k + 1] if k + 1 < len(self) else len(self._order)
        return self._order[self._starts[k] : end]


def refuse_oversized(
    n_atoms: NDArray[np.int64],
    n_edges: NDArray[np.int64] | None,
    budget: Budget,
    name: Callable[[int], str],
) -> None:
    """Raise InputError where a single structure is larger than the budget."""
    for what, sizes, limit in (("atoms", n_atoms, budget.atoms), ("edges", n_edges, budget.edges)):
        if limit is not None and sizes is not None and len(sizes) and sizes.max() > limit:
            worst = int(sizes.argmax())
            raise InputError(
                f"{name(worst)} has {sizes[worst]} {what}, more than --max_{what}_per_batch "
                f"{limit}; raise it to at least {sizes.max()} or leave the structure out"
            )
