"""What files, folders and patterns hold, as hashes: what tells whether something is made of the
same things again.
"""

import glob
import hashlib
from collections.abc import Iterator
from pathlib import Path

from dataloader import input_files

BLOCK = 2**22  # bytes
PATTERN = set("*?[")
# ends of names of files that appear beside LMDBs when they are read
MADE_BY_READING = (".index", "-lock")
ABSENT = "absent"


def content_hash(path: Path) -> str:
    """sha256 of a file, or of all files of a folder or a pattern with their names below
    it; ``absent`` of none.
    """
    if path.is_file():
        return file_hash(path)
    if path.is_dir():
        return _hash_of_all(
            (file.relative_to(path).as_posix(), file) for file in sorted(path.rglob("*"))
        )
    if PATTERN & set(str(path)):
        return _hash_of_all((Path(name).name, Path(name)) for name in sorted(glob.glob(str(path))))
    return ABSENT


def _hash_of_all(files: Iterator[tuple[str, Path]]) -> str:
    hasher = hashlib.sha256()
    number = 0
    for name, file in files:
        if is_data(file):
            hasher.update(f"{name}\0{file_hash(file)}\n".encode("utf-8", "surrogateescape"))
            number += 1
    return hasher.hexdigest() if number else ABSENT


def is_data(file: Path) -> bool:
    """Whether a file is of the data, and not made when they are read."""
    is_hidden = file.name.startswith(".") or file.name == "lock.mdb"
    return file.is_file() and not is_hidden and not file.name.endswith(MADE_BY_READING)


def file_hash(path: Path) -> str:
    """sha256 of a regular file.

    Raises:
        OSError: it cannot be read.
    """
    hasher = hashlib.sha256()
    with input_files.opened(path) as file:
        while block := file.read(BLOCK):
            hasher.update(block)
    return hasher.hexdigest()
