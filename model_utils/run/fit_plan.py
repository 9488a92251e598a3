"""What a training is to do: its stages, and when it ends."""

from collections.abc import Callable
from dataclasses import dataclass

from losses import Loss
from model_utils.run.best_metric import BY_LOSS, Judge


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of a run with a loss of its own.

    Attributes:
        loss: by which its validations are judged; minimised in it unless weights have a schedule.
        of_epoch: gives the loss that the steps of an epoch minimise, by finished epochs, where
            weights have a schedule.
        start: finished epochs after which it begins; earlier where the stage
            before runs out of patience.
        lr: rate of its steps, in place of the schedule's; None: the rate goes on as it was.
        new_best: its losses cannot be compared with those before, so the best
            model is looked for anew.
    """

    loss: Loss
    of_epoch: Callable[[int], Loss] | None = None
    start: int = 0
    lr: float | None = None
    new_best: bool = True

    def loss_in(self, epoch: int) -> Loss:
        """What the steps minimise while so many epochs are finished."""
        return self.loss if self.of_epoch is None else self.of_epoch(epoch)


@dataclass(frozen=True, kw_only=True)
class FitPlan:
    """How long to train and what to do when."""

    epochs: int
    stages: tuple[Stage, ...]  # in their order, at least one; the first begins with the run
    judge: Judge = BY_LOSS
    max_steps: int | None = None
    clip_grad: float = 0.0
    patience: int | None = None
    validate_every: int = 1
    validate_every_steps: int | None = None
    checkpoint_every_steps: int | None = None
    checkpoint_every_minutes: float | None = None
    log_every_steps: int | None = None
    # the weights before the first step may be the best: those of a fine-tuning's source
    judge_first: bool = False

    def stage(self, number: int) -> Stage:
        """A stage by its number, from 1 on; the last one for all numbers beyond."""
        return self.stages[min(number, len(self.stages)) - 1]

    def to_come(self, number: int) -> tuple[Stage, ...]:
        """The stages after the one with a number."""
        return self.stages[number:]
