"""Read extended-XYZ files into structures, frame by frame, with every refusal naming file and frame."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

from dataloader import input_files
from dataloader.batch import FeatureSpec
from dataloader.errors import InputError
from dataloader.labels import LabelError, LabelKeys, LabelNames, LabelNeeds, key_flag
from dataloader.limits import XYZ_ATOMS, XYZ_COMMENT_BYTES, XYZ_LINE_BYTES
from dataloader.progress import Progress
from dataloader.quantities import QUANTITIES, Quantity
from dataloader.record import Keep, Reading, periodic_with_a_lattice, read_record
from dataloader.structure import Structure, geometry_fault, weight_fault
from dataloader.xyz_text import parse_frame

NOT_LABELS = {"numbers", "positions", "pos", "species", "z", "config_type", "head", "fixed", "lattice", "pbc"}
_MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}  # at the beginning of a text
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"PK")
LATIN = "a comment that is not UTF-8 was read as Latin-1"


@dataclass
class XyzFile:
    """The frames of one file: those to train on, the isolated atoms that give E0s, and what is to be said of them."""

    path: Path
    structures: list[Structure] = field(default_factory=list)
    isolated_atoms: list[Structure] = field(default_factory=list)
    label_names: Counter[LabelNames] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    named: Counter[str] = field(default_factory=Counter)  # frames that name a charge, a spin
    first_names: tuple[str, ...] = ()  # of the first frame

    def count(self, frame: "XyzFrame", needs: LabelNeeds) -> None:
        """Take the names of one frame, and what is to be said of it."""
        self.notes.update(frame.notes(needs))
        if frame.structure.is_isolated_atom:
            return
        self.first_names = self.first_names or frame.entries
        self.label_names[frame.reading.names] += 1
        self.named["charge"] += frame.structure.charge is not None
        self.named["spin"] += frame.structure.spin is not None


class XyzFrame(NamedTuple):
    """One frame, and what is to be known of how it was read."""

    reading: Reading
    entries: tuple[str, ...]  # names in the frame

    @property
    def structure(self) -> Structure:
        """The structure."""
        return self.reading.structure

    def notes(self, needs: LabelNeeds) -> tuple[str, ...]:
        """What is to be said of the frame; a label that cannot be used is said where it is not looked at."""
        passed_over = [
            f"{reason.split(' (')[0]}: taken as absent, since the {quantity} is not looked at"
            for quantity, reason in self.reading.faults
            if not needs.judges(quantity)
        ]
        return (*self.reading.notes, *passed_over)


def read_xyz(
    path: Path,
    keys: LabelKeys,
    needs: LabelNeeds,
    features: Sequence[FeatureSpec] = (),
    keep: Keep = (),
) -> XyzFile:
    """All frames of one extended-XYZ file; arguments and errors are those of ``stream_xyz``."""
    file = XyzFile(path)
    for frame in stream_xyz(path, keys, needs, features, keep):
        file.count(frame, needs)
        structures = file.isolated_atoms if frame.structure.is_isolated_atom else file.structures
        structures.append(frame.structure)
    return file


def stream_xyz(
    path: Path,
    keys: LabelKeys,
    needs: LabelNeeds,
    features: Sequence[FeatureSpec] = (),
    keep: Keep = (),
) -> Iterator[XyzFrame]:
    """The frames of one extended-XYZ file, one after another.

    Args:
        path: the file; always parsed as extended XYZ, whatever its name.
        keys: label names given by the user.
        needs: labels that must be there, and those whose values must be usable.
        features: embedding inputs that each frame must carry.
        keep: names of further entries to keep with each structure.

    Raises:
        InputError: the file cannot be read, or a frame is faulty; an xyz file is small enough to be mended, so the
            first fault stops the run (in LMDBs faulty records are dropped and counted instead).
    """
    frame = -1
    for frame, (text, notes) in enumerate(_frames(path)):
        where = f"{path} frame {frame}"
        try:
            raw = parse_frame(text[1], text[2:])
            reading = read_record(raw, f"{path.name}#{frame}", keys, features, keep, periodic_with_a_lattice)
        except LabelError as error:
            raise InputError(f"{where}: {error}") from None
        columns = raw.columns or {}
        entries = tuple(name for name in (*raw.values, *columns) if name.casefold() not in NOT_LABELS)
        _refuse(reading, keys, needs, entries, where)
        yield XyzFrame(reading._replace(notes=(*reading.notes, *notes)), entries)
    if frame < 0:
        raise InputError(f"{path} holds no frames; expected an extended-XYZ file with at least one")


def _frames(path: Path) -> Iterator[tuple[list[str], tuple[str, ...]]]:
    """The lines of each frame, and what is to be said of their text."""
    try:
        with input_files.opened(path) as stream, Progress(f"reading {path.name}", path.stat().st_size, "B") as bar:
            beginning = stream.peek(4)[:4]
            if beginning.startswith(b"\xef\xbb\xbf"):
                stream.read(3)
            _refuse_other_texts(path, beginning)
            for frame, lines in enumerate(_lines(path, stream)):
                yield _decoded(lines, f"{path} frame {frame}")
                bar.update(sum(map(len, lines)))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; expected an extended-XYZ file") from None


def _refuse_other_texts(path: Path, beginning: bytes) -> None:
    if beginning.startswith(_COMPRESSED):
        raise InputError(f"{path} is a compressed file; unpack it first; expected an extended-XYZ file")
    for mark, name in _MARKS.items():
        if beginning.startswith(mark):
            raise InputError(f"{path} is text in {name}; expected UTF-8: iconv -f {name} -t UTF-8 converts it")


def _lines(path: Path, stream: BinaryIO) -> Iterator[list[bytes]]:
    """The lines of each frame; every frame has its number of atoms and as many lines, without gaps."""
    frame, number = 0, 1  # number: of the line, from 1
    while line := stream.readline(XYZ_LINE_BYTES):
        where = f"{path} frame {frame}, line {number}"
        if not line.strip():
            _refuse_what_follows(path, stream, number + 1)
            return
        n_atoms = _number_of_atoms(line, where)
        comment = stream.readline(XYZ_COMMENT_BYTES + 1)
        if len(comment) > XYZ_COMMENT_BYTES:
            raise InputError(f"{where}: its comment has more than {XYZ_COMMENT_BYTES} bytes; take large entries out")
        rest = [text for _ in range(n_atoms) if (text := stream.readline(XYZ_LINE_BYTES))]
        if not comment or len(rest) < n_atoms:
            missing = n_atoms - len(rest) + (not comment)
            raise InputError(f"{where}: expected {n_atoms} atoms, the file ends {missing} lines short")
        yield [line, comment, *rest]
        frame, number = frame + 1, number + n_atoms + 2


def _refuse_what_follows(path: Path, stream: BinaryIO, number: int) -> None:
    """Raise InputError where text follows a blank line, at which other programs end."""
    while line := stream.readline(XYZ_LINE_BYTES):
        if line.strip():
            raise InputError(f"{path} line {number}: after a blank line, which would end the file; remove it")
        number += 1


def _number_of_atoms(line: bytes, where: str) -> int:
    """The first line of a frame."""
    digits = line.strip()
    if not digits.isdigit():
        raise InputError(f"{where}: expected a number of atoms as in extended XYZ, found {_shown(line[:80])}")
    n_atoms = int(digits[:18])
    if n_atoms > XYZ_ATOMS or len(digits) > 18:
        raise InputError(f"{where}: {_shown(line[:80])} atoms in a frame; at most {XYZ_ATOMS} are read")
    return n_atoms


def _shown(line: bytes) -> str:
    try:
        return f"{line.decode().strip()!r:.40}"
    except UnicodeDecodeError:
        return "bytes that are not text in UTF-8"


def _decoded(lines: Sequence[bytes], where: str) -> tuple[list[str], tuple[str, ...]]:
    """Text of the lines; an old comment in Latin-1 (Å, °) is read, other bytes are refused."""
    try:
        return [line.decode() for line in lines], ()
    except UnicodeDecodeError:
        pass
    texts: list[str] = []
    for number, line in enumerate(lines):
        try:
            texts.append(line.decode())
        except UnicodeDecodeError:
            if number != 1:
                raise InputError(
                    f"{where}: the line of atom {number - 2} is not text in UTF-8; expected an extended-XYZ file"
                ) from None
            texts.append(line.decode("latin-1"))
    return texts, (LATIN,)


def _refuse(reading: Reading, keys: LabelKeys, needs: LabelNeeds, entries: Sequence[str], where: str) -> None:
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
    """An isolated atom gives a reference energy and nothing else; without a volume there is no stress."""
    if structure.is_isolated_atom and not quantity.of_isolated_atoms:
        return True
    return quantity.needs_volume and not structure.periodic


def _missing(quantity: str, name: str | None, keys: LabelKeys, entries: Sequence[str]) -> str:
    if name is not None and "NaN" in name:
        return (
            f"{quantity} is NaN, which says that it is not known; leave the frame out, or give --allow_missing_labels"
        )
    looked = keys.of(quantity) or "the usual names"
    has = ", ".join(sorted(entries)) or "nothing"
    return (
        f"{quantity} missing (looked for {looked}; the frame has: {has}); name it with {key_flag(quantity)}, give its "
        "loss the weight 0, or take partly labelled data with --allow_missing_labels"
    )
