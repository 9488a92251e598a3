"""Prove on your own settings that a killed run resumes bit for bit: ``python
model_utils/verify_resume.py --help``.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

# run as a file: import our modules from the checkout, not from beside this script
if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from model_utils.settings import cli
from model_utils.settings.options import VerifyResumeOptions


def main(argv: Sequence[str] | None = None) -> int:
    """Verify; returns the exit code: 0 equal, 3 not."""
    return cli.run(VerifyResumeOptions, verify, argv)


def verify(options: VerifyResumeOptions) -> None:
    """Train straight and with a kill, and compare."""
    from model_utils.tasks import resume_check

    resume_check.verify(options)


if __name__ == "__main__":
    sys.exit(main())
