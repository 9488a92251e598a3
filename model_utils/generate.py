"""Generate candidate crystals: ``python model_utils/generate.py --help``."""

import sys
from collections.abc import Sequence
from pathlib import Path

# run as a file: import our modules from the checkout, not from beside this script
if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from model_utils.run.interruption import REPEAT, Interruption, leave
from model_utils.settings import cli
from model_utils.settings.options import GenerateOptions


def main(argv: Sequence[str] | None = None) -> int:
    """Generate; returns the exit code."""
    return cli.run(GenerateOptions, generate, argv)


def generate(options: GenerateOptions) -> None:
    """Make just as many candidates as were asked for, or say why there are not so many."""
    with Interruption(again=REPEAT):
        from model_utils.generation import generating

        generating.generate(options)


if __name__ == "__main__":
    leave(main())
