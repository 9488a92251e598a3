"""Train a MACE model from a model.json: ``python model_utils/train_mace.py --help``."""

import sys
from collections.abc import Sequence
from pathlib import Path

# run as a file: import our modules from the checkout, not from beside this script
if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from model_utils import api
from model_utils.run.interruption import leave
from model_utils.settings import cli
from model_utils.settings.options import FinetuneOptions, TrainingOptions, TrainOptions


def main(argv: Sequence[str] | None = None) -> int:
    """Train, or continue with --resume; returns the exit code."""
    return cli.run(
        TrainOptions, train, argv, from_a_model=(FinetuneOptions, train), processes="together"
    )


def train(options: TrainingOptions) -> None:
    """A run from a model.json; where the file of settings names a model, from its weights."""
    api.train(options)


if __name__ == "__main__":
    leave(main())
