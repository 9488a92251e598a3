"""Fine-tune a trained model: ``python model_utils/finetune.py --input_model W
--xyz_train data.xyz …``.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

# run as a file: import our modules from the checkout, not from beside this script
if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from model_utils import api
from model_utils.run.interruption import leave
from model_utils.settings import cli
from model_utils.settings.options import FinetuneOptions


def main(argv: Sequence[str] | None = None) -> int:
    """Fine-tune, or continue with --resume auto; returns the exit code."""
    return cli.run(FinetuneOptions, finetune, argv, processes="together")


def finetune(options: FinetuneOptions) -> None:
    """A run from another model's weights."""
    api.train(options)


if __name__ == "__main__":
    leave(main())
