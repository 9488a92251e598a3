"""The rate of every step of a resumed run: every schedule, mid-run and after its end,
longer, anew, in stage two.
"""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from dataloader.batching import Budget
from losses import Loss
from model_utils.errors import InputError
from model_utils.run.beginnings.resumed_rate import RateChange, change_rate
from model_utils.run.fit_plan import FitPlan, Stage
from model_utils.run.step_counts import StepCounts
from model_utils.run.train_state import Progress
from optimizer import Schedule, ScheduleSettings

PER_EPOCH = 3
ALIKE: Any = SimpleNamespace(
    n_batches=lambda epoch: PER_EPOCH, structures_per_epoch=PER_EPOCH, budget=Budget(structures=1)
)
COUNTS = StepCounts(ALIKE, 1)
KINDS = ("plateau", "step", "exponential", "cosine", "onecycle", "constant")
X = 3e-4


class Run:
    """Counters and schedule of a run without a network, moved as the loop moves them."""

    def __init__(self, kind: str, unit: str, epochs: int = 8, **settings: Any) -> None:
        horizon = epochs * (PER_EPOCH if unit == "step" else 1)
        usual = {"factor": 0.9 if kind == "exponential" else 0.5, "period": 2, "patience": 1}
        self.settings = ScheduleSettings(
            kind=kind, unit=unit, horizon=horizon, **(usual | settings)
        )  # type: ignore[arg-type]
        self.schedule, self.progress = self._fresh(), Progress()
        self.epochs, self.stored = epochs, {"epochs": epochs, "max_steps": None}
        self.later: tuple[Stage, ...] = ()
        self.taken: list[float] = []

    def _fresh(self) -> Schedule:
        groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (0.01, 0.001)]
        return Schedule(torch.optim.SGD(groups), self.settings)

    def to(self, end: float) -> "Run":
        """Train on until so many epochs."""
        while self.progress.step < round(end * PER_EPOCH):
            self.taken.append(self.schedule.rate())
            if self.settings.min_lr == 0.0:  # which is the same for all groups
                other = self.schedule.optimizer.param_groups[1]["lr"]
                assert other == pytest.approx(self.taken[-1] / 10, rel=1e-12)
            self.progress.step += 1
            self.progress.steps_in_epoch += 1
            self.schedule.after_step()
            if self.progress.steps_in_epoch == PER_EPOCH:
                self.progress.epoch, self.progress.steps_in_epoch = self.progress.epoch + 1, 0
                self.schedule.after_epoch()
                # never lower after the first: a plateau comes down
                self.schedule.after_validation(1.0)
        return self

    def resumed(self, epochs: int | None = None, *, new: bool = True, **change: Any) -> list[str]:
        """Stop, go on in another process, and what that says."""
        state, self.schedule = self.schedule.state_dict(), self._fresh()
        self.schedule.load_state_dict(state)
        self.epochs = epochs or self.epochs
        plan = FitPlan(epochs=self.epochs, stages=(Stage(loss=Loss.of()), *self.later))
        stored, self.stored = self.stored, {**self.stored, "epochs": self.epochs}
        run: Any = SimpleNamespace(schedule=self.schedule, progress=self.progress)
        return change_rate(run, plan, COUNTS, stored, RateChange(**change)) if new else []


def later(kind: str, unit: str, begin: float, end: float, left: float = 1.0) -> list[float]:
    """Rates from ``begin`` to ``end`` (epochs) where X was set at ``begin``, by the
    formulas of the schedules.
    """
    scale = PER_EPOCH if unit == "step" else 1
    units = [
        step / PER_EPOCH * scale for step in range(round(begin * PER_EPOCH), round(end * PER_EPOCH))
    ]
    units = [u if unit == "step" else math.floor(u + 1e-9) for u in units]
    first, last = units[0], end * scale
    if kind in ("cosine", "onecycle"):
        part = [left * (1 - (u - first) / (last - first)) for u in units]
        return [X * (math.sin(math.pi / 2 * p) / math.sin(math.pi / 2 * left)) ** 2 for p in part]
    if kind == "step":
        return [X * 0.5 ** (u // 2 - first // 2) for u in units]
    if kind == "exponential":
        return [X * 0.9 ** (u - first) for u in units]
    assert kind == "constant"
    return [X] * len(units)


@pytest.mark.parametrize("unit", ["epoch", "step"])
@pytest.mark.parametrize("kind", ["step", "exponential", "cosine", "onecycle", "constant"])
@pytest.mark.parametrize("epochs", [None, 20])
@pytest.mark.parametrize("begin", [4, 16 / 3, 7])
def test_the_first_step_has_the_rate_and_later_ones_follow(
    kind: str, unit: str, epochs: int | None, begin: float
) -> None:
    run = Run(kind, unit).to(begin)
    run.taken.clear()
    run.resumed(epochs, lr=X)
    run.to(epochs or 8)
    behind = begin if unit == "step" else math.floor(begin)
    rise = 0.3 * 8 if kind == "onecycle" else 0.0
    expected = later(kind, unit, begin, epochs or 8, left=(8 - behind) / (8 - rise))
    assert run.taken == pytest.approx(expected, rel=1e-9)
    assert run.taken[0] == X


@pytest.mark.parametrize("unit", ["epoch", "step"])
@pytest.mark.parametrize("kind", KINDS)
def test_after_the_end(kind: str, unit: str) -> None:
    run = Run(kind, unit).to(8)
    run.taken.clear()
    notes = run.resumed(12, lr=X)
    run.to(12)
    assert run.taken[0] == X
    assert f"{12 * (PER_EPOCH if unit == 'step' else 1)}, the end of the run" in notes[-1]
    if kind != "plateau":
        assert run.taken == pytest.approx(later(kind, unit, 8, 12), rel=1e-9)
    if kind in ("cosine", "onecycle"):
        assert run.schedule.rate() == 0.0, "the curve ends with the run"


def with_length(length: float, unit: str, min_lr: float) -> Run:
    """A run of 8 epochs whose cosine has a --scheduler_length."""
    run = Run("cosine", unit, min_lr=min_lr)
    scaled = length * (PER_EPOCH if unit == "step" else 1)
    run.settings = replace(run.settings, horizon=scaled)
    run.schedule = run._fresh()
    run.stored["scheduler_length"] = scaled
    return run


@pytest.mark.parametrize("unit", ["epoch", "step"])
def test_a_length_of_the_schedule_stays(unit: str) -> None:
    scale = PER_EPOCH if unit == "step" else 1
    run = with_length(6, unit, 1e-5).to(3)
    notes = run.resumed(lr=X)
    assert run.schedule.rate() == X
    assert f"1e-05 from {unit} {6 * scale} on" in notes[-1]
    assert run.schedule.rate_at(6 * scale) == pytest.approx(1e-5)
    # of the half of the curve that was to come
    left = (math.sin(math.pi / 8) / math.sin(math.pi / 4)) ** 2
    assert run.schedule.rate_at(4.5 * scale) == pytest.approx(1e-5 + (X - 1e-5) * left)
    longer = with_length(20, unit, 0.0).to(3)
    longer.resumed(lr=X)
    assert longer.schedule.settings.horizon == 20 * scale, "beyond the end of the run"
    anew = with_length(3, unit, 1e-5).to(4)
    anew.resumed(anew=True, lr=X)
    assert anew.schedule.settings.horizon == 3 * scale


@pytest.mark.parametrize("unit", ["epoch", "step"])
def test_a_length_that_is_behind_or_would_train_nothing_ends_with_the_run(unit: str) -> None:
    scale = PER_EPOCH if unit == "step" else 1
    behind = with_length(3, unit, 1e-5).to(4)
    behind.resumed(lr=X)
    assert behind.schedule.settings.horizon == 8 * scale
    nothing = with_length(8, unit, 0.0).to(4)
    nothing.resumed(20, lr=X)
    assert nothing.schedule.settings.horizon == 20 * scale
    anew = with_length(8, unit, 0.0).to(4)
    anew.resumed(20, anew=True)
    assert anew.schedule.settings.horizon == 16 * scale


def test_a_plateau_comes_down_from_there() -> None:
    run = Run("plateau", "epoch").to(6)
    assert run.taken[-1] < 0.01
    run.taken.clear()
    run.resumed(lr=X)
    run.to(8)
    assert run.taken[0] == X
    assert run.schedule.rate() == X / 2


@pytest.mark.parametrize("unit", ["epoch", "step"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("min_lr", [0.0, 1e-3])
def test_the_rate_of_now_changes_nothing(kind: str, unit: str, min_lr: float) -> None:
    whole = Run(kind, unit, min_lr=min_lr).to(8)
    run = Run(kind, unit, min_lr=min_lr).to(11 / 3)
    run.resumed(lr=run.schedule.rate())
    assert run.to(8).taken == pytest.approx(whole.taken, rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_stopped_again_it_goes_on_bit_for_bit(kind: str) -> None:
    whole, run = Run(kind, "step").to(5), Run(kind, "step").to(5)
    whole.resumed(9, lr=X)
    run.resumed(9, lr=X)
    run.to(20 / 3).resumed()
    assert run.to(9).taken == whole.to(9).taken


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_rate_takes_the_place_of_the_first(kind: str) -> None:
    run = Run(kind, "epoch").to(3)
    run.resumed(lr=1e-5)
    run.to(6).resumed(lr=X)
    run.taken.clear()
    run.to(8)
    assert run.taken[0] == X
    assert run.taken[-1] <= X


@pytest.mark.parametrize("unit", ["epoch", "step"])
@pytest.mark.parametrize("kind", KINDS)
def test_in_a_warm_up_the_rate_stays_until_it_is_over(kind: str, unit: str) -> None:
    warmup = 3.0 * (PER_EPOCH if unit == "step" else 1)
    run = Run(kind, unit, warmup=warmup).to(1)
    run.taken.clear()
    assert "in place of the warm-up" in run.resumed(lr=X)[-1]
    run.to(8)
    assert run.taken[:6] == [X] * 6
    assert max(run.taken) == X
    assert run.taken[-1] < X or kind == "constant"


@pytest.mark.parametrize("kind", KINDS)
def test_a_rate_below_min_lr_stays(kind: str) -> None:
    run = Run(kind, "epoch", min_lr=1e-3).to(4)
    run.taken.clear()
    run.resumed(lr=X)
    assert run.to(8).taken == [X] * 12


@pytest.mark.parametrize("unit", ["epoch", "step"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lr", [None, X])
def test_anew_it_is_the_schedule_of_a_new_run(kind: str, unit: str, lr: float | None) -> None:
    run = Run(kind, unit).to(8)
    run.taken.clear()
    assert f"the {kind} schedule starts anew" in run.resumed(20, lr=lr, anew=True)
    new = Run(kind, unit, epochs=12)
    if lr is not None:
        new.resumed(lr=lr, anew=True)  # at its beginning: another base rate
    assert run.to(20).taken == pytest.approx(new.to(12).taken, rel=1e-12)
    if kind != "onecycle":
        assert run.taken[0] == (lr or 0.01)
    else:
        assert max(run.taken) == pytest.approx(lr or 0.01, rel=0.2), (
            "it rises first, as in a new run"
        )


@pytest.mark.parametrize("kind", KINDS)
def test_within_stage_two_the_rate_is_held(kind: str) -> None:
    run = Run(kind, "epoch").to(4)
    run.later = (Stage(start=4, loss=Loss.of(), lr=1e-3),)
    run.progress.stage = 2
    run.schedule.hold(1e-3)
    run.to(6).taken.clear()
    assert (
        run.resumed(12, lr=X)[-1]
        == "stage two holds the rate 0.0003 until epoch 12, the end of the run"
    )
    assert run.to(12).taken == [X] * 18


def test_before_stage_two_its_own_rate_is_named() -> None:
    run = Run("cosine", "epoch").to(3)
    run.later = (Stage(start=6, loss=Loss.of(), lr=1e-3),)
    assert "until epoch 6, where stage two begins with 0.001" in run.resumed(lr=X)[-1]


@pytest.mark.parametrize("unit", ["epoch", "step"])
@pytest.mark.parametrize("kind", ["cosine", "onecycle"])
@pytest.mark.parametrize("begin", [4, 8])
def test_a_longer_run_that_would_stand_still_is_refused(kind: str, unit: str, begin: int) -> None:
    with pytest.raises(
        InputError, match=r"would train nothing; give resume.py a --lr, .* or --reset_scheduler"
    ):
        Run(kind, unit).to(begin).resumed(20)
    run = Run(kind, unit, min_lr=1e-4).to(begin)
    [note] = run.resumed(20)
    assert "0.0001 from" in note
    run.taken.clear()
    assert run.to(20).taken[-1] == 1e-4
    run = Run(kind, unit).to(begin)
    run.later = (Stage(start=8, loss=Loss.of(), lr=1e-3),)
    assert "where stage two begins" in run.resumed(20)[-1] or begin == 8, (
        "stage two takes over where it ends"
    )


def test_decayed_to_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="the step schedule has come down to rate"):
        Run("step", "epoch", factor=1e-4, period=1).to(8).resumed(20)
    assert "in the last epoch" in Run("step", "epoch").to(8).resumed(20)[-1]


def test_what_is_no_longer_than_before_goes_on_in_silence() -> None:
    assert Run("cosine", "step").to(5).resumed() == []
    assert Run("cosine", "step").to(8).resumed() == [], "a finished run that is repeated"
    assert Run("step", "epoch", factor=1e-4, period=1).to(6).resumed() == [], (
        "its own schedule brought it there"
    )


def test_a_rate_for_a_run_that_is_over_is_said_and_does_not_hide_a_standstill() -> None:
    run = Run("cosine", "epoch").to(8)
    assert "the run is over" in run.resumed(lr=X)[-1]
    with pytest.raises(InputError, match="would train nothing"):
        run.resumed(12)


def test_state_from_before_a_rate_could_be_set_is_read() -> None:
    run = Run("cosine", "step").to(5)
    state = run.schedule.state_dict()
    old = {name: value for name, value in state.items() if name not in ("set_at", "set_left")}
    fresh = run._fresh()
    fresh.load_state_dict(old)
    assert fresh.rate() == run.schedule.rate()
    assert fresh.state_dict() == state
