"""Parts of equal cost, a sum without an order, and that a step that is
dealt is the undivided one.
"""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.io import write
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from conftest import TINY, waters
from dataloader.batching import Budget
from dataloader.data_file import SourceSpec
from dataloader.dataset import Dataset
from dataloader.dealing import deal
from dataloader.formats import format_of
from dataloader.labels import TO_PREDICT
from dataloader.loader import EpochBatches, Loader
from dataloader.sources import open_sources
from losses import Loss
from model_utils import model_loader
from model_utils.models import description as model_json
from model_utils.ranks.exact_sum import add_rounded, largest_entries, rounders
from model_utils.ranks.group import ALONE
from model_utils.run.step import StepResult, loss_and_gradients
from model_utils.run.steps import DealtSteps, Steps, StepsInTurn

CPU = torch.device("cpu")


@given(
    costs=st.lists(st.integers(min_value=1, max_value=10**6), min_size=1, max_size=60),
    n_parts=st.integers(min_value=1, max_value=16),
)
@settings(max_examples=200)
def test_every_item_is_dealt_once_to_parts_of_nearly_equal_cost(
    costs: list[int], n_parts: int
) -> None:
    cost = np.array(costs, dtype=np.float64)
    parts = deal(cost, n_parts)
    assert len(parts) == n_parts
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(costs)))
    assert all((np.diff(part) > 0).all() for part in parts)
    assert [len(part) > 0 for part in parts] == [k < len(costs) for k in range(n_parts)]
    # whoever took the last item of the costliest part had least before (Graham 1966)
    bound = cost.sum() / n_parts + cost.max() * (1 - 1 / n_parts)
    assert max(cost[part].sum() for part in parts) <= bound * (1 + 1e-12)


def test_equal_items_are_dealt_in_turn() -> None:
    assert [part.tolist() for part in deal(np.ones(5), 2)] == [[0, 2, 4], [1, 3]]


def tensors_of_parts(seed: int, n_parts: int, dtype: torch.dtype) -> list[list[Tensor]]:
    """Gradients of several tensors over many orders of magnitude, some of them zero or denormal."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for _ in range(n_parts):
        scales = 10.0 ** torch.randint(-12, 12, (7,), generator=generator)
        many = torch.randn(7, generator=generator, dtype=torch.float64) * scales
        tiny = torch.randn(3, 2, generator=generator, dtype=torch.float64) * 1e-310
        parts.append(
            [many.to(dtype), torch.zeros(4, dtype=dtype), tiny.to(dtype), many[:1].to(dtype)]
        )
    return parts


def summed(parts: list[list[Tensor]], owners: list[list[int]], constants: Tensor) -> list[Tensor]:
    """The sum over owners, each of which adds its own parts first."""
    total = [torch.zeros(tensor.shape, dtype=torch.float64) for tensor in parts[0]]
    for own in owners:
        partial = [torch.zeros_like(tensor) for tensor in total]
        for number in own:
            add_rounded(partial, parts[number], constants)
        for whole, part in zip(total, partial, strict=True):
            whole += part
    return total


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n_parts", [1, 2, 3, 8, 64, 1024])
def test_neither_order_nor_owners_change_a_bit(n_parts: int, dtype: torch.dtype) -> None:
    draw = random.Random(n_parts)
    for seed in range(20 if n_parts < 1024 else 2):
        parts = tensors_of_parts(seed, n_parts, dtype)
        largest = largest_entries(parts, CPU)
        constants = rounders(largest, n_parts)
        expected = summed(parts, [list(range(n_parts))], constants)
        for _ in range(5):
            order = draw.sample(range(n_parts), n_parts)
            cuts = sorted(draw.sample(range(n_parts + 1), min(draw.randrange(8), n_parts)))
            owners = [order[a:b] for a, b in zip([0, *cuts], [*cuts, n_parts], strict=True)]
            draw.shuffle(owners)
            assert all(map(torch.equal, summed(parts, owners, constants), expected))
        for k, (total, bound) in enumerate(zip(expected, largest.tolist(), strict=True)):
            exact = np.sum(
                [part[k].double().numpy().astype(np.longdouble) for part in parts], axis=0
            )
            off = float(np.abs(total.numpy().astype(np.longdouble) - exact).max())
            bits = min(51, 53 - int(np.ceil(np.log2(n_parts))))
            assert off <= n_parts * 2.0 ** (-bits) * bound


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_stays_so(value: float) -> None:
    parts = [[torch.ones(3)], [torch.tensor([1.0, value, 2.0])]]
    [total] = summed(parts, [[0], [1]], rounders(largest_entries(parts, CPU), 2))
    assert not torch.isfinite(total[1])


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Waters of which some lack labels or hold atoms fixed."""
    frames = waters(11, seed=5)
    del frames[2].info["REF_energy"]
    del frames[3].arrays["REF_forces"]
    path = tmp_path_factory.mktemp("adding") / "data.xyz"
    for atoms in frames[5:8]:
        atoms.arrays["move_mask"] = np.arange(len(atoms)) % 2 == 0
    write(path, frames, format="extxyz")
    facts = model_json.parse(json.dumps(TINY), "model.json").facts()
    sources = open_sources(
        [SourceSpec(path=path, format=format_of(path))], needs=TO_PREDICT, max_dropped=0.0
    )
    return Dataset(sources, facts, torch.float64)


def first_step(steps: Steps, dataset: Dataset) -> StepResult:
    described = model_json.parse(json.dumps(TINY), "model.json")
    module = model_loader.build(described, torch.float64, 1)
    network = model_loader.build_network(module, "fast", described)
    step = steps.of_epoch(0)[0]
    batches = list(steps.batches([step]))
    return loss_and_gradients(
        network, model_loader.trainable(module), batches, Loss.of(), step.addition
    )


@pytest.mark.parametrize("n_parts", [2, 3, 8, 16])
def test_a_dealt_step_is_the_undivided_one(n_parts: int, dataset: Dataset) -> None:
    """Loss, sums and gradients; also where parts are empty, or computed in pieces
    since a device holds less.
    """
    epochs = EpochBatches(dataset, Budget(structures=4), 0, Loader(dataset))
    whole = first_step(StepsInTurn(epochs, 3), dataset)
    for budget in (Budget(structures=4), Budget(edges=int(dataset.n_edges.max()))):
        cramped = EpochBatches(dataset, budget, 0, Loader(dataset))
        cramped.plan = epochs.plan  # type: ignore[method-assign]
        dealt = first_step(DealtSteps(cramped, 3, n_parts, ALONE, CPU), dataset)
        assert float(dealt.loss) == pytest.approx(float(whole.loss), rel=1e-12)
        torch.testing.assert_close(dealt.sums, whole.sums, rtol=1e-12, atol=1e-12)
        for ours, theirs in zip(dealt.gradients, whole.gradients, strict=True):
            torch.testing.assert_close(
                ours, theirs, rtol=0, atol=1e-12 * max(float(theirs.abs().max()), 1e-3)
            )


def test_rows_are_counted_without_reading(dataset: Dataset) -> None:
    for members in ([0, 1], [2], [3, 2], [5, 6, 7], list(range(11))):
        assert dataset.labelled_rows(np.array(members)) == dataset.batch(members).rows


@pytest.mark.parametrize("name", ["oc20/s2ef_val_20_data.lmdb", "lips/data.lmdb"])
def test_rows_of_real_lmdbs_are_counted_without_reading(name: str, shared_data: Path) -> None:
    path = shared_data / name
    if not path.exists():
        pytest.skip(f"{path} is not there")
    for free_atoms_only in (True, False):
        sources = open_sources(
            [SourceSpec(path=path, format=format_of(path))], needs=TO_PREDICT, max_dropped=1.0
        )
        elements = {z for k in range(len(sources[0])) for z in sources[0].elements[k]}
        facts = model_json.parse(json.dumps(TINY), "model.json").facts()
        facts = facts.__class__(
            atomic_numbers=tuple(sorted(elements)),
            heads=facts.heads,
            atomic_energies=((0.0,) * len(elements),),
            r_max=3.0,
        )
        data = Dataset(sources, facts, torch.float64, free_atoms_only=free_atoms_only)
        members = list(range(min(len(data), 40)))
        assert data.labelled_rows(np.array(members)) == data.batch(members).rows
