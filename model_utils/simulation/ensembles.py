"""Ensembles of molecular dynamics: ASE's integrators with what each needs to go
on where it was stopped.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.md.langevin import Langevin
from ase.md.md import MolecularDynamics
from ase.md.nose_hoover_chain import IsotropicMTKBarostat, IsotropicMTKNPT, NoseHooverChainNVT
from ase.md.verlet import VelocityVerlet

from dataloader.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What the dynamics are to keep.

    Attributes:
        timestep: fs.
        temperature: K.
        friction: 1/ps, of Langevin's thermostat.
        thermostat_time: fs, in which a Nosé–Hoover chain follows.
        pressure: GPa.
        barostat_time: fs, in which the cell follows.
    """

    timestep: float
    temperature: float
    friction: float
    thermostat_time: float
    pressure: float
    barostat_time: float


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """One ensemble.

    Attributes:
        begin: makes the integrator of atoms that have velocities.
        kept: attributes of the integrator that change from step to step, besides
            atoms and random numbers.
        conserves: whether a quantity like the energy is conserved.
        moves_whole: whether the thermostat moves the whole too: all 3 N degrees of
            freedom have the temperature.
        needs_cell: whether cells change, so that there must be three periodic
            directions and no held atoms.
        uses: conditions that not every ensemble has.
    """

    begin: Callable[[Atoms, Conditions, np.random.Generator], MolecularDynamics]
    kept: tuple[str, ...] = ()
    conserves: bool = True
    moves_whole: bool = False
    needs_cell: bool = False
    uses: tuple[str, ...] = ()


def _nve(atoms: Atoms, conditions: Conditions, rng: np.random.Generator) -> MolecularDynamics:
    return VelocityVerlet(atoms, conditions.timestep * units.fs)


def _langevin(atoms: Atoms, conditions: Conditions, rng: np.random.Generator) -> MolecularDynamics:
    return Langevin(
        atoms,
        conditions.timestep * units.fs,
        temperature_K=conditions.temperature,
        friction=conditions.friction / (1000 * units.fs),
        fixcm=False,
        rng=rng,
    )


def _nose_hoover(
    atoms: Atoms, conditions: Conditions, rng: np.random.Generator
) -> MolecularDynamics:
    return NoseHooverChainNVT(
        atoms,
        conditions.timestep * units.fs,
        temperature_K=_of_chain("nose_hoover", atoms, conditions),
        tdamp=conditions.thermostat_time * units.fs,
    )


def _npt(atoms: Atoms, conditions: Conditions, rng: np.random.Generator) -> MolecularDynamics:
    pdamp = conditions.barostat_time * units.fs
    integrator = IsotropicMTKNPT(
        atoms,
        conditions.timestep * units.fs,
        temperature_K=_of_chain("npt", atoms, conditions),
        pressure_au=conditions.pressure * units.GPa,
        tdamp=conditions.thermostat_time * units.fs,
        pdamp=pdamp,
    )
    # the cell is one degree of freedom, none of which is at rest
    integrator._barostat = IsotropicMTKBarostat(
        num_atoms_global=len(atoms), temperature_K=conditions.temperature, pdamp=pdamp
    )
    return integrator


def _of_chain(name: str, atoms: Atoms, conditions: Conditions) -> float:
    """The temperature that ASE's chain of thermostats must be told, K: it heats 3 N degrees of
    freedom, of which those of the whole stay at rest.
    """
    return conditions.temperature * degrees_of_freedom(name, atoms) / (3 * len(atoms))


_CHAIN = ("_thermostat._eta", "_thermostat._p_eta")
_BAROSTAT = ("_barostat._xi", "_barostat._p_xi", "_eps", "_p_eps", "_volume0", "_cell0")

ENSEMBLES: Mapping[str, Ensemble] = {
    "nve": Ensemble(begin=_nve),
    "langevin": Ensemble(begin=_langevin, conserves=False, moves_whole=True, uses=("friction",)),
    "nose_hoover": Ensemble(begin=_nose_hoover, kept=_CHAIN, uses=("thermostat_time",)),
    "npt": Ensemble(
        begin=_npt,
        kept=(*_CHAIN, *_BAROSTAT),
        needs_cell=True,
        uses=("thermostat_time", "pressure", "barostat_time"),
    ),
}


def not_used(name: str) -> list[str]:
    """Conditions that other ensembles use and this one does not."""
    of_some = {condition for ensemble in ENSEMBLES.values() for condition in ensemble.uses}
    return sorted(of_some - set(ENSEMBLES[name].uses))


def check(name: str, atoms: Atoms) -> None:
    """Refuse atoms that an ensemble cannot move.

    Raises:
        InputError: saying why.
    """
    if degrees_of_freedom(name, atoms) == 0:
        raise InputError("all atoms of the structure are held fixed: nothing moves; free some")
    if not ENSEMBLES[name].needs_cell:
        return
    if not atoms.pbc.all():
        raise InputError(
            f"--ensemble {name} changes the cell, but the structure is not periodic "
            "in three directions"
        )
    if atoms.constraints:
        raise InputError(
            f"--ensemble {name} changes the cell, and the structure holds atoms "
            "fixed; free them first"
        )


def keeps_whole_at_rest(name: str, atoms: Atoms) -> bool:
    """Whether the centre of mass stays where it is, and for molecules the whole does not rotate."""
    return len(atoms) > 1 and not atoms.constraints and not ENSEMBLES[name].moves_whole


def degrees_of_freedom(name: str, atoms: Atoms) -> int:
    """Number of independent motions that have the temperature, (N atoms: 3 N,
    less those of the whole).

    It is the same for every moment of a run: a molecule of three atoms on a line leaves it, and
    rotates about three axes then.
    """
    if not keeps_whole_at_rest(name, atoms):
        return int(atoms.get_number_of_degrees_of_freedom())
    if atoms.pbc.any():
        return 3 * len(atoms) - 3
    return 1 if len(atoms) == 2 else 3 * len(atoms) - 6


def is_near_a_line(atoms: Atoms) -> bool:
    """Whether atoms of a molecule lie nearly on a line. Runs of before had one motion more there,
    as long as they did.
    """
    if len(atoms) < 3 or atoms.pbc.any():
        return False
    moments = atoms.get_moments_of_inertia()
    return bool(moments.min() < 1e-3 * moments.max())


def temperature_of(name: str, atoms: Atoms) -> float:
    """Temperature in K of the degrees of freedom that the ensemble moves."""
    return float(2 * atoms.get_kinetic_energy() / (units.kB * degrees_of_freedom(name, atoms)))


def state_of(name: str, integrator: MolecularDynamics) -> dict[str, Any]:
    """What an integrator keeps from step to step, as plain values."""
    return {
        path: _plain(reduce(getattr, path.split("."), integrator)) for path in ENSEMBLES[name].kept
    }


def put_state(name: str, integrator: MolecularDynamics, state: Mapping[str, Any]) -> None:
    """Give an integrator what it kept."""
    for path in ENSEMBLES[name].kept:
        *owners, attribute = path.split(".")
        value = state[path]
        setattr(
            reduce(getattr, owners, integrator),
            attribute,
            np.array(value) if isinstance(value, list) else value,
        )


def conserved_energy(name: str, integrator: MolecularDynamics, atoms: Atoms) -> float | None:
    """The quantity that the ensemble conserves, eV; None where it conserves none."""
    if not ENSEMBLES[name].conserves:
        return None
    if hasattr(integrator, "get_conserved_energy"):
        return float(integrator.get_conserved_energy())
    return float(atoms.get_total_energy())


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
