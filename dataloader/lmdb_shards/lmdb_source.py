"""The usable records of LMDB shards as structures; faulty ones are dropped and counted when the index is made."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dataloader.batch import FeatureSpec
from dataloader.errors import InputError
from dataloader.labels import LabelError, LabelKeys
from dataloader.lmdb_shards import row_facts as index_bits
from dataloader.lmdb_shards.lmdb_file import LmdbFile, shards_of
from dataloader.lmdb_shards.lmdb_index import Recipe, ShardIndex, edge_counts, open_indexes
from dataloader.lmdb_shards.lmdb_record import ALIASES, NO_LAYOUT, SUPPORTED, decode
from dataloader.lmdb_shards.lookup import Elements, Lookup
from dataloader.lmdb_shards.restricted_pickle import RowError
from dataloader.neighbors import MAX_NEIGHBORS, too_many
from dataloader.packed import packed_manifest
from dataloader.structure import Structure

SHOWN_OFFENDERS, SHOWN_REASONS = index_bits.SHOWN_OFFENDERS, 5
CHARGE_BITS = {"total_charge": index_bits.CHARGED, "total_spin": index_bits.OPEN_SHELL}


@dataclass(frozen=True, kw_only=True)
class Filters:
    """Which records of an LMDB are used; those left out by choice do not count as faulty."""

    max_atoms: int | None = None
    max_force: float | None = None  # eV/Å
    max_neighbors: int = MAX_NEIGHBORS  # see ``neighbors.build_graph``
    verify: bool = False
    charges: Literal["refuse", "drop", "keep"] = "refuse"  # that the model has no input for


NO_FILTERS = Filters()


class LmdbSource:
    """The usable records of one LMDB or of a directory, pattern or manifest of shards."""

    in_memory = False

    def __init__(
        self,
        path: Path,
        keys: LabelKeys,
        *,
        require_labels: bool,
        max_dropped: float,
        features: Sequence[FeatureSpec] = (),
        filters: Filters = NO_FILTERS,
        keep: Sequence[str] = (),
    ) -> None:
        self.keep = tuple(keep)
        self.max_neighbors = filters.max_neighbors
        self.path, self.recipe = path, Recipe(keys, tuple(features))
        manifest = packed_manifest.beside(path)
        self.shards = manifest.shards if manifest else shards_of(path)
        self.indexes = open_indexes(self.shards, self.recipe, verify=filters.verify, hashed=manifest is not None)
        if manifest:
            manifest.compare([index.sha256 for index in self.indexes])
        self.files = [LmdbFile(shard) for shard in self.shards]
        self._edges: dict[float, NDArray[Any]] = {}
        self._ends = np.cumsum([len(index) for index in self.indexes])
        self.dropped: Counter[str] = Counter()  # faulty
        self.left_out: Counter[str] = Counter()  # by choice
        self.offenders: dict[str, list[str]] = {}
        for shard, index in enumerate(self.indexes):
            for reason, (count, offenders) in index.faults.items():
                self._count(self.dropped, reason, count, [self._shown_key(shard, key) for key in offenders])
        self._collect_names()
        self._choose(require_labels, filters)
        self._refuse_too_many_drops(max_dropped, require_labels)
        self.isolated_atoms = [self._read(int(row)) for row in self._isolated]

    def _collect_names(self) -> None:
        """Counts and values by row, laid end to end over the shards."""
        self.label_names: Counter[tuple[str | None, str | None, str | None]] = Counter()
        self.pbc_rules: Counter[str] = Counter()
        self.layouts: Counter[str] = Counter()
        for index in self.indexes:
            for names, count in index.header["names"]:
                self.label_names[tuple(names)] += count
            self.pbc_rules.update(index.header["pbc_rules"])
            self.layouts.update(index.header["layouts"])
        self.warnings = [
            f"{index.path.name}: {text}" for index in self.indexes for text in index.header.get("warnings", ())
        ]

    def _choose(self, require_labels: bool, filters: Filters) -> None:
        """Rows that are used; why the others are not."""
        labels = self._column("labels")
        usable = np.ones(len(labels), dtype=bool)
        isolated = labels & index_bits.ISOLATED > 0
        if require_labels:
            self._drop(usable, labels & index_bits.ENERGY == 0, "energy missing", self.dropped)
            self._drop(usable, (labels & index_bits.FORCES == 0) & ~isolated, "forces missing", self.dropped)
        self._isolated = np.nonzero(usable & isolated)[0]
        usable &= ~isolated
        atoms = self._column("n_atoms")
        if filters.max_atoms is not None:
            self._drop(usable, atoms > filters.max_atoms, f"more than {filters.max_atoms} atoms", self.left_out)
        if filters.max_force is not None:
            high = self._column("max_force") > filters.max_force  # False for NaN: no forces
            self._drop(usable, high, f"a force above {filters.max_force:g} eV/Å", self.left_out)
        inputs = {spec.name for spec in self.recipe.features}
        for name, bit in CHARGE_BITS.items():
            has = labels & bit > 0
            if name in inputs or filters.charges == "keep" or not (usable & has).any():
                continue
            if filters.charges == "drop":
                self._drop(usable, has, f"a {ALIASES[name]} for which the model has no input", self.left_out)
                continue
            first = int(np.argmax(usable & has))
            raise InputError(
                f"{self.path}: {int((usable & has).sum())} of {len(labels)} records have a {ALIASES[name]} (first: "
                f"{self._place(first)}), but model.json has no {name} among its embedding_specs and would take them "
                "for neutral singlets; give it one, or leave these records out with --drop_charged"
            )
        everything = bool(usable.all())
        self._rows: NDArray[np.int64] | None = None if everything else np.nonzero(usable)[0]
        self.n_atoms = self._used(atoms)
        elements = self._all_elements()
        self.elements = Elements(self._used(elements.ids), elements.bits)
        heads = self._all_heads()
        self.heads = Lookup(self._used(heads.ids), heads.values)
        self.free_components, self.labels = self._used(self._column("free_components")), self._used(labels)

    def _column(self, name: str) -> NDArray[Any]:
        columns = [getattr(index, name) for index in self.indexes]
        return columns[0] if len(columns) == 1 else np.concatenate(columns)

    def _all_elements(self) -> Elements:
        """Numbers of element sets, common to all shards."""
        for index in self.indexes:
            self._check_numbers(index, index.elements, len(index.element_sets))
        if len(self.indexes) == 1:
            return Elements(self.indexes[0].elements, self.indexes[0].element_sets)
        sets = np.concatenate([index.element_sets for index in self.indexes])
        bits, numbers = np.unique(sets, axis=0, return_inverse=True)
        firsts = np.cumsum([0, *(len(index.element_sets) for index in self.indexes)])
        parts = [
            numbers.reshape(-1)[first : first + len(index.element_sets)].astype(np.uint32)[index.elements]
            for first, index in zip(firsts, self.indexes, strict=False)
        ]
        return Elements(np.concatenate(parts), bits)

    def _all_heads(self) -> Lookup[str | None]:
        """Numbers of heads, common to all shards."""
        names: dict[str | None, int] = {}
        columns = []
        for index in self.indexes:
            self._check_numbers(index, index.heads, len(index.head_names))
            table = [names.setdefault(name, len(names)) for name in index.head_names]
            same = table == list(range(len(table)))
            columns.append(index.heads if same else np.array(table, dtype=index.heads.dtype)[index.heads])
        return Lookup(columns[0] if len(columns) == 1 else np.concatenate(columns), list(names))

    def _check_numbers(self, index: ShardIndex, column: NDArray[Any], n: int) -> None:
        if len(column) and int(column.max()) >= n:
            raise InputError(f"the index {index.place} of {index.path} is damaged; remove it, it is made again")

    def _used(self, column: NDArray[Any]) -> NDArray[Any]:
        return column if self._rows is None else column[self._rows]

    def _drop(self, usable: NDArray[np.bool_], bad: NDArray[np.bool_], reason: str, into: Counter[str]) -> None:
        """Take rows out and count them under the first reason that they fall to."""
        fallen = usable & bad
        count = int(fallen.sum())
        if count:
            first = np.nonzero(fallen)[0][:SHOWN_OFFENDERS]
            self._count(into, reason, count, [self._shown_key(*self._shard_row(int(row))) for row in first])
            usable &= ~bad

    def _count(self, into: Counter[str], reason: str, count: int, offenders: list[str]) -> None:
        into[reason] += count
        self.offenders[reason] = [*self.offenders.get(reason, []), *offenders][:SHOWN_OFFENDERS]

    def _shown_key(self, shard: int, key: str | int) -> str:
        text = key if isinstance(key, str) else self.indexes[shard].key(key).decode()
        return text if len(self.shards) == 1 else f"{self.shards[shard].name}:{text}"

    def _refuse_too_many_drops(self, max_dropped: float, require_labels: bool) -> None:
        dropped, total = self.dropped.total(), sum(index.n_records for index in self.indexes)
        if total == 0:
            raise InputError(f"{self.path} holds no samples (keys 0, 1, 2 …)")
        useless = not len(self) and not self.left_out and not len(self._isolated)
        if dropped > max_dropped * total or useless:
            relaxed = sum(index.header["is2re"] for index in self.indexes)
            if (
                require_labels
                and relaxed
                and self.dropped["forces missing"] + self.dropped["energy missing"] >= relaxed
            ):
                raise InputError(
                    f"{self.path}: {relaxed} of {total} records are IS2RE rows (y_relaxed, pos_relaxed) without energy "
                    f"and forces of the positions they hold ({self.drop_report()}); take an S2EF set"
                )
            if any(NO_LAYOUT in reason for reason in self.dropped):
                raise InputError(
                    f"{self.path}: {dropped} of {total} records cannot be read ({self.drop_report()}); the layouts "
                    f"that are read: {SUPPORTED}"
                )
            raise InputError(
                f"{self.path}: {dropped} of {total} records cannot be used ({self.drop_report()}); "
                f"mend them, name the labels with --energy_key/--forces_key, or raise --max_dropped {max_dropped:g}"
            )

    def drop_report(self) -> str:
        """Reasons with counts and the first keys: ``3 × forces missing (keys 7, 12, 19)``."""
        return self._report(self.dropped)

    def left_out_report(self) -> str:
        """The same of what was left out by choice."""
        return self._report(self.left_out)

    def _report(self, counts: Mapping[str, int]) -> str:
        ordered = sorted(counts.items(), key=lambda item: -item[1])
        shown = [
            f"{count} × {reason} (key{'s' if count > 1 else ''} {', '.join(self.offenders[reason])})"
            for reason, count in ordered[:SHOWN_REASONS]
        ]
        more = len(ordered) - len(shown)
        return "; ".join([*shown, f"and {more} other reasons"] if more else shown)

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
        """Shard and key."""
        return self._place(self._row(i))

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
            found = decode(value, self._place(row), self.recipe.keys, self.recipe.features, self.keep).structure
        except (RowError, LabelError) as error:
            raise InputError(f"{index.path} key {key.decode()}: {error}; did the file change?") from None
        if found.n_atoms != index.n_atoms[local]:
            raise InputError(
                f"{index.path} key {key.decode()}: has {found.n_atoms} atoms where its index has "
                f"{index.n_atoms[local]}; did the file change? remove {index.place}"
            )
        return found

    def edges(self, r_max: float) -> NDArray[np.uint32]:
        """Directed edges of every usable record, (len,); counted in parallel once, and kept beside the index.

        Raises:
            InputError: the neighbours of a record show that it is broken.
        """
        if r_max not in self._edges:
            counts = edge_counts(self.indexes, self.recipe, r_max, self.max_neighbors)
            found = self._used(counts[0] if len(counts) == 1 else np.concatenate(counts))
            many = found > self.max_neighbors * np.asarray(self.n_atoms, dtype=np.int64)  # counted where more may be
            if many.any():
                i = int(many.argmax())
                fault = too_many(int(found[i]), int(self.n_atoms[i]), self.max_neighbors)
                raise InputError(f"{self.path}: {self.identifier(i)}: {fault}")
            self._edges[r_max] = found
        return self._edges[r_max]

    def content(self) -> bytes:
        """What tells these data from others."""
        return b"".join(f"{index.identity}{len(index)}".encode() for index in self.indexes)
