"""Any sources to packed shards: looked through once, dealt out, written in parallel, continued after a kill."""

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dataloader import array_file, durable, input_files, parallel, plain_json
from dataloader.data_file import Source
from dataloader.errors import InputError
from dataloader.limits import JSON_BYTES
from dataloader.lmdb_file import write_lmdb
from dataloader.neighbors import GraphFault, build_graph, stored_edges
from dataloader.packed import packed_manifest, packed_rows
from dataloader.packed.duplicates import components, fingerprint, hashed
from dataloader.packed.splitting import Assignment, assign
from dataloader.progress import Progress
from dataloader.structure import Structure
from dataloader.work_folder import LOCK, LOOK_EVERY, TRIES, Overtaken, WorkFolder, holder, overtaken, own_name, take

ROWS_AT_ONCE = 2000
SHOWN = 5
WORK = "packing"  # folder of what is not finished; removed at the end


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to pack."""

    rows_per_shard: int
    r_max: float | None  # Å, of stored neighbour lists
    max_neighbors: int  # see ``neighbors.build_graph``
    id_key: str | None
    group_key: str | None
    shares: Mapping[str, float]
    listed: Mapping[str, frozenset[str]]  # identifiers by split
    stages: Sequence[int]  # sizes of nested subsets of the first split
    drop_duplicates: bool
    seed: int


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


def pack(sources: Sequence[Source], output: Path, recipe: Recipe, say: Callable[[str], None]) -> dict[str, Any]:
    """Pack all structures of the sources; what an earlier try has finished is taken over.

    Args:
        sources: opened.
        output: folder of the shards, or of one folder for each split.
        recipe: how.
        say: takes lines for the log.

    Returns:
        The report, which also lies in report.json.

    Raises:
        InputError: a structure cannot be packed, the ID files contradict each other, or the folder holds other shards.
        OSError: the folder cannot be written.
    """
    asked = _asked(sources, recipe)
    tries = 0
    while not _finished(output, asked):
        _refuse_another(output, asked)
        with _alone(output, say) as work:
            try:
                if not _finished(output, asked):
                    _refuse_another(output, asked)  # what was made while this process waited
                    return _pack(sources, output, recipe, work, say)
            except Overtaken:
                tries += 1
                if tries == TRIES:
                    raise
    _remove_leftovers(output / WORK)
    say(f"{output} is packed already")
    return dict(plain_json.loads(input_files.read_text(output / "report.json", JSON_BYTES)))


def _pack(
    sources: Sequence[Source], output: Path, recipe: Recipe, folder: WorkFolder, say: Callable[[str], None]
) -> dict[str, Any]:
    """Pack in a folder that this process has."""
    asked = _asked(sources, recipe)
    work = folder.path
    with overtaken(work):
        if folder.alone:
            for begun in work.glob("*.tmp"):
                begun.unlink(missing_ok=True)
        _write_json(work / "asked.json", asked, work)
        survey = _survey(sources, recipe)
        assignment, report = _deal(survey, sources, recipe)
        for line in report["lines"]:
            say(line)
        folders = {name: output / name if len(assignment.names) > 1 else output for name in assignment.names}
        tasks = [task for name in assignment.names for task in _shards(name, folders[name], work, assignment, recipe)]
        for path in folders.values():
            path.mkdir(parents=True, exist_ok=True)
        write = partial(_write_shard, sources=sources, survey=survey, recipe=recipe, work=work)
        entries = _written(tasks, write)
        for name in assignment.names:
            mine = [entries[task] for task in tasks if task.split == name]
            if not mine:
                raise InputError(f"no structure falls to {name}; give it a larger share, or leave it out")
            stages = recipe.stages if name == assignment.names[0] else ()
            _write_manifests(folders[name], name, mine, asked, stages, work)
        _write_json(output / "report.json", report | {"asked": asked}, work)
    folder.finish()
    return report


def _asked(sources: Sequence[Source], recipe: Recipe) -> dict[str, Any]:
    """What determines the shards: the data and the settings."""
    listed = {name: hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest() for name, ids in recipe.listed.items()}
    return {
        "data": [hashlib.sha256(source.content()).hexdigest() for source in sources],
        "structures": [len(source) for source in sources],
        "rows_per_shard": recipe.rows_per_shard,
        "r_max": recipe.r_max,
        "id_key": recipe.id_key,
        "group_key": recipe.group_key,
        "shares": dict(recipe.shares),
        "listed": listed,
        "stages": list(recipe.stages),
        "drop_duplicates": recipe.drop_duplicates,
        "seed": recipe.seed,
    }


def _finished(output: Path, asked: Mapping[str, Any]) -> bool:
    try:
        return bool(plain_json.loads(input_files.read_text(output / "report.json", JSON_BYTES))["asked"] == asked)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _refuse_another(output: Path, asked: Mapping[str, Any]) -> None:
    """Refuse a folder with anything in it but an unfinished packing of the same data with the same settings.

    A folder in which a packing left nothing but its lock, because it was killed before it had said a word, is empty.
    """
    work = output / WORK
    entries = [entry.name for entry in output.iterdir()] if output.exists() else []
    if not entries:
        return
    try:
        begun = plain_json.loads(input_files.read_text(work / "asked.json", JSON_BYTES))
    except (OSError, ValueError):
        begun = None
    if begun is None and entries == [WORK] and work.is_dir() and all(map(_says_nothing, work.iterdir())):
        return
    if begun != asked:
        raise InputError(
            f"--output_dir {output} holds something else than an unfinished packing of these data with these settings; "
            "give an empty folder, or the settings it was begun with"
        )


def _says_nothing(entry: Path) -> bool:
    """Whether a file in the work folder was there before anything else was."""
    begun = entry.name.removeprefix(".").startswith("asked.json.") and entry.suffix == ".tmp"
    return begun or entry.name in (LOCK, "asked.json")


@contextlib.contextmanager
def _alone(output: Path, say: Callable[[str], None]) -> Iterator[WorkFolder]:
    """Have the work folder, after waiting for another process that packs there."""
    work = output / WORK
    waiting = False
    while (folder := take(work)) is None:
        if not waiting:
            say(f"waiting for {holder(work)}, which packs into {output}")
            waiting = True
        time.sleep(LOOK_EVERY)
    try:
        yield folder
    finally:
        folder.release()


def _remove_leftovers(work: Path) -> None:
    """What a process left that was killed when all was done."""
    with contextlib.suppress(OSError):
        if work.is_dir() and (folder := take(work)) is not None:
            folder.finish()


# ---- looking through


def _survey(sources: Sequence[Source], recipe: Recipe) -> Survey:
    slices = [
        _Slice(s, begin, min(begin + ROWS_AT_ONCE, len(source)))
        for s, source in enumerate(sources)
        for begin in range(0, len(source), ROWS_AT_ONCE)
    ]
    total = sum(map(len, sources))
    columns = np.zeros((3, total), dtype=np.uint64)
    first = np.concatenate([[0], np.cumsum([len(source) for source in sources])])
    with Progress("look through", total) as bar:
        for number, found in parallel.in_children(partial(_look, sources=sources, recipe=recipe), slices):
            part = slices[number]
            columns[:, first[part.source] + part.begin : first[part.source] + part.end] = found
            bar.update(part.end - part.begin)
    lengths = [len(source) for source in sources]
    return Survey(
        np.repeat(np.arange(len(sources), dtype=np.int32), lengths),
        np.concatenate([np.arange(n) for n in lengths]),
        *columns,
    )


def _look(part: _Slice, sources: Sequence[Source], recipe: Recipe) -> NDArray[np.uint64]:
    """Fingerprint, identifier and group of some structures."""
    found = np.zeros((3, part.end - part.begin), dtype=np.uint64)
    for column, row in enumerate(range(part.begin, part.end)):
        structure = sources[part.source].structure(row)
        found[0, column] = fingerprint(structure)
        for line, name in ((1, recipe.id_key), (2, recipe.group_key)):
            if name is not None:
                found[line, column] = hashed(name_in(structure, name).encode())
    return found


def name_in(structure: Structure, key: str) -> str:
    """Identifier or group of a structure.

    Raises:
        InputError: its record has none.
    """
    if key not in structure.extra:
        raise InputError(f"{structure.identifier}: {key} is missing or neither one number nor a text; name another key")
    return str(structure.extra[key])


# ---- dealing out


def _deal(survey: Survey, sources: Sequence[Source], recipe: Recipe) -> tuple[Assignment, dict[str, Any]]:
    def name(row: int) -> str:
        return sources[survey.source[row]].identifier(int(survey.row[row]))

    belongs = components([survey.geometry, survey.identifier, survey.group])
    listed = {
        split: _listed(survey.identifier, ids, split, recipe.id_key) for split, ids in recipe.listed.items() if ids
    }
    shares = recipe.shares or {"train": 1.0}
    found = assign(belongs, listed, shares, recipe.seed)
    same = components([survey.geometry])
    repeated = np.nonzero(same != np.arange(len(same)))[0]
    sets = np.unique(same[repeated])
    lines = [f"{len(repeated)} structures repeat {len(sets)} others: {_pairs(same, repeated, name)}"]
    if not len(repeated):
        lines = ["no structure repeats another"]
    if recipe.drop_duplicates and len(repeated):
        gone = repeated[found.split[repeated] != -1]
        found.split[gone] = -1
        lines.append(f"{len(gone)} repeated structures are left out")
    for reason, rows in found.left_out.items():
        lines.append(f"{len(rows)} left out: {reason} ({', '.join(map(name, rows[:SHOWN]))})")
    counts = {split: int((found.split == number).sum()) for number, split in enumerate(found.names)}
    lines += [f"{split}: {count} structures" for split, count in counts.items()]
    shown = [[name(int(same[row])), name(int(row))] for row in repeated[:1000]]
    report = {"structures": counts, "repeated": len(repeated), "repeated_pairs": shown, "lines": lines}
    report["leaks"] = _leaks(belongs, found.split)
    return found, report


def _pairs(same: NDArray[np.int64], repeated: NDArray[np.int64], name: Callable[[int], str]) -> str:
    shown = ", ".join(f"{name(int(row))} = {name(int(same[row]))}" for row in repeated[:SHOWN])
    return shown + (" …" if len(repeated) > SHOWN else "")


def _listed(identifiers: NDArray[np.uint64], ids: frozenset[str], split: str, id_key: str | None) -> NDArray[np.bool_]:
    wanted = np.array(sorted(hashed(name.encode()) for name in ids), dtype=np.uint64)
    rows = np.isin(identifiers, wanted)
    missing = len(wanted) - len(np.unique(identifiers[rows]))
    if missing:
        raise InputError(
            f"{missing} of the {len(wanted)} identifiers of the ID file of {split} are no {id_key} of any record; are "
            "they of these data, one on each line?"
        )
    return rows


def _leaks(belongs: NDArray[np.int64], split: NDArray[np.int8]) -> int:
    """Components that lie in two splits; none, by construction: counted again to be sure."""
    used = split != -1
    pairs = np.unique(np.stack([belongs[used], split[used].astype(np.int64)]), axis=1)
    return int(pairs.shape[1] - len(np.unique(pairs[0])))


# ---- writing


class _Shard(NamedTuple):
    """A file to be written: rows number ``begin`` to ``begin + n`` of the rows of its split."""

    split: str
    folder: Path
    number: int
    begin: int
    n: int
    plan: Path


def _shards(split: str, folder: Path, work: Path, found: Assignment, recipe: Recipe) -> list[_Shard]:
    """Shards of one split; the pool lies in random order, and its shards end where a stage ends."""
    rows = np.nonzero(found.split == found.names.index(split))[0]
    cuts = {0, len(rows)}
    if split == found.names[0] and recipe.stages:
        rows = np.random.default_rng([recipe.seed, 1]).permutation(rows)
        if max(recipe.stages) > len(rows):
            raise InputError(f"--stages {max(recipe.stages)} is more than the {len(rows)} structures of {split}")
        cuts |= set(recipe.stages)
    ordered = sorted(cuts)
    begins = [b for low, high in pairwise(ordered) for b in range(low, high, recipe.rows_per_shard)]
    plan = work / f"{split}.plan"
    array_file.write(plan, {}, {"rows": [rows]})
    ends = [min([*(c for c in ordered if c > b), len(rows)]) for b in begins]
    return [
        _Shard(split, folder, number, begin, min(end - begin, recipe.rows_per_shard), plan)
        for number, (begin, end) in enumerate(zip(begins, ends, strict=True))
    ]


def _written(tasks: Sequence[_Shard], write: Callable[[_Shard], dict[str, Any]]) -> dict[_Shard, dict[str, Any]]:
    """All shards, in parallel; their entries in the manifest."""
    entries = {}
    with Progress("pack", sum(task.n for task in tasks)) as bar:
        for number, entry in parallel.in_children(write, tasks):
            entries[tasks[number]] = entry
            bar.update(tasks[number].n)
    return entries


def _write_shard(task: _Shard, sources: Sequence[Source], survey: Survey, recipe: Recipe, work: Path) -> dict[str, Any]:
    """Write one shard; its entry in the manifest."""
    name = f"shard_{task.number:05d}.lmdb"
    note = work / f"{task.split}-{name}.json"
    path = task.folder / name
    try:
        entry = plain_json.loads(input_files.read_text(note, JSON_BYTES))
        if path.stat().st_size == entry["bytes"]:
            return dict(entry)
    except (OSError, ValueError, KeyError):
        pass
    with overtaken(work):
        rows = array_file.look(task.plan).arrays["rows"][task.begin : task.begin + task.n]
    n_atoms = [0]
    written = _packed(rows, sources, survey, recipe, n_atoms)
    try:
        with overtaken(work):
            size, digest = _write_file(path, own_name(work / f"{task.split}-{name}"), written)
            entry = {"file": name, "rows": len(rows), "atoms": n_atoms[0], "bytes": size, "sha256": digest}
            _write_json(note, entry, work)
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror or error}; make room and start again with the same settings, it "
            "goes on where it was"
        ) from None
    return entry


def _write_file(path: Path, temporary: Path, rows: Iterable[tuple[bytes, bytes]]) -> tuple[int, str]:
    """Write an LMDB under a temporary name, bring it to disk, and give it its name; bytes and sha256."""
    temporary.unlink(missing_ok=True)
    write_lmdb(temporary, rows)
    with temporary.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    size = temporary.stat().st_size
    durable.give_name(temporary, path)
    return size, digest


def _packed(
    rows: NDArray[np.int64], sources: Sequence[Source], survey: Survey, recipe: Recipe, n_atoms: list[int]
) -> Iterator[tuple[bytes, bytes]]:
    for number, row in enumerate(rows):
        structure = sources[survey.source[row]].structure(int(survey.row[row]))
        edges = None
        if recipe.r_max is not None:
            try:
                edges = stored_edges(
                    structure, build_graph(structure, recipe.r_max, recipe.max_neighbors), recipe.r_max
                )
            except GraphFault as fault:
                raise InputError(f"{structure.identifier}: {fault}") from None
        extra = {"origin": structure.identifier, **structure.extra}
        n_atoms[0] += structure.n_atoms
        yield b"%08d" % number, packed_rows.dumps(structure, edges=edges, extra=extra)


def _write_manifests(
    folder: Path,
    split: str,
    entries: Sequence[dict[str, Any]],
    asked: Mapping[str, Any],
    stages: Sequence[int],
    work: Path,
) -> None:
    content = {"format": packed_manifest.FORMAT, "split": split, "asked": asked}
    rows = np.cumsum([entry["rows"] for entry in entries])
    for size in stages:
        part = list(entries[: int(np.searchsorted(rows, size)) + 1])
        _write_json(folder / f"stage_{size}.json", content | {"rows": size, "shards": part}, work)
    _write_json(folder / packed_manifest.NAME, content | {"rows": int(rows[-1]), "shards": list(entries)}, work)


def _write_json(path: Path, content: Mapping[str, Any], work: Path) -> None:
    """Written in the work folder, which goes when all is done, and named when it is on the disk."""
    with durable.text_stream(path, made_in=work) as file:
        json.dump(content, file, indent=1, sort_keys=True)
