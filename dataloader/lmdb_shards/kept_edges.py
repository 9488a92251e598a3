"""How many edges every record of a shard has within a cutoff: counted once, in parallel, and
kept beside the index.
"""

import contextlib
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dataloader import array_file, parallel
from dataloader.array_file import Damaged
from dataloader.errors import InputError, RowError
from dataloader.labels import LabelError
from dataloader.lmdb_file import LmdbFile
from dataloader.lmdb_shards.index_building import cuts
from dataloader.lmdb_shards.lmdb_record import decode
from dataloader.lmdb_shards.shard_index import (
    IndexRecipe,
    ShardIndex,
    key_bytes,
    workplace,
    write_whole,
)
from dataloader.neighbors import GraphFault, count_edges
from dataloader.progress import ProgressBar, log


class _Part(NamedTuple):
    """Records of one shard whose neighbours are to be counted."""

    shard: ShardIndex
    begin: int
    end: int


def edge_counts(
    indexes: Sequence[ShardIndex], recipe: IndexRecipe, r_max: float, max_neighbors: int
) -> list[NDArray[np.uint32]]:
    """Directed edges within ``r_max`` (Å) of every row of every index; counted in
    parallel once, and kept.

    What was counted and kept where more neighbours per atom were allowed is not looked at again.

    Raises:
        InputError: the neighbours of a record show that it is broken.
    """
    counts: dict[int, NDArray[np.uint32]] = {}
    parts: list[tuple[int, _Part]] = []
    for number, index in enumerate(indexes):
        kept = _kept(index, r_max)
        if kept is not None:
            counts[number] = kept
            continue
        parts += [
            (number, _Part(index, begin, end))
            for begin, end in (cuts(len(index)) if len(index) else [])
        ]
        counts[number] = np.zeros(len(index), dtype=np.uint32)
    with ProgressBar(
        "neighbours", sum(part.end - part.begin for _, part in parts), "records"
    ) as bar:
        work = partial(_count_edges, recipe=recipe, r_max=r_max, max_neighbors=max_neighbors)
        for done, counted in parallel.in_children(work, [part for _, part in parts]):
            number, part = parts[done]
            counts[number][part.begin : part.end] = counted
            bar.update(part.end - part.begin)
    for number in {number for number, _ in parts}:
        _keep(indexes[number], r_max, counts[number])
    return [counts[number] for number in range(len(indexes))]


def _place(index: ShardIndex, r_max: float) -> Path | None:
    return (
        None
        if index.place is None
        else index.place.with_name(f"{index.place.name}.edges-{r_max!r}")
    )


def _kept(index: ShardIndex, r_max: float) -> NDArray[np.uint32] | None:
    place = _place(index, r_max)
    if place is None:
        return None
    try:
        contents = array_file.read(place)
        if contents.header == _belongs_to(index) and len(contents.arrays["n_edges"]) == len(index):
            if workplace(place).exists():  # of a process that was killed at the end
                shutil.rmtree(workplace(place), ignore_errors=True)
            return contents.arrays["n_edges"]
    except OSError:
        pass
    except (Damaged, KeyError) as damage:
        log.warning("%s; neighbours are counted again", damage)
    return None


def _belongs_to(index: ShardIndex) -> dict[str, str]:
    return {"identity": index.identity, "records": index.records}


def _keep(index: ShardIndex, r_max: float, counts: NDArray[np.uint32]) -> None:
    place = _place(index, r_max)
    if place is not None:
        with contextlib.suppress(OSError):
            workplace(place).mkdir(exist_ok=True)
            write_whole(place, _belongs_to(index), {"n_edges": [counts]})
            shutil.rmtree(workplace(place), ignore_errors=True)


def _count_edges(
    part: _Part, recipe: IndexRecipe, r_max: float, max_neighbors: int
) -> NDArray[np.uint32]:
    """The edges of some records; kept in a part file, so that what is counted stays counted."""
    file = _part_file(part, r_max)
    if file is not None:
        with contextlib.suppress(OSError, Damaged, KeyError):
            contents = array_file.read(file)
            if contents.header == _belongs_to(part.shard):
                return contents.arrays["n_edges"].copy()
    path = part.shard.path
    keys = part.shard.keys[part.begin : part.end]
    counts = np.zeros(len(keys), dtype=np.uint32)
    for row, value in enumerate(LmdbFile(path, in_order=True).get_all(map(key_bytes, keys))):
        where = f"{path} key {key_bytes(keys[row]).decode()}"
        try:
            structure = decode(value, where, recipe.keys, recipe.features).structure
            counts[row] = count_edges(structure, r_max, max_neighbors)
        except (RowError, LabelError, GraphFault) as fault:
            raise InputError(f"{where}: {fault}") from None
    if file is not None:
        with contextlib.suppress(OSError):
            array_file.write(file, _belongs_to(part.shard), {"n_edges": [counts]})
    return counts


def _part_file(part: _Part, r_max: float) -> Path | None:
    """Where the counts of a part lie until all are there; None where nothing can be kept."""
    place = _place(part.shard, r_max)
    if place is None:
        return None
    with contextlib.suppress(OSError):
        workplace(place).mkdir(exist_ok=True)
        return workplace(place) / f"{part.shard.identity[:16]}-{part.begin:012d}-{part.end:012d}"
    return None
