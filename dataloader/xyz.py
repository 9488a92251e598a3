"""Read extended-XYZ files into structures, frame by frame, with every refusal naming file and frame."""

import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TextIO

import numpy as np
from ase import Atoms
from ase.io.extxyz import key_val_str_to_dict, read_extxyz

from dataloader.batch import FeatureSpec
from dataloader.errors import InputError
from dataloader.labels import LabelError, LabelKeys, feature_of, find_labels, kept, weight_of
from dataloader.progress import Progress
from dataloader.structure import Structure, geometry_fault, label_fault, volume_of

LabelNames = tuple[str | None, str | None, str | None]  # of energy, forces and stress

WHOLE_STRESS = "stress as written"  # of `stress` ASE itself goes on with the upper triangle only
PLAIN = "species:S:1:pos:R:3"  # where no Properties are declared
NOT_LABELS = {"numbers", "positions", "config_type", "head", "fixed", WHOLE_STRESS}


@dataclass
class XyzFile:
    """The frames of one file: those to train on, the isolated atoms that give E0s, and the label names found."""

    path: Path
    structures: list[Structure] = field(default_factory=list)
    isolated_atoms: list[Structure] = field(default_factory=list)
    label_names: Counter[tuple[str | None, str | None, str | None]] = field(default_factory=Counter)


def read_xyz(
    path: Path,
    keys: LabelKeys,
    *,
    require_labels: bool,
    features: Sequence[FeatureSpec] = (),
    keep: Sequence[str] = (),
) -> XyzFile:
    """All frames of one extended-XYZ file; arguments and errors are those of ``stream_xyz``."""
    file = XyzFile(path)
    for structure, names in stream_xyz(path, keys, require_labels=require_labels, features=features, keep=keep):
        file.label_names[names] += not structure.is_isolated_atom
        (file.isolated_atoms if structure.is_isolated_atom else file.structures).append(structure)
    return file


def stream_xyz(
    path: Path,
    keys: LabelKeys,
    *,
    require_labels: bool,
    features: Sequence[FeatureSpec] = (),
    keep: Sequence[str] = (),
) -> Iterator[tuple[Structure, LabelNames]]:
    """The frames of one extended-XYZ file, one after another, with the names of their labels.

    Args:
        path: the file; always parsed as extended XYZ, whatever its name, so that no other parser of ASE can be chosen.
        keys: label names given by the user.
        require_labels: energy and forces must be there (training); without them a frame is for inference.
        features: embedding inputs that each frame must carry in info or arrays.
        keep: names of further entries to keep with each structure.

    Raises:
        InputError: the file cannot be read, or a frame is faulty; an xyz file is small enough to be mended, so the
            first fault stops the run (in LMDBs faulty records are dropped and counted instead).
    """
    frame = -1
    for frame, atoms in enumerate(_frames(path)):
        where = f"{path} frame {frame}"
        structure, names = _structure(atoms, f"{path.name}#{frame}", keys, features, keep, where=where)
        _refuse(structure, names, keys, atoms, where, require_labels, structure.is_isolated_atom)
        yield structure, names
    if frame < 0:
        raise InputError(f"{path} holds no frames; expected an extended-XYZ file with at least one")


def _frames(path: Path) -> Iterator[Atoms]:
    frame = -1
    try:
        with path.open(encoding="utf-8") as stream, Progress(f"reading {path.name}", path.stat().st_size, "B") as bar:
            for frame, lines in enumerate(_texts(path, stream)):
                parse = partial(_comment, rows=lines[2:], where=f"{path} frame {frame}")
                if not lines[1].strip():  # then ASE does not ask
                    parse("")
                text = "".join(lines)
                yield next(read_extxyz(io.StringIO(text), index=slice(None), properties_parser=parse))
                bar.update(len(text))
    except OSError as error:
        reason = error.strerror or f"frame {frame}: {error}"  # ASE's XYZError is an OSError without errno
        raise InputError(f"cannot read {path}: {reason}; expected an extended-XYZ file") from None
    except InputError:
        raise
    except UnicodeDecodeError:
        raise InputError(f"{path} is {_what_it_is(path)}; expected an extended-XYZ file") from None
    except KeyError as error:  # ASE looks symbols up
        raise InputError(f"{path} frame {frame}: {error} is no element symbol") from None
    except Exception as error:  # ASE raises a dozen types on damaged text
        detail = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path} frame {frame} is not extended XYZ: {detail}") from None


def _comment(comment: str, *, rows: Sequence[str], where: str) -> dict[str, object]:
    """ASE's parser, with what ASE takes in silence: other numbers of columns, a pbc of any text, half a stress."""
    info: dict[str, object] = key_val_str_to_dict(comment)
    columns = sum(map(int, str(info.get("Properties", PLAIN)).split(":")[2::3]))
    declared = "that Properties declares" if "Properties" in info else "of plain xyz; declare more in Properties"
    for i, row in enumerate(rows):
        if len(row.split()) != columns:
            raise InputError(f"{where}: atom {i} has {len(row.split())} columns, expected the {columns} {declared}")
    pbc = np.atleast_1d(np.asarray(info.get("pbc", True)))
    if pbc.shape not in ((1,), (3,)) or pbc.dtype.kind not in "biu" or not np.isin(pbc, (0, 1)).all():
        raise InputError(
            f'{where}: pbc is {" ".join(map(str, pbc.ravel()))!r:.40}, expected three of T and F: pbc="T T F"'
        )
    return info | {WHOLE_STRESS: info["stress"]} if "stress" in info else info


def _texts(path: Path, stream: TextIO) -> Iterator[list[str]]:
    """The lines of each frame; every frame has its number of atoms and as many lines, without gaps.

    ASE by itself takes a blank line for the end of the file and drops what follows, reads on beyond the end where a
    number is too large (minutes for 10⁹), and keeps 150 bytes of every frame from the first to the last.
    """
    lines = enumerate(stream, start=1)
    for frame, (number, line) in enumerate(lines):
        where = f"{path} frame {frame}"
        if not line.strip():
            for number, line in lines:
                if line.strip():
                    raise InputError(f"{path} line {number}: after a blank line, which would end the file; remove it")
            return
        if not line.strip().isdecimal():
            raise InputError(f"{where}, line {number}: expected a number of atoms, found {line.strip()!r:.40}")
        n_atoms = int(line.strip()[:18])
        found = [text for _, text in islice(lines, n_atoms + 1)]
        if len(found) <= n_atoms:
            missing = n_atoms + 1 - len(found)
            raise InputError(f"{where}, line {number}: expected {n_atoms} atoms, the file ends {missing} lines short")
        yield [line, *found]


def _what_it_is(path: Path) -> str:
    with path.open("rb") as stream:
        head = stream.read(6)
    compressed = head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"PK"))
    return "a compressed file; unpack it first" if compressed else "not text in UTF-8"


def _structure(
    atoms: Atoms, identifier: str, keys: LabelKeys, features: Sequence[FeatureSpec], keep: Sequence[str], where: str
) -> tuple[Structure, tuple[str | None, str | None, str | None]]:
    # Calculator results are read raw: get_forces() would zero the forces of constrained atoms.
    record = {**atoms.info, **atoms.arrays, **(atoms.calc.results if atoms.calc else {})}
    if WHOLE_STRESS in record:
        record["stress"] = record[WHOLE_STRESS]
    cell, pbc = np.array(atoms.cell, dtype=float), tuple(bool(p) for p in atoms.pbc)
    volume = volume_of(cell, pbc)
    try:
        labels = find_labels(record, keys, len(atoms), volume)
        structure = Structure(
            atomic_numbers=atoms.numbers.astype(np.int64),
            positions=atoms.positions.astype(np.float64),
            cell=cell,
            pbc=pbc,  # type: ignore[arg-type]
            identifier=identifier,
            free_atoms=_free_atoms(record, len(atoms)),
            extra=kept(record, keep),
            head=None if record.get("head") is None else str(record["head"]),
            config_type=str(record.get("config_type", "Default")),
            features={spec.name: feature_of(record, spec, len(atoms)) for spec in features},
            energy=labels.energy,
            forces=labels.forces,
            stress=labels.stress if all(pbc) else None,  # without a volume a stress means nothing
            weight=weight_of(record, "config_weight"),
            energy_weight=weight_of(record, "config_energy_weight"),
            forces_weight=weight_of(record, "config_forces_weight"),
            stress_weight=weight_of(record, "config_stress_weight"),
        )
    except LabelError as error:
        raise InputError(f"{where}: {error}") from None
    return structure, labels.names


def _free_atoms(record: dict[str, object], n_atoms: int) -> np.ndarray | None:
    if record.get("fixed") is None:
        return None
    fixed = np.asarray(record["fixed"])
    shaped = fixed.shape in ((n_atoms,), (n_atoms, 1)) and fixed.dtype.kind in "biu"
    if not shaped or not np.isin(fixed, (0, 1)).all():
        raise LabelError(f"fixed is no column of {n_atoms} values true or false")
    return ~fixed.reshape(-1).astype(bool)


def _refuse(
    structure: Structure,
    names: tuple[str | None, str | None, str | None],
    keys: LabelKeys,
    atoms: Atoms,
    where: str,
    require_labels: bool,
    isolated: bool,
) -> None:
    fault = geometry_fault(structure) or label_fault(structure)
    if fault:
        raise InputError(f"{where}: {fault}")
    if not require_labels:
        return
    for what, given, found in (("energy", keys.energy, names[0]), ("forces", keys.forces, names[1])):
        if found is None and not (isolated and what == "forces"):
            looked = given or "the usual names"
            there = sorted(
                ({*atoms.info, *atoms.arrays} | set(atoms.calc.results if atoms.calc else ())) - NOT_LABELS, key=str
            )
            has = ", ".join(map(str, there)) or "nothing"
            raise InputError(
                f"{where}: {what} missing (looked for {looked}; the frame has: {has}); name it with --{what}_key"
            )
