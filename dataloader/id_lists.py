"""Lists of identifiers in files, one on each line, and which structures they name."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dataloader import input_files
from dataloader.errors import InputError
from dataloader.packed.duplicates import fingerprint, hashed
from dataloader.packed.survey import name_in
from dataloader.progress import log, over
from dataloader.selection import Selection

MAX_BYTES = 8 * 2**30  # of a list
SHOWN = 5
Hashes = NDArray[np.uint64]


@dataclass(frozen=True, kw_only=True)
class IdList:
    """The identifiers of a file.

    Attributes:
        flag: that names the file, for messages.
        path: the file.
        ids: each once, in the order of the file.
        n_repeated: identifiers that stand in it more than once.
    """

    flag: str
    path: Path
    ids: tuple[str, ...]
    n_repeated: int


def read(path: Path, flag: str) -> IdList:
    """The identifiers of a file, one on each line; spaces around them and empty lines mean nothing.

    Raises:
        InputError: it cannot be read or holds none.
    """
    try:
        lines = input_files.read_text(path, MAX_BYTES).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(
            f"cannot read {flag} {path}: {why}; expected one identifier on each line"
        ) from None
    counts = Counter(line.strip() for line in lines if line.strip())
    if not counts:
        raise InputError(f"{flag} {path} is empty; expected one identifier on each line")
    n_repeated = sum(count > 1 for count in counts.values())
    return IdList(flag=flag, path=path, ids=tuple(counts), n_repeated=n_repeated)


def require_apart(lists: Sequence[IdList]) -> None:
    """Refuse an identifier in two lists.

    Raises:
        InputError: naming the first ones.
    """
    for number, first in enumerate(lists):
        for second in lists[number + 1 :]:
            both = sorted(set(first.ids).intersection(second.ids))
            if both:
                more = f" and {len(both) - SHOWN} more" if len(both) > SHOWN else ""
                raise InputError(
                    f"{first.flag} {first.path} and {second.flag} {second.path} both name "
                    f"{', '.join(both[:SHOWN])}{more}; take each out of one of the files, or the "
                    "model is judged by what it was trained on"
                )


class Looked(NamedTuple):
    """What a look at every structure of a data set tells, each (n,); 0 where there is nothing."""

    identifier: Hashes
    geometry: Hashes
    group: Hashes


def look(data: Selection, id_key: str, group_key: str | None) -> Looked:
    """Look at every structure of a data set once.

    Args:
        data: opened with both names among those that are kept.
        id_key: name of the records' identifier.
        group_key: name of an entry that records of one group share.

    Raises:
        InputError: a record has none of that name.
    """
    columns = np.zeros((3, len(data)), dtype=np.uint64)
    for i in over(range(len(data)), "identifiers", len(data)):
        structure = data.structure(i)
        columns[0, i] = hashed(name_in(structure, id_key).encode())
        columns[1, i] = fingerprint(structure)
        if group_key is not None:
            columns[2, i] = hashed(name_in(structure, group_key).encode())
    return Looked(*columns)


def rows_named(listed: IdList, looked: Looked, id_key: str, n_left_out: int) -> NDArray[np.bool_]:
    """Which structures a list names, (n,).

    What it names besides may be records that are not used, whose names nobody knows; a warning
    says how many and which.

    Args:
        listed: the list.
        looked: at the structures it speaks of.
        id_key: name of the identifier.
        n_left_out: records of their files that are not used, which the list may name too.

    Raises:
        InputError: it names what is not there.
    """
    wanted = np.array([hashed(name.encode()) for name in listed.ids], dtype=np.uint64)
    absent = np.nonzero(~np.isin(wanted, looked.identifier))[0]
    if len(absent):
        names = ", ".join(listed.ids[i] for i in absent[:SHOWN])
        more = f" and {len(absent) - SHOWN} more" if len(absent) > SHOWN else ""
        absence = (
            f"{listed.flag} {listed.path}: {len(absent)} of its {len(wanted)} identifiers are no "
            f"{id_key} of any record that is used ({names}{more})"
        )
        if len(absent) > n_left_out:
            raise InputError(f"{absence}; are they of these data, one on each line?")
        log.warning(
            "warning: %s; %d records of the files are not used: are these among them?",
            absence,
            n_left_out,
        )
    return np.isin(looked.identifier, wanted)


def across(
    parts: Mapping[str, Hashes],
) -> dict[tuple[str, str], tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Rows of two parts that agree in a column, for each pair of parts that has some: of the
    one, and of the other.
    """
    shared = {}
    names = list(parts)
    for number, first in enumerate(names):
        for second in names[number + 1 :]:
            both = np.intersect1d(parts[first], parts[second])
            both = both[both != 0]
            if len(both):
                rows = (np.isin(parts[name], both).nonzero()[0] for name in (first, second))
                shared[first, second] = (next(rows), next(rows))
    return shared
