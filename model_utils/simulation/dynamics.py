"""What md.py does: steps of an integrator, a table and a trajectory, and a state from which
it goes on to the bit.
"""

import csv
import hashlib
import io
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms, units
from ase.io import write
from ase.md.md import MolecularDynamics

from dataloader import durable, input_files, plain_json
from dataloader.errors import InputError
from dataloader.labels import CHARGE_NAMES, SPIN_NAMES
from dataloader.progress import ProgressBar
from model_utils import runtime
from model_utils.errors import Preempted, StopRequested, cannot_write
from model_utils.files.apart import refuse_shared_places
from model_utils.files.run_lock import held
from model_utils.run.interruption import Interruption
from model_utils.runtime import log
from model_utils.settings.options import MdOptions
from model_utils.simulation import ensembles, growing, velocities
from model_utils.simulation.atoms import with_move_mask
from model_utils.simulation.calculator import Calculator
from model_utils.simulation.ensembles import ENSEMBLES, Conditions
from model_utils.simulation.inputs import calculator_of, structure_at, structures_of
from model_utils.simulation.journal import differences

STATE = "state.json"
TABLE = "md.csv"
TRAJECTORY = "trajectory.xyz"
SUMMARY = "md.json"
HIGH_DRIFT = 100.0  # meV/atom/ps: of a sound timestep below 1, over a few steps up to 15
ELSEWHERE = "give another --output_dir, or --overwrite"
COLUMNS = (
    "step",
    "time_ps",
    "temperature_K",
    "potential_energy_eV",
    "kinetic_energy_eV",
    "conserved_energy_eV",
    "pressure_GPa",
    "volume_A3",
)


def run(options: MdOptions, stop: Interruption) -> None:
    """Move the atoms to the last step that is asked for, from where an earlier call left them.

    Raises:
        InputError: model, structure, folder or settings cannot be used as asked, or
            atoms met on their way.
        VerificationError: the model's file is damaged.
        Preempted: the run was asked to stop and is saved.
    """
    runtime.start_log()
    device = runtime.start(
        device=options.device.device,
        dtype=torch.float64,
        threads=options.device.threads,
        seed=options.seed,
    )
    for name in ensembles.not_used(options.ensemble):
        if getattr(options, name) != getattr(MdOptions, name):
            log.warning(
                "warning: --%s changes nothing: --ensemble %s does not use it",
                *(name, options.ensemble),
            )
    folder = options.output_dir
    for name in (STATE, TABLE, TRAJECTORY, SUMMARY):
        refuse_shared_places(
            {"--output_dir": folder / name}, (("--data", path) for path in options.simulated.data)
        )
    calculator = calculator_of(options.simulated, device, options.device.dtype, options.skin)
    atoms = _atoms(options, calculator)
    ensembles.check(options.ensemble, atoms)
    atoms.calc = calculator
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(f"--output_dir {folder}", error, verb="make") from None
    with held(folder / ".lock", wait=True, flag="--output_dir"):
        _Run(options, atoms, calculator).to_the_end(stop)


def _atoms(options: MdOptions, calculator: Calculator) -> Atoms:
    """The structure that moves.

    Raises:
        InputError: there are several and none is chosen, or not so many.
    """
    structures = structures_of(options.simulated, calculator, with_momenta=True)
    chosen = structure_at(structures, options.index, len(options.simulated.data))
    log.info("%s moves: %s", chosen.identifier, chosen.atoms.get_chemical_formula())
    atoms = chosen.atoms
    if options.repeat:
        if len(options.repeat) != 3:
            raise InputError(f"--repeat takes three numbers, found {len(options.repeat)}")
        _refuse_several_charges(atoms, options)
        atoms = atoms.repeat(options.repeat)
    return atoms


def _refuse_several_charges(atoms: Atoms, options: MdOptions) -> None:
    """Raise InputError where a repeated cell would keep the charge or the multiplicity of one.

    Only those that the network takes are there.
    """
    if np.prod(options.repeat) == 1:
        return
    for names, usual in ((CHARGE_NAMES, (0,)), (SPIN_NAMES, (0, 1))):
        for name in names:
            if atoms.info.get(name, 0) not in usual:
                raise InputError(
                    f"--repeat makes a larger cell, whose {name} is not the {atoms.info[name]:g} "
                    "of the structure; write the repeated structure with its own into a file"
                )


@dataclass
class _Sizes:
    """Bytes of the files that grow, at the moment of a state."""

    table: int = 0
    trajectory: int = 0


class _Run:
    """One run of dynamics with its files."""

    def __init__(self, options: MdOptions, atoms: Atoms, calculator: Calculator) -> None:
        self.options = options
        self.atoms = atoms
        self.folder = options.output_dir
        self.work = _work(options, atoms, calculator)
        self.rng = np.random.default_rng(options.seed)
        self.step = 0
        self._rows = io.StringIO()
        self._frames = io.StringIO()
        self._sizes = _Sizes()
        state = None if options.overwrite else self._stored()
        if state is None:
            self._begin()
        else:
            self._go_on(state)

    # Beginning

    def _stored(self) -> Mapping[str, Any] | None:
        """The state of an earlier call; None where there is none.

        Raises:
            InputError: it is of another run, or damaged.
        """
        path = self.folder / STATE
        if not path.exists():
            return None
        try:
            state = plain_json.loads(input_files.read_bytes(path, 2**31).decode(), _no_number)
            work = state["work"]
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{path} is no state of md.py ({error}); {ELSEWHERE}") from None
        if changes := differences(work, self.work):
            if state["sizes"]["table"] == 0 and not growing.holds_something(self.folder / TABLE):
                # it was ended before its first save
                for name in (STATE, TABLE, TRAJECTORY):
                    (self.folder / name).unlink(missing_ok=True)
                return None
            raise InputError(f"{path} is of another run: {changes}; {ELSEWHERE}")
        return dict(state)

    def _begin(self) -> None:
        """Start at step 0.

        Raises:
            InputError: a file has one of our names and no state says that it is ours, or there
                are no velocities.
        """
        velocities.begin(self.atoms, self.options, self.rng)
        for name in (STATE, TABLE, TRAJECTORY, SUMMARY):
            path = self.folder / name
            if path.exists() and not self.options.overwrite:
                raise InputError(f"{path} is there and not of a run in this folder; {ELSEWHERE}")
            path.unlink(missing_ok=True)
        self.integrator = self._integrator()
        self._write_state()  # so that what is killed within its first save is known as ours
        self._begin_files()

    def _begin_files(self) -> None:
        csv.writer(self._rows, lineterminator="\n").writerow(COLUMNS)
        self._record()

    def _go_on(self, state: Mapping[str, Any]) -> None:
        self.step = state["step"]
        self._saved_at = self.step
        self.atoms.set_cell(state["cell"])
        self.atoms.arrays["positions"][:] = state["positions"]
        self.atoms.set_momenta(np.array(state["momenta"]), apply_constraint=False)
        self.rng.bit_generator.state = state["random"]
        self.integrator = self._integrator()
        self.integrator.nsteps = self.step
        ensembles.put_state(self.options.ensemble, self.integrator, state["integrator"])
        self._sizes = _Sizes(**state["sizes"])
        for path, size in ((TABLE, self._sizes.table), (TRAJECTORY, self._sizes.trajectory)):
            growing.cut(self.folder / path, size, STATE)
        if self.step > self.options.n_steps:
            raise InputError(
                f"{self.folder} has {self.step} steps already, which --n_steps "
                f"{self.options.n_steps} counts in; give more, or {ELSEWHERE[5:]}"
            )
        log.info("goes on from step %d of %d", self.step, self.options.n_steps)
        if self._sizes.table == 0:
            self._begin_files()

    def _integrator(self) -> MolecularDynamics:
        conditions = Conditions(
            **{field.name: getattr(self.options, field.name) for field in fields(Conditions)}
        )
        return ENSEMBLES[self.options.ensemble].begin(self.atoms, conditions, self.rng)

    def to_the_end(self, stop: Interruption) -> None:
        """Move until the last step; a request to stop is met between two steps,
        and the state is saved.

        Raises:
            InputError: atoms meet or forces are no numbers; rows and frames up to there are kept.
            Preempted: it was asked to stop.
        """
        began = time.monotonic()
        first = self.step
        steps = range(self.step + 1, self.options.n_steps + 1)
        with ProgressBar("dynamics", len(steps), "steps") as progress:
            try:
                for step in stop.watch(steps):
                    self.integrator.step()  # type: ignore[attr-defined]
                    self.integrator.nsteps = step
                    self.step = step
                    self._after_step()
                    progress.update(1)
            except InputError as error:
                self._keep_what_waits()
                raise InputError(
                    f"step {step}: {error}; rows and frames of the steps before are in "
                    f"{self.folder}, the last state is that of step {self._saved_at}"
                ) from None
            except StopRequested:
                self._save()
                raise Preempted(f"{stop.reason}: saved at step {self.step}; {stop.again}") from None
        self._save()
        self._summarise((self.step - first) / max(time.monotonic() - began, 1e-9))

    def _after_step(self) -> None:
        if not np.isfinite(self.atoms.get_forces()).all():
            raise InputError("forces are no numbers")
        if self.step % self.options.write_every == 0:
            self._record()
        if self.step % self.options.checkpoint_every == 0:
            self._save()

    def _record(self) -> None:
        """A row of the table and a frame of the trajectory; they wait for the next state."""
        atoms = self.atoms
        conserved = ensembles.conserved_energy(self.options.ensemble, self.integrator, atoms)
        is_periodic = bool(atoms.pbc.all())
        stress = atoms.get_stress(include_ideal_gas=True) if is_periodic else np.full(6, np.nan)
        values = {
            "step": self.step,
            "time_ps": self.step * self.options.timestep / 1000,
            "temperature_K": ensembles.temperature_of(self.options.ensemble, atoms),
            "potential_energy_eV": atoms.get_potential_energy(),
            "kinetic_energy_eV": atoms.get_kinetic_energy(),
            "conserved_energy_eV": conserved,
            "pressure_GPa": -stress[:3].mean() / units.GPa if is_periodic else None,
            "volume_A3": atoms.get_volume() if is_periodic else None,
        }
        csv.writer(self._rows, lineterminator="\n").writerow([values[name] for name in COLUMNS])
        frame = with_move_mask(atoms)
        frame.info = {
            **atoms.info,  # inputs of the network
            "step": self.step,
            "time_ps": values["time_ps"],
            "mace_energy": values["potential_energy_eV"],
            "temperature": values["temperature_K"],
        }
        write(self._frames, frame, format="extxyz")

    def _save(self) -> None:
        """Put rows and frames on the disk, and then the state that knows how long the files are."""
        self._keep_what_waits()
        self._write_state()

    def _keep_what_waits(self) -> None:
        """Put rows and frames on the disk; those that no state knows go when it goes on."""
        self._sizes.table += growing.add(self.folder / TABLE, self._rows)
        self._sizes.trajectory += growing.add(self.folder / TRAJECTORY, self._frames)

    def _write_state(self) -> None:
        self._saved_at = self.step
        state = {
            "work": self.work,
            "step": self.step,
            "positions": self.atoms.positions.tolist(),
            "momenta": self.atoms.get_momenta().tolist(),
            "cell": self.atoms.cell.array.tolist(),
            "random": self.rng.bit_generator.state,
            "integrator": ensembles.state_of(self.options.ensemble, self.integrator),
            "sizes": asdict(self._sizes),
        }
        durable.write_text(self.folder / STATE, json.dumps(state, allow_nan=False))

    def _summarise(self, rate: float) -> None:
        rows = _rows(self.folder / TABLE)
        summary = {
            "n_steps": self.step,
            "time_ps": self.step * self.options.timestep / 1000,
            **summary_of(
                rows, len(self.atoms), conserves=ENSEMBLES[self.options.ensemble].conserves
            ),
        }
        durable.write_text(
            self.folder / SUMMARY, json.dumps(summary, indent=2, allow_nan=False) + "\n"
        )
        log.info(
            "step %d, %.3f ps, temperature %.1f ± %.1f K, %.1f steps/s",
            self.step,
            self.step * self.options.timestep / 1000,
            summary["temperature_K"],
            summary["temperature_std_K"],
            rate,
        )
        if summary["drift_meV_per_atom_ps"] is not None:
            log.info(
                "drift of the conserved energy: %.4f meV/atom/ps", summary["drift_meV_per_atom_ps"]
            )
        are_drawn = self.options.velocities == "drawn"
        begun_with = self.options.temperature if are_drawn else float(rows["temperature_K"][0])
        for doubt in _doubts(summary, begun_with):
            log.warning("warning: %s", doubt)
        log.info("wrote %s: %s, %s, %s, %s", self.folder, TABLE, TRAJECTORY, STATE, SUMMARY)


def summary_of(rows: Mapping[str, np.ndarray], n_atoms: int, *, conserves: bool) -> dict[str, Any]:
    """Means over the second half of a run, and the drift of the conserved energy by a straight
    line through all of it.

    Args:
        rows: columns of the table, by name.
        n_atoms: of the structure.
        conserves: whether the ensemble conserves an energy.
    """
    half = len(rows["step"]) // 2
    temperatures = rows["temperature_K"][half:]
    drift = None
    if conserves and len(rows["step"]) > 2:
        slope = np.polyfit(rows["time_ps"], rows["conserved_energy_eV"], 1)[0]
        drift = float(1000 * slope / n_atoms)
    return {
        "temperature_K": float(temperatures.mean()),
        "temperature_std_K": float(temperatures.std()),
        "potential_energy_eV": float(rows["potential_energy_eV"][half:].mean()),
        "drift_meV_per_atom_ps": drift,
        "volume_A3": float(np.mean(rows["volume_A3"][half:]))
        if np.isfinite(rows["volume_A3"]).all()
        else None,
    }


def _doubts(summary: Mapping[str, Any], temperature: float) -> Iterator[str]:
    """What says that a trajectory is none of these atoms."""
    remedy = "shorten --timestep, and look whether the model knows such structures"
    drift = summary["drift_meV_per_atom_ps"]
    if drift is not None and abs(drift) > HIGH_DRIFT:
        yield f"the energy is not conserved, it drifts by {drift:.4g} meV/atom/ps: {remedy}"
    if summary["temperature_K"] > 3 * max(temperature, 1.0):
        yield (
            f"the mean temperature is {summary['temperature_K']:.4g} K, begun with "
            f"{temperature:g} K: {remedy}"
        )


def _work(options: MdOptions, atoms: Atoms, calculator: Calculator) -> dict[str, Any]:
    """What decides every bit of the run but its length."""
    content = hashlib.sha256()
    for values in (atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc):
        content.update(np.ascontiguousarray(values).tobytes())
    content.update(atoms.get_masses().tobytes())
    content.update(repr(sorted((name, str(value)) for name, value in atoms.info.items())).encode())
    content.update(repr([constraint.todict() for constraint in atoms.constraints]).encode())
    names = ("ensemble", "seed", "write_every", *(field.name for field in fields(Conditions)))
    # what runs of before had otherwise: their states have no such entry
    later: dict[str, Any] = {}
    if options.velocities == "data":
        content.update(np.ascontiguousarray(atoms.get_momenta()).tobytes())
        later["velocities"] = "data"
    if options.ensemble == "npt" or (
        options.ensemble == "nose_hoover" and ensembles.is_near_a_line(atoms)
    ):
        later["degrees_of_freedom"] = ensembles.degrees_of_freedom(options.ensemble, atoms)
    return {
        "models": [potential.digest() for potential in calculator.potentials],
        "dtype": runtime.dtype_name(calculator.potentials[0].dtype),
        "head": calculator.potentials[0].head,
        "structure": content.hexdigest(),
        **{name: getattr(options, name) for name in names},
        **later,
    }


def _rows(path: Path) -> Mapping[str, np.ndarray]:
    """Columns of the table; NaN where a cell is empty."""
    with path.open(newline="") as file:
        rows: Sequence[Sequence[str]] = list(csv.reader(file))[1:]
    values = np.array([[float(cell) if cell else np.nan for cell in row] for row in rows])
    return dict(zip(COLUMNS, values.T, strict=True))


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number of a state")
