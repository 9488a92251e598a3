"""Settings that are given and change nothing: said before the first step, since the run goes on
without them.
"""

import math
from collections.abc import Iterator
from dataclasses import fields
from fnmatch import fnmatchcase

from losses import LOSSES, Loss
from model_utils import model_loader
from model_utils.run.assemble import AssembledRun
from model_utils.run.objective import has_term, stages, weight_schedules
from model_utils.run.step_counts import length_of_run, step_counts
from model_utils.runtime import log
from model_utils.settings import terms
from model_utils.settings.options import (
    LossOptions,
    OptimizerOptions,
    RunOptions,
    StageTwoOptions,
    TrainingOptions,
)
from optimizer import SCHEDULES, constant_factor, pattern_of

WITHOUT_DELTA = {"mse", "mae", "l2norm"}  # shapes that --huber_delta does not bend


def warn(run: AssembledRun) -> None:
    """Name the settings of a run that change nothing, each with its reason.

    Args:
        run: with the state in which it begins.
    """
    length = _length(run)
    for text in (
        *_of_validations(run.options.run),
        *_of_stage_two(run.options),
        *_stages_that_never_start(run, length),
        *_of_the_rate(run, length),
        *_of_the_loss(run.options),
    ):
        log.warning("warning: %s", text)


def _length(run: AssembledRun) -> float:
    """Epochs that the whole run has."""
    if run.options.run.max_steps is None:
        return float(run.options.run.epochs)
    return length_of_run(run.options, run.batches).epochs


def _of_validations(options: RunOptions) -> Iterator[str]:
    if options.validate_every_steps is not None and options.validate_every != (
        RunOptions.validate_every
    ):
        yield (
            f"--validate_every {options.validate_every} changes nothing: --validate_every_steps "
            f"{options.validate_every_steps} takes its place"
        )


def _of_stage_two(options: TrainingOptions) -> Iterator[str]:
    """Settings of a second stage without one, of terms that its loss does not have or fixes, a
    rate in place of which it follows the schedule.
    """
    second = options.stage_two
    given = {
        field.name: getattr(second, field.name)
        for field in fields(StageTwoOptions)
        if field.name != "stage_two" and getattr(second, field.name) != field.default
    }
    if not second.stage_two:
        for name in given:
            yield f"--{name} is given and --stage_two is not: it changes nothing"
        return
    if "stage_two_lr" in given and options.running.stage_two_follows_schedule:
        yield (
            f"--stage_two_lr {second.stage_two_lr:g} changes nothing: with "
            "--stage_two_follows_schedule stage two goes on with the rate of the schedule"
        )
    named = LOSSES[options.loss.loss]
    for quantity in terms.stage_two_weights(second):
        flag = f"stage_two_{quantity}_weight"
        if flag in given and (not has_term(named, quantity) or quantity in named.fixed):
            yield (
                f"--{flag} {given[flag]:g} changes nothing: --loss {options.loss.loss} has no "
                f"weight of the {quantity} to be chosen; --loss weighted has one"
            )


def _stages_that_never_start(run: AssembledRun, length: float) -> Iterator[str]:
    progress = run.state.progress
    patience = run.plan.patience
    if patience is not None and _may_run_out(run, patience, length):
        return  # a stage begins then, too
    too_soon = "" if patience is None else f", too soon for --patience {patience} to run out"
    for number in range(progress.stage + 1, len(run.plan.stages) + 1):
        start = progress.start_of(number, run.plan.stage(number).start)
        if start >= length:
            yield (
                f"stage {number} never starts: it begins after epoch {start}, and the run ends "
                f"after {length:g} epochs (--epochs, --max_steps){too_soon}"
            )


def _may_run_out(run: AssembledRun, patience: int, length: float) -> bool:
    """Whether as many validations are judged as the patience of a stage has, before the last
    epoch begins.
    """
    plan = run.plan
    progress = run.state.progress
    last = max(math.ceil(length) - 1, progress.epoch)
    if plan.validate_every_steps is None:
        to_come = last // plan.validate_every - progress.epoch // plan.validate_every
    else:
        counts = step_counts(run.options, run.batches)
        left = counts.between(progress.epoch, last).steps - progress.steps_in_epoch
        every = plan.validate_every_steps
        to_come = (progress.step + left) // every - progress.step // every
    if progress.validation_due and (progress.step > 0 or plan.judge_first):
        to_come += 1
    if progress.best_loss == math.inf:
        to_come -= 1  # the first one is the best
    return progress.waited + to_come >= patience


def _of_the_loss(options: TrainingOptions) -> Iterator[str]:
    """A weight that a schedule replaces, points of one that does not look at them, and the bend
    of a shape that no term has.
    """
    delta = options.loss.huber_delta
    losses = [stage.loss for stage in stages(options)]
    if delta != LossOptions.huber_delta and all(
        type(loss) is Loss and {term.shape for term in loss.terms.values()} <= WITHOUT_DELTA
        for loss in losses
    ):
        yield (
            f"--huber_delta {delta:g} changes nothing: no term of the loss has a Huber shape; "
            "--forces_loss huber, --energy_loss huber or --loss universal have one"
        )
    for quantity, schedule in weight_schedules(options.loss).items():
        if schedule.course == "constant" and len(schedule.points) > 1:
            yield (
                f"--weight_schedule {quantity}=constant has the weight of epoch 0 throughout: its "
                "other points change nothing; piecewise and linear use them"
            )
        name = f"{quantity}_weight"
        own = getattr(options.loss, name, None)
        if own is not None and own != getattr(LossOptions, name):
            yield f"--{name} {own:g} changes nothing: --weight_schedule gives that of every epoch"


def _of_the_rate(run: AssembledRun, length: float) -> Iterator[str]:
    """A warm-up that lasts as long as the run, a lowest rate above that of the run, rates of
    parameters that have another, the decay of an average that is not taken.
    """
    chosen = run.options.optimizer
    if not chosen.ema and chosen.ema_decay != OptimizerOptions.ema_decay:
        yield "--ema_decay is given and --ema is not: it changes nothing"
    uses = set(SCHEDULES[chosen.scheduler].uses.values())
    of_schedules = {option for kind in SCHEDULES.values() for option in kind.uses.values()}
    for name in sorted(of_schedules - uses):
        if getattr(chosen, name) != getattr(OptimizerOptions, name):
            yield f"--{name} changes nothing: --scheduler {chosen.scheduler} does not use it"
    if chosen.min_lr > 0 and SCHEDULES[chosen.scheduler].factor is constant_factor:
        yield (
            f"--min_lr {chosen.min_lr:g} changes nothing: --scheduler {chosen.scheduler} does not "
            "lower the rate"
        )
    elif chosen.min_lr >= chosen.lr:
        yield (
            f"--min_lr {chosen.min_lr:g} is not below --lr {chosen.lr:g}: --scheduler "
            f"{chosen.scheduler} does not lower the rate"
        )
    by_steps = chosen.warmup > 0 and chosen.scheduler_unit == "step"
    whole = length_of_run(run.options, run.batches).steps if by_steps else length
    if chosen.warmup >= whole:
        yield (
            f"--warmup {chosen.warmup:g} lasts as long as the run of {whole:g} "
            f"{chosen.scheduler_unit}s: the rate never reaches --lr {chosen.lr:g}"
        )
    rates = chosen.rates_by_pattern()
    names = model_loader.trainable(run.module)
    for pattern in set(rates) - {pattern_of(name, rates) for name in names}:
        first = next(pattern_of(name, rates) for name in names if fnmatchcase(name, pattern))
        yield (
            f"--lr_of {pattern}={rates[pattern]:g} changes nothing: all its parameters have the "
            f"rate of {first}, which is given before it"
        )
