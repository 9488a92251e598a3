"""One name in a data set: how it is to be read, what its source gives and says of
itself, and what a format is.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from dataloader.filters import NO_FILTERS, Filters
from dataloader.labels import LabelKeys, LabelNames, LabelNeeds, name_of
from dataloader.lookup import Elements, Lookup
from dataloader.needs import FeatureSpec
from dataloader.record import Keep
from dataloader.structure import Structure

SHOWN_REASONS = 5


@dataclass(frozen=True, kw_only=True)
class SourceSpec:
    """One name that a user gave, and how it is to be read.

    Attributes:
        path: a file; of most formats also a folder of such files, or a pattern with * ? [ ].
        format: a name in ``formats.FORMATS``.
        keys: names of labels that the user gave.
        head: for every structure that names none itself.
        head_of_all: the head is also of structures that name another.
        weight: multiplies the weight of every structure.
        ratio: structures in an epoch for each one of the sources without a ratio.
        keep: names of further entries of a record that are kept with its structure.
        type_weights: multiply the weight of the structures of a config_type.
    """

    path: Path
    format: str
    keys: LabelKeys = field(default_factory=LabelKeys)
    head: str | None = None
    head_of_all: bool = False
    weight: float = 1.0
    ratio: float | None = None
    keep: Keep = ()
    type_weights: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a command wants of every file alike.

    Attributes:
        needs: labels that must be there, and those whose values must be usable.
        max_dropped: largest share of an LMDB's records that may be faulty.
        features: embedding inputs that each structure must carry.
        filters: structures that are left out by choice.
        elements: where structures are streamed, those with other atomic numbers are
            left out; None keeps all.
    """

    needs: LabelNeeds
    max_dropped: float
    features: Sequence[FeatureSpec] = ()
    filters: Filters = NO_FILTERS
    elements: Sequence[int] | None = None


@dataclass(kw_only=True)
class Census:
    """What is known of the records behind one name, for the log and for messages.

    Attributes:
        path: the name.
        label_names: how many records have their labels under which names; isolated
            atoms are not among them.
        named: how many name a charge, a spin.
        notes: what was converted or passed over, with the number of records.
        dropped: reasons for which faulty records are not used, with their numbers.
        left_out: reasons for which records are left out by choice.
        offenders: the first records of a reason, where the format gives them names.
        layouts: layouts of rows, where a format has several.
        pbc_rules: how periodic directions were found, where a format has several ways.
        warnings: further lines, said as warnings.
        first_names: gives the names of the entries of the first record.
    """

    path: Path
    label_names: Counter[LabelNames] = field(default_factory=Counter)
    named: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    offenders: dict[str, list[str]] = field(default_factory=dict)
    layouts: Counter[str] = field(default_factory=Counter)
    pbc_rules: Counter[str] = field(default_factory=Counter)
    warnings: list[str] = field(default_factory=list)
    first_names: Callable[[], tuple[str, ...]] = tuple

    def has_label(self, quantity: str) -> bool:
        """Whether some record has a label of a quantity."""
        read_from = (name_of(quantity, names) for names in self.label_names)
        return any(name is not None and "absent" not in name for name in read_from)

    def drop_report(self) -> str:
        """Why faulty records are not used: ``3 × forces missing (keys 7, 12, 19)``."""
        return self._report(self.dropped)

    def left_out_report(self) -> str:
        """Why records are left out by choice, in the same form."""
        return self._report(self.left_out)

    def _report(self, counts: Counter[str]) -> str:
        ordered = sorted(counts.items(), key=lambda item: -item[1])
        shown = [
            f"{count} × {reason}{self._first(reason, count)}"
            for reason, count in ordered[:SHOWN_REASONS]
        ]
        more = len(ordered) - len(shown)
        return "; ".join([*shown, f"and {more} other reasons"] if more else shown)

    def _first(self, reason: str, count: int) -> str:
        offenders = self.offenders.get(reason)
        if not offenders:
            return ""
        return f" (key{'s' if count > 1 else ''} {', '.join(offenders)})"


class ShardRecords(NamedTuple):
    """Some records of one LMDB.

    Attributes:
        shard: the file.
        keys: of the records.
        rows: their places among all keys of the shard, in numerical order.
    """

    shard: Path
    keys: tuple[str, ...]
    rows: tuple[int, ...]


class Source(Protocol):
    """The usable structures behind one name, by number.

    Attributes:
        path: the name.
        census: what is known of the records.
        n_atoms: (len,), integers.
        elements: atomic numbers that occur in each structure.
        heads: of each structure; None where neither the record nor the user names one.
        isolated_atoms: structures that give reference energies and are not among those by number.
        in_memory: whether structures are read without touching the disk.
        ratio: structures in an epoch for each one of the sources without a ratio.
    """

    path: Path
    census: Census
    n_atoms: NDArray[Any]
    elements: Elements
    heads: Lookup[str | None]
    isolated_atoms: list[Structure]
    in_memory: bool
    ratio: float | None

    def __len__(self) -> int: ...

    def structure(self, i: int) -> Structure:
        """The i-th usable structure."""
        ...

    def identifier(self, i: int) -> str:
        """A name under which a person finds the structure again, without reading it."""
        ...

    def edges(self, r_max: float) -> NDArray[np.integer] | None:
        """Directed edges of every structure where they can be known without
        building each graph here.
        """
        ...

    def content(self) -> bytes:
        """What tells these data from others."""
        ...

    def says_what_was_held(self, indices: NDArray[np.integer]) -> bool:
        """Whether one of some structures names held atoms."""
        ...

    def every_record(self) -> bytes:
        """What tells all records from others, of which ``content`` looks at some only in LMDBs."""
        ...

    def labelled_rows(
        self, indices: NDArray[np.integer], *, free_atoms_only: bool
    ) -> dict[str, int]:
        """Rows with a label by quantity over some structures, as ``batch.collate`` counts
        them, without reading any.
        """
        ...

    def records(self, indices: NDArray[np.integer]) -> list[ShardRecords]:
        """Which records of LMDBs some structures are; none of other files."""
        ...


# reads a structure, where its format can leave that to whoever wants it
Unread = Callable[[], Structure]


def given(structure: Structure) -> Unread:
    """What gives a structure that is there already."""
    return lambda: structure


class Streamed(NamedTuple):
    """Structures that come one after another and are not kept.

    Attributes:
        census: complete once all structures were taken.
        structures: what gives each, isolated atoms among them; one that is not called costs next to
            nothing in a format that reads by number, and the reading of its text in the others.
    """

    census: Census
    structures: Iterator[Unread]


@dataclass(frozen=True, kw_only=True)
class Format:
    """A kind of data: how it is known, how it is opened, how it is read without being kept.

    Attributes:
        name: what users type.
        what: one of its files in words, for messages.
        takes: whether an existing file or folder is of this kind, by its ending, its first
            bytes or what it holds.
        opened: a source of the usable structures.
        streamed: the structures one after another, unread.
        endings: of its files, for messages.
    """

    name: str
    what: str
    takes: Callable[[Path], bool]
    opened: Callable[[SourceSpec, Wanted], Source]
    streamed: Callable[[SourceSpec, Wanted], Streamed]
    endings: tuple[str, ...] = ()
