"""The place of a run: its folders, made where they are missing, and the lock by which
one process writes them.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from model_utils.files import run_lock
from model_utils.files.outputs import Outputs
from model_utils.ranks.group import Group
from model_utils.run.beginnings import replaying
from model_utils.run.folder import run_folders
from model_utils.run.folder.run_folders import Chosen
from model_utils.runtime import log_of_a_run
from model_utils.settings.options import TrainingOptions

Options = TypeVar("Options", bound=TrainingOptions)


@contextmanager
def held(options: Options, group: Group) -> Iterator[tuple[Options, Outputs]]:
    """Make the folders and be the only writer of the run; a dry run needs neither.

    Of several processes the first is it, and the others go on when it is. It also decides which
    folder the run has, where each has its own.

    Yields:
        The options, with the folder of the run as its place; and the names of what is written,
        which follow folders that are moved while the run lasts.

    Raises:
        InputError: another process writes this run, or the place cannot be written.
    """
    writes = group.rank.is_first and not options.run.dry_run
    with log_of_a_run(with_file=writes):
        options, chosen = _with_folder(options, group)
        outputs = Outputs.named(options.output.output_checkpoint, options.output.output_model)
        if writes:
            with _written_alone(options, outputs, chosen) as held_outputs:
                group.once(_is_held)
                yield options, held_outputs
        else:
            if not options.run.dry_run:
                group.once(_is_held)
            yield options, outputs


@contextmanager
def _written_alone(options: Options, outputs: Outputs, chosen: Chosen | None) -> Iterator[Outputs]:
    """Make the folders and be their only writer; names that follow them where they are moved."""
    with _forgotten_unless_begun(chosen), _made(outputs):
        resumes = options.output.resume is not None
        remedy = None if chosen is None else "leave --resume out for a run with a folder of its own"
        with run_lock.run_held(outputs, wait=resumes, remedy=remedy) as held_outputs:
            if resumes:
                replaying.take_back(held_outputs)
            yield held_outputs


def _with_folder(options: Options, group: Group) -> tuple[Options, Chosen | None]:
    """The options with the folder of the run, which the first process chooses for all."""
    if options.running.run_dir is None:
        return options, None
    chosen: list[Chosen] = []

    def choose() -> bytes:
        chosen.append(run_folders.chosen(options))
        return json.dumps(str(chosen[0].folder)).encode()

    folder = Path(json.loads(group.of_first(choose)))
    return run_folders.with_folder(options, folder), chosen[0] if chosen else None


@contextmanager
def _made(outputs: Outputs) -> Iterator[None]:
    """Make the run's folders; those that were made and in which nothing was written go again.

    Not the folders above them, in which other runs may be making theirs.
    """
    new = {f for f in (outputs.checkpoint.parent, outputs.model.parent) if not f.exists()}
    made: dict[Path, int] = {}
    try:
        try:
            outputs.make_folders()
        finally:
            made = {folder: folder.stat().st_ino for folder in new if folder.exists()}
        yield
    finally:
        for folder in sorted(made, key=lambda f: len(f.parts), reverse=True):
            with suppress(OSError):  # it is not empty, or was moved
                if folder.stat().st_ino == made[folder]:  # and not of somebody who came after
                    folder.rmdir()


@contextmanager
def _forgotten_unless_begun(chosen: Chosen | None) -> Iterator[None]:
    """Remove a folder that was made for a run which wrote nothing, as where
    its data were not found.
    """
    try:
        yield
    finally:
        if chosen is not None and chosen.is_new:
            run_folders.forget(chosen.folder)


def _is_held() -> None:
    """Said to the other processes."""
