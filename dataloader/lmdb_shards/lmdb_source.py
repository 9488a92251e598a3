"""The usable records of LMDB shards as structures; faulty ones are dropped and counted
when the index is made.
"""

import contextlib
from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataloader import progress
from dataloader.data_file import Census, Format, ShardRecords, SourceSpec, Streamed, Wanted, given
from dataloader.errors import InputError, RowError
from dataloader.filters import NO_FILTERS, FilterColumns, Filters, apply_filters
from dataloader.labels import LabelError, LabelKeys, LabelNeeds
from dataloader.lmdb_file import SHARD_ENDINGS, LmdbFile, shards_of
from dataloader.lmdb_shards import row_facts as index_bits
from dataloader.lmdb_shards.kept_edges import edge_counts
from dataloader.lmdb_shards.lmdb_index import open_indexes
from dataloader.lmdb_shards.lmdb_record import NO_LAYOUT, decode, record_of, unreadable
from dataloader.lmdb_shards.shard_index import IndexRecipe, outdated
from dataloader.lookup import Elements, Lookup
from dataloader.needs import FeatureSpec
from dataloader.neighbors import too_many
from dataloader.packed import packed_manifest
from dataloader.quantities import QUANTITIES
from dataloader.record import EVERYTHING, Keep
from dataloader.structure import Structure

SHOWN_OFFENDERS = index_bits.SHOWN_OFFENDERS


class LmdbSource:
    """The usable records of one LMDB or of a directory, pattern or manifest of shards."""

    in_memory = False
    ratio: float | None = None

    def __init__(
        self,
        path: Path,
        keys: LabelKeys,
        *,
        needs: LabelNeeds,
        max_dropped: float,
        features: Sequence[FeatureSpec] = (),
        filters: Filters = NO_FILTERS,
        keep: Keep = (),
    ) -> None:
        self.keep: Keep = keep if keep == EVERYTHING else tuple(keep)
        self.max_neighbors = filters.max_neighbors
        self.path = path
        self.recipe = IndexRecipe(keys, tuple(features))
        manifest = packed_manifest.beside(path)
        self.shards = manifest.shards if manifest else shards_of(path)
        self.indexes = open_indexes(
            self.shards, self.recipe, verify=filters.verify, hashed=manifest is not None
        )
        if manifest:
            manifest.compare([index.sha256 for index in self.indexes])
        self.files = [LmdbFile(shard) for shard in self.shards]
        self._edges: dict[float, NDArray[Any]] = {}
        self._ends = np.cumsum([len(index) for index in self.indexes])
        self.census = Census(path=path, first_names=partial(names_of_first, self.files))
        for shard, index in enumerate(self.indexes):
            for reason, (count, offenders) in index.faults.items():
                self._count(
                    self.census.dropped,
                    reason,
                    count,
                    [self._shown_key(shard, key) for key in offenders],
                )
        self._collect_names()
        self._choose(needs, filters)
        self._refuse_too_many_drops(max_dropped, needs)
        self.isolated_atoms = [self._read(int(row)) for row in self._isolated]

    def _collect_names(self) -> None:
        """Counts and values by row, laid end to end over the shards."""
        census = self.census
        for index in self.indexes:
            for names, count in index.header["names"]:
                census.label_names[tuple(names)] += count
            census.pbc_rules.update(index.header["pbc_rules"])
            census.layouts.update(index.header["layouts"])
            census.notes.update(index.header["notes"])
            census.named.update(index.header["named"])
            census.warnings += [
                f"{index.path.name}: {text}" for text in index.header.get("warnings", ())
            ]
        for shard in self.shards:
            for place in outdated(shard):
                census.warnings.append(
                    f"{place} was made by an earlier version and is not used any more: remove it"
                )

    def _choose(self, needs: LabelNeeds, filters: Filters) -> None:
        """Rows that are used; why the others are not."""
        labels = self._column("labels")
        usable = np.ones(len(labels), dtype=bool)
        isolated = labels & index_bits.ISOLATED > 0
        self._drop_without_labels(usable, labels, needs)
        self._isolated = np.nonzero(usable & isolated)[0]
        usable &= ~isolated
        atoms = self._column("n_atoms")
        elements = self._all_elements()
        apply_filters(
            FilterColumns(
                n_atoms=atoms,
                elements=lambda: elements,
                max_force=self._column("max_force"),
                charged=labels & index_bits.CHARGED > 0,
                open_shell=labels & index_bits.OPEN_SHELL > 0,
            ),
            filters,
            self.recipe.features,
            usable=lambda: usable,
            drop=lambda has, reason: self._drop(usable, has, reason, self.census.left_out),
            where=self._place,
            path=self.path,
        )
        everything = bool(usable.all())
        self._rows: NDArray[np.int64] | None = None if everything else np.nonzero(usable)[0]
        self.n_atoms = self._used(atoms)
        self.elements = Elements(self._used(elements.ids), elements.bits)
        heads = self._all_heads()
        self.heads = Lookup(self._used(heads.ids), heads.values)
        self.free_components = self._used(self._column("free_components"))
        self.labels = self._used(labels)

    def _drop_without_labels(
        self, usable: NDArray[np.bool_], labels: NDArray[np.uint32], needs: LabelNeeds
    ) -> None:
        """Take out rows that lack a label that is required, or have one that is looked
        at and cannot be used.
        """
        isolated = labels & index_bits.ISOLATED > 0
        for (faulty, reason), rows in self._unusable_labels().items():
            unknown = reason.endswith(index_bits.UNKNOWN)
            concerned = np.zeros(len(labels), dtype=bool)
            concerned[rows] = True
            concerned &= True if QUANTITIES[faulty].of_isolated_atoms else ~isolated
            if faulty in needs.required or (needs.judges(faulty) and not unknown):
                self._drop(usable, concerned, reason, self.census.dropped)
            elif not unknown:
                self.census.notes[
                    f"{reason}: taken as absent, since the {faulty} is not looked at"
                ] += int(concerned.sum())
        for quantity in QUANTITIES.values():
            if quantity.name not in needs.required:
                continue
            absent = labels & index_bits.label_bit(quantity.name) == 0
            if not quantity.of_isolated_atoms:
                absent &= ~isolated
            if quantity.needs_volume:
                absent &= labels & index_bits.PERIODIC > 0
            self._drop(usable, absent, f"{quantity.name} missing", self.census.dropped)

    def _unusable_labels(self) -> dict[tuple[str, str], NDArray[np.int64]]:
        """Rows whose label of a quantity gives no number, by quantity and reason."""
        rows: dict[tuple[str, str], list[NDArray[np.int64]]] = {}
        first = 0
        for index in self.indexes:
            for number, kind in enumerate(index.unusable):
                own = index.unusable_rows[index.unusable_kinds == number].astype(np.int64)
                rows.setdefault(kind, []).append(own + first)
            first += len(index)
        return {kind: np.concatenate(parts) for kind, parts in rows.items()}

    def _column(self, name: str) -> NDArray[Any]:
        columns = [getattr(index, name) for index in self.indexes]
        return columns[0] if len(columns) == 1 else np.concatenate(columns)

    def _all_elements(self) -> Elements:
        """Numbers of element sets, common to all shards."""
        if len(self.indexes) == 1:
            return Elements(self.indexes[0].elements, self.indexes[0].element_sets)
        sets = np.concatenate([index.element_sets for index in self.indexes])
        bits, numbers = np.unique(sets, axis=0, return_inverse=True)
        firsts = np.cumsum([0, *(len(index.element_sets) for index in self.indexes)])
        parts = [
            numbers.reshape(-1)[first : first + len(index.element_sets)].astype(np.uint32)[
                index.elements
            ]
            for first, index in zip(firsts, self.indexes, strict=False)
        ]
        return Elements(np.concatenate(parts), bits)

    def _all_heads(self) -> Lookup[str | None]:
        """Numbers of heads, common to all shards."""
        names: dict[str | None, int] = {}
        columns = []
        for index in self.indexes:
            table = [names.setdefault(name, len(names)) for name in index.head_names]
            same = table == list(range(len(table)))
            columns.append(
                index.heads if same else np.array(table, dtype=index.heads.dtype)[index.heads]
            )
        return Lookup(columns[0] if len(columns) == 1 else np.concatenate(columns), list(names))

    def _used(self, column: NDArray[Any]) -> NDArray[Any]:
        return column if self._rows is None else column[self._rows]

    def _drop(
        self, usable: NDArray[np.bool_], bad: NDArray[np.bool_], reason: str, into: Counter[str]
    ) -> None:
        """Take rows out and count them under the first reason that they fall to."""
        fallen = usable & bad
        count = int(fallen.sum())
        if count:
            first = np.nonzero(fallen)[0][:SHOWN_OFFENDERS]
            self._count(
                into, reason, count, [self._shown_key(*self._shard_row(int(row))) for row in first]
            )
            usable &= ~bad

    def _count(self, into: Counter[str], reason: str, count: int, offenders: list[str]) -> None:
        into[reason] += count
        shown = self.census.offenders.get(reason, [])
        self.census.offenders[reason] = [*shown, *offenders][:SHOWN_OFFENDERS]

    def _shown_key(self, shard: int, key: str | int) -> str:
        text = key if isinstance(key, str) else self.indexes[shard].key(key).decode()
        return text if len(self.shards) == 1 else f"{self.shards[shard].name}:{text}"

    def _refuse_too_many_drops(self, max_dropped: float, needs: LabelNeeds) -> None:
        census = self.census
        dropped = census.dropped.total()
        total = sum(index.n_records for index in self.indexes)
        if total == 0:
            raise InputError(f"{self.path} holds no samples (keys 0, 1, 2 …)")
        useless = not len(self) and not census.left_out and not len(self._isolated)
        if dropped <= max_dropped * total and not useless:
            return
        relaxed = sum(index.header["is2re"] for index in self.indexes)
        missing = census.dropped["forces missing"] + census.dropped["energy missing"]
        if needs.required and relaxed and missing >= relaxed:
            raise InputError(
                f"{self.path}: {relaxed} of {total} records are IS2RE rows (y_relaxed, "
                "pos_relaxed) without energy and forces of the positions they hold "
                f"({census.drop_report()}); take an S2EF set"
            )
        if any(NO_LAYOUT in reason for reason in census.dropped):
            raise InputError(
                f"{self.path}: {dropped} of {total} records cannot be read "
                f"({census.drop_report()}); {unreadable(self.path, census.dropped)}"
            )
        has = ""
        if any(reason.endswith(" missing") for reason in census.dropped):
            has = f"; the first record has: {', '.join(census.first_names()) or 'nothing'}"
        raise InputError(
            f"{self.path}: {dropped} of {total} records cannot be used "
            f"({census.drop_report()}){has}; mend them, name the labels with "
            "--energy_key/--forces_key, give a loss the weight 0, take partly labelled data with "
            f"--allow_missing_labels, or raise --max_dropped {max_dropped:g}"
        )

    def __len__(self) -> int:
        return len(self.n_atoms)

    def _row(self, i: int) -> int:
        return i if self._rows is None else int(self._rows[i])

    def _shard_row(self, row: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self._ends, row, side="right"))
        return shard, row - (int(self._ends[shard - 1]) if shard else 0)

    def _place(self, row: int) -> str:
        shard, local = self._shard_row(row)
        return f"{self.shards[shard].name} key {self.indexes[shard].key(local).decode()}"

    def identifier(self, i: int) -> str:
        """Shard and key of the i-th usable structure, as a person finds it."""
        return self._place(self._row(i))

    def records(self, indices: NDArray[np.integer]) -> list[ShardRecords]:
        """Which records some structures are, shard by shard."""
        rows = np.asarray(indices, dtype=np.int64)
        rows = rows if self._rows is None else self._rows[rows]
        shards = np.searchsorted(self._ends, rows, side="right")
        parts: list[ShardRecords] = []
        for shard in np.unique(shards).tolist():
            first = int(self._ends[shard - 1]) if shard else 0
            local = np.sort(rows[shards == shard]) - first
            index = self.indexes[shard]
            keys = tuple(index.key(int(row)).decode() for row in local)
            parts.append(
                ShardRecords(self.shards[shard], keys, tuple(index.record_numbers(local).tolist()))
            )
        return parts

    def structure(self, i: int) -> Structure:
        """Decode the i-th usable record.

        Raises:
            InputError: the record could be read when it was indexed and cannot be now.
        """
        return self._read(self._row(i))

    def _read(self, row: int) -> Structure:
        shard, local = self._shard_row(row)
        index = self.indexes[shard]
        key = index.key(local)
        value = self.files[shard].get(key)
        try:
            structure = decode(
                value, self._place(row), self.recipe.keys, self.recipe.features, self.keep
            ).structure
        except (RowError, LabelError) as error:
            raise InputError(
                f"{index.path} key {key.decode()}: {error}; did the file change?"
            ) from None
        if structure.n_atoms != index.n_atoms[local]:
            raise InputError(
                f"{index.path} key {key.decode()}: has {structure.n_atoms} atoms where its index "
                f"has {index.n_atoms[local]}; did the file change? remove {index.place}"
            )
        return structure

    def labelled_rows(
        self, indices: NDArray[np.integer], *, free_atoms_only: bool
    ) -> dict[str, int]:
        """Rows with a label by quantity over some structures, from the columns of the index."""
        bits = self.labels[indices]
        free = self.free_components[indices].astype(np.int64) // 3 if free_atoms_only else None
        n_atoms = self.n_atoms[indices].astype(np.int64)
        rows = dict[str, int]()
        for name, quantity in QUANTITIES.items():
            of_one = (
                (free if free is not None and quantity.of_free_atoms else n_atoms)
                if quantity.per_atom
                else 1
            )
            rows[name] = int(((bits & index_bits.label_bit(name) > 0) * of_one).sum())
        return rows

    def edges(self, r_max: float) -> NDArray[np.uint32]:
        """Directed edges of every usable record, (len,); counted in parallel once, and
        kept beside the index.

        Raises:
            InputError: the neighbours of a record show that it is broken.
        """
        if r_max not in self._edges:
            counts = edge_counts(self.indexes, self.recipe, r_max, self.max_neighbors)
            n_edges = self._used(counts[0] if len(counts) == 1 else np.concatenate(counts))
            # counted where more may be
            many = n_edges > self.max_neighbors * np.asarray(self.n_atoms, dtype=np.int64)
            if many.any():
                i = int(many.argmax())
                fault = too_many(int(n_edges[i]), int(self.n_atoms[i]), self.max_neighbors)
                raise InputError(f"{self.path}: {self.identifier(i)}: {fault}")
            self._edges[r_max] = n_edges
        return self._edges[r_max]

    def content(self) -> bytes:
        """What tells these data from others."""
        return b"".join(f"{index.identity}{len(index)}".encode() for index in self.indexes)

    def says_what_was_held(self, indices: NDArray[np.integer]) -> bool:
        """Whether one of some structures names held atoms, by the columns of the index."""
        return bool((self.labels[indices] & index_bits.FREE_MASK).any())

    def every_record(self) -> bytes:
        """The checksums of all records."""
        return b"".join(index.records.encode() for index in self.indexes)


def names_of_first(files: Sequence[LmdbFile]) -> tuple[str, ...]:
    """Names in the first record that can be read."""
    for file in files:
        for key in file.sample_keys()[:SHOWN_OFFENDERS]:
            with contextlib.suppress(RowError):
                record, _ = record_of(file.get(key))
                return tuple(
                    sorted(str(name) for name, value in record.items() if value is not None)
                )[:40]
    return ()


def _opened(spec: SourceSpec, wanted: Wanted) -> LmdbSource:
    return LmdbSource(
        spec.path,
        spec.keys,
        needs=wanted.needs,
        max_dropped=wanted.max_dropped,
        features=wanted.features,
        filters=wanted.filters,
        keep=spec.keep,
    )


def _streamed(spec: SourceSpec, wanted: Wanted) -> Streamed:
    source = _opened(spec, wanted)
    rows = (
        np.arange(len(source))
        if wanted.elements is None
        else np.nonzero(source.elements.within(wanted.elements))[0]
    )
    shown = progress.over(rows, "statistics", len(rows))
    by_number = (partial(source.structure, int(row)) for row in shown)
    return Streamed(source.census, chain(map(given, source.isolated_atoms), by_number))


def is_one_data_set(folder: Path) -> bool:
    """Whether a folder is an LMDB or a packed data set itself, and not one in which shards lie."""
    return (folder / "data.mdb").exists() or (folder / packed_manifest.NAME).exists()


def _takes(path: Path) -> bool:
    """Whether a name is that of an LMDB, of a directory of shards, or of a packed data set."""
    if path.suffix in SHARD_ENDINGS or packed_manifest.is_name(path.name):
        return True
    if not path.is_dir():
        return False
    if is_one_data_set(path):
        return True
    try:
        return any(entry.suffix in SHARD_ENDINGS for entry in path.iterdir())
    except OSError:
        return True  # which then says why it cannot be listed


LMDB = Format(
    name="lmdb",
    what="an LMDB",
    takes=_takes,
    opened=_opened,
    streamed=_streamed,
    endings=SHARD_ENDINGS,
)
