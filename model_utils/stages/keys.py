"""The key of a stage: a hash of all that decides what it makes, its settings and
the content of its files.

Where files lie, and what they are called, decides nothing: a pipeline that is moved with its
data is not done again.
"""

import dataclasses
import hashlib
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model_utils.files.content import content_hash
from model_utils.settings.declared import flat

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
