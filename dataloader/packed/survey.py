"""One look at every structure that is to be packed: what tells which are the
same or belong together.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dataloader.data_file import Source
from dataloader.errors import InputError
from dataloader.packed.duplicates import fingerprint, hashed
from dataloader.packed.recipe import PackingRecipe
from dataloader.parts import Columns, Parts
from dataloader.portion import Portion
from dataloader.structure import Structure

ROWS_AT_ONCE = 2000
MOST_SLICES = 5000  # files of one look; more structures make larger slices
COLUMNS = ("geometry", "identifier", "group")


class Survey(NamedTuple):
    """What is known of every structure after one look."""

    source: NDArray[np.int32]
    row: NDArray[np.int64]  # in its source
    geometry: NDArray[np.uint64]
    identifier: NDArray[np.uint64]  # hashed; 0 where there is none
    group: NDArray[np.uint64]


class _Slice(NamedTuple):
    source: int
    begin: int
    end: int


class Look:
    """One look at every structure, slice by slice; what was seen of a slice lies in a file.

    Args:
        sources: opened.
        recipe: names the entries that are identifier and group.
        folder: where the files of the slices lie.
        made_for: what they depend on; see ``Parts``.
    """

    def __init__(
        self, sources: Sequence[Source], recipe: PackingRecipe, folder: Path, made_for: str
    ) -> None:
        self._sources = sources
        self._recipe = recipe
        rows = max(ROWS_AT_ONCE, -(-sum(map(len, sources)) // MOST_SLICES))
        self._parts = Parts(folder, "look", f"{made_for} {rows}")
        self._slices = [
            _Slice(s, begin, min(begin + rows, len(source)))
            for s, source in enumerate(sources)
            for begin in range(0, len(source), rows)
        ]

    def make(self, portion: Portion) -> None:
        """Look at the slices of a share that nobody has looked at yet, in parallel.

        Raises:
            InputError: a structure has no identifier or group where its name was given, or a
                slice cannot be written.
        """
        numbers = portion.of(range(len(self._slices)))
        sizes = {
            number: self._slices[number].end - self._slices[number].begin for number in numbers
        }
        look = partial(_look, slices=self._slices, sources=self._sources, recipe=self._recipe)
        self._parts.make(numbers, look, "look through", sizes)

    def absent(self) -> list[int]:
        """Numbers of the slices of which there is no file; a quick look."""
        return self._parts.absent(range(len(self._slices)))

    def missing(self) -> list[int]:
        """Numbers of the slices that are still to be looked at: there is no
        file, or it is damaged.
        """
        return self._parts.missing(range(len(self._slices)))

    def survey(self) -> Survey | None:
        """What all slices say, whoever looked at them; None where one is not there."""
        lengths = [len(source) for source in self._sources]
        columns = np.zeros((len(COLUMNS), sum(lengths)), dtype=np.uint64)
        first = np.concatenate([[0], np.cumsum(lengths)])
        for number, part in enumerate(self._slices):
            seen = self._parts.read(number)
            if seen is None:
                return None
            begin = first[part.source] + part.begin
            columns[:, begin : begin + part.end - part.begin] = [seen[name] for name in COLUMNS]
        return Survey(
            np.repeat(np.arange(len(lengths), dtype=np.int32), lengths),
            np.concatenate([np.arange(n) for n in lengths]),
            *columns,
        )


def _look(
    number: int, slices: Sequence[_Slice], sources: Sequence[Source], recipe: PackingRecipe
) -> Columns:
    """Fingerprint, identifier and group of the structures of a slice."""
    part = slices[number]
    numbers = np.zeros((len(COLUMNS), part.end - part.begin), dtype=np.uint64)
    for column, row in enumerate(range(part.begin, part.end)):
        structure = sources[part.source].structure(row)
        numbers[0, column] = fingerprint(structure)
        for line, name in ((1, recipe.id_key), (2, recipe.group_key)):
            if name is not None:
                numbers[line, column] = hashed(name_in(structure, name).encode())
    return dict(zip(COLUMNS, numbers, strict=True))


def name_in(structure: Structure, key: str) -> str:
    """Identifier or group of a structure.

    Raises:
        InputError: its record has none.
    """
    if key not in structure.extra:
        raise InputError(
            f"{structure.identifier}: {key} is missing or neither one number nor a "
            "text; name another key"
        )
    return str(structure.extra[key])
