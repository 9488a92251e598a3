"""Indexes that lie beside their shards: looked at, compared with the shards,
and used where they hold.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from dataloader import array_file, parallel
from dataloader.array_file import Damaged
from dataloader.errors import InputError
from dataloader.lmdb_file import LmdbFile, state_of
from dataloader.lmdb_shards.shard_content import is_unchanged, written_at
from dataloader.lmdb_shards.shard_index import FORMAT, IndexRecipe, ShardIndex, digest_of, places
from dataloader.progress import log, over


def kept_indexes(
    paths: Sequence[Path], recipe: IndexRecipe, *, aloud: bool = False
) -> dict[Path, ShardIndex]:
    """Indexes that are whole and those of the shards as they are; ``aloud`` says which are damaged.

    All of them is read and compared with its digests, 27 bytes a record; in
    parallel, a shard at a time.
    """
    candidates = [
        path
        for path in dict.fromkeys(paths)
        if any(place.exists() for place in places(path, recipe))
    ]
    indexes: dict[Path, ShardIndex] = {}
    looked = parallel.in_children(_sound_place, [(path, recipe) for path in candidates])
    for number, (place, damages) in over(
        looked, "compare indexes with their shards", len(candidates), "shards"
    ):
        path = candidates[number]
        for damage in damages if aloud else ():
            log.warning("%s; it is made again", damage)
        with contextlib.suppress(OSError, Damaged, KeyError, ValueError, TypeError):
            if place is not None:
                indexes[path] = ShardIndex(path, place, array_file.look(place))
    return indexes


def _sound_place(task: tuple[Path, IndexRecipe]) -> tuple[Path | None, list[str]]:
    """Where the index of a shard lies that is whole and the shard's own; what is damaged
    of those that are there.
    """
    path, recipe = task
    damages: list[str] = []
    of_another_time: list[ShardIndex] = []
    for place in places(path, recipe):
        try:
            contents = array_file.look(place)
            if (
                contents.header["state"] != list(state_of(path))
                or contents.header["format"] != FORMAT
            ):
                continue
            array_file.check(contents)
            index = ShardIndex(path, place, contents)
            index.check()
            if not sampled_rows_are(path, index.header["sampled"]):
                continue
            if index.header["written_at"] == written_at(path):
                return place, damages
            of_another_time.append(index)
        except OSError:
            continue
        except Damaged as damage:
            damages.append(str(damage))
        except (KeyError, ValueError, TypeError) as error:
            damages.append(f"{place} is no index ({type(error).__name__})")
    return _place_of_a_copy(path, of_another_time, recipe), damages


def _place_of_a_copy(path: Path, indexes: Sequence[ShardIndex], recipe: IndexRecipe) -> Path | None:
    """Where one of some indexes lies, if the shard has just the records that were indexed: it was
    copied, and not written anew.
    """
    for index in indexes:
        with contextlib.suppress(InputError, KeyError, ValueError, TypeError):
            if is_unchanged(path, index.header["content"]):
                return index.keep_time(written_at(path), places(path, recipe))
    return None


def sampled_rows_are(path: Path, sampled: Sequence[Sequence[str]]) -> bool:
    """Whether a shard has the sampled records of an index, pairs of key and hash, as they
    were when it was made.
    """
    file = LmdbFile(path)
    return all(
        (value := file.find(key.encode())) is not None and digest_of(value) == d
        for key, d in sampled
    )
