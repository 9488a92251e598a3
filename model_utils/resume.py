"""Continue a training run from its checkpoint: ``python model_utils/resume.py --input_model run/``."""

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file: import our modules from the checkout, not from beside this script
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from model_utils.ranks import joining
from model_utils.run.interruption import Interruption, leave
from model_utils.settings import cli
from model_utils.settings.options import FIXED_IN_A_RUN, ResumeOptions


def main(argv: Sequence[str] | None = None) -> int:
    """Continue; returns the exit code."""
    return cli.run(ResumeOptions, resume, argv, elsewhere=FIXED_IN_A_RUN, processes="together")


def resume(options: ResumeOptions) -> None:
    """The run as it was, but for what the options change."""
    with Interruption(give_up=joining.giving_up()) as stop:
        from model_utils.run import resume_settings, training

        stored = resume_settings.stored_run(options.input_model)
        settings = resume_settings.train_options(options, stored)
        changes = resume_settings.changes(options, stored)
        training.train(settings, stored.description, stop, joining.group_of(stop), changes)


if __name__ == "__main__":
    leave(main())
