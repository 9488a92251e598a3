"""The split of surveyed structures, and what is said of it: repeats, what is left
out, how many go where.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataloader.data_file import Source
from dataloader.errors import InputError
from dataloader.packed.duplicates import components, hashed
from dataloader.packed.recipe import PackingRecipe
from dataloader.packed.splitting import Assignment, assign
from dataloader.packed.survey import Survey

SHOWN = 5


def split_survey(
    survey: Survey, sources: Sequence[Source], recipe: PackingRecipe
) -> tuple[Assignment, dict[str, Any]]:
    """The split of every structure, and the report on it; its ``lines`` are for the log.

    Raises:
        InputError: an ID file names what is not there, two of them name what belongs together,
            or nothing falls to a split.
    """

    def name(row: int) -> str:
        return sources[survey.source[row]].identifier(int(survey.row[row]))

    belongs = components([survey.geometry, survey.identifier, survey.group])
    listed = {
        split: _listed(survey.identifier, ids, split, recipe.id_key)
        for split, ids in recipe.listed.items()
        if ids
    }
    shares = recipe.shares or {"train": 1.0}
    assignment = assign(belongs, listed, shares, recipe.seed)
    same = components([survey.geometry])
    repeated = np.nonzero(same != np.arange(len(same)))[0]
    sets = np.unique(same[repeated])
    lines = [
        f"{len(repeated)} structures repeat {len(sets)} others: {_pairs(same, repeated, name)}"
    ]
    if not len(repeated):
        lines = ["no structure repeats another"]
    if recipe.drop_duplicates and len(repeated):
        gone = repeated[assignment.split[repeated] != -1]
        assignment.split[gone] = -1
        lines.append(f"{len(gone)} repeated structures are left out")
    for reason, rows in assignment.left_out.items():
        lines.append(f"{len(rows)} left out: {reason} ({', '.join(map(name, rows[:SHOWN]))})")
    counts = {
        split: int((assignment.split == number).sum())
        for number, split in enumerate(assignment.names)
    }
    for split, count in counts.items():
        if not count:
            raise InputError(_why_empty(split, belongs, name))
    lines += [f"{split}: {count} structures" for split, count in counts.items()]
    shown = [[name(int(same[row])), name(int(row))] for row in repeated[:1000]]
    report = {
        "structures": counts,
        "repeated": len(repeated),
        "repeated_pairs": shown,
        "lines": lines,
    }
    report["leaks"] = _leaks(belongs, assignment.split)
    return assignment, report


def _why_empty(split: str, belongs: NDArray[np.int64], name: Callable[[int], str]) -> str:
    """Why no structure fell to a split, and what to do."""
    if not len(belongs):
        return f"no structure is left for {split}: all are left out by filters, or there are none"
    sizes = np.bincount(belongs)
    largest = int(np.argmax(sizes))
    if sizes[largest] == 1:
        return f"no structure falls to {split}; give it a larger share, or leave it out"
    return (
        f"no structure falls to {split}: repeats, and structures of one --id_key or --group_key, "
        f"stay together, and {sizes[largest]} of the {len(belongs)} structures are one such set "
        f"({name(largest)} is in it); choose another --group_key, give {split} a larger share, or "
        "leave it out"
    )


def _pairs(same: NDArray[np.int64], repeated: NDArray[np.int64], name: Callable[[int], str]) -> str:
    shown = ", ".join(f"{name(int(row))} = {name(int(same[row]))}" for row in repeated[:SHOWN])
    return shown + (" …" if len(repeated) > SHOWN else "")


def _listed(
    identifiers: NDArray[np.uint64], ids: frozenset[str], split: str, id_key: str | None
) -> NDArray[np.bool_]:
    wanted = np.array(sorted(hashed(name.encode()) for name in ids), dtype=np.uint64)
    rows = np.isin(identifiers, wanted)
    missing = len(wanted) - len(np.unique(identifiers[rows]))
    if missing:
        raise InputError(
            f"{missing} of the {len(wanted)} identifiers of the ID file of {split} are no {id_key} "
            "of any record; are they of these data, one on each line?"
        )
    return rows


def _leaks(belongs: NDArray[np.int64], split: NDArray[np.int8]) -> int:
    """Components that lie in two splits; none, by construction: counted again to be sure."""
    used = split != -1
    pairs = np.unique(np.stack([belongs[used], split[used].astype(np.int64)]), axis=1)
    return int(pairs.shape[1] - len(np.unique(pairs[0])))
