"""Open the files of one data set: each becomes a source that yields structures by number."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from dataloader.data_file import Census, ShardRecords, Source, SourceSpec, Unread, Wanted
from dataloader.errors import InputError, MissingFileError
from dataloader.filters import NO_FILTERS, Filters
from dataloader.formats import format_named
from dataloader.in_memory import is_pattern
from dataloader.labels import LabelKeys, LabelNeeds, name_of
from dataloader.lookup import Lookup
from dataloader.needs import FeatureSpec
from dataloader.structure import Structure


class Adjusted:
    """A source with the head, the weights and the ratio that the user gave for the whole file.

    Args:
        source: as its file has it.
        spec: what was given for it.
    """

    def __init__(self, source: Source, spec: SourceSpec) -> None:
        self.source = source
        self.spec = spec
        self.weight = spec.weight
        self.ratio = spec.ratio
        self.type_weights = dict(spec.type_weights)
        self.path = source.path
        self.census = source.census
        self.n_atoms = source.n_atoms
        self.elements = source.elements
        self.in_memory = source.in_memory
        self.heads = Lookup(source.heads.ids, [_head(h, spec) for h in source.heads.values])
        self.isolated_atoms = [self._adjust(s) for s in source.isolated_atoms]

    def of_other_heads(self) -> int:
        """How many structures name another head than the one that is given for the file."""
        given = self.spec.head
        differs = [
            given is not None and own not in (None, given) for own in self.source.heads.values
        ]
        return int(np.array(differs, dtype=bool)[self.source.heads.ids].sum())

    def _adjust(self, structure: Structure) -> Structure:
        return _adjusted(
            structure, self.spec, self.weight * self.type_weights.get(structure.config_type, 1.0)
        )

    def __len__(self) -> int:
        return len(self.source)

    def structure(self, i: int) -> Structure:
        """The i-th usable structure, adjusted."""
        return self._adjust(self.source.structure(i))

    def identifier(self, i: int) -> str:
        """A name under which a person finds the i-th usable structure in the file."""
        return self.source.identifier(i)

    def edges(self, r_max: float) -> NDArray[np.integer] | None:
        """Directed edges of every usable structure within ``r_max`` (Å),
        where the file knows them.
        """
        return self.source.edges(r_max)

    def labelled_rows(
        self, indices: NDArray[np.integer], *, free_atoms_only: bool
    ) -> dict[str, int]:
        """Rows with a label by quantity over some structures."""
        return self.source.labelled_rows(indices, free_atoms_only=free_atoms_only)

    def content(self) -> bytes:
        """What tells the data from others: the content of the file, and what was given for it."""
        given = repr((self.spec.head, self.weight, self.ratio))
        if self.spec.head_of_all:
            given += "head of all"
        if self.type_weights:
            given += repr(sorted(self.type_weights.items()))
        return self.source.content() + given.encode()

    def says_what_was_held(self, indices: NDArray[np.integer]) -> bool:
        """Whether one of some structures names held atoms."""
        return self.source.says_what_was_held(indices)

    def every_record(self) -> bytes:
        """What tells all records of the file from others."""
        return self.source.every_record()

    def records(self, indices: NDArray[np.integer]) -> list[ShardRecords]:
        """Which records of its shards some structures are; empty where the file has none."""
        return self.source.records(indices)


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
        InputError: a file is missing or cannot be read, an xyz frame is faulty, more than
            ``max_dropped`` of an LMDB's records are, or a name that the user gave for a label is in
            none of the files that it was given for.
    """
    wanted = Wanted(needs=needs, max_dropped=max_dropped, features=features, filters=filters)
    sources = [_open(spec, wanted) for spec in specs]
    refuse_names_that_are_nowhere(specs, [source.census for source in sources])
    return sources


def refuse_names_that_are_nowhere(specs: Sequence[SourceSpec], censuses: Sequence[Census]) -> None:
    """Raise InputError where no structure has a label under the name that the user gave for it.

    A name is looked for in all files that it was given for: one of several may lack a label.
    """
    by_keys: dict[LabelKeys, list[Census]] = {}
    for spec, file in zip(specs, censuses, strict=True):
        if file.label_names:  # else it holds isolated atoms alone, or nothing
            by_keys.setdefault(spec.keys, []).append(file)
    for keys, group in by_keys.items():
        for quantity, name in keys.given().items():
            if any(_occurs(file, quantity, name) for file in group):
                continue
            there = next((names for file in group if (names := file.first_names())), ())
            paths = ", ".join(str(file.path) for file in group)
            raise InputError(
                f"no structure of {paths} has {name}, the name given with --{quantity}_key; the "
                f"first has: {', '.join(there) or 'nothing'}"
            )


def _occurs(file: Census, quantity: str, name: str) -> bool:
    if quantity in ("charge", "spin"):
        return file.named[quantity] > 0
    return any(
        (name_of(quantity, names) or "").split(" (")[0] == name for names in file.label_names
    )


def unread(
    specs: Sequence[SourceSpec],
    *,
    needs: LabelNeeds,
    elements: Sequence[int] | None,
    max_dropped: float,
    filters: Filters = NO_FILTERS,
    say: Callable[[Census], None] = lambda census: None,
) -> Iterator[Unread]:
    """What reads the labelled structures of the files one after another, isolated atoms among them.

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
    wanted = Wanted(needs=needs, max_dropped=max_dropped, filters=filters, elements=elements)
    censuses: list[Census] = []
    for spec in specs:
        _require_file(spec)
        streamed = format_named(spec.format).streamed(spec, wanted)
        censuses.append(streamed.census)
        for structure in streamed.structures:
            yield partial(_read, structure, spec)
        say(streamed.census)
    refuse_names_that_are_nowhere(specs, censuses)


def _read(structure: Unread, spec: SourceSpec) -> Structure:
    own = structure()
    of_type = dict(spec.type_weights).get(own.config_type, 1.0)
    return _adjusted(own, spec, spec.weight * of_type)


def _adjusted(structure: Structure, spec: SourceSpec, weight: float) -> Structure:
    return dataclasses.replace(
        structure, head=_head(structure.head, spec), weight=structure.weight * weight
    )


def _head(own: str | None, spec: SourceSpec) -> str | None:
    """The head of a structure that names this one, or none."""
    return spec.head if spec.head_of_all else own or spec.head


def _require_file(spec: SourceSpec) -> None:
    if not spec.path.exists() and not is_pattern(spec.path):
        raise MissingFileError(
            f"{spec.path} does not exist; expected an existing {spec.format} file"
        )


def _open(spec: SourceSpec, wanted: Wanted) -> Source:
    _require_file(spec)
    source = format_named(spec.format).opened(spec, wanted)
    plain = (
        spec.head is None and spec.weight == 1.0 and spec.ratio is None and not spec.type_weights
    )
    return source if plain else Adjusted(source, spec)
