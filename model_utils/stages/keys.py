"""The key of a stage: a hash of all that decides what it makes, its settings and
the content of its files.

Where files lie, and what they are called, decides nothing: a pipeline that is moved with its
data is not done again.
"""

import dataclasses
import glob
import hashlib
import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dataloader import input_files
from model_utils.settings.declared import flat

BLOCK = 2**22  # bytes
# settings that decide how a stage is called and how fast it is, and none of its numbers
DECIDE_NOTHING = {
    "config",
    "debug",
    "overwrite",
    "resume",
    "run_dir",
    "num_workers",
    "processes",
    "report",
    "sync",
}
PATTERN = set("*?[")
# ends of names of files that appear beside LMDBs when they are read
MADE_BY_READING = (".index", "-lock")
ABSENT = "absent"


def key_of(inputs: Mapping[str, Any]) -> str:
    """sha256 of what decides a stage."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()


def inputs_of(options: Any) -> dict[str, Any]:
    """What decides a command's results: settings by name, with the sha256 of
    content in place of paths.
    """
    return {
        name: _deciding(value)
        for name, value in flat(options).items()
        if name not in DECIDE_NOTHING and not name.startswith("output_")
    }


def _deciding(value: Any) -> Any:
    if isinstance(value, Path):
        return content_hash(value)
    if isinstance(value, tuple | list):
        return [_deciding(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {name: _deciding(item) for name, item in flat(value).items()}
    return _of_words(value) if isinstance(value, str) else value


def _of_words(text: str) -> Any:
    """A setting that may be a file, as E0s may be, or a command whose words name some, with
    their content in place.
    """
    if _names_a_file(text):
        return content_hash(Path(text))
    try:
        words = shlex.split(text)
    except ValueError:  # no command
        return text
    if not any(_names_a_file(word) for word in words):
        return text
    return [content_hash(Path(word)) if _names_a_file(word) else word for word in words]


def _names_a_file(text: str) -> bool:
    """Whether a word is the path of a file."""
    try:
        return "/" in text and Path(text).is_file()
    except (OSError, ValueError):
        return False


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
