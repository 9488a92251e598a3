"""A stored run into a freshly assembled one: its state, what is changed on the way, and
what is not as it was.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from model_utils import runtime
from model_utils.errors import InputError
from model_utils.files import checkpoint
from model_utils.models.versions import code_version
from model_utils.models.weights import load_tensors
from model_utils.run.assemble import AssembledRun
from model_utils.run.beginnings.resumed_rate import RateChange, change_rate
from model_utils.run.beginnings.resuming import is_same_run
from model_utils.run.beginnings.same_data import require_same_data
from model_utils.run.beginnings.stored_run import CHANGEABLE, StoredRun
from model_utils.run.data.data_identity import keep_names
from model_utils.run.fit_plan import FitPlan
from model_utils.run.step_counts import step_counts
from model_utils.runtime import log
from model_utils.settings.options import TrainOptions


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What a resumed run is to do otherwise than the unbroken one, and where it comes from."""

    begin_with: Path | None = None  # the checkpoint to read; that of the output place unless given
    lr: float | None = None
    reset_scheduler: bool = False
    resume_best: bool = False
    ema: bool | None = None

    def as_plain(self) -> dict[str, Any]:
        """The changes that are asked for, by the names of their flags."""
        return {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name != "begin_with" and getattr(self, field.name) != field.default
        }

    def was_begun_before(self, stored: StoredRun) -> bool:
        """Whether the checkpoint is one of this very continuation, and not the one
        that it was to begin with.
        """
        return self.begin_with is not None and not is_same_run(self.begin_with, stored.path)


UNCHANGED = Changes()


def with_asked(changes: Changes, options: TrainOptions, stored: StoredRun) -> Changes:
    """What a run is to do otherwise that goes on by its own command, as ``train_mace.py
    --resume --resume_best``.

    Args:
        changes: of ``resume.py``, which says them itself; then nothing is added.
        options: of the command.
        stored: the run that goes on.
    """
    running = options.running
    if changes.begin_with is not None or not running.changes_the_run:
        return changes
    rate = options.optimizer.lr
    # a requeued job repeats its command when the run has the new rate already
    last = stored.history[-1].get("changes", {}) if stored.history else {}
    is_new = running.resume_new_lr or rate != stored.config["lr"] or rate == last.get("lr")
    return Changes(
        begin_with=stored.path,
        lr=rate if is_new else None,
        reset_scheduler=running.reset_scheduler or running.resume_reset_scheduler,
        resume_best=running.resume_best,
    )


def take_over(
    stored: StoredRun,
    changes: Changes,
    run: AssembledRun,
    identity: Mapping[str, Any],
) -> list[Mapping[str, Any]]:
    """Put a stored run into an assembled one, apply the changes, and log all that is not as it was.

    Args:
        stored: the run that goes on.
        changes: asked for.
        run: its module holds fresh weights and gets the stored ones; its state too.
        identity: of the data at hand (``data_identity``).

    Returns:
        The run's history with this continuation, for the next checkpoint.

    Raises:
        VerificationError: the checkpoint is of another network or of other data.
        InputError: there is no best model, or the rate would stay 0.
    """
    notes = require_same_data(stored, identity)
    keep_names(run.data, identity, stored.data)
    load_tensors(run.module, stored.file.tensors, stored.description, str(stored.path))
    run.state.load_state_dict(stored.state)
    _say_where(stored, run.plan)
    entry = _history_entry(changes, run.plan)
    was_applied = _was_applied(stored, changes, entry)
    if was_applied:
        names = ", ".join(f"--{name}" for name in changes.as_plain())
        log.info("%s: applied already; this continues what it began", names)
    notes += _applied(stored, UNCHANGED if was_applied else changes, run)
    for note in notes:
        log.info("  %s", note)
    _say_what_is_not_bitwise(stored, run)
    if changes.begin_with is None or changes.was_begun_before(stored) or was_applied:
        return [*stored.history]
    begun_from = os.path.abspath(changes.begin_with)
    before = {name: stored.config.get(name) for name in CHANGEABLE}
    here = {"step": stored.step, "from": begun_from, "before": before, **entry}
    return [*stored.history, here]


def _say_where(stored: StoredRun, plan: FitPlan) -> None:
    """Where the run goes on, or that it has done what is asked for."""
    if stored.epoch < plan.epochs and (plan.max_steps is None or stored.step < plan.max_steps):
        log.info("continue %s: epoch %d, step %d", stored.path, stored.epoch + 1, stored.step)
        return
    log.info(
        "continue %s: it has %d epochs and %d steps behind it, nothing is left of the %s asked for",
        stored.path,
        stored.epoch,
        stored.step,
        f"{plan.epochs} epochs" if stored.epoch >= plan.epochs else f"{plan.max_steps} steps",
    )


def _history_entry(changes: Changes, plan: FitPlan) -> dict[str, Any]:
    """What the history keeps of a continuation, by which a repeated one is known."""
    return {
        "job": os.environ.get("SLURM_JOB_ID", ""),
        "changes": changes.as_plain(),
        "end": [plan.epochs, plan.max_steps],
    }


def _was_applied(stored: StoredRun, changes: Changes, entry: Mapping[str, Any]) -> bool:
    """Whether the last continuation was this very one, which a requeued job or a
    loop in a script repeats.

    It is where it was begun at another place before, where the job is the same, or where it was
    broken off and asked for the same end of the run.
    """
    last = stored.history[-1] if stored.history else {}
    if not entry["changes"] or last.get("changes") != entry["changes"]:
        return False
    is_same_job = bool(entry["job"]) and last.get("job") == entry["job"]
    was_broken_off = not stored.is_over and last.get("end") == entry["end"]
    return changes.was_begun_before(stored) or is_same_job or was_broken_off


def _applied(stored: StoredRun, changes: Changes, run: AssembledRun) -> list[str]:
    """Apply changes to a run that was taken over; sentences for the log."""
    state = run.state
    notes = []
    if changes.resume_best:
        notes.append(_start_from_best(stored, run))
    if state.ema is not None and not stored.has_ema:
        notes.append("EMA begins with the weights of now")
    if state.ema is None and stored.has_ema:
        notes.append("EMA ends")
    rate = RateChange(lr=changes.lr, anew=changes.reset_scheduler)
    counts = step_counts(run.options, run.batches)
    notes += change_rate(state, run.plan, counts, stored.config, rate)
    if changes.lr is not None and not changes.resume_best:
        notes.append("the optimizer's moments are kept")
    return notes


def _start_from_best(stored: StoredRun, run: AssembledRun) -> str:
    """Put the best weights in place of the last ones; a sentence for the log.

    Raises:
        InputError: there is no best model.
    """
    path = stored.outputs().model
    if not path.exists():
        raise InputError(
            f"--resume_best: there is no {path}; leave the flag out to go on from the last weights"
        )
    best = checkpoint.read(path)
    load_tensors(run.module, best.tensors, best.description, str(path))
    run.state.optimizer.state.clear()  # moments of other weights
    if run.state.ema is not None:
        run.state.ema.restart(run.state.parameters)
    return f"weights of {path} (epoch {best.content['epoch']}, {best.weights}), moments start anew"


def _say_what_is_not_bitwise(stored: StoredRun, run: AssembledRun) -> None:
    """Warn of every reason why the run need not equal the unbroken one in the last bits."""
    reasons = runtime.not_bitwise(
        stored.code_version,
        code_version(stored.description),
        stored.computed_on,
        run.state.computed_on(),
    )
    for reason in reasons:
        log.warning("  not bitwise: %s", reason)
