"""What generate.py does: attempts until there are as many candidates as were asked for, and
the files made of them.
"""

import hashlib
import io
import json
import shutil
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.io import write
from ase.io.cif import write_cif

from dataloader import durable, input_files, plain_json
from dataloader.errors import InputError
from dataloader.progress import ProgressBar
from model_utils import runtime
from model_utils.errors import cannot_write
from model_utils.files.content import ABSENT, content_hash
from model_utils.files.run_lock import held
from model_utils.generation import guards
from model_utils.generation.candidate import Candidate, Exhausted, NotMade
from model_utils.generation.generators import GENERATORS, not_looked_at
from model_utils.judging import pymatgen_library
from model_utils.judging.candidates import FAILED, GENERATED, inputs_of
from model_utils.runtime import log
from model_utils.settings import reading
from model_utils.settings.options import GenerateOptions
from model_utils.simulation.journal import differences

CIFS = "generated_crystals_cif.zip"
RECORD = "generation.json"
FILES = (GENERATED, CIFS, RECORD)
WORKSHOP = ".generation"  # folder of what a generator writes while it works
LARGEST = 2**26  # bytes of a record
# of what decides the result
NO_PART = ("config", "plugin", "debug", "output_dir", "overwrite", "device", "threads")
OF_FILES = ("prototypes", "parents", "input_model", "external_files")
BEGINNING = (1980, 1, 1, 0, 0, 0)  # of the time that a zip can hold; the same bytes on any day
SHOWN = 4  # reasons in a message


@dataclass(frozen=True, kw_only=True)
class Made:
    """What came of the attempts.

    Attributes:
        candidates: just as many as were asked for.
        attempts: that were made.
        refused: attempts that gave nothing, by reason.
    """

    candidates: Sequence[Candidate]
    attempts: int
    refused: Mapping[str, int]


def generate(options: GenerateOptions) -> None:
    """Make the candidates that a folder lacks.

    Raises:
        InputError: the folder or the options cannot be used, or there cannot be as many candidates.
    """
    runtime.start_log()
    folder = options.output_dir
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(f"--output_dir {folder}", error, verb="make") from None
    with held(folder / ".lock", wait=True, flag="--output_dir"):
        asked = _asked(options)
        if options.overwrite:
            _remove(folder, (*FILES, FAILED))
        elif _is_done(folder, asked):
            log.info("%s holds the %d candidates already", folder, options.num_gen)
            return
        for name in not_looked_at(options):
            log.warning(
                "warning: --%s is given, and --generator %s does not look at it",
                *(name, options.generator),
            )
        if options.wanted.composition and options.wanted.elements:
            log.warning("warning: --elements is not looked at: --composition says the elements")
        try:
            made = _made(options, folder / WORKSHOP)
        except InputError as error:
            durable.write_text(folder / FAILED, f"{' '.join(str(error).split())}\n")
            raise
        _write(folder, options, asked, made)


def _asked(options: GenerateOptions) -> dict[str, Any]:
    """What decides the result, as plain values: options, and hashes of the files that they name."""
    plain = {
        name: value for name, value in reading.as_plain(options).items() if name not in NO_PART
    }
    for name in OF_FILES:
        paths = [Path(path) for path in plain[name]]
        plain[name] = [{"name": path.name, "sha256": _content(path)} for path in paths]
    return plain


def _content(path: Path) -> str | None:
    """Hash of a file, or of all files of a folder or a pattern; None of what cannot be read, of
    which its reader speaks.
    """
    try:
        digest = content_hash(path)
    except OSError:
        return None
    return None if digest == ABSENT else digest


def _sha256(path: Path) -> str | None:
    """Hash of a file; None of what cannot be read."""
    try:
        with input_files.opened(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def _is_done(folder: Path, asked: Mapping[str, Any]) -> bool:
    """Whether a folder holds just what is asked for.

    Raises:
        InputError: it holds another generation, or one that is damaged.
    """
    path = folder / RECORD
    if not path.exists():
        return False
    try:
        record = plain_json.loads(input_files.read_bytes(path, LARGEST))
        before = _as_now(record["asked"], asked)
        hashes = dict(record["sha256"])
        differing = differences(before, asked)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{path} is no record of a generation ({error}); --overwrite begins anew"
        ) from None
    if differing:
        raise InputError(
            f"{folder} holds another generation: {differing}; give another "
            "--output_dir, or --overwrite"
        )
    for name, digest in hashes.items():
        found = _sha256(folder / name)
        if found is None:
            return False
        if found != digest:
            raise InputError(f"{folder / name} is not as {RECORD} says; --overwrite makes it anew")
    return True


def _as_now(before: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """What was asked before, with the hashes of now in place of those that earlier versions did
    not make, of folders and patterns.
    """
    filled = dict(before)
    for name in OF_FILES:
        then, now = before.get(name), asked[name]
        if isinstance(then, list) and len(then) == len(now):
            filled[name] = [
                new if old == {**new, "sha256": None} else old
                for old, new in zip(then, now, strict=True)
            ]
    return filled


def _remove(folder: Path, names: Sequence[str]) -> None:
    for name in names:
        (folder / name).unlink(missing_ok=True)


def _made(options: GenerateOptions, workshop: Path) -> Made:
    """All candidates, or none.

    Raises:
        InputError: there cannot be so many, with the reasons.
    """
    pymatgen_library.require("generate.py")
    shutil.rmtree(workshop, ignore_errors=True)  # of a process that was killed
    workshop.mkdir()
    try:
        make = GENERATORS[options.generator](options, workshop.absolute())
        distinct = guards.Distinct(options.guards)
        candidates: list[Candidate] = []
        refused: Counter[str] = Counter()
        most = options.guards.max_tries * options.num_gen
        end = f"{most} attempts were made"
        attempt = 0
        with ProgressBar("generation", options.num_gen) as progress:
            while len(candidates) < options.num_gen and attempt < most:
                try:
                    candidate = make(attempt, np.random.default_rng([options.seed, attempt]))
                    guards.refuse(candidate.atoms, options.guards, options.wanted)
                    distinct.take(candidate.atoms)
                except NotMade as reason:
                    refused[str(reason)] += 1
                except Exhausted as reason:
                    end = str(reason)
                    break
                else:
                    candidates.append(candidate)
                    progress.update(1)
                attempt += 1
    finally:
        shutil.rmtree(workshop, ignore_errors=True)
    if len(candidates) < options.num_gen:
        raise InputError(_too_few(options, len(candidates), end, refused))
    return Made(candidates=candidates, attempts=attempt, refused=dict(sorted(refused.items())))


def _too_few(options: GenerateOptions, n_made: int, end: str, refused: Counter[str]) -> str:
    """Why there are not as many candidates as were asked for, and what can be done."""
    reasons = [f"{count} × {reason}" for reason, count in refused.most_common(SHOWN)]
    because = f"; refused: {'; '.join(reasons)}" if reasons else ""
    return (
        f"--generator {options.generator} could make {n_made} of {options.num_gen} candidates "
        f"({end}{because}); ask for fewer with --num_gen, or loosen what refuses them (see --help)"
    )


def _write(folder: Path, options: GenerateOptions, asked: Mapping[str, Any], made: Made) -> None:
    """The files of a generation; its record, which says that they are whole, comes last."""
    frames = [
        _frame(number, candidate, options) for number, candidate in enumerate(made.candidates)
    ]
    text = io.StringIO()
    write(text, frames, format="extxyz")
    contents = {GENERATED: text.getvalue().encode(), CIFS: _zipped_cifs(frames)}
    for name, content in contents.items():
        path = folder / name
        if path.exists() and not input_files.holds(path, content):
            raise InputError(
                f"{path} is there and not of this generation; give another "
                "--output_dir, or --overwrite"
            )
    for name, content in contents.items():
        durable.write(folder / name, content)
    record = {
        "count": len(frames),
        "asked": asked,
        "attempts": made.attempts,
        "refused": made.refused,
        "formulas": dict(sorted(Counter(frame.get_chemical_formula() for frame in frames).items())),
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()},
    }
    durable.write_text(
        folder / RECORD, json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    )
    _remove(folder, (FAILED,))
    log.info("%d candidates in %d attempts", len(frames), made.attempts)
    for reason, count in made.refused.items():
        log.info("  refused %d: %s", count, reason)
    log.info("wrote %s: %s", folder, ", ".join(FILES))


def _frame(number: int, candidate: Candidate, options: GenerateOptions) -> Atoms:
    """A candidate with what is known of its making."""
    atoms = candidate.atoms
    frame = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True, info=inputs_of(atoms))
    frame.info["id"] = f"gen_{number}"
    frame.info["generator"] = options.generator
    frame.info["seed"] = options.seed
    frame.info |= candidate.origin
    return frame


def _zipped_cifs(frames: Sequence[Atoms]) -> bytes:
    """A zip of ``gen_0.cif`` and so on, whose bytes depend on nothing but the frames."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for number, frame in enumerate(frames):
            text = io.BytesIO()
            write_cif(text, [frame])
            entry = zipfile.ZipInfo(f"gen_{number}.cif", date_time=BEGINNING)
            archive.writestr(entry, text.getvalue(), compress_type=zipfile.ZIP_DEFLATED)
    return packed.getvalue()
