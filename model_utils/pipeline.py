"""From a model and data to judged crystals: ``python model_utils/pipeline.py run
--config pipeline.yaml``.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

# run as a file: import our modules from the checkout, not from beside this script
if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from model_utils.run.interruption import REPEAT, Interruption, leave
from model_utils.settings import cli
from model_utils.settings.options import PipelineOptions


def main(argv: Sequence[str] | None = None) -> int:
    """Run the pipeline; returns the exit code."""
    return cli.run_subcommand({"run": (PipelineOptions, run)}, __doc__ or "", argv)


def run(options: PipelineOptions) -> None:
    """Do every stage that is missing, and write the summary of all."""
    with Interruption(again=REPEAT):
        from model_utils.stages import pipeline

        pipeline.run(options)


if __name__ == "__main__":
    leave(main())
