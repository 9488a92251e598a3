"""The learning rate of a run that goes on: another rate, a schedule begun anew, and what
it does until the end.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from model_utils.errors import InputError
from model_utils.run.fit_plan import FitPlan
from model_utils.run.log_lines import number_word
from model_utils.run.step_counts import StepCounts
from model_utils.run.train_state import TrainState
from model_utils.runtime import log
from optimizer import Schedule

# a step of Adam moves a weight by about the rate, and a float32 weight of 1 rounds 3e-8 away
STANDSTILL = 1e-12
REMEDY = (
    "give resume.py a --lr, from which the schedule goes on to the end of the run, "
    "or --reset_scheduler"
)


@dataclass(frozen=True, kw_only=True)
class Rest:
    """What is left of a run, in epochs or steps as its schedule counts them."""

    now: float  # the schedule's time
    end: float  # the schedule's time at the end of the run
    # and where a stage with a rate of its own takes over; the end without one to come
    governed: float
    in_run: float  # what the schedule's time lacks to that of the run, where it was begun anew

    @property
    def last(self) -> float:
        """Time of the last step that the schedule governs."""
        return math.ceil(min(self.end, self.governed)) - 1.0


def rest_of_run(state: TrainState, plan: FitPlan, counts: StepCounts) -> Rest:
    """What is left of a run.

    Args:
        state: where it stands.
        plan: how long it is.
        counts: optimizer steps of the run's epochs.
    """
    progress = state.progress
    schedule = state.schedule
    by_steps = schedule.settings.unit == "step"
    now = schedule.time()

    def until(epoch: int, steps: int | None = None) -> float:
        if steps is None and not by_steps:
            return now + epoch - progress.epoch
        done = progress.steps_in_epoch
        most = None if steps is None else steps - progress.step + done
        left = counts.between(progress.epoch, epoch, most)
        return now + (left.steps - done if by_steps else left.epochs)

    end = until(plan.epochs, plan.max_steps)
    number = next_with_a_rate(state, plan)
    governed = end if number is None else until(progress.start_of(number, plan.stage(number).start))
    return Rest(
        now=now,
        end=end,
        governed=governed,
        in_run=(progress.step if by_steps else progress.epoch) - now,
    )


def next_with_a_rate(state: TrainState, plan: FitPlan) -> int | None:
    """Number of the stage to come that will take the rate from the schedule; None without one."""
    reached = state.progress.stage
    numbers = range(reached + 1, len(plan.stages) + 1)
    return next((number for number in numbers if plan.stage(number).lr is not None), None)


@dataclass(frozen=True, kw_only=True)
class RateChange:
    """What a resumed run is to do with its learning rate; nothing unless asked."""

    # rate of the next step; with ``anew``, the one that the new schedule begins with
    lr: float | None = None
    anew: bool = False  # begin the schedule at time zero


def change_rate(
    state: TrainState,
    plan: FitPlan,
    counts: StepCounts,
    stored: Mapping[str, Any],
    change: RateChange,
) -> list[str]:
    """Put another rate or a new beginning into the schedule of a resumed run.

    Args:
        state: the run's, taken over.
        plan: how long the run is now.
        counts: see ``rest_of_run``.
        stored: settings of the run until now.
        change: asked for.

    Returns:
        Sentences for the log: what changes, and what the schedule does until the end.

    Raises:
        InputError: the run is made longer than its schedule, whose rate would stay 0.
    """
    schedule = state.schedule
    rest = rest_of_run(state, plan, counts)
    longer = _is_longer(plan, stored)
    length = stored.get("scheduler_length")
    if change.anew:
        left = max(rest.end - rest.now, 1.0)
        schedule.restart(_horizon(schedule, length, left, rest.governed - rest.now), change.lr)
    elif change.lr is not None:
        is_to_come = length is not None and length > rest.now
        schedule.set_rate(
            change.lr, _horizon(schedule, length if is_to_come else None, rest.end, rest.governed)
        )
    else:
        _refuse_standstill(state, rest, longer=longer)
        if not longer:
            return []
    rest = rest_of_run(state, plan, counts)
    notes = [f"the {schedule.settings.kind} schedule starts anew"] if change.anew else []
    notes += (
        [f"--lr {change.lr:g}: the rate is now {schedule.rate():.4g}"]
        if change.lr is not None
        else []
    )
    return [*notes, _outlook(state, plan, rest)]


def _horizon(schedule: Schedule, length: float | None, end: float, governed: float) -> float:
    """Where a schedule that has an end is to have come down to ``min_lr``; times are its own.

    Args:
        schedule: whose rate is changed.
        length: its --scheduler_length, where one was given and is not behind.
        end: of the run.
        governed: until when the schedule gives the rate.

    Returns:
        The length; the end of the run without one, or where the rate would stay 0 between the two.
    """
    if length is None or (schedule.settings.min_lr < STANDSTILL and math.ceil(length) < governed):
        return end
    return length


def _is_longer(plan: FitPlan, stored: Mapping[str, Any]) -> bool:
    """Whether a run is to take more epochs or steps than its settings said before."""
    before = stored.get("max_steps") or math.inf
    now = plan.max_steps or math.inf
    return plan.epochs > stored["epochs"] or now > before


def _refuse_standstill(state: TrainState, rest: Rest, *, longer: bool) -> None:
    """Going on at rate 0 is no training: refused where the run is made longer, else said."""
    schedule = state.schedule
    s = schedule.settings
    since = max(rest.now, math.ceil(s.horizon)) if schedule.kind.has_end else rest.now
    lowest = schedule.rate_at(rest.last if schedule.kind.has_end else rest.now)
    if schedule.held is not None or since > rest.last or lowest >= STANDSTILL:
        return
    standstill = (
        f"the {s.kind} schedule has come down to rate {lowest:.3g} by {s.unit} "
        f"{since + rest.in_run:g} and stays there, so that all steps from there to {s.unit} "
        f"{rest.end + rest.in_run:g}, the end of the run, would train nothing"
    )
    if longer:
        raise InputError(f"{standstill}; {REMEDY}")
    if since == rest.now:
        log.warning("warning: %s; %s", standstill, REMEDY)


def _outlook(state: TrainState, plan: FitPlan, rest: Rest) -> str:
    """What the rate does until the end of the run."""
    schedule = state.schedule
    s = schedule.settings
    if rest.now >= rest.end:
        return "the run is over, no step is left to take; --epochs or --max_steps makes it longer"
    end = f"{s.unit} {rest.end + rest.in_run:g}, the end of the run"
    if schedule.held is not None:
        return (
            f"stage {number_word(state.progress.stage)} holds the rate "
            f"{schedule.held:.4g} until {end}"
        )
    number = next_with_a_rate(state, plan)
    if rest.governed < rest.end and number is not None:
        begins = f"stage {number_word(number)} begins with {plan.stage(number).lr:.4g}"
        end = f"{s.unit} {rest.governed + rest.in_run:g}, where {begins}"
    rise = ""
    if schedule.is_warming_up():
        rise = f"a warm-up to {schedule.base_rates[0]:.4g}, then "
    elif schedule.set_at is not None and schedule.set_at > rest.now:
        rise = (
            f"held until {s.unit} {schedule.set_at + rest.in_run:g} in place of the warm-up, then "
        )
    return (
        f"{s.kind} schedule: {schedule.rate():.4g} now, {rise}{_fall(schedule, rest)}, until {end}"
    )


def _fall(schedule: Schedule, rest: Rest) -> str:
    """How the rate comes down, in the words of the log."""
    s = schedule.settings
    if schedule.kind.waits:
        return f"times {s.factor:g} after more than {s.patience} validations that were no better"
    if schedule.kind.has_end and math.ceil(s.horizon) <= rest.last:
        ends = f"{s.unit} {s.horizon + rest.in_run:g}"
        return (
            f"{schedule.rate_at(s.horizon):.4g} from {ends} on, where it keeps its end "
            "(--reset_scheduler begins anew)"
        )
    return f"{schedule.rate_at(rest.last):.4g} in the last {s.unit}"
