"""The arithmetic of loss and metrics against hand-computed cases with unequal sizes, where wrong averaging shows."""

import dataclasses
import math

import pytest
import torch

from dataloader.batch import LabelCounts, Labels
from losses import SUMS, Loss, Prediction, error_sums, metrics


def labels(**changes: torch.Tensor) -> Labels:
    """Two structures: one atom, and three atoms; all labelled with zeros."""
    one = dict(
        energy=torch.zeros(2, dtype=torch.float64),
        energy_mask=torch.tensor([True, True]),
        energy_weight=torch.ones(2, dtype=torch.float64),
        forces=torch.zeros(4, 3, dtype=torch.float64),
        forces_mask=torch.ones(4, dtype=torch.bool),
        forces_weight=torch.ones(4, dtype=torch.float64),
        stress=torch.zeros(2, 3, 3, dtype=torch.float64),
        stress_mask=torch.tensor([False, True]),
        stress_weight=torch.ones(2, dtype=torch.float64),
        n_atoms=torch.tensor([1.0, 3.0], dtype=torch.float64),
    )
    return Labels(**{**one, **changes})


def prediction() -> Prediction:
    """Energy errors 2 and 6 eV (2 eV per atom each); forces 1 on the lone atom, 2 on the others; stress 0.1."""
    forces = torch.tensor([[1.0, 0, 0], [2.0, 0, 0], [0, 2.0, 0], [0, 0, 2.0]])
    return Prediction(
        energy=torch.tensor([2.0, 6.0]), forces=forces, stress=torch.full((2, 3, 3), 0.1, dtype=torch.float64)
    )


COUNTS = LabelCounts(energies=2, force_atoms=4, stresses=1)


def test_mse_by_hand() -> None:
    loss = Loss(energy_weight=1, forces_weight=100, stress_weight=10)
    sums = error_sums(prediction(), labels(), loss)
    expected = (4 + 4) / 2 + 100 * (1 + 4 + 4 + 4) / 12 + 10 * 0.01
    assert float(loss.total(sums, COUNTS)) == pytest.approx(expected, rel=1e-12)
    found = metrics(sums.tolist(), loss)
    assert found.loss == pytest.approx(expected, rel=1e-12)
    assert found.energy_rmse_per_atom == pytest.approx(2.0)
    assert found.energy_mae_cfg == pytest.approx(4.0)
    assert found.forces_rmse == pytest.approx(math.sqrt(13 / 12))
    assert found.forces_mae == pytest.approx(7 / 12)
    assert found.stress_mae == pytest.approx(0.1)
    assert (found.n_configs, found.n_atoms) == (2, 4)


def test_unlabelled_and_masked_entries_are_in_neither_sum() -> None:
    loss = Loss(energy_weight=1, forces_weight=1)
    partial = labels(energy_mask=torch.tensor([True, False]), forces_mask=torch.tensor([True, False, False, True]))
    sums = error_sums(prediction(), partial, loss)
    counts = LabelCounts(energies=1, force_atoms=2)
    assert float(loss.total(sums, counts)) == pytest.approx(4.0 + (1 + 4) / 6)
    assert metrics(sums.tolist(), loss).forces_rmse == pytest.approx(math.sqrt(5 / 6))


def test_weights_act_on_the_loss_and_not_on_the_metrics() -> None:
    loss = Loss(energy_weight=1, forces_weight=1)
    weighted = labels(
        energy_weight=torch.tensor([0.0, 3.0], dtype=torch.float64),
        forces_weight=torch.tensor([2.0, 0, 0, 0], dtype=torch.float64),
    )
    sums = error_sums(prediction(), weighted, loss)
    assert float(loss.total(sums, COUNTS)) == pytest.approx(3 * 4 / 2 + 2 * 1 / 12)
    assert metrics(sums.tolist(), loss).forces_rmse == pytest.approx(math.sqrt(13 / 12))


@pytest.mark.parametrize(
    ("forces_loss", "expected"),
    [
        ("mae", 7 / 12),
        ("huber", (0.5 * (1 - 0.25) + 3 * 0.5 * (2 - 0.25)) / 12),
        ("l2norm", (1 + 2 + 2 + 2) / 4),
    ],
)
def test_other_shapes_of_the_forces_term(forces_loss: str, expected: float) -> None:
    loss = Loss(energy_weight=0, forces_weight=1, forces_loss=forces_loss, huber_delta=0.5)  # type: ignore[arg-type]
    assert float(loss.total(error_sums(prediction(), labels(), loss), COUNTS)) == pytest.approx(expected)


def test_l2norm_of_a_perfect_force_has_a_finite_gradient() -> None:
    loss = Loss(energy_weight=0, forces_weight=1, forces_loss="l2norm")
    forces = torch.zeros(4, 3, dtype=torch.float64, requires_grad=True)
    sums = error_sums(Prediction(energy=torch.zeros(2), forces=forces), labels(), loss)
    loss.total(sums, COUNTS).backward()
    assert torch.isfinite(forces.grad).all()


def test_sums_of_two_batches_give_the_metrics_of_one() -> None:
    loss = Loss()
    whole = error_sums(prediction(), labels(), loss)
    parts = torch.zeros(len(SUMS), dtype=torch.float64)
    for structures, atoms in (([0], [0]), ([1], [1, 2, 3])):
        part = {
            item.name: getattr(labels(), item.name)[atoms if "forces" in item.name else structures]
            for item in dataclasses.fields(Labels)
        }
        p = prediction()
        parts += error_sums(
            Prediction(energy=p.energy[structures], forces=p.forces[atoms], stress=p.stress[structures]),
            Labels(**part),
            loss,
        )
    assert metrics(parts.tolist(), loss) == metrics(whole.tolist(), loss)


def test_absent_outputs_are_tolerated() -> None:
    sums = error_sums(Prediction(energy=torch.tensor([1.0, 1.0]), forces=None), labels(), Loss())
    found = metrics(sums.tolist(), Loss())
    assert found.forces_rmse is None
    assert found.stress_rmse is None
    assert found.energy_rmse_per_atom is not None
