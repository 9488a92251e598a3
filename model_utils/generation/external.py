"""``--generator external``: crystals that another program made, as files or by a
command that is run here.

MatterGen and others cannot be installed beside mace-torch; they run in environments of their
own and hand over files.
"""

import os
import shlex
import signal
import subprocess
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath

import numpy as np
from ase import Atoms

from dataloader import parallel
from dataloader.errors import InputError
from dataloader.filters import KEEP_CHARGES
from dataloader.xyz import ENDINGS
from model_utils.generation.candidate import Candidate, Exhausted, Maker, NotMade
from model_utils.judging.candidates import (
    GENERATED,
    crystal_fault,
    crystals_in,
    free_atoms_of,
    inputs_of,
)
from model_utils.runtime import log
from model_utils.settings.options import GenerateOptions
from model_utils.simulation.inputs import structures_in

OTHER_ENDINGS = (".cif",)
ARCHIVE = ".zip"
LARGEST = 2**24  # bytes of a cif in an archive, unpacked
LARGEST_OF_ALL = 2**30  # bytes of all of them
SAID = 2000  # bytes at the end of what a command said
SHOWN = 300  # of its last line

Found = tuple[str, Atoms | None, str]  # name, atoms, and why it is no crystal


def prepared(options: GenerateOptions, folder: Path) -> Maker:
    """A maker that hands on crystals in the order of their files.

    Raises:
        InputError: neither files nor a command are named, the command failed, or
            there is nothing to read.
    """
    sources = options.sources
    if (sources.external_command is None) == (not sources.external_files):
        raise InputError(
            "--generator external needs --external_files or --external_command, one of the two"
        )
    files = list(sources.external_files)
    if sources.external_command is not None:
        run(sources.external_command, options, folder)
        files = written_in(folder)
        if not files:
            raise InputError(
                "--external_command wrote no .extxyz, .xyz, .cif or .zip into "
                "{output_dir}, its folder"
            )
    files = _without_archives(files, folder / "unpacked")
    crystals = [crystal for file in files for crystal in _crystals(file)]
    log.info("%d structures in %d files", len(crystals), len(files))

    def make(attempt: int, _: np.random.Generator) -> Candidate:
        if attempt >= len(crystals):
            raise Exhausted(f"there are {len(crystals)} structures in the files")
        name, atoms, fault = crystals[attempt]
        if atoms is None or fault:
            raise NotMade(fault.partition(" (")[0])
        return Candidate(atoms=atoms, origin={"parent": name})

    return make


def run(command: str, options: GenerateOptions, folder: Path) -> None:
    """Run a command without a shell, in a folder, and wait for it.

    Args:
        command: with ``{output_dir}``, ``{num_gen}`` and ``{seed}`` to be filled in.
        options: which say the numbers and the time.
        folder: in which it runs, and into which it writes.

    Raises:
        InputError: it cannot be started, fails, or takes longer than it may.
    """
    words = _words(command, options, folder)
    log.info("running %s", words[0])
    seconds = 60 * options.sources.external_time_limit
    said = folder / "said.txt"
    with said.open("wb") as stream:
        try:
            child = subprocess.Popen(
                words,
                cwd=folder,
                env=parallel.environment_of_others(),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )
        except OSError as error:
            raise InputError(
                f"--external_command {words[0]} cannot be started: {error.strerror}"
            ) from None
        try:
            code = child.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise InputError(
                f"--external_command {words[0]} took longer than "
                f"{options.sources.external_time_limit:g} minutes and was ended; "
                "--external_time_limit gives it more"
            ) from None
        finally:
            _end(child)
    if code != 0:
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        raise InputError(f"--external_command {words[0]} {how}; its last line: {_last_line(said)}")


def _words(command: str, options: GenerateOptions, folder: Path) -> list[str]:
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise InputError(
            f"--external_command cannot be split into words ({error}): {command!r:.80}"
        ) from None
    if not words:
        raise InputError("--external_command is empty; give a command, or leave it out")
    filled = {
        "{output_dir}": str(folder),
        "{num_gen}": str(options.num_gen),
        "{seed}": str(options.seed),
    }
    for name, value in filled.items():
        words = [word.replace(name, value) for word in words]
    return words


def _end(child: subprocess.Popen[bytes]) -> None:
    """End a command and what it started, where something of it is left."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _last_line(path: Path) -> str:
    with path.open("rb") as stream:
        stream.seek(max(path.stat().st_size - SAID, 0))
        lines = [
            line for line in stream.read().decode("utf-8", "replace").splitlines() if line.strip()
        ]
    return lines[-1].strip()[:SHOWN] if lines else "it said nothing"


def written_in(folder: Path) -> list[Path]:
    """Files of crystals below a folder, in order: of several kinds the first, since
    programs write the same twice.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    usual = [path for path in files if path.name == GENERATED]
    xyz = [path for path in files if path.suffix in ENDINGS]
    cifs = [path for path in files if path.suffix.lower() in OTHER_ENDINGS]
    return usual or xyz or cifs or [path for path in files if path.suffix.lower() == ARCHIVE]


def _without_archives(files: Sequence[Path], folder: Path) -> list[Path]:
    """Files with the cifs of an archive in place of it, in its own order."""
    plain: list[Path] = []
    for number, file in enumerate(files):
        is_archive = file.suffix.lower() == ARCHIVE and file.is_file()
        plain += unpacked(file, folder / str(number)) if is_archive else [file]
    return plain


def unpacked(archive: Path, folder: Path) -> list[Path]:
    """The cifs of a zip as files of a folder, each in one of its own; the folders that the
    zip names are not made.

    Raises:
        InputError: it cannot be read, holds no cif, or unfolds to more than crystals need.
    """
    files = []
    left = LARGEST_OF_ALL
    try:
        with zipfile.ZipFile(archive) as packed:
            for number, entry in enumerate(packed.infolist()):
                name = PurePosixPath(entry.filename).name
                if (
                    entry.is_dir()
                    or name.startswith(".")
                    or not name.lower().endswith(OTHER_ENDINGS)
                ):
                    continue
                with packed.open(entry) as stream:
                    content = stream.read(min(LARGEST, left) + 1)
                left -= len(content)
                if len(content) > LARGEST or left < 0:
                    raise InputError(
                        f"{archive}: {name:.80} and those before it unfold to more "
                        "than crystals need"
                    )
                place = folder / str(number) / name
                place.parent.mkdir(parents=True)
                place.write_bytes(content)
                files.append(place)
    except (OSError, RuntimeError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"cannot unpack {archive}: {reason:.200}; expected a zip of cifs"
        ) from None
    if not files:
        raise InputError(f"{archive} holds no .cif; expected a zip of cifs")
    return files


def _crystals(file: Path) -> Iterator[Found]:
    """The crystals of a file, each with its fault; a file that is damaged
    as a whole counts as one.
    """
    if file.suffix in ENDINGS and file.is_file():
        for candidate in crystals_in(file):
            named = candidate.named
            yield (
                candidate.identifier,
                None if named is None else _bare(named.atoms),
                candidate.fault,
            )
        return
    try:
        structures = structures_in([file], filters=KEEP_CHARGES)
    except InputError as error:
        log.warning("warning: %s", error)
        yield file.name, None, "a file that cannot be read"
        return
    for _, structure in structures:
        yield structure.identifier, _bare(free_atoms_of(structure)), crystal_fault(structure)


def _bare(atoms: Atoms) -> Atoms:
    """A crystal with charge and spin, which networks may take, and nothing else
    that its program said.
    """
    return Atoms(
        atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc, info=inputs_of(atoms)
    )
