"""What pipeline.py run does: the stages one after the other, each recorded as it ends,
and the summary of all.
"""

import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from dataloader import durable
from model_utils import runtime
from model_utils.errors import InputError, Preempted, StageFailed, StopRequested
from model_utils.files import content
from model_utils.files.run_lock import held
from model_utils.run.folder.run_record import now, packages
from model_utils.runtime import log
from model_utils.settings.options import PipelineOptions
from model_utils.stages import keys, page, planning, records, running, summary
from model_utils.stages.place import Place
from model_utils.stages.planning import Plan
from model_utils.stages.records import Record, State
from model_utils.stages.running import Ended
from model_utils.stages.table import STAGES

# exit code of a command whose own files fail their check: what it left is not gone on with
DAMAGED = 3
ASKED_TO_STOP = Preempted.exit_code


def run(options: PipelineOptions) -> None:
    """Do every stage that is missing, or whose settings or files have changed.

    Raises:
        InputError: the settings cannot be used, or the folder is another's.
        StageFailed: a stage failed; the others are done as far as they can be, and
            the summary is written.
        Preempted: a stage was asked to stop, and saved.
    """
    runtime.start_log()
    place = Place(folder=options.run_dir.absolute())
    plan = Plan(options, place)
    plan.refuse_mistakes()
    place.make()
    with held(place.lock, wait=False, flag="--run_dir"):
        summary.say_if_lost(place)
        done: frozenset[str] = frozenset()
        kept: dict[str, Record] = {}
        for name in STAGES:
            kept[name] = _turn(plan, name, done)
            if kept[name].state == "done":
                done |= {name}
            durable.write_text(place.summary, summary.text_of(plan, kept))
        page.write(plan, kept)
        for line in summary.lines(place, kept):
            log.info("%s", line)
    _refuse_failures(kept, place)


def _turn(plan: Plan, name: str, done: frozenset[str]) -> Record:
    """What is known of a stage after its turn.

    Raises:
        StopRequested, Preempted: it was asked to stop.
    """
    stage = STAGES[name]
    missing = [needed for needed in stage.needs if needed not in done]
    if missing:
        reason = f"there is nothing to work on: the {STAGES[missing[0]].what} did not succeed"
        return _not_begun(plan, name, "failed", reason)
    found = plan.situation(name, done)
    why_not = stage.left_out(found)
    if why_not is not None:
        return _not_begun(plan, name, "left out", why_not)
    try:
        options = plan.options_of(name, done)
        instead = {
            option: content.content_hash(path) for option, path in stage.reads(plan.place).items()
        }
        inputs = {**keys.inputs_of(options), **instead}
    except InputError as error:
        return _not_begun(plan, name, "failed", str(error), InputError.exit_code)
    except OSError as error:
        reason = f"cannot read {error.filename}: {error.strerror}"
        return _not_begun(plan, name, "failed", reason, InputError.exit_code)
    model = found.model_name if stage.takes_model else None
    wanted = Record(
        stage=name, state="running", key=keys.key_of(inputs), inputs=inputs, model=model
    )
    before = records.read(plan.place, name)
    if before is not None and _holds(plan.place, before, wanted):
        log.info("%s: done before, nothing to do", name)
        return before
    if model == "baseline":
        log.warning("warning: %s: there is no fine-tuned model; the baseline takes its place", name)
    return _done(plan, wanted, before, options)


def _not_begun(
    plan: Plan, name: str, state: State, reason: str, exit_code: int | None = None
) -> Record:
    """The record of a stage that was not begun; what an earlier one made
    stays, and counts no more.
    """
    log.info("%s: %s: %s", name, state, reason)
    record = Record(
        stage=name, state=state, key="", inputs={}, error=reason, exit_code=exit_code, started=now()
    )
    records.write(plan.place, record)
    return record


def _holds(place: Place, before: Record, wanted: Record) -> bool:
    """Whether what a stage made is there and is what would be made again."""
    if before.state != "done":
        return False
    if before.key != wanted.key:
        log.info("%s: done again: %s changed", wanted.stage, _changes(before, wanted))
        return False
    changed = before.changed_product(place)
    if changed is not None:
        log.warning(
            "warning: %s: done again: %s is not as the stage left it",
            wanted.stage,
            place.folder / changed,
        )
    return changed is None


def _changes(before: Record, wanted: Record) -> str:
    names = {**before.inputs, **wanted.inputs}
    changed = [name for name in names if before.inputs.get(name) != wanted.inputs.get(name)]
    return ", ".join(changed[:4]) or "what decides it"


def _done(plan: Plan, wanted: Record, before: Record | None, options: Any) -> Record:
    """Run the command of a stage, and keep what came of it."""
    place = plan.place
    stage = STAGES[wanted.stage]
    goes_on = before is not None and before.key == wanted.key and before.state != "done"
    if not goes_on or (before is not None and before.exit_code == DAMAGED):
        _clear(stage.clears(place))
    earlier = before if goes_on and before is not None else wanted
    record = replace(
        wanted,
        starts=earlier.starts + 1,
        seconds=earlier.seconds,
        started=now(),
        packages=packages(),
    )
    records.write(place, record)
    durable.write_text(place.settings(wanted.stage), planning.settings_text(options))
    log.info("%s: %s %s", wanted.stage, stage.what, "goes on" if goes_on else "begins")
    began = time.monotonic()
    try:
        ended = running.run(stage.script, place.settings(wanted.stage), place, wanted.stage)
    except StopRequested:
        records.write(
            place,
            replace(record, state="stopped", seconds=record.seconds + time.monotonic() - began),
        )
        raise
    except OSError as error:
        ended = Ended(code=1, reason=f"the command cannot be run: {error}")
    return _ended(place, replace(record, seconds=record.seconds + time.monotonic() - began), ended)


def _ended(place: Place, record: Record, ended: Ended) -> Record:
    """Keep how a stage ended.

    Raises:
        Preempted: its command was asked to stop, by its own clock or by somebody
            else than this process.
    """
    if ended.code == ASKED_TO_STOP:
        records.write(place, replace(record, state="stopped", exit_code=ended.code))
        raise Preempted(f"{record.stage}: {ended.reason}; repeat the command of the pipeline")
    result = replace(record, state="done", exit_code=ended.code)
    if ended.code == 0:
        try:
            result = result.with_products(place, STAGES[record.stage].products(place))
        except OSError as error:
            ended = Ended(code=1, reason=f"the command succeeded and left no {error.filename}")
    if ended.code:
        result = replace(record, state="failed", exit_code=ended.code, error=ended.reason)
        log.warning("warning: %s failed: %s", record.stage, ended.reason)
    records.write(place, result)
    return result


def _clear(paths: tuple[Path, ...]) -> None:
    """Take away what an earlier try of a stage left."""
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif os.path.lexists(path):
            path.unlink()


def _refuse_failures(kept: dict[str, Record], place: Place) -> None:
    """Raise StageFailed for the first stage that failed, where one did."""
    failed = [record for record in kept.values() if record.state == "failed"]
    if failed:
        names = ", ".join(record.stage for record in failed)
        code = failed[0].exit_code
        raise StageFailed(
            f"failed: {names}; first {failed[0].stage}: {failed[0].error}; everything else is in "
            f"{place.summary}, and the command repeated tries again",
            code if code in (2, 3, 4, 5) else 1,
        )
