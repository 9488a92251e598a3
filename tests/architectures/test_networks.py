"""Networks of other libraries compute what the libraries compute, in any batch,
and are differentiated.
"""

import copy
import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
from ase import Atoms
from torch import Tensor, nn

from architectures.networks import SMALL, VARIANTS, batch_of, each, fields_of, needs, structures
from losses import Loss
from model_utils import model_loader
from model_utils.files import checkpoint
from model_utils.models import description as model_json
from model_utils.models.description import ModelDescription
from model_utils.models.network import Network, predict
from model_utils.models.sandbox import tensors_of
from model_utils.physics import checks
from model_utils.physics.probes import structures_for
from model_utils.physics.subject import Subject
from model_utils.run.beginnings.physics_gate import LAWS
from model_utils.run.step import loss_and_gradients

ALL = ("energy", "forces", "stress")
Made = Callable[[str], tuple[ModelDescription, Network]]


@pytest.fixture(scope="module")
def made() -> Made:
    kept: dict[str, tuple[ModelDescription, Network]] = {}

    def make(name: str) -> tuple[ModelDescription, Network]:
        if name not in kept:
            description = model_json.parse(json.dumps(fields_of(name)), "it.json")
            module = model_loader.build(description, torch.float64, seed=1)
            # vectors of NequIP and others are zero where weights begin as zero
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter += 0.02 * torch.randn_like(parameter)
            kept[name] = description, model_loader.build_network(module, "reference", description)
        return kept[name]

    return make


def computed(description: ModelDescription, network: Network, *atoms: Atoms) -> dict[str, Tensor]:
    batch = batch_of(description.facts(), torch.float64, *atoms)
    weights = model_loader.trainable(network.module)
    return predict(network, weights, batch, wanted=ALL, training=False)


@pytest.mark.parametrize("name", each([*SMALL, *VARIANTS]))
def test_a_mixed_batch_is_its_structures_one_by_one(name: str, made: Made) -> None:
    description, network = made(name)
    kinds = list(structures().values())
    together = computed(description, network, *kinds)
    alone = [computed(description, network, atoms) for atoms in kinds]
    for quantity in ALL:
        expected = torch.cat([one[quantity] for one in alone])
        torch.testing.assert_close(together[quantity], expected, rtol=0, atol=1e-10)
        assert float(expected.abs().max()) > 1e-3, "zeros would be equal too"
    assert float(together["forces"][-1].abs().max()) == 0.0, "the atom alone"


@pytest.mark.parametrize(
    "name", each(["PaiNN", "TensorNet", "ZEmbeddingNequIP", "SchNet", "TensorNet, Bessel"])
)
@pytest.mark.parametrize("kind", structures())
def test_graph_pes_own_calculator_gives_the_same(name: str, kind: str, made: Made) -> None:
    from graph_pes.utils.calculator import GraphPESCalculator

    if kind == "atom":
        pytest.skip("graph-pes' own calculator does not take an atom without neighbours")
    description, network = made(name)
    atoms = structures()[kind]
    ours = computed(description, network, atoms)
    torch.set_default_dtype(torch.float64)
    inner = copy.deepcopy(network.module).network
    atoms.calc = GraphPESCalculator(inner.eval(), skin=0.0)
    scale, shift = 1.5, 0.25  # of model.json
    energy = scale * atoms.get_potential_energy() + shift * len(atoms)
    assert float(ours["energy"]) == pytest.approx(energy, abs=1e-10)
    np.testing.assert_allclose(
        ours["forces"].numpy(), scale * atoms.get_forces(), rtol=0, atol=1e-10
    )
    if atoms.pbc.all():
        stress = scale * atoms.get_stress(voigt=False)
        np.testing.assert_allclose(ours["stress"][0].numpy(), stress, rtol=0, atol=1e-10)


class DenseDistance(nn.Module):
    """In place of torch_geometric's neighbour list, which needs a package of its own: all
    pairs within a cutoff.
    """

    def __init__(self, cutoff: float) -> None:
        super().__init__()
        self.cutoff = cutoff

    def forward(self, pos: Tensor, batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        lengths = torch.cdist(pos, pos)
        neighbours, atoms = torch.nonzero(lengths < self.cutoff, as_tuple=True)
        vectors = pos[neighbours] - pos[atoms]
        is_loop = neighbours == atoms
        weight = torch.where(is_loop, 0.0, torch.where(is_loop[:, None], 1.0, vectors).norm(dim=1))
        return torch.stack([neighbours, atoms]), weight, vectors.clone()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=needs(name)) for name in ("ViSNet", "ViSNet, vertex")]
)
def test_torch_geometrics_own_visnet_gives_the_same(name: str, made: Made) -> None:
    from torch_geometric.nn.models import ViSNet

    description, network = made(name)
    fields = json.loads(description.canonical_text())
    names = (
        "lmax",
        "num_heads",
        "num_layers",
        "hidden_channels",
        "num_rbf",
        "trainable_rbf",
        "vertex",
    )
    torch.set_default_dtype(torch.float64)
    names = (*names, "trainable_vecnorm")
    theirs = ViSNet(cutoff=description.r_max, max_z=119, **{key: fields[key] for key in names})
    unknown = theirs.load_state_dict(network.module.network.state_dict(), strict=False)
    assert unknown.unexpected_keys == []
    assert all(
        key.startswith(("prior_model", "mean", "std")) or "s_proj.bias" in key
        for key in unknown.missing_keys
    )
    theirs.representation_model.distance = DenseDistance(description.r_max)
    water = structures()["water"]
    positions = torch.tensor(water.positions, requires_grad=True)
    energy, _ = theirs(torch.tensor(water.numbers), positions, torch.zeros(3, dtype=torch.long))
    forces = -torch.autograd.grad(energy.sum(), positions)[0]
    ours = computed(description, network, water)
    assert float(ours["energy"]) == pytest.approx(1.5 * float(energy) + 0.25 * 3, abs=1e-10)
    torch.testing.assert_close(ours["forces"], 1.5 * forces, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", each([*SMALL, *VARIANTS]))
def test_a_batch_without_edges_has_no_forces(name: str, made: Made) -> None:
    """Weights without gradients, as whoever evaluates has them: nothing is left to differentiate
    by.
    """
    description, network = made(name)
    far = Atoms("OH", positions=[[0, 0, 0], [0, 0, 30.0]], cell=[40, 40, 40], pbc=True)
    batch = batch_of(description.facts(), torch.float64, far, Atoms("O"))
    trained = model_loader.trainable(network.module)
    weights = {key: value.detach() for key, value in trained.items()}
    given = predict(network, weights, batch, wanted=ALL, training=False)
    assert float(given["forces"].abs().max()) == 0.0
    assert float(given["stress"][0].abs().max()) == 0.0
    result = loss_and_gradients(network, trained, [batch], Loss.of(energy=1.0, forces=10.0))
    assert all(torch.isfinite(gradient).all() for gradient in result.gradients)


@pytest.mark.parametrize("name", each([*SMALL, *VARIANTS]))
def test_gradients_of_the_loss_are_its_slopes(name: str, made: Made) -> None:
    description, network = made(name)
    batch = batch_of(description.facts(), torch.float64, *structures().values())
    loss = Loss.of(energy=1.0, forces=10.0, stress=1.0)
    weights = {
        key: value.detach().clone() for key, value in model_loader.trainable(network.module).items()
    }
    generator = torch.Generator().manual_seed(3)
    direction = {
        key: torch.randn(value.shape, generator=generator, dtype=value.dtype)
        for key, value in weights.items()
    }

    def loss_at(amount: float) -> float:
        moved = {
            key: (w + amount * direction[key]).requires_grad_(True) for key, w in weights.items()
        }
        return float(loss_and_gradients(network, moved, [batch], loss).loss)

    there = {key: w.requires_grad_(True) for key, w in weights.items()}
    gradients = loss_and_gradients(network, there, [batch], loss).gradients
    slope = sum(
        float((g * direction[key]).sum()) for g, key in zip(gradients, weights, strict=True)
    )
    h = 1e-4
    differences = (loss_at(-2 * h) - 8 * loss_at(-h) + 8 * loss_at(h) - loss_at(2 * h)) / (12 * h)
    assert abs(slope) > 1e-3
    assert differences == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize("name", each(SMALL))
def test_every_law_of_the_gate_holds(name: str, made: Made) -> None:
    description, network = made(name)
    subject = Subject(
        network=network,
        weights=model_loader.trainable(network.module),
        facts=description.facts(),
        dtype=torch.float64,
        device=torch.device("cpu"),
    )
    torch.set_default_dtype(torch.float64)
    report = checks.examined(subject, structures_for(description.facts()), LAWS)
    assert report.failed == [], "\n".join(report.lines())
    assert {record.check for record in report.checks} == set(LAWS)


@pytest.mark.parametrize("name", each(SMALL))
def test_all_weights_are_trained_and_copies_are_equal(name: str, made: Made) -> None:
    description, network = made(name)
    module = network.module
    names = set(model_loader.trainable(module))
    assert names == {key for key, parameter in module.named_parameters() if parameter.requires_grad}
    assert all(isinstance(tensor, Tensor) for tensor in module.state_dict().values())
    assert any("embedding" in key for key in names), "the table of elements"
    before = torch.random.get_rng_state()
    twin = model_loader.copied(module)
    assert torch.equal(torch.random.get_rng_state(), before)
    for (key, tensor), (other, copied) in zip(
        module.state_dict().items(), twin.state_dict().items(), strict=True
    ):
        assert key == other
        assert torch.equal(tensor, copied)
        assert tensor.data_ptr() != copied.data_ptr() or tensor.numel() == 0
    water = structures()["water"]
    expected = computed(description, network, water)
    again = computed(description, model_loader.build_network(twin, "reference", description), water)
    assert torch.equal(expected["forces"], again["forces"])


@needs("PaiNN")
def test_a_pickled_network_is_its_text_and_tensors(made: Made) -> None:
    _, network = made("PaiNN")
    stored = checkpoint.sandboxed(network.module)
    assert set(tensors_of(stored)) == set(network.module.state_dict())
    assert "_modules" not in stored.__dict__, "nothing of the library's own objects"
    assert json.loads(stored.__dict__["model_json_text"])["model_class"] == "PaiNN"
