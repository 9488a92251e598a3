"""Any sources to packed shards: looked through once, split, written in parallel, continued after a kill."""

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from dataloader.packed.recipe import PackingRecipe, asked_for
from dataloader.packed.split_report import split_survey
from dataloader.packed.splitting import Assignment
from dataloader.packed.survey import Survey, survey_of
from dataloader.progress import ProgressBar
from dataloader.work_folder import LOCK, LOOK_EVERY, TRIES, Overtaken, WorkFolder, holder, overtaken, own_name, take

WORK = "packing"  # folder of what is not finished; removed at the end


def pack(sources: Sequence[Source], output: Path, recipe: PackingRecipe, say: Callable[[str], None]) -> dict[str, Any]:
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
    asked = asked_for(sources, recipe)
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
    sources: Sequence[Source], output: Path, recipe: PackingRecipe, folder: WorkFolder, say: Callable[[str], None]
) -> dict[str, Any]:
    """Pack in a folder that this process has."""
    asked = asked_for(sources, recipe)
    work = folder.path
    with overtaken(work):
        if folder.alone:
            for begun in work.glob("*.tmp"):
                begun.unlink(missing_ok=True)
        _write_json(work / "asked.json", asked, work)
        survey = survey_of(sources, recipe)
        assignment, report = split_survey(survey, sources, recipe)
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


class _Shard(NamedTuple):
    """A file to be written: rows number ``begin`` to ``begin + n`` of the rows of its split."""

    split: str
    folder: Path
    number: int
    begin: int
    n: int
    plan: Path


def _shards(split: str, folder: Path, work: Path, assignment: Assignment, recipe: PackingRecipe) -> list[_Shard]:
    """Shards of one split; the pool lies in random order, and its shards end where a stage ends."""
    rows = np.nonzero(assignment.split == assignment.names.index(split))[0]
    cuts = {0, len(rows)}
    if split == assignment.names[0] and recipe.stages:
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
    with ProgressBar("pack", sum(task.n for task in tasks)) as bar:
        for number, entry in parallel.in_children(write, tasks):
            entries[tasks[number]] = entry
            bar.update(tasks[number].n)
    return entries


def _write_shard(
    task: _Shard, sources: Sequence[Source], survey: Survey, recipe: PackingRecipe, work: Path
) -> dict[str, Any]:
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
    rows: NDArray[np.int64], sources: Sequence[Source], survey: Survey, recipe: PackingRecipe, n_atoms: list[int]
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
