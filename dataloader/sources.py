"""Open the files of one data set: each becomes a source that yields structures by number."""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from dataloader import input_files, progress
from dataloader.batch import FeatureSpec
from dataloader.errors import InputError
from dataloader.filters import NO_FILTERS, FilterColumns, Filters, apply_filters, longest_force
from dataloader.labels import LabelKeys, LabelNames, LabelNeeds, name_of
from dataloader.lmdb_shards.lmdb_source import LmdbSource, ShardRecords
from dataloader.lmdb_shards.lookup import Elements, Lookup
from dataloader.record import Keep
from dataloader.structure import Structure
from dataloader.xyz import XyzFile, read_xyz, stream_xyz

DataFormat = Literal["xyz", "lmdb"]


@dataclass(frozen=True, kw_only=True)
class SourceSpec:
    """One file and how it is to be read."""

    path: Path
    format: DataFormat
    keys: LabelKeys = field(default_factory=LabelKeys)
    head: str | None = None  # for every structure of the file that names none itself
    weight: float = 1.0  # multiplies the weight of every structure
    ratio: float | None = None  # structures in an epoch for each one of the sources without a ratio
    keep: Keep = ()  # names of further entries of a record that are kept with its structure


class Source(Protocol):
    """The usable structures of one file, by number."""

    path: Path
    n_atoms: NDArray[Any]  # (len,), integers
    elements: Elements  # atomic numbers that occur in each structure
    heads: Lookup[str | None]
    isolated_atoms: list[Structure]
    label_names: Counter[LabelNames]
    named: Counter[str]  # structures that name a charge, a spin
    notes: Counter[str]  # what was converted or passed over
    dropped: Counter[str]  # faulty
    left_out: Counter[str]  # by choice
    in_memory: bool

    def __len__(self) -> int: ...

    def structure(self, i: int) -> Structure:
        """The i-th usable structure."""
        ...

    def identifier(self, i: int) -> str:
        """A name under which a person finds the structure again, without reading it."""
        ...

    def edges(self, r_max: float) -> NDArray[np.integer] | None:
        """Directed edges of every structure where they can be known without building each graph here."""
        ...

    def content(self) -> bytes:
        """What tells these data from others."""
        ...

    def records(self, indices: NDArray[np.integer]) -> list[ShardRecords]:
        """Which records of LMDBs some structures are; none of an xyz file."""
        ...

    @property
    def first_names(self) -> tuple[str, ...]:
        """Names in the first record, for a message."""
        ...


class XyzSource:
    """An extended-XYZ file, held in memory."""

    in_memory = True

    def __init__(
        self, spec: SourceSpec, *, needs: LabelNeeds, features: Sequence[FeatureSpec], filters: Filters
    ) -> None:
        file = read_xyz(spec.path, spec.keys, needs, features, spec.keep)
        self.path = spec.path
        self.isolated_atoms = file.isolated_atoms
        self.label_names = file.label_names
        self.named = file.named
        self.notes = file.notes
        self.dropped: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()
        self.first_names = file.first_names
        self.structures = self._chosen(file.structures, filters, features)
        self.n_atoms = np.array([s.n_atoms for s in self.structures], dtype=np.int64)
        self.elements = Elements.of(frozenset(s.atomic_numbers.tolist()) for s in self.structures)
        self.heads = Lookup.of(s.head for s in self.structures)

    def _chosen(
        self, structures: list[Structure], filters: Filters, features: Sequence[FeatureSpec]
    ) -> list[Structure]:
        """Those that the filters leave; the others are counted."""
        usable = np.ones(len(structures), dtype=bool)

        def drop(concerned: NDArray[np.bool_], reason: str) -> None:
            count = int((usable & concerned).sum())
            if count:
                self.left_out[reason] += count
            usable[concerned] = False

        apply_filters(
            FilterColumns.of(structures),
            filters,
            features,
            usable=lambda: usable,
            drop=drop,
            where=lambda i: structures[i].identifier,
            path=self.path,
        )
        return structures if usable.all() else [s for s, used in zip(structures, usable, strict=True) if used]

    def __len__(self) -> int:
        return len(self.structures)

    def structure(self, i: int) -> Structure:
        """The i-th usable structure."""
        return self.structures[i]

    def identifier(self, i: int) -> str:
        """File and frame."""
        return self.structures[i].identifier

    def edges(self, r_max: float) -> None:
        """Graphs of structures in memory are built here and kept."""

    def content(self) -> bytes:
        """A hash of the file."""
        with input_files.opened(self.path) as file:
            return hashlib.file_digest(file, "sha256").digest()

    def records(self, indices: NDArray[np.integer]) -> list[ShardRecords]:
        """None: the frames are of no LMDB."""
        return []

    def left_out_report(self) -> str:
        """Reasons with counts."""
        return "; ".join(f"{count} × {reason}" for reason, count in self.left_out.items())


class Adjusted:
    """A source with the head, the weight and the ratio that the user gave for the whole file."""

    def __init__(self, source: Source, head: str | None, weight: float, ratio: float | None) -> None:
        self.source, self.head, self.weight, self.ratio = source, head, weight, ratio
        self.path, self.n_atoms, self.in_memory = source.path, source.n_atoms, source.in_memory
        self.label_names, self.dropped, self.elements = source.label_names, source.dropped, source.elements
        self.left_out, self.notes, self.named = source.left_out, source.notes, source.named
        self.heads = Lookup(source.heads.ids, [h or head for h in source.heads.values])
        self.isolated_atoms = [self._adjust(s) for s in source.isolated_atoms]

    def __getattr__(self, name: str) -> Any:
        """What only some kinds of source have, such as the report of dropped records."""
        if name == "source":  # not there yet while it is copied
            raise AttributeError(name)
        return getattr(self.source, name)

    def _adjust(self, structure: Structure) -> Structure:
        return _adjusted(structure, self.head, self.weight)

    def __len__(self) -> int:
        return len(self.source)

    def structure(self, i: int) -> Structure:
        """The i-th usable structure, adjusted."""
        return self._adjust(self.source.structure(i))

    def identifier(self, i: int) -> str:
        """As the file has it."""
        return self.source.identifier(i)

    def edges(self, r_max: float) -> NDArray[np.integer] | None:
        """As the file has them."""
        return self.source.edges(r_max)

    def content(self) -> bytes:
        """The file's, and what was given for it."""
        return self.source.content() + repr((self.head, self.weight, self.ratio)).encode()

    def records(self, indices: NDArray[np.integer]) -> list[ShardRecords]:
        """As the file has them."""
        return self.source.records(indices)

    @property
    def first_names(self) -> tuple[str, ...]:
        """As the file has them."""
        return self.source.first_names


def open_sources(
    specs: Sequence[SourceSpec],
    *,
    needs: LabelNeeds,
    max_dropped: float,
    features: Sequence[FeatureSpec] = (),
    filters: Filters = NO_FILTERS,
) -> list[Source]:
    """Open every file.

    Args:
        specs: the files.
        needs: labels that must be there, and those whose values must be usable.
        max_dropped: largest share of an LMDB's records that may be faulty.
        features: embedding inputs that each structure must carry.
        filters: structures that are left out by choice.

    Raises:
        InputError: a file is missing or cannot be read, an xyz frame is faulty, more than ``max_dropped`` of an LMDB's
            records are, or a name that the user gave for a label is in none of the files that it was given for.
    """
    sources = [_open(spec, needs, max_dropped, features, filters) for spec in specs]
    refuse_names_that_are_nowhere(specs, sources)
    return sources


class Census(Protocol):
    """What is known of the names in one file."""

    path: Path
    label_names: Counter[LabelNames]
    named: Counter[str]
    notes: Counter[str]

    @property
    def first_names(self) -> tuple[str, ...]:
        """Names in the first record."""
        ...


def refuse_names_that_are_nowhere(specs: Sequence[SourceSpec], files: Sequence[Census]) -> None:
    """Raise InputError where no structure has a label under the name that the user gave for it.

    A name is looked for in all files that it was given for: one of several may lack a label.
    """
    by_keys: dict[LabelKeys, list[Census]] = {}
    for spec, file in zip(specs, files, strict=True):
        if file.label_names:  # else it holds isolated atoms alone, or nothing
            by_keys.setdefault(spec.keys, []).append(file)
    for keys, group in by_keys.items():
        for quantity, name in keys.given().items():
            if any(_occurs(file, quantity, name) for file in group):
                continue
            there = next((names for file in group if (names := file.first_names)), ())
            paths = ", ".join(str(file.path) for file in group)
            raise InputError(
                f"no structure of {paths} has {name}, the name given with --{quantity}_key; the first has: "
                f"{', '.join(there) or 'nothing'}"
            )


def _occurs(file: Census, quantity: str, name: str) -> bool:
    if quantity in ("charge", "spin"):
        return file.named[quantity] > 0
    return any((name_of(quantity, names) or "").split(" (")[0] == name for names in file.label_names)


def stream(
    specs: Sequence[SourceSpec],
    *,
    needs: LabelNeeds,
    elements: Sequence[int] | None,
    max_dropped: float,
    filters: Filters = NO_FILTERS,
    say: Callable[[Census], None] = lambda census: None,
) -> Iterator[Structure]:
    """Labelled structures of the files one after another, isolated atoms among them; none is held in memory.

    Args:
        specs: the files.
        needs: see ``open_sources``.
        elements: leave out structures that have others.
        max_dropped: see ``open_sources``.
        filters: see ``open_sources``.
        say: is called with what is known of each file once it was read.

    Raises:
        InputError: as ``open_sources``.
    """
    files: list[Census] = []
    for spec in specs:
        if spec.format == "xyz":
            file = XyzFile(spec.path)
            files.append(file)
            yield from _streamed_xyz(spec, file, needs, elements, filters)
            say(file)
            continue
        source = _open(spec, needs, max_dropped, (), filters)
        files.append(source)
        say(source)
        yield from source.isolated_atoms
        rows = np.arange(len(source)) if elements is None else np.nonzero(source.elements.within(elements))[0]
        yield from (source.structure(int(i)) for i in progress.over(rows, "statistics", len(rows)))
    refuse_names_that_are_nowhere(specs, files)


def _streamed_xyz(
    spec: SourceSpec, file: XyzFile, needs: LabelNeeds, elements: Sequence[int] | None, filters: Filters
) -> Iterator[Structure]:
    """The structures of one file, whose names are counted in ``file``."""
    _require_file(spec)
    for frame in stream_xyz(spec.path, spec.keys, needs):
        file.count(frame, needs)
        if frame.structure.is_isolated_atom or _passes(frame.structure, elements, filters):
            yield _adjusted(frame.structure, spec.head, spec.weight)


def _passes(structure: Structure, elements: Sequence[int] | None, filters: Filters) -> bool:
    """Whether neither elements nor filters leave a structure out; charges are of no matter to statistics."""
    if not _within(structure, elements):
        return False
    if filters.max_atoms is not None and structure.n_atoms > filters.max_atoms:
        return False
    return filters.max_force is None or not longest_force(structure) > filters.max_force


def _within(structure: Structure, elements: Sequence[int] | None) -> bool:
    return elements is None or set(structure.atomic_numbers.tolist()) <= set(elements)


def _adjusted(structure: Structure, head: str | None, weight: float) -> Structure:
    return dataclasses.replace(structure, head=structure.head or head, weight=structure.weight * weight)


def _require_file(spec: SourceSpec) -> None:
    pattern = spec.format == "lmdb" and any(character in str(spec.path) for character in "*?[")
    if not spec.path.exists() and not pattern:
        raise InputError(f"{spec.path} does not exist; expected an existing {spec.format} file")


def _open(
    spec: SourceSpec, needs: LabelNeeds, max_dropped: float, features: Sequence[FeatureSpec], filters: Filters
) -> Source:
    _require_file(spec)
    source: Source
    if spec.format == "xyz":
        source = XyzSource(spec, needs=needs, features=features, filters=filters)
    else:
        source = LmdbSource(
            spec.path,
            spec.keys,
            needs=needs,
            max_dropped=max_dropped,
            features=features,
            filters=filters,
            keep=spec.keep,
        )
    plain = spec.head is None and spec.weight == 1.0 and spec.ratio is None
    return source if plain else Adjusted(source, spec.head, spec.weight, spec.ratio)
