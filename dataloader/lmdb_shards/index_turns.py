"""Who makes the index of a shard: one process at a time, while others wait for it."""

import contextlib
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from dataloader.lmdb_file import n_entries_of
from dataloader.lmdb_shards import index_building
from dataloader.lmdb_shards.shard_index import IndexRecipe, ShardIndex, places, workplace
from dataloader.progress import log
from dataloader.work_folder import LOOK_EVERY, WorkFolder, holder, take

MOST_AT_ONCE = 256  # shards whose indexes one process makes together: each has an open file


class Building(NamedTuple):
    """The right to make the index of a shard."""

    place: Path | None  # of the index; None where it is not kept
    folder: WorkFolder | None


@contextlib.contextmanager
def free_shards(paths: Sequence[Path], recipe: IndexRecipe) -> Iterator[dict[Path, Building]]:
    """Some of the shards whose index nobody else is making; until the end nobody else makes it."""
    mine: dict[Path, Building] = {}
    try:
        for path in paths:
            building = _taken(path, recipe)
            if building is not None:
                mine[path] = building
            if len(mine) == MOST_AT_ONCE:
                break
        yield mine
    finally:
        for building in mine.values():
            if building.folder is not None:
                building.folder.release()


def _taken(path: Path, recipe: IndexRecipe) -> Building | None:
    """The right to make an index; None where another process has it."""
    if n_entries_of(path) < index_building.KEPT_FROM:
        return Building(None, None)
    for place in _writable_places(path, recipe):
        with contextlib.suppress(OSError):  # of another user's unfinished work
            folder = take(workplace(place))
            return None if folder is None else Building(place, folder)
    return Building(None, None)


def _writable_places(path: Path, recipe: IndexRecipe) -> Iterator[Path]:
    for place in places(path, recipe):
        with contextlib.suppress(OSError):
            place.parent.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            place.parent.mkdir(exist_ok=True, mode=0o700)
            if place.parent.stat().st_mode & 0o222 and os.access(place.parent, os.W_OK):
                yield place


def remove_leftovers(indexes: Iterable[ShardIndex]) -> None:
    """What a process left that was killed when its index had its name already."""
    for index in indexes:
        if index.place is not None and workplace(index.place).exists():
            with contextlib.suppress(OSError):
                folder = take(workplace(index.place))
                if folder is not None:
                    folder.finish()


def wait_for(path: Path, recipe: IndexRecipe, *, aloud: bool) -> None:
    """Wait a moment for the process that makes an index; ``aloud`` says in the log for whom."""
    if aloud:
        holders = [
            holder(workplace(place)) for place in places(path, recipe) if workplace(place).is_dir()
        ]
        log.info("waiting for %s, which indexes %s", (holders or ["another process"])[0], path)
    time.sleep(LOOK_EVERY)
