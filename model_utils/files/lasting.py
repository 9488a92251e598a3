"""Names of files that mean the same later."""

import os
from pathlib import Path

from model_utils.files.run_names import LATEST


def lasting(path: Path) -> Path:
    """A name of a file or folder that does not go through a link ``latest``, which leads to another
    run later; other links stay, as they may differ between machines.
    """
    walked = Path()
    for part in path.parts:
        walked /= part
        if part == LATEST and walked.is_symlink():
            walked = walked.parent / os.readlink(walked)
    return walked
