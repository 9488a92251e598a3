"""The objects of one training together, and its plan, from the options."""

from dataclasses import dataclass

from torch import nn

from dataloader.loader import EpochBatches
from model_utils.model_loader import PairWriter
from model_utils.ranks.group import Group
from model_utils.run import loggers
from model_utils.run.best_metric import Judge, metric_names
from model_utils.run.data.open_data import TrainingData
from model_utils.run.fit_plan import FitPlan
from model_utils.run.loading import Prepare
from model_utils.run.objective import AS_THEY_ARE, Units, stages
from model_utils.run.steps import Steps
from model_utils.run.table_entry import entry_of
from model_utils.run.train_state import TrainState
from model_utils.settings.options import JudgingOptions, RunOptions, TrainingOptions, TrainOptions


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
