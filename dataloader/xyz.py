"""Read extended-XYZ files into structures, frame by frame, with every refusal
naming file and frame.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from dataloader import input_files
from dataloader.data_file import SourceSpec
from dataloader.errors import InputError
from dataloader.in_memory import Frame, RawFrame, judged, kept_format
from dataloader.labels import LabelError, LabelKeys, LabelNeeds
from dataloader.limits import XYZ_ATOMS, XYZ_COMMENT_BYTES, XYZ_LINE_BYTES
from dataloader.progress import ProgressBar
from dataloader.xyz_text import parse_frame

ENDINGS = (".xyz", ".extxyz")
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # byte order marks, of both orders
# gzip, bzip2, xz, zstd, zip
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"PK")
_LONGEST_MARK = max(map(len, _COMPRESSED))
_DIGITS = 18  # of a number that fits into 64 bits
LATIN = "a comment that is not UTF-8 was read as Latin-1"


def stream_xyz(path: Path, keys: LabelKeys, needs: LabelNeeds) -> Iterator[Frame]:
    """The frames of one extended-XYZ file as structures, one after another,
    isolated atoms among them.

    Args:
        path: the file; always parsed as extended XYZ, whatever its name.
        keys: label names given by the user.
        needs: labels that must be there, and those whose values must be usable.

    Raises:
        InputError: the file cannot be read, or a frame is faulty; an xyz file is small enough
            to be mended, so the first fault stops the run (in LMDBs faulty records are
            dropped and counted instead).
    """
    return judged(raw_frames(path), SourceSpec(path=path, format=XYZ.name, keys=keys), needs)


def raw_frames(path: Path) -> Iterator[RawFrame]:
    """The frames of one extended-XYZ file, one after another, as names and values.

    Raises:
        InputError: the file cannot be read, or a frame is not written as extended XYZ.
    """
    frame = -1
    for frame, (text, notes) in enumerate(_frames(path)):
        where = f"{path} frame {frame}"
        try:
            raw = parse_frame(text[1], text[2:])
        except LabelError as error:
            raise InputError(f"{where}: {error}") from None
        yield RawFrame(raw, f"{path.name}#{frame}", where, notes)
    if frame < 0:
        raise InputError(f"{path} holds no frames; expected an extended-XYZ file with at least one")


def _frames(path: Path) -> Iterator[tuple[list[str], tuple[str, ...]]]:
    """The lines of each frame, and what is to be said of their text."""
    try:
        with (
            input_files.opened(path) as stream,
            ProgressBar(f"reading {path.name}", path.stat().st_size, "B") as bar,
        ):
            beginning = stream.peek(_LONGEST_MARK)[:_LONGEST_MARK]
            if beginning.startswith(b"\xef\xbb\xbf"):
                stream.read(3)
            _refuse_other_texts(path, beginning)
            for frame, lines in enumerate(_lines(path, stream)):
                yield _decoded(lines, f"{path} frame {frame}")
                bar.update(sum(map(len, lines)))
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror or error}; expected an extended-XYZ file"
        ) from None


def _refuse_other_texts(path: Path, beginning: bytes) -> None:
    if beginning.startswith(_COMPRESSED):
        raise InputError(
            f"{path} is a compressed file; unpack it first; expected an extended-XYZ file"
        )
    if beginning.startswith(_UTF_16):
        raise InputError(
            f"{path} is text in UTF-16; expected UTF-8: iconv -f UTF-16 -t UTF-8 converts it"
        )


def _lines(path: Path, stream: BinaryIO) -> Iterator[list[bytes]]:
    """The lines of each frame: the number of atoms, the comment, then as many lines of
    atoms; no blank lines.
    """
    frame = 0
    number = 1  # of the line that is read next, counted from 1
    while line := stream.readline(XYZ_LINE_BYTES):
        where = f"{path} frame {frame}, line {number}"
        if not line.strip():
            _refuse_what_follows(path, stream, number + 1)
            return
        n_atoms = _number_of_atoms(line, where)
        comment = stream.readline(XYZ_COMMENT_BYTES + 1)
        if len(comment) > XYZ_COMMENT_BYTES:
            raise InputError(
                f"{where}: its comment has more than {XYZ_COMMENT_BYTES} bytes; "
                "take large entries out"
            )
        rest = [text for _ in range(n_atoms) if (text := stream.readline(XYZ_LINE_BYTES))]
        if not comment or len(rest) < n_atoms:
            missing = n_atoms - len(rest) + (not comment)
            raise InputError(
                f"{where}: expected {n_atoms} atoms, the file ends {missing} lines short"
            )
        yield [line, comment, *rest]
        frame = frame + 1
        number = number + n_atoms + 2


def _refuse_what_follows(path: Path, stream: BinaryIO, number: int) -> None:
    """Raise InputError where text follows a blank line, at which other programs end."""
    while line := stream.readline(XYZ_LINE_BYTES):
        if line.strip():
            raise InputError(
                f"{path} line {number}: text after a blank line, where other programs stop; "
                "remove the blank line"
            )
        number += 1


def _number_of_atoms(line: bytes, where: str) -> int:
    """The number in the first line of a frame, within bounds."""
    digits = line.strip()
    if not digits.isdigit():
        raise InputError(
            f"{where}: expected a number of atoms as in extended XYZ, found {_shown(line[:80])}"
        )
    n_atoms = int(digits[:_DIGITS])
    if n_atoms > XYZ_ATOMS or len(digits) > _DIGITS:
        raise InputError(
            f"{where}: {_shown(line[:80])} atoms in a frame; at most {XYZ_ATOMS} are read"
        )
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
                    f"{where}: the line of atom {number - 2} is not text in UTF-8; expected "
                    "an extended-XYZ file"
                ) from None
            texts.append(line.decode("latin-1"))
    return texts, (LATIN,)


XYZ = kept_format(
    name="xyz",
    what="an extended-XYZ file",
    takes=lambda path: path.suffix in ENDINGS,
    frames=raw_frames,
    endings=ENDINGS,
)
