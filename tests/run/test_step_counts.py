"""Steps of epochs that have different numbers of them: a schedule ends with the run, not before."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ase.io import write
from torch import nn

from conftest import TINY, waters
from dataloader.batching import Budget
from dataloader.loader import EpochBatches
from losses import Loss
from model_utils import train_mace
from model_utils.errors import InputError
from model_utils.run import step_counts
from model_utils.run.advice import idle_settings
from model_utils.run.beginnings.resumed_rate import rest_of_run
from model_utils.run.fit_plan import FitPlan, Stage
from model_utils.run.optimization import schedule_settings
from model_utils.run.step_counts import Length, StepCounts, length_of_run
from model_utils.run.train_state import Progress
from model_utils.settings import reading
from model_utils.settings.options import TrainOptions
from optimizer import Schedule, ScheduleSettings

N = 40
N_ATOMS = np.random.default_rng(5).integers(1, 9, N)


class Sizes:
    """A data set of which only the sizes are known."""

    n_atoms = N_ATOMS
    n_edges = 4 * N_ATOMS

    def __len__(self) -> int:
        return N

    def shares(self) -> tuple[Any, tuple[()]]:
        """No structures of which an epoch uses a part."""
        return np.arange(N), ()

    def name(self, index: int) -> str:
        """Of a structure."""
        return str(index)


def batches_of(budget: Budget) -> EpochBatches:
    return EpochBatches(Sizes(), budget, 1, None)  # type: ignore[arg-type]


@pytest.fixture
def by_atoms() -> EpochBatches:
    return batches_of(Budget(atoms=17))


def counted(batches: EpochBatches, accumulate: int = 2, epochs: int = 10) -> list[int]:
    """Steps of each epoch, from the plans themselves."""
    return [-(-len(batches.plan(epoch)) // accumulate) for epoch in range(epochs)]


def options_of(**more: Any) -> TrainOptions:
    needed = {"input_json": "m.json", "output_checkpoint": "run", "xyz_train": ["a.xyz"]}
    chosen = {"epochs": 10, "accumulate_batches": 2, "scheduler": "cosine"}
    return reading.from_plain(TrainOptions, {**needed, **chosen, **more}, Path("here"))


def test_a_run_is_as_long_as_its_epochs_are(by_atoms: EpochBatches) -> None:
    steps = counted(by_atoms)
    assert len(set(steps)) > 1
    assert length_of_run(options_of(), by_atoms) == Length(
        steps=sum(steps), epochs=10.0, least=sum(steps)
    )
    part = StepCounts(by_atoms, 2).between(3, 7)
    assert part == Length(steps=sum(steps[3:7]), epochs=4.0, least=sum(steps[3:7]))
    within = sum(steps[:4]) + 2
    length = length_of_run(options_of(max_steps=within), by_atoms)
    assert (length.steps, length.epochs) == (within, pytest.approx(4 + 2 / steps[4]))
    assert length_of_run(options_of(max_steps=10_000), by_atoms).steps == sum(steps)


def test_nothing_is_counted_behind_the_last_step(
    by_atoms: EpochBatches, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    plan = by_atoms.plan
    monkeypatch.setattr(by_atoms, "plan", lambda epoch: asked.append(epoch) or plan(epoch))
    assert length_of_run(options_of(epochs=10**6, max_steps=3), by_atoms).steps == 3
    length_of_run(options_of(epochs=10**6, max_steps=3), by_atoms)
    assert asked == [0]


def test_epochs_with_a_number_of_structures_are_alike() -> None:
    batches = batches_of(Budget(structures=3))
    assert length_of_run(options_of(), batches).steps == 10 * 7
    assert batches._n_batches.keys() == {0}
    assert length_of_run(options_of(max_steps=24), batches).epochs == 24 / 7


def test_of_much_data_the_later_epochs_are_taken_to_be_longer_than_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(step_counts, "LOOKED_AT", 3 * N)
    batches = batches_of(Budget(edges=70))
    steps = counted(batches, epochs=200)
    counts = StepCounts(batches, 2)
    assert [counts.of(epoch) for epoch in range(3)] == steps[:3]
    assert all(counts.of(epoch) >= steps[epoch] for epoch in range(200))
    whole = counts.between(0, 200)
    assert whole.least <= sum(steps) <= whole.steps
    # the true length of the run is no length that it surely exceeds
    chosen = {"epochs": 200, "scheduler_unit": "step", "scheduler_length": sum(steps)}
    assert schedule_settings(options_of(**chosen), batches).horizon == sum(steps)
    assert batches._n_batches.keys() == {0, 1, 2}


def test_a_length_that_was_once_that_of_the_run_is_taken(by_atoms: EpochBatches) -> None:
    """As many steps for each epoch as the first one has; runs that began so go on."""
    before = 10 * counted(by_atoms)[0]
    chosen = {"scheduler_unit": "step", "scheduler_length": min(before, sum(counted(by_atoms)))}
    assert schedule_settings(options_of(**chosen), by_atoms).horizon == chosen["scheduler_length"]
    chosen["scheduler_length"] -= 1
    with pytest.raises(InputError, match="would train nothing"):
        schedule_settings(options_of(**chosen), by_atoms)


def test_a_schedule_ends_with_the_run(by_atoms: EpochBatches) -> None:
    steps = counted(by_atoms)
    settings = schedule_settings(options_of(scheduler_unit="step"), by_atoms)
    assert settings.horizon == sum(steps) != 10 * steps[0]
    by_epochs = schedule_settings(options_of(max_steps=sum(steps[:6])), by_atoms)
    assert by_epochs.horizon == 6.0


@pytest.mark.parametrize("unit", ["step", "epoch"])
def test_the_rest_of_a_run_is_that_of_its_epochs(by_atoms: EpochBatches, unit: Any) -> None:
    steps = counted(by_atoms)
    group = {"params": [nn.Parameter(torch.zeros(1))], "lr": 0.1}
    schedule = Schedule(torch.optim.SGD([group]), ScheduleSettings(kind="cosine", unit=unit))
    schedule.steps, schedule.epochs = sum(steps[:4]) + 2, 4
    progress = Progress(epoch=4, steps_in_epoch=2, step=schedule.steps)
    state: Any = SimpleNamespace(schedule=schedule, progress=progress)
    stages = (Stage(loss=Loss.of()), Stage(loss=Loss.of(), start=7, lr=0.01))
    rest = rest_of_run(state, FitPlan(epochs=10, stages=stages), StepCounts(by_atoms, 2))
    by_steps = unit == "step"
    assert rest.end == (sum(steps) if by_steps else 10)
    assert rest.governed == (sum(steps[:7]) if by_steps else 7)
    plan = FitPlan(epochs=10, stages=stages[:1], max_steps=sum(steps[:6]))
    assert rest_of_run(state, plan, StepCounts(by_atoms, 2)).end == (
        sum(steps[:6]) if by_steps else 6
    )


def test_a_warm_up_is_compared_with_the_steps_of_all_epochs(by_atoms: EpochBatches) -> None:
    whole = sum(counted(by_atoms))

    def said(warmup: int) -> bool:
        options = options_of(scheduler_unit="step", warmup=warmup)
        module = nn.Linear(1, 1)
        run: Any = SimpleNamespace(options=options, batches=by_atoms, module=module)
        return any("lasts as long" in text for text in idle_settings._of_the_rate(run, 10.0))

    assert (said(whole - 1), said(whole)) == (False, True)


def test_no_step_of_a_run_is_taken_at_rate_zero(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(json.dumps(TINY))
    write(tmp_path / "t.xyz", waters(14), format="extxyz")
    write(tmp_path / "v.xyz", waters(3, seed=1), format="extxyz")
    argv = ["--input_json", tmp_path / "m.json", "--train_file", tmp_path / "t.xyz"]
    argv += ["--valid_file", tmp_path / "v.xyz", "--output_checkpoint", tmp_path / "run"]
    argv += ["--max_atoms_per_batch", 8, "--epochs", 6, "--seed", 2]
    argv += ["--scheduler", "cosine", "--scheduler_unit", "step", "--log_every_steps", 1]
    argv += ["--no_export_mace_model"]
    assert train_mace.main([str(word) for word in argv]) == 0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    rates = {line["step"]: line["lr"] for line in records if line["kind"] == "train_steps"}
    n = len(rates)
    assert n == 70, "the first epoch has 11 steps, the six have more than 66"
    assert list(rates) == list(range(1, n + 1))
    expected = [0.01 * np.cos(np.pi / 2 * step / n) ** 2 for step in range(n)]
    assert list(rates.values()) == pytest.approx(expected)
