"""Train a MACE model from a model.json: ``python model_utils/train_mace.py --help``."""

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file: import our modules from the checkout, not from beside this script
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from model_utils.ranks import joining
from model_utils.run.interruption import Interruption, leave
from model_utils.settings import cli
from model_utils.settings.options import TrainOptions


def main(argv: Sequence[str] | None = None) -> int:
    """Train, or continue with --resume auto; returns the exit code."""
    return cli.run(TrainOptions, train, argv, processes="together")


def train(options: TrainOptions) -> None:
    """A run from a model.json."""
    with Interruption(give_up=joining.giving_up()) as stop:
        # torch is imported only now: --help and mistakes in flags are answered in a fraction of a second
        from model_utils.models import description as model_json
        from model_utils.run import training

        training.train(options, model_json.read(options.input_json), stop, joining.group_of(stop))


if __name__ == "__main__":
    leave(main())
