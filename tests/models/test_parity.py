"""The parity guard: every network that model.json can describe gives
mace-torch's numbers, in float64.

On one side stands our way (``build_module``, vesin's edges, ``collate``, ``predict``,
``loss_and_gradients``), on the other mace-torch by itself (``parity_cases``): its constructor
with every argument written out, its data classes, its losses, its forward pass and autograd. Both
have the same weights.

    pytest -n 2 tests/models/test_parity.py               23 networks, all values of all axes; 20 s
    BATTERY=full pytest -n 2 tests/models/test_parity.py  45 networks, all pairs of values; 1 min
    PARITY=full pytest -n 2 tests/models/test_parity.py   6,048, the product of the main axes; 1 h

The full run builds our networks without TorchScript too, which never gives back the 10
MB that each would take.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from inspect import signature
from itertools import combinations, product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import parity_cases as cases
from conftest import every
from dataloader.batch import Batch, collate
from dataloader.errors import InputError
from dataloader.neighbors import build_graph
from dataloader.structure import Structure
from losses import Loss, Prediction
from model_utils import runtime
from model_utils.model_loader import trainable
from model_utils.models import description as model_json
from model_utils.models.build import build_module
from model_utils.models.description import ModelDescription
from model_utils.models.mace_import import CUET_AVAILABLE
from model_utils.models.network import predict
from model_utils.models.reference import ReferenceNetwork
from model_utils.run.step import loss_and_gradients
from parity_cases import AXES, BASE, EMBEDDINGS, INTERACTIONS, Case, Fields

FULL = os.environ.get("PARITY") == "full"
CASES = list(cases.full_product()) if FULL else cases.pairwise(AXES)
RICH: Case = {
    "first": "density",
    "transform": "Agnesi",
    "repulsion": "zbl",
    "heads": "two",
    "correlation": "falling",
}
TERMS = ("energy", "forces", "stress")
# eV, eV/Å, eV/Å³: magnitudes below which an error counts as one of these
ENERGY, FORCES, STRESS = 1.0, 1e-3, 1e-4


@pytest.fixture(autouse=True)
def _as_a_command() -> Iterator[None]:
    """The process as a command sets it up: ZBL multiplies whole numbers in
    torch's default precision.

    One thread, since arrays here are tiny and pytest-xdist's workers share the cores.
    """
    threads = torch.get_num_threads()
    runtime.start(device="cpu", dtype=torch.float64, threads=1, seed=11)
    yield
    torch.set_num_threads(threads)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One network twice, with equal weights: ours and mace's."""

    fields: Fields
    description: ModelDescription
    ours: nn.Module
    theirs: nn.Module

    @property
    def structures(self) -> list[Structure]:
        return cases.structures(self.fields["heads"])


def build_pair(fields: Fields) -> Pair:
    """Build both, compare all names, shapes and constants, and give mace's the weights of ours."""
    described = model_json.parse(json.dumps(fields), "model.json")
    with cases.python_instead_of_torchscript():
        ours = build_module(described, torch.float64)
    theirs = cases.direct_model(fields)
    with torch.no_grad():
        for parameter in trainable(ours).values():  # biases begin at zero, which would hide them
            parameter += 0.02 * torch.randn_like(parameter)
    check_same_tensors(ours, theirs)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return Pair(fields=fields, description=described, ours=ours, theirs=theirs)


@cache
def rich_pair() -> Pair:
    return build_pair(cases.fields_of(RICH))


def our_batch(pair: Pair, structures: Sequence[Structure]) -> Batch:
    graphs = [build_graph(s, pair.description.r_max) for s in structures]
    facts, index = pair.description.facts(), range(len(structures))
    return collate(structures, graphs, index, facts, torch.float64, free_atoms_only=False)


def our_prediction(pair: Pair, batch: Batch) -> Prediction:
    return predict(
        ReferenceNetwork(pair.ours), trainable(pair.ours), batch, wanted=("stress",), training=False
    )


def check_same_tensors(ours: nn.Module, theirs: nn.Module) -> None:
    """Parameters of equal names, shapes and trainability; buffers of equal names and values."""
    shapes = [
        {name: (p.shape, p.requires_grad) for name, p in m.named_parameters()}
        for m in (ours, theirs)
    ]
    assert shapes[0] == shapes[1]
    assert set(trainable(ours)) == {
        name for name, p in theirs.named_parameters() if p.requires_grad and p.numel()
    }
    mine, their = dict(ours.named_buffers()), dict(theirs.named_buffers())
    assert set(mine) == set(their)
    assert {name: b.dtype for name, b in mine.items()} == {
        name: b.dtype for name, b in their.items()
    }
    assert [name for name in mine if not torch.equal(mine[name], their[name])] == []


def assert_close(ours: Tensor, theirs: Tensor, floor: float, what: str) -> None:
    """No entry differs by more than 10⁻¹⁰ of the largest, or of ``floor`` where all are smaller."""
    error, scale = largest(ours - theirs), max(largest(theirs), floor)
    assert error <= 1e-10 * scale, (
        f"{what}: differs by {error:.2e} where the largest is {scale:.2e}"
    )


def largest(tensor: Tensor) -> float:
    return float(tensor.detach().abs().max())


def check_outputs(pair: Pair, structures: Sequence[Structure], batch: Batch | None = None) -> None:
    """Edges, energies, forces and, of crystals, stress of every structure of a batch."""
    batch = our_batch(pair, structures) if batch is None else batch
    theirs = cases.mace_batch(structures, pair.fields)
    assert batch.n_edges == theirs.edge_index.shape[1]
    mine, expected = (
        our_prediction(pair, batch),
        cases.mace_outputs(pair.theirs, theirs, stress=True),
    )
    for i, structure in enumerate(structures):
        name, atoms = structure.identifier, slice(int(batch.ptr[i]), int(batch.ptr[i + 1]))
        total = mine["energy"][i] + batch.reference_energy[i]
        assert_close(total, expected["energy"][i], ENERGY, f"energy of the {name}")
        assert_close(
            mine["forces"][atoms], expected["forces"][atoms], FORCES, f"forces of the {name}"
        )
        if structure.periodic:
            assert_close(mine["stress"][i], expected["stress"][i], STRESS, f"stress of the {name}")


def check_loss_and_gradients(pair: Pair, term: str) -> None:
    """One term of the loss, all of its entries labelled, and its gradient by every parameter."""
    structures = [s for s in pair.structures if s.periodic or term != "stress"]
    parameters = trainable(pair.ours)
    weights: dict[str, Any] = {f"{name}_weight": float(name == term) for name in TERMS}
    mine = loss_and_gradients(
        ReferenceNetwork(pair.ours),
        parameters,
        [our_batch(pair, structures)],
        Loss.of(**{name: float(name == term) for name in TERMS}),
    )
    their_parameters = dict(pair.theirs.named_parameters())
    loss, gradients = cases.mace_loss_and_gradients(
        pair.theirs,
        cases.mace_batch(structures, pair.fields),
        weights,
        [their_parameters[name] for name in parameters],
    )
    assert_close(mine.loss, loss, 1e-6, f"loss of {term}")
    whole = float(
        torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))
    )
    assert whole > 0
    for name, own, their in zip(parameters, mine.gradients, gradients, strict=True):
        error, size = (
            float(torch.linalg.vector_norm(own - their)),
            float(torch.linalg.vector_norm(their)),
        )
        limit = 1e-8 * max(size, 1e-6 * whole)
        assert error <= limit, (
            f"gradient of the {term} loss by {name}: differs by {error:.2e} of {size:.2e}"
        )


def check_round_trip(described: ModelDescription) -> None:
    text = described.canonical_text()
    again = model_json.parse(text, "canonical")
    assert again.canonical_text() == text
    assert (again, again.hash()) == (described, described.hash())


@pytest.mark.parametrize("case", CASES if FULL else every(3, CASES), ids=cases.name_of)
def test_parity(case: Case) -> None:
    pair = build_pair(cases.fields_of(case))
    check_round_trip(pair.description)
    check_outputs(pair, pair.structures)
    for structure in pair.structures:
        check_outputs(pair, [structure])
    for term in TERMS:
        check_loss_and_gradients(pair, term)


def test_every_possible_pair_of_values_occurs() -> None:
    networks = cases.pairwise(AXES)
    by_default = {value for case in networks[::2] for value in case.items()}
    assert by_default == {(axis, value) for axis in AXES for value in AXES[axis]}, (
        "every value, in the default tests"
    )
    covered = {pair for case in networks for pair in product(case.items(), repeat=2)}
    for a, b in combinations(AXES, 2):
        for pair in product([(a, v) for v in AXES[a]], [(b, v) for v in AXES[b]]):
            assert cases.possible(dict(pair)) == (pair in covered), pair


def test_hashes_of_different_networks_differ() -> None:
    fields = [cases.fields_of(case) for case in CASES]
    texts = {json.dumps(f, sort_keys=True) for f in fields}
    assert len({model_json.parse(json.dumps(f), "model.json").hash() for f in fields}) == len(texts)


def test_mace_has_nothing_that_the_guard_does_not_know() -> None:
    classes = (cases.mace.modules.MACE, cases.mace.modules.ScaleShiftMACE)
    arguments = {name for cls in classes for name in signature(cls).parameters}
    derived = {"num_elements", "kwargs"}
    of_the_machine = {"use_reduced_cg", "cueq_config", "oeq_config", "lammps_mliap"}
    assert arguments == (set(cases.completed(BASE)) - {"model_class"}) | derived | of_the_machine
    assert set(cases.mace.modules.interaction_classes) == set(INTERACTIONS.values())


# What mace-torch cannot run, and what it runs as something else: exit code 2,
# before any weights are made.

SPIN = EMBEDDINGS["total_spin"]
UNRUNNABLE: dict[str, Fields] = {
    **{" ".join(case.values()): cases.fields_of(case) for case, _ in cases.IMPOSSIBLE},
    "a single layer read only at the last": {"num_interactions": 1, "use_last_readout_only": True},
    "linear readout, called with 7 arguments of its 4": {"readout_cls": "LinearReadoutBlock"},
    "linear dipole readout, called with 7 arguments of its 4": {
        "readout_cls": "LinearDipoleReadoutBlock"
    },
    "dipole readout, called with 7 arguments of its 6": {
        "readout_cls": "NonLinearDipoleReadoutBlock"
    },
    "general readout, called with 7 arguments of its 6": {
        "readout_cls": "GeneralNonLinearBiasReadoutBlock"
    },
    "one activation for two kinds of scalars": {"MLP_irreps": "4x0e+4x0o"},
    "one activation for two kinds of scalars per head": {
        "MLP_irreps": "4x0e+4x0o",
        "heads": ["pbe", "r2scan"],
    },
    "an activation of vectors": {"MLP_irreps": "4x1o"},
    "silu of odd scalars": {"MLP_irreps": "4x0o"},
    "no scalars": {"hidden_irreps": "4x1o"},
    "several numbers of channels": {"hidden_irreps": "8x0e+4x1o"},
    "scalars twice": {"hidden_irreps": "4x0e+4x0e"},
    "no directions": {"max_ell": 0},
    "a gaussian basis of one": {"radial_type": "gaussian", "num_bessel": 1},
    "three correlations for four layers": {"correlation": [2, 2, 2], "num_interactions": 4},
    "E0s of two elements for three": {"atomic_energies": [[-1.0, -2.0]]},
    "E0s of one head for two": {
        "atomic_energies": [[-1.0, -2.0, -3.0]],
        "heads": ["pbe", "r2scan"],
    },
    "scale of one head for two": {"atomic_inter_scale": [1.0], "heads": ["pbe", "r2scan"]},
    "no neighbours": {"avg_num_neighbors": 0.0},
    "no inputs": {"embedding_specs": {}},
    "a vector per structure": {
        "embedding_specs": {"total_charge": {**EMBEDDINGS["total_charge"], "in_dim": 3}}
    },
    "an input with a dot": {"embedding_specs": {"total.spin": SPIN}},
    "an input named as a method": {"embedding_specs": {"pop": SPIN}},
}
OTHERWISE: dict[str, Fields] = {
    "reduced couplings without cuequivariance": {"use_reduced_cg": True},
    "a misspelt transform": {"distance_transform": "agnesi"},
    "a readout of no inputs": {"use_embedding_readout": True},
    "three correlations for two layers": {"correlation": [2, 2, 2]},
    "scales of two heads for one": {"atomic_inter_scale": [1.0, 2.0]},
    "vectors first": {"hidden_irreps": "4x1o+4x0e"},
    "two heads of one name": {"heads": ["pbe", "pbe"]},
    "an input in place of the positions": {
        "embedding_specs": {
            "positions": {"type": "continuous", "per": "atom", "emb_dim": 2, "in_dim": 3}
        }
    },
}


def _parameters(table: Mapping[str, Fields]) -> list[Any]:
    return [pytest.param(fields, id=name) for name, fields in table.items()]


@pytest.mark.parametrize("changes", _parameters(UNRUNNABLE))
def test_what_mace_cannot_run_is_refused(changes: Fields) -> None:
    fields = cases.completed({**BASE, **changes})
    assert not cases.mace_runs(fields)
    check_refusal(fields)


@pytest.mark.parametrize("changes", _parameters(OTHERWISE))
def test_what_mace_would_run_as_something_else_is_refused(changes: Fields) -> None:
    if "use_reduced_cg" in changes and CUET_AVAILABLE:
        pytest.skip("cuequivariance is installed")
    fields = cases.completed({**BASE, **changes})
    assert cases.mace_runs(fields)
    check_refusal(fields)


def check_refusal(fields: Fields) -> None:
    with pytest.raises(InputError) as refusal:
        build_module(model_json.parse(json.dumps(fields), "model.json"), torch.float64)
    assert refusal.value.exit_code == 2


# Geometry


def test_place_does_not_matter() -> None:
    pair = rich_pair()
    far = np.array([1e3, -2e3, 5e2])  # Å
    here, there = (
        pair.structures,
        [replace(s, positions=s.positions + far) for s in pair.structures],
    )
    batches = [our_batch(pair, structures) for structures in (here, there)]
    assert torch.equal(batches[0].senders, batches[1].senders)
    assert torch.equal(batches[0].receivers, batches[1].receivers)
    molecule = int(batches[0].ptr[1])
    assert torch.equal(*(b.cell_shifts[b.receivers < molecule] for b in batches))
    first, second = (our_prediction(pair, batch) for batch in batches)
    assert_close(second["energy"], first["energy"], ENERGY, "energy")
    # the shift costs three digits of every position
    assert_close(second["forces"], first["forces"], 1.0, "forces")


NO_GRADIENT = pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="torch's chebyshev_polynomial_t has no gradient: mace's forces miss the radial part",
)


@pytest.mark.parametrize(
    "radial", ["bessel", "gaussian", pytest.param("chebyshev", marks=NO_GRADIENT)]
)
def test_forces_and_stress_are_derivatives_of_the_energy(radial: str) -> None:
    pair = build_pair(cases.fields_of({**RICH, "radial": radial}))
    rng, step = np.random.default_rng(3), 1e-5
    for structure in pair.structures:
        if structure.n_atoms == 1:
            continue
        prediction = our_prediction(pair, our_batch(pair, [structure]))
        direction = rng.normal(size=(structure.n_atoms, 3))
        moved = [
            replace(structure, positions=structure.positions + h * direction) for h in (step, -step)
        ]
        slope = difference(pair, moved) / (2 * step)
        expected = -float((prediction["forces"].numpy() * direction).sum())
        assert slope == pytest.approx(expected, rel=1e-6, abs=1e-7), structure.identifier
        if not structure.periodic:
            continue
        strain = rng.normal(size=(3, 3))
        strain = strain + strain.T
        moved = [strained(structure, np.eye(3) + h * strain) for h in (step, -step)]
        slope = difference(pair, moved) / (2 * step)
        expected = float((prediction["stress"][0].numpy() * strain).sum()) * abs(
            float(np.linalg.det(structure.cell))
        )
        assert slope == pytest.approx(expected, rel=1e-6, abs=1e-7), structure.identifier


def difference(pair: Pair, structures: Sequence[Structure]) -> float:
    first, second = our_prediction(pair, our_batch(pair, structures))["energy"].tolist()
    return float(first - second)


def strained(structure: Structure, deformation: np.ndarray) -> Structure:
    return replace(
        structure, positions=structure.positions @ deformation, cell=structure.cell @ deformation
    )


def test_the_canonical_text_means_the_same_network() -> None:
    pair = build_pair(cases.fields_of({**RICH, "embedding": "inputs"}))
    again = model_json.parse(pair.description.canonical_text(), "canonical")
    module = build_module(again, torch.float64)
    module.load_state_dict(pair.ours.state_dict(), strict=True)
    check_outputs(replace(pair, description=again, ours=module), pair.structures)


def test_a_class_per_atom() -> None:
    specs = {
        "total_spin": SPIN,
        "site_class": {"type": "categorical", "per": "atom", "emb_dim": 2, "num_classes": 3},
    }
    pair = build_pair(cases.completed({**BASE, "embedding_specs": specs}))
    structures = [
        replace(s, features={**s.features, "site_class": np.mod(s.atomic_numbers, 3.0)})
        for s in pair.structures
    ]
    for batch in (structures, *([structure] for structure in structures)):
        check_outputs(pair, batch)


# The guard can fail: something small is broken, and it says so.

BROKEN_NETWORKS: Fields = {
    "r_max": 3.25,
    "num_polynomial_cutoff": 5,
    "avg_num_neighbors": 7.50001,
    "atomic_numbers": [1, 8, 6],
    "atomic_energies": [[-1.125, -4.25, -7.5], [-1.0625, -4.5, -7.0]],
    "atomic_inter_scale": [0.75, 1.25],
    "atomic_inter_shift": [0.5, -0.2500001],
    "gate": "tanh",
    "radial_type": "gaussian",
    "distance_transform": "Soft",
    "pair_repulsion": False,
    "apply_cutoff": False,
    "interaction_cls": INTERACTIONS["attention"],
}


@pytest.mark.parametrize("name", BROKEN_NETWORKS)
def test_a_wrong_argument_of_the_constructor_is_seen(name: str) -> None:
    pair = rich_pair()
    other = cases.direct_model({**pair.fields, name: BROKEN_NETWORKS[name]})
    with pytest.raises(AssertionError):
        check_same_tensors_and_outputs(pair, other)


def check_same_tensors_and_outputs(pair: Pair, theirs: nn.Module) -> None:
    check_same_tensors(pair.ours, theirs)
    theirs.load_state_dict(pair.ours.state_dict(), strict=True)
    check_outputs(replace(pair, theirs=theirs), pair.structures)


def test_a_millionth_of_a_weight_is_seen() -> None:
    pair = rich_pair()
    check_outputs(pair, pair.structures)
    for parameter in pair.theirs.parameters():
        before = parameter.detach().clone()
        with torch.no_grad():
            parameter.add_(1e-6)
        try:
            with pytest.raises(AssertionError, match=r"energy|forces"):
                check_outputs(pair, pair.structures)
            with pytest.raises(AssertionError, match=r"gradient|loss"):
                check_loss_and_gradients(pair, "forces")
        finally:
            with torch.no_grad():
                parameter.copy_(before)


@pytest.mark.parametrize(
    "broken", ["E0s", "species", "heads", "edges reversed", "shifts", "edge", "positions"]
)
def test_a_wrong_batch_is_seen(broken: str) -> None:
    pair = rich_pair()
    right = our_batch(pair, pair.structures)
    wrong: dict[str, Any] = {
        "E0s": {"reference_energy": right.reference_energy.flip(0)},
        "species": {"species": right.species.flip(0)},
        "heads": {"head": 1 - right.head},
        "edges reversed": {"senders": right.receivers, "receivers": right.senders},
        "shifts": {"shifts": -right.shifts},
        "edge": {
            "senders": right.senders[1:],
            "receivers": right.receivers[1:],
            "shifts": right.shifts[1:],
        },
        "positions": {
            "positions": right.positions
            + 1e-8 * torch.sin(torch.arange(3.0 * right.n_atoms)).reshape(-1, 3)
        },
    }
    check_outputs(pair, pair.structures, right)
    with pytest.raises(AssertionError):
        check_outputs(pair, pair.structures, replace(right, **wrong[broken]))
