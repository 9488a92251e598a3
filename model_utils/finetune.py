"""Fine-tune a trained model: ``python model_utils/finetune.py --input_model W --xyz_train data.xyz …``."""

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file: import our modules from the checkout, not from beside this script
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from model_utils.run.interruption import Interruption, leave
from model_utils.settings import cli
from model_utils.settings.options import FinetuneOptions


def main(argv: Sequence[str] | None = None) -> int:
    """Fine-tune, or continue with --resume auto; returns the exit code."""
    return cli.run(FinetuneOptions, finetune, argv)


def finetune(options: FinetuneOptions) -> None:
    """A run from another model's weights."""
    with Interruption() as stop:
        from model_utils.files.outputs import Outputs
        from model_utils.run import finetuning, new_energies, replaying, starting, training

        outputs = Outputs.named(options.output.output_checkpoint, options.output.output_model)
        with starting.place(options, outputs) as outputs:
            begun = finetuning.continued(options, outputs)
            if begun is not None:
                settings = finetuning.settings(options, begun.heads, replaying.kept(options, outputs))
                training.train_in_place(settings, outputs, begun, stop)
                return
            finetuning.refuse_place(options, outputs)
            with replaying.place(options, outputs) as replayed:
                origin = new_energies.with_given(finetuning.origin(options), options)
                settings = finetuning.settings(options, origin.description.heads, replayed)
                if replayed is not None and options.replay_labels == "source":
                    replaying.label(options, origin.source, replayed, stop)
                if options.E0s in new_energies.OF_DATA:
                    origin = new_energies.of_data(origin, options, settings)
                training.train_in_place(settings, outputs, origin.description, stop, origin=origin)


if __name__ == "__main__":
    leave(main())
