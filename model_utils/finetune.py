"""Fine-tune a trained model: ``python model_utils/finetune.py --input_model W --xyz_train data.xyz …``."""

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file: import our modules from the checkout, not from beside this script
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from model_utils.ranks import joining
from model_utils.run.interruption import Interruption, leave
from model_utils.settings import cli
from model_utils.settings.options import FinetuneOptions


def main(argv: Sequence[str] | None = None) -> int:
    """Fine-tune, or continue with --resume auto; returns the exit code."""
    return cli.run(FinetuneOptions, finetune, argv, processes="together")


def finetune(options: FinetuneOptions) -> None:
    """A run from another model's weights."""
    with Interruption(give_up=joining.giving_up()) as stop:
        from model_utils.files.outputs import Outputs
        from model_utils.run import place, training
        from model_utils.run.from_model import beginning_of_finetuning

        group = joining.group_of(stop)
        outputs = Outputs.named(options.output.output_checkpoint, options.output.output_model)
        with (
            place.held(options, outputs, group) as held_outputs,
            beginning_of_finetuning(options, held_outputs, stop, group) as (settings, beginning),
        ):
            training.train_in_place(settings, held_outputs, beginning, stop, group)


if __name__ == "__main__":
    leave(main())
