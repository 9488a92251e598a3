"""Where a run writes: all names from two options, announced up front, and never
over another run's files.
"""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dataloader.errors import InputError
from model_utils.errors import OTHER_PLACE, cannot_write
from model_utils.files import run_names
from model_utils.files.checkpoint import is_best_model
from model_utils.files.generations import (
    ENDINGS,
    damaged,
    newest_generation,
    previous_generation,
)
from model_utils.files.held_folder import HeldFolder
from model_utils.files.kept import PATTERN
from model_utils.files.lasting import lasting

NAME_MAX = 255  # bytes, of most file systems


class Outputs:
    """Names of everything one run writes.

    Args:
        checkpoint: of the raw weights and the whole state.
        model: of the best weights.
        folders: those of the two files, where the run holds them: the names then follow folders
            that are moved, and asking for one raises SaveError where its folder is gone.
    """

    def __init__(
        self, *, checkpoint: Path, model: Path, folders: tuple[HeldFolder, HeldFolder] | None = None
    ) -> None:
        self._checkpoint = checkpoint
        self._model = model
        self._folders = folders

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Outputs) and self._names() == other._names()

    def __hash__(self) -> int:
        return hash(self._names())

    def _names(self) -> tuple[Path, Path]:
        return self._checkpoint, self._model

    def _refuse_long_names(self) -> None:
        """A run must not find out after its first stage that the name of the best
        model of it is too long.

        Raises:
            InputError: a file that the run may write has a longer name than a file system takes.
        """
        longest = max(self._all_named_after_the_run(), key=lambda path: len(os.fsencode(path.name)))
        size = len(os.fsencode(longest.name))
        if size > NAME_MAX:
            of_checkpoint = longest.parent == self.checkpoint.parent
            raise InputError(
                f"--output_{'checkpoint' if of_checkpoint else 'model'}: "
                f"{longest.name:.30}…{longest.name[-40:]}, a file of the run, would have a name of "
                f"{size} bytes, and file systems take {NAME_MAX}; give a shorter name"
            )

    def _all_named_after_the_run(self) -> Iterator[Path]:
        """Files whose names contain the run's; those that are called the same in
        every run are short enough.
        """
        yield from (self.checkpoint, previous_generation(self.checkpoint), damaged(self.checkpoint))
        yield from (self.model, self.stage_one_model, self.bare_module, self.source_json, self.kept)
        yield from (self.replay, self.replay_before, *self.locks)
        yield from (path.with_suffix(".input.json") for path in self.model_jsons)

    @property
    def checkpoint(self) -> Path:
        """Raw weights and the whole state, resumable."""
        if self._folders is None:
            return self._checkpoint
        return self._folders[0].path() / self._checkpoint.name

    @property
    def model(self) -> Path:
        """Best weights."""
        if self._folders is None:
            return self._model
        return self._folders[1].path() / self._model.name

    def held_in(self, of_checkpoint: HeldFolder, of_model: HeldFolder) -> "Outputs":
        """Outputs of the same names, which follow their folders where somebody moves them."""
        return Outputs(
            checkpoint=self._checkpoint, model=self._model, folders=(of_checkpoint, of_model)
        )

    def absolute(self) -> "Outputs":
        """Names that hold wherever Python runs and ``latest`` leads later, and follow no folder."""
        names = [Path(os.path.abspath(lasting(path))) for path in (self.checkpoint, self.model)]
        return Outputs(checkpoint=names[0], model=names[1])

    @classmethod
    def named(cls, output_checkpoint: Path, output_model: Path | None) -> "Outputs":
        """The outputs of a run from what the user typed.

        Args:
            output_checkpoint: a path that ends in .pt or .pth is that file; any other is a
                directory, and ``run/`` makes ``run/run_checkpoint.pt``.
            output_model: by the same rule; beside the checkpoint where it is not given.

        Raises:
            InputError: both are one file, or a name cannot be one of a file.
        """
        checkpoint = _file(output_checkpoint, "checkpoint")
        model = (
            _file(output_model, "model")
            if output_model
            else checkpoint.with_name(f"{_stem(checkpoint)}_model.pt")
        )
        own = {
            _place(path)
            for path in (checkpoint, previous_generation(checkpoint), damaged(checkpoint))
        }
        if _place(model) in own:
            raise InputError(
                f"--output_checkpoint and --output_model are both {model}; give "
                "them different names"
            )
        outputs = cls(checkpoint=checkpoint, model=model)
        outputs._refuse_long_names()
        return outputs

    @classmethod
    def of_checkpoint(cls, checkpoint: Path, config: Mapping[str, Any]) -> "Outputs":
        """The places of a stored run, where its folder may have been moved.

        Args:
            checkpoint: any generation.
            config: the run's settings; they say where the best model went if it is not beside.
        """
        current = checkpoint.with_name(newest_generation(checkpoint.name))
        beside = cls.named(current, None)
        if not config.get("output_model"):
            return beside
        named = cls.named(current, Path(config["output_model"]))
        begun_at = written_at(config)
        if begun_at is not None and real(begun_at) == real(current):
            return named
        here = current.with_name(named.model.name)  # in a copy of the folder its own best model
        places = (
            model
            for model in (beside.model, here, named.model)
            if model.exists() and model != current
        )
        return cls(checkpoint=current, model=next(places, beside.model))

    @property
    def run_name(self) -> str:
        """The checkpoint's stem without ``_checkpoint``."""
        return _stem(self.checkpoint)

    @property
    def model_jsons(self) -> tuple[Path, ...]:
        """``<name>_model.json`` beside each of the two files; one where the folder
        and name are the same.
        """
        return tuple(dict.fromkeys((sidecar(self.checkpoint), sidecar(self.model))))

    @property
    def source_json(self) -> Path:
        """Structure of the model a fine-tuning began with, where it was changed."""
        return self.checkpoint.with_name(f"{self.run_name}_source_model.json")

    @property
    def replay(self) -> Path:
        """Structures that a fine-tuning replays, with the labels that its source gave them."""
        return self.checkpoint.with_name(f"{self.run_name}_replay.xyz")

    @property
    def replay_before(self) -> Path:
        """Replayed structures of a run that is to be overwritten, until the new run begins."""
        return self.replay.with_suffix(".before.xyz")

    @property
    def stage_one_model(self) -> Path:
        """Best model of stage one, where there is a second stage."""
        return self.model.with_name(f"{_stem(self.model)}_stage_one_model.pt")

    @property
    def kept(self) -> Path:
        """Folder of the models that --keep_best keeps."""
        return self.model.with_name(f"{_stem(self.model)}_kept")

    @property
    def bare_module(self) -> Path:
        """The module alone, for mace's calculator."""
        return self.model.with_name(f"{_stem(self.model)}.model")

    @property
    def metrics(self) -> Path:
        """One JSON object per record."""
        return self.checkpoint.with_name(run_names.METRICS)

    @property
    def log(self) -> Path:
        """What the terminal shows, without the progress bar."""
        return self.checkpoint.with_name(run_names.LOG)

    @property
    def config(self) -> Path:
        """Every setting as it was used."""
        return self.checkpoint.with_name(run_names.SETTINGS)

    @property
    def record(self) -> Path:
        """What the run was asked and every time it was started, where it
        has a folder of its own.
        """
        return self.checkpoint.with_name(run_names.RECORD)

    @property
    def valid_names(self) -> Path:
        """Names of the structures that were set aside for validation."""
        return self.checkpoint.with_name("valid_structures.txt")

    @property
    def loss_units(self) -> Path:
        """Spread of the labels, where the loss is in units of it."""
        return self.checkpoint.with_name("loss_units.json")

    @property
    def metrics_table(self) -> Path:
        """What the logger ``csv`` writes, where the run has it."""
        return self.metrics.with_suffix(".csv")

    @property
    def lock(self) -> Path:
        """Held by the process that writes the run."""
        # of the folder: metrics.jsonl and train.log are the folder's
        return self.checkpoint.with_name(run_names.LOCK)

    @property
    def locks(self) -> dict[Path, Path]:
        """Every lock that a run holds, and what it is for: the folder of its records,
        and each name of weights.

        ``X_model.pt``, ``X_model.json``, ``X.model``, ``X_stage_one_model.pt`` and
        ``X_source_model.json`` are files of one name, X: best models of several runs may lie in one
        folder, two of one name may not.
        """
        weights = {_lock_of_name(path): path for path in (self.checkpoint, self.model)}
        return {self.lock: self.checkpoint.parent, **weights}

    def announced(self, *, bare_module: bool, split: bool) -> Iterator[tuple[Path, str]]:
        """Every path with one phrase on what it is."""
        yield self.checkpoint, "raw weights and the whole state, resumable"
        yield self.model, "best weights"
        for path in self.model_jsons:
            yield path, "the network's structure, canonical"
        if bare_module:
            yield self.bare_module, "module for mace's calculator, at the end"
        yield self.metrics, "one record per epoch and validation"
        yield self.log, "this log"
        yield self.config, "all settings as used"
        if split:
            yield self.valid_names, "structures set aside for validation"
        if self.record.exists():
            yield self.record, "what was asked, versions, machine, data, every start"

    def of_another_run(self) -> list[Path]:
        """Files of a run that lie at these places already."""
        own = [
            self.checkpoint,
            previous_generation(self.checkpoint),
            self.model,
            self.stage_one_model,
            self.bare_module,
            self.metrics,
            self.config,
            self.log,
            self.valid_names,
            damaged(self.checkpoint),
            self.metrics_table,
            self.loss_units,
            self.replay_before,
            *sorted(self.kept.glob(PATTERN)),
        ]
        return [path for path in own if path.exists()]

    def owns(self, path: Path) -> bool:
        """Whether a weights file is one that the run writes, now or later, also through a link."""
        own = (
            *(self.checkpoint, previous_generation(self.checkpoint), damaged(self.checkpoint)),
            *(self.model, self.stage_one_model),
        )
        place = real(path)
        is_kept = place.parent == real(self.kept) and place.match(PATTERN)
        return (
            is_kept
            or place in {real(name) for name in own}
            or _place(path) in {_place(name) for name in own}
        )

    def refuse_another_run(self) -> None:
        """Raise InputError where the place holds another run's files."""
        files = self.of_another_run()
        if files:
            raise InputError(
                f"{files[0]} belongs to another run; continue that one with --resume auto, replace "
                "it with --overwrite, or give another --output_checkpoint"
            )

    def remove_another_run(self) -> None:
        """Remove another run's files, so that no old generation can be
        taken for one of this run.
        """
        for path in self.of_another_run():
            path.unlink(missing_ok=True)

    def make_folders(self) -> None:
        """Create the folders; raises as ``cannot_write`` where that is not possible."""
        for folder in {self.checkpoint.parent, self.model.parent}:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise cannot_write(folder, error, OTHER_PLACE, verb="create") from None


def refuse_names_of_runs(output: Path, flag: str, *known: Outputs) -> None:
    """Refuse a place where a training writes: a command that holds no lock must not replace
    it, whatever is asked.

    The run would go on with a best model that its checkpoint does not know, or with none.

    Args:
        output: of the command.
        flag: that names it, for the message.
        known: runs that are known; those whose checkpoints lie beside the output are looked for.

    Raises:
        InputError: a run writes there.
    """
    checkpoints = (
        path for path in output.parent.glob("*_checkpoint.pt*") if path.suffix in ENDINGS
    )
    runs = [*known, *(Outputs.named(path, None) for path in checkpoints if path.is_file())]
    if any(run.owns(output) for run in runs):
        raise InputError(
            f"{flag} {output} is a file of a run, which a training writes; give another name "
            "(--overwrite replaces other files alone)"
        )


def real(path: Path) -> Path:
    """Where a path leads; one whose links lead in a circle leads to itself, while
    ``Path.resolve`` raises.
    """
    return Path(os.path.realpath(path))


def _place(path: Path) -> Path:
    """A file by the one name of its folder; a link in its place is replaced, not followed."""
    return real(path.parent) / path.name


def _lock_of_name(weights: Path) -> Path:
    """The lock of the files that bear one name: best model of a stage and source
    belong to the run's own.
    """
    name = re.sub(r"(_stage_one|_source)+$", "", _stem(weights))
    return weights.with_name(f".{name}.run.lock")


def checkpoints_in(folder: Path) -> list[Path]:
    """Checkpoints of the runs in a folder, each by the name of its newest generation.

    Where none is called ``*_checkpoint``, those that a user named otherwise: their model.json lies
    beside, and they are not the best models of the same runs.
    """
    files = [
        path
        for path in folder.iterdir()
        if path.suffix in ENDINGS and not path.stem.endswith(".damaged")
    ]
    names = {newest_generation(path.name) for path in files}
    usual = {name for name in names if Path(name).stem.endswith("_checkpoint")}
    if usual:
        return [folder / name for name in sorted(usual)]
    written = [folder / name for name in sorted(names) if sidecar(folder / name).exists()]
    return [path for path in written if not path.exists() or not is_best_model(path)]


def written_at(config: Mapping[str, Any]) -> Path | None:
    """The checkpoint as the settings of a stored run name it, where it was written.

    Args:
        config: of the run, by names of flags.

    Returns:
        None where they name none, or what is no place for one any more: a file has the folder's
        name, or it is closed to this user.
    """
    named = config.get("output_checkpoint")
    if not named:
        return None
    try:
        return Outputs.named(Path(named), None).checkpoint
    except (InputError, OSError, ValueError):
        return None


def sidecar(weights: Path) -> Path:
    """``<name>_model.json`` beside a weights file."""
    return weights.with_name(f"{_stem(weights)}_model.json")


def _file(given: Path, role: str) -> Path:
    try:
        return _named(given, role)
    except (OSError, ValueError) as error:  # a name too long, or with a null byte
        raise InputError(
            f"--output_{role} {str(given)!r:.80} cannot be a place for files ({error!s:.60})"
        ) from None


def _named(given: Path, role: str) -> Path:
    """The weights file at a place: the path itself, or in the folder that it is."""
    if given.suffix in ENDINGS:
        if given.is_dir():
            raise InputError(
                f"{given} is a directory, and a path ending in {given.suffix} is taken for a file; "
                "rename one of them"
            )
        return given
    if given.exists() and not given.is_dir():
        raise InputError(f"{given} is a file; expected a directory or a path ending in .pt or .pth")
    return given / f"{real(given).name or 'run'}_{role}.pt"


def _stem(path: Path) -> str:
    """The name that the files of a run share: without ending, generation and role."""
    stem = (path.stem if path.suffix in ENDINGS else path.name).removesuffix(".prev")
    for role in ("_checkpoint", "_model"):
        stem = stem.removesuffix(role)
    return stem or path.name
