"""Error metrics: root mean squares and mean magnitudes, from the sums of ``losses``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from dataloader.quantities import QUANTITIES, Quantity
from losses import ATOMS, STRUCTURES, Loss, position, sum_names


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Error metrics under the names used everywhere.

    Attributes:
        loss: with the weights of the terms.
        sums: in the order of ``sum_names``.
        errors: of every quantity, ``<name>_rmse`` and ``<name>_mae`` in its unit, per atom
            and, besides, undivided where a quantity is divided by the number of atoms
            (``energy_rmse_per_atom``, ``energy_mae_per_atom``, ``energy_mae_cfg``); None
            where nothing was labelled.
    """

    loss: float
    errors: Mapping[str, float | None]
    n_configs: int
    n_atoms: int
    # that were divided, to be added to others
    sums: tuple[float, ...] = field(default=(), compare=False, repr=False)

    def __getitem__(self, name: str) -> float | None:
        """An error by its name: ``metrics["forces_rmse"]``."""
        return self.errors[name]

    def of(self, quantity: Quantity) -> dict[str, float | None]:
        """The errors of one quantity by ``rmse``, ``mae`` and, where it is divided
        by atoms, ``mae_cfg``.
        """
        return {short: self.errors[name] for short, name in error_names(quantity).items()}

    def as_plain(self) -> dict[str, float | int | None]:
        """All of it by name, as files have it."""
        return {
            "loss": self.loss,
            **self.errors,
            "n_configs": self.n_configs,
            "n_atoms": self.n_atoms,
        }


def error_names(quantity: Quantity) -> dict[str, str]:
    """Names of the metrics of a quantity by ``rmse``, ``mae`` and, where it is divided
    by atoms, ``mae_cfg``.
    """
    per_atom = "_per_atom" if quantity.over_atoms else ""
    names = {"rmse": f"{quantity.name}_rmse{per_atom}", "mae": f"{quantity.name}_mae{per_atom}"}
    return {**names, "mae_cfg": f"{quantity.name}_mae_cfg"} if quantity.over_atoms else names


def error_units(quantity: Quantity) -> dict[str, str]:
    """Units of the metrics of a quantity, by the words of ``error_names``."""
    units = {"rmse": quantity.error_unit, "mae": quantity.error_unit, "mae_cfg": quantity.unit}
    return {short: units[short] for short in error_names(quantity)}


def metrics(sums: Sequence[float], loss: Loss) -> Metrics:
    """Divide global sums by their counts, once.

    Args:
        sums: over all batches and ranks, in the order of ``sum_names``.
        loss: with which ``error_sums`` made them.

    Returns:
        Errors in the unit of each quantity; None where nothing was labelled.
    """
    rows = {name: int(sums[position(name, "rows")]) for name in QUANTITIES}
    errors: dict[str, float | None] = {}
    for name, quantity in QUANTITIES.items():
        entries = rows[name] * quantity.numbers
        names = error_names(quantity)
        errors[names["rmse"]] = _root(sums[position(name, "squared")], entries)
        errors[names["mae"]] = _mean(sums[position(name, "absolute")], entries)
        if quantity.over_atoms:
            errors[names["mae_cfg"]] = _mean(sums[position(name, "undivided")], entries)
    of_all = dict(zip(sum_names(), sums, strict=True))
    return Metrics(
        loss=float(loss.total(torch.tensor(list(sums), dtype=torch.float64), rows)),
        errors=errors,
        n_configs=int(of_all[STRUCTURES]),
        n_atoms=int(of_all[ATOMS]),
        sums=tuple(sums),
    )


def _mean(total: float, count: int) -> float | None:
    return total / count if count else None


def _root(total: float, count: int) -> float | None:
    return (total / count) ** 0.5 if count else None
