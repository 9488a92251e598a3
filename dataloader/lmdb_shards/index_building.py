"""How the index of a shard is made: in parts, in parallel, so that what was done before
an interruption counts.

A part is a file that is there as a whole or not at all. The parts lie in a folder beside
the place of the index, which one process has at a time (``work_folder``), and are laid end
to end when all are there.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dataloader import array_file, parallel
from dataloader.array_file import Contents, Damaged
from dataloader.errors import InputError
from dataloader.lmdb_file import FileState, LmdbFile, state_of
from dataloader.lmdb_shards.lmdb_record import NO_LAYOUT, unreadable
from dataloader.lmdb_shards.row_facts import SHOWN_OFFENDERS, facts_of
from dataloader.lmdb_shards.shard_content import Checksum, sample_keys, written_at
from dataloader.lmdb_shards.shard_index import (
    FORMAT,
    IndexRecipe,
    ShardIndex,
    digest_of,
    key_bytes,
    workplace,
    write_whole,
)
from dataloader.progress import ProgressBar, over
from dataloader.work_folder import overtaken

KEPT_FROM = 2000  # records; a smaller LMDB is looked at in a second and leaves nothing behind
SAMPLED_ROWS = 16
MIN_PART = 2000  # records of a part
MAX_PART = 200_000
PARTS = 200  # of a shard, where the bounds of a part allow it


class _Survey(NamedTuple):
    """What a first look at a shard gives."""

    n_keys: int
    whole: bytes | None  # of a small shard, all of it


class _Part(NamedTuple):
    """Some of the records of one shard."""

    path: Path
    place: Path
    begin: int
    end: int

    @property
    def file(self) -> Path:
        return workplace(self.place) / f"{self.begin:012d}-{self.end:012d}"

    @property
    def n(self) -> int:
        return self.end - self.begin


def build(wanted: Mapping[Path, Path | None], recipe: IndexRecipe) -> dict[Path, ShardIndex]:
    """Index some shards; parts that are there already count.

    Args:
        wanted: for every shard the place of its index, whose ``workplace`` this process has;
            None where it is not kept.
        recipe: label names and inputs.

    Raises:
        InputError: a shard changed, holds nothing that can be read, or reading it ended a process.
        Overtaken: another process has finished the work, where locks do not keep two apart.
    """
    indexes: dict[Path, ShardIndex] = {}
    parts: dict[Path, list[_Part]] = {}
    tasks = [(path, place, recipe) for path, place in wanted.items()]
    for number, survey in over(
        parallel.in_children(_survey, tasks), "list the records", len(tasks), "shards"
    ):
        path, place, _ = tasks[number]
        if survey.whole is not None:
            indexes[path] = ShardIndex(path, None, array_file.decoded(survey.whole, str(path)))
        else:
            assert place is not None
            parts[path] = [_Part(path, place, begin, end) for begin, end in cuts(survey.n_keys)]
    _make(sorted(part for its in parts.values() for part in its), recipe)
    large = list(parts)
    for number, _ in parallel.in_children(_assemble, [parts[path] for path in large]):
        path = large[number]
        place = parts[path][0].place
        indexes[path] = ShardIndex(path, place, array_file.look(place))
    return indexes


def _make(parts: Sequence[_Part], recipe: IndexRecipe) -> None:
    """Index the parts that are not there, or not whole."""
    there = [part for part in parts if part.file.exists()]
    sound = {there[number] for number, whole in parallel.in_children(_is_whole, there) if whole}
    missing = [part for part in parts if part not in sound]
    with ProgressBar("index", sum(part.n for part in parts), "records") as bar:
        bar.begin_at(sum(part.n for part in sound))
        for number, _ in parallel.in_children(partial(_index_part, recipe=recipe), missing):
            bar.update(missing[number].n)


def cuts(n: int) -> list[tuple[int, int]]:
    """Begin and end of each of the parts of ``n`` records."""
    size = min(max(n // PARTS, MIN_PART), MAX_PART)
    return list(pairwise([*range(0, n, size), n]))


def _survey(task: tuple[Path, Path | None, IndexRecipe]) -> _Survey:
    """List the records; index them at once where they are few, or where there is no
    place to keep an index.
    """
    path, place, recipe = task
    keys, warned = sample_keys(LmdbFile(path))
    header = _about(path, keys, state_of(path), warned)
    if len(keys) < KEPT_FROM or place is None:
        facts, columns = index_rows(path, keys, recipe)
        return _Survey(len(keys), array_file.encoded(facts | header, columns))
    _refuse_what_is_no_layout(path, keys, recipe)
    with overtaken(workplace(place)):
        if not _is_current(workplace(place) / "keys", header):  # of another version of the file
            for part in workplace(place).glob("0*"):
                part.unlink(missing_ok=True)
            array_file.write(workplace(place) / "keys", header, {"keys": [keys]})
    return _Survey(len(keys), None)


def _is_current(file: Path, header: dict[str, Any]) -> bool:
    try:
        return array_file.read(file).header == json.loads(json.dumps(header))
    except (OSError, Damaged):
        return False


def _is_whole(part: _Part) -> bool:
    try:
        array_file.read(part.file)
    except (OSError, Damaged):
        return False
    return True


def _refuse_what_is_no_layout(path: Path, keys: NDArray[Any], recipe: IndexRecipe) -> None:
    """Say at once, and not after hours, that no record is of a layout that is read."""
    header, columns = index_rows(path, keys[:SAMPLED_ROWS], recipe)
    faults = header["faults"]
    if not len(columns["keys"][0]) and faults and all(NO_LAYOUT in reason for reason in faults):
        raise InputError(f"{path}: {next(iter(faults))}; {unreadable(path, faults)}")


def _about(path: Path, keys: NDArray[Any], state: FileState, warnings: list[str]) -> dict[str, Any]:
    """The part of the header that says for which version of the file the index holds."""
    rows = (
        sorted(set(np.linspace(0, len(keys) - 1, SAMPLED_ROWS).astype(int).tolist()))
        if len(keys)
        else []
    )
    sampled = [key_bytes(keys[row]) for row in rows]
    digests = [digest_of(value) for value in LmdbFile(path).get_all(sampled)]
    return {
        "format": FORMAT,
        "state": list(state),
        "written_at": written_at(path),
        "sampled": [[key.decode(), digest] for key, digest in zip(sampled, digests, strict=True)],
        "warnings": warnings,
        "sha256": None,
    }


def _index_part(part: _Part, recipe: IndexRecipe) -> None:
    with overtaken(workplace(part.place)):
        keys = array_file.look(workplace(part.place) / "keys").arrays["keys"][part.begin : part.end]
        header, columns = index_rows(part.path, keys, recipe)
        array_file.write(part.file, header, columns)


def index_rows(
    path: Path, keys: NDArray[Any], recipe: IndexRecipe
) -> tuple[dict[str, Any], dict[str, Sequence[NDArray[Any]]]]:
    """Header and columns of the index of some records."""
    file = LmdbFile(path, in_order=True)
    checksum = Checksum()
    header, columns = facts_of(
        checksum.of(keys, file.get_all(map(key_bytes, keys))),
        again=lambda row: file.get(key_bytes(keys[row])),
        key=lambda row: key_bytes(keys[row]).decode(),
        n=len(keys),
        labels=recipe.keys,
        features=recipe.features,
    )
    rows = columns.pop("rows")
    header["content"] = [checksum.n, checksum.value]
    return header, {"keys": [keys[rows]]} | {name: [column] for name, column in columns.items()}


def _assemble(parts: Sequence[_Part]) -> None:
    """Lay the parts of one shard end to end; the index gets its name when it is whole."""
    work = workplace(parts[0].place)
    with overtaken(work):
        try:
            about = array_file.look(work / "keys").header
            contents = [array_file.read(part.file) for part in parts]
        except Damaged as damage:
            raise InputError(f"{damage}; start again, that part is made anew") from None
        header, columns = _joined(parts, contents)
        write_whole(parts[0].place, header | about, columns)


def _joined(
    parts: Sequence[_Part], contents: Sequence[Contents]
) -> tuple[dict[str, Any], dict[str, list[NDArray[Any]]]]:
    """Header and columns of a whole shard."""
    tables = _Tables()
    columns: dict[str, list[NDArray[Any]]] = {
        name: [] for name in contents[0].arrays if name != "element_sets"
    }
    first_row = 0
    for part, content in zip(parts, contents, strict=True):
        for name, values in tables.renumbered(content, first_row, part.begin).items():
            columns[name].append(values)
        first_row += len(content.arrays["keys"])
    columns["element_sets"] = [np.array(list(tables.sets), dtype=np.uint64).reshape(-1, 2)]
    return _summed([content.header for content in contents]) | tables.header(), columns


class _Tables:
    """What the numbers of the columns stand for, common to all parts of a shard."""

    def __init__(self) -> None:
        self.sets: dict[tuple[int, int], int] = {}
        self.heads: dict[str | None, int] = {}
        self.unusable: dict[tuple[str, str], int] = {}

    def renumbered(self, part: Contents, first_row: int, begin: int) -> dict[str, NDArray[Any]]:
        """The columns of a part with the numbers of the whole.

        Args:
            part: its own numbers.
            first_row: sound records before it.
            begin: all records before it.
        """
        values = dict(part.arrays)
        sets = [
            self.sets.setdefault((int(a), int(b)), len(self.sets))
            for a, b in values.pop("element_sets")
        ]
        heads = [self.heads.setdefault(name, len(self.heads)) for name in part.header["heads"]]
        kinds = [
            self.unusable.setdefault((quantity, reason), len(self.unusable))
            for quantity, reason in part.header["unusable"]
        ]
        values["elements"] = np.array(sets or [0], dtype="u4")[values["elements"]]
        values["heads"] = np.array(heads or [0], dtype="u2")[values["heads"]]
        values["unusable_kinds"] = np.array(kinds or [0], dtype="u2")[values["unusable_kinds"]]
        values["unusable_rows"] = values["unusable_rows"] + np.uint64(first_row)
        values["refused_rows"] = values["refused_rows"] + np.uint64(begin)
        return values

    def header(self) -> dict[str, Any]:
        """The names of heads and of unusable labels."""
        return {"heads": list(self.heads), "unusable": list(self.unusable)}


def _summed(headers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The counts of all parts together."""
    counters = {name: Counter[str]() for name in ("pbc_rules", "layouts", "notes", "named")}
    names: Counter[tuple[str | None, ...]] = Counter()
    faults: dict[str, tuple[int, list[str]]] = {}
    for header in headers:
        for name, counter in counters.items():
            counter.update(header[name])
        for labels, count in header["names"]:
            names[tuple(labels)] += count
        for reason, (count, offenders) in header["faults"].items():
            before, shown = faults.get(reason, (0, []))
            faults[reason] = (before + count, [*shown, *offenders][:SHOWN_OFFENDERS])
    return {
        **counters,
        "names": [[list(labels), count] for labels, count in names.items()],
        "faults": faults,
        "is2re": sum(header["is2re"] for header in headers),
        "content": [sum(c) for c in zip(*(header["content"] for header in headers), strict=True)],
    }
