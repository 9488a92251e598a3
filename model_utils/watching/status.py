"""What the records of a run say: how far it is, how fast, how good, how long still, and
what should be looked at.
"""

import itertools
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from model_utils.watching.places import Plan
from model_utils.watching.tail import Record

RECENT = 5  # records by which rates are judged
LATEST_NORMS = 3
EARLIER_NORMS = 10
FEWEST_NORMS = 5  # before a rise can be told
RISING = 3.0  # times the median before
SLOW = 0.5  # of the usual rate
STOPPED = "no process writes it: it was stopped; it goes on with --resume auto, or with resume.py"
SILENCE = 5.0  # times the time that records usually take


@dataclass(frozen=True, kw_only=True)
class Limits:
    """When a warning is given.

    Attributes:
        no_improvement: epochs without a better model.
        silence: seconds without a record.
    """

    no_improvement: int
    silence: float


@dataclass(frozen=True, kw_only=True)
class Status:
    """A run at one moment.

    Attributes:
        epoch: finished ones.
        step: optimizer steps done.
        plan: how many of each there are to be.
        ending: why the run ended; None where it goes on.
        silent: seconds since the last record; None where there is none.
        seconds_left: until its end; None where it cannot be told.
        trained: the latest record of training, and validated, best: of validations;
            None where there is none.
        warnings: a sentence each.
    """

    epoch: int
    step: int
    plan: Plan
    ending: str | None
    silent: float | None
    seconds_left: float | None
    trained: Record | None
    validated: Record | None
    best: Record | None
    seconds_per_epoch: float | None
    atoms_per_second: float | None
    warnings: Sequence[str] = ()

    @property
    def share_done(self) -> float | None:
        """Between 0 and 1, by whichever end comes first; None where no end is known."""
        shares = [
            n / total
            for n, total in ((self.epoch, self.plan.epochs), (self.step, self.plan.max_steps))
            if total
        ]
        return min(max(shares), 1.0) if shares else None


def status_of(
    records: Sequence[Record],
    plan: Plan,
    ending: str | None,
    silent: float | None,
    limits: Limits,
    *,
    has_writer: bool = True,
) -> Status:
    """The status of a run.

    Args:
        records: of its metrics.jsonl, in their order.
        plan: its length.
        ending: why it ended, where run.json says so; a final record at the end says so too.
        silent: seconds since the last record was written.
        limits: of the warnings.
        has_writer: a process may be writing it.
    """
    trained = [r for r in records if r["kind"] in ("train", "train_steps")]
    epochs = [r for r in trained if r["kind"] == "train"]
    valid = [r for r in records if r["kind"] == "valid"]
    if ending is None and records and records[-1]["kind"] == "final":
        ending = "finished"
    per_epoch = _seconds_per_epoch(epochs, valid)
    per_step = _seconds_per_step(trained)
    best = next((r for r in reversed(valid) if r.get("best") is True), None)
    latest = [r for r in records if r["kind"] != "final"]
    epoch = int(number(epochs[-1], "epoch") or 0) if epochs else 0
    step = int(number(latest[-1], "step") or 0) if latest else 0
    rates = [
        rate for r in trained if (rate := number(r.get("perf", {}), "atoms_per_s")) is not None
    ]
    running = ending is None and has_writer
    warnings = [
        *_of_values(records),
        *_of_improvement(valid, best, limits),
        *_of_norms(trained),
        *(_of_rate(rates) if running else ()),
        *(_of_silence(silent, per_epoch, limits) if running else ()),
        *((STOPPED,) if ending is None and not has_writer and records else ()),
    ]
    return Status(
        epoch=epoch,
        step=step,
        plan=plan,
        ending=ending,
        silent=silent,
        seconds_left=_left(plan, epoch, step, per_epoch, per_step) if running else None,
        trained=trained[-1] if trained else None,
        validated=valid[-1] if valid else None,
        best=best,
        seconds_per_epoch=per_epoch,
        atoms_per_second=statistics.median(rates[-RECENT:]) if rates else None,
        warnings=warnings,
    )


def number(record: Any, name: str) -> float | None:
    """A finite number of a record; None where it has none of that name."""
    value = record.get(name) if isinstance(record, Mapping) else None
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        return None
    return float(value)


def _seconds(records: Sequence[Record]) -> float | None:
    """What the latest records took, each, in the middle."""
    seconds = [s for r in records[-RECENT:] if (s := number(r.get("perf"), "seconds")) is not None]
    return statistics.median(seconds) if seconds else None


def _seconds_per_epoch(epochs: Sequence[Record], valid: Sequence[Record]) -> float | None:
    """Of training and of the validations that an epoch has, on average."""
    training = _seconds(epochs)
    if training is None:
        return None
    later = [r for r in valid if (number(r, "step") or 0) > 0]
    return training + (_seconds(later) or 0.0) * len(later) / len(epochs)


def _seconds_per_step(trained: Sequence[Record]) -> float | None:
    """By the time between two records; within an epoch each says what
    passed since its beginning.
    """
    rates = []
    latest = trained[-RECENT - 1 :]
    for before, record in itertools.pairwise(latest):
        steps = (number(record, "step") or 0) - (number(before, "step") or 0)
        seconds = number(record.get("perf"), "seconds")
        if record.get("epoch") == before.get("epoch"):
            since = number(before.get("perf"), "seconds")
            seconds = None if seconds is None or since is None else seconds - since
        elif before["kind"] != "train":
            continue  # the step at which the epoch began is not known
        # of a resumed epoch the clock began anew
        if seconds is not None and seconds > 0 and steps > 0:
            rates.append(seconds / steps)
    return statistics.median(rates) if rates else None


def _left(
    plan: Plan, epoch: int, step: int, per_epoch: float | None, per_step: float | None
) -> float | None:
    by_epochs = [(plan.epochs - epoch) * per_epoch] if plan.epochs and per_epoch is not None else []
    by_steps = (
        [(plan.max_steps - step) * per_step] if plan.max_steps and per_step is not None else []
    )
    both = [*by_epochs, *by_steps]
    return max(min(both), 0.0) if both else None


def _of_values(records: Sequence[Record]) -> Iterator[str]:
    measured = [r for r in records if r["kind"] != "final"]
    if measured and "loss" in measured[-1] and number(measured[-1], "loss") is None:
        yield "the loss is no number"


def _of_improvement(valid: Sequence[Record], best: Record | None, limits: Limits) -> Iterator[str]:
    if not valid:
        return
    since = (number(valid[-1], "epoch") or 0) - ((number(best, "epoch") or 0) if best else 0)
    if since >= limits.no_improvement:
        than = "the beginning" if best is None else f"epoch {best.get('epoch')}"
        yield f"no better model for {since:.0f} epochs, since {than}"


def _of_norms(trained: Sequence[Record]) -> Iterator[str]:
    norms = [n for r in trained if (n := number(r, "gradient_norm")) is not None]
    earlier = norms[:-LATEST_NORMS][-EARLIER_NORMS:]
    if len(earlier) < FEWEST_NORMS:
        return
    before = statistics.median(earlier)
    now = statistics.median(norms[-LATEST_NORMS:])
    if before > 0 and now > RISING * before:
        yield f"the gradient norm rises: {now:.3g}, {now / before:.1f} times what it was"


def _of_rate(rates: Sequence[float]) -> Iterator[str]:
    if len(rates) <= 2 * LATEST_NORMS:
        return
    usual = statistics.median(rates[:-LATEST_NORMS])
    now = statistics.median(rates[-LATEST_NORMS:])
    if now < SLOW * usual:
        yield (
            f"slower than it was ({now:.3g} atoms/s, usually {usual:.3g}): it waits for data, or "
            "shares the machine"
        )


def _of_silence(silent: float | None, per_epoch: float | None, limits: Limits) -> Iterator[str]:
    if silent is not None and silent > max(limits.silence, SILENCE * (per_epoch or 0.0)):
        yield f"no record for {duration(silent)}: it waits for data, is stuck, or was killed"


def duration(seconds: float) -> str:
    """``43 s``, ``12 min``, ``3 h 05``, ``2 d 04 h``: as exact as a person needs it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {rest:02d}"
    days, rest = divmod(hours, 24)
    return f"{days} d {rest:02d} h"
