"""Molecular dynamics with a trained model: ``python model_utils/md.py --help``."""

import sys
from collections.abc import Sequence
from pathlib import Path

# run as a file: import our modules from the checkout, not from beside this script
if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from model_utils.run.interruption import REPEAT, Interruption, leave
from model_utils.settings import cli
from model_utils.settings.options import MdOptions


def main(argv: Sequence[str] | None = None) -> int:
    """Move atoms; returns the exit code."""
    return cli.run(MdOptions, md, argv)


def md(options: MdOptions) -> None:
    """Begin, or go on from the state that an earlier call left in the folder."""
    with Interruption(again=REPEAT) as stop:
        from model_utils.simulation import dynamics

        dynamics.run(options, stop)


if __name__ == "__main__":
    leave(main())
