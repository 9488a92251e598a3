"""What relax.py does: every structure once, several at a time, and the files
made of what came of them.
"""

import csv
import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms, units
from ase.io import write

from dataloader import durable, parallel
from dataloader.errors import InputError
from dataloader.progress import ProgressBar
from model_utils import runtime
from model_utils.errors import cannot_write
from model_utils.files.csv_cells import csv_text
from model_utils.files.run_lock import held
from model_utils.runtime import log
from model_utils.settings.options import MinimizingOptions, RelaxOptions
from model_utils.simulation.atoms import with_move_mask
from model_utils.simulation.calculator import Calculator
from model_utils.simulation.inputs import NamedAtoms, calculator_of, structures_of
from model_utils.simulation.journal import Journal, Record
from model_utils.simulation.relaxation import DIED, Criteria, Relaxed, of_a_dead_process, relaxed
from model_utils.simulation.relaxed_frames import CONVERGED, ENERGY, ENERGY_OF, mark_of

JOURNAL = "relaxations.jsonl"
WAYS = "trajectories"
FILES = ("relaxed.xyz", "relaxed.csv", "relaxed.json")
COLUMNS = (
    "number",
    "identifier",
    "file",
    "formula",
    "n_atoms",
    "converged",
    "steps",
    "energy_eV",
    "energy_change_eV_per_atom",
    "fmax_eV_per_A",
    "volume_change_percent",
    "pressure_GPa",
    "reason",
)


def relax(options: RelaxOptions) -> None:
    """Relax what is not relaxed yet.

    Raises:
        InputError: the model, the data or the folder cannot be used as asked.
        VerificationError: the model's file is damaged.
    """
    runtime.start_log()
    device = runtime.find_device(options.device.device)
    processes = processes_of(options.minimizing, device)
    runtime.start(
        device=options.device.device,
        dtype=torch.float64,
        threads=1 if processes > 1 else options.device.threads,
        seed=0,
    )
    folder = options.output_dir
    calculator = calculator_of(
        options.simulated, device, options.device.dtype, options.minimizing.skin
    )
    structures = structures_of(options.simulated, calculator)
    if options.relax_cell:
        _look_at_cells(structures)
    _make(folder)
    with held(folder / ".lock", wait=True, flag="--output_dir"):
        _remove(folder / WAYS, ".*.traj")  # of processes that were killed
        if options.overwrite:
            _remove(folder / WAYS, "*.traj")
            _remove(folder, JOURNAL, *FILES)
        _refuse_files_of_others(folder)
        criteria = _criteria(options)
        work = work_of(calculator, structures, criteria)
        journal = Journal(folder / JOURNAL, work, "give another --output_dir, or --overwrite")
        ways = folder / WAYS if options.trajectories else None
        relax_rest(structures, calculator, criteria, journal, processes, ways)
        _write(folder, options, structures, journal.records, mark_of(calculator))


def _look_at_cells(structures: Sequence[NamedAtoms]) -> None:
    """Say how many structures keep their cells although cells are relaxed.

    Raises:
        InputError: all do, or one whose cell is relaxed holds atoms, which would move with it.
    """
    with_cells = [structure for structure in structures if structure.atoms.pbc.all()]
    if not with_cells:
        raise InputError("--relax_cell: no structure is periodic in three directions; leave it out")
    for structure in with_cells:
        if structure.atoms.constraints:
            raise InputError(
                f"{structure.file}, {structure.identifier}: the structure holds atoms fixed, and "
                "--relax_cell would move them with the cell; free them, or leave --relax_cell out"
            )
    n_kept = len(structures) - len(with_cells)
    if n_kept:
        log.warning(
            "warning: %d of %d structures are not periodic in three directions: --relax_cell "
            "relaxes their atoms alone, without a pressure",
            n_kept,
            len(structures),
        )


def processes_of(options: MinimizingOptions, device: torch.device) -> int:
    """How many structures are relaxed at once.

    Raises:
        InputError: several are asked for on a GPU.
    """
    if device.type == "cuda":
        if options.processes not in (None, 1):
            raise InputError(
                "--processes is for processors; on a GPU one process relaxes one "
                "structure after another"
            )
        return 1
    return options.processes or runtime.own_cores()


def _make(folder: Path) -> None:
    try:
        (folder / WAYS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(f"--output_dir {folder}", error, verb="make") from None


def _refuse_files_of_others(folder: Path) -> None:
    """Raise InputError where a file has one of our names and no journal says that it is ours."""
    there = [name for name in FILES if (folder / name).exists()]
    if there and not (folder / JOURNAL).exists():
        raise InputError(
            f"{folder / there[0]} is there and not of a relaxation in this folder; give another "
            "--output_dir, or --overwrite"
        )


def _remove(folder: Path, *patterns: str) -> None:
    """Take away files that an earlier relaxation left, and nothing else."""
    for pattern in patterns:
        for path in folder.glob(pattern):
            path.unlink()


def work_of(
    calculator: Calculator, structures: Sequence[NamedAtoms], criteria: Criteria
) -> dict[str, Any]:
    """What decides the results of relaxations, as plain values: what a journal is known by.

    Args:
        calculator: of the models.
        structures: all of them, in their order.
        criteria: when a relaxation is over.
    """
    data = hashlib.sha256()
    for structure in structures:
        data.update(structure.fingerprint())
    return {
        "models": [potential.digest() for potential in calculator.potentials],
        "dtype": runtime.dtype_name(calculator.potentials[0].dtype),
        "head": calculator.potentials[0].head,
        "data": data.hexdigest(),
        "structures": len(structures),
        **dataclasses.asdict(criteria),
        # earlier versions judged cells by forces that were scaled with them
        **({"minimum": "by forces and virial"} if criteria.relax_cell else {}),
    }


def _criteria(options: RelaxOptions) -> Criteria:
    return criteria_of(options.minimizing, relax_cell=options.relax_cell, pressure=options.pressure)


def criteria_of(options: MinimizingOptions, *, relax_cell: bool, pressure: float = 0.0) -> Criteria:
    """When relaxations are over, by the options of a command.

    Args:
        options: of forces and steps.
        relax_cell: where a structure is periodic in three directions.
        pressure: GPa.
    """
    return Criteria(
        fmax=options.fmax,
        max_steps=options.max_steps,
        minimizer=options.minimizer,
        relax_cell=relax_cell,
        pressure=pressure,
        max_shift=options.max_shift,
    )


def relax_rest(
    structures: Sequence[NamedAtoms],
    calculator: Calculator,
    criteria: Criteria,
    journal: Journal,
    processes: int,
    ways: Path | None = None,
) -> None:
    """Relax the structures that a journal lacks; each is on the disk when it is done.

    Args:
        structures: all of them; the journal has their numbers.
        calculator: of the models.
        criteria: when a relaxation is over.
        journal: of just this work, see ``work_of``.
        processes: structures that are relaxed at once.
        ways: folder for a trajectory of each; none is kept unless given.
    """
    done = {record["number"] for record in journal.records}
    left = [number for number in range(len(structures)) if number not in done]
    if done:
        log.info("%d of %d structures are relaxed already", len(done), len(structures))

    def work(number: int) -> Relaxed:
        return _one(structures[number].atoms, calculator, criteria, ways, number)

    with ProgressBar("relaxation", len(left)) as progress:
        for number, result in _results(work, structures, left, processes):
            journal.add(_record(number, structures[number], result), lasting=result.kind != DIED)
            progress.update(1)


def _results(
    work: Any, structures: Sequence[NamedAtoms], left: Sequence[int], processes: int
) -> Iterator[tuple[int, Relaxed]]:
    """Results as they come, with their numbers; a structure whose processes die takes
    none of the others along.
    """

    def instead(number: int, exitcode: int) -> Relaxed:
        return of_a_dead_process(structures[number].atoms, exitcode)

    if processes == 1 or len(left) < 2:
        yield from ((number, work(number)) for number in left)
        return
    for task, result in parallel.in_children(work, left, processes=processes, instead=instead):
        yield left[task], result


def _one(
    atoms: Atoms, calculator: Calculator, criteria: Criteria, ways: Path | None, number: int
) -> Relaxed:
    """Relax one structure; its way gets its name when it is whole."""
    calculator.forget()  # or the last bits would depend on what this process did before
    if ways is None:
        return relaxed(atoms, calculator, criteria)
    unfinished = ways / f".{number}.{os.getpid()}.traj"
    try:
        result = relaxed(atoms, calculator, criteria, unfinished)
        if unfinished.exists():
            durable.give_name(unfinished, ways / f"{number}.traj")
        return result
    finally:
        unfinished.unlink(missing_ok=True)


def _record(number: int, structure: NamedAtoms, result: Relaxed) -> Record:
    atoms = result.atoms
    return {
        "number": number,
        "identifier": structure.identifier,
        "file": structure.file,
        "converged": result.converged,
        "kind": result.kind,
        "reason": result.reason,
        "steps": result.steps,
        "energy": result.energy,
        "energy_before": result.energy_before,
        "fmax": result.fmax,
        "stress": result.stress,
        "volume_before": result.volume_before,
        "positions": atoms.positions.tolist(),
        "cell": atoms.cell.array.tolist(),
    }


def _write(
    folder: Path,
    options: RelaxOptions,
    structures: Sequence[NamedAtoms],
    records: Sequence[Record],
    mark: str,
) -> None:
    """The files for people, in the order of the structures."""
    ordered = sorted(records, key=lambda record: int(record["number"]))
    frames = [frame_of(structures[record["number"]], record, mark) for record in ordered]
    text = io.StringIO()
    write(text, frames, format="extxyz")
    durable.write_text(folder / "relaxed.xyz", text.getvalue())
    durable.write_text(folder / "relaxed.csv", _table(frames, ordered))
    summary = _summary(ordered)
    durable.write_text(
        folder / "relaxed.json", json.dumps(summary, indent=2, allow_nan=False) + "\n"
    )
    log.info(
        "%d of %d structures are at a minimum (no force above %g eV/Å)",
        summary["n_converged"],
        summary["n_structures"],
        options.minimizing.fmax,
    )
    for reason, count in summary["reasons"].items():
        log.info("  %d structures: %s", count, reason)
    log.info("wrote %s: %s", folder, ", ".join(FILES))


def frame_of(structure: NamedAtoms, record: Record, mark: str) -> Atoms:
    """A structure as it ended, with what is known of it under names that no
    reader takes for labels.

    Args:
        structure: as it came.
        record: of its relaxation.
        mark: of what computed its energy, see ``mark_of``.
    """
    atoms = with_move_mask(structure.atoms)
    atoms.set_cell(record["cell"])
    atoms.positions[:] = record["positions"]
    atoms.info["identifier"] = structure.identifier
    atoms.info[CONVERGED] = record["converged"]
    atoms.info["steps"] = record["steps"]
    if record["energy"] is not None:
        atoms.info[ENERGY] = record["energy"]
        atoms.info[ENERGY_OF] = mark
    return atoms


def _table(frames: Sequence[Atoms], records: Sequence[Record]) -> str:
    """A line for each structure."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for atoms, record in zip(frames, records, strict=True):
        table.writerow(
            [
                record["number"],
                csv_text(record["identifier"]),
                csv_text(record["file"]),
                atoms.get_chemical_formula(),
                len(atoms),
                record["converged"],
                record["steps"],
                record["energy"],
                _energy_change(record, len(atoms)),
                record["fmax"],
                _volume_change(record, atoms),
                _pressure(record),
                csv_text(record["reason"]),
            ]
        )
    return text.getvalue()


def _pressure(record: Record) -> float | None:
    """Pressure of a structure as it ended, GPa; None where there is no volume."""
    stress = record["stress"]
    return None if stress is None else float(-np.mean(stress[:3]) / units.GPa)


def _energy_change(record: Record, n_atoms: int) -> float | None:
    if record["energy"] is None or record["energy_before"] is None:
        return None
    return float(record["energy"] - record["energy_before"]) / n_atoms


def _volume_change(record: Record, atoms: Atoms) -> float | None:
    before = record["volume_before"]
    return None if before is None else 100.0 * (float(atoms.get_volume()) / before - 1.0)


def _summary(records: Sequence[Record]) -> dict[str, Any]:
    reasons: dict[str, int] = {}
    for record in records:
        if record["kind"]:
            reasons[record["kind"]] = reasons.get(record["kind"], 0) + 1
    return {
        "n_structures": len(records),
        "n_converged": sum(bool(record["converged"]) for record in records),
        "n_steps": sum(int(record["steps"]) for record in records),
        "reasons": reasons,
    }
