"""Sections of a file of settings that are the settings of other commands, as a pipeline
has one for each stage.

A section stands in an option that only the YAML has, as JSON text. Its keys are the other command's
own options, and are looked at by that command's own checks when its options are made of them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataloader.errors import InputError
from model_utils.settings.declared import declared


@dataclass(frozen=True)
class SectionOf:
    """Marks a text option that holds settings of another command.

    Attributes:
        kind: options of that command.
    """

    kind: type


def sections_of(kind: type) -> dict[str, SectionOf]:
    """The sections that a command's file of settings has, by name."""
    sections: dict[str, SectionOf] = {}
    for option in declared(kind):
        section = option.marker(SectionOf)
        if section is not None:
            sections[option.name] = section
    return sections


def as_text(settings: Mapping[str, Any], kind: type, path: Path) -> Mapping[str, Any]:
    """Settings of a file with their sections as JSON text.

    Args:
        settings: as the file has them.
        kind: options of the command whose file it is.
        path: of the file, for messages.

    Raises:
        InputError: a section is no lines of settings.
    """
    plain = dict(settings)
    for name in sections_of(kind):
        content = plain.pop(name, None)
        if content is None:
            continue
        if not isinstance(content, Mapping):
            raise InputError(
                f"section {name} of {path} holds {content!r:.60}, expected lines like `seed: 1`"
            )
        plain[name] = json.dumps(content, default=str)
    return plain


def in_section(path: Path, name: str) -> Path:
    """A section of a file as messages call it; what is relative to the file is
    relative to this as well.
    """
    return path.with_name(f"{path.name}, section {name}")
