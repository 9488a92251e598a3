"""Structures of several sources by number, and parts of them: what is drawn, and what is set aside
for validation. Nothing of a model is known here.
"""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from dataloader.batching import Share, epoch_order
from dataloader.data_file import Source
from dataloader.errors import InputError
from dataloader.filters import OTHER_ELEMENT
from dataloader.structure import Structure

# beside the seed: another stream of random numbers than the orders of epochs have
SAMPLING = 1_000_003

Part = TypeVar("Part", bound="Selection")


class Selection:
    """Structures of one or several sources, by number.

    Args:
        sources: opened files.
        elements: atomic numbers to keep; structures with others are left out and
            counted. None keeps all.

    Attributes:
        sources: as given.
        places: (len, 2), source and structure in it.
        left_out: reasons for which structures are left out here, with their numbers.
    """

    def __init__(self, sources: Sequence[Source], elements: Sequence[int] | None = None) -> None:
        self.sources = list(sources)
        self._folders = _folders_to_tell_apart([source.path for source in sources])
        self.left_out: Counter[str] = Counter()
        kept = [self._kept(s, elements) for s in range(len(self.sources))]
        self.places = np.concatenate([np.zeros((0, 2), np.int32), *kept])

    def _kept(self, s: int, elements: Sequence[int] | None) -> NDArray[np.int32]:
        """Places of the structures of one source that are made of some elements; looks at values,
        not at every structure.
        """
        source = self.sources[s]
        usable = np.ones(len(source), dtype=bool)
        if elements is not None:
            usable &= source.elements.within(elements)
            if not usable.all():
                self.left_out[OTHER_ELEMENT] += int((~usable).sum())
        rows = np.nonzero(usable)[0].astype(np.int32)
        return np.stack([np.full_like(rows, s), rows], axis=1)

    def __len__(self) -> int:
        return len(self.places)

    def _by_place(self, columns: Sequence[NDArray[np.integer]]) -> NDArray[np.int64]:
        values = np.zeros(len(self), dtype=np.int64)
        for s, column in enumerate(columns):
            mine = self.places[:, 0] == s
            values[mine] = column[self.places[mine, 1]]
        return values

    def structure(self, i: int) -> Structure:
        """The i-th structure."""
        s, local = self.places[i]
        return self.sources[s].structure(int(local))

    def in_memory(self, i: int) -> bool:
        """Whether the i-th structure is read without touching the disk."""
        return self.sources[self.places[i][0]].in_memory

    def name(self, i: int) -> str:
        """A name under which a person finds the i-th structure again."""
        s, local = self.places[i]
        return self._folders[s] + self.sources[s].identifier(int(local))

    def names(self, indices: Sequence[int], shown: int = 5) -> str:
        """Names of several structures for a message, the first few of many."""
        more = f" and {len(indices) - shown} more" if len(indices) > shown else ""
        return ", ".join(self.name(i) for i in indices[:shown]) + more

    def shares(self) -> tuple[NDArray[np.int64], list[Share]]:
        """The structures of which an epoch has all, and for every source with a ratio
        how many it takes of it.
        """
        return shares_of([source.ratio for source in self.sources], self.places[:, 0])

    def subset(self: Part, indices: NDArray[np.int64]) -> Part:
        """Only the structures of these numbers, in this order; what was read of them is shared."""
        part = object.__new__(type(self))
        part.__dict__.update(self.__dict__)
        part.places = self.places[indices]
        return part


def _folders_to_tell_apart(paths: Sequence[Path]) -> list[str]:
    """What is put before the names of structures of each file: its folder, where several files
    have one name.
    """
    distinct = Counter(path.name for path in set(paths))
    return [f"{path.parent}{os.sep}" if distinct[path.name] > 1 else "" for path in paths]


def sample(dataset: Part, n: int, seed: int) -> Part:
    """``n`` structures of the LMDBs and all others, in their order; which, is a pure
    function of (seed, counts).

    A source with a ratio stays whole.

    Raises:
        InputError: there are fewer.
    """
    whole = [source.in_memory or source.ratio is not None for source in dataset.sources]
    kept = np.array(whole, dtype=bool)[dataset.places[:, 0]]
    rows = np.nonzero(~kept)[0]
    if n > len(rows):
        raise InputError(
            f"{n} samples were asked for, but the LMDBs have {len(rows)} that can be "
            "used; ask for fewer"
        )
    chosen = np.random.default_rng([seed, SAMPLING]).choice(rows, n, replace=False, shuffle=False)
    return dataset.subset(np.sort(np.concatenate([np.nonzero(kept)[0], chosen])))


def split(dataset: Part, fraction: float, seed: int) -> tuple[Part, Part]:
    """Split off a share for validation: a permutation by ``seed`` alone, both parts kept
    in their original order.

    Of a source with a ratio as many are set aside as the ratio says, so that validation has an
    epoch's mixture; but no larger share than of the others.

    Raises:
        InputError: one of the two parts would be empty.
    """
    train, valid = set_aside(*dataset.shares(), fraction, seed)
    return dataset.subset(train), dataset.subset(valid)


def shares_of(
    ratios: Sequence[float | None], owners: NDArray[np.integer]
) -> tuple[NDArray[np.int64], list[Share]]:
    """The structures of which an epoch has all, and for every source with a ratio how many
    it takes of it.

    Args:
        ratios: of each source; None of one that is taken whole.
        owners: (n_structures,), the source of each structure.
    """
    has_ratio = np.array([ratio is not None for ratio in ratios], dtype=bool)[owners]
    own = np.nonzero(~has_ratio)[0]
    shares = []
    for s, ratio in enumerate(ratios):
        rows = np.nonzero(owners == s)[0]
        if ratio is not None and len(rows):
            shares.append(Share(rows=rows, taken=max(round(ratio * len(own)), 1)))
    return own, shares


def set_aside(
    own: NDArray[np.int64], shares: Sequence[Share], fraction: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which structures train and which validate, in their order; the arguments are those of
    ``split``, with what ``shares_of`` gives.

    Raises:
        InputError: one of the two parts would be empty.
    """
    n_valid = round(fraction * len(own))
    if not 0 < n_valid < len(own):
        raise InputError(
            f"--valid_fraction {fraction:g} of {len(own)} structures leaves {n_valid} "
            f"for validation and {len(own) - n_valid} for training; give a validation "
            "file or another share"
        )
    parts = [(own, n_valid)]
    for share in shares:
        parts.append(
            (
                share.rows,
                min(round(fraction * len(share.rows)), round(n_valid * share.taken / len(own))),
            )
        )
    train = []
    valid = []
    for rows, n in parts:
        order = epoch_order(len(rows), seed, epoch=0)
        train.append(rows[order[n:]])
        valid.append(rows[order[:n]])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(valid))
