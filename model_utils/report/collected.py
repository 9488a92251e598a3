"""What a report needs of an evaluation: sums of errors of every structure and
group, and numbers to plot.
"""

import heapq
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from dataloader.batch import Batch
from dataloader.dataset import Dataset
from dataloader.quantities import FORCES, QUANTITIES, Quantity
from losses import Prediction
from model_utils.metrics import error_names
from model_utils.run.predictions import with_references

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

# numbers of a quantity that are kept for plots; of more, every second structure, and so on
MOST_PLOTTED = 4_000_000
SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500)  # atoms of a structure from which a group begins
# eV/Å, length of a labelled force from which a group begins
MAGNITUDES = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


@dataclass
class ErrorSums:
    """Errors of some entries, structure by structure; the three lists and
    ``structures`` have one length.
    """

    structures: list[int] = field(default_factory=list)  # in the order of the evaluation
    squared: list[float] = field(default_factory=list)
    absolute: list[float] = field(default_factory=list)
    # magnitudes, not divided by the number of atoms
    undivided: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)  # entries

    def add(self, structure: int, error: Floats, n_atoms: int = 1) -> None:
        """Take the errors of one structure.

        Args:
            structure: its number in the order of the evaluation.
            error: of its labelled entries, in the unit of the quantity.
            n_atoms: by which they are divided where the quantity is judged per atom.
        """
        divided = error / n_atoms
        self.structures.append(structure)
        self.squared.append(float(np.sum(divided * divided)))
        self.absolute.append(float(np.sum(np.abs(divided))))
        self.undivided.append(float(np.sum(np.abs(error))))
        self.counts.append(error.size)

    def of(self, short: str) -> list[float]:
        """Sums behind an error by its short name: ``rmse``, ``mae`` or ``mae_cfg``."""
        return {"rmse": self.squared, "mae": self.absolute, "mae_cfg": self.undivided}[short]

    def error(self, short: str) -> float | None:
        """The error of that short name; None where nothing is labelled."""
        entries = sum(self.counts)
        if entries == 0:
            return None
        mean = sum(self.of(short)) / entries
        return mean**0.5 if short == "rmse" else mean


class Points:
    """Labels and predictions of one quantity for plots, of all structures or of every 2ᵏ-th."""

    def __init__(self) -> None:
        # number of the structure, labels, predictions
        self._parts: list[tuple[int, Floats, Floats]] = []
        self._kept = 0
        self.every = 1  # of so many structures one is kept

    def add(self, structure: int, label: Floats, predicted: Floats) -> None:
        """Take the labelled entries of one structure, of any shape, in the unit of the quantity."""
        if structure % self.every or label.size == 0:
            return
        self._parts.append((structure, label.ravel(), predicted.ravel()))
        self._kept += label.size
        while self._kept > MOST_PLOTTED and len(self._parts) > 1:
            self.every *= 2
            self._parts = [part for part in self._parts if part[0] % self.every == 0]
            self._kept = sum(part[1].size for part in self._parts)

    def labels(self) -> Floats:
        """(n,) labels."""
        return np.concatenate([np.zeros(0), *(part[1] for part in self._parts)])

    def predictions(self) -> Floats:
        """(n,) predictions."""
        return np.concatenate([np.zeros(0), *(part[2] for part in self._parts)])


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One structure of the evaluation.

    Attributes:
        number: in the order of the evaluation.
        index: in the data set.
        n_atoms: of it.
        errors: root mean square of its labelled entries, by quantity that has some,
            in the quantity's unit.
    """

    number: int
    index: int
    n_atoms: int
    errors: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Worst:
    """A structure with a large error, and the errors of its forces where they are labelled."""

    judged: Judged
    forces_error: Floats | None  # (n_atoms, 3), eV/Å, prediction minus label; 0 where unlabelled


Groups = dict[str, dict[str, dict[str, ErrorSums]]]  # by kind of group, name of the group, quantity


class Collected:
    """Sees every batch of an evaluation with its prediction.

    Args:
        data: the structures.
        points: keep labels and predictions for plots.
        worst: structures whose errors of forces are kept, those with the largest.
    """

    def __init__(self, data: Dataset, *, points: bool, worst: int = 0) -> None:
        self._data = data
        self._keep_points = points
        self._n_worst = worst
        # a heap, the least error first
        self._worst: list[tuple[tuple[bool, float, int], Worst]] = []
        self._atomic_numbers = np.array(data.facts.atomic_numbers)
        self.structures: list[Judged] = []
        self.total: dict[str, ErrorSums] = {name: ErrorSums() for name in QUANTITIES}
        self.points: dict[str, Points] = {name: Points() for name in QUANTITIES}
        self.groups: Groups = {
            kind: defaultdict(lambda: defaultdict(ErrorSums))
            for kind in ("by_element", "by_config_type", "by_head", "by_size", "by_force_magnitude")
        }

    def __call__(self, batch: Batch, prediction: Prediction) -> None:
        """Take the structures of one batch.

        Args:
            batch: with its labels, on any device.
            prediction: of every quantity that the network gives; energies
                without reference energies.
        """
        labels = with_references(batch, {name: label.value for name, label in batch.labels.items()})
        predicted = with_references(batch, prediction)
        masks = {name: batch.labels[name].mask.cpu().numpy() for name in predicted}
        elements = self._atomic_numbers[batch.species.cpu().numpy()]
        heads = batch.head.tolist()
        ptr = batch.ptr.tolist()
        for k, index in enumerate(batch.index):
            atoms = slice(ptr[k], ptr[k + 1])
            own = {}
            for name in predicted:
                rows = atoms if QUANTITIES[name].per_atom else slice(k, k + 1)
                own[name] = Entries(labels[name][rows], predicted[name][rows], masks[name][rows])
            self._add(index, self._data.facts.heads[heads[k]], elements[atoms], own)

    def _add(
        self, index: int, head: str, elements: NDArray[np.int64], own: Mapping[str, "Entries"]
    ) -> None:
        """One structure with its elements (n_atoms,) and what was labelled and predicted of it."""
        number = len(self.structures)
        n_atoms = len(elements)
        kind = self._data.structure(index).config_type
        groups = {"by_config_type": kind, "by_head": head, "by_size": size_group(n_atoms)}
        errors = {}
        for name, entries in own.items():
            quantity = QUANTITIES[name]
            error = entries.error()
            if error.size == 0:
                continue
            divisor = n_atoms if quantity.over_atoms else 1
            self.total[name].add(number, error, divisor)
            for kind_of_group, group in groups.items():
                self.groups[kind_of_group][group][name].add(number, error, divisor)
            errors[name] = float(np.sqrt(np.mean((error / divisor) ** 2)))
            if self._keep_points:
                self.points[name].add(
                    number, entries.labelled() / divisor, entries.predictions() / divisor
                )
        judged = Judged(number=number, index=index, n_atoms=n_atoms, errors=errors)
        self.structures.append(judged)
        self._keep_if_worst(judged, own.get(FORCES.name))
        if FORCES.name in own:
            self._add_atoms(number, elements, own[FORCES.name])

    def _add_atoms(self, number: int, elements: NDArray[np.int64], forces: "Entries") -> None:
        """Force errors of the atoms of one structure, by element and by length
        of the labelled force.
        """
        of_element = elements[forces.mask]
        error = forces.error()
        for element in np.unique(of_element):
            sums = self.groups["by_element"][chemical_symbols[element]][FORCES.name]
            sums.add(number, error[of_element == element])
        lengths = np.sqrt((forces.labelled() ** 2).sum(axis=1))
        of_magnitude = np.searchsorted(MAGNITUDES, lengths, side="right") - 1
        for magnitude in np.unique(of_magnitude):
            sums = self.groups["by_force_magnitude"][_magnitude_group(int(magnitude))][FORCES.name]
            sums.add(number, error[of_magnitude == magnitude])

    def _keep_if_worst(self, judged: Judged, forces: "Entries | None") -> None:
        """Keep a structure while its error is among the largest: that of forces, or of
        the energy without them.
        """
        if self._n_worst == 0 or not judged.errors:
            return
        has_forces = FORCES.name in judged.errors
        error = judged.errors[FORCES.name] if has_forces else next(iter(judged.errors.values()))
        key = (has_forces, error, -judged.number)
        if len(self._worst) == self._n_worst and key < self._worst[0][0]:
            return
        differences = None
        if forces is not None and has_forces:
            differences = np.where(forces.mask[:, None], forces.predicted - forces.labels, 0.0)
        heapq.heappush(self._worst, (key, Worst(judged=judged, forces_error=differences)))
        if len(self._worst) > self._n_worst:
            heapq.heappop(self._worst)

    def worst(self) -> list[Worst]:
        """Structures with the largest errors, the largest first."""
        return [kept for _, kept in sorted(self._worst, key=lambda entry: entry[0], reverse=True)]

    def ordered_groups(self, kind: str) -> list[str]:
        """Names of the groups of one kind, by size where they are ranges and by name otherwise."""
        ranges = {
            "by_size": [_size_group(i) for i in range(len(SIZES))],
            "by_force_magnitude": [_magnitude_group(i) for i in range(len(MAGNITUDES))],
        }
        there = self.groups[kind]
        return [name for name in ranges[kind] if name in there] if kind in ranges else sorted(there)


@dataclass(frozen=True)
class Entries:
    """Rows of one quantity of one structure: labels and predictions (n_rows, *components),
    which rows are labelled.
    """

    labels: Floats
    predicted: Floats
    mask: Bools

    def labelled(self) -> Floats:
        """Labels of the labelled rows."""
        return self.labels[self.mask]

    def predictions(self) -> Floats:
        """Predictions of the labelled rows."""
        return self.predicted[self.mask]

    def error(self) -> Floats:
        """Prediction minus label of the labelled rows."""
        return self.predictions() - self.labelled()


def size_group(n_atoms: int) -> str:
    """The group of structures of so many atoms, as ``10-19 atoms``."""
    return _size_group(int(np.searchsorted(SIZES, n_atoms, side="right")) - 1)


def _size_group(number: int) -> str:
    first = SIZES[number]
    if number == len(SIZES) - 1:
        return f"{first} atoms or more"
    last = SIZES[number + 1] - 1
    return f"{first} atom" if first == last == 1 else f"{first}-{last} atoms"


def _magnitude_group(number: int) -> str:
    first = MAGNITUDES[number]
    if number == len(MAGNITUDES) - 1:
        return f"{first:g} eV/Å or more"
    return f"{first:g}-{MAGNITUDES[number + 1]:g} eV/Å"


def named_errors(
    sums: Mapping[str, ErrorSums], of_one: Callable[[Quantity, str, ErrorSums], object]
) -> dict[str, object]:
    """Something of every error of every quantity that is labelled, by the error's name in metrics.

    Args:
        sums: by quantity.
        of_one: quantity, short name of the error (``rmse``, ``mae``, ``mae_cfg``)
            and sums to the value.
    """
    values = {}
    for name, quantity in QUANTITIES.items():
        if name in sums and sum(sums[name].counts) > 0:
            for short, error in error_names(quantity).items():
                values[error] = of_one(quantity, short, sums[name])
    return values
