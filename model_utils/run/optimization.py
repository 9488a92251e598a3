"""From options to the optimizer, its schedule and the state of a training around them."""

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn

from dataloader.loader import EpochBatches
from model_utils import model_loader
from model_utils.errors import InputError
from model_utils.models.description import ModelDescription
from model_utils.models.freezing import freeze
from model_utils.run.ema import ExponentialMovingAverage
from model_utils.run.step_counts import length_of_run, step_counts
from model_utils.run.table_entry import entry_of
from model_utils.run.train_state import Tally, TrainState
from model_utils.run.uncompiled import methods_stay_as_they_are
from model_utils.runtime import log
from model_utils.settings.options import OptimizerOptions, TrainingOptions, TrainOptions
from optimizer import (
    OPTIMIZERS,
    SCHEDULES,
    OptimizerSettings,
    Schedule,
    ScheduleKind,
    ScheduleSettings,
    build_optimizer,
)


def training_state(
    options: TrainOptions,
    module: nn.Module,
    description: ModelDescription,
    device: torch.device,
    batches: EpochBatches,
    step_parts: int = 1,
) -> TrainState:
    """A fresh state around a module with its first weights, which is moved to the
    device; some may be frozen.

    Raises:
        InputError: a pattern of --freeze or --lr_of fits no parameter, or none is left to train.
    """
    chosen = options.optimizer
    _freeze(module, chosen.freeze)
    settings = optimizer_settings(chosen)
    _require_names(module, settings.rates)
    module.to(device)
    parameters = model_loader.trainable(module)
    methods_stay_as_they_are()
    optimizer = build_optimizer(module, settings)
    return TrainState(
        network=model_loader.build_network(module, options.run.step, description),
        parameters=parameters,
        optimizer=optimizer,
        schedule=Schedule(optimizer, schedule_settings(options, batches)),
        ema=ExponentialMovingAverage(parameters, chosen.ema_decay) if chosen.ema else None,
        tally=Tally.empty(device),
        device=device,
        step_parts=step_parts,
    )


def _freeze(module: nn.Module, patterns: Sequence[str]) -> None:
    freeze(module, patterns)
    if patterns:
        everything = sum(p.numel() for p in module.parameters())
        trained = sum(p.numel() for p in model_loader.trainable(module).values())
        log.info("%d of the parameters are frozen, %d are trained", everything - trained, trained)


def _require_names(module: nn.Module, rates: Mapping[str, float]) -> None:
    names = model_loader.trainable(module)
    for pattern in rates:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise InputError(
                f"--lr_of {pattern}: no trainable parameter has such a name; "
                "`read_model.py show` lists them"
            )


def optimizer_settings(options: OptimizerOptions) -> OptimizerSettings:
    """What the optimizer is built from.

    Raises:
        InputError: there is no optimizer of that name, or a rate of --lr_of is none.
    """
    entry_of(OPTIMIZERS, options.optimizer, "--optimizer")
    return OptimizerSettings(
        kind=options.optimizer,
        lr=options.lr,
        weight_decay=options.weight_decay,
        amsgrad=options.amsgrad,
        beta1=options.beta1,
        beta2=options.beta2,
        rates=options.rates_by_pattern(),
    )


def schedule_settings(options: TrainingOptions, batches: EpochBatches) -> ScheduleSettings:
    """The schedule, with the numbers that its kind uses; one with an end has it where
    the run ends, or as told.

    Raises:
        InputError: there is no schedule of that name, or it has no end and a length is given.
    """
    chosen = options.optimizer
    kind = entry_of(SCHEDULES, chosen.scheduler, "--scheduler")
    horizon: float = options.run.epochs
    surely: float = horizon
    if chosen.scheduler_unit == "step":
        length = length_of_run(options, batches)
        horizon = length.steps
        # runs that began as many steps as the first epoch has were counted for all go on
        surely = min(length.least, options.run.epochs * step_counts(options, batches).of(0))
    elif options.run.max_steps is not None:
        horizon = surely = length_of_run(options, batches).epochs
    if options.running.scheduler_length is not None:
        horizon = _length_of_schedule(options, kind, surely)
    used = {name: getattr(chosen, option) for name, option in kind.uses.items()}
    return ScheduleSettings(
        kind=chosen.scheduler,
        unit=chosen.scheduler_unit,
        min_lr=chosen.min_lr,
        warmup=chosen.warmup,
        horizon=float(horizon),
        **used,
    )


def _length_of_schedule(options: TrainingOptions, kind: ScheduleKind, horizon: float) -> float:
    """The length of a schedule that was given, in epochs or steps.

    Args:
        options: of the run.
        kind: of the schedule.
        horizon: length that the run surely has.

    Raises:
        InputError: the schedule has none, or the rest of the run would train nothing.
    """
    length = options.running.scheduler_length
    assert length is not None
    name = options.optimizer.scheduler
    if not kind.has_end:
        others = " and ".join(other for other, known in SCHEDULES.items() if known.has_end)
        raise InputError(
            f"--scheduler_length {length:g}: --scheduler {name} has no length; {others} have"
        )
    if math.ceil(length) < horizon and options.optimizer.min_lr == 0:
        raise InputError(
            f"--scheduler_length {length:g}: {name} comes down to --min_lr 0 then, and the rest "
            f"of the run, which is {horizon:g} long, would train nothing; give a --min_lr above "
            "0, or a longer schedule"
        )
    return length
