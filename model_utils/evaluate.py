"""Evaluate a trained model on labelled structures: ``python model_utils/evaluate.py --help``."""

import sys
from collections.abc import Sequence
from pathlib import Path

# run as a file: import our modules from the checkout, not from beside this script
if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from model_utils import api
from model_utils.run.interruption import leave
from model_utils.settings import cli
from model_utils.settings.options import EvaluateOptions


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate; returns the exit code."""
    return cli.run(EvaluateOptions, evaluate, argv, processes="together")


def evaluate(options: EvaluateOptions) -> None:
    """Load and verify the model, predict every structure, print the errors,
    write them where asked.
    """
    evaluation = api.evaluate(options)
    evaluation.require_physics()


if __name__ == "__main__":
    leave(main())
