"""Formats whose structures are kept in memory: a reader brings the frames of a file,
everything else is done here.
"""

import glob
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dataloader import input_files
from dataloader.batch import added_rows, rows_of
from dataloader.data_file import Census, Format, ShardRecords, SourceSpec, Streamed, Wanted, given
from dataloader.errors import InputError
from dataloader.filters import (
    OTHER_ELEMENT,
    FilterColumns,
    Filters,
    apply_filters,
    elements_of,
    why_left_out,
)
from dataloader.labels import LabelError, LabelKeys, LabelNeeds, key_flag
from dataloader.lookup import Lookup
from dataloader.needs import FeatureSpec
from dataloader.quantities import QUANTITIES, Quantity
from dataloader.record import RawRecord, Reading, read_record
from dataloader.record_geometry import PbcRule, periodic_with_a_lattice
from dataloader.structure import Structure, geometry_fault, weight_fault

NOT_LABELS = {
    "numbers",
    "positions",
    "pos",
    "species",
    "z",
    "config_type",
    "head",
    "fixed",
    "lattice",
    "pbc",
}


class RawFrame(NamedTuple):
    """One structure as the reader of a format brings it.

    Attributes:
        raw: names and values, in the units that they state or else in eV and Å.
        identifier: a name under which a person finds it again: ``file.xyz#7``.
        where: the same in words, with the path: ``data/file.xyz frame 7``.
        notes: what is to be said of how it was read.
        pbc_rule: periodic directions where the record does not say them.
    """

    raw: RawRecord
    identifier: str
    where: str
    notes: tuple[str, ...] = ()
    pbc_rule: PbcRule = periodic_with_a_lattice


class Frame(NamedTuple):
    """One structure, and what is to be known of how it was read."""

    reading: Reading
    entries: tuple[str, ...]  # names in the frame

    @property
    def structure(self) -> Structure:
        """The structure with its labels, in eV and Å."""
        return self.reading.structure

    def notes(self, needs: LabelNeeds) -> tuple[str, ...]:
        """What is to be said of the frame; a label that cannot be used is said
        where it is not looked at.
        """
        passed_over = [
            f"{reason.split(' (')[0]}: taken as absent, since the {quantity} is not looked at"
            for quantity, reason in self.reading.faults
            if not needs.judges(quantity)
        ]
        return (*self.reading.notes, *passed_over)


RawFrames = Callable[[Path], Iterator[RawFrame]]  # of one file


def judged(
    frames: Iterable[RawFrame],
    spec: SourceSpec,
    needs: LabelNeeds,
    features: Sequence[FeatureSpec] = (),
) -> Iterator[Frame]:
    """Frames as structures, one after another; a file is small enough to be mended, so
    the first fault ends it.

    Args:
        frames: as a reader brings them.
        spec: names of labels, and entries to keep.
        needs: labels that must be there, and those whose values must be usable.
        features: embedding inputs that each frame must carry.

    Raises:
        InputError: a frame is no structure, or lacks what must be there.
    """
    for frame in frames:
        raw = frame.raw
        try:
            reading = read_record(
                raw, frame.identifier, spec.keys, features, spec.keep, frame.pbc_rule
            )
        except LabelError as error:
            raise InputError(f"{frame.where}: {error}") from None
        columns = raw.columns or {}
        entries = tuple(
            name for name in (*raw.values, *columns) if name.casefold() not in NOT_LABELS
        )
        _refuse(reading, spec.keys, needs, entries, frame.where)
        yield Frame(reading._replace(notes=(*reading.notes, *frame.notes)), entries)


def counted(frames: Iterable[Frame], needs: LabelNeeds, census: Census) -> Iterator[Structure]:
    """The structures of frames, whose names and notes are counted in a census."""
    for frame in frames:
        census.notes.update(frame.notes(needs))
        structure = frame.structure
        if not structure.is_isolated_atom:
            if census.first_names is tuple:
                census.first_names = partial(tuple, frame.entries)
            census.label_names[frame.reading.names] += 1
            census.named["charge"] += structure.charge is not None
            census.named["spin"] += structure.spin is not None
        yield structure


class KeptSource:
    """The usable structures behind one name, held in memory.

    Args:
        spec: the name.
        files: that it stands for.
        frames: of one file.
        wanted: of every file alike.

    Raises:
        InputError: a file cannot be read, or a frame is faulty.
    """

    in_memory = True
    ratio: float | None = None

    def __init__(
        self, spec: SourceSpec, files: Sequence[Path], frames: RawFrames, wanted: Wanted
    ) -> None:
        self.path = spec.path
        self.files = files
        self.census = Census(path=spec.path)
        self.isolated_atoms: list[Structure] = []
        structures: list[Structure] = []
        judged_frames = judged(_of_all(files, frames), spec, wanted.needs, wanted.features)
        for structure in counted(judged_frames, wanted.needs, self.census):
            (self.isolated_atoms if structure.is_isolated_atom else structures).append(structure)
        self.structures = self._chosen(structures, wanted.filters, wanted.features)
        self.n_atoms = np.array([s.n_atoms for s in self.structures], dtype=np.int64)
        self.elements = elements_of(self.structures)
        self.heads = Lookup.of(s.head for s in self.structures)

    def _chosen(
        self, structures: list[Structure], filters: Filters, features: Sequence[FeatureSpec]
    ) -> list[Structure]:
        """The structures that the filters leave; the others are counted in the census."""
        usable = np.ones(len(structures), dtype=bool)

        def drop(concerned: NDArray[np.bool_], reason: str) -> None:
            count = int((usable & concerned).sum())
            if count:
                self.census.left_out[reason] += count
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
        return (
            structures
            if usable.all()
            else [s for s, used in zip(structures, usable, strict=True) if used]
        )

    def __len__(self) -> int:
        return len(self.structures)

    def structure(self, i: int) -> Structure:
        """The i-th usable structure."""
        return self.structures[i]

    def identifier(self, i: int) -> str:
        """File and frame of the i-th usable structure."""
        return self.structures[i].identifier

    def labelled_rows(
        self, indices: NDArray[np.integer], *, free_atoms_only: bool
    ) -> dict[str, int]:
        """Rows with a label by quantity over some structures."""
        return added_rows(rows_of(self.structures[int(i)], free_atoms_only) for i in indices)

    def edges(self, r_max: float) -> None:
        """None: graphs of structures in memory are built where they are needed, and kept."""

    def content(self) -> bytes:
        """The sha256 of every file, 32 bytes each."""
        digests = []
        for path in self.files:
            with input_files.opened(path) as file:
                digests.append(hashlib.file_digest(file, "sha256").digest())
        return b"".join(digests)

    def says_what_was_held(self, indices: NDArray[np.integer]) -> bool:
        """Whether one of some structures names held atoms."""
        return any(self.structure(int(index)).free_atoms is not None for index in indices)

    def every_record(self) -> bytes:
        """Nothing more: ``content`` is of all bytes."""
        return b""

    def records(self, indices: NDArray[np.integer]) -> list[ShardRecords]:
        """None: the frames are of no LMDB."""
        return []


Choose = Callable[[list[Path]], list[Path]]


def kept_format(
    *,
    name: str,
    what: str,
    takes: Callable[[Path], bool],
    frames: RawFrames,
    endings: tuple[str, ...] = (),
    choose: Choose = list,
) -> Format:
    """A format whose structures are kept in memory, from a reader of one of its files.

    Args:
        name: what users type.
        what: one of its files in words, for messages: ``an extended-XYZ file``.
        takes: whether a regular file is one of its files.
        frames: the frames of one file.
        endings: of its files, for messages.
        choose: which of the files behind one name are read; raises InputError
            where that is not clear.
    """

    def takes_any(path: Path) -> bool:
        return bool(files_in(path, takes)) if path.is_dir() else takes(path)

    def files_of(spec: SourceSpec) -> list[Path]:
        return choose(files_behind(spec.path, takes, what))

    def opened(spec: SourceSpec, wanted: Wanted) -> KeptSource:
        return KeptSource(spec, files_of(spec), frames, wanted)

    def streamed(spec: SourceSpec, wanted: Wanted) -> Streamed:
        census = Census(path=spec.path)
        judged_frames = judged(_of_all(files_of(spec), frames), spec, wanted.needs)
        structures = counted(judged_frames, wanted.needs, census)
        return Streamed(census, map(given, _passing(structures, wanted, census)))

    return Format(
        name=name, what=what, takes=takes_any, opened=opened, streamed=streamed, endings=endings
    )


def _of_all(files: Sequence[Path], frames: RawFrames) -> Iterator[RawFrame]:
    """The frames of several files; of files in different folders an
    identifier names the folder too.
    """
    root = Path(os.path.commonpath([file.parent.absolute() for file in files]))
    for file in files:
        folder = file.parent.absolute().relative_to(root)
        for frame in frames(file):
            yield (
                frame
                if folder == Path()
                else frame._replace(identifier=f"{folder}/{frame.identifier}")
            )


def _passing(
    structures: Iterable[Structure], wanted: Wanted, census: Census
) -> Iterator[Structure]:
    """Isolated atoms, and the structures that neither elements nor filters leave out; the others
    are counted by reason.
    """
    elements = None if wanted.elements is None else set(wanted.elements)
    for structure in structures:
        reason = None
        if elements is not None and not set(structure.atomic_numbers.tolist()) <= elements:
            reason = OTHER_ELEMENT
        elif not structure.is_isolated_atom:
            reason = why_left_out(structure, wanted.filters, wanted.features)
        if reason is None or structure.is_isolated_atom:
            yield structure
        else:
            census.left_out[reason] += 1


def is_pattern(path: Path) -> bool:
    """Whether a name stands for the files that it matches; a file that is
    called so is meant itself.
    """
    return any(character in str(path) for character in "*?[") and not path.exists()


def matching(path: Path) -> list[Path]:
    """The files and folders that a pattern matches, in order; ``**`` stands for
    any number of folders.
    """
    return sorted(Path(name) for name in glob.glob(str(path), recursive=True))


def files_in(folder: Path, takes: Callable[[Path], bool]) -> list[Path]:
    """The files of a kind that lie in a folder, in order; what lies in folders
    below is not looked at.

    Raises:
        InputError: the folder cannot be listed.
    """
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"cannot read the folder {folder}: {error.strerror}") from None
    # hidden ones are what systems leave beside a file, as ._a.xyz
    shown = [entry for entry in entries if not entry.name.startswith(".")]
    return [entry for entry in shown if entry.is_file() and takes(entry)]


def files_behind(path: Path, takes: Callable[[Path], bool], what: str) -> list[Path]:
    """The files that a name stands for: itself, those of a folder, or those that a pattern matches.

    Args:
        path: what the user gave.
        takes: whether a file of a folder is wanted; what a pattern matches, or is named
            itself, is taken as it is.
        what: one of the files in words.

    Raises:
        InputError: there are none.
    """
    if path.is_dir():
        files = files_in(path, takes)
        if not files:
            raise InputError(
                f"{path} is a folder without a file to read; expected {what} in it; files in "
                f"folders below are named by a pattern: '{path}/*/NAME'"
            )
        return files
    if not is_pattern(path):
        return [path]
    files = [match for match in matching(path) if match.is_file()]
    if not files:
        raise InputError(f"{path} matches no file; expected a pattern for files such as {what}")
    return files


def _refuse(
    reading: Reading, keys: LabelKeys, needs: LabelNeeds, entries: Sequence[str], where: str
) -> None:
    """Raise InputError where a frame is broken, or a label that is needed is
    absent or cannot be used.
    """
    structure = reading.structure
    fault = geometry_fault(structure) or weight_fault(structure)
    if fault:
        raise InputError(f"{where}: {fault}")
    for name_of_quantity, reason in reading.faults:
        if needs.judges(name_of_quantity):
            raise InputError(f"{where}: {reason}")
    for quantity, name in zip(QUANTITIES.values(), reading.names, strict=True):
        if quantity.name not in needs.required or _may_be_absent(structure, quantity):
            continue
        if quantity.name not in structure.labels:
            raise InputError(f"{where}: {_missing(quantity.name, name, keys, entries)}")


def _may_be_absent(structure: Structure, quantity: Quantity) -> bool:
    """An isolated atom gives a reference energy and nothing else; without a
    volume there is no stress.
    """
    if structure.is_isolated_atom and not quantity.of_isolated_atoms:
        return True
    return quantity.needs_volume and not structure.periodic


def _missing(quantity: str, name: str | None, keys: LabelKeys, entries: Sequence[str]) -> str:
    if name is not None and "NaN" in name:
        return (
            f"{quantity} is NaN, which says that it is not known; leave the frame out, or give "
            "--allow_missing_labels"
        )
    looked = keys.of(quantity) or "the usual names"
    has = ", ".join(sorted(entries)) or "nothing"
    return (
        f"{quantity} missing (looked for {looked}; the frame has: {has}); name it with "
        f"{key_flag(quantity)}, give its loss the weight 0, or take partly labelled data with "
        "--allow_missing_labels"
    )
