"""What is known of every record of an LMDB without reading it: made once, in parallel, and kept.

The index of a shard lies beside it, or in a per-user folder where that place cannot be written. It holds for one size,
one last transaction and one hash of sampled rows of the shard, and for one choice of label names and model inputs. Rows
are indexed in parts, each a file that is there as a whole or not at all: what was done before an interruption counts.
"""

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dataloader import parallel
from dataloader.batch import FeatureSpec
from dataloader.cache_folder import cache_folder
from dataloader.errors import InputError
from dataloader.labels import LabelError, LabelKeys
from dataloader.lmdb_shards import array_file, ase_rows
from dataloader.lmdb_shards.array_file import Contents, Damaged
from dataloader.lmdb_shards.lmdb_file import FileState, LmdbFile, data_file_of, state_of
from dataloader.lmdb_shards.lmdb_record import NO_LAYOUT, decode, unreadable
from dataloader.lmdb_shards.restricted_pickle import RowError
from dataloader.lmdb_shards.row_facts import SHOWN_OFFENDERS, facts_of
from dataloader.neighbors import GraphFault, count_edges
from dataloader.progress import Progress, over

FORMAT = 3  # 2 did not know of stated units, spellings of names and labels that are NaN
KEPT_FROM = 2000  # records; a smaller LMDB is looked at in a second and leaves nothing behind
SAMPLED_ROWS = 16
MIN_PART, MAX_PART, PARTS = 2000, 200_000, 200  # records of a part; parts of a shard


@dataclass(frozen=True)
class Recipe:
    """What an index depends on besides the file."""

    keys: LabelKeys
    features: tuple[FeatureSpec, ...] = ()

    def digest(self) -> str:
        """Eight letters for a file name."""
        text = json.dumps([FORMAT, asdict(self.keys), [asdict(spec) for spec in self.features]], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]


class ShardIndex:
    """The index of one shard: arrays with a row for every sound record, counts of the rest.

    Attributes:
        path: of the shard.
        keys: of the records, (n,) uint64, or bytes where a key has leading zeros.
        n_atoms, free_components: (n,) uint32; components of forces on free atoms.
        labels: (n,) uint8, the bits of row_facts.
        max_force: (n,) float32, eV/Å, largest length of a force; NaN where there are none.
        elements: (n,) uint32 into ``element_sets``.
        heads: (n,) uint16 into ``head_names``.
        unusable_rows, unusable_kinds: of labels that are there and give no number: the row, and an index into
            ``unusable``, which has quantity and reason.
        refused_rows: (n_refused,) uint64, in order: which of all records of the shard are faulty and have no row here.
    """

    def __init__(self, path: Path, place: Path | None, contents: Contents) -> None:
        self.path, self.place, self.header = path, place, contents.header
        arrays = contents.arrays
        self.keys, self.n_atoms, self.free_components = (arrays[n] for n in ("keys", "n_atoms", "free_components"))
        self.labels, self.max_force = arrays["labels"], arrays["max_force"]
        self.elements, self.heads = arrays["elements"], arrays["heads"]
        self.element_sets = arrays["element_sets"]
        self.head_names: list[str | None] = contents.header["heads"]
        self.unusable_rows, self.unusable_kinds = arrays["unusable_rows"], arrays["unusable_kinds"]
        self.refused_rows = arrays["refused_rows"]
        self.unusable: list[tuple[str, str]] = [(quantity, reason) for quantity, reason in contents.header["unusable"]]
        self.faults: dict[str, tuple[int, list[str]]] = {k: (n, o) for k, (n, o) in contents.header["faults"].items()}
        if any(len(a) != len(self.keys) for a in (self.n_atoms, self.free_components, self.labels, self.elements)):
            raise Damaged("arrays of unequal length")
        rows, kinds = self.unusable_rows, self.unusable_kinds
        if len(rows) != len(kinds) or (len(rows) and int(rows.max()) >= len(self.keys)):
            raise Damaged("rows of unusable labels that are not there")
        if len(kinds) and int(kinds.max()) >= len(self.unusable):
            raise Damaged("kinds of unusable labels that are not there")

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def n_records(self) -> int:
        """Records of the shard, faulty ones included."""
        return len(self.keys) + sum(count for count, _ in self.faults.values())

    @property
    def identity(self) -> str:
        """What tells the shard from others: size, last transaction and hashes of the sampled rows."""
        about = [self.header["state"], self.header["sampled"]]
        return hashlib.sha256(json.dumps(about).encode()).hexdigest()

    @property
    def sha256(self) -> str | None:
        """Of the shard's file; None where nobody has asked for it."""
        found = self.header["sha256"]
        return None if found is None else str(found)

    def keep_sha256(self, digest: str) -> None:
        """From now on the index has it."""
        self.header["sha256"] = digest
        if self.place is not None:
            contents = array_file.read(self.place)
            columns = {name: [array] for name, array in contents.arrays.items()}
            with contextlib.suppress(OSError):
                array_file.write(self.place, self.header, columns)

    def record_numbers(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which records of the shard some rows are, counted in the order of its keys, faulty ones included."""
        before = self.refused_rows.astype(np.int64) - np.arange(len(self.refused_rows))  # sound ones before each faulty
        return rows + np.searchsorted(before, rows, side="right")

    def key(self, row: int) -> bytes:
        """The LMDB's key of a row."""
        return key_bytes(self.keys[row])


def key_bytes(stored: Any) -> bytes:
    """A key from its entry in an array of keys."""
    return bytes(stored) if isinstance(stored, bytes) else str(int(stored)).encode()


# ---- opening


def open_indexes(
    paths: Sequence[Path], recipe: Recipe, *, verify: bool = False, hashed: bool = False
) -> list[ShardIndex]:
    """The index of every shard; those that are not there, or are of another version of the file, are made.

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
    with _alone(paths, recipe):
        digests = _verified(paths, recipe) if verify else {}
        found = _kept_indexes(paths, recipe)
        missing = [path for path in paths if path not in found]
        if missing:
            found |= _build(missing, recipe)
        if verify or hashed:
            _keep_hashes([index for index in found.values() if index.sha256 is None], digests)
    return [found[path] for path in paths]


def _kept_indexes(paths: Sequence[Path], recipe: Recipe) -> dict[Path, ShardIndex]:
    found = {path: index for path in paths if (index := _kept(path, recipe)) is not None}
    tasks = [(path, index.header["sampled"]) for path, index in found.items()]
    looked = parallel.in_children(_sampled_rows_are, tasks)
    for number, same in over(looked, "compare indexes with their shards", len(tasks), "shards"):
        if not same:
            del found[tasks[number][0]]
    return found


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
    for place in places(path, recipe):
        with contextlib.suppress(OSError, Damaged, KeyError):
            kept = array_file.read(place).header["sha256"]
            return None if kept is None else (place, str(kept))
    return None


def _kept(path: Path, recipe: Recipe) -> ShardIndex | None:
    state = state_of(path)
    for place in places(path, recipe):
        try:
            contents = array_file.read(place)
            if contents.header["state"] == list(state) and contents.header["format"] == FORMAT:
                return ShardIndex(path, place, contents)
        except (OSError, Damaged, KeyError, ValueError, TypeError):
            continue
    return None


def places(path: Path, recipe: Recipe) -> list[Path]:
    """Where the index of a shard may lie: beside it, or in the user's cache folder."""
    ending = f"{recipe.digest()}.index"
    absolute = Path(os.path.realpath(path))
    home = cache_folder() / "lmdb_index"
    name = f"{hashlib.sha256(str(absolute).encode()).hexdigest()[:16]}-{absolute.name}.{ending}"
    return [absolute.with_name(f"{absolute.name}.{ending}"), home / name]


def outdated(path: Path) -> list[Path]:
    """Indexes of earlier versions beside a shard, which are not used any more."""
    found = []
    absolute = Path(os.path.realpath(path))
    for place in sorted(absolute.parent.glob(f"{glob.escape(absolute.name)}.*.index")):
        with contextlib.suppress(OSError, Damaged, KeyError, TypeError):
            if array_file.read(place).header["format"] < FORMAT:
                found.append(place)
    return found


def _writable_place(path: Path, recipe: Recipe) -> Path | None:
    for place in places(path, recipe):
        with contextlib.suppress(OSError):
            place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            if place.parent.stat().st_mode & 0o222 and os.access(place.parent, os.W_OK):
                return place
    return None


@contextlib.contextmanager
def _alone(paths: Sequence[Path], recipe: Recipe) -> Iterator[None]:
    """Let one process at a time make an index; the others wait and then find it."""
    text = "\n".join(str(Path(os.path.realpath(path))) for path in paths)
    home = places(paths[0], recipe)[1].parent
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = (home / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.lock").open("w")
    except OSError:  # no place for a lock: two that make the same index make the same files
        yield
        return
    with lock:
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _sampled_rows_are(task: tuple[Path, Sequence[Sequence[str]]]) -> bool:
    path, sampled = task
    file = LmdbFile(path)
    return all((value := file.find(key.encode())) is not None and _digest(value) == d for key, d in sampled)


def _digest(value: bytes) -> str:
    return hashlib.blake2b(value, digest_size=16).hexdigest()


def _sha256(path: Path) -> str:
    parallel.note(str(path))
    with data_file_of(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- building


class _Survey(NamedTuple):
    """What a first look at a shard gives."""

    n_keys: int
    whole: bytes | None  # of a small shard, all of it


class _Part(NamedTuple):
    """Some of the records of one shard."""

    path: Path
    place: Path
    state: FileState
    begin: int
    end: int

    @property
    def file(self) -> Path:
        return _workplace(self.place) / f"{self.begin:012d}-{self.end:012d}"


def _workplace(place: Path) -> Path:
    return place.with_name(f"{place.name}.building")


def _build(paths: Sequence[Path], recipe: Recipe) -> dict[Path, ShardIndex]:
    found: dict[Path, ShardIndex] = {}
    wanted = {path: _writable_place(path, recipe) for path in paths}
    parts: list[_Part] = []
    tasks = [(path, wanted[path], recipe) for path in paths]
    for number, survey in over(parallel.in_children(_survey, tasks), "list the records", len(tasks), "shards"):
        path, place, _ = tasks[number]
        if survey.whole is not None:
            found[path] = ShardIndex(path, None, array_file.decoded(survey.whole, str(path)))
            continue
        assert place is not None
        parts += [_Part(path, place, state_of(path), a, b) for a, b in _cuts(survey.n_keys)]
    parts.sort()
    done = [part for part in parts if part.file.exists()]
    with Progress("index", sum(p.end - p.begin for p in parts), "records") as bar:
        bar.begin_at(sum(part.end - part.begin for part in done))
        missing = sorted(set(parts) - set(done))
        for number, _ in parallel.in_children(partial(_index_part, recipe=recipe), missing):
            bar.update(missing[number].end - missing[number].begin)
    large = [path for path in paths if path not in found]
    for number, _ in parallel.in_children(_assemble, [[p for p in parts if p.path == path] for path in large]):
        path = large[number]
        place = wanted[path]
        assert place is not None
        found[path] = ShardIndex(path, place, array_file.read(place))
        shutil.rmtree(_workplace(place), ignore_errors=True)
    return found


def _cuts(n: int) -> list[tuple[int, int]]:
    size = min(max(n // PARTS, MIN_PART), MAX_PART)
    return list(pairwise([*range(0, n, size), n]))


def _survey(task: tuple[Path, Path | None, Recipe]) -> _Survey:
    """List the records; index them at once where they are few, or where there is no place to keep an index."""
    path, place, recipe = task
    keys, warned = _sample_keys(LmdbFile(path))
    if len(keys) < KEPT_FROM or place is None:
        header, columns = index_rows(path, keys, recipe)
        header |= _about(path, keys, state_of(path), [warned] if warned else [])
        return _Survey(len(keys), array_file.encoded(header, columns))
    _refuse_what_is_no_layout(path, keys, recipe)
    work = _workplace(place)
    work.mkdir(exist_ok=True)
    state = state_of(path)
    header = _about(path, keys, state, [warned] if warned else [])
    if (work / "keys").exists() and _is_current(work / "keys", header):
        return _Survey(len(keys), None)
    shutil.rmtree(work, ignore_errors=True)  # of another version of the file
    work.mkdir()
    array_file.write(work / "keys", header, {"keys": [keys]})
    return _Survey(len(keys), None)


def _is_current(file: Path, header: dict[str, Any]) -> bool:
    try:
        return array_file.read(file).header == json.loads(json.dumps(header))
    except (OSError, Damaged):
        return False


def _refuse_what_is_no_layout(path: Path, keys: NDArray[Any], recipe: Recipe) -> None:
    """Say at once, and not after hours, that no record is of a layout that is read."""
    header, columns = index_rows(path, keys[:SAMPLED_ROWS], recipe)
    faults = header["faults"]
    if not len(columns["keys"][0]) and faults and all(NO_LAYOUT in reason for reason in faults):
        raise InputError(f"{path}: {next(iter(faults))}; {unreadable(path, faults)}")


def _sample_keys(file: LmdbFile) -> tuple[NDArray[Any], str]:
    """Keys of the samples in numerical order, less those that ASE has deleted; and a warning where counts disagree."""
    keys = file.sample_keys()
    deleted = _plain_metadata(file, b"deleted_ids")
    if isinstance(deleted, list) and deleted:
        gone = {str(i).encode() for i in deleted if type(i) is int}
        keys = [key for key in keys if key not in gone]
    stated = _plain_metadata(file, b"nextid")
    warning = ""
    if (
        type(stated) is int
        and isinstance(deleted, list | None)
        and stated - 1 - len(set(map(str, deleted or ()))) != len(keys)
    ):
        warning = f"nextid {stated} less deleted_ids does not give the {len(keys)} records that are there"
    if any(key != str(int(key)).encode() or len(key) > 18 for key in keys if key[:1] == b"0" or len(key) > 18):
        return np.array(keys), warning
    return np.array([int(key) for key in keys], dtype=np.uint64), warning


def _plain_metadata(file: LmdbFile, name: bytes) -> object:
    value = file.find(name)
    if value is None or not value.startswith(ase_rows.ZLIB_BEGINS):
        return None
    try:
        return ase_rows.plain(value)
    except RowError:
        return None


def _about(path: Path, keys: NDArray[Any], state: FileState, warnings: list[str]) -> dict[str, Any]:
    """The part of the header that says for which version of the file the index holds."""
    rows = sorted(set(np.linspace(0, len(keys) - 1, SAMPLED_ROWS).astype(int).tolist())) if len(keys) else []
    sampled = [key_bytes(keys[row]) for row in rows]
    digests = [_digest(value) for value in LmdbFile(path).get_all(sampled)]
    return {
        "format": FORMAT,
        "state": list(state),
        "sampled": [[key.decode(), digest] for key, digest in zip(sampled, digests, strict=True)],
        "warnings": warnings,
        "sha256": None,
    }


def _index_part(part: _Part, recipe: Recipe) -> None:
    keys = array_file.read(_workplace(part.place) / "keys").arrays["keys"][part.begin : part.end]
    header, columns = index_rows(part.path, keys, recipe)
    array_file.write(part.file, header, columns)


def index_rows(
    path: Path, keys: NDArray[Any], recipe: Recipe
) -> tuple[dict[str, Any], dict[str, Sequence[NDArray[Any]]]]:
    """Header and columns of the index of some records."""
    file = LmdbFile(path, in_order=True)
    header, columns = facts_of(
        file.get_all(map(key_bytes, keys)),
        again=lambda row: file.get(key_bytes(keys[row])),
        key=lambda row: key_bytes(keys[row]).decode(),
        n=len(keys),
        labels=recipe.keys,
        features=recipe.features,
    )
    rows = columns.pop("rows")
    return header, {"keys": [keys[rows]]} | {name: [column] for name, column in columns.items()}


def _assemble(parts: Sequence[_Part]) -> None:
    """Lay the parts of one shard end to end."""
    place = parts[0].place
    about = array_file.read(_workplace(place) / "keys").header
    contents = [array_file.read(part.file) for part in parts]
    header: dict[str, Any] = {"heads": [], "names": [], "faults": {}, "is2re": 0}
    rules, layouts = Counter[str](), Counter[str]()
    names: Counter[tuple[str | None, ...]] = Counter()
    sets: dict[tuple[int, int], int] = {}
    heads: dict[str | None, int] = {}
    columns: dict[str, list[NDArray[Any]]] = {name: [] for name in contents[0].arrays if name != "element_sets"}
    unusable: dict[tuple[str, str], int] = {}
    notes = Counter[str]()
    named = Counter[str]()
    first_row = 0
    for place_in_shard, part in zip(parts, contents, strict=True):
        new_kinds = [unusable.setdefault((q, reason), len(unusable)) for q, reason in part.header["unusable"]]
        new_sets = [sets.setdefault((int(a), int(b)), len(sets)) for a, b in part.arrays["element_sets"]]
        new_heads = [heads.setdefault(name, len(heads)) for name in part.header["heads"]]
        for name, pieces in columns.items():
            values = part.arrays[name]
            if name == "elements":
                values = np.array(new_sets or [0], dtype="u4")[values]
            elif name == "heads":
                values = np.array(new_heads or [0], dtype="u2")[values]
            elif name == "unusable_kinds":
                values = np.array(new_kinds or [0], dtype="u2")[values]
            elif name == "unusable_rows":
                values = values + np.uint64(first_row)
            elif name == "refused_rows":
                values = values + np.uint64(place_in_shard.begin)
            pieces.append(values)
        first_row += len(part.arrays["keys"])
        notes.update(part.header["notes"])
        named.update(part.header["named"])
        rules.update(part.header["pbc_rules"])
        layouts.update(part.header["layouts"])
        header["is2re"] += part.header["is2re"]
        for found, count in part.header["names"]:
            names[tuple(found)] += count
        for reason, (count, offenders) in part.header["faults"].items():
            entry = header["faults"].setdefault(reason, [0, []])
            entry[0] += count
            entry[1] = [*entry[1], *offenders][:SHOWN_OFFENDERS]
    header |= {"names": [[list(n), count] for n, count in names.items()], "heads": list(heads)}
    header |= {
        "pbc_rules": rules,
        "layouts": layouts,
        "notes": notes,
        "named": named,
        "unusable": list(unusable),
        **about,
    }
    bits = np.array(list(sets), dtype=np.uint64).reshape(-1, 2)
    array_file.write(place, header, {**columns, "element_sets": [bits]})


# ---- edges


class _EdgePart(NamedTuple):
    """Records of one shard whose neighbours are to be counted."""

    index_place: Path | None
    path: Path
    begin: int
    end: int
    keys: NDArray[Any] | None  # where the index lies in memory


def edge_counts(
    indexes: Sequence[ShardIndex], recipe: Recipe, r_max: float, max_neighbors: int
) -> list[NDArray[np.uint32]]:
    """Directed edges within ``r_max`` (Å) of every row of every index; counted in parallel once, and kept.

    What was counted and kept where more neighbours per atom were allowed is not looked at again.

    Raises:
        InputError: the neighbours of a record show that it is broken.
    """
    counts: dict[int, NDArray[np.uint32]] = {}
    parts: list[tuple[int, _EdgePart]] = []
    for number, index in enumerate(indexes):
        kept = _kept_edges(index, r_max)
        if kept is not None:
            counts[number] = kept
            continue
        keys = index.keys if index.place is None else None
        parts += [
            (number, _EdgePart(index.place, index.path, a, b, None if keys is None else keys[a:b]))
            for a, b in (_cuts(len(index)) if len(index) else [])
        ]
        counts[number] = np.zeros(len(index), dtype=np.uint32)
    total = sum(part.end - part.begin for _, part in parts)
    with Progress("neighbours", total, "records") as bar:
        work = partial(_count_edges, recipe=recipe, r_max=r_max, max_neighbors=max_neighbors)
        for done, found in parallel.in_children(work, [part for _, part in parts]):
            number, part = parts[done]
            counts[number][part.begin : part.end] = found
            bar.update(part.end - part.begin)
    for number in {number for number, _ in parts}:
        _keep_edges(indexes[number], r_max, counts[number])
    return [counts[number] for number in range(len(indexes))]


def _edges_place(index: ShardIndex, r_max: float) -> Path | None:
    return None if index.place is None else index.place.with_name(f"{index.place.name}.edges-{r_max!r}")


def _kept_edges(index: ShardIndex, r_max: float) -> NDArray[np.uint32] | None:
    place = _edges_place(index, r_max)
    if place is None:
        return None
    try:
        contents = array_file.read(place)
        if contents.header == {"identity": index.identity} and len(contents.arrays["n_edges"]) == len(index):
            return contents.arrays["n_edges"]
    except (OSError, Damaged, KeyError):
        pass
    return None


def _keep_edges(index: ShardIndex, r_max: float, counts: NDArray[np.uint32]) -> None:
    place = _edges_place(index, r_max)
    if place is not None:
        with contextlib.suppress(OSError):
            array_file.write(place, {"identity": index.identity}, {"n_edges": [counts]})
            shutil.rmtree(_workplace(place), ignore_errors=True)


def _count_edges(part: _EdgePart, recipe: Recipe, r_max: float, max_neighbors: int) -> NDArray[np.uint32]:
    """The edges of some records; kept in a part file, so that what is counted stays counted."""
    keys, file = part.keys, None
    if part.index_place is not None:
        contents = array_file.read(part.index_place)
        keys = contents.arrays["keys"][part.begin : part.end]
        work = _workplace(part.index_place.with_name(f"{part.index_place.name}.edges-{r_max!r}"))
        identity = ShardIndex(part.path, part.index_place, contents).identity
        name = f"{identity[:16]}-{part.begin:012d}-{part.end:012d}"
        with contextlib.suppress(OSError):
            work.mkdir(exist_ok=True)
            file = work / name
            if file.exists():
                with contextlib.suppress(Damaged, KeyError):
                    return array_file.read(file).arrays["n_edges"].copy()
    assert keys is not None
    counts = np.zeros(len(keys), dtype=np.uint32)
    for row, value in enumerate(LmdbFile(part.path, in_order=True).get_all(map(key_bytes, keys))):
        where = f"{part.path} key {key_bytes(keys[row]).decode()}"
        try:
            structure = decode(value, where, recipe.keys, recipe.features).structure
            counts[row] = count_edges(structure, r_max, max_neighbors)
        except (RowError, LabelError, GraphFault) as fault:
            raise InputError(f"{where}: {fault}") from None
    if file is not None:
        with contextlib.suppress(OSError):
            array_file.write(file, {}, {"n_edges": [counts]})
    return counts
