"""The kinds of data that are read: one table, to which a plug-in adds, and how a name is
taken for one of them.
"""

from difflib import get_close_matches
from pathlib import Path

from dataloader.ase_files import ASE, refuse_what_is_not_read
from dataloader.data_file import Format
from dataloader.errors import InputError
from dataloader.hdf5 import HDF5
from dataloader.in_memory import is_pattern, matching
from dataloader.lmdb_shards.lmdb_source import LMDB
from dataloader.xyz import XYZ

FORMATS: dict[str, Format] = {"xyz": XYZ, "lmdb": LMDB, "hdf5": HDF5, "ase": ASE}


def format_named(name: str) -> Format:
    """The format of a name.

    Raises:
        InputError: there is none.
    """
    if name in FORMATS:
        return FORMATS[name]
    near = get_close_matches(name, FORMATS, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise InputError(f"there is no format {name!r:.40}; {hint}known are {', '.join(FORMATS)}")


def format_of(path: Path) -> str:
    """The format of what a user names: a file, a folder of files, or a pattern.

    What no format takes is xyz, as people call their files all kinds of names, and lmdb where it is
    no file: these two say what they expected.

    Raises:
        InputError: it holds files of several formats, or is of a kind that is
            not read for a reason.
    """
    if not is_pattern(path):
        return _of_one(path)
    names = {_of_one(match): match for match in matching(path)}
    if len(names) > 1:
        shown = " and ".join(f"{match} ({name})" for name, match in names.items())
        raise InputError(
            f"{path} matches files of several formats: {shown}; name them one after another"
        )
    return next(iter(names), LMDB.name)


def _of_one(path: Path) -> str:
    if LMDB.takes(path):  # a directory of shards may hold anything beside them
        return LMDB.name
    names = [kind.name for kind in FORMATS.values() if kind.takes(path)]
    if len(names) > 1 and path.is_dir():
        raise InputError(
            f"{path} holds files of several formats ({', '.join(names)}); name those that are "
            f"meant by a pattern: '{path}/*.xyz'"
        )
    if names:
        return names[0]
    refuse_what_is_not_read(path)
    return LMDB.name if path.is_dir() else XYZ.name
