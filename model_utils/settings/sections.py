"""A file of settings with sections, or with the names of other toolkits, turned into
settings of ours by name.

Keys may stand flat, or in the sections model, dataset and train of dipm, or data, optim, loss and
ckpt of templates; a nested schedule is one more. A section ``model`` without ``pretrained``
describes a network, and becomes the option ``network``, its fields as JSON text.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from dataloader.errors import InputError
from model_utils.settings.counterparts import OF_TEMPLATES, keys
from model_utils.settings.declared import declared, names_of
from model_utils.settings.taken import NETWORK, Asked

SECTIONS = ("model", "dataset", "train", *OF_TEMPLATES)
SCHEDULE = "scheduler"
CUTOFF = "graph_cutoff_angstrom"  # of the section dataset
SCIENTIFIC = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")  # which YAML takes for text


@dataclass(frozen=True, kw_only=True)
class _File:
    """A file of settings, as far as every key of it needs to know."""

    path: Path
    options: tuple[str, ...]  # names of the command's
    epochs: int
    notes: list[str]


def begins_with_a_model(settings: Mapping[str, Any]) -> bool:
    """Whether a file of settings names a model to begin with, so that its
    training is a fine-tuning.
    """
    section = settings.get("model")
    return isinstance(section, Mapping) and section.get("pretrained") is not None


def as_ours(
    settings: Mapping[str, Any], path: Path, kind: type, argv: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    """Settings by the names of our options, whatever names and sections a file has.

    Args:
        settings: of the file.
        path: of the file, for messages.
        kind: options of the command, a training.
        argv: of the command, whose flags win: shares of the epochs are those of its --epochs.

    Returns:
        The settings, with keys that nobody knows left as they are; and sentences on what was
        answered and not done.

    Raises:
        InputError: a value cannot be taken, or two keys say the same.
    """
    file = _File(path=path, options=names_of(kind), epochs=_epochs(settings, kind, argv), notes=[])
    ours: dict[str, Any] = {}
    network: dict[str, Any] = {}
    said_by: dict[str, str] = {}
    for key, part in _taken(settings, file):
        settings_of_key = {name: value for name, value in part.items() if name != NETWORK}
        for said, known in ((part.get(NETWORK, {}), network), (settings_of_key, ours)):
            _put(said, key, known, said_by, file)
    if begins_with_a_model(settings) and said_by.get("r_max") == CUTOFF:
        file.notes.append(
            f"{path}: {CUTOFF}: the cutoff is that of the pretrained model, "
            "whatever is written here"
        )
        del network["r_max"]
    _put_network(ours, network, settings, file)
    _take_along(argv, ours, said_by)
    return ours, file.notes


def _take_along(argv: Sequence[str], ours: dict[str, Any], said_by: Mapping[str, str]) -> None:
    """Give the second of two stages by shares the weights of the first, where flags give those.

    What is no number is judged elsewhere.
    """
    words = [word for argument in argv for word in argument.split("=", 1)]
    for quantity in ("energy", "forces"):
        second = f"stage_two_{quantity}_weight"
        for flag, value in pairwise(words):
            if flag == f"--{quantity}_weight" and said_by.get(second) == "stage_splits":
                with suppress(ValueError):
                    ours[second] = float(value)


def _taken(settings: Mapping[str, Any], file: _File) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every key with what it becomes; a key that is null says nothing."""
    for name, value in settings.items():
        if name in SECTIONS and isinstance(value, Mapping):
            yield from _of_section(name, value, file)
        elif name == SCHEDULE and isinstance(value, Mapping):
            yield from _of_schedule(value, file, str(file.path))
        else:
            yield from _of_key(name, value, "", settings, file)


def _of_section(
    section: str, content: Mapping[str, Any], file: _File
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, value in content.items():
        if name == SCHEDULE and isinstance(value, Mapping) and section == "train":
            yield from _of_schedule(value, file, f"section {section} of {file.path}")
        else:
            yield from _of_key(name, value, section, content, file)


def _of_schedule(
    content: Mapping[str, Any], file: _File, where: str
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    takes = keys(SCHEDULE)
    for name, value in content.items():
        if name in takes:
            asked = Asked(
                key=name,
                value=value,
                where=where,
                beside=content,
                epochs=file.epochs,
                notes=file.notes,
            )
            if value is not None:
                yield name, takes[name](asked)
        elif name in file.options:
            yield name, {name: value}
        else:
            raise InputError(
                f"unknown setting {name!r:.60} of scheduler in {where}; there are "
                f"{', '.join(takes)}"
            )


def _of_key(
    name: Any, value: Any, section: str, beside: Mapping[str, Any], file: _File
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    takes = keys(section if section in ("model", *OF_TEMPLATES) else None)
    where = f"section {section} of {file.path}" if section else str(file.path)
    is_ours = name in file.options and section != "model"
    # elsewhere a word stands there
    is_switch = is_ours and isinstance(value, bool) and name != "resume"
    if name in takes and not is_switch:
        if value is not None:
            asked = Asked(
                key=name,
                value=value,
                where=where,
                beside=beside,
                epochs=file.epochs,
                notes=file.notes,
            )
            yield str(name), takes[name](asked)
    elif section == "model":
        yield str(name), {NETWORK: {str(name): _with_numbers(value)}} if value is not None else {}
    elif section and not is_ours:
        near = [row for row in (*takes, *file.options) if row.lower() == str(name).lower()]
        hint = f"did you mean {near[0]}?" if near else "see docs/other_toolkits.md and --help"
        raise InputError(f"unknown setting {name!r:.60} in {where}; {hint}")
    else:
        yield str(name), {name: value}


def _put(
    part: Mapping[str, Any], key: str, known: dict[str, Any], said_by: dict[str, str], file: _File
) -> None:
    """Add what a key becomes to what is known; loggers add up.

    Raises:
        InputError: another key said something else of the same; names both.
    """
    for name, value in part.items():
        if name == "loggers" and name in known:
            value = [*known[name], *(word for word in value if word not in known[name])]
        elif name in known and known[name] != value:
            raise InputError(
                f"{said_by[name]} and {key} in {file.path} both say {name}; leave one of them out"
            )
        known[name] = value
        said_by[name] = key


def _put_network(
    ours: dict[str, Any], network: dict[str, Any], settings: Mapping[str, Any], file: _File
) -> None:
    """The fields of the network as an option, where the file describes one.

    Raises:
        InputError: it also names another one.
    """
    if not network:
        return
    fields = ", ".join(list(network)[:3])
    if "network" not in file.options or "input_model" in ours:
        if begins_with_a_model(settings):
            raise InputError(
                f"{file.path} gives {fields} beside pretrained, whose network stays; leave it out"
            )
        raise InputError(
            f"{file.path} describes a network ({fields}), and this command has one; leave it out"
        )
    if "input_json" in ours:
        raise InputError(
            f"{file.path} names input_json and describes a network ({fields}); leave "
            "one of the two out"
        )
    ours["network"] = json.dumps(network)


def _epochs(settings: Mapping[str, Any], kind: type, argv: Sequence[str]) -> int:
    """Epochs of the run: of the last flag, of the file, or by default.

    What is no number is judged elsewhere.
    """
    default = next((option.default for option in declared(kind) if option.name == "epochs"), 1)
    train = settings.get("train")
    content = {**settings, **(train if isinstance(train, Mapping) else {})}
    values = [content.get("epochs"), content.get("num_epochs")]
    words = [word for argument in argv for word in argument.split("=", 1)]
    values += [after for word, after in pairwise(words) if word == "--epochs"]
    for value in reversed(values):
        if str(value).isdecimal():
            return int(str(value))
    return int(default)


def _with_numbers(value: Any) -> Any:
    """A value with numbers like 1e-3, which YAML takes for text, as numbers."""
    if isinstance(value, Mapping):
        return {str(key): _with_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_numbers(item) for item in value]
    if isinstance(value, str) and SCIENTIFIC.fullmatch(value):
        return float(value)
    return value
