"""Which structures go where: train pool, validation and test without anything of one in another."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dataloader.errors import InputError

LEFT_OUT = -1


@dataclass(frozen=True)
class Assignment:
    """To which split every row goes, and which rows are left out for what reason."""

    names: tuple[str, ...]
    split: NDArray[np.int8]  # (n,), into names; LEFT_OUT
    left_out: Mapping[str, NDArray[np.int64]]  # reason: rows


def assign(
    belongs: NDArray[np.int64],
    listed: Mapping[str, NDArray[np.bool_]],
    shares: Mapping[str, float],
    seed: int,
) -> Assignment:
    """Give every row to a split; what belongs together never lies in two.

    Args:
        belongs: (n,) component of each row.
        listed: rows that an ID file names for a split.
        shares: of the rest, for each split; they add up to one.
        seed: of the order in which components are given to splits.

    Raises:
        InputError: two files name records that belong together.
    """
    names = tuple(dict.fromkeys([*shares, *listed]))
    split = np.full(len(belongs), LEFT_OUT, dtype=np.int8)
    owner = np.full(len(belongs), LEFT_OUT, dtype=np.int8)  # of a component, at its number
    left_out: dict[str, NDArray[np.int64]] = {}
    for name, rows in listed.items():
        number = names.index(name)
        taken = np.unique(belongs[rows])
        clash = taken[(owner[taken] != LEFT_OUT) & (owner[taken] != number)]
        if len(clash):
            other = names[owner[clash[0]]]
            raise InputError(
                f"the ID files of {other} and {name} name records that are the same structure, "
                f"identifier or group ({len(clash)} such sets); take them out of one of the files"
            )
        owner[taken] = number
        split[rows] = number
    held = (owner[belongs] != LEFT_OUT) & (split == LEFT_OUT)
    if held.any():
        left_out["the same structure, identifier or group as a record of an ID file"] = np.nonzero(
            held
        )[0]
    free = (owner[belongs] == LEFT_OUT) & (split == LEFT_OUT)
    _split_free_rows(split, belongs, free, names, shares, seed)
    return Assignment(names, split, left_out)


def _split_free_rows(
    split: NDArray[np.int8],
    belongs: NDArray[np.int64],
    free: NDArray[np.bool_],
    names: Sequence[str],
    shares: Mapping[str, float],
    seed: int,
) -> None:
    """Components in random order, cut where the shares of rows are reached."""
    rows = np.nonzero(free)[0]
    if not len(rows):
        return
    components, numbers, sizes = np.unique(belongs[rows], return_inverse=True, return_counts=True)
    order = np.random.default_rng([seed, 0]).permutation(len(components))
    middle = np.cumsum(sizes[order]) - sizes[order] / 2
    ends = np.cumsum(list(shares.values())) * len(rows)
    number_of_share = np.zeros(len(components), dtype=np.int64)
    number_of_share[order] = np.minimum(np.searchsorted(ends, middle, side="left"), len(shares) - 1)
    split[rows] = np.array([names.index(name) for name in shares], dtype=np.int8)[number_of_share][
        numbers
    ]


def parse_shares(words: Sequence[str]) -> dict[str, float]:
    """``train=0.8 valid=0.1 test=0.1`` as numbers.

    Raises:
        InputError: a word is no share, or they do not add up to one.
    """
    shares: dict[str, float] = {}
    for word in words:
        name, _, value = word.partition("=")
        try:
            share = float(value)
        except ValueError:
            share = -1.0
        if not name.isidentifier() or not 0 < share <= 1 or name in shares:
            raise InputError(
                f"--split {word} is no share; expected for example train=0.8 valid=0.1 test=0.1"
            )
        shares[name] = share
    if shares and abs(sum(shares.values()) - 1) > 1e-9:
        raise InputError(f"the shares of --split add up to {sum(shares.values()):g}, expected 1")
    return shares
