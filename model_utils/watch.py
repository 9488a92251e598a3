"""Watch runs in the terminal: ``python model_utils/watch.py RUN…``; ``--help`` has more."""

import sys
from collections.abc import Sequence
from pathlib import Path

# run as a file: import our modules from the checkout, not from beside this script
if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from model_utils.run.interruption import leave
from model_utils.settings import cli
from model_utils.settings.options import WatchOptions


def main(argv: Sequence[str] | None = None) -> int:
    """Show runs; returns the exit code."""
    return cli.run(WatchOptions, watch, argv)


def watch(options: WatchOptions) -> None:
    """Show the runs until all of them are finished, or once."""
    from model_utils.watching import live

    live.watch(options)


if __name__ == "__main__":
    leave(main())
