"""What is known of every record of an LMDB without reading it: made once, kept, looked at before it is believed.

One process at a time makes the index of a shard; others wait for it and then use it. An index that is damaged is made
again, and that is said.
"""

import contextlib
import hashlib
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dataloader import array_file, parallel
from dataloader.array_file import Damaged
from dataloader.errors import InputError
from dataloader.lmdb_file import LmdbFile, data_file_of, n_entries_of, state_of
from dataloader.lmdb_shards import index_building
from dataloader.lmdb_shards.shard_index import (
    FORMAT,
    Recipe,
    ShardIndex,
    digest_of,
    outdated,
    places,
    workplace,
)
from dataloader.progress import log, over
from dataloader.work_folder import LOOK_EVERY, TRIES, Overtaken, WorkFolder, holder, take

MOST_AT_ONCE = 256  # shards whose indexes one process makes together: each has an open file


class _Building(NamedTuple):
    """The right to make the index of a shard."""

    place: Path | None  # of the index; None where it is not kept
    folder: WorkFolder | None


def open_indexes(
    paths: Sequence[Path], recipe: Recipe, *, verify: bool = False, hashed: bool = False
) -> list[ShardIndex]:
    """The index of every shard; those that are not there, damaged, or of another version of the file, are made.

    Args:
        paths: of the shards.
        recipe: label names and inputs.
        verify: compare the hash of each whole file with the one that its index keeps; where it has none, keep it.
        hashed: every index is to have the hash of the whole file. Else none is made: it takes reading everything again.

    Raises:
        InputError: a shard is no LMDB, is cut off, changed, or reading it ended a process.
    """
    for path in paths:
        state_of(path)
    digests = _verified(paths, recipe) if verify else {}
    indexes = _kept_indexes(paths, recipe)
    _remove_leftovers(indexes.values())
    waited = False
    overtaken = 0
    while missing := [path for path in paths if not _is_complete(indexes.get(path), verify or hashed)]:
        with _free(missing, recipe) as mine:
            if not mine:
                _wait_for(missing[0], recipe, aloud=not waited)
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
    mine: Mapping[Path, _Building], recipe: Recipe, digests: Mapping[Path, str], *, hashed: bool
) -> dict[Path, ShardIndex]:
    """The indexes of shards that this process has: another one may have made them by now, or they are made."""
    indexes = _kept_indexes(list(mine), recipe, aloud=True)
    missing = {path: building.place for path, building in mine.items() if path not in indexes}
    if missing:
        kept_before = _hashes_kept_before(list(missing), recipe)
        indexes |= index_building.build(missing, recipe)
        for path, digest in kept_before.items():
            indexes[path].keep_sha256(digest)
    if hashed:
        _keep_hashes([index for index in indexes.values() if index.sha256 is None], digests)
    for path, building in mine.items():
        if path in indexes and building.folder is not None:
            building.folder.finish()
    return indexes


# ---- indexes that are there


def _kept_indexes(paths: Sequence[Path], recipe: Recipe, *, aloud: bool = False) -> dict[Path, ShardIndex]:
    """Indexes that are whole and those of the shards as they are; ``aloud`` says which are damaged.

    All of them is read and compared with its digests, 27 bytes a record; in parallel, a shard at a time.
    """
    candidates = [path for path in dict.fromkeys(paths) if any(place.exists() for place in places(path, recipe))]
    indexes: dict[Path, ShardIndex] = {}
    looked = parallel.in_children(_sound_place, [(path, recipe) for path in candidates])
    for number, (place, damages) in over(looked, "compare indexes with their shards", len(candidates), "shards"):
        path = candidates[number]
        for damage in damages if aloud else ():
            log.warning("%s; it is made again", damage)
        with contextlib.suppress(OSError, Damaged, KeyError, ValueError, TypeError):
            if place is not None:
                indexes[path] = ShardIndex(path, place, array_file.look(place))
    return indexes


def _sound_place(task: tuple[Path, Recipe]) -> tuple[Path | None, list[str]]:
    """Where the index of a shard lies that is whole and the shard's own; what is damaged of those that are there."""
    path, recipe = task
    damages: list[str] = []
    for place in places(path, recipe):
        try:
            contents = array_file.look(place)
            if contents.header["state"] != list(state_of(path)) or contents.header["format"] != FORMAT:
                continue
            array_file.check(contents)
            index = ShardIndex(path, place, contents)
            index.check()
            if _sampled_rows_are(path, index.header["sampled"]):
                return place, damages
        except OSError:
            continue
        except Damaged as damage:
            damages.append(str(damage))
        except (KeyError, ValueError, TypeError) as error:
            damages.append(f"{place} is no index ({type(error).__name__})")
    return None, damages


def _sampled_rows_are(path: Path, sampled: Sequence[Sequence[str]]) -> bool:
    file = LmdbFile(path)
    return all((value := file.find(key.encode())) is not None and digest_of(value) == d for key, d in sampled)


# ---- hashes of whole files


def _verified(paths: Sequence[Path], recipe: Recipe) -> dict[Path, str]:
    """The hash of every file, equal to that in the index that lies there, of whatever version of the file it is."""
    kept = {path: stored for path in paths if (stored := _stored_sha256(path, recipe)) is not None}
    hashed = over(parallel.in_children(_sha256, paths), "sha256 of all files", len(paths), "shards")
    digests = {paths[number]: digest for number, digest in hashed}
    for path, (place, expected) in kept.items():
        if digests[path] != expected:
            raise InputError(
                f"{path} is not the file that was indexed: its sha256 is {digests[path]}, the index {place} has "
                f"{expected}; copy it again, or remove the index if the file was meant to change"
            )
    return digests


def _keep_hashes(indexes: Sequence[ShardIndex], known: Mapping[Path, str]) -> None:
    for index in indexes:
        if index.path in known:
            index.keep_sha256(known[index.path])
    missing = [index for index in indexes if index.sha256 is None]
    hashed = parallel.in_children(_sha256, [index.path for index in missing])
    for number, digest in over(hashed, "sha256 of all files", len(missing), "shards"):
        missing[number].keep_sha256(digest)


def _stored_sha256(path: Path, recipe: Recipe) -> tuple[Path, str] | None:
    """The hash in the index that lies there, even one whose arrays are damaged or that is of an earlier version."""
    for place in [*places(path, recipe), *outdated(path)]:
        with contextlib.suppress(OSError, Damaged, KeyError):
            kept = array_file.look(place).header["sha256"]
            return None if kept is None else (place, str(kept))
    return None


def _hashes_kept_before(paths: Sequence[Path], recipe: Recipe) -> dict[Path, str]:
    """Hashes in indexes that are not used, damaged ones or of an earlier version, of these very files."""
    headers = []
    for path in paths:
        stored = _stored_sha256(path, recipe)
        if stored is not None:
            headers.append((path, array_file.look(stored[0]).header))
    same = dict(parallel.in_children(_is_of_this_file, headers))
    return {path: header["sha256"] for number, (path, header) in enumerate(headers) if same[number]}


def _is_of_this_file(task: tuple[Path, Mapping[str, Any]]) -> bool:
    path, header = task
    try:
        return bool(header["state"] == list(state_of(path)) and _sampled_rows_are(path, header["sampled"]))
    except (KeyError, TypeError, ValueError, AttributeError):
        return False


def _sha256(path: Path) -> str:
    parallel.note(str(path))
    with data_file_of(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- one process at a time


@contextlib.contextmanager
def _free(paths: Sequence[Path], recipe: Recipe) -> Iterator[dict[Path, _Building]]:
    """Some of the shards whose index nobody else is making; until the end nobody else makes it."""
    mine: dict[Path, _Building] = {}
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


def _taken(path: Path, recipe: Recipe) -> _Building | None:
    """The right to make an index; None where another process has it."""
    if n_entries_of(path) < index_building.KEPT_FROM:
        return _Building(None, None)
    for place in _writable_places(path, recipe):
        with contextlib.suppress(OSError):  # of another user's unfinished work
            folder = take(workplace(place))
            return None if folder is None else _Building(place, folder)
    return _Building(None, None)


def _writable_places(path: Path, recipe: Recipe) -> Iterator[Path]:
    for place in places(path, recipe):
        with contextlib.suppress(OSError):
            place.parent.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            place.parent.mkdir(exist_ok=True, mode=0o700)
            if place.parent.stat().st_mode & 0o222 and os.access(place.parent, os.W_OK):
                yield place


def _remove_leftovers(indexes: Iterable[ShardIndex]) -> None:
    """What a process left that was killed when its index had its name already."""
    for index in indexes:
        if index.place is not None and workplace(index.place).exists():
            with contextlib.suppress(OSError):
                folder = take(workplace(index.place))
                if folder is not None:
                    folder.finish()


def _wait_for(path: Path, recipe: Recipe, *, aloud: bool) -> None:
    if aloud:
        holders = [holder(workplace(place)) for place in places(path, recipe) if workplace(place).is_dir()]
        log.info("waiting for %s, which indexes %s", (holders or ["another process"])[0], path)
    time.sleep(LOOK_EVERY)
