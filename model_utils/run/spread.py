"""How far the labels that are trained on spread: the units of a loss that asks for them."""

from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray

from dataloader.batch import counted_atoms
from dataloader.batching import epoch_order
from dataloader.dataset import Dataset
from dataloader.progress import over
from dataloader.quantities import ENERGY, QUANTITIES, Quantity
from dataloader.structure import Structure, volume_of
from model_utils.errors import InputError
from model_utils.run.objective import AS_THEY_ARE, Units, loss_of, trained_on
from model_utils.runtime import log
from model_utils.settings.options import TrainingOptions

MOST = 20_000  # structures: a spread is known to a percent then
LEAST = 1e-6  # eV, eV/Å, eV/Å³: a smaller spread is that of rounding


def spread_of(
    train: Dataset, quantities: Collection[str], seed: int, as_virial: Collection[str] = ()
) -> dict[str, float]:
    """Standard deviation of the labels of each quantity, in its unit; of energies that
    per atom beyond the E0s.

    Args:
        train: structures to train on; of many a drawn sample is read.
        quantities: that are trained on.
        seed: of the sample.
        as_virial: those of them whose errors the loss multiplies with volume / number of atoms, as
            that of a stress: their spread is that of the product, in eV.

    Raises:
        InputError: labels of a quantity are absent, or do not differ.
    """
    rows = np.arange(len(train))
    if len(train) > MOST:
        rows = np.sort(epoch_order(len(train), seed, epoch=0)[:MOST])
    # numbers, their sum, sum of squares
    sums = {name: np.zeros(3) for name in QUANTITIES if name in quantities}
    for i in over(rows.tolist(), "spread of the labels", len(rows)):
        structure = train.structure(int(i))
        for name, total in sums.items():
            values = _values(QUANTITIES[name], structure, train)
            if name in as_virial:
                values = values * (volume_of(structure.cell, structure.pbc) / structure.n_atoms)
            total += (values.size, values.sum(), np.square(values).sum())
    spread = {name: _deviation(name, total) for name, total in sums.items()}
    log.info("the loss is in units of the spread of the labels: %s", described(spread, as_virial))
    return spread


def units_of(options: TrainingOptions, train: Dataset, known: Mapping[str, float]) -> Units:
    """The units of a run's loss, as --loss_units asks for them.

    Args:
        options: of the run.
        train: structures to train on.
        known: the spread that the run was begun with; empty of a new one.

    Raises:
        InputError: see ``spread_of``.
    """
    kind = options.loss.loss_units
    if kind == "absolute":
        return AS_THEY_ARE
    terms = loss_of(options.loss).terms
    as_virial = {name for name, term in terms.items() if term.as_virial}
    spread = dict(known) or spread_of(train, trained_on(options), options.run.seed, as_virial)
    return Units(spread=spread, balanced=kind == "balanced")


def described(spread: Mapping[str, float], as_virial: Collection[str] = ()) -> str:
    """``energy 0.0213 eV, forces 1.21 eV/Å``, and ``V/N stress 0.4 eV`` of a virial per atom."""
    return ", ".join(
        f"V/N {name} {value:.3g} eV"
        if name in as_virial
        else f"{name} {value:.3g} {QUANTITIES[name].unit}"
        for name, value in spread.items()
    )


def _values(quantity: Quantity, structure: Structure, train: Dataset) -> NDArray[np.float64]:
    """The numbers of a structure's label that errors are taken of; none where there is no label."""
    label = structure.labels.get(quantity.name)
    if label is None or not structure.teaches(quantity.name):
        return np.zeros(0)
    values = np.asarray(label, dtype=np.float64)
    if quantity.per_atom:
        values = values[counted_atoms(quantity, structure, train.free_atoms_only)]
    if quantity == ENERGY:
        facts = train.facts
        head = 0 if structure.head is None else facts.heads.index(structure.head)
        values = (
            values
            - np.array(facts.atomic_energies)[head][
                facts.species_of(structure.atomic_numbers)
            ].sum()
        )
    return values.reshape(-1) / (structure.n_atoms if quantity.over_atoms else 1)


def _deviation(name: str, total: NDArray[np.float64]) -> float:
    count, first, second = total.tolist()
    variance = second / count - (first / count) ** 2 if count else 0.0
    deviation = float(np.sqrt(max(variance, 0.0)))
    if deviation < LEAST:
        raise InputError(
            f"--loss_units: the labels of the {name} to train on do not differ (by more than "
            f"{LEAST:g}), so there is no spread to take as a unit; leave it out"
        )
    return deviation
