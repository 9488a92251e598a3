"""Values of a record's entries as arrays, and the error that says which entry cannot be one."""

import numpy as np
from numpy.typing import NDArray

from dataloader.labels import LabelError
from dataloader.names import Entries

ABSENT_TEXTS = {"", "none", "null", "nan", "n/a"}


class RecordError(LabelError):
    """A record cannot be read as a structure; the reader adds file and frame or key."""


def is_absent(value: object) -> bool:
    """None, and the texts that programs write for it."""
    return value is None or (isinstance(value, str) and value.strip().casefold() in ABSENT_TEXTS)


def first_present(entries: Entries, names: tuple[str, ...]) -> str | None:
    """The first of some names, in any case, that a record has; None where it has none."""
    present = entries.present(names)
    return present[0] if present else None


def numeric(entries: Entries, name: str) -> NDArray[np.float64]:
    """An entry as floats, in whatever shape it is stored.

    Raises:
        RecordError: it holds something else than numbers.
    """
    try:
        return np.asarray(entries[name]).astype(np.float64)
    except (TypeError, ValueError):
        raise RecordError(f"{name} is not an array of numbers") from None


def any_array(stored: object, name: str) -> NDArray[np.generic]:
    """A stored value as an array of whatever type it has.

    Raises:
        RecordError: its rows have different lengths.
    """
    try:
        return np.asarray(stored)
    except ValueError:
        raise RecordError(f"{name} is a ragged list") from None


def are_truths(values: NDArray[np.generic]) -> bool:
    """Whether all are 0 or 1; of tensors that were made floats, too."""
    return values.dtype.kind == "b" or bool(((values == 0) | (values == 1)).all())
