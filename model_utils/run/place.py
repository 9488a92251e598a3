"""The place of a run: its folders, made where they are missing, and the lock by which one process writes them."""

from collections.abc import Iterator
from contextlib import contextmanager

from model_utils.files import run_lock
from model_utils.files.outputs import Outputs
from model_utils.ranks.group import Group
from model_utils.run import replaying
from model_utils.runtime import hold_log, start_log
from model_utils.settings.options import TrainingOptions


@contextmanager
def held(options: TrainingOptions, outputs: Outputs, group: Group) -> Iterator[Outputs]:
    """Make the folders and be the only writer of the run; a dry run needs neither.

    Of several processes the first is it, and the others go on when it is.

    Yields:
        The names of what is written, which follow folders that are moved while the run lasts.

    Raises:
        InputError: another process writes this run, or the place cannot be written.
    """
    if options.run.dry_run:
        start_log(None)
        yield outputs
        return
    if not group.rank.is_first:
        start_log(None)
        group.once(_is_held)
        yield outputs
        return
    hold_log()
    outputs.make_folders()
    resumes = options.output.resume is not None
    with run_lock.run_held(outputs, wait=resumes) as held_outputs:
        if resumes:
            replaying.take_back(held_outputs)
        group.once(_is_held)
        yield held_outputs


def _is_held() -> None:
    """Said to the other processes."""
