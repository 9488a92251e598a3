"""Velocities with which dynamics begin: drawn for a temperature, or those of the data."""

import numpy as np
from ase import Atoms, units
from ase.md.velocitydistribution import Stationary, ZeroRotation

from dataloader.errors import InputError
from model_utils.runtime import log
from model_utils.settings.options import MdOptions
from model_utils.simulation import ensembles


def begin(atoms: Atoms, options: MdOptions, rng: np.random.Generator) -> None:
    """Give atoms the velocities with which a run begins.

    Raises:
        InputError: those of the data are asked for, and there are none.
    """
    own = atoms.has("momenta") and bool(atoms.get_momenta().any())
    if options.velocities == "drawn":
        if own:
            log.warning(
                "warning: the structure has velocities (%.1f K), which are not used: new ones are "
                "drawn; --velocities data takes them",
                ensembles.temperature_of(options.ensemble, atoms),
            )
        give_velocities(atoms, options.temperature, rng, options.ensemble)
        return
    if not own:
        raise InputError(
            "--velocities data, but the structure has none (a column momenta, in ASE's units)"
        )
    _take_whole_to_rest(atoms, options.ensemble)
    log.info(
        "velocities are those of the data, %.1f K",
        ensembles.temperature_of(options.ensemble, atoms),
    )


def _take_whole_to_rest(atoms: Atoms, ensemble: str) -> None:
    """Take motion and rotation of the whole away where the ensemble has none."""
    if ensembles.keeps_whole_at_rest(ensemble, atoms):
        Stationary(atoms, preserve_temperature=False)
        if not atoms.pbc.any():
            with np.errstate(divide="ignore", invalid="ignore"):  # of atoms on a line
                ZeroRotation(atoms, preserve_temperature=False)


def give_velocities(
    atoms: Atoms, temperature: float, rng: np.random.Generator, ensemble: str = "nve"
) -> None:
    """Velocities of a temperature; motion and rotation of the whole only where
    the ensemble has them.

    Args:
        atoms: which get them.
        temperature: K, of the degrees of freedom that the ensemble moves.
        rng: which draws them.
        ensemble: a name in ``ensembles.ENSEMBLES``.
    """
    sigma = np.sqrt(units.kB * temperature * atoms.get_masses())[:, None]
    atoms.set_momenta(rng.standard_normal((len(atoms), 3)) * sigma)
    _take_whole_to_rest(atoms, ensemble)
    now = ensembles.temperature_of(ensemble, atoms)
    if now > 0:
        atoms.set_momenta(atoms.get_momenta() * np.sqrt(temperature / now))
