"""mace's modules over cuequivariance give mace's numbers on mace's weights; `make
accelerated` installs the package.
"""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_memory import LOSS, mixed_batch
from torch import Tensor

import parity_cases as cases
from dataloader.batch import Batch
from model_utils import model_loader, train_mace
from model_utils.errors import InputError, VerificationError
from model_utils.files import checkpoint
from model_utils.models import accelerated
from model_utils.models import description as model_json
from model_utils.models.network import Network, Parameters
from model_utils.models.reference import ReferenceNetwork
from model_utils.run.step import loss_and_gradients

HERE = importlib.util.find_spec("cuequivariance_torch") is not None
needs_cueq = pytest.mark.skipif(not HERE, reason="cuequivariance-torch is not installed")

NETWORKS = {
    "vectors": {},
    "scalars": {"hidden_irreps": "4x0e", "correlation": [3, 3]},
    "third degree": {"correlation": [3, 3]},
    "density": {
        "interaction_cls": cases.INTERACTIONS["density_residual"],
        "interaction_cls_first": cases.INTERACTIONS["density"],
    },
    "repulsion": {"pair_repulsion": True, "distance_transform": "Agnesi"},
    "three layers": {"num_interactions": 3, "correlation": [2, 2, 2]},
}


def described(fields: cases.Fields) -> model_json.ModelDescription:
    return model_json.parse(json.dumps(cases.completed({**cases.BASE, **fields})), "model.json")


def networks(fields: cases.Fields) -> tuple[Network, Network]:
    description = described(fields)
    module = model_loader.build(description, torch.float64, 1)
    with torch.no_grad():
        for parameter in model_loader.trainable(module).values():
            parameter += 0.02 * torch.randn_like(parameter)
    cueq = model_loader.build_network(module, "cueq", description)
    return cueq, model_loader.build_network(module, "reference", description)


@needs_cueq
@pytest.mark.parametrize("name", NETWORKS)
def test_same_loss_and_gradients(name: str) -> None:
    cueq, reference = networks(NETWORKS[name])
    batch, _ = mixed_batch()
    weights = model_loader.trainable(reference.module)
    ours, theirs = (
        loss_and_gradients(network, weights, [batch], LOSS) for network in (cueq, reference)
    )
    assert float(ours.loss) == pytest.approx(float(theirs.loss), rel=1e-12)
    for found, expected in zip(ours.gradients, theirs.gradients, strict=True):
        torch.testing.assert_close(
            found, expected, rtol=0, atol=1e-11 * max(float(expected.abs().max()), 1e-3)
        )


@needs_cueq
def test_a_wrong_conversion_is_noticed_on_the_first_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    right = accelerated._contraction_weights
    monkeypatch.setattr(accelerated, "_contraction_weights", lambda *words: right(*words)[::-1])
    cueq, _ = networks({})
    batch, _ = mixed_batch()
    with pytest.raises(VerificationError, match="--step cueq computes something else"):
        loss_and_gradients(cueq, model_loader.trainable(cueq.module), [batch], LOSS)


class _Slope(torch.autograd.Function):
    """Zero, with a gradient by a weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.like = weight
        return torch.zeros_like(x)

    @staticmethod
    def backward(ctx: Any, a: Tensor) -> tuple[None, Tensor]:
        return None, torch.ones_like(ctx.like) * a[0, 0]


class _Bump(torch.autograd.Function):
    """Zero, with a gradient of zero, whose own derivative is wrong."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x.new_zeros(())

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return g * _Slope.apply(*ctx.saved_tensors), None


class Bumped(ReferenceNetwork):
    """Energies and forces of mace's module, with another gradient of a loss of forces."""

    def outputs(
        self, parameters: Parameters, batch: Batch, positions: Tensor, shifts: Tensor
    ) -> dict[str, Tensor]:
        outputs = super().outputs(parameters, batch, positions, shifts)
        weight = parameters["interactions.0.linear_up.weight"]
        return {**outputs, "energy": outputs["energy"] + _Bump.apply(positions, weight)}


@pytest.mark.parametrize("form", [ReferenceNetwork, Bumped])
def test_a_wrong_second_derivative_is_noticed(form: type[ReferenceNetwork]) -> None:
    """It shows in the gradient of a loss of forces alone."""
    module = model_loader.build(described({}), torch.float64, 1)
    network = object.__new__(accelerated.AcceleratedNetwork)
    network.kind = "cueq"
    network._form = form(module)
    network._arranged = {}
    batch, _ = mixed_batch()
    words = (
        ReferenceNetwork(module),
        model_loader.trainable(module),
        batch,
        batch.positions,
        batch.shifts,
    )
    if form is ReferenceNetwork:
        network._compare(*words)
        return
    with pytest.raises(
        VerificationError, match=r"gradients of forces by interactions\.0\.linear_up"
    ):
        network._compare(*words)


@needs_cueq
def test_a_run_goes_the_same_way(
    tiny_json: Path, water_xyz: Callable[..., Path], tmp_path: Path
) -> None:
    losses = []
    for step in ("cueq", "reference"):
        place = tmp_path / step
        data = [
            "--xyz_train",
            str(water_xyz("train.xyz", 12)),
            "--epochs",
            "2",
            "--dtype",
            "float64",
            "--ema",
        ]
        flags = [
            "--input_json",
            str(tiny_json),
            "--output_checkpoint",
            str(place),
            "--step",
            step,
            "--batch_size",
            "3",
        ]
        assert train_mace.main([*data, *flags]) == 0
        losses.append(
            [r["loss"] for r in map(json.loads, (place / "metrics.jsonl").open()) if "loss" in r]
        )
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    file = checkpoint.read(tmp_path / "cueq" / "cueq_checkpoint.pt")
    assert (
        file.tensors.keys()
        == checkpoint.read(tmp_path / "reference" / "reference_checkpoint.pt").tensors.keys()
    )
    assert file.content["train_state"]["computed_on"]["arithmetic"] == "cueq"


@pytest.mark.skipif(HERE, reason="cuequivariance-torch is installed")
def test_without_the_package_it_is_said() -> None:
    description = described({})
    module = model_loader.build(description, torch.float64, 1)
    with pytest.raises(InputError, match="--step cueq needs the package cuequivariance-torch"):
        model_loader.build_network(module, "cueq", description)
    with pytest.raises(InputError, match="--step oeq needs"):
        model_loader.build_network(module, "oeq", description)
