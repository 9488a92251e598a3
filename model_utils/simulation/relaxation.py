"""The relaxation of one structure, which ends with a minimum or with the
reason why there is none.
"""

import signal
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS, FIRE, LBFGS
from ase.optimize.optimize import Optimizer

from dataloader.errors import InputError

MINIMIZERS: Mapping[str, Callable[..., Optimizer]] = {"fire": FIRE, "lbfgs": LBFGS, "bfgs": BFGS}

COLLAPSED = 0.2  # of the volume at the beginning; rock salt at 500 GPa has 0.5
EXPLODED = 5.0
DIED = "its process died"
HOLE = 20.0  # eV per atom below the beginning; forming a solid from atoms gives 1 to 9


@dataclass(frozen=True, kw_only=True)
class Criteria:
    """When a relaxation is over.

    Attributes:
        fmax: eV/Å; no force is larger at a minimum.
        max_steps: after which it is given up.
        minimizer: a name in ``MINIMIZERS``.
        relax_cell: where the structure is periodic in three directions.
        pressure: GPa.
        max_shift: Å, of an atom in one step.
    """

    fmax: float
    max_steps: int
    minimizer: str = "lbfgs"
    relax_cell: bool = False
    pressure: float = 0.0
    max_shift: float = 0.2


@dataclass(frozen=True, kw_only=True)
class Relaxed:
    """What came of one structure.

    Attributes:
        atoms: as they were at the last step that could be computed, without a calculator.
        converged: whether it is a minimum.
        kind: of the reason, by which structures are counted; empty where it is one.
        reason: why it is none; empty where it is.
        steps: of the minimizer.
        energy: eV, of the last step; None where nothing could be computed.
        energy_before: eV, of the structure as it came.
        fmax: eV/Å, largest force of the last step.
        stress: (6,), eV/Å³, of the last step in Voigt's order; None where there is no volume.
        volume_before: Å³; None where there is none.
    """

    atoms: Atoms
    converged: bool
    kind: str
    reason: str
    steps: int
    energy: float | None
    energy_before: float | None
    fmax: float | None
    stress: list[float] | None
    volume_before: float | None


class _FilterOfCells(FrechetCellFilter):
    """ASE's filter, whose answers are kept while atoms and cell stay where they are.

    A step of a minimizer asks for the gradient three times and for the positions once: with
    logarithms and exponentials of matrices that is 20 ms, and a small crystal's energy takes 15.
    """

    _of: tuple[bytes, bytes] | None = None  # positions and cell that the answers belong to
    _kept: dict[str, np.ndarray]

    def get_positions(self) -> np.ndarray:
        """Positions and the logarithm of the deformation, (atoms + 3, 3)."""
        return self._once("positions", super().get_positions)

    def get_forces(self, **asked: Any) -> np.ndarray:
        """Forces and the negative gradient by the logarithm of the deformation, (atoms + 3, 3)."""
        return super().get_forces(**asked) if asked else self._once("forces", super().get_forces)

    def _once(self, what: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
        now = (self.atoms.positions.tobytes(), self.atoms.cell.array.tobytes())
        if now != self._of:
            self._of = now
            self._kept = {}
        if what not in self._kept:
            self._kept[what] = compute()
        return self._kept[what].copy()


class _Stopped(Exception):
    """The structure cannot be relaxed; says why.

    Args:
        kind: of the reason, by which structures are counted.
        reason: in words.
    """

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


def of_a_dead_process(atoms: Atoms, exitcode: int) -> Relaxed:
    """The result of a structure whose process died: it stays as it came.

    Args:
        atoms: the structure.
        exitcode: of the process; of a signal, the negative one.
    """
    how = signal.Signals(-exitcode).name if exitcode < 0 else f"code {exitcode}"
    is_kill = exitcode == -signal.SIGKILL
    memory = (
        " twice, as happens where memory is short: fewer --processes leave more of it"
        if is_kill
        else ""
    )
    return Relaxed(
        atoms=atoms.copy(),
        converged=False,
        kind=DIED,
        reason=f"its process was ended by {how}{memory}; repeat the command to try it again",
        steps=0,
        energy=None,
        energy_before=None,
        fmax=None,
        stress=None,
        volume_before=None,
    )


def relaxed(
    atoms: Atoms, calculator: Any, criteria: Criteria, trajectory: Path | None = None
) -> Relaxed:
    """Relax a structure; whatever is wrong with it is told in the result, and never raised.

    Args:
        atoms: with constraints, where atoms are held; a copy is moved.
        calculator: of ASE.
        criteria: when it is over.
        trajectory: where its way is written.
    """
    moving = atoms.copy()
    moving.calc = calculator
    way = _Way(moving)
    with_cell = criteria.relax_cell and bool(moving.pbc.all())
    steps: int | None = None
    # by 1e-13, in Frechet's filter
    warnings.filterwarnings("ignore", "logm result may be inaccurate", RuntimeWarning)
    try:
        way.look()
        steps, converged = _minimized(moving, criteria, way.look, with_cell, trajectory)
        kind = "" if converged else "not converged"
        reason = "" if converged else _why_no_minimum(moving, criteria, with_cell)
    except _Stopped as stopped:
        kind = stopped.kind
        reason = str(stopped)
    except InputError as error:
        kind = "cannot be computed"
        reason = str(error)
    except Exception as error:  # whatever it is, the others are relaxed
        kind = "failed"
        reason = f"failed: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return way.result(kind, reason, steps)


def _minimized(
    atoms: Atoms,
    criteria: Criteria,
    look: Callable[[], None],
    with_cell: bool,
    trajectory: Path | None,
) -> tuple[int, bool]:
    """Move atoms to a minimum; the steps that it took, and whether it is one.

    ASE's filter of a cell gives forces times the deformation since it was made, which may be large
    where no force is and small where one is. A minimum is judged by the forces themselves, and
    where the filter sees one too early, another one begins with the cell of now.

    Args:
        atoms: with a calculator; are moved.
        criteria: when it is over.
        look: is called after every step.
        with_cell: whether the cell is relaxed.
        trajectory: where the way is written.
    """
    steps = 0
    while True:
        target = (
            _FilterOfCells(atoms, scalar_pressure=criteria.pressure * units.GPa)
            if with_cell
            else atoms
        )
        minimizer = MINIMIZERS[criteria.minimizer](
            target,
            logfile=None,
            trajectory=None if trajectory is None else str(trajectory),
            append_trajectory=steps > 0,
            maxstep=criteria.max_shift,
        )
        with minimizer:
            for _ in minimizer.irun(fmax=criteria.fmax, steps=criteria.max_steps - steps):
                if steps == 0 or minimizer.nsteps:  # else it was looked at by the one before
                    look()
                is_minimum = _largest(atoms, criteria, with_cell) < criteria.fmax
                if is_minimum:
                    break
        steps += minimizer.nsteps
        if is_minimum or minimizer.nsteps == 0 or steps >= criteria.max_steps:
            return steps, is_minimum


def _force(atoms: Atoms) -> float:
    """The largest force, eV/Å; of held atoms it is zero."""
    return float(np.linalg.norm(atoms.get_forces(), axis=1).max())


def _virial(atoms: Atoms, pressure: float) -> float:
    """The largest row of the virial of a cell under a pressure (GPa), eV an atom."""
    stress = atoms.get_stress(voigt=False) + pressure * units.GPa * np.eye(3)
    return float(np.linalg.norm(stress, axis=1).max()) * float(atoms.get_volume()) / len(atoms)


def _largest(atoms: Atoms, criteria: Criteria, with_cell: bool) -> float:
    """What is smaller than ``fmax`` at a minimum."""
    force = _force(atoms)
    return max(force, _virial(atoms, criteria.pressure)) if with_cell else force


def _why_no_minimum(atoms: Atoms, criteria: Criteria, with_cell: bool) -> str:
    """What is still too large after the last step: forces, or the virial of a cell."""
    if criteria.max_steps:
        what = f"not converged after {criteria.max_steps} steps"
    else:
        what = "not relaxed, and no minimum"
    of_atoms = f"{what}: its largest force is {_force(atoms):.3g} eV/Å"
    if not with_cell:
        return of_atoms
    return f"{of_atoms}, the virial of its cell {_virial(atoms, criteria.pressure):.3g} eV an atom"


class _Way:
    """What is known of a structure on its way: the last state that was sound."""

    def __init__(self, atoms: Atoms) -> None:
        self.atoms = atoms
        self.volume_before = (
            float(atoms.get_volume()) if atoms.pbc.all() and atoms.cell.rank == 3 else None
        )
        self.energy_before: float | None = None
        self._sound: Atoms | None = None
        self._energy: float | None = None
        self._fmax: float | None = None
        self._stress: list[float] | None = None
        self.looks = 0

    def look(self) -> None:
        """Compute the structure as it is now and keep it, if it is sound.

        Raises:
            _Stopped, InputError: it is not.
        """
        atoms = self.atoms
        forces = atoms.get_forces()  # of held atoms: zero
        energy = atoms.get_potential_energy()
        if not (np.isfinite(forces).all() and np.isfinite(energy)):
            raise _Stopped("no numbers", "energy or forces are no numbers")
        if self.energy_before is None:
            self.energy_before = energy
        if energy < self.energy_before - HOLE * len(atoms):
            raise _Stopped(
                "a hole of the model",
                f"the energy fell by {(self.energy_before - energy) / len(atoms):.0f} eV an atom: "
                "a hole of the model",
            )
        if self.volume_before is not None:
            change = float(atoms.get_volume()) / self.volume_before
            if not COLLAPSED <= change <= EXPLODED:
                what = f"the cell {'collapsed' if change < 1 else 'exploded'}"
                raise _Stopped(what, f"{what} to {change:.2g} of its volume")
            self._stress = atoms.get_stress().tolist()
        self._energy = float(energy)
        self._fmax = float(np.linalg.norm(forces, axis=1).max())
        self._sound = atoms.copy()
        self.looks += 1

    def result(self, kind: str, reason: str, steps: int | None) -> Relaxed:
        """The record; steps that the minimizer did not count are those that were looked at."""
        atoms = self.atoms.copy() if self._sound is None else self._sound
        return Relaxed(
            atoms=atoms,
            converged=reason == "",
            kind=kind,
            reason=reason,
            steps=max(self.looks - 1, 0) if steps is None else steps,
            energy=self._energy,
            energy_before=self.energy_before,
            fmax=self._fmax,
            stress=self._stress,
            volume_before=self.volume_before,
        )
