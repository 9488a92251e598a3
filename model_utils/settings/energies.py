"""Reference energies that a user gives: JSON by element, a file of isolated atoms, or
a published linear fit.
"""

import ast
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dataloader import input_files, plain_json
from dataloader.atomic_energies import read_isolated
from dataloader.errors import InputError
from dataloader.labels import LabelKeys
from dataloader.limits import MODEL_JSON_BYTES
from dataloader.structure import symbols
from model_utils.models import description as model_json

LONGEST_TEXT = 10_000  # letters of energies that are no JSON; every element takes 20
FORMS = (
    "a file of isolated atoms (.xyz), or JSON like '{\"H\": -13.6}', by head "
    "where they have several"
)


@dataclass(frozen=True)
class GivenEnergies:
    """E0s in eV by atomic number, for every head and for single ones."""

    for_all: Mapping[int, float] = field(default_factory=dict)
    by_head: Mapping[str, Mapping[int, float]] = field(default_factory=dict)

    def of(self, head: str) -> dict[int, float]:
        """E0s of one head, eV by atomic number; what is given for it goes before
        what is given for all.
        """
        return {**self.for_all, **self.by_head.get(head, {})}

    @property
    def elements(self) -> set[int]:
        """All elements that are named."""
        return {*self.for_all, *(z for values in self.by_head.values() for z in values)}

    def refuse_other_heads(self, heads: Sequence[str], flag: str) -> None:
        """Raise InputError where energies are given for a head that there is not."""
        unknown = sorted(set(self.by_head) - set(heads))
        if unknown:
            raise InputError(
                f"{flag} names head {unknown[0]!r}, but the heads are {', '.join(heads)}"
            )


def given_energies(
    text: str, words: str, keys: LabelKeys, flag: str | None = None
) -> GivenEnergies:
    """E0s from JSON text, a JSON file or an extended-XYZ file of isolated atoms.

    Args:
        text: the JSON, or the name of a file.
        words: what else the flag takes, for messages.
        keys: names of the labels in an xyz.
        flag: the flag as it was given, for messages; ``--E0s`` unless given.

    Raises:
        InputError: it is none of these, nor one of the words.
    """
    flag = flag or f"--E0s {text if len(text) <= 200 else text[:40] + '…'}"
    is_text = text.lstrip().startswith("{")
    if not is_text and not os.path.isfile(text):
        there = "that is no regular file" if os.path.exists(text) else "there is no such file"
        raise InputError(f"{flag}: {there}; expected {words}, {FORMS}")
    if not is_text and Path(text).suffix.lower() in (".xyz", ".extxyz"):
        by_head = read_isolated(Path(text), keys)
        return GivenEnergies(by_head.pop("", {}), by_head)
    try:
        given = _written_out(text) if is_text else _in_file(Path(text))
        nested = {
            head: _by_number(values) for head, values in given.items() if isinstance(values, dict)
        }
        energies = GivenEnergies({} if nested else _by_number(given), nested)
        if nested and len(nested) != len(given):
            raise ValueError("some energies are by head and some are not")
    except (OSError, ValueError, AttributeError, TypeError, OverflowError) as error:
        raise InputError(f"{flag}: {error!s:.120}; expected {words}, {FORMS}") from None
    of_heads = [energy for row in energies.by_head.values() for energy in row.values()]
    if not np.isfinite([*energies.for_all.values(), *of_heads]).all():
        raise InputError(f"{flag}: an energy is not finite")
    return energies


def _in_file(path: Path) -> Any:
    """Energies of a JSON file, or those of a statistics.json of mace_prepare_data."""
    content = plain_json.loads(input_files.read_text(path, MODEL_JSON_BYTES))
    of_statistics = content.get("atomic_energies") if isinstance(content, dict) else None
    return _written_out(of_statistics) if isinstance(of_statistics, str) else content


def _written_out(text: str) -> Any:
    """Energies as JSON, or as mace_run_train takes them: ``{1: -13.6, 8: -430.0}``.

    Raises:
        ValueError: the text is neither.
    """
    try:
        return plain_json.loads(text)
    except ValueError as error:
        given = None
        # the others are JSON, with something in it that is not to be
        if isinstance(error, json.JSONDecodeError) and len(text) < LONGEST_TEXT:
            given = python_literal(text)
        if isinstance(given, dict) and all(
            isinstance(value, int | float) for value in given.values()
        ):
            return given
        raise ValueError(str(error)) from None


def python_literal(text: str) -> object:
    """A dictionary, a list or a number as Python writes it out; None where the text is none, or
    a dictionary names a key twice.
    """
    try:
        body = ast.parse(text.strip(), mode="eval").body
        given = ast.literal_eval(body)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return None
    is_unique = not isinstance(body, ast.Dict) or len(body.keys) == len(given)
    return given if is_unique else None


def _by_number(given: Mapping[str, object]) -> dict[int, float]:
    """Energies by atomic number, where the user has symbols or numbers."""
    energies = {model_json.number_of(str(key)): float(value) for key, value in given.items()}  # type: ignore[arg-type]
    if len(energies) < len(given):
        raise ValueError("an element stands twice, by symbol and by number")
    return energies


def linear_references(path: Path, elements: Sequence[int]) -> dict[int, float]:
    """Reference energies of a linear fit: by element, or a list whose
    position is the atomic number.

    Raises:
        InputError: the file is something else, or lacks an element.
    """
    try:
        given = plain_json.loads(input_files.read_text(path, MODEL_JSON_BYTES))
    except (OSError, ValueError) as error:
        raise InputError(
            f"--linear_references {path}: {error}; expected JSON of energies by element"
        ) from None
    if isinstance(given, list):
        given = {str(z): energy for z, energy in enumerate(given) if z and energy is not None}
    if not isinstance(given, dict):
        raise InputError(
            f"--linear_references {path} holds a {type(given).__name__}, expected "
            "energies by element"
        )
    flag = f"--linear_references {path}"
    values = given_energies(json.dumps(given), "energies by element", LabelKeys(), flag)
    if values.by_head:
        raise InputError(f"{flag} holds energies by head, expected one for each element")
    return energies_for(elements, values.for_all, flag)


def energies_for(
    elements: Sequence[int], given: Mapping[int, float], flag: str
) -> dict[int, float]:
    """The given energy of every element, eV by atomic number; an element without one is an error.

    Args:
        elements: atomic numbers.
        given: eV by atomic number, perhaps of further elements.
        flag: as the user gave it, for the message.

    Raises:
        InputError: naming the elements that have none.
    """
    missing = [z for z in elements if z not in given]
    if missing:
        raise InputError(f"{flag} gives none for {symbols(missing)}")
    return {z: given[z] for z in elements}
