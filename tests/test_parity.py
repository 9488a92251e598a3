"""The parity guard: every network that model.json can describe gives mace-torch's numbers, in float64.

Left stands our way (``build_module``, vesin's edges, ``collate``, ``predict``, ``loss_and_gradients``), right mace-torch
by itself (``parity_cases``): its constructor with every argument written out, its data classes, its losses, its forward
pass and autograd. Both have the same weights.

    pytest tests/test_parity.py                       45 networks with every possible pair of two axes' values
    PARITY=full pytest -n 2 tests/test_parity.py      all 6,048 products of the main axes
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations, product
from typing import Any

import numpy as np
import parity_cases as cases
import pytest
import torch
from parity_cases import AXES, BASE, EMBEDDINGS, INTERACTIONS, Case, Fields
from torch import Tensor, nn

from dataloader.batch import Batch, collate
from dataloader.errors import InputError
from dataloader.neighbors import build_graph
from dataloader.structure import Structure
from losses import Loss, Prediction
from model_utils.model_loader import trainable
from model_utils.models import description as model_json
from model_utils.models.build import build_module
from model_utils.models.description import ModelDescription
from model_utils.models.network import predict
from model_utils.models.reference import ReferenceNetwork
from model_utils.step import loss_and_gradients

CASES = list(cases.full_product() if os.environ.get("PARITY") == "full" else cases.pairwise(AXES))
RICH: Case = {"first": "density", "transform": "Agnesi", "repulsion": "zbl", "heads": "two", "correlation": "falling"}
TERMS = ("energy", "forces", "stress")
ENERGY, FORCES, STRESS = 1.0, 1e-3, 1e-4  # eV, eV/Å, eV/Å³: magnitudes below which errors are taken as absolute


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Arrays here are tiny, and pytest-xdist's workers share the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
    torch.manual_seed(11)
    ours, theirs = build_module(described, torch.float64), cases.direct_model(fields)
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


def our_prediction(pair: Pair, batch: Batch, parameters: Mapping[str, Tensor] | None = None) -> Prediction:
    parameters = trainable(pair.ours) if parameters is None else parameters
    return predict(ReferenceNetwork(pair.ours), parameters, batch, stress=True, training=False)


def check_same_tensors(ours: nn.Module, theirs: nn.Module) -> None:
    """Parameters of equal names, shapes and trainability; buffers of equal names and values."""
    shapes = [{name: (p.shape, p.requires_grad) for name, p in m.named_parameters()} for m in (ours, theirs)]
    assert shapes[0] == shapes[1]
    assert set(trainable(ours)) == {name for name, p in theirs.named_parameters() if p.requires_grad and p.numel()}
    mine, their = dict(ours.named_buffers()), dict(theirs.named_buffers())
    assert set(mine) == set(their)
    differing = [name for name in mine if mine[name].dtype != their[name].dtype or not torch.equal(mine[name], their[name])]
    assert not differing


def assert_close(ours: Tensor, theirs: Tensor, floor: float, what: str) -> None:
    """No entry differs by more than 10⁻¹⁰ of the largest, or of ``floor`` where all are smaller."""
    error, scale = largest(ours - theirs), max(largest(theirs), floor)
    assert error <= 1e-10 * scale, f"{what}: differs by {error:.2e} where the largest is {scale:.2e}"


def largest(tensor: Tensor) -> float:
    return float(tensor.detach().abs().max())


def check_outputs(pair: Pair, structures: Sequence[Structure], batch: Batch | None = None) -> None:
    """Edges, energies, forces and, of crystals, stress of every structure of a batch."""
    batch = our_batch(pair, structures) if batch is None else batch
    theirs = cases.mace_batch(structures, pair.fields)
    assert batch.n_edges == theirs.edge_index.shape[1]
    mine, expected = our_prediction(pair, batch), cases.mace_outputs(pair.theirs, theirs, stress=True)
    assert mine.forces is not None
    assert mine.stress is not None
    for i, structure in enumerate(structures):
        name, atoms = structure.identifier, slice(int(batch.ptr[i]), int(batch.ptr[i + 1]))
        total = mine.energy[i] + batch.reference_energy[i]
        assert_close(total, expected["energy"][i], ENERGY, f"energy of the {name}")
        assert_close(mine.forces[atoms], expected["forces"][atoms], FORCES, f"forces of the {name}")
        if structure.periodic:
            assert_close(mine.stress[i], expected["stress"][i], STRESS, f"stress of the {name}")


def check_loss_and_gradients(pair: Pair, term: str) -> None:
    """One term of the loss, all of its entries labelled, and its gradient by every parameter."""
    structures = [s for s in pair.structures if s.periodic or term != "stress"]
    parameters = trainable(pair.ours)
    weights = {f"{name}_weight": float(name == term) for name in TERMS}
    mine = loss_and_gradients(ReferenceNetwork(pair.ours), parameters, [our_batch(pair, structures)], Loss(**weights))
    their_parameters = dict(pair.theirs.named_parameters())
    loss, gradients = cases.mace_loss_and_gradients(
        pair.theirs,
        cases.mace_batch(structures, pair.fields),
        weights,
        [their_parameters[name] for name in parameters],
    )
    assert_close(mine.loss, loss, 1e-6, f"loss of {term}")
    whole = float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients])))
    assert whole > 0
    for name, own, their in zip(parameters, mine.gradients, gradients, strict=True):
        error, size = float(torch.linalg.vector_norm(own - their)), float(torch.linalg.vector_norm(their))
        limit = 1e-8 * max(size, 1e-6 * whole)
        assert error <= limit, f"gradient of the {term} loss by {name}: differs by {error:.2e} of {size:.2e}"


def check_round_trip(described: ModelDescription) -> None:
    text = described.canonical_text()
    again = model_json.parse(text, "canonical")
    assert again.canonical_text() == text
    assert (again, again.hash()) == (described, described.hash())


@pytest.mark.parametrize("case", CASES, ids=cases.name_of)
def test_parity(case: Case) -> None:
    pair = build_pair(cases.fields_of(case))
    check_round_trip(pair.description)
    check_outputs(pair, pair.structures)
    for structure in pair.structures:
        check_outputs(pair, [structure])
    for term in TERMS:
        check_loss_and_gradients(pair, term)


def test_every_possible_pair_of_values_occurs() -> None:
    covered = {pair for case in cases.pairwise(AXES) for pair in product(case.items(), repeat=2)}
    for a, b in combinations(AXES, 2):
        for pair in product([(a, v) for v in AXES[a]], [(b, v) for v in AXES[b]]):
            assert cases.possible(dict(pair)) == (pair in covered), pair


def test_hashes_of_different_networks_differ() -> None:
    fields = [cases.fields_of(case) for case in CASES]
    texts = {json.dumps(f, sort_keys=True) for f in fields}
    assert len({model_json.parse(json.dumps(f), "model.json").hash() for f in fields}) == len(texts)
