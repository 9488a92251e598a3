"""Index LMDBs before anybody trains on them, by one process or by many: ``python
dataloader/index.py --help``.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

# run as a file: import our modules from the checkout, not from beside this script
if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from model_utils.run.interruption import REPEAT, Interruption, leave
from model_utils.settings import cli
from model_utils.settings.options import IndexOptions


def main(argv: Sequence[str] | None = None) -> int:
    """Index; returns the exit code."""
    return cli.run(IndexOptions, index, argv, processes="apart")


def index(options: IndexOptions) -> None:
    """Make the indexes that are not there; repeated after a kill, it goes on."""
    with Interruption(again=REPEAT):
        from model_utils.tasks import indexing_data

        indexing_data.index(options)


if __name__ == "__main__":
    leave(main())
