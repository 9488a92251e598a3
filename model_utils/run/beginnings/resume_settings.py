"""From resume.py's options and a stored run to the settings of the run that goes on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model_utils.errors import InputError, VerificationError
from model_utils.files import checkpoint, run_lock
from model_utils.files.lasting import lasting
from model_utils.files.outputs import Outputs, checkpoints_in, real, sidecar, written_at
from model_utils.run.beginnings import replaying
from model_utils.run.beginnings.continuation import Changes
from model_utils.run.beginnings.resuming import newest_run
from model_utils.run.beginnings.stored_run import StoredRun
from model_utils.runtime import log
from model_utils.settings import reading
from model_utils.settings.declared import FIXED, MAY_CHANGE, names_of
from model_utils.settings.options import (
    FORMAT_FLAGS,
    GENERAL_FLAGS,
    ResumeOptions,
    TrainOptions,
)


def stored_run(input_model: Path) -> StoredRun:
    """The newest valid checkpoint that a path means, by a name that holds later.

    Args:
        input_model: a checkpoint, or the directory of one run, also through a link as ``latest``.

    Raises:
        InputError: there is none, or several.
        VerificationError: there are only damaged ones.
    """
    given = lasting(input_model)
    path = checkpoint_in(given) if given.is_dir() else given
    stored = newest_run(path)
    if stored is None:
        raise InputError(
            f"there is no {path}; expected the directory of a run or its *_checkpoint.pt"
        )
    place = stored.outputs()
    if place.replay_before.exists():
        with run_lock.run_held(place, wait=False) as held:
            replaying.take_back(held)
    return stored


def checkpoint_in(folder: Path) -> Path:
    """The checkpoint of the one run in a folder, by the name of its newest generation.

    Raises:
        InputError: there is none, or there are several.
    """
    paths = checkpoints_in(folder)
    if len(paths) == 1:
        return paths[0]
    if not paths:
        raise InputError(
            f"there is no *_checkpoint.pt in {folder}; expected the directory of a run"
        )
    names = ", ".join(path.name for path in paths)
    raise InputError(f"{folder} holds several runs ({names}); give the checkpoint of one")


def train_options(options: ResumeOptions, stored: StoredRun) -> TrainOptions:
    """The run's settings with what the options name in their place.

    Raises:
        InputError: they contradict what the run has done.
    """
    place = stored.outputs()
    settings_of_a_run = names_of(TrainOptions, MAY_CHANGE, FIXED)
    given = {
        name: value
        for name, value in reading.as_plain(options).items()
        if name in settings_of_a_run and value is not None and value != []
    }
    if given.keys().isdisjoint(("output_checkpoint", "output_model")):
        _refuse_the_originals_model(stored, place)
    behind = {"epochs": stored.epoch, "max_steps": stored.step}
    for name, done in behind.items():
        if name in given and given[name] < done:
            raise InputError(
                f"--{name} {given[name]} counts the whole run, and {stored.path} has {done} "
                "behind it; give more"
            )
    settings: dict[str, Any] = {
        **stored.config,
        "sources": [
            _moved_along(source, place)
            for source in stored.config.get("sources", [])
            # files that are named anew in the place of all of their role; a replay is none of them
            if GENERAL_FLAGS.get(source.get("role", "train")) not in given
            or source.get("head_of_all")
        ],
        "time_limit": None,
        "sync": None,  # a command that is stored is never run
        "output_checkpoint": str(place.checkpoint),
        "output_safetensors": given.get("output_safetensors") or _safetensors(stored, place),
        "output_model": None
        if place == Outputs.named(place.checkpoint, None)
        else str(place.model),
        "input_json": str(sidecar(place.checkpoint)),
        "dry_run": False,
        "plugin": reading.as_plain(options)["plugin"],  # a path that is stored is never followed
        "overwrite": False,
        **dict.fromkeys(
            ("resume_best", "resume_new_lr", "reset_scheduler", "resume_reset_scheduler"), False
        ),
        "run_dir": None,
        **_named_anew(given),
        **given,
        "resume": "auto",
    }
    if "output_checkpoint" in given and "output_model" not in given:
        settings["output_model"] = None  # beside the new checkpoint
    return reading.from_plain(TrainOptions, settings, stored.path)


def _named_anew(given: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Flags of files that no longer count, by nothing: ``--train_file`` names all files of its
    role, whichever flag named them before, and takes the place of a flag of one format as that
    takes its.
    """
    replaced: dict[str, list[Any]] = {}
    for role, general in GENERAL_FLAGS.items():
        of_formats = [f"{name}_{role}" for name in FORMAT_FLAGS]
        if general in given:
            replaced |= {flag: [] for flag in of_formats}
        elif not given.keys().isdisjoint(of_formats):
            replaced[general] = []
    return replaced


def _refuse_the_originals_model(stored: StoredRun, place: Outputs) -> None:
    """Refuse to go on in a copy of a run whose best model, outside of the folder that was copied,
    is still that of the original.

    Raises:
        InputError: naming both.
    """
    if place.model.parent == place.checkpoint.parent:
        return
    original = stored.original()
    if original is None:
        _refuse_a_later_model(stored, place)
        return
    raise InputError(
        f"{stored.path} was written at {original}, where a run lies now, too: of a copy the best "
        f"model {place.model} is that run's, and would be replaced; give --output_model, that one "
        "where this run was moved and the other is new, another where this is a copy"
    )


def _refuse_a_later_model(stored: StoredRun, place: Outputs) -> None:
    """Refuse a best model outside of the folder of a run that was moved, or copied since, where it
    is of later steps than the checkpoint: another copy has gone on.

    Raises:
        InputError: naming both.
    """
    begun_at = written_at(stored.config)
    is_moved = begun_at is not None and real(begun_at) != real(place.checkpoint)
    if not is_moved or not place.model.exists():
        return
    try:
        step = checkpoint.read(place.model).content.get("step", 0)
    except (InputError, VerificationError):  # what is damaged is said where it is needed
        return
    if step > stored.step:
        raise InputError(
            f"{place.model} has weights of step {step}, and {stored.path} is of step {stored.step}:"
            " it may be the best model of another copy of this run, and would be replaced; give "
            "--output_model, that one where it is this run's"
        )


def _safetensors(stored: StoredRun, place: Outputs) -> str | None:
    """Where the run's safetensors go: along with its folder, where they lie in it; those of an
    original stay as they are.
    """
    named = safetensors_of(stored.config, place)
    if named is None or Path(named).parent == place.checkpoint.parent:
        return named
    original = stored.original()
    if original is None:
        return named
    log.warning(
        "warning: %s is not written: it may be of the run at %s, where this one was written; give "
        "another --output_safetensors",
        *(named, original),
    )
    return None


def safetensors_of(config: Mapping[str, Any], place: Outputs) -> str | None:
    """Where the safetensors of a stored run lie: along with its folder, where they were in it.

    Args:
        config: settings of the run.
        place: where it is now.
    """
    named: str | None = config.get("output_safetensors")
    begun_at = written_at(config)
    if named is None or begun_at is None or real(Path(named).parent) != real(begun_at.parent):
        return named
    return str(place.checkpoint.parent / Path(named).name)


def _moved_along(source: dict[str, Any], place: Outputs) -> dict[str, Any]:
    """A source whose file went along with the run's folder, as that of a
    fine-tuning's replay does.
    """
    beside = place.checkpoint.with_name(Path(source["path"]).name)
    return (
        {**source, "path": str(beside)}
        if beside.exists() and not Path(source["path"]).exists()
        else source
    )


def changes(options: ResumeOptions, stored: StoredRun) -> Changes:
    """What the continued run does otherwise."""
    return Changes(
        begin_with=stored.path,
        lr=options.lr,
        reset_scheduler=options.reset_scheduler or options.resume_reset_scheduler,
        resume_best=options.resume_best,
        ema=options.ema,
    )
