"""Relax structures with a trained model, many at once: ``python model_utils/relax.py --help``."""

import sys
from collections.abc import Sequence
from pathlib import Path

# run as a file: import our modules from the checkout, not from beside this script
if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from model_utils.run.interruption import REPEAT, Interruption, leave
from model_utils.settings import cli
from model_utils.settings.options import RelaxOptions


def main(argv: Sequence[str] | None = None) -> int:
    """Relax; returns the exit code."""
    return cli.run(RelaxOptions, relax, argv)


def relax(options: RelaxOptions) -> None:
    """Relax every structure that is not relaxed yet, and write what came of all."""
    with Interruption(again=REPEAT):
        from model_utils.simulation import relaxing

        relaxing.relax(options)


if __name__ == "__main__":
    leave(main())
