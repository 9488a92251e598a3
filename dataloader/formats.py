"""The kinds of data that are read: one table, to which a plug-in adds, and how a name is
taken for one of them.
"""

from difflib import get_close_matches
from pathlib import Path

from dataloader.ase_files import ASE, USUAL_ENDINGS, USUAL_NAMES, refuse_what_is_not_read
from dataloader.data_file import Format
from dataloader.errors import InputError
from dataloader.hdf5 import HDF5
from dataloader.in_memory import is_pattern, matching
from dataloader.input_files import COMPRESSED_ENDINGS
from dataloader.lmdb_shards.lmdb_source import LMDB, is_one_data_set
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


def _within(folder: Path) -> list[str]:
    """The formats of the files of a folder; shards of LMDBs are known by their names, and only
    what lies beside them is looked into.

    Raises:
        InputError: a file of theirs is compressed, and would be left out without a word.
    """
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError:
        return [LMDB.name]  # which then says why it cannot be listed
    endings = {ending for kind in FORMATS.values() for ending in kind.endings} | {*USUAL_ENDINGS}
    for entry in entries:
        unpacked = entry.with_suffix("")
        is_data = unpacked.suffix in endings or unpacked.name in USUAL_NAMES
        if entry.suffix in COMPRESSED_ENDINGS and is_data:
            raise InputError(
                f"{entry} is compressed; unpack it first, or name the other files of {folder} by "
                "a pattern"
            )
    if not LMDB.takes(folder):
        return [kind.name for kind in FORMATS.values() if kind.takes(folder)]
    beside = [entry for entry in entries if entry.suffix not in LMDB.endings and entry.is_file()]
    others = [kind for kind in FORMATS.values() if kind is not LMDB]
    return [LMDB.name, *(kind.name for kind in others if any(map(kind.takes, beside)))]


def _ending_of(folder: Path, name: str) -> str:
    """The ending of the first file of a format in a folder."""
    kind = FORMATS[name]
    files = (entry for entry in sorted(folder.iterdir()) if entry.is_file())
    own = (file.suffix for file in files if kind.takes(file))
    return next(own, ".xyz")


def _of_one(path: Path) -> str:
    if path.is_dir() and not is_one_data_set(path):
        names = _within(path)
    elif LMDB.takes(path):
        return LMDB.name
    else:
        names = [kind.name for kind in FORMATS.values() if kind.takes(path)]
    if len(names) > 1 and path.is_dir():
        raise InputError(
            f"{path} holds files of several formats ({', '.join(names)}); name those that are "
            f"meant by a pattern, as '{path}/*{_ending_of(path, names[0])}'"
        )
    if names:
        return names[0]
    refuse_what_is_not_read(path)
    return LMDB.name if path.is_dir() else XYZ.name
