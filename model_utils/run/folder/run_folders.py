"""Which folder a run has in that of its experiment: the one that goes on, or a new one.

``--run_dir runs/demo`` gives every run a folder ``runs/demo/<run id>/``. With --resume the newest
unfinished run of equal settings goes on; where all of them are finished nothing is left to do, as
for the later ones of a chain of jobs. In a job of a scheduler the id is the job's, so that a job
which is requeued finds its own; a task of an array has its own too, and takes no other task's.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from dataloader import durable
from model_utils.errors import InputError, cannot_write
from model_utils.files.outputs import Outputs, real
from model_utils.files.run_names import LATEST, RECORD
from model_utils.models import description as model_json
from model_utils.run.beginnings.stored_run import LENGTHS
from model_utils.run.folder import run_record
from model_utils.runtime import log
from model_utils.settings import reading
from model_utils.settings.declared import FIXED, MAY_CHANGE, names_of
from model_utils.settings.options import (
    DataOptions,
    FilterOptions,
    FinetuneOptions,
    TrainingOptions,
    TrainOptions,
)

MOST_OF_A_SECOND = 1000  # runs of one id


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A folder for a run.

    Attributes:
        folder: ``<experiment>/<run id>``.
        is_new: whether it was made just now.
    """

    folder: Path
    is_new: bool


@dataclass(frozen=True, kw_only=True)
class _Kept:
    """A run that lies in the folder of the experiment."""

    folder: Path
    record: Mapping[str, Any]

    @property
    def is_finished(self) -> bool:
        """Whether it came to its end."""
        return self.record.get("finished") is not None

    @property
    def settings(self) -> Mapping[str, Any]:
        """What it was asked, with what continuations changed."""
        return {**self.record["asked"], **(run_record.changes_of(self.record) or [{}])[-1]}

    @property
    def former_settings(self) -> list[Mapping[str, Any]]:
        """What it was asked before continuations changed it, the oldest
        first; empty where none did.
        """
        changes = run_record.changes_of(self.record)
        return [{**self.record["asked"], **change} for change in [{}, *changes][:-1]]


def chosen(options: TrainingOptions) -> Chosen:
    """The folder of the run that goes on, or a new one with its record; made by one process.

    Raises:
        InputError: the experiment's folder cannot be written, there is nothing to continue where a
            change is asked for, or the options contradict --run_dir.
    """
    experiment = options.running.run_dir
    assert experiment is not None
    _refuse_contradictions(options)
    asked = _compared(options)
    model_hash = _hash_of(options)
    task = os.environ.get("SLURM_ARRAY_TASK_ID") or None
    runs = sorted(_runs_in(experiment), key=lambda run: str(run.record["created"]), reverse=True)
    if options.output.resume is not None:
        going_on = _that_goes_on(runs, options, asked, model_hash, task)
        if going_on is not None:
            _say_that_goes_on(going_on, options)
            return Chosen(folder=going_on.folder, is_new=False)
        nearest = _nearest(runs, asked, model_hash)
        if options.running.changes_the_run:
            raise InputError(
                f"--run_dir {experiment} has no run of these settings to continue{nearest}"
            )
        _refuse_former_settings(runs, asked, model_hash, task)
        say = log.warning if nearest else log.info
        say(
            "%sno run of these settings in %s%s: a new one begins",
            *("warning: " if nearest else "", experiment, nearest),
        )
    record = run_record.of_new_run(_command(options), reading.as_plain(options), model_hash, task)
    return Chosen(
        folder=_made(experiment, record, dry_run=options.run.dry_run),
        is_new=not options.run.dry_run,
    )


def forget(folder: Path) -> None:
    """Remove the folder of a run that never began, so that the experiment holds runs alone."""
    left = [path for path in folder.iterdir() if path.name != RECORD]
    if not left:
        (folder / RECORD).unlink(missing_ok=True)
        folder.rmdir()


def make_latest(folder: Path) -> None:
    """Let ``latest`` lead to a run of its experiment, where it is one; without links on the
    disk that is a warning.
    """
    if not (folder / RECORD).exists():
        return
    own = real(folder)  # which may have been named by the very link
    try:
        durable.link(own.parent / LATEST, own.name)
    except OSError as error:
        log.warning("warning: %s is not made: %s", own.parent / LATEST, error.strerror)


def with_folder(options: Any, folder: Path) -> Any:
    """The options of a run whose folder is known; its safetensors lie in it too, or runs
    would replace each other's.
    """
    plain = {**reading.as_plain(options), "run_dir": None, "output_checkpoint": str(folder)}
    if options.running.output_safetensors is not None:
        plain["output_safetensors"] = str(folder / options.running.output_safetensors.name)
    return reading.from_plain(type(options), plain, folder)


def _refuse_contradictions(options: TrainingOptions) -> None:
    given = {
        "--output_model": options.output.output_model is not None,
        "--overwrite": options.output.overwrite,
    }
    for flag, is_given in given.items():
        if is_given:
            raise InputError(
                f"{flag} and --run_dir contradict each other: every run has a folder of its own "
                "there, and replaces none; leave one of them out"
            )


def _command(options: TrainingOptions) -> str:
    return "finetune.py" if isinstance(options, FinetuneOptions) else "train_mace.py"


def _hash_of(options: TrainingOptions) -> str | None:
    """Hash of the model.json that is to be trained; None where it is not known yet.

    Raises:
        InputError: it cannot be read.
    """
    if isinstance(options, TrainOptions) and options.inline.network is None:
        return model_json.read(options.input_json).hash()
    return None


def _compared(options: TrainingOptions) -> dict[str, Any]:
    """The settings by which two runs of an experiment are told apart: what is trained,
    on what, and how long.
    """
    names = {*names_of(type(options), FIXED), *names_of(DataOptions, MAY_CHANGE), *LENGTHS}
    names -= set(names_of(FilterOptions, MAY_CHANGE))
    if options.running.changes_the_run:
        names -= {"lr", *LENGTHS}
    return run_record.kept(
        {name: value for name, value in reading.as_plain(options).items() if name in names}
    )


def _runs_in(experiment: Path) -> Iterator[_Kept]:
    if not experiment.is_dir():
        return
    for folder in sorted(experiment.iterdir()):
        if folder.is_symlink() or not folder.is_dir() or folder.name.startswith("."):
            continue
        record = run_record.read(folder)
        if record is not None:
            yield _Kept(folder=folder, record=record)


def _that_goes_on(
    runs: list[_Kept],
    options: TrainingOptions,
    asked: Mapping[str, Any],
    model_hash: str | None,
    task: str | None,
) -> _Kept | None:
    """The run of this very job and task, else the newest unfinished one, else the newest; where a
    change is asked for, the newest, finished or not.
    """
    equal = [
        run
        for run in runs
        if not _differing(run, asked, model_hash) and run.record.get("task") == task
    ]
    job = run_record.job()
    of_this_job = [run for run in equal if job and run.record.get("job") == job]
    unfinished = (
        [] if options.running.changes_the_run else [run for run in equal if not run.is_finished]
    )
    return next(iter([*of_this_job, *unfinished, *equal]), None)


def _say_that_goes_on(run: _Kept, options: TrainingOptions) -> None:
    if run.is_finished and not options.running.changes_the_run:
        log.info(
            "run %s of these settings is finished; leave --resume out for a new run of them",
            run.folder,
        )
    else:
        log.info("run %s goes on", run.folder)


def _refuse_former_settings(
    runs: list[_Kept], asked: Mapping[str, Any], model_hash: str | None, task: str | None
) -> None:
    """Begin no run anew whose settings another one had before it was continued with a change.

    Raises:
        InputError: such a run is there, and what its settings are now.
    """
    for run in runs:
        for former in run.former_settings:
            if run.record.get("task") != task or _other_names(former, run, asked, model_hash):
                continue
            now = [name for name, value in asked.items() if run.settings.get(name) != value]
            shown = " ".join(f"--{name} {run.settings.get(name)}" for name in now)
            raise InputError(
                f"run {run.folder} began with these settings and was continued with "
                f"{shown}; give that to go on, with --resume_new_lr another --lr, or leave "
                "--resume out for a new run"
            )


def _differing(run: _Kept, asked: Mapping[str, Any], model_hash: str | None) -> list[str]:
    """Names of the settings in which a run is another one than that which is asked for."""
    return _other_names(run.settings, run, asked, model_hash)


def _other_names(
    theirs: Mapping[str, Any], run: _Kept, asked: Mapping[str, Any], model_hash: str | None
) -> list[str]:
    """Names of the settings in which those of a run, of now or former ones, are not
    those that are asked for.
    """
    names = [name for name, value in asked.items() if name not in theirs or theirs[name] != value]
    if run.record.get("asked_model_json_hash") != model_hash:
        names.append("model.json")
    return names


def _nearest(runs: list[_Kept], asked: Mapping[str, Any], model_hash: str | None) -> str:
    """What tells the newest run from the one that is asked for, as the end of a sentence."""
    if not runs:
        return ""
    names = _differing(runs[0], asked, model_hash)
    if not names:
        return f" (the newest, {runs[0].folder.name}, is another task's)"
    return (
        f" (the newest, {runs[0].folder.name}, has another "
        f"{', '.join(names[:4])}{' …' if len(names) > 4 else ''})"
    )


def _made(experiment: Path, record: Mapping[str, Any], *, dry_run: bool) -> Path:
    """A new folder with the record of its run.

    Raises:
        InputError: it cannot be made.
    """
    name = _id(record)
    if dry_run:
        return experiment / name
    try:
        experiment.mkdir(parents=True, exist_ok=True)
        for number in range(1, MOST_OF_A_SECOND):
            folder = experiment / (name if number == 1 else f"{name}-{number}")
            Outputs.named(folder, None)  # whose names must not be too long
            try:
                text = run_record.text_of({**record, "run_id": folder.name})
                durable.new_folder(folder, {RECORD: text.encode("utf-8", "backslashreplace")})
            except FileExistsError:
                continue
            return folder
    except OSError as error:
        raise cannot_write(f"--run_dir {experiment}", error, "give another") from None
    raise InputError(
        f"--run_dir {experiment} has {MOST_OF_A_SECOND} runs of the name {name}; give another"
    )


def _id(record: Mapping[str, Any]) -> str:
    """Name of the folder: job and task where there is a scheduler, else the time."""
    if record["job"]:
        job = re.sub(r"[^\w.-]", "-", str(record["job"])).strip(".-")
        return f"job{job}" + (f"_{record['task']}" if record["task"] is not None else "")
    return datetime.fromisoformat(record["created"]).astimezone().strftime("%Y%m%d-%H%M%S")
