"""The fast step gives mace-torch's numbers: energies, forces, stress, and every gradient of
each term of the loss.

mace-torch stands on the other side as ``--step reference``, its own forward pass, which
``test_parity.py`` holds to mace used by itself. Both forms share one module's weights.

    pytest tests/models/test_fast_step.py               every value of every axis
    BATTERY=full pytest tests/models/test_fast_step.py  every possible pair of two axes' values
    PARITY=full pytest tests/models/test_fast_step.py   the product of the main axes, and more
"""

import ctypes
import json
import logging
import os
import platform
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import covering
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import parity_cases as cases
from conftest import every
from dataloader.batch import Batch, collate
from dataloader.neighbors import build_graph
from dataloader.structure import Structure
from losses import Loss
from model_utils import model_loader, runtime
from model_utils.models import description as model_json
from model_utils.models.build import build_module
from model_utils.models.description import ModelDescription
from model_utils.models.fast import compiler, contraction, convolution, first_layer, kernels, linear
from model_utils.models.fast.backends import backend_of, plain_torch
from model_utils.models.fast.coverage import not_covered
from model_utils.models.fast.fast_network import FastNetwork
from model_utils.models.fast.graph import graph_of
from model_utils.models.network import Network, predict
from model_utils.models.reference import ReferenceNetwork
from model_utils.run.step import loss_and_gradients
from parity_cases import Case, Fields

MAIN: dict[str, dict[str, Fields]] = {
    "later": {k: v for k, v in cases.MAIN_AXES["later"].items() if k != "attention"},
    "first": {k: v for k, v in cases.MAIN_AXES["first"].items() if k != "attention"},
    "layers": {
        "two": {},
        "one": {"num_interactions": 1},
        "three": {"num_interactions": 3},
        "four": {"num_interactions": 4},
    },
    "irreps": {
        "vectors": {},
        "scalars": {"hidden_irreps": "4x0e"},
        "tensors": {"hidden_irreps": "4x0e+4x1o+4x2e"},
    },
    "orders": {"2": {}, "1": {"max_ell": 1}, "3": {"max_ell": 3}},
    "correlation": {
        **{f"{n}": {"correlation": [n] * 4} for n in (2, 1, 3)},
        "falling": {"correlation": [3, 2, 1, 2]},
    },
}
SWITCHES: dict[str, dict[str, Fields]] = {
    "channels": {"4": {}, "3": {"channels": 3}, "19": {"channels": 19}},
    "class": {"ScaleShift": {}, "MACE": {"model_class": "MACE"}},
    "transform": {name: {"distance_transform": name} for name in ("None", "Agnesi")},
    "repulsion": cases.MAIN_AXES["repulsion"],
    "heads": cases.MAIN_AXES["heads"],
    "radial": {k: cases.MAIN_AXES["radial"][k] for k in ("bessel", "gaussian")},
    "cutoff": cases.SWITCHES["cutoff"],
    "readouts": {"every": {}, "last": {"use_last_readout_only": True}, cases.ABSENT: {}},
    "last_layer": cases.SWITCHES["last_layer"],
    "readout": cases.SWITCHES["readout"],
    "gate": cases.SWITCHES["gate"],
    "widths": cases.SWITCHES["widths"] | {"one": {"radial_MLP": [16, 16, 16]}},
    "edge": {
        "all": {},
        "scalars": {"edge_irreps": "3x0e"},
        "vectors": {"edge_irreps": "2x0e+2x1o"},
        "first": {"edge_irreps": "3x0e", "use_edge_irreps_first": True},
    },
    "product": cases.SWITCHES["product"],
    "embedding": cases.SWITCHES["embedding"],
}
AXES = {**MAIN, **SWITCHES}
QUANTITIES = ("energy", "forces", "stress")
LOSSES = {
    name: Loss.of(**{other: float(other == name) for other in QUANTITIES}) for name in QUANTITIES
}


def possible(case: Case) -> bool:
    """Axes of later layers have no value where there is one layer."""
    single = {case[axis] == cases.ABSENT for axis in cases.LATER_LAYERS if axis in case}
    if "layers" in case:
        single.add(case["layers"] == "one")
    if len(single) > 1 or (single == {True} and case.get("edge") in ("scalars", "vectors")):
        return False
    if {"irreps": "scalars", "edge": "vectors"}.items() <= case.items():
        return False  # zeros would be sent
    if case.get("product") == "agnostic" and case.get("correlation") in ("1", "falling"):
        return False  # a view of mace's own fails in some of them
    return not any(combination.items() <= case.items() for combination, _ in cases.IMPOSSIBLE)


def full_product() -> Iterator[Case]:
    switches = covering.pairwise(SWITCHES, possible)
    for number, values in enumerate(product(*MAIN.values())):
        main = dict(zip(MAIN, values, strict=True))
        if possible(main):
            candidates = (
                {**main, **switches[(number + k) % len(switches)]} for k in range(len(switches))
            )
            yield next(case for case in candidates if possible(case))


FULL = os.environ.get("PARITY") == "full"
CASES = list(full_product()) if FULL else covering.pairwise(AXES, possible)


def has_compiler() -> bool:
    try:
        return bool(compiler._compiler())
    except compiler.BuildError:
        return False


needs_compiler = pytest.mark.skipif(
    not has_compiler(), reason="no C++ compiler: the fast step runs in plain torch"
)


def name_of(case: Case) -> str:
    return "-".join(
        v
        for axis, v in case.items()
        if axis in MAIN or v not in (cases.ABSENT, next(iter(AXES[axis])))
    )


def fields_of(case: Case) -> Fields:
    fields = dict(cases.BASE)
    for axis, value in case.items():
        fields.update(AXES[axis][value])
    channels = fields.pop("channels", 4)
    fields["hidden_irreps"] = fields["hidden_irreps"].replace("4x", f"{channels}x")
    correlation = (fields["correlation"] * 2)[: fields["num_interactions"]]
    return cases.completed({**fields, "correlation": None}) | {"correlation": correlation}


@dataclass(frozen=True, kw_only=True)
class Both:
    """One module in both forms, and structures."""

    description: ModelDescription
    module: nn.Module
    structures: list[Structure]

    @classmethod
    def of(cls, fields: Fields, dtype: torch.dtype = torch.float64) -> "Both":
        described = model_json.parse(json.dumps(fields), "model.json")
        assert not_covered(described) is None
        torch.manual_seed(5)
        with cases.python_instead_of_torchscript():
            module = build_module(described, dtype)
        with torch.no_grad():
            # biases begin at zero, which would hide them
            for parameter in model_loader.trainable(module).values():
                parameter += 0.02 * torch.randn_like(parameter)
        return cls(
            description=described, module=module, structures=cases.structures(fields["heads"])
        )

    @property
    def fast(self) -> Network:
        return FastNetwork(self.module)

    @property
    def reference(self) -> Network:
        return ReferenceNetwork(self.module)

    def batch(
        self, structures: list[Structure] | None = None, dtype: torch.dtype = torch.float64
    ) -> Batch:
        chosen = self.structures if structures is None else structures
        graphs = [build_graph(s, self.description.r_max) for s in chosen]
        return collate(
            chosen,
            graphs,
            range(len(chosen)),
            self.description.facts(),
            dtype,
            free_atoms_only=False,
        )


@pytest.fixture(autouse=True)
def _as_a_command() -> Iterator[None]:
    threads = torch.get_num_threads()
    runtime.start(device="cpu", dtype=torch.float64, threads=1, seed=11)
    yield
    torch.set_num_threads(threads)


def assert_close(
    ours: Tensor, theirs: Tensor, what: str, floor: float = 1e-3, tolerance: float = 1e-12
) -> None:
    """No entry differs by more than the tolerance times the largest, or times ``floor``
    where all are smaller.
    """
    assert ours.shape == theirs.shape
    error, scale = (
        float((ours - theirs).detach().abs().max()),
        max(float(theirs.detach().abs().max()), floor),
    )
    assert error <= tolerance * scale, (
        f"{what}: differs by {error:.2e} where the largest is {scale:.2e}"
    )


ALGEBRAS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "kernels": nullcontext,
    "torch": plain_torch,
}


def check_outputs(both: Both, batch: Batch) -> None:
    weights = model_loader.trainable(both.module)
    theirs = predict(both.reference, weights, batch, wanted=("stress",), training=False)
    for algebra, chosen in ALGEBRAS.items():
        with chosen():
            ours = predict(both.fast, weights, batch, wanted=("stress",), training=False)
        assert_close(ours["energy"], theirs["energy"], f"energies by {algebra}", floor=1.0)
        for name in ("forces", "stress"):
            assert_close(ours[name], theirs[name], f"{name} by {algebra}")


def check_gradients(both: Both, batch: Batch, term: str) -> None:
    weights = model_loader.trainable(both.module)
    theirs = loss_and_gradients(both.reference, weights, [batch], LOSSES[term])
    whole = float(torch.linalg.vector_norm(torch.cat([g.reshape(-1) for g in theirs.gradients])))
    for algebra, chosen in ALGEBRAS.items():
        with chosen():
            ours = loss_and_gradients(both.fast, weights, [batch], LOSSES[term])
        assert_close(ours.loss, theirs.loss, f"loss of {term} by {algebra}", floor=1e-6)
        for name, own, their in zip(weights, ours.gradients, theirs.gradients, strict=True):
            error, size = (
                float(torch.linalg.vector_norm(own - their)),
                float(torch.linalg.vector_norm(their)),
            )
            limit = 1e-12 * max(size, 1e-2 * whole)
            what = f"gradient of the {term} loss by {name}, {algebra}"
            assert error <= limit, f"{what}: differs by {error:.2e} of {size:.2e}"


@pytest.mark.parametrize("case", CASES if FULL else every(3, CASES), ids=name_of)
def test_parity(case: Case) -> None:
    both = Both.of(fields_of(case))
    batch = both.batch()
    check_outputs(both, batch)
    for term in LOSSES:
        check_gradients(both, batch, term)


def test_every_value_of_every_axis_occurs_by_default() -> None:
    by_default = {
        value for case in covering.pairwise(AXES, possible)[::2] for value in case.items()
    }
    assert by_default == {(axis, value) for axis in AXES for value in AXES[axis]}


RICH: Case = {
    "first": "density", "later": "residual", "layers": "three", "irreps": "tensors", "orders": "3",
    "transform": "Agnesi", "repulsion": "zbl", "heads": "two",
}  # fmt: skip


@pytest.mark.parametrize(
    "case", [RICH, {"first": "nonlinear", "later": "nonlinear"}], ids=["rich", "nonlinear"]
)
def test_each_structure_alone(case: Case) -> None:
    """Molecules, a slab, crystals, an atom alone: without edges there are no
    pairs, rows or segments.
    """
    both = Both.of(fields_of(case))
    assert min(both.batch([s]).n_edges for s in both.structures) == 0
    for structure in both.structures:
        check_outputs(both, both.batch([structure]))
        check_gradients(both, both.batch([structure]), "forces")


def test_forces_and_stress_are_derivatives_of_the_energy() -> None:
    both, rng, step = Both.of(fields_of(RICH)), np.random.default_rng(3), 1e-5
    weights = model_loader.trainable(both.module)

    def energy(structure: Structure) -> float:
        return float(
            predict(both.fast, weights, both.batch([structure]), wanted=(), training=False)[
                "energy"
            ]
        )

    for structure in both.structures:
        found = predict(
            both.fast, weights, both.batch([structure]), wanted=("stress",), training=False
        )
        direction = rng.normal(size=(structure.n_atoms, 3))
        ends = [
            replace(structure, positions=structure.positions + h * direction) for h in (step, -step)
        ]
        slope = (energy(ends[0]) - energy(ends[1])) / (2 * step)
        assert slope == pytest.approx(
            -float((found["forces"].numpy() * direction).sum()), rel=1e-6, abs=1e-7
        )
        if structure.periodic:
            strain = rng.normal(size=(3, 3))
            strain += strain.T
            bent = [np.eye(3) + h * strain for h in (step, -step)]
            ends = [
                replace(structure, positions=structure.positions @ b, cell=structure.cell @ b)
                for b in bent
            ]
            slope = (energy(ends[0]) - energy(ends[1])) / (2 * step)
            volume = abs(float(np.linalg.det(structure.cell)))
            assert slope == pytest.approx(
                float((found["stress"][0].numpy() * strain).sum()) * volume, rel=1e-6, abs=1e-7
            )


@pytest.mark.parametrize("radial", ["bessel", "gaussian"])
def test_second_derivatives_by_positions(radial: str) -> None:
    """Not a part of training: rows of the Hessian, which go through every derivative
    of harmonics and basis.
    """
    both = Both.of(fields_of({"orders": "3", "irreps": "tensors", "radial": radial}))
    weights, batch = model_loader.trainable(both.module), both.batch()
    direction = torch.randn_like(batch.positions)
    found = []
    for network in (both.fast, both.reference):
        positions = batch.positions.clone().requires_grad_(True)
        energy = network.outputs(weights, batch, positions, batch.shifts)["energy"]
        (forces,) = torch.autograd.grad(energy.sum(), positions, create_graph=True)
        found += torch.autograd.grad(forces, positions, direction)
    assert_close(*found, "Hessian")


HIGHEST: dict[str, Fields] = {
    "orders": {"hidden_irreps": "2x0e+2x1o+2x2e+2x3o", "max_ell": 4},
    "factors": {"correlation": [4, 4], "max_ell": 1},
}


@pytest.mark.parametrize("name", HIGHEST)
def test_highest_orders(name: str) -> None:
    """Hidden l = 3 and max_ell 4; products of four features."""
    both = Both.of(cases.completed({**cases.BASE, **HIGHEST[name]}))
    check_outputs(both, both.batch())
    check_gradients(both, both.batch(), "forces")


@needs_compiler
def test_either_way_through_the_first_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """By sums over senders of an element, and by path weights where neighbours are few;
    other tests take what pays.
    """
    both = Both.of(fields_of({"orders": "3"}))
    for saved in (0.0, 1e9):
        monkeypatch.setattr(first_layer, "SAVED", saved)
        check_outputs(both, both.batch())
        check_gradients(both, both.batch(), "forces")


def many_elements() -> tuple[Both, Batch]:
    """18 atoms of 17 elements, in a table of 40: segments are not dense, and of the atoms'
    tiles not all are full.
    """
    numbers = list(range(1, 41))
    fields = cases.completed(
        {**cases.BASE, "atomic_numbers": numbers, "atomic_energies": [[0.0] * 40], "max_ell": 3}
    )
    both, rng = Both.of(fields), np.random.default_rng(4)
    crystal = next(s for s in both.structures if s.periodic)
    grid = np.stack(np.meshgrid(*[np.arange(3)] * 3, indexing="ij"), -1).reshape(-1, 3)[:18]
    many = replace(
        crystal,
        atomic_numbers=np.array([*range(2, 19), 2]),
        positions=grid * 2.7 + rng.normal(scale=0.1, size=(18, 3)),
        cell=8.1 * np.eye(3) + 0.1,
        labels={**crystal.labels, "forces": rng.normal(size=(18, 3))},
        free_atoms=None,
        features={},
        head=None,
    )
    return both, both.batch([many])


def test_many_elements_and_few_of_them_present(monkeypatch: pytest.MonkeyPatch) -> None:
    both, batch = many_elements()
    graph = graph_of(batch)
    assert not graph.dense_segments
    assert graph.tiles.n_slots > graph.n_atoms
    # by sums over senders of an element, with kernels too
    monkeypatch.setattr(first_layer, "SAVED", 1e9)
    check_outputs(both, batch)
    check_gradients(both, batch, "forces")


class Repeated(TorchDispatchMode):
    """Notes what adds to one place twice, which a GPU does by atomics, in no order."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::").removesuffix("_")
        if name in ("index_add", "scatter_add"):
            axis = args[1] if name == "scatter_add" else 0
            if (args[2].sort(dim=axis).values.diff(dim=axis) == 0).any():
                self.seen.append(f"{name} to {tuple(args[0].shape)}")
        return func(*args, **(kwargs or {}))


EVERY_PART: dict[str, Fields] = {
    "densities": fields_of({**RICH, "later": "density_residual"}),
    "directed edges": fields_of(
        {
            "first": "nonlinear",
            "later": "nonlinear",
            "embedding": "readout",
            "edge": "vectors",
            "cutoff": "on_weights",
        }
    ),
    "one element": fields_of(
        {"first": "nonlinear", "later": "residual", "product": "agnostic", "radial": "gaussian"}
    ),
    "four factors": cases.completed({**cases.BASE, "correlation": [4, 4], "max_ell": 1}),
}


@pytest.mark.parametrize("name", EVERY_PART)
def test_plain_torch_adds_in_one_order(name: str) -> None:
    both = Both.of(EVERY_PART[name])
    weights = model_loader.trainable(both.module)
    with plain_torch(), Repeated() as repeated:
        loss_and_gradients(
            both.fast, weights, [both.batch()], Loss.of(energy=1.0, forces=1.0, stress=1.0)
        )
    assert not repeated.seen


@pytest.mark.parametrize("term", ["energy", "forces"])
def test_error_in_single_precision(term: str) -> None:
    """Against a float64 truth on the same rounded weights, at most 1.5 times the error of
    mace-torch's own float32.
    """
    both = Both.of(
        fields_of({**RICH, "later": "density_residual", "channels": "19"}), torch.float32
    )
    weights = model_loader.trainable(both.module)
    structures = both.structures
    torch.set_default_dtype(torch.float32)
    single = both.batch(structures, torch.float32)
    errors = []
    found = [
        loss_and_gradients(n, weights, [single], LOSSES[term]) for n in (both.fast, both.reference)
    ]
    torch.set_default_dtype(torch.float64)
    truth_module = model_loader.copied(both.module).double()
    truth_weights = model_loader.trainable(truth_module)
    double = replace(
        single,
        positions=single.positions.double(),
        cell=single.cell.double(),
        shifts=single.shifts.double(),
    )
    truth = loss_and_gradients(
        ReferenceNetwork(truth_module), truth_weights, [double], LOSSES[term]
    )
    exact = torch.cat([g.reshape(-1) for g in truth.gradients])
    for result in found:
        rounded = torch.cat([g.reshape(-1) for g in result.gradients]).double()
        errors.append(
            float(torch.linalg.vector_norm(rounded - exact) / torch.linalg.vector_norm(exact))
        )
    assert errors[0] <= 1.5 * errors[1] + 1e-7, errors


def test_fifty_steps_follow_the_reference() -> None:
    """Adam on energies, forces and stress in float64: each step's loss within
    1e-6 of the reference's.
    """
    losses = []
    for form in (FastNetwork, ReferenceNetwork):
        both = Both.of(fields_of({"orders": "3", "heads": "two"}))
        network, weights, batch = (
            form(both.module),
            model_loader.trainable(both.module),
            both.batch(),
        )
        optimizer = torch.optim.Adam(list(weights.values()), lr=0.01, amsgrad=True)
        found = []
        for _ in range(50):
            result = loss_and_gradients(network, weights, [batch], Loss.of(stress=1.0))
            for parameter, gradient in zip(weights.values(), result.gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
            found.append(float(result.loss))
        losses.append(found)
    assert losses[0][-1] < 0.9 * losses[0][0]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_a_list_that_is_not_symmetric_is_refused() -> None:
    both = Both.of(fields_of({}))
    batch = both.batch()
    kept = slice(1, None)
    names = ("senders", "receivers", "cell_shifts", "shifts")
    with pytest.raises(ValueError, match="not symmetric"):
        graph_of(replace(batch, **{name: getattr(batch, name)[kept] for name in names}))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"interaction_cls": cases.INTERACTIONS["attention"]}, "AttResidual"),
        ({"hidden_irreps": "4x0e+4x0o+4x1o"}, "hidden_irreps"),
        ({"hidden_irreps": "4x0e+4x1o+4x2e+4x3o+4x4e"}, "l = 3"),
        ({"max_ell": 5}, "max_ell"),
        ({"distance_transform": "Soft"}, "Soft"),
        ({"edge_irreps": "3x0e+2x1o"}, "edge_irreps"),
    ],
)
def test_what_is_not_covered_runs_the_reference_and_says_so(
    changes: Fields, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    described = model_json.parse(
        json.dumps(cases.completed({**cases.BASE, **changes})), "model.json"
    )
    assert reason in (not_covered(described) or "")
    caplog.set_level("INFO", logger=runtime.log.name)
    runtime.log.addHandler(caplog.handler)
    try:
        network = model_loader.build_network(
            build_module(described, torch.float64), "fast", described
        )
    finally:
        runtime.log.removeHandler(caplog.handler)
    assert network.kind == "reference"
    assert reason in caplog.text


def test_frozen_weights_give_the_same_bits() -> None:
    """What is kept of them belongs to the elements of the latest batch: molecules of
    others come in between.
    """
    both = Both.of(fields_of({"first": "density"}))
    weights = {
        name: weight.detach() for name, weight in model_loader.trainable(both.module).items()
    }
    frozen = FastNetwork(both.module)
    frozen.freeze()
    batches = [both.batch([structure]) for structure in both.structures]
    for batch in [*batches, *reversed(batches), *batches]:
        right = predict(both.fast, weights, batch, wanted=("stress",), training=False)
        kept = predict(frozen, weights, batch, wanted=("stress",), training=False)
        assert {name: values.tolist() for name, values in kept.items()} == {
            name: values.tolist() for name, values in right.items()
        }
    assert len({tuple(sorted(set(b.species.tolist()))) for b in batches}) > 1


def test_frozen_weights_that_are_changed_all_the_same_are_not_mixed_with_kept_values() -> None:
    both = Both.of(fields_of({"first": "density"}))
    weights = {
        name: weight.detach() for name, weight in model_loader.trainable(both.module).items()
    }
    frozen = FastNetwork(both.module)
    frozen.freeze()
    batch = both.batch(both.structures[:1])
    with torch.inference_mode():
        frozen.outputs(weights, batch, batch.positions, batch.shifts)
    for factor in (1.0, 1.5):
        for weight in weights.values():
            weight.mul_(factor)
        right = predict(both.fast, weights, batch, wanted=("forces",), training=False)
        kept = predict(frozen, weights, batch, wanted=("forces",), training=False)
        assert kept["forces"].tolist() == right["forces"].tolist()


# Kernels


@needs_compiler
def test_kernels_are_compiled_here() -> None:
    """Otherwise the tests above compare plain torch with itself."""
    assert backend_of(torch.zeros(1)) is not None


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_number_of_threads_gives_the_same_bits(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every kernel of a step, run again with other numbers of threads. torch's matrix
    products have no such promise.
    """
    fields = fields_of(
        {
            "orders": "3",
            "irreps": "tensors",
            "correlation": "3",
            "channels": "19",
            "first": "density",
        }
    )
    both = Both.of(fields, dtype)
    torch.set_default_dtype(dtype)
    batch, weights = both.batch(both.structures * 4, dtype), model_loader.trainable(both.module)
    right, seen = kernels.call, set()

    def again(name: str, dtype: torch.dtype, *arguments: Any) -> None:
        found = []
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            product(*arguments) if name == "multiply" else right(name, dtype, *arguments)
            found.append([a.clone() for a in arguments if isinstance(a, Tensor)])
        torch.set_num_threads(1)
        assert all(
            torch.equal(a, b) for other in found for a, b in zip(other, found[0], strict=True)
        ), name
        seen.add(name)

    def again_product(a: Tensor, b: Tensor, out: Tensor) -> None:
        again("multiply", out.dtype, a, b, out)

    product = kernels.multiply
    monkeypatch.setattr(kernels, "multiply", again_product)
    monkeypatch.setattr(kernels, "call", again)
    loss_and_gradients(both.fast, weights, [batch], Loss.of(stress=1.0))
    assert {
        f"{kernel}{vjp}" for kernel in ("convolve", "contract") for vjp in ("", "_vjp", "_vjp_vjp")
    } <= seen
    assert {
        "pair_network",
        "pair_network_vjp",
        "map_blocks",
        "map_blocks_by_input",
        "map_blocks_by_weight",
    } <= seen


@pytest.fixture
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    return tmp_path / "cache" / "mace-pretrain"


def fake_compiler(folder: Path, name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o700)
    monkeypatch.setenv("CXX", str(path))


@needs_compiler
def test_the_cache_is_the_users_alone_and_compiles_once(
    fresh_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With sources that compile at once."""
    compiled = []
    right = compiler._compiled
    (tmp_path / "sources").mkdir()
    for name, value in (("one", 1), ("two", 2)):
        text = f'extern "C" REAL {name}() {{ return {value}; }}\n'
        (tmp_path / "sources" / f"{name}.cpp").write_text(text)
    monkeypatch.setattr(compiler, "FOLDER", tmp_path / "sources")
    monkeypatch.setattr(
        compiler, "_compiled", lambda *args: (compiled.append(args), right(*args))[1]
    )
    library = compiler.build("float64")
    library.one.restype = library.two.restype = ctypes.c_double
    assert (library.one(), library.two()) == (1.0, 2.0)
    compiler.build("float64")
    assert len(compiled) == 1
    assert stat.S_IMODE(fresh_cache.stat().st_mode) == 0o700
    assert len(list(fresh_cache.glob("*.so"))) == 1
    monkeypatch.setattr(compiler, "_cpu", lambda: "another CPU")
    compiler.build("float64")
    assert len(compiled) == 2
    assert len(list(fresh_cache.glob("*.so"))) == 2
    compiler.build("float32")
    assert len(compiled) == 3
    assert len(list(fresh_cache.glob("*.so"))) == 3
    assert {path.suffix for path in fresh_cache.iterdir()} == {".so", ".sha256"}


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (
            '[ "$1" = --version ] && echo 1 || { echo "x.cpp:1: error: no disk" >&2; exit 1; }',
            "no disk",
        ),
        ('for a; do [ "$before" = -o ] && : > "$a"; before=$a; done; echo 1', "does not load"),
        ("exit 3", "failed"),
    ],
)
def test_a_compiler_that_fails_is_one_loud_line(
    script: str,
    reason: str,
    fresh_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: Any,
) -> None:
    fake_compiler(tmp_path, "compiler", script, monkeypatch)
    runtime.log.addHandler(caplog.handler)
    kernels._library.cache_clear()
    try:
        assert backend_of(torch.zeros(1)) is None
        assert backend_of(torch.zeros(1)) is None
        both = Both.of(fields_of({}))
        check_outputs(both, both.batch())
    finally:
        runtime.log.removeHandler(caplog.handler)
        kernels._library.cache_clear()
    assert len({id(record) for record in caplog.records if record.levelno >= logging.WARNING}) == 1
    assert "plain torch" in caplog.text
    assert reason in caplog.text
    assert list(fresh_cache.glob("*")) == []


@pytest.mark.parametrize("flags", ["-march=haswell", "-march=x86-64"])
def test_other_vector_widths(
    flags: str, fresh_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CPU's own width is tested above; AVX2 and SSE run on any x86 CPU with AVX-512."""
    if platform.machine() != "x86_64" or "avx2" not in compiler._cpu() or not has_compiler():
        pytest.skip("needs an x86 CPU with AVX2 and a C++ compiler")
    if os.environ.get("PARITY") != "full":
        pytest.skip("compiles anew, which takes 10 s: with PARITY=full")
    monkeypatch.setattr(
        compiler, "FLAGS", [flags if f.startswith("-march") else f for f in compiler.FLAGS]
    )
    kernels._library.cache_clear()
    try:
        both = Both.of(fields_of({**RICH, "channels": "19"}))
        check_outputs(both, both.batch())
        for term in LOSSES:
            check_gradients(both, both.batch(), term)
    finally:
        kernels._library.cache_clear()


# The guard can fail: the algebra is broken in one place, and it says so.


def _sign_of_odd_orders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "odd", lambda max_ell: [False] * (max_ell + 1) ** 2)


def _second_derivative_of_silu(monkeypatch: pytest.MonkeyPatch) -> None:
    right = linear.second_slope
    monkeypatch.setattr(linear, "second_slope", lambda z, s: right(z, s) * (1 + 1e-6))


def _a_kernels_second_derivative(monkeypatch: pytest.MonkeyPatch) -> None:
    right = kernels.call

    def wrong(name: str, dtype: torch.dtype, *arguments: Any) -> None:
        right(name, dtype, *arguments)
        if name == "convolve_vjp_vjp":
            arguments[-2].mul_(1 + 1e-9)

    monkeypatch.setattr(kernels, "call", wrong)


def _a_slope_of_the_radial_network(monkeypatch: pytest.MonkeyPatch) -> None:
    right = kernels.call

    def wrong(name: str, dtype: torch.dtype, *arguments: Any) -> None:
        right(name, dtype, *arguments)
        if name == "pair_network":
            arguments[-1].mul_(1 + 1e-9)

    monkeypatch.setattr(kernels, "call", wrong)


def _one_coupling(monkeypatch: pytest.MonkeyPatch) -> None:
    right = convolution.o3.wigner_3j
    monkeypatch.setattr(
        convolution.o3,
        "wigner_3j",
        lambda *args, **kw: right(*args, **kw) * (1 + 1e-9 * (args[2] == 2)),
    )


def _a_monomial(monkeypatch: pytest.MonkeyPatch) -> None:
    right: Callable[[Tensor, int, str], Any] = contraction._monomials

    def without_the_last(u: Tensor, degree: int, weight: str) -> Any:
        whole = right(u, degree, weight)
        return (
            None
            if whole is None
            else replace(whole, rows=whole.rows[:-1], couplings=whole.couplings[:-1])
        )

    monkeypatch.setattr(contraction, "_monomials", without_the_last)


def _scale_of_first_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    right = first_layer.FirstLayer.of.__func__  # type: ignore[attr-defined]
    wrong = classmethod(lambda cls, tp: cls(tuple(s * (1 + 1e-10) for s in right(cls, tp).scales)))
    monkeypatch.setattr(first_layer.FirstLayer, "of", wrong)


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(_sign_of_odd_orders, marks=needs_compiler),
        _second_derivative_of_silu,
        pytest.param(_a_kernels_second_derivative, marks=needs_compiler),
        pytest.param(_a_slope_of_the_radial_network, marks=needs_compiler),
        _one_coupling,
        _a_monomial,
        _scale_of_first_layer,
    ],
)
def test_a_fault_of_the_algebra_is_seen(
    fault: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = fields_of({"orders": "3"})
    right = Both.of(fields)
    check_gradients(right, right.batch(), "forces")
    fault(monkeypatch)
    with pytest.raises(AssertionError, match=r"differs by"):
        check_gradients(right, right.batch(), "forces")
