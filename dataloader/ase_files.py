"""The format ``ase``: a named list of files that ASE and the programs around it write, and
what is refused by name.

Labels are what a calculator left in its results, by the rules of every format: the energy is
the one that ASE calls so (of VASP that for no broadening, energy(sigma->0)), and
``--free_energy`` takes the free energy, as for rows of ASE's databases. Units are those in
which ``ase.io`` gives them: eV and Å.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from dataloader import input_files
from dataloader.ase_formats import cp2k, database, outputs, trajectory
from dataloader.errors import InputError, RowError
from dataloader.in_memory import RawFrame, kept_format
from dataloader.labels import LabelError
from dataloader.record import RawRecord
from dataloader.record_geometry import periodic_with_a_volume

# bytes at the beginning of a file; job scripts print before the program does
LOOKED_AT = 64 * 2**10
# what damaged numbers and names raise
DAMAGED = (ValueError, TypeError, LookupError, ArithmeticError, MemoryError)
WHAT = "a file of ASE, VASP, Quantum Espresso, CP2K or FHI-aims"


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of file on the list.

    Attributes:
        name: as ``ase.io`` calls it.
        what: in words, for messages.
        takes: whether a file is one, by its name and its first bytes.
        records: the structures of a file, as names and values.
        note: what is to be said of energies and units.
    """

    name: str
    what: str
    takes: Callable[[Path, bytes], bool]
    records: Callable[[Path], Iterator[RawRecord]]
    note: str = "units of ASE: eV, Å"


def _is_poscar(path: Path, beginning: bytes) -> bool:
    name = path.name.upper()
    return name.startswith(("POSCAR", "CONTCAR")) or path.suffix.lower() in (".vasp", ".poscar")


def _rows_of_database(path: Path) -> Iterator[RawRecord]:
    return (raw for _, raw in database.records(path))


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            name="traj",
            what="a trajectory of ASE",
            takes=lambda path, beginning: beginning.startswith(trajectory.BEGINS),
            records=trajectory.records,
        ),
        Kind(
            name="db",
            what="a database of ASE (SQLite)",
            takes=lambda path, beginning: beginning.startswith(database.BEGINS),
            records=_rows_of_database,
        ),
        Kind(
            name="vasp-xml",
            what="a vasprun.xml of VASP",
            takes=lambda path, beginning: (
                beginning.startswith(b"<?xml") and b"<modeling>" in beginning
            ),
            records=outputs.vasp_xml,
            note=(
                "eV, Å; the energy is e_0_energy, without the entropy; forces are those "
                "of the free energy"
            ),
        ),
        Kind(
            name="vasp-out",
            what="an OUTCAR of VASP",
            takes=lambda path, beginning: (
                beginning.lstrip().startswith(b"vasp.") and b"\n" in beginning
            ),
            records=outputs.vasp_outcar,
            note=(
                "eV, Å; the energy is energy(sigma->0), without the entropy; forces are those "
                "of the free energy"
            ),
        ),
        Kind(
            name="espresso-out",
            what="an output of Quantum Espresso's pw.x",
            takes=lambda path, beginning: b"Program PWSCF" in beginning,
            records=outputs.espresso_output,
            note="eV, Å, from Ry and Bohr; the energy is the total energy, to which forces belong",
        ),
        Kind(
            name="aims-output",
            what="an output of FHI-aims",
            takes=lambda path, beginning: b"Invoking FHI-aims" in beginning,
            records=outputs.aims_output,
            note="eV, Å; the energy is the electronic free energy, to which forces belong",
        ),
        Kind(
            name="cp2k-output",
            what="an output of CP2K",
            takes=lambda path, beginning: cp2k.BEGINS in beginning,
            records=cp2k.records,
            note=(
                "eV, Å, from Hartree and Bohr; the energy is that of FORCE_EVAL, to "
                "which forces belong"
            ),
        ),
        Kind(
            name="cif",
            what="a CIF",
            takes=lambda path, beginning: path.suffix.lower() == ".cif",
            records=outputs.cif,
        ),
        Kind(
            name="vasp",
            what="a POSCAR or CONTCAR of VASP",
            takes=_is_poscar,
            records=outputs.poscar,
        ),
    )
}

_OF_ONE_STRUCTURE = {"cif", "vasp"}  # with which a calculation begins, or ends

# names under which files that are known by what they hold are usually kept
USUAL_ENDINGS = (".traj", ".db", ".xml", ".cif", ".out")
USUAL_NAMES = ("OUTCAR", "POSCAR", "CONTCAR")

_BY_ASE = "python -c \"from ase.io import read, write; write('NEW.xyz', read('{name}', ':'))\""
_PICKLE = (
    "is a pickle, which runs code when it is read; write it anew where you trust it: " + _BY_ASE
)
_SERVER = "is a database on a server; copy it into a file: ase db '{path}' --insert-into NEW.db"
_NOT_READ = "is not read here; convert it: " + _BY_ASE
_REFUSED_ENDINGS = {
    **dict.fromkeys((".pckl", ".pkl", ".pickle"), _PICKLE),
    ".bundle": (
        "is a BundleTrajectory, whose old form is a pickle; write it anew where you trust it: "
        + _BY_ASE
    ),
    ".py": "is a program, which is not run",
    ".gpw": "is a restart file of GPAW, which GPAW itself opens; convert it there: " + _BY_ASE,
    ".castep": (
        "is read by some releases of ASE through a calculator that starts CASTEP; convert it: "
        + _BY_ASE
    ),
    **dict.fromkeys(
        (".json", ".nc", ".dcd", ".pdb", ".xsf", ".gen", ".cell", ".pwi", ".in", ".xtd"), _NOT_READ
    ),
    **dict.fromkeys((*input_files.COMPRESSED_ENDINGS, ".tar"), "is compressed; unpack it first"),
    ".npz": "is not read here; write its structures as extended XYZ, or add a format by a plug-in",
}
_MODEL = "looks like a model.json, which --input_json takes; give a file of structures here"
_OF_A_MODEL = (b'"model_class"', b'"hidden_irreps"', b'"r_max"', b'"atomic_numbers"')
_REFUSED_BEGINNINGS = {
    b"PickleTrajectory": (
        "is a trajectory of ASE before 2014, a pickle, which runs code when it is read; write it "
        "anew where you trust it: python -m ase.io.trajectory {path}"
    ),
    b"- of UlmGPAW": _REFUSED_ENDINGS[".gpw"],
}
_REFUSED_WITHIN = {
    b"Entering Gaussian System": (
        "is a log of Gaussian: its forces are of the input orientation, its positions often of "
        "another; write an extended-XYZ file with both in one"
    ),
}
_SERVERS = ("postgresql:", "postgres:", "mysql:", "mariadb:")


def kind_of(path: Path) -> Kind | None:
    """What a regular file is on the list; None where it is nothing of it, or cannot be read."""
    beginning = _beginning(path)
    return (
        next((kind for kind in KINDS.values() if kind.takes(path, beginning)), None)
        if beginning
        else None
    )


def _beginning(path: Path) -> bytes:
    try:
        with input_files.opened(path) as file:
            return file.read(LOOKED_AT)
    except OSError:
        return b""


def refuse_what_is_not_read(path: Path) -> None:
    """Raise InputError for what people give ``ase.io`` and what is not read here, with the
    reason and what to do.
    """
    reason = next((_SERVER for server in _SERVERS if str(path).startswith(server)), None)
    if path.suffix.lower() == ".json" and path.is_file():
        beginning = _beginning(path)
        reason = _MODEL if any(name in beginning for name in _OF_A_MODEL) else reason
    reason = reason or _REFUSED_ENDINGS.get(path.suffix.lower())
    if reason is None and path.is_file():
        beginning = _beginning(path)
        reason = next(
            (text for start, text in _REFUSED_BEGINNINGS.items() if beginning.startswith(start)),
            None,
        )
        reason = reason or next(
            (text for part, text in _REFUSED_WITHIN.items() if part in beginning), None
        )
    if reason is not None:
        raise InputError(f"{path} {reason.format(path=path, name=path.name)}")


def raw_frames(path: Path) -> Iterator[RawFrame]:
    """The structures of one file, one after another, as names and values; in eV and Å.

    Raises:
        InputError: the file cannot be read, or is not on the list.
    """
    kind = kind_of(path)
    if kind is None:
        _require_readable(path)
        refuse_what_is_not_read(path)
        raise InputError(f"{path} is none of the files that are read as ase: {', '.join(KINDS)}")
    number = -1
    try:
        for number, raw in enumerate(kind.records(path)):
            where = f"{path} frame {number}"
            yield RawFrame(
                raw,
                f"{path.name}#{number}",
                where,
                (f"{kind.name}: {kind.note}",),
                periodic_with_a_volume,
            )
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror or error}; expected {kind.what}"
        ) from None
    except (LabelError, RowError) as error:
        raise InputError(
            f"cannot read {path}{_after(number)}: {error}; expected {kind.what}"
        ) from None
    except DAMAGED as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:80]}"
        raise InputError(
            f"cannot read {path}{_after(number)}: damaged ({reason}); expected {kind.what}"
        ) from None
    if number < 0:
        raise InputError(
            f"{path} holds no structure with results; expected {kind.what} with at least one"
        )


def _after(number: int) -> str:
    return f" after frame {number}" if number >= 0 else ""


def _require_readable(path: Path) -> None:
    try:
        input_files.require_regular(path)
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror or error}; expected {WHAT}"
        ) from None


def _without_inputs(files: list[Path]) -> list[Path]:
    """The files of several that are read: what a program computed, and not what it began with.

    Raises:
        InputError: OUTCAR and vasprun.xml of one run are both there, and each
            structure would count twice.
    """
    kinds = {
        file: kind.name for file in files if len(files) > 1 and (kind := kind_of(file)) is not None
    }
    twice = [
        (f, g) for f, g in _of_one_folder(kinds) if {kinds[f], kinds[g]} == {"vasp-out", "vasp-xml"}
    ]
    if twice:
        shown = " and ".join(str(file) for file in twice[0])
        raise InputError(
            f"{shown} say the same twice; name one of them by a pattern: '*/OUTCAR' "
            "or '*/vasprun.xml'"
        )
    outputs_too = set(kinds.values()) - _OF_ONE_STRUCTURE
    return [file for file in files if not outputs_too or kinds.get(file) not in _OF_ONE_STRUCTURE]


def _of_one_folder(files: Iterable[Path]) -> Iterator[tuple[Path, Path]]:
    """Pairs of files that lie in one folder."""
    by_folder: dict[Path, list[Path]] = {}
    for file in files:
        by_folder.setdefault(file.parent, []).append(file)
    for of_folder in by_folder.values():
        yield from combinations(of_folder, 2)


ASE = kept_format(
    name="ase",
    what=WHAT,
    takes=lambda path: kind_of(path) is not None,
    frames=raw_frames,
    choose=_without_inputs,
)
