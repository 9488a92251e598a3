"""Shards of packed data, written in parallel: which structures each has, its file, the note
that says it is whole.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dataloader import durable, input_files, parallel, plain_json
from dataloader.data_file import Source
from dataloader.errors import START_AGAIN, InputError, cannot_write
from dataloader.limits import JSON_BYTES
from dataloader.lmdb_file import write_lmdb
from dataloader.neighbors import GraphFault, build_graph, stored_edges
from dataloader.packed import packed_rows
from dataloader.packed.duplicates import hashed
from dataloader.packed.packed_manifest import write_json
from dataloader.packed.recipe import PackingRecipe
from dataloader.packed.splitting import Assignment
from dataloader.packed.survey import Survey, name_in
from dataloader.progress import ProgressBar
from dataloader.work_folder import overtaken, own_name

MAX_IDS = 2**30  # bytes of the identifiers of one shard
IDS_ENDING = "_ids.txt"  # of the lists of a part's identifiers


class Shard(NamedTuple):
    """A file to be written: rows number ``begin`` to ``begin + n`` of the rows of its split."""

    split: str
    folder: Path
    number: int
    begin: int
    n: int

    @property
    def path(self) -> Path:
        """Where it is to lie."""
        return self.folder / f"shard_{self.number:05d}.lmdb"

    def note(self, work: Path) -> Path:
        """Where it is said that the file is whole."""
        return work / f"{self.split}-{self.path.name}.json"

    def ids(self, work: Path) -> Path:
        """Where its identifiers are listed until all shards are there, one on each line."""
        return work / f"{self.split}-{self.path.name}{IDS_ENDING}"


class Shards:
    """All shards of a packing, and how one of them is written.

    Args:
        assignment: the split of every structure.
        folders: of the shards of each split.
        survey: where each structure lies.
        sources: opened.
        recipe: how data are packed.
        work: the folder of what is not finished.

    Raises:
        InputError: a split has fewer structures than a stage asks for.
    """

    def __init__(
        self,
        assignment: Assignment,
        folders: Mapping[str, Path],
        survey: Survey,
        sources: Sequence[Source],
        recipe: PackingRecipe,
        work: Path,
    ) -> None:
        self.survey = survey
        self.sources = sources
        self.recipe = recipe
        self.work = work
        self.rows = {name: _rows_of(name, assignment, recipe) for name in assignment.names}
        stages = {
            name: recipe.stages if name == assignment.names[0] else () for name in assignment.names
        }
        self.all = [
            shard
            for name in assignment.names
            for shard in _cut(name, folders[name], self.rows[name], stages[name], recipe)
        ]
        self.stages = stages

    def entry(self, shard: Shard) -> dict[str, Any] | None:
        """What the manifest will say of a shard that is whole; None where it
        is still to be written.
        """
        try:
            entry = plain_json.loads(input_files.read_text(shard.note(self.work), JSON_BYTES))
            if self.recipe.id_key is not None:
                shard.ids(self.work).stat()  # a packing that an earlier version began has none
            return dict(entry) if shard.path.stat().st_size == entry["bytes"] else None
        except (OSError, ValueError, KeyError):
            return None

    def write_ids(self, folder: Path) -> None:
        """List the identifiers of each split in a file, each once, in the order of its
        shards; all are written.

        Raises:
            OSError: a list cannot be read or written.
        """
        for split in self.rows:
            seen: set[int] = set()  # hashes; frames of one trajectory may share an identifier
            temporary = own_name(self.work / f"{split}{IDS_ENDING}")
            with temporary.open("w", encoding="utf-8") as lines:
                for shard in (shard for shard in self.all if shard.split == split):
                    for name in input_files.read_text(shard.ids(self.work), MAX_IDS).splitlines():
                        number = hashed(name.encode())
                        if number not in seen:
                            seen.add(number)
                            lines.write(f"{name}\n")
            durable.give_name(temporary, folder / f"{split}{IDS_ENDING}")

    def write(self, shards: Sequence[Shard]) -> None:
        """Write some shards, in parallel; those that are whole stay as they are."""
        with ProgressBar("pack", sum(shard.n for shard in shards)) as bar:
            for number, _ in parallel.in_children(partial(_write_shard, shards=self), shards):
                bar.update(shards[number].n)


def _rows_of(split: str, assignment: Assignment, recipe: PackingRecipe) -> NDArray[np.int64]:
    """Rows of the survey that a split has, in the order in which they are packed; random
    where there are stages.
    """
    rows = np.nonzero(assignment.split == assignment.names.index(split))[0]
    if split != assignment.names[0] or not recipe.stages:
        return rows
    if max(recipe.stages) > len(rows):
        raise InputError(
            f"--stages {max(recipe.stages)} is more than the {len(rows)} structures of {split}"
        )
    return np.random.default_rng([recipe.seed, 1]).permutation(rows)


def _cut(
    split: str, folder: Path, rows: NDArray[np.int64], stages: Sequence[int], recipe: PackingRecipe
) -> list[Shard]:
    """The shards of one split; they end where a stage ends."""
    ordered = sorted({0, len(rows), *stages})
    begins = [b for low, high in pairwise(ordered) for b in range(low, high, recipe.rows_per_shard)]
    ends = [min(c for c in ordered if c > b) for b in begins]
    return [
        Shard(split, folder, number, begin, min(end - begin, recipe.rows_per_shard))
        for number, (begin, end) in enumerate(zip(begins, ends, strict=True))
    ]


def _write_shard(shard: Shard, shards: Shards) -> None:
    """Write one shard, and beside the work what the manifest will say of it."""
    if shards.entry(shard) is not None:
        return
    rows = shards.rows[shard.split][shard.begin : shard.begin + shard.n]
    n_atoms = [0]
    ids: list[str] = []
    written = _packed(rows, shards, n_atoms, ids)
    work = shards.work
    try:
        with overtaken(work):
            size, digest = _write_file(
                shard.path, own_name(work / f"{shard.split}-{shard.path.name}"), written
            )
            entry = {
                "file": shard.path.name,
                "rows": len(rows),
                "atoms": n_atoms[0],
                "bytes": size,
                "sha256": digest,
            }
            if shards.recipe.id_key is not None:
                durable.write_text(shard.ids(work), "".join(f"{name}\n" for name in ids))
            write_json(shard.note(work), entry, work)
    except OSError as error:
        raise cannot_write(shard.path, error, START_AGAIN, room=START_AGAIN) from None


def _write_file(
    path: Path, temporary: Path, rows: Iterable[tuple[bytes, bytes]]
) -> tuple[int, str]:
    """Write an LMDB under a temporary name, bring it to disk, and give it its
    name; bytes and sha256.
    """
    temporary.unlink(missing_ok=True)
    write_lmdb(temporary, rows)
    with temporary.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    size = temporary.stat().st_size
    durable.give_name(temporary, path)
    return size, digest


def _packed(
    rows: NDArray[np.int64], shards: Shards, n_atoms: list[int], ids: list[str]
) -> Iterator[tuple[bytes, bytes]]:
    survey = shards.survey
    recipe = shards.recipe
    for number, row in enumerate(rows):
        structure = shards.sources[survey.source[row]].structure(int(survey.row[row]))
        edges = None
        if recipe.r_max is not None:
            try:
                edges = stored_edges(
                    structure,
                    build_graph(structure, recipe.r_max, recipe.max_neighbors),
                    recipe.r_max,
                )
            except GraphFault as fault:
                raise InputError(f"{structure.identifier}: {fault}") from None
        extra = {"origin": structure.identifier, **structure.extra}
        n_atoms[0] += structure.n_atoms
        if recipe.id_key is not None:
            ids.append(name_in(structure, recipe.id_key))
        yield b"%08d" % number, packed_rows.dumps(structure, edges=edges, extra=extra)
