"""Order and batches: a pure function of (seed, epoch), every structure once, no
batch over its budget.
"""

from dataclasses import fields
from itertools import pairwise

import numpy as np
import pytest
import torch

from dataloader.batch import BatchBuffer, collate
from dataloader.batching import Budget, Share, epoch_order, mixed_order, pack, refuse_oversized
from dataloader.errors import InputError
from dataloader.needs import ModelFacts
from dataloader.neighbors import build_graph
from dataloader.structure import Structure


def test_every_seed_and_every_epoch_has_an_order_of_its_own() -> None:
    orders = {tuple(epoch_order(20, seed, epoch)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25
    assert all(sorted(order) == list(range(20)) for order in orders)
    assert tuple(epoch_order(20, 3, 4)) in orders


def test_seeds_that_agree_in_32_bits_differ() -> None:
    assert tuple(epoch_order(20, 1, 0)) != tuple(epoch_order(20, 1 + 2**32, 0))


@pytest.mark.parametrize(
    "budget", [Budget(structures=3), Budget(atoms=20), Budget(structures=4, atoms=15, edges=60)]
)
def test_batches_hold_every_structure_once_and_stay_within_the_budget(budget: Budget) -> None:
    rng = np.random.default_rng(0)
    n_atoms, n_edges = rng.integers(1, 10, 50), rng.integers(0, 40, 50)
    order = epoch_order(50, 0, 0)
    batches = pack(order, n_atoms, n_edges, budget)
    assert np.concatenate(batches).tolist() == order.tolist()
    assert all(budget.admits(len(b), int(n_atoms[b].sum()), int(n_edges[b].sum())) for b in batches)
    for first, second in pairwise(batches):
        joined = [*first, second[0]]
        fits = budget.admits(len(joined), int(n_atoms[joined].sum()), int(n_edges[joined].sum()))
        assert not fits, "a batch ends only where the next structure does not fit"


def test_a_structure_larger_than_the_budget_is_named() -> None:
    with pytest.raises(
        InputError, match="b has 9 atoms, more than --max_atoms_per_batch 8; raise it to at least 9"
    ):
        refuse_oversized(np.array([3, 9]), None, Budget(atoms=8), "ab".__getitem__)


@pytest.mark.parametrize("taken", [1, 3, 7, 17])
def test_a_share_gives_its_number_to_every_epoch_and_each_structure_equally_often(
    taken: int,
) -> None:
    own, share = np.arange(10), Share(rows=np.arange(20, 27), taken=taken)
    epochs = [mixed_order(own, [share], 5, epoch) for epoch in range(14)]
    for order in epochs:
        assert sorted(order[order < 20]) == list(range(10))
        assert (order >= 20).sum() == taken
    drawn = np.concatenate([order[order >= 20] for order in epochs])
    assert np.bincount(drawn - 20).tolist() == [2 * taken] * 7, "14 epochs are whole passes over 7"
    assert len({tuple(order) for order in epochs}) == 14
    assert tuple(mixed_order(own, [share], 5, 3)) == tuple(epochs[3])
    assert tuple(mixed_order(own, [share], 6, 3)) != tuple(epochs[3])


def test_two_shares_are_drawn_apart() -> None:
    shares = [Share(rows=np.arange(10, 20), taken=4), Share(rows=np.arange(20, 30), taken=4)]
    order = mixed_order(np.arange(2), shares, 0, 0)
    first, second = (sorted(order[(order >= low) & (order < low + 10)] - low) for low in (10, 20))
    assert first != second


def test_a_parcel_gives_its_batch_back() -> None:
    """What crosses between processes: every tensor the same in value, type and shape, those
    without an element too.
    """
    facts = ModelFacts(
        atomic_numbers=(1, 8), heads=("Default",), atomic_energies=((-13.6, -430.0),), r_max=3.0
    )
    lonely = Structure(
        atomic_numbers=np.array([8]),
        positions=np.zeros((1, 3)),
        cell=np.zeros((3, 3)),
        pbc=(False,) * 3,
        identifier="",
    )
    pair = Structure(
        atomic_numbers=np.array([1, 8]),
        positions=np.eye(3)[:2],
        cell=np.zeros((3, 3)),
        pbc=(False,) * 3,
        identifier="",
        labels={"energy": -443.0, "forces": np.arange(6.0).reshape(2, 3)},
    )
    for structures in ([lonely], [pair, lonely, pair]):
        graphs = [build_graph(s, 3.0) for s in structures]
        numbers = range(len(structures))
        batch = collate(structures, graphs, numbers, facts, torch.float32, free_atoms_only=True)
        found = BatchBuffer(batch).batch()
        assert (found.rows, found.index) == (batch.rows, batch.index)
        assert found.labels.keys() == batch.labels.keys()
        pairs = [
            (getattr(found, field.name), getattr(batch, field.name)) for field in fields(batch)
        ]
        pairs += [
            pair
            for name in batch.labels
            for pair in zip(found.labels[name], batch.labels[name], strict=True)
        ]
        tensors = [(ours, theirs) for ours, theirs in pairs if isinstance(theirs, torch.Tensor)]
        assert len(tensors) > 15
        for ours, theirs in tensors:
            assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
            assert torch.equal(ours, theirs)
