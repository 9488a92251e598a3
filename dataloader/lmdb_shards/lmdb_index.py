"""What is known of every record of an LMDB without reading it: made once, kept, looked at
before it is believed.

One process at a time makes the index of a shard; others wait for it and then use it. An index that
is damaged is made again, and that is said.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from dataloader.lmdb_file import state_of
from dataloader.lmdb_shards import index_building
from dataloader.lmdb_shards.index_lookup import kept_indexes
from dataloader.lmdb_shards.index_turns import Building, free_shards, remove_leftovers, wait_for
from dataloader.lmdb_shards.shard_hashes import hashes_kept_before, keep_hashes, verified_hashes
from dataloader.lmdb_shards.shard_index import IndexRecipe, ShardIndex
from dataloader.work_folder import TRIES, Overtaken


def open_indexes(
    paths: Sequence[Path], recipe: IndexRecipe, *, verify: bool = False, hashed: bool = False
) -> list[ShardIndex]:
    """The index of every shard; those that are not there, damaged, or of another version
    of the file, are made.

    Args:
        paths: of the shards.
        recipe: label names and inputs.
        verify: compare the hash of each whole file with the one that its index keeps;
            where it has none, keep it.
        hashed: every index is to have the hash of the whole file. Else none is made: it takes
            reading everything again.

    Raises:
        InputError: a shard is no LMDB, is cut off, changed, or reading it ended a process.
    """
    for path in paths:
        state_of(path)
    digests = verified_hashes(paths, recipe) if verify else {}
    indexes = kept_indexes(paths, recipe)
    remove_leftovers(indexes.values())
    waited = False
    overtaken = 0
    while missing := [
        path for path in paths if not _is_complete(indexes.get(path), verify or hashed)
    ]:
        with free_shards(missing, recipe) as mine:
            if not mine:
                wait_for(missing[0], recipe, aloud=not waited)
                waited = True
            try:
                indexes |= _completed(mine, recipe, digests, hashed=verify or hashed)
            except Overtaken:
                overtaken += 1
                if overtaken == TRIES:
                    raise
    return [indexes[path] for path in paths]


def _is_complete(index: ShardIndex | None, hashed: bool) -> bool:
    return index is not None and (index.sha256 is not None or not hashed)


def _completed(
    mine: Mapping[Path, Building], recipe: IndexRecipe, digests: Mapping[Path, str], *, hashed: bool
) -> dict[Path, ShardIndex]:
    """The indexes of shards that this process has: another one may have made them by
    now, or they are made.
    """
    indexes = kept_indexes(list(mine), recipe, aloud=True)
    missing = {path: building.place for path, building in mine.items() if path not in indexes}
    if missing:
        kept_before = hashes_kept_before(list(missing), recipe)
        indexes |= index_building.build(missing, recipe)
        for path, digest in kept_before.items():
            indexes[path].keep_sha256(digest)
    if hashed:
        keep_hashes([index for index in indexes.values() if index.sha256 is None], digests)
    for path, building in mine.items():
        if path in indexes and building.folder is not None:
            building.folder.finish()
    return indexes
