"""Continue a training run from its checkpoint: ``python
model_utils/resume.py --input_model run/``.
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
from model_utils.settings.options import FIXED_IN_A_RUN, ResumeOptions


def main(argv: Sequence[str] | None = None) -> int:
    """Continue; returns the exit code."""
    return cli.run(ResumeOptions, resume, argv, elsewhere=FIXED_IN_A_RUN, processes="together")


def resume(options: ResumeOptions) -> None:
    """The run as it was, but for what the options change."""
    api.resume(options)


if __name__ == "__main__":
    leave(main())
