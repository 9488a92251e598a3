"""Orders of a batch: made where batches are made, carried with them in one
buffer, made anew for parts.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dataloader.batch import Batch, BatchBuffer, _map_tensors, _Mover
from dataloader.dataset import Dataset
from dataloader.dividing import halves
from dataloader.errors import InputError
from dataloader.labels import TO_TRAIN
from dataloader.loader import Loader
from dataloader.sources import SourceSpec, open_sources
from losses import Loss
from model_utils import evaluate, model_loader, train_mace
from model_utils.models import description as model_json
from model_utils.models.fast import graph
from model_utils.models.fast.backends import BACKENDS, backend_of, plain_torch
from model_utils.models.fast.orders import orders_of, prepared
from model_utils.run.step import loss_and_gradients

Make = Callable[..., Path]
PLAN = [np.array([0, 3, 5]), np.array([1]), np.array([2, 4])]


@pytest.fixture
def data(water_xyz: Make, tiny_json: Path) -> Dataset:
    facts = model_json.read(tiny_json).facts()
    sources = open_sources(
        [SourceSpec(path=water_xyz("train.xyz", 6), format="xyz")], needs=TO_TRAIN, max_dropped=0.0
    )
    return Dataset(sources, facts, torch.float64)


def assert_same(first: Batch, second: Batch) -> None:
    assert first.orders.keys() == second.orders.keys()
    for name, value in first.orders.items():
        other = second.orders[name]
        same = torch.equal(value, other) if isinstance(value, Tensor) else value == other
        assert same, name


@pytest.mark.parametrize("num_workers", [0, 1])
def test_loader_brings_orders_wherever_batches_are_made(data: Dataset, num_workers: int) -> None:
    made = list(Loader(data, num_workers=num_workers, prepare=prepared).batches(PLAN))
    plain = list(Loader(data).batches(PLAN))
    for batch, bare in zip(made, plain, strict=True):
        assert not bare.orders
        assert_same(batch, prepared(bare))


def test_orders_lie_in_the_buffer_of_their_batch_and_move_as_one_copy(data: Dataset) -> None:
    batch = prepared(data.batch([0, 1, 2]))
    packed = BatchBuffer(batch).batch()
    addresses = {
        value.untyped_storage().data_ptr()
        for value in packed.orders.values()
        if isinstance(value, Tensor)
    }
    assert addresses == {packed.positions.untyped_storage().data_ptr()}
    mover = _Mover(torch.device("cpu"))
    moved = _map_tensors(replace(packed, head=packed.head.clone()), mover)
    assert len(mover._buffers) == 1
    assert_same(moved, batch)
    assert torch.equal(moved.positions, batch.positions)
    assert torch.equal(moved.labels["forces"].value, batch.labels["forces"].value)


def test_half_a_batch_brings_no_orders_of_the_whole(data: Dataset, tiny_json: Path) -> None:
    described = model_json.read(tiny_json)
    network = model_loader.build_network(
        model_loader.build(described, torch.float64, 1), "fast", described
    )
    weights = model_loader.trainable(network.module)
    whole = network.prepared(data.batch([0, 1, 2, 3]))
    parts = halves(whole)
    assert [dict(part.orders) for part in parts] == [{}, {}]
    energies = [
        network.outputs(weights, b, b.positions, b.shifts)["energy"] for b in (whole, *parts)
    ]
    torch.testing.assert_close(torch.cat(energies[1:]), energies[0], rtol=1e-12, atol=1e-12)


def test_a_run_makes_no_orders_within_a_step(
    water_xyz: Make, tiny_json: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training, validation, the table at the end and ``evaluate.py``: the fast step takes
    what the batch brings.
    """

    def refuse(batch: Batch) -> None:
        raise AssertionError("the orders of a batch are made where the step is")

    monkeypatch.setattr(graph, "orders_of", refuse)
    words = [
        "--input_json",
        str(tiny_json),
        "--xyz_train",
        str(water_xyz("train.xyz", 5)),
        "--epochs",
        "1",
    ]
    words += [
        "--xyz_val",
        str(water_xyz("val.xyz", 3, seed=1)),
        "--batch_size",
        "2",
        "--no_export_mace_model",
    ]
    assert train_mace.main([*words, "--output_checkpoint", str(tmp_path / "run")]) == 0
    model = str(tmp_path / "run" / "run_model.pt")
    assert evaluate.main(["--input_model", model, "--xyz_path", str(tmp_path / "val.xyz")]) == 0


def test_a_step_on_a_prepared_batch_reads_nothing_back(
    data: Dataset, tiny_json: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In plain torch, which is what a GPU without kernels runs: each number that is read
    there waits for the GPU.
    """
    described = model_json.read(tiny_json)
    network = model_loader.build_network(
        model_loader.build(described, torch.float64, 1), "fast", described
    )
    weights = model_loader.trainable(network.module)
    batch = network.prepared(data.batch([0, 1, 2, 3]))

    def refuse(*_: object) -> None:
        raise AssertionError("a tensor is read back within a step")

    with plain_torch():
        # constants are read once
        expected = loss_and_gradients(network, weights, [replace(batch)], Loss.of()).loss
        with monkeypatch.context() as patch:
            for name in ("item", "tolist", "__bool__", "__int__", "__float__", "nonzero", "numpy"):
                patch.setattr(Tensor, name, refuse)
            found = loss_and_gradients(network, weights, [replace(batch)], Loss.of()).loss
    assert torch.equal(found, expected)


def test_another_backend_takes_over(
    data: Dataset, tiny_json: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backend that is added to the table is asked in its turn, and its name is
    recorded as what computes.
    """
    used = []

    class Other(type(BACKENDS["cpp"])):  # type: ignore[misc]
        name = "another"

        def convolve(self, *words: object) -> None:
            used.append("convolve")
            super().convolve(*words)

    if backend_of(torch.zeros(1)) is None:
        pytest.skip("needs a C++ compiler")
    monkeypatch.setitem(BACKENDS, "cpp", Other())
    described = model_json.read(tiny_json)
    network = model_loader.build_network(
        model_loader.build(described, torch.float64, 1), "fast", described
    )
    batch = data.batch([0, 1])
    network.outputs({}, batch, batch.positions, batch.shifts)
    assert set(used) == {"convolve"}
    assert network.arithmetic == "another"


def test_an_edge_without_reverse_is_named_with_its_structures(data: Dataset) -> None:
    def one_sided(batch: Batch) -> Batch:
        kept = slice(1, None)
        names = ("senders", "receivers", "cell_shifts", "shifts")
        return prepared(replace(batch, **{name: getattr(batch, name)[kept] for name in names}))

    for num_workers in (0, 1):
        loader = Loader(data, num_workers=num_workers, prepare=one_sided)
        with pytest.raises(InputError, match=r"train.xyz#1.*the neighbour list is not symmetric"):
            list(loader.batches(PLAN[1:]))


def test_orders_are_of_few_bytes(data: Dataset) -> None:
    batch = data.batch([0, 1, 2])
    of_edges = [
        v for v in orders_of(batch).values() if isinstance(v, Tensor) and len(v) == batch.n_edges
    ]
    assert sorted(str(v.dtype) for v in of_edges) == [
        "torch.int32",
        "torch.int32",
        "torch.int32",
        "torch.int8",
    ]
