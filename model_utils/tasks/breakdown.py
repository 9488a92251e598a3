"""Where the errors of an evaluation are: by structure, by config_type, by element; tables
and predictions as files.
"""

import csv
import io
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from numpy.typing import NDArray

from dataloader import durable
from dataloader.batch import Batch
from dataloader.dataset import Dataset
from dataloader.frames import LABEL, PREDICTION, as_extended_xyz, bare_atoms, put, put_rest
from dataloader.quantities import ENERGY, FORCES, QUANTITIES, STRESS, Quantity
from dataloader.sources import Adjusted
from dataloader.structure import LabelValue
from losses import Prediction
from model_utils.files.csv_cells import csv_text
from model_utils.metrics import error_names
from model_utils.models.committee import STD
from model_utils.run.log_lines import MILLI, milli
from model_utils.run.predictions import besides, is_of_atoms, of_structure, with_references

SMALL_SET = 10  # structures; up to here each one's errors are printed
UNKNOWN_TYPE = "(not read)"  # of records whose config_type nobody asked for
COLUMNS = (
    *(
        "identifier",
        "config_type",
        "n_atoms",
        "energy",
        "predicted_energy",
        "energy_error_per_atom",
    ),
    *("forces_rmse", "forces_max_error"),
)
# eV of the structure; eV/Å, root mean square and largest
OF_COMMITTEE = ("energy_std", "forces_std", "forces_max_std")


@dataclass(frozen=True, kw_only=True)
class Row:
    """Errors of one structure; None where it has no label."""

    identifier: str
    config_type: str
    n_atoms: int
    energy: float | None  # label, eV, total
    predicted_energy: float | None  # eV, total; None of a network that gives none
    forces_rmse: float | None  # eV/Å
    forces_max: float | None  # eV/Å, largest length of a force error
    # root mean square by the name of a quantity beside energy and forces, in its unit, per atom
    # where it is divided by atoms; of those that are labelled
    others: Mapping[str, float]
    spread: Mapping[str, float | None] | None = None  # of a committee, by the names in OF_COMMITTEE

    @property
    def energy_error(self) -> float | None:
        """Prediction minus label, eV."""
        if self.energy is None or self.predicted_energy is None:
            return None
        return self.predicted_energy - self.energy


@dataclass
class ErrorSums:
    """Squared and absolute errors of some components of a quantity."""

    squared: float = 0.0
    absolute: float = 0.0
    components: int = 0

    def add(self, error: NDArray[np.float64]) -> None:
        """Take some errors, (n, …)."""
        self.squared += float((error**2).sum())
        self.absolute += float(np.abs(error).sum())
        self.components += error.size


@dataclass
class TypeSums:
    """Errors of the structures of one config_type."""

    structures: int = 0
    energy_squared: float = 0.0  # of the error per atom
    energies: int = 0
    forces: ErrorSums = field(default_factory=ErrorSums)
    others: dict[str, ErrorSums] = field(default_factory=dict)  # by quantity, see Row.others


@dataclass(frozen=True, kw_only=True)
class LabelledErrors:
    """Errors of a batch in one quantity: of structures or of atoms, divided by the number of
    atoms where the quantity is.
    """

    quantity: Quantity
    errors: NDArray[np.float64]  # (n_rows, …)
    labelled: NDArray[np.bool_]  # (n_rows,)

    def of_structure(self, structure: int, atoms: slice) -> NDArray[np.float64]:
        """Errors of one structure, of what is labelled, (n_rows, …)."""
        rows = atoms if self.quantity.per_atom else slice(structure, structure + 1)
        return self.errors[rows][self.labelled[rows]]


class Breakdown:
    """Sees every batch of an evaluation with its prediction.

    Args:
        data: the structures.
        keep_rows: keep the errors of each, for a table.
        keep_frames: keep the predictions, for an xyz file.
        by_type: errors of each config_type are wanted, for which a record that is not in the
            memory is read once more.
    """

    def __init__(self, data: Dataset, *, keep_rows: bool, keep_frames: bool, by_type: bool) -> None:
        self._data = data
        self._keep_rows = keep_rows or len(data) <= SMALL_SET
        self._keep_frames = keep_frames
        self._by_type = by_type or self._keep_rows or keep_frames
        # by number of the structure: sources and heads are evaluated one after another, and what
        # is written has the order of the data
        self._rows: dict[int, Row] = {}
        self._frames: dict[int, Atoms] = {}
        self.types: dict[str, TypeSums] = defaultdict(TypeSums)
        self.elements: dict[str, ErrorSums] = defaultdict(ErrorSums)

    def __call__(self, batch: Batch, prediction: Prediction) -> None:
        """Take the structures of one batch.

        Args:
            batch: with its labels, on any device.
            prediction: of every quantity that the network gives; energies
                without reference energies.
        """
        ptr = batch.ptr.tolist()
        # a NumPy copy once a batch: structures are judged one by one, and nothing
        # waits for these numbers
        targets = with_references(
            batch, {name: label.value for name, label in batch.labels.items()}
        )
        predicted = with_references(batch, prediction)
        more = besides(prediction)
        others = _other_errors(batch, predicted, targets)
        # (n_atoms,)
        counted = batch.labels[FORCES.name].mask.cpu().numpy() & (FORCES.name in predicted)
        # (n_atoms, 3), eV/Å
        errors = predicted.get(FORCES.name, targets[FORCES.name]) - targets[FORCES.name]
        self._add_by_element(batch, errors, counted)
        for k, index in enumerate(batch.index):
            atoms = slice(ptr[k], ptr[k + 1])
            row = self._row(
                index,
                errors[atoms][counted[atoms]],
                ptr[k + 1] - ptr[k],
                float(predicted[ENERGY.name][k]) if ENERGY.name in predicted else None,
                float(targets[ENERGY.name][k]) if batch.labels[ENERGY.name].mask[k] else None,
                {error.quantity.name: error.of_structure(k, atoms) for error in others},
            )
            own = of_structure(more, k, atoms)
            if self._keep_rows:
                self._rows[index] = replace(row, spread=_spread(own))
            if self._keep_frames:
                self._frames[index] = self._frame(index, of_structure(predicted, k, atoms), own)

    @property
    def rows(self) -> list[Row]:
        """Errors of every structure that is kept, in the order of the data."""
        return [self._rows[index] for index in sorted(self._rows)]

    @property
    def frames(self) -> list[Atoms]:
        """Predictions for every structure that is kept, in the order of the data."""
        return [self._frames[index] for index in sorted(self._frames)]

    def _add_by_element(
        self, batch: Batch, errors: NDArray[np.float64], counted: NDArray[np.bool_]
    ) -> None:
        """Force errors (n_atoms, 3), eV/Å, of the atoms that count, to the
        sums of their elements.
        """
        atomic_numbers = np.array(self._data.facts.atomic_numbers)[batch.species.cpu().numpy()]
        for number in np.unique(atomic_numbers[counted]):
            of_element = counted & (atomic_numbers == number)
            self.elements[chemical_symbols[number]].add(errors[of_element])

    def _row(
        self,
        index: int,
        errors: NDArray[np.float64],
        n_atoms: int,
        energy: float | None,
        target: float | None,
        others: Mapping[str, NDArray[np.float64]],
    ) -> Row:
        """The errors of one structure, which are added to the sums of its config_type.

        Args:
            index: of the structure in the data set.
            errors: of its forces that count, (n, 3), eV/Å.
            n_atoms: of the structure.
            energy: predicted, eV, reference energies included; None where the network gives none.
            target: its label, likewise; None where there is none.
            others: errors of the quantities beside energy and forces, by name.
        """
        known = self._by_type or self._data.in_memory(index)
        kind = self._data.structure(index).config_type if known else UNKNOWN_TYPE
        sums = self.types[kind]
        sums.structures += 1
        if target is not None and energy is not None:
            error = (energy - target) / n_atoms
            sums.energy_squared += error * error  # overflows to infinity, where ** would raise
            sums.energies += 1
        sums.forces.add(errors)
        labelled = {name: rows for name, rows in others.items() if rows.size}
        for name, rows in labelled.items():
            sums.others.setdefault(name, ErrorSums()).add(rows)
        return Row(
            identifier=self._data.name(index),
            config_type=kind,
            n_atoms=n_atoms,
            energy=target,
            predicted_energy=energy,
            forces_rmse=float(np.sqrt((errors**2).mean())) if errors.size else None,
            forces_max=float(np.sqrt((errors**2).sum(axis=1)).max()) if errors.size else None,
            others={name: float(np.sqrt((rows**2).mean())) for name, rows in labelled.items()},
        )

    def _frame(
        self, index: int, predicted: Mapping[str, LabelValue], more: Mapping[str, LabelValue]
    ) -> Atoms:
        """Predictions, and what is known besides, as ``mace_…``, labels as
        ``REF_…``; all else as it was, see ``put_rest``.
        """
        structure = self._data.structure(index)
        atoms = bare_atoms(structure)
        put_rest(atoms, structure)
        atoms.info["config_type"] = structure.config_type
        atoms.info.setdefault("identifier", self._data.name(index))
        own = self._named_head(index)
        if own not in (None, structure.head):  # judged with another, to which its labels do not go
            atoms.info |= {"head": own, f"{PREDICTION}head": structure.head}
        elif structure.head is not None:
            atoms.info["head"] = structure.head
        put(atoms, PREDICTION, predicted)
        _put_besides(atoms, more)
        put(atoms, LABEL, structure.labels)
        return atoms

    def _named_head(self, index: int) -> str | None:
        """The head that a record names itself, where another may have been given for all."""
        number, local = self._data.places[index].tolist()
        source = self._data.sources[number]
        return source.source.heads[local] if isinstance(source, Adjusted) else None

    def lines(self) -> list[str]:
        """Forces by element, errors by config_type where there are several, each
        structure of a small set.
        """
        said = [
            (
                f"forces on {symbol}: rmse {_root(sums)} mae "
                f"{MILLI * sums.absolute / sums.components:.2f} meV/Å "
                f"({sums.components} components)"
            )
            for symbol, sums in sorted(self.elements.items())
        ]
        if len(self.types) > 1:
            for kind, sums in sorted(self.types.items()):
                energy = (
                    f"{MILLI * (sums.energy_squared / sums.energies) ** 0.5:.2f}"
                    if sums.energies
                    else "-"
                )
                forces = _root(sums.forces) if sums.forces.components else "-"
                others = "".join(
                    f", {quantity.symbol} rmse {_root(sums.others[name])} m{quantity.error_unit}"
                    for name, quantity in QUANTITIES.items()
                    if name in sums.others
                )
                said.append(
                    f"{kind}: {sums.structures} configs, E rmse {energy} meV/atom, F "
                    f"rmse {forces} meV/Å{others}"
                )
        if len(self._data) <= SMALL_SET:
            said += [
                (
                    f"{row.identifier}  ΔE {milli(row.energy_error)} meV  F rmse "
                    f"{milli(row.forces_rmse)} meV/Å"
                )
                for row in self.rows
            ]
        return said

    def as_plain(self) -> dict[str, dict[str, dict[str, float | int | None]]]:
        """Errors by element and by config_type, for a JSON file; eV, eV/Å."""
        return {
            "by_element": {
                symbol: {
                    "forces_rmse": (sums.squared / sums.components) ** 0.5,
                    "forces_mae": sums.absolute / sums.components,
                }
                for symbol, sums in sorted(self.elements.items())
            },
            "by_config_type": {
                kind: self._of_type(kind) for kind in sorted(self.types) if kind != UNKNOWN_TYPE
            },
        }

    def _of_type(self, kind: str) -> dict[str, float | int | None]:
        sums = self.types[kind]
        energy_rmse = None
        if sums.energies:
            energy_rmse = (sums.energy_squared / sums.energies) ** 0.5
        forces_rmse = None
        if sums.forces.components:
            forces_rmse = (sums.forces.squared / sums.forces.components) ** 0.5
        return {
            "n_configs": sums.structures,
            "energy_rmse_per_atom": energy_rmse,
            "forces_rmse": forces_rmse,
            **{
                error_names(QUANTITIES[name])["rmse"]: (errors.squared / errors.components) ** 0.5
                for name, errors in sums.others.items()
            },
        }

    def write_table(self, path: Path) -> None:
        """One row per structure as CSV; energies in eV, forces in eV/Å, others in their units."""
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        has_spread = any(row.spread is not None for row in self.rows)
        others = [name for name in QUANTITIES if any(name in row.others for row in self.rows)]
        names = [error_names(QUANTITIES[name])["rmse"] for name in others]
        table.writerow([*COLUMNS, *names, *(OF_COMMITTEE if has_spread else ())])
        for row in self.rows:
            error = None if row.energy_error is None else row.energy_error / row.n_atoms
            energies = (row.energy, row.predicted_energy, error)
            words = (csv_text(row.identifier), csv_text(row.config_type))
            spread = [] if row.spread is None else [row.spread[name] for name in OF_COMMITTEE]
            forces = (row.forces_rmse, row.forces_max)
            more = [row.others.get(name) for name in others]
            table.writerow([*words, row.n_atoms, *energies, *forces, *more, *spread])
        durable.write_text(path, text.getvalue())

    def write_frames(self, path: Path) -> None:
        """Predictions beside labels as extended XYZ."""
        durable.write_text(path, as_extended_xyz(self.frames))


def _put_besides(atoms: Atoms, values: Mapping[str, LabelValue]) -> None:
    """Energies of atoms and standard deviations of a committee as
    ``mace_node_energies``, ``mace_forces_std``.
    """
    for name, value in values.items():
        if name == f"{STRESS.name}{STD}" and not atoms.pbc.all():
            continue
        if is_of_atoms(name):
            atoms.arrays[f"{PREDICTION}{name}"] = np.asarray(value)
        else:
            atoms.info[f"{PREDICTION}{name}"] = (
                value if isinstance(value, float) else np.asarray(value).reshape(-1)
            )


def _spread(more: Mapping[str, LabelValue]) -> dict[str, float | None] | None:
    """What a committee differs by in one structure, by the names in ``OF_COMMITTEE``;
    None of a single model.
    """
    if not any(name.endswith(STD) for name in more):
        return None
    spread: dict[str, float | None] = dict.fromkeys(OF_COMMITTEE)
    energy = more.get(f"{ENERGY.name}{STD}")
    if energy is not None:
        spread["energy_std"] = float(energy)
    forces = more.get(f"{FORCES.name}{STD}")
    if forces is not None:
        squared = np.asarray(forces) ** 2  # (n_atoms, 3)
        spread["forces_std"] = float(np.sqrt(squared.mean()))
        spread["forces_max_std"] = float(np.sqrt(squared.sum(axis=1)).max())
    return spread


def _other_errors(
    batch: Batch,
    predicted: Mapping[str, NDArray[np.float64]],
    targets: Mapping[str, NDArray[np.float64]],
) -> list[LabelledErrors]:
    """Prediction minus label of every quantity beside energy and forces that has both."""
    atoms = np.diff(batch.ptr.cpu().numpy())
    errors = []
    for name, quantity in QUANTITIES.items():
        if quantity in (ENERGY, FORCES) or name not in predicted or name not in targets:
            continue
        error = predicted[name] - targets[name]
        if quantity.over_atoms:
            counts = np.repeat(atoms, atoms) if quantity.per_atom else atoms
            error = error / counts.reshape(-1, *[1] * (error.ndim - 1))
        labelled = batch.labels[name].mask.cpu().numpy()
        errors.append(LabelledErrors(quantity=quantity, errors=error, labelled=labelled))
    return errors


def _root(sums: ErrorSums) -> str:
    """Root mean square of errors, in a thousandth of their unit."""
    return f"{MILLI * (sums.squared / sums.components) ** 0.5:.2f}"
