"""The sha256 of whole shards: computed in parallel, kept in their indexes,
compared with what was kept.
"""

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dataloader import array_file, parallel
from dataloader.array_file import Damaged
from dataloader.errors import InputError
from dataloader.lmdb_file import data_file_of, state_of
from dataloader.lmdb_shards.index_lookup import sampled_rows_are
from dataloader.lmdb_shards.shard_index import IndexRecipe, ShardIndex, outdated, places
from dataloader.progress import over


def verified_hashes(paths: Sequence[Path], recipe: IndexRecipe) -> dict[Path, str]:
    """The hash of every file, equal to that in the index that lies there, of whatever
    version of the file it is.
    """
    kept = {path: stored for path in paths if (stored := _stored_sha256(path, recipe)) is not None}
    hashed = over(parallel.in_children(_sha256, paths), "sha256 of all files", len(paths), "shards")
    digests = {paths[number]: digest for number, digest in hashed}
    for path, (place, expected) in kept.items():
        if digests[path] != expected:
            raise InputError(
                f"{path} is not the file that was indexed: its sha256 is {digests[path]}, the "
                f"index {place} has {expected}; copy it again, or remove the index if the file "
                "was meant to change"
            )
    return digests


def keep_hashes(indexes: Sequence[ShardIndex], known: Mapping[Path, str]) -> None:
    """Put the sha256 of its shard into every index: the one that is known, else it is computed."""
    for index in indexes:
        if index.path in known:
            index.keep_sha256(known[index.path])
    missing = [index for index in indexes if index.sha256 is None]
    hashed = parallel.in_children(_sha256, [index.path for index in missing])
    for number, digest in over(hashed, "sha256 of all files", len(missing), "shards"):
        missing[number].keep_sha256(digest)


def _stored_sha256(path: Path, recipe: IndexRecipe) -> tuple[Path, str] | None:
    """The hash in the index that lies there, even one whose arrays are damaged or that is
    of an earlier version.
    """
    for place in [*places(path, recipe), *outdated(path)]:
        with contextlib.suppress(OSError, Damaged, KeyError):
            kept = array_file.look(place).header["sha256"]
            return None if kept is None else (place, str(kept))
    return None


def hashes_kept_before(paths: Sequence[Path], recipe: IndexRecipe) -> dict[Path, str]:
    """Hashes in indexes that are not used, damaged ones or of an earlier
    version, of these very files.
    """
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
        return bool(
            header["state"] == list(state_of(path)) and sampled_rows_are(path, header["sampled"])
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return False


def _sha256(path: Path) -> str:
    parallel.note(str(path))
    with data_file_of(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
