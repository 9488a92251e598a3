"""The loop by itself, in memory: order of an epoch, stages, patience, accumulation, requests
to stop, failing saves.

Nothing is read or written, and the clock is only looked at, where a test has put one
of its own in its place.
"""

import copy
import math
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from loop_in_memory import EnergyPerElement, Told, Waters, state_of, steps_of
from torch import Tensor, nn

from dataloader.batch import Batch
from losses import Loss
from model_utils.errors import InputError, NonFiniteError, Preempted, SaveError, StopRequested
from model_utils.run import fit as loop
from model_utils.run.best_metric import Judge
from model_utils.run.fit import fit
from model_utils.run.fit_plan import FitPlan, Stage
from model_utils.run.train_state import Progress, TrainState
from optimizer import ScheduleSettings

ENERGY = Loss.of(energy=1.0, forces=0.0)
FIRST = Stage(loss=ENERGY)


def plan_of(epochs: int, *later: Stage, **more: Any) -> FitPlan:
    return FitPlan(epochs=epochs, stages=(FIRST, *later), **more)


def trained(
    plan: FitPlan,
    told: Told | None = None,
    state: TrainState | None = None,
    n: int = 4,
    accumulate: int = 1,
) -> TrainState:
    state = state or state_of()
    data = Waters(n)
    told = Told() if told is None else told
    fit(state, steps_of(data, accumulate), plan, told.hooks(state, data))
    return state


def weights(state: TrainState) -> list[float]:
    return state.parameters["weight"].tolist()


def test_order_of_an_epoch() -> None:
    told = Told()
    trained(plan_of(2), told)
    epoch = ["step", "step", "train", "best", "valid"]
    assert told.kinds() == ["save", "valid", *epoch, "save", *epoch, "last"]
    assert told.of("save") == [("start",), ("epoch",)]
    assert told.of("last") == [("epochs done",)]
    assert [(epoch, best) for epoch, best, _ in told.of("valid")] == [
        (0, False),
        (1, True),
        (2, True),
    ]


def test_weights_before_the_first_step_may_be_the_best() -> None:
    told = Told(losses=[1.0, 2.0])
    state = trained(plan_of(1, judge_first=True), told)
    assert [best for _, best, _ in told.of("valid")] == [True, False]
    assert (state.progress.best_step, state.progress.best_loss) == (0, 1.0)


def test_steps_minimise_the_loss_of_their_epoch_and_validations_are_judged_by_the_stages() -> None:
    """A weight of 0 in the first epoch moves nothing, and the validation after it has
    the weight all the same.
    """
    told = Told()
    state = state_of()
    stage = Stage(loss=ENERGY, of_epoch=lambda epoch: Loss.of(energy=float(epoch), forces=0.0))
    trained(FitPlan(epochs=1, stages=(stage,)), told, state)
    assert weights(state) == [0.0, 0.0]
    [(_, _, trained_on)] = told.of("train")
    first, after = [loss for _, _, loss in told.of("valid")]
    assert trained_on == 0.0 < first == after
    trained(FitPlan(epochs=2, stages=(stage,)), told, state)
    assert 0.0 not in weights(state)


def test_the_judge_says_which_model_is_the_best() -> None:
    """Of errors that are all 0 but one, with losses that say otherwise."""
    told = Told(losses=[5.0, 4.0, 3.0, 2.0])
    state = state_of()
    data = Waters(4)
    scores = iter([8.0, 6.0, 7.0, 5.0])
    judge = Judge(metric="energy_rmse_per_atom")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Judge, "score", lambda self, *words: next(scores))
        fit(state, steps_of(data, 1), plan_of(3, judge=judge, patience=9), told.hooks(state, data))
    assert [best for _, best, _ in told.of("valid")] == [False, True, False, True]
    assert (state.progress.best_loss, state.progress.waited) == (5.0, 0)


def test_stage_two_changes_loss_and_rate_and_looks_for_the_best_anew() -> None:
    told = Told(losses=[9.0, 1.0, 1.0, 5.0, 4.0])
    two = Stage(start=2, loss=Loss.of(energy=1000.0, forces=0.0), lr=0.001)
    state = trained(plan_of(4, two), told)
    assert [lr for _, lr, _ in told.of("train")] == [0.01, 0.01, 0.001, 0.001]
    assert told.of("stage") == [(2, 2)]
    assert [best for _, best, _ in told.of("valid")] == [False, True, False, True, True]
    assert (state.progress.stage, state.progress.best_loss) == (2, 4.0)
    _, second, third, _ = [loss for _, _, loss in told.of("train")]
    assert third > 500 * second, "the training line is of the stage's own loss"


@pytest.mark.parametrize(
    "every", [{"validate_every": 4}, {"validate_every_steps": 7}, {"validate_every": 2}]
)
def test_the_end_of_a_stage_is_validated_once(every: dict[str, int]) -> None:
    told = Told(losses=[9.0, 8.0, 7.0, 6.0])
    two = Stage(start=2, loss=Loss.of(energy=1000.0, forces=0.0))
    trained(plan_of(6, two, Stage(start=2, loss=ENERGY), **every), told)
    events = told.events
    before = events[: events.index(("stage", 2, 2))]
    assert [event[1] for event in before if event[0] == "valid"] == [0, 2]
    assert events[events.index(("stage", 2, 2)) - 1] in (("valid", 2, True, 8.0), ("save", "epoch"))
    assert events[events.index(("stage", 2, 2)) + 1] == ("stage", 3, 2)


def test_weights_before_the_first_step_end_no_stage() -> None:
    told = Told()
    trained(plan_of(1, Stage(start=0, loss=ENERGY)), told)
    assert told.kinds()[:4] == ["save", "valid", "stage", "step"]


def test_the_end_of_a_stage_is_still_judged_where_a_run_was_stopped_in_that_validation() -> None:
    plan = plan_of(4, Stage(start=2, loss=ENERGY, lr=0.001), validate_every=4, patience=9)
    whole = Told()
    unbroken = trained(plan, whole)
    state = state_of()
    data = Waters(4)

    def watch(batches: Iterator[Batch]) -> Iterator[Batch]:
        for batch in batches:
            if state.progress.validation_due and state.progress.step == 4:
                raise StopRequested("time limit")
            yield batch

    parts = Told(watch=watch)
    with pytest.raises(Preempted):
        fit(state, steps_of(data), plan, parts.hooks(state, data))
    parts.watch = iter
    fit(state, steps_of(data), plan, parts.hooks(state, data))
    assert parts.of("valid") == whole.of("valid")
    assert weights(state) == weights(unbroken)
    assert state.progress == unbroken.progress


def test_more_stages_than_two_follow_one_another() -> None:
    told = Told()
    later = [
        Stage(start=start, loss=ENERGY, lr=lr) for start, lr in ((1, 0.004), (2, None), (4, 0.002))
    ]
    state = trained(plan_of(5, *later), told)
    assert told.of("stage") == [(2, 1), (3, 2), (4, 4)]
    assert [lr for _, lr, _ in told.of("train")] == [0.01, 0.004, 0.004, 0.004, 0.002]
    assert state.progress.stage_starts == [0, 1, 2, 4]


def test_a_stage_whose_losses_can_be_compared_keeps_the_best() -> None:
    told = Told(losses=[9.0, 1.0, 5.0, 4.0])
    state = trained(plan_of(3, Stage(start=1, loss=ENERGY, new_best=False)), told)
    assert [best for _, best, _ in told.of("valid")] == [False, True, False, False]
    assert (state.progress.best_loss, state.progress.best_epoch) == (1.0, 1)


def test_a_plateau_does_not_compare_losses_of_two_stages() -> None:
    """Higher weights are no reason to reduce the rate, where the stage leaves
    the rate to the schedule.
    """
    told = Told(losses=[9.0, 1.0, 50.0, 40.0])
    state = state_of(settings=ScheduleSettings(kind="plateau", factor=0.5, patience=0))
    trained(plan_of(3, Stage(start=1, loss=ENERGY)), told, state)
    assert state.schedule.rate() == 0.01


def test_patience_ends_a_run() -> None:
    told = Told(losses=[9.0, 1.0, 2.0, 2.0, 2.0])
    state = trained(plan_of(50, patience=3), told)
    assert state.progress.finished == "no lower validation loss for 3 validations"
    assert state.progress.epoch == 4


def test_patience_ends_a_run_within_an_epoch_and_more_of_it_goes_on_there() -> None:
    losses = [9.0, 1.0, 2.0, 2.0, 2.0, 2.0]
    told = Told(losses=losses[:4])
    plan = plan_of(50, patience=2, validate_every_steps=1)
    state = trained(plan, told, n=8)
    assert told.kinds()[-3:] == ["step", "valid", "last"]
    assert (state.progress.step, state.progress.epoch, state.progress.steps_in_epoch) == (3, 0, 3)
    assert state.progress.finished == "no lower validation loss for 2 validations"
    more = plan_of(50, patience=4, validate_every_steps=1)
    whole = trained(more, Told(losses=[*losses]), n=8)
    trained(more, Told(losses=losses[4:]), state, n=8)
    assert weights(state) == weights(whole)
    assert state.progress == whole.progress


def test_patience_within_an_epoch_begins_the_next_stage_at_its_end() -> None:
    told = Told(losses=[9.0, 1.0, 2.0, 2.0, 2.0, 7.0, 8.0])
    plan = plan_of(50, Stage(start=40, loss=ENERGY), patience=1, validate_every_steps=1)
    state = trained(plan, told, n=6)
    assert told.of("stage") == [(2, 1)]
    assert (state.progress.epoch, state.progress.steps_in_epoch) == (1, 2)


def test_patience_goes_on_to_the_next_stage_and_ends_the_last() -> None:
    told = Told(losses=[9.0, 1.0, 2.0, 2.0, 7.0, 8.0, 8.0])
    state = trained(plan_of(50, Stage(start=40, loss=ENERGY, lr=0.001), patience=2), told)
    assert told.of("stage") == [(2, 3)]
    assert (state.progress.epoch, state.progress.stage) == (6, 2)
    assert state.progress.finished == "no lower validation loss for 2 validations"


def test_patience_begins_anew_with_each_stage() -> None:
    told = Told(losses=[9.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0])
    later = [
        Stage(start=40, loss=ENERGY, new_best=False),
        Stage(start=50, loss=ENERGY, new_best=False),
    ]
    trained(plan_of(60, *later, patience=2), told)
    assert told.of("stage") == [(2, 3), (3, 5)]
    assert told.of("last") == [("no lower validation loss for 2 validations",)]


def test_accumulated_batches_are_one_large_batch() -> None:
    """Two batches of unequal sizes in a step: the loss and the step are those of
    all structures at once.
    """
    parts = Told()
    state = trained(plan_of(1), parts, accumulate=2)
    data = Waters(4)
    data.plan = lambda epoch: [torch.arange(4).numpy()]  # type: ignore[method-assign]
    whole = state_of()
    fit(whole, steps_of(data), plan_of(1), Told().hooks(whole, data))
    assert (state.progress.step, whole.progress.step) == (1, 1)
    assert weights(state) == pytest.approx(weights(whole), rel=1e-14)
    assert state.progress.samples == 4


class Turned(EnergyPerElement):
    """The numbers of the elements are sums of three, in a matrix whose gradient lies transposed."""

    def __init__(self) -> None:
        super().__init__()
        start = torch.arange(6, dtype=torch.float64).view(3, 2) / 10
        self.module.weight = nn.Parameter(start)

    def outputs(
        self, parameters: Mapping[str, Tensor], batch: Batch, positions: Tensor, shifts: Tensor
    ) -> dict[str, Tensor]:
        """The energies, (n_structures,), eV."""
        factors = torch.tensor([1.0, -30.0, 0.001], dtype=torch.float64)
        summed = {"weight": parameters["weight"].t() @ factors}
        return super().outputs(summed, batch, positions, shifts)


@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_gradients_reach_the_weights_whose_they_are_also_where_they_lie_transposed(
    kind: str,
) -> None:
    """torch's fused optimizers read gradients as if they lay as their weights do."""
    states = []
    for fused in (True, False):
        state = state_of(optimizer=kind, network=Turned())
        weight = state.parameters["weight"]
        [gradient] = torch.autograd.grad((weight.t() @ torch.ones(3).double()).sum(), [weight])
        assert gradient.stride() != weight.stride()
        [group] = state.optimizer.param_groups
        assert group["fused"]
        group["fused"] = fused
        states.append(trained(plan_of(3), state=state))
    first, second = (state.parameters["weight"] for state in states)
    torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-12)


def test_a_weight_with_gaps_in_memory_is_moved_and_nothing_beside_it() -> None:
    """torch's fused optimizers would write into the gaps."""
    states = [state_of(network=EnergyPerElement())]
    network = EnergyPerElement()
    table = torch.zeros(2, 2, dtype=torch.float64)
    network.module.weight = nn.Parameter(table[:, 0])
    assert network.module.weight.stride() == (2,)
    states.append(state_of(network=network))
    for state in states:
        trained(plan_of(3), state=state)
    first, second = (state.parameters["weight"].detach() for state in states)
    torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-12)
    assert not table[:, 1].any()


def moved_on(state: TrainState, epochs: int, began: dict[str, Any]) -> TrainState:
    """A run that goes on from what another one stored, behind its first epoch."""
    state.load_state_dict(began)
    return trained(plan_of(epochs), state=state)


def stored(state: TrainState) -> dict[str, Any]:
    """What a checkpoint has of it besides the weights."""
    return copy.deepcopy(state.state_dict())


@pytest.mark.parametrize("fused", [True, False])
def test_a_run_goes_on_with_the_optimizer_that_it_began_with(fused: bool) -> None:
    whole = state_of(network=Turned())
    part = state_of(network=Turned())
    for state in (whole, part):
        state.optimizer.param_groups[0]["fused"] = fused
    trained(plan_of(4), state=whole)
    trained(plan_of(2), state=part)
    began = stored(part)
    assert began["computed_on"]["optimizer"] == ("fused" if fused else "plain")
    # versions that give it gradients as they lie go on with the plain form, which is right
    assert [group["fused"] for group in began["optimizer"]["param_groups"]] == [None]
    again = state_of(network=Turned())
    with torch.no_grad():
        again.parameters["weight"].copy_(part.parameters["weight"])
    if not fused:
        del began["computed_on"]["optimizer"]  # as earlier versions have it
    moved_on(again, 4, began)
    assert torch.equal(again.parameters["weight"], whole.parameters["weight"])


def test_moments_get_the_strides_of_their_weight() -> None:
    whole = trained(plan_of(4), state=state_of(network=Turned()))
    part = trained(plan_of(2), state=state_of(network=Turned()))
    began = stored(part)
    for moments in began["optimizer"]["state"].values():
        for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
            moments[name] = moments[name].t().contiguous().t()
    again = state_of(network=Turned())
    with torch.no_grad():
        again.parameters["weight"].copy_(part.parameters["weight"])
    moved_on(again, 4, began)
    assert torch.equal(again.parameters["weight"], whole.parameters["weight"])


def test_a_record_has_the_rate_of_its_step_also_where_the_schedule_counts_steps() -> None:
    told = Told()
    state = state_of(settings=ScheduleSettings(kind="exponential", unit="step", factor=0.5))
    data = Waters(4)
    begun = state.schedule.rate()
    fit(state, steps_of(data), plan_of(1, log_every_steps=1), told.hooks(state, data))
    rates = [rate for _, rate, _ in told.of("train")]
    assert rates[:2] == pytest.approx([begun, begun / 2])


def test_the_record_of_a_validation_has_the_rate_of_the_step_behind_it() -> None:
    told = Told()
    settings = ScheduleSettings(kind="exponential", unit="step", factor=0.5)
    state = state_of(settings=settings)
    data = Waters(4)
    hooks = told.hooks(state, data)
    rates: list[float] = []
    object.__setattr__(hooks, "on_validation", lambda record: rates.append(record.lr))
    fit(state, steps_of(data), plan_of(2, validate_every_steps=1), hooks)
    assert rates == pytest.approx([0.01, 0.01, 0.005, 0.0025, 0.00125])


def test_a_rate_of_zero_is_recorded() -> None:
    """Where the step to come has another one already."""
    settings = ScheduleSettings(kind="cosine", unit="step", horizon=2)
    plan = plan_of(1, max_steps=3)
    state = trained(plan, state=state_of(settings=settings), n=8)
    state.schedule.set_rate(0.3, horizon=9)
    state.progress.validation_due = True
    data = Waters(8)
    hooks = Told().hooks(state, data)
    rates: list[float] = []
    object.__setattr__(hooks, "on_validation", lambda record: rates.append(record.lr))
    fit(state, steps_of(data), plan, hooks)
    assert rates == [0.0]


def test_max_steps_ends_within_an_epoch_and_validates() -> None:
    told = Told()
    state = trained(plan_of(9, max_steps=3), told)
    assert told.kinds()[-4:] == ["step", "best", "valid", "last"]
    assert (state.progress.step, state.progress.epoch, state.progress.steps_in_epoch) == (3, 1, 1)
    assert state.progress.finished == "max_steps reached"
    assert told.of("train")[0][0] == 1
    assert len(told.of("train")) == 1, "half an epoch has no line of its own"


@pytest.mark.parametrize("stopped_by_an_earlier_version", [False, True])
def test_max_steps_behind_an_epoch_closes_it_and_no_weights_are_judged_twice(
    stopped_by_an_earlier_version: bool,
) -> None:
    losses = [9.0, 8.0, 7.0, 6.0]
    whole = Told(losses=list(losses))
    trained(plan_of(3), whole, n=4)
    state = state_of()
    data = Waters(4)
    parts = Told(losses=list(losses))
    fit(state, steps_of(data), plan_of(3, max_steps=4), parts.hooks(state, data))
    assert (state.progress.epoch, state.progress.steps_in_epoch) == (2, 0)
    if stopped_by_an_earlier_version:  # it left the epoch open
        state.progress.epoch = 1
        state.progress.steps_in_epoch = 2
        state.tally.add(torch.zeros_like(state.tally.sums), torch.tensor(1.0), 0.0)
    fit(state, steps_of(data), plan_of(3), parts.hooks(state, data))
    assert parts.of("valid") == whole.of("valid")
    assert state.progress.waited == 0
    if not stopped_by_an_earlier_version:
        assert parts.of("train") == whole.of("train")


def test_counted_in_steps() -> None:
    told = Told()
    trained(
        plan_of(2, validate_every_steps=3, checkpoint_every_steps=2, log_every_steps=1), told, n=4
    )
    assert [reason for (reason,) in told.of("save")] == ["start", "interval", "epoch", "interval"]
    assert len(told.of("valid")) == 3, "before the first step, at step 3, at the end"
    assert len(told.of("train")) == 4 + 2


def test_a_validation_behind_the_last_step_of_an_epoch_is_of_the_epoch_that_is_finished() -> None:
    told = Told(losses=[9.0, 3.0, 2.0, 1.0, 4.0])
    plan = plan_of(2, validate_every_steps=1, checkpoint_every_steps=1)
    state = trained(plan, told, n=4)
    assert [epoch for epoch, _, _ in told.of("valid")] == [0, 0, 1, 1, 2]
    assert (state.progress.best_epoch, state.progress.best_step) == (1, 3)
    assert [kind for kind in told.kinds() if kind in ("step", "valid", "train")] == (
        ["valid", *["step", "valid", "step", "train", "valid"] * 2]
    )


def test_a_run_saved_before_that_validation_has_it_after_it_goes_on() -> None:
    plan = plan_of(2, validate_every_steps=2, checkpoint_every_steps=2)
    whole = Told()
    unbroken = trained(plan, whole)
    state = state_of()
    data = Waters(4)
    parts = Told()
    hooks = parts.hooks(state, data)

    def stop(*_: Any) -> None:
        if state.progress.step == 2:
            raise StopRequested("SIGUSR1")

    object.__setattr__(hooks, "meet", stop)
    with pytest.raises(Preempted):
        fit(state, steps_of(data), plan, hooks)
    assert (state.progress.steps_in_epoch, state.progress.validated_step) == (2, -1)
    fit(state, steps_of(data), plan, parts.hooks(state, data))
    assert parts.of("valid") == whole.of("valid")
    assert weights(state) == weights(unbroken)
    assert state.progress == unbroken.progress


def test_a_request_to_stop_saves_the_last_whole_step_and_the_rest_follows() -> None:
    whole = trained(plan_of(3), n=6)
    state = state_of()
    data = Waters(6)
    taken = 0

    def watch(batches: Iterator[Batch]) -> Iterator[Batch]:
        nonlocal taken
        for batch in batches:
            if state.progress.step == 4:
                raise StopRequested("SIGUSR1")
            taken += 1
            yield batch

    told = Told(watch=watch)
    with pytest.raises(
        Preempted, match="SIGUSR1: saved at step 4, epoch 2; go on with --resume auto"
    ):
        fit(state, steps_of(data), plan_of(3), told.hooks(state, data))
    assert told.events[-1] == ("last", "SIGUSR1")
    assert (state.progress.step, state.progress.steps_in_epoch) == (4, 1)
    fit(state, steps_of(data), plan_of(3), Told().hooks(state, data))
    assert weights(state) == weights(whole)
    assert state.progress == whole.progress


def test_a_validation_that_was_broken_off_is_still_due() -> None:
    state = state_of()
    data = Waters(4)

    def watch(batches: Iterator[Batch]) -> Iterator[Batch]:
        for batch in batches:
            if state.progress.validation_due and state.progress.step == 2:
                raise StopRequested("time limit")
            yield batch

    told = Told(watch=watch)
    with pytest.raises(Preempted):
        fit(state, steps_of(data), plan_of(1), told.hooks(state, data))
    assert state.progress.validation_due
    again = Told()
    fit(state, steps_of(data), plan_of(1), again.hooks(state, data))
    assert again.kinds() == ["best", "valid", "last"]
    assert state.progress.validated_step == 2


def test_a_loss_that_is_no_number_stops_before_the_weights_are_touched() -> None:
    state = state_of()
    data = Waters(4, broken=1)
    told = Told(losses=[1.0])
    with pytest.raises(
        NonFiniteError, match="not finite after step 0 for the batch of 0 and 1; nothing of it was"
    ):
        fit(state, steps_of(data), plan_of(1), told.hooks(state, data))
    assert weights(state) == [0.0, 0.0]
    assert "last" not in told.kinds()


def test_a_validation_that_is_no_number_is_not_saved() -> None:
    told = Told(losses=[math.nan])
    with pytest.raises(NonFiniteError, match="validation loss is nan after step 0"):
        trained(plan_of(1), told)
    assert told.kinds() == ["save"]


def test_a_save_that_fails_is_tried_again_later_and_less_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The clock moves by 20 s with each step: 30 s after the first failure, then 60 s."""
    told = Told(saves=[True, False, False, True])
    monkeypatch.setattr(loop.time, "monotonic", lambda: 20.0 * len(told.of("step")))
    trained(plan_of(9, checkpoint_every_steps=1, validate_every=100), told, n=2)
    tries = [
        len([e for e in told.events[:i] if e[0] == "step"])
        for i, e in enumerate(told.events)
        if e[0] == "save"
    ]
    assert tries[:4] == [0, 1, 3, 6], "steps before each try: at once, after 30 s, after 60 s"
    assert tries[4:6] == [6, 7], "then as before"


def test_data_that_cannot_be_read_save_what_there_is() -> None:
    state = state_of()
    data = Waters(4)

    def watch(batches: Iterator[Batch]) -> Iterator[Batch]:
        for batch in batches:
            if state.progress.step == 1:
                raise InputError("the disk is gone")
            yield batch

    told = Told(watch=watch)
    with pytest.raises(InputError, match="the disk is gone"):
        fit(state, steps_of(data), plan_of(1), told.hooks(state, data))
    assert told.events[-1] == ("last", "data")


def test_a_last_save_that_fails_is_an_error() -> None:
    state = state_of()
    data = Waters(2)
    hooks = Told().hooks(state, data)

    def refuse(_: TrainState, reason: str) -> None:
        raise SaveError("the disk is full")

    object.__setattr__(hooks, "save_last", refuse)
    with pytest.raises(SaveError):
        fit(state, steps_of(data), plan_of(1), hooks)


def test_averaged_weights_are_judged() -> None:
    state = state_of(ema=True)
    data = Waters(4)
    seen: list[bool] = []
    hooks = Told().hooks(state, data)
    validate = hooks.validate

    def look(parameters: Any, loss: Loss) -> Any:
        seen.append(parameters is state.ema.shadow)  # type: ignore[union-attr]
        return validate(parameters, loss)

    object.__setattr__(hooks, "validate", look)
    fit(state, steps_of(data), plan_of(1), hooks)
    assert seen == [True, True]


def test_a_run_that_is_over_takes_no_step() -> None:
    state = trained(plan_of(1))
    before = weights(state)
    told = Told()
    trained(plan_of(1), told, state)
    assert told.kinds() == ["last"]
    assert weights(state) == before


def test_a_stage_keeps_its_start_where_the_run_is_made_longer() -> None:
    state = trained(plan_of(2, Stage(start=3, loss=ENERGY, lr=0.001)))
    told = Told()
    trained(plan_of(8, Stage(start=6, loss=ENERGY, lr=0.001)), told, state)
    assert told.of("stage") == [(2, 3)]


def test_counters_of_runs_that_knew_two_stages_are_read() -> None:
    stored = {"epoch": 3, "step": 12, "stage": 2, "stage_two_epoch": 2, "optimizer": {}}
    progress = Progress.of_stored(stored)
    assert (progress.epoch, progress.stage, progress.stage_starts) == (3, 2, [0, 2])
    assert Progress.of_stored({"stage": 1, "stage_two_epoch": None}).stage_starts == []
