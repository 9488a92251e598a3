"""From options to the objects a run is made of: batches, evaluator, loss, stages, optimizer,
schedule, state, plan.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import torch
from torch import nn

from dataloader.batch import Batch
from dataloader.batching import Budget
from dataloader.dataset import Dataset
from dataloader.loader import EpochBatches, Loader
from losses import Loss
from model_utils import model_loader
from model_utils.errors import InputError
from model_utils.model_loader import PairWriter
from model_utils.models.description import ModelDescription
from model_utils.models.freezing import freeze
from model_utils.models.network import Network, Parameters
from model_utils.ranks.group import ALONE, Group
from model_utils.run import loggers
from model_utils.run.best_metric import Judge, metric_names
from model_utils.run.budget import measured_edges
from model_utils.run.data.open_data import TrainingData
from model_utils.run.ema import ExponentialMovingAverage
from model_utils.run.evaluation import EvaluatedData, Evaluator, evaluate
from model_utils.run.fit_plan import FitPlan
from model_utils.run.objective import AS_THEY_ARE, Units, loss_of, stages
from model_utils.run.step import loss_and_gradients
from model_utils.run.steps import DealtSteps, Steps, StepsInTurn
from model_utils.run.table_entry import entry_of
from model_utils.run.train_state import Tally, TrainState
from model_utils.run.uncompiled import methods_stay_as_they_are
from model_utils.runtime import log
from model_utils.settings.options import (
    BatchOptions,
    JudgingOptions,
    OptimizerOptions,
    RunOptions,
    TrainingOptions,
    TrainOptions,
)
from optimizer import (
    OPTIMIZERS,
    SCHEDULES,
    OptimizerSettings,
    Schedule,
    ScheduleKind,
    ScheduleSettings,
    build_optimizer,
)

DEFAULT_BATCH_SIZE = 10
Prepare = Callable[[Batch], Batch]  # adds to a batch what the network needs besides


@dataclass(frozen=True, kw_only=True)
class AssembledRun:
    """The objects of one training.

    Attributes:
        options: every setting, with numbers where something was measured.
        data: the data sets.
        module: mace's, on the device; its tensors are those of ``state``.
        writer: of checkpoint and best model.
        prepare: adds to a batch what the network needs besides.
        batches: of any epoch.
        steps: of any epoch, made of them.
        group: the processes of the run.
        state: all that must survive a preemption, besides the raw weights.
        plan: how long to train and what to do when.
    """

    options: TrainOptions
    data: TrainingData
    module: nn.Module
    writer: PairWriter
    prepare: Prepare
    batches: EpochBatches
    steps: Steps
    group: Group
    state: TrainState
    plan: FitPlan


def with_measured_budget(
    options: TrainOptions,
    module: nn.Module,
    description: ModelDescription,
    dataset: Dataset,
    device: torch.device,
    group: Group,
) -> TrainOptions:
    """The options with a number in place of ``--max_edges_per_batch auto``,
    measured by trial steps.

    Args:
        options: of the run.
        module: with its first weights; is moved to the device.
        description: of the network.
        dataset: to train on.
        device: on which the run computes.
        group: the processes of the run.

    Raises:
        InputError: not even one structure fits into the memory.
    """
    batches = options.batches
    if batches.max_edges_per_batch != "auto":
        return options
    network = model_loader.build_network(module.to(device), options.run.step, description)
    parameters = model_loader.trainable(module)
    loss = loss_of(options.loss)

    def step(batch: Batch) -> None:
        loss_and_gradients(network, parameters, [network.prepared(batch).to(device)], loss)

    edges = measured_edges(step, dataset, device, batches.batch_size, group)
    if (
        batches.batch_size is None
        and batches.max_atoms_per_batch is None
        and edges >= dataset.n_edges.sum()
    ):
        log.warning(
            "warning: the memory holds all of the training data as one batch, so an epoch is one "
            "step; --batch_size limits batches as well"
        )
    return with_edges_per_batch(options, edges)


def with_edges_per_batch(options: TrainOptions, edges: int) -> TrainOptions:
    """The options with this number of edges that a batch may have."""
    return replace(options, batches=replace(options.batches, max_edges_per_batch=edges))


def with_measured_evaluation_budget(
    options: BatchOptions,
    network: Network,
    parameters: Parameters,
    dataset: Dataset,
    device: torch.device,
    group: Group,
) -> BatchOptions:
    """The options with a measured number in place of ``auto`` for an evaluation, which
    needs less memory per edge.
    """
    if options.max_edges_per_batch != "auto":
        return options

    def step(batch: Batch) -> None:
        evaluate(network, parameters, [network.prepared(batch)], Loss.of(), device)

    return replace(
        options,
        max_edges_per_batch=measured_edges(step, dataset, device, options.batch_size, group),
    )


def budget_of(options: BatchOptions) -> Budget:
    """Limits of a batch: a number of structures, or a budget of atoms or edges."""
    assert options.max_edges_per_batch != "auto", "it is measured before"
    budgeted = options.max_atoms_per_batch is not None or options.max_edges_per_batch is not None
    size = options.batch_size if options.batch_size is not None or budgeted else DEFAULT_BATCH_SIZE
    return Budget(
        structures=size, atoms=options.max_atoms_per_batch, edges=options.max_edges_per_batch
    )


def training_batches(
    options: TrainOptions, data: TrainingData, device: torch.device, prepare: Prepare | None = None
) -> EpochBatches:
    """The training batches, made by workers where asked; ``prepare`` adds what the
    network needs besides.
    """
    workers = options.batches.num_workers
    loader = Loader(
        data.train, num_workers=workers, pin_memory=device.type == "cuda", prepare=prepare
    )
    return EpochBatches(data.train, budget_of(options.batches), options.run.seed, loader)


def training_steps(
    options: TrainOptions, batches: EpochBatches, n_parts: int, group: Group, device: torch.device
) -> Steps:
    """The optimizer steps: of whole batches computed in turn, or dealt to a number of parts."""
    accumulate = options.optimizer.accumulate_batches
    if n_parts == 1:
        return StepsInTurn(batches, accumulate)
    return DealtSteps(batches, accumulate, n_parts, group, device)


def evaluator(
    dataset: Dataset,
    options: BatchOptions,
    device: torch.device,
    watch: Callable[[Iterator[Batch]], Iterator[Batch]] = iter,
    *,
    what: str = "evaluation",
    everything: bool = False,
    prepare: Prepare | None = None,
    group: Group = ALONE,
) -> Evaluator:
    """What evaluates a data set in batches within the limits of the options; see `Evaluator`."""
    pinned = device.type == "cuda"
    loader = Loader(dataset, num_workers=options.num_workers, pin_memory=pinned, prepare=prepare)
    evaluated = EvaluatedData(dataset, budget_of(options), loader)
    return Evaluator(evaluated, device, watch, what=what, everything=everything, group=group)


def logger_names(options: RunOptions) -> tuple[str, ...]:
    """Names of the run's loggers, the console first; --tensorboard is short for
    --loggers tensorboard.

    Raises:
        InputError: there is none of that name, or its package is not installed.
    """
    switched_on = ["tensorboard"] if options.tensorboard else []
    return loggers.chosen([*switched_on, *options.loggers])


def judge_of(options: JudgingOptions) -> Judge:
    """By which number validations are compared.

    Raises:
        InputError: there is no metric of that name.
    """
    for name in options.keep_best_by:
        entry_of(metric_names(), name, "--keep_best_by")
    return Judge(
        metric=entry_of(metric_names(), options.best_metric, "--best_metric"),
        over=options.best_over,
    )


def fit_plan(
    options: TrainingOptions, units: Units = AS_THEY_ARE, *, judge_first: bool = False
) -> FitPlan:
    """How long to train and what to do when."""
    run = options.run
    return FitPlan(
        epochs=run.epochs,
        stages=stages(options, units),
        judge=judge_of(options.judging),
        max_steps=run.max_steps,
        clip_grad=options.optimizer.clip_grad,
        patience=run.patience,
        validate_every=run.validate_every,
        validate_every_steps=run.validate_every_steps,
        checkpoint_every_steps=run.checkpoint_every_steps,
        checkpoint_every_minutes=run.checkpoint_every_minutes,
        log_every_steps=run.log_every_steps,
        judge_first=judge_first,
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


def steps_per_epoch(options: TrainingOptions, batches: EpochBatches) -> int:
    """Optimizer steps of the first epoch; later ones have about as many where
    batches have a budget.
    """
    return math.ceil(len(batches.plan(0)) / options.optimizer.accumulate_batches)


def schedule_settings(options: TrainingOptions, batches: EpochBatches) -> ScheduleSettings:
    """The schedule, with the numbers that its kind uses; one with an end has it where
    the run ends, or as told.

    Raises:
        InputError: there is no schedule of that name, or it has no end and a length is given.
    """
    chosen = options.optimizer
    kind = entry_of(SCHEDULES, chosen.scheduler, "--scheduler")
    per_epoch = steps_per_epoch(options, batches)
    steps = options.run.epochs * per_epoch
    steps = min(steps, options.run.max_steps or steps)
    horizon = steps if chosen.scheduler_unit == "step" else steps / per_epoch
    if options.running.scheduler_length is not None:
        horizon = _length_of_schedule(options, kind, horizon)
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
        horizon: length of the run.

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
