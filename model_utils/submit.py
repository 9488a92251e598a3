"""Run a pipeline or a stage of it on a cluster: ``python model_utils/submit.py pipeline
--profile cluster.yaml …``.
"""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

# run as a file: import our modules from the checkout, not from beside this script
if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from model_utils.run.interruption import Interruption, leave
from model_utils.settings import cli
from model_utils.settings.options import submitted
from model_utils.submission.commands import commands

GOES_ON = "a job that was submitted goes on; repeat the command to come back to it"


def main(argv: Sequence[str] | None = None) -> int:
    """Submit; returns the exit code."""
    table: cli.Commands = {
        name: (
            submitted(command.options, f"Submit {' '.join(command.words)}."),
            partial(submit, name),
        )
        for name, command in commands().items()
    }
    return cli.run_subcommand(table, __doc__ or "", argv)


def submit(name: str, options: object) -> None:
    """Send a command of ours to where the profile says, or bring the
    results of one that was sent.
    """
    with Interruption(again=GOES_ON):
        from model_utils.submission import submitting

        submitting.submit(name, options)


if __name__ == "__main__":
    leave(main())
