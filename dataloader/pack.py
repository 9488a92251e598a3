"""Pack any data into checked shards of compact arrays, split without leaks: ``python
dataloader/pack.py --help``.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

# run as a file: import our modules from the checkout, not from beside this script
if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from model_utils.run.interruption import REPEAT, Interruption, leave
from model_utils.settings import cli
from model_utils.settings.options import PackOptions


def main(argv: Sequence[str] | None = None) -> int:
    """Pack; returns the exit code."""
    return cli.run(PackOptions, pack, argv, processes="apart")


def pack(options: PackOptions) -> None:
    """Look through the inputs, split them, write the shards; repeated after a kill, it goes on."""
    with Interruption(again=REPEAT):
        from model_utils.tasks import packing_data

        packing_data.pack(options)


if __name__ == "__main__":
    leave(main())
