"""Reference energies that a user gives: JSON by element, or a linear fit as OC20 and OMat24 publish it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dataloader.errors import InputError
from dataloader.structure import symbols
from model_utils.models import description as model_json


def given_energies(text: str, words: str, flag: str | None = None) -> dict[int, float]:
    """E0s from JSON text or a JSON file: a mapping by element, as atomic number → eV.

    Args:
        text: the JSON, or the name of its file.
        words: what else the flag takes, for messages.
        flag: the flag as it was given, for messages; ``--E0s`` unless given.

    Raises:
        InputError: it is neither JSON of that kind nor one of the words.
    """
    flag = flag or f"--E0s {text[:40]}"
    try:
        given = json.loads(Path(text).read_text(encoding="utf-8") if not text.lstrip().startswith("{") else text)
        values = {model_json.number_of(str(key)): float(value) for key, value in given.items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise InputError(f"{flag}: {error}; expected {words}, or JSON like '{{\"H\": -13.6}}'") from None
    if not np.isfinite(list(values.values())).all():
        raise InputError(f"{flag}: an energy is not finite")
    return values


def linear_references(path: Path, elements: Sequence[int]) -> dict[int, float]:
    """Reference energies of a linear fit: by element, or a list whose position is the atomic number.

    Raises:
        InputError: the file is something else, or lacks an element.
    """
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"--linear_references {path}: {error}; expected JSON of energies by element") from None
    if isinstance(given, list):
        given = {str(z): energy for z, energy in enumerate(given) if z and energy is not None}
    if not isinstance(given, dict):
        raise InputError(f"--linear_references {path} holds a {type(given).__name__}, expected energies by element")
    flag = f"--linear_references {path}"
    return of_all(given_energies(json.dumps(given), "energies by element", flag), elements, flag)


def of_all(given: Mapping[int, float], elements: Sequence[int], flag: str) -> dict[int, float]:
    """Those of the elements.

    Raises:
        InputError: naming the elements that have none.
    """
    missing = [z for z in elements if z not in given]
    if missing:
        raise InputError(f"{flag} gives none for {symbols(missing)}")
    return {z: given[z] for z in elements}
