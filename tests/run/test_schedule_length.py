"""--scheduler_length: where a cosine has come down, and where a length is no use."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dataloader.batching import Budget
from model_utils.errors import InputError
from model_utils.run import optimization
from model_utils.settings import reading
from model_utils.settings.options import TrainOptions
from optimizer import Schedule

# six batches to an epoch
Batches: Any = SimpleNamespace(
    n_batches=lambda epoch: 6, structures_per_epoch=6, budget=Budget(structures=1)
)
NEEDED = {
    "input_json": "m.json",
    "output_checkpoint": "run",
    "xyz_train": ["a.xyz"],
    "epochs": 20,
    "lr": 0.01,
}


def schedule(**settings: Any) -> Schedule:
    options = reading.from_plain(TrainOptions, {**NEEDED, **settings}, Path("here"))
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.01)
    return Schedule(optimizer, optimization.schedule_settings(options, Batches))


def test_a_cosine_has_come_down_at_its_length_and_stays() -> None:
    made = schedule(scheduler="cosine", min_lr=1e-4, scheduler_length=8)
    assert made.rate_at(0) == 0.01
    assert made.rate_at(4) == pytest.approx((0.01 + 1e-4) / 2)
    assert [made.rate_at(time) for time in (8, 9, 20)] == [pytest.approx(1e-4)] * 3
    whole = schedule(scheduler="cosine", min_lr=1e-4)
    assert whole.rate_at(10) == pytest.approx((0.01 + 1e-4) / 2), (
        "unless given, the length is that of the run"
    )


def test_it_counts_in_the_unit_of_the_schedule() -> None:
    made = schedule(scheduler="cosine", min_lr=1e-4, scheduler_unit="step", scheduler_length=60)
    assert made.rate_at(30) == pytest.approx((0.01 + 1e-4) / 2)
    assert made.rate_at(60) == pytest.approx(1e-4)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"scheduler": "plateau", "scheduler_length": 8.0}, "--scheduler plateau has no length"),
        ({"scheduler": "step", "scheduler_length": 8.0}, "--scheduler step has no length"),
        ({"scheduler": "cosine", "scheduler_length": 8.0}, "which is 20 long, would train nothing"),
    ],
)
def test_a_length_that_is_no_use(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        schedule(**settings)


def test_a_cosine_longer_than_the_run_needs_no_lowest_rate() -> None:
    assert schedule(scheduler="cosine", scheduler_length=40).rate_at(20) == pytest.approx(0.005)
