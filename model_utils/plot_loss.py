"""Draw the learning curves of runs: ``python model_utils/plot_loss.py --help``."""

import sys
from collections.abc import Sequence
from pathlib import Path

# run as a file: import our modules from the checkout, not from beside this script
if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from model_utils.run.interruption import leave
from model_utils.settings import cli
from model_utils.settings.options import PlotLossOptions


def main(argv: Sequence[str] | None = None) -> int:
    """Draw; returns the exit code."""
    return cli.run(PlotLossOptions, plot, argv)


def plot(options: PlotLossOptions) -> None:
    """Read the records of every run, draw their curves, write figure and table."""
    from model_utils.report import plotting_runs

    plotting_runs.plot(options)


if __name__ == "__main__":
    leave(main())
