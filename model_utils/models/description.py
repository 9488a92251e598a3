"""model.json: the structure of a network and nothing else, read, checked, and known by its hash.

``model_class`` decides which family's fields it has (``architecture.ARCHITECTURES``).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dataloader import input_files, plain_json
from dataloader.errors import InputError
from dataloader.limits import MODEL_JSON_BYTES
from model_utils.models import schema
from model_utils.models.architecture import ARCHITECTURES, USUAL, refuse_elsewhere
from model_utils.models.schema import ModelDescription, number_of


def class_of(fields: Any) -> type[ModelDescription]:
    """The description of the family that the fields name; the usual family's where they
    name none that is known.
    """
    name = fields.get("model_class")
    known = isinstance(name, str) and name in ARCHITECTURES
    return ARCHITECTURES[name if known else USUAL].description


def scales_energies(fields: Any) -> bool:
    """Whether a model.json with these fields has a scale and a shift, which
    ``metadata.py`` computes from data.
    """
    return class_of(fields).scales_energies(fields.get("model_class", USUAL))


def has_energies(fields: Any) -> bool:
    """Whether the network of a model.json with these fields gives energies."""
    return class_of(fields).has_energies(fields.get("model_class", USUAL))


def parse(text: str, where: str) -> ModelDescription:
    """A checked description from the text of a model.json.

    Args:
        text: JSON; numbers may be whole where the field is real, unknown and
            duplicate keys are refused.
        where: file name for the message.

    Raises:
        InputError: with the file, the field, what was found and what was expected.
    """
    fields = _load_json(text, where)
    refuse_elsewhere(fields.get("model_class"), where)
    description: ModelDescription = schema.checked(
        fields, class_of(fields), where, list(ARCHITECTURES)
    )
    return description


def _load_json(text: str, where: str) -> dict[str, Any]:
    """The object that a text is, with every key once and without NaN or infinity."""
    if len(text) > MODEL_JSON_BYTES:
        raise InputError(
            f"{where} has {len(text)} bytes, far more than any model.json (limit "
            f"{MODEL_JSON_BYTES})"
        )
    try:
        value = plain_json.loads(text, _no_constant)
    except ValueError as error:
        raise InputError(f"{where} is not a model.json: {error}") from None
    if not isinstance(value, dict):
        raise InputError(
            f"{where} is not a model.json: expected an object {{…}}, found {type(value).__name__}"
        )
    return value


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number of a model.json")


def read(path: Path) -> ModelDescription:
    """A checked description from a model.json file.

    Raises:
        InputError: the file cannot be read or does not describe a model.
    """
    return parse(_read_text(path), str(path))


def load_fields(path: Path) -> dict[str, Any]:
    """The fields of a file that need not be complete yet; names are checked, values later.

    Raises:
        InputError: the file cannot be read, or has a field that model.json has not.
    """
    fields = _load_json(_read_text(path), str(path))
    refuse_elsewhere(fields.get("model_class"), str(path))
    kind = class_of(fields)
    for name in fields:
        if name not in kind.model_fields:
            raise InputError(f"{path}: {schema.unknown(name, kind)}")
    return fields


def _read_text(path: Path) -> str:
    try:
        return input_files.read_bytes(path, MODEL_JSON_BYTES).decode("utf-8")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; expected a model.json") from None
    except UnicodeDecodeError:
        raise InputError(
            f"{path} is not text; expected a model.json (to get one from weights: "
            "read_model.py export)"
        ) from None


def differing_fields(first: ModelDescription, second: ModelDescription) -> Sequence[str]:
    """Names of the fields in which two descriptions differ, with both values; of another
    class, some are absent.
    """
    a = first.model_dump()
    b = second.model_dump()
    differing = [name for name in sorted({**a, **b}) if a.get(name, ...) != b.get(name, ...)]
    return [f"{name}: {_shown(a, name)} against {_shown(b, name)}" for name in differing]


def _shown(fields: Mapping[str, object], name: str) -> str:
    return f"{fields[name]!r:.60}" if name in fields else "absent"


__all__ = [
    "ModelDescription",
    "class_of",
    "differing_fields",
    "has_energies",
    "load_fields",
    "number_of",
    "parse",
    "read",
    "scales_energies",
]
