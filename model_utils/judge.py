"""Judge generated crystals with a trained model: ``python model_utils/judge.py --help``."""

import sys
from collections.abc import Sequence
from pathlib import Path

# run as a file: import our modules from the checkout, not from beside this script
if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from model_utils.run.interruption import REPEAT, Interruption, leave
from model_utils.settings import cli
from model_utils.settings.options import JudgeOptions


def main(argv: Sequence[str] | None = None) -> int:
    """Judge; returns the exit code."""
    return cli.run(JudgeOptions, judge, argv)


def judge(options: JudgeOptions) -> None:
    """Relax what is not relaxed yet, and write what the candidates are worth."""
    with Interruption(again=REPEAT):
        from model_utils.judging import judging

        judging.judge(options)


if __name__ == "__main__":
    leave(main())
