"""The arithmetic of loss and metrics against hand-computed cases with unequal sizes, where
wrong averaging shows.
"""

import math

import pytest
import torch

from dataloader.batch import Label
from losses import Loss, Prediction, error_sums, no_sums
from model_utils.metrics import metrics

SIZES = torch.tensor([1.0, 3.0], dtype=torch.float64)
LABELS = {
    "energy": Label(
        torch.zeros(2, dtype=torch.float64),
        torch.tensor([True, True]),
        torch.ones(2, dtype=torch.float64),
    ),
    "forces": Label(
        torch.zeros(4, 3, dtype=torch.float64),
        torch.ones(4, dtype=torch.bool),
        torch.ones(4, dtype=torch.float64),
    ),
    "stress": Label(
        torch.zeros(2, 3, 3, dtype=torch.float64),
        torch.tensor([False, True]),
        torch.ones(2, dtype=torch.float64),
    ),
}


def labels(**changes: dict[str, torch.Tensor]) -> dict[str, Label]:
    """Two structures: one atom, and three atoms; all labelled with zeros."""
    return {name: label._replace(**changes.get(name, {})) for name, label in LABELS.items()}


def prediction() -> Prediction:
    """Energy errors 2 and 6 eV (2 eV per atom each); forces 1 on the lone atom, 2 on
    the others; stress 0.1.
    """
    forces = torch.tensor([[1.0, 0, 0], [2.0, 0, 0], [0, 2.0, 0], [0, 0, 2.0]])
    return {
        "energy": torch.tensor([2.0, 6.0]),
        "forces": forces,
        "stress": torch.full((2, 3, 3), 0.1, dtype=torch.float64),
    }


ROWS = {"energy": 2, "forces": 4, "stress": 1}


def test_mse_by_hand() -> None:
    loss = Loss.of(energy=1, forces=100, stress=10)
    sums = error_sums(prediction(), labels(), SIZES, loss)
    expected = (4 + 4) / 2 + 100 * (1 + 4 + 4 + 4) / 12 + 10 * 0.01
    assert float(loss.total(sums, ROWS)) == pytest.approx(expected, rel=1e-12)
    found = metrics(sums.tolist(), loss)
    assert found.loss == pytest.approx(expected, rel=1e-12)
    assert found["energy_rmse_per_atom"] == pytest.approx(2.0)
    assert found["energy_mae_cfg"] == pytest.approx(4.0)
    assert found["forces_rmse"] == pytest.approx(math.sqrt(13 / 12))
    assert found["forces_mae"] == pytest.approx(7 / 12)
    assert found["stress_mae"] == pytest.approx(0.1)
    assert (found.n_configs, found.n_atoms) == (2, 4)


def test_unlabelled_and_masked_entries_are_in_neither_sum() -> None:
    loss = Loss.of(energy=1, forces=1)
    partial = labels(
        energy={"mask": torch.tensor([True, False])},
        forces={"mask": torch.tensor([True, False, False, True])},
    )
    sums = error_sums(prediction(), partial, SIZES, loss)
    rows = {"energy": 1, "forces": 2, "stress": 1}
    assert float(loss.total(sums, rows)) == pytest.approx(4.0 + (1 + 4) / 6)
    assert metrics(sums.tolist(), loss)["forces_rmse"] == pytest.approx(math.sqrt(5 / 6))


def test_weights_act_on_the_loss_and_not_on_the_metrics() -> None:
    loss = Loss.of(energy=1, forces=1)
    weighted = labels(
        energy={"weight": torch.tensor([0.0, 3.0], dtype=torch.float64)},
        forces={"weight": torch.tensor([2.0, 0, 0, 0], dtype=torch.float64)},
    )
    sums = error_sums(prediction(), weighted, SIZES, loss)
    assert float(loss.total(sums, ROWS)) == pytest.approx(3 * 4 / 2 + 2 * 1 / 12)
    assert metrics(sums.tolist(), loss)["forces_rmse"] == pytest.approx(math.sqrt(13 / 12))


@pytest.mark.parametrize(
    ("forces_loss", "expected"),
    [
        ("mae", 7 / 12),
        ("huber", (0.5 * (1 - 0.25) + 3 * 0.5 * (2 - 0.25)) / 12),
        ("l2norm", (1 + 2 + 2 + 2) / 4),
    ],
)
def test_other_shapes_of_the_forces_term(forces_loss: str, expected: float) -> None:
    loss = Loss.of(energy=0, forces=1, shapes={"forces": forces_loss}, huber_delta=0.5)
    assert float(
        loss.total(error_sums(prediction(), labels(), SIZES, loss), ROWS)
    ) == pytest.approx(expected)


def test_l2norm_of_a_perfect_force_has_a_finite_gradient() -> None:
    loss = Loss.of(energy=0, forces=1, shapes={"forces": "l2norm"})
    forces = torch.zeros(4, 3, dtype=torch.float64, requires_grad=True)
    sums = error_sums({"energy": torch.zeros(2), "forces": forces}, labels(), SIZES, loss)
    loss.total(sums, ROWS).backward()
    assert torch.isfinite(forces.grad).all()


def test_sums_of_two_batches_give_the_metrics_of_one() -> None:
    loss = Loss.of()
    whole = error_sums(prediction(), labels(), SIZES, loss)
    parts = no_sums(torch.device("cpu"))
    for structures, atoms in (([0], [0]), ([1], [1, 2, 3])):
        rows = {"energy": structures, "forces": atoms, "stress": structures}
        predicted = {name: value[rows[name]] for name, value in prediction().items()}
        labelled = {
            name: Label(*(tensor[rows[name]] for tensor in label))
            for name, label in labels().items()
        }
        parts += error_sums(predicted, labelled, SIZES[structures], loss)
    assert metrics(parts.tolist(), loss) == metrics(whole.tolist(), loss)


def test_absent_outputs_are_tolerated() -> None:
    sums = error_sums({"energy": torch.tensor([1.0, 1.0])}, labels(), SIZES, Loss.of())
    found = metrics(sums.tolist(), Loss.of())
    assert found["forces_rmse"] is None
    assert found["stress_rmse"] is None
    assert found["energy_rmse_per_atom"] is not None
