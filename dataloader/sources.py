"""Open the files of one data set: each becomes a source that yields structures by number."""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from dataloader import progress
from dataloader.batch import FeatureSpec
from dataloader.errors import InputError
from dataloader.labels import LabelKeys
from dataloader.lmdb_shards.lmdb_source import NO_FILTERS, Filters, LmdbSource
from dataloader.lmdb_shards.lookup import Elements, Lookup
from dataloader.structure import Structure
from dataloader.xyz import LabelNames, read_xyz, stream_xyz

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
    keep: tuple[str, ...] = ()  # names of further entries of a record that are kept with its structure


class Source(Protocol):
    """The usable structures of one file, by number."""

    path: Path
    n_atoms: NDArray[Any]  # (len,), integers
    elements: Elements  # atomic numbers that occur in each structure
    heads: Lookup[str | None]
    isolated_atoms: list[Structure]
    label_names: Counter[LabelNames]
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


class XyzSource:
    """An extended-XYZ file, held in memory."""

    in_memory = True

    def __init__(self, spec: SourceSpec, *, require_labels: bool, features: Sequence[FeatureSpec]) -> None:
        file = read_xyz(spec.path, spec.keys, require_labels=require_labels, features=features, keep=spec.keep)
        self.path = spec.path
        self.isolated_atoms = file.isolated_atoms
        self.label_names = file.label_names
        self.dropped: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()
        self.structures = file.structures
        self.n_atoms = np.array([s.n_atoms for s in self.structures], dtype=np.int64)
        self.elements = Elements.of(frozenset(s.atomic_numbers.tolist()) for s in self.structures)
        self.heads = Lookup.of(s.head for s in self.structures)

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
        return hashlib.sha256(self.path.read_bytes()).digest()


class Adjusted:
    """A source with the head, the weight and the ratio that the user gave for the whole file."""

    def __init__(self, source: Source, head: str | None, weight: float, ratio: float | None) -> None:
        self.source, self.head, self.weight, self.ratio = source, head, weight, ratio
        self.path, self.n_atoms, self.in_memory = source.path, source.n_atoms, source.in_memory
        self.label_names, self.dropped, self.elements = source.label_names, source.dropped, source.elements
        self.left_out = source.left_out
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


def open_sources(
    specs: Sequence[SourceSpec],
    *,
    require_labels: bool,
    max_dropped: float,
    features: Sequence[FeatureSpec] = (),
    filters: Filters = NO_FILTERS,
) -> list[Source]:
    """Open every file.

    Raises:
        InputError: a file is missing or cannot be read, an xyz frame is faulty, or more than ``max_dropped`` of an
            LMDB's records are.
    """
    return [_open(spec, require_labels, max_dropped, features, filters) for spec in specs]


def stream(
    specs: Sequence[SourceSpec],
    *,
    elements: Sequence[int] | None,
    max_dropped: float,
    filters: Filters = NO_FILTERS,
) -> Iterator[Structure]:
    """Labelled structures of the files one after another, isolated atoms among them; none is held in memory.

    Args:
        specs: the files.
        elements: leave out structures that have others.
        max_dropped: see ``open_sources``.
        filters: see ``open_sources``.

    Raises:
        InputError: as ``open_sources``.
    """
    for spec in specs:
        if spec.format == "xyz":
            _require_file(spec)
            found = (structure for structure, _ in stream_xyz(spec.path, spec.keys, require_labels=True))
            yield from (
                _adjusted(s, spec.head, spec.weight) for s in found if s.is_isolated_atom or _within(s, elements)
            )
            continue
        source = _open(spec, True, max_dropped, (), filters)
        yield from source.isolated_atoms
        rows = np.arange(len(source)) if elements is None else np.nonzero(source.elements.within(elements))[0]
        yield from (source.structure(int(i)) for i in progress.over(rows, "statistics", len(rows)))


def _within(structure: Structure, elements: Sequence[int] | None) -> bool:
    return elements is None or set(structure.atomic_numbers.tolist()) <= set(elements)


def _adjusted(structure: Structure, head: str | None, weight: float) -> Structure:
    return dataclasses.replace(structure, head=structure.head or head, weight=structure.weight * weight)


def _require_file(spec: SourceSpec) -> None:
    pattern = spec.format == "lmdb" and any(character in str(spec.path) for character in "*?[")
    if not spec.path.exists() and not pattern:
        raise InputError(f"{spec.path} does not exist; expected an existing {spec.format} file")


def _open(
    spec: SourceSpec, require_labels: bool, max_dropped: float, features: Sequence[FeatureSpec], filters: Filters
) -> Source:
    _require_file(spec)
    source: Source
    if spec.format == "xyz":
        source = XyzSource(spec, require_labels=require_labels, features=features)
    else:
        source = LmdbSource(
            spec.path,
            spec.keys,
            require_labels=require_labels,
            max_dropped=max_dropped,
            features=features,
            filters=filters,
            keep=spec.keep,
        )
    plain = spec.head is None and spec.weight == 1.0 and spec.ratio is None
    return source if plain else Adjusted(source, spec.head, spec.weight, spec.ratio)
