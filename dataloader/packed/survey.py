"""One look at every structure that is to be packed: what tells which are the same or belong together."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dataloader import parallel
from dataloader.data_file import Source
from dataloader.errors import InputError
from dataloader.packed.duplicates import fingerprint, hashed
from dataloader.packed.recipe import PackingRecipe
from dataloader.progress import ProgressBar
from dataloader.structure import Structure

ROWS_AT_ONCE = 2000


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


def survey_of(sources: Sequence[Source], recipe: PackingRecipe) -> Survey:
    """Look at every structure of the sources, in parallel.

    Raises:
        InputError: a structure has no identifier or group where its name was given.
    """
    slices = [
        _Slice(s, begin, min(begin + ROWS_AT_ONCE, len(source)))
        for s, source in enumerate(sources)
        for begin in range(0, len(source), ROWS_AT_ONCE)
    ]
    total = sum(map(len, sources))
    columns = np.zeros((3, total), dtype=np.uint64)
    first = np.concatenate([[0], np.cumsum([len(source) for source in sources])])
    with ProgressBar("look through", total) as bar:
        for number, numbers in parallel.in_children(partial(_look, sources=sources, recipe=recipe), slices):
            part = slices[number]
            columns[:, first[part.source] + part.begin : first[part.source] + part.end] = numbers
            bar.update(part.end - part.begin)
    lengths = [len(source) for source in sources]
    return Survey(
        np.repeat(np.arange(len(sources), dtype=np.int32), lengths),
        np.concatenate([np.arange(n) for n in lengths]),
        *columns,
    )


def _look(part: _Slice, sources: Sequence[Source], recipe: PackingRecipe) -> NDArray[np.uint64]:
    """Fingerprint, identifier and group of some structures."""
    numbers = np.zeros((3, part.end - part.begin), dtype=np.uint64)
    for column, row in enumerate(range(part.begin, part.end)):
        structure = sources[part.source].structure(row)
        numbers[0, column] = fingerprint(structure)
        for line, name in ((1, recipe.id_key), (2, recipe.group_key)):
            if name is not None:
                numbers[line, column] = hashed(name_in(structure, name).encode())
    return numbers


def name_in(structure: Structure, key: str) -> str:
    """Identifier or group of a structure.

    Raises:
        InputError: its record has none.
    """
    if key not in structure.extra:
        raise InputError(f"{structure.identifier}: {key} is missing or neither one number nor a text; name another key")
    return str(structure.extra[key])
