"""Paths that no command can use are refused before anything slow begins: circles of links,
names that are too long.
"""

import dataclasses
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dataloader.errors import InputError
from model_utils.settings.declared import flat

# bytes; file systems take 255, and names beside it get endings: X_model.json, .X.unchecked
LONGEST_OUTPUT = 230
WRITTEN = ("output", "out_", "report")  # begin the names of options whose files are written
# name several files, or a folder: judged where made
OF_A_RUN = ("output_checkpoint", "output_model", "output_dir")


def refuse_unusable(options: Any) -> None:
    """Look at every path among the options, whether something is there or not.

    Raises:
        InputError: naming the flag and the path.
    """
    for name, path in _paths(options):
        refuse_unusable_path(name, path)
        size = len(os.fsencode(path.name))
        if name.startswith(WRITTEN) and name not in OF_A_RUN and size > LONGEST_OUTPUT:
            raise InputError(
                f"--{name} {_short(path)}: a name of {size} bytes leaves no room for the endings "
                f"of what is written beside it; give one of at most {LONGEST_OUTPUT}"
            )


def refuse_unusable_path(name: str, path: Path) -> None:
    """Raise InputError where a path that a flag gives can be none; one that is not
    there may still be made.
    """
    try:
        os.stat(path)
    except (OSError, ValueError) as error:
        if reason := _reason(error):
            raise InputError(f"--{name} {_short(path)} {reason}") from None


def _reason(error: OSError | ValueError) -> str:
    """Why a path can be none; of one that is not there, or not for us, whoever opens it speaks."""
    if isinstance(error, ValueError):
        return "holds a null byte; give a path"
    if error.errno == errno.ELOOP:
        return (
            "leads through symbolic links that lead in a circle; `namei` shows them: mend one, "
            "or give another path"
        )
    if error.errno == errno.ENAMETOOLONG:
        return "is too long for this file system; give a shorter one"
    return ""


def _paths(options: Any) -> Iterator[tuple[str, Path]]:
    for name, value in flat(options).items():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, Path):
                yield name, item
            elif dataclasses.is_dataclass(item):
                yield from ((f"{name}: {inner}", path) for inner, path in _paths(item))


def _short(path: Path) -> str:
    text = str(path)
    return text if len(text) <= 120 else f"{text[:60]}…{text[-40:]}"
