"""Names of files that mean the same later."""

import os
from pathlib import Path

from model_utils.files.outputs import real


def lasting(path: Path) -> Path:
    """A name of a file or folder without links to folders, such as ``latest``, which lead elsewhere
    later; as it was given where there are none, or nothing is there.
    """
    folder = path if path.is_dir() else path.parent
    if not path.exists() or real(folder) == Path(os.path.abspath(folder)):
        return path
    return real(folder) if path.is_dir() else real(folder) / path.name
