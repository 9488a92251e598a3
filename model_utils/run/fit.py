"""The only training loop.

It gets a state, batches, a plan and hooks; it builds nothing and opens no file.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dataloader.batch import Batch
from losses import Loss
from model_utils.errors import (
    InputError,
    NonFiniteError,
    PeerFailed,
    PeerLost,
    Preempted,
    SaveError,
    StopRequested,
)
from model_utils.metrics import Metrics, metrics
from model_utils.run import uncompiled
from model_utils.run.fit_plan import FitPlan, Stage
from model_utils.run.memory import naming
from model_utils.run.step import StepResult, loss_and_gradients
from model_utils.run.steps import Step, Steps
from model_utils.run.train_state import Tally, TrainState, laid_out_as

CHECK_EVERY_ON_GPU = 32  # steps between looks at the losses: a look waits for the GPU
FIRST_RETRY = 30.0  # s until a save that failed is tried again, doubled each time up to
LAST_RETRY = 600.0


@dataclass(frozen=True, kw_only=True)
class TrainRecord:
    """The training line of an epoch, or of the part of it so far."""

    epoch: int
    step: int
    lr: float
    metrics: Metrics  # from the sums of the steps: the weights moved meanwhile
    gradient_norm: float  # mean over steps, before clipping
    gradient_norm_max: float
    clipped_share: float
    whole_epoch: bool
    seconds: float
    terms: str = ""  # of the loss, by which its value says what it is of
    stage: int = 1  # of the run, counted from 1


@dataclass(frozen=True, kw_only=True)
class ValidationRecord:
    """The validation line."""

    epoch: int
    step: int
    lr: float
    metrics: Metrics
    by_source: Mapping[str, Metrics]
    weights: str  # raw or ema
    best: bool
    seconds: float
    terms: str = ""  # of the loss
    stage: int = 1  # of the run, counted from 1


@dataclass(frozen=True, kw_only=True)
class FinalRecord:
    """Errors of the best model at the end of a run."""

    epoch: int  # of the last step of the run
    step: int
    sets: Mapping[str, Metrics]  # by train, valid and test
    # of the table: of every set, and of each of its sources where there are several
    rows: Mapping[str, Metrics]

    def all_rows(self) -> dict[str, Metrics]:
        """Every set by its name, then what the table has beside them."""
        of_sets = {id(errors) for errors in self.sets.values()}
        return {
            **self.sets,
            **{name: row for name, row in self.rows.items() if id(row) not in of_sets},
        }


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """What happens outside: the terminal, the files, the clock of a scheduler."""

    # raises VerificationError where another process has another state
    alike: Callable[[TrainState], None]
    validate: Callable[[Mapping[str, Tensor], Loss], tuple[Metrics, Mapping[str, Metrics]]]
    # state, steps of this epoch, loss of the stage
    on_step: Callable[[TrainState, int, Loss], None]
    on_train: Callable[[TrainRecord], None]
    on_validation: Callable[[ValidationRecord], None]
    on_best: Callable[[TrainState, Metrics], None]
    # the state, its errors, what the judge made of them
    on_judged: Callable[[TrainState, Metrics, float], None]
    # which begins; the state is still that of the stage before
    on_stage: Callable[[TrainState, Stage], None]
    # state, reason; False: not now, it is tried again later
    save: Callable[[TrainState, str], bool]
    # the same where no later try will come; raises SaveError
    save_last: Callable[[TrainState, str], None]
    rescue: Callable[[TrainState, str], None]  # the same where other processes cannot be waited for
    # the same batches; raises StopRequested between two of them
    watch: Callable[[Iterator[Batch]], Iterator[Batch]]
    # after a step: raises StopRequested where another process was asked to stop
    meet: Callable[[], None]
    names: Callable[[Sequence[int]], str]  # of structures, for a message


def fit(state: TrainState, data: Steps, plan: FitPlan, hooks: Hooks) -> None:
    """Train until the plan is fulfilled.

    A request to stop is met between steps, between the batches of a validation, and while data are
    waited for; the state is then that of the last step, with a validation that was broken off still
    due. So it is, and is saved, where data can no longer be read.

    Raises:
        InputError: data could not be read.
        NonFiniteError: loss or gradients are no numbers; nothing of it was saved.
        Preempted: the run was asked to stop; the state was saved.
        SaveError: the last state could not be written.
    """
    run = _Run(state, data, plan, hooks)
    try:
        reason = run.to_the_end()
    except StopRequested as request:
        run.save_last(str(request))
        progress = state.progress
        raise Preempted(
            f"{request}: saved at step {progress.step}, epoch {progress.epoch + 1}; "
            "go on with --resume auto, or with resume.py"
        ) from None
    except InputError:
        run.rescue("data")
        raise
    except (PeerFailed, PeerLost):
        # it ended before the sums of a step, and before the weights were touched
        run.rescue("another process ended")
        raise
    state.progress.finished = reason
    run.save_last(reason)


class _Run:
    """One call of ``fit``; whatever must survive it is in the state."""

    def __init__(self, state: TrainState, data: Steps, plan: FitPlan, hooks: Hooks) -> None:
        self.state = state
        self.data = data
        self.plan = plan
        self.hooks = hooks
        self.unchecked: list[tuple[Tensor, NDArray[np.int64]]] = []
        self.check_every = CHECK_EVERY_ON_GPU if state.device.type == "cuda" else 1
        self.saved_at = time.monotonic()
        self.epoch_began = self.saved_at
        self.steps_of_epoch = 0
        self.retry_at = math.inf
        self.retry_after = FIRST_RETRY

    def to_the_end(self) -> str:
        """Everything from where the state stands; returns why training is over."""
        progress = self.state.progress
        progress.finished = None
        if progress.step == 0:
            self._save("start")  # a full disk shows here, and how long a save takes
        if progress.validation_due:
            # bad E0s show before the first step
            self.validate(judge=progress.step > 0 or self.plan.judge_first)
        while (reason := self.finish_reason()) is None:
            self.enter_stages_when_due()
            self.train_epoch()
        if progress.validated_step != progress.step:
            self.validate()
        return reason

    @property
    def judged_loss(self) -> Loss:
        """By which the validations of the stage are judged."""
        return self.plan.stage(self.state.progress.stage).loss

    def loss_of_steps(self) -> Loss:
        """What the steps of the epoch minimise."""
        return self.plan.stage(self.state.progress.stage).loss_in(self.state.progress.epoch)

    def finish_reason(self) -> str | None:
        """Why training is over, or None."""
        progress = self.state.progress
        if self._steps_done():
            return "max_steps reached"
        if progress.epoch >= self.plan.epochs:
            return "epochs done"
        if self._out_of_patience() and not self.plan.to_come(progress.stage):
            metric = self.plan.judge.metric
            return f"no lower validation {metric} for {progress.waited} validations"
        return None

    def _steps_done(self) -> bool:
        return self.plan.max_steps is not None and self.state.progress.step >= self.plan.max_steps

    def _out_of_patience(self) -> bool:
        return self.plan.patience is not None and self.state.progress.waited >= self.plan.patience

    def enter_stages_when_due(self) -> None:
        """Go on to the stage whose epoch has come, or to the next one where the
        stage runs out of patience.
        """
        progress = self.state.progress
        if progress.steps_in_epoch > 0:
            return
        if not progress.stage_starts:
            # kept when the run is made longer
            progress.stage_starts = [stage.start for stage in self.plan.stages]
        for stage in self.plan.to_come(progress.stage):
            if (
                progress.epoch < progress.start_of(progress.stage + 1, stage.start)
                and not self._out_of_patience()
            ):
                return
            self._enter(stage)

    def _enter(self, stage: Stage) -> None:
        """Judge the last weights of the stage that ends, change loss and rate, and begin to look
        for a best model anew where losses cannot be compared.
        """
        progress = self.state.progress
        schedule = self.state.schedule
        if 0 < progress.step != progress.validated_step:
            self.validate()
        self.hooks.on_stage(self.state, stage)
        progress.stage += 1
        progress.waited = 0
        if stage.new_best:
            progress.best_loss = math.inf
        if stage.lr is not None:
            schedule.hold(stage.lr)
        elif stage.new_best:
            schedule.forget_losses()

    def train_epoch(self) -> None:
        """The rest of an epoch, its lines, validation and checkpoint; stops
        early where training is over within the epoch.
        """
        progress = self.state.progress
        self.epoch_began = time.monotonic()
        steps = self.data.of_epoch(progress.epoch)
        self.steps_of_epoch = len(steps)
        rest = steps[progress.steps_in_epoch :]
        batches = self.hooks.watch(self.data.batches(rest))
        loss = self.loss_of_steps()
        for step in rest:
            self._optimizer_step(
                step, [next(batches).to(self.state.device) for _ in range(step.n_batches)], loss
            )
            self.hooks.on_step(self.state, len(steps), loss)
            self._after_step()
            self.hooks.meet()
            if progress.steps_in_epoch < len(steps) and self.finish_reason() is not None:
                return
        self._end_epoch()

    def _optimizer_step(self, step: Step, batches: Sequence[Batch], loss: Loss) -> None:
        state = self.state
        progress = state.progress
        with naming(self.hooks.names):
            result = loss_and_gradients(
                state.network, state.parameters, batches, loss, step.addition
            )
        norm = torch.nn.utils.get_total_norm(result.gradients)
        self._remember(result, norm, step.members)
        if self.plan.clip_grad > 0:
            scale = torch.clamp(self.plan.clip_grad / (norm + 1e-6), max=1.0)
            torch._foreach_mul_(result.gradients, scale)
        for parameter, gradient in zip(state.parameters.values(), result.gradients, strict=True):
            parameter.grad = laid_out_as(parameter, gradient)
        uncompiled.step(state.optimizer)
        if state.ema is not None:
            state.ema.update(state.parameters)
        state.tally.add(result.sums, norm, self.plan.clip_grad)
        progress.step += 1
        progress.steps_in_epoch += 1
        progress.samples += len(step.members)
        if progress.rate is not None:
            progress.rate = state.schedule.rate()
        self.state.schedule.after_step()

    def _remember(self, result: StepResult, norm: Tensor, members: NDArray[np.int64]) -> None:
        """Keep loss and norm to be looked at; on a CPU at once, before the weights are touched."""
        self.unchecked.append((result.loss + norm, members))
        if len(self.unchecked) >= self.check_every:
            self._refuse_non_finite()

    def _refuse_non_finite(self) -> None:
        if not self.unchecked:
            return
        finite = torch.isfinite(torch.stack([value for value, _ in self.unchecked])).tolist()
        for good, (_, members) in zip(finite, self.unchecked, strict=True):
            if not good:
                raise NonFiniteError(
                    f"loss or gradient is not finite after step {self.state.progress.step} for the "
                    f"batch of {self.hooks.names(members.tolist())}; nothing of it was saved: look "
                    "at these structures, lower --lr, or use --forces_loss huber"
                )
        self.unchecked.clear()

    def _after_step(self) -> None:
        """Lines, validation and checkpoint that are counted in steps; a validation behind the last
        step of an epoch comes when that is closed, and is of the epoch that is finished.
        """
        plan = self.plan
        progress = self.state.progress
        if plan.log_every_steps and progress.step % plan.log_every_steps == 0:
            self.hooks.on_train(self._train_record(whole_epoch=False))
        if progress.steps_in_epoch < self.steps_of_epoch and self._is_due_by_steps():
            self.validate()
        now = time.monotonic()
        by_steps = plan.checkpoint_every_steps and progress.step % plan.checkpoint_every_steps == 0
        by_time = (
            plan.checkpoint_every_minutes
            and now - self.saved_at >= 60 * plan.checkpoint_every_minutes
        )
        if by_steps or by_time or now >= self.retry_at:
            self._save("interval")

    def _is_due_by_steps(self) -> bool:
        every = self.plan.validate_every_steps
        return every is not None and self.state.progress.step % every == 0

    def _end_epoch(self) -> None:
        progress = self.state.progress
        self.hooks.on_train(self._train_record(whole_epoch=True))
        progress.epoch += 1
        progress.steps_in_epoch = 0
        self.state.tally = Tally.empty(self.state.device)
        self.state.schedule.after_epoch()
        last = progress.epoch == self.plan.epochs
        is_due = self._is_due_by_steps()
        if self.plan.validate_every_steps is None:
            is_due = progress.epoch % self.plan.validate_every == 0 or last
        # they were judged where a run was stopped behind the last step of the epoch
        if is_due and progress.validated_step != progress.step:
            self.validate()
        # the last one is saved with the reason why the run is over
        if not last and not self._steps_done():
            self._save("epoch")

    def validate(self, *, judge: bool = True) -> None:
        """Measure the judged weights; a lower number of the judge makes them the best model."""
        self._refuse_non_finite()
        state = self.state
        progress = state.progress
        began = time.monotonic()
        progress.validation_due = True
        self.hooks.alike(state)
        errors, by_source = self.hooks.validate(state.judged, self.judged_loss)
        if not np.isfinite(errors.loss):
            raise NonFiniteError(
                f"validation loss is {errors.loss} after step {progress.step}; "
                "nothing of it was saved"
            )
        score = self.plan.judge.score(errors, by_source, self.judged_loss)
        best = judge and score < progress.best_loss
        if judge:
            progress.validated_step = progress.step
            progress.waited = 0 if best else progress.waited + 1
            state.schedule.after_validation(score)
        if best:
            progress.best_loss = score
            progress.best_epoch = progress.epoch
            progress.best_step = progress.step
            self.hooks.on_best(state, errors)
        if judge:
            self.hooks.on_judged(state, errors, score)
        progress.validation_due = False
        self.hooks.on_validation(
            ValidationRecord(
                epoch=progress.epoch,
                step=progress.step,
                lr=self._rate(),
                metrics=errors,
                by_source=by_source,
                weights=state.judged_kind,
                best=best,
                seconds=time.monotonic() - began,
                terms=self.judged_loss.text(),
                stage=progress.stage,
            )
        )

    def _rate(self) -> float:
        """Learning rate of the last step; before the first, that of the schedule."""
        progress = self.state.progress
        if progress.step == 0 or progress.rate is None:
            return self.state.schedule.rate()
        return progress.rate

    def _train_record(self, *, whole_epoch: bool) -> TrainRecord:
        self._refuse_non_finite()
        tally = self.state.tally
        progress = self.state.progress
        loss = self.loss_of_steps()
        norms, largest, clipped, steps = tally.gradient.tolist()
        return TrainRecord(
            epoch=progress.epoch + 1,
            step=progress.step,
            lr=self._rate(),
            metrics=metrics(tally.sums.tolist(), loss),
            gradient_norm=norms / steps,
            gradient_norm_max=largest,
            clipped_share=clipped / steps,
            whole_epoch=whole_epoch,
            seconds=time.monotonic() - self.epoch_began,
            terms=loss.text(),
            stage=progress.stage,
        )

    def _save(self, reason: str) -> None:
        """Save; where that fails, train on and try again later, less and less often."""
        now = time.monotonic()
        if self.retry_at != math.inf and now < self.retry_at:
            return
        self._refuse_non_finite()
        if self.hooks.save(self.state, reason):
            self.saved_at = time.monotonic()
            self.retry_at = math.inf
            self.retry_after = FIRST_RETRY
        else:
            self.retry_at = now + self.retry_after
            self.retry_after = min(2 * self.retry_after, LAST_RETRY)

    def save_last(self, reason: str) -> None:
        """Save where no later try will come."""
        self._refuse_non_finite()
        self.hooks.save_last(self.state, reason)

    def rescue(self, reason: str) -> None:
        """Save what there is; what was wrong first is what a person must know."""
        with suppress(SaveError, NonFiniteError):
            self._refuse_non_finite()
            self.hooks.rescue(self.state, reason)
