"""Does the spread of a committee say how large its errors are: by size and by order."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dataloader.batch import Batch
from dataloader.quantities import QUANTITIES, Quantity
from losses import Prediction
from model_utils.models.committee import STD
from model_utils.run.log_lines import milli
from model_utils.run.predictions import besides, with_references

Floats = NDArray[np.float64]
# rows of a quantity whose order is compared; of more, every second one, and so on
MOST_RANKED = 2**20
FEWEST_RANKED = 3


class Calibration:
    """Sees every batch of an evaluation with the means and standard deviations of a committee.

    Args:
        n_models: of the committee.
    """

    def __init__(self, n_models: int) -> None:
        self.n_models = n_models
        self.of_quantities: dict[str, Spreads] = {}

    def __call__(self, batch: Batch, prediction: Prediction) -> None:
        """Take the structures of one batch.

        Args:
            batch: with its labels, on any device.
            prediction: means by quantity, standard deviations under these
                names with ``_std`` behind.
        """
        means = with_references(batch, prediction)
        deviations = besides(prediction)
        labels = with_references(batch, {name: batch.labels[name].value for name in means})
        sizes = batch.sizes.cpu().numpy()
        for name, mean in means.items():
            quantity = QUANTITIES[name]
            mask = batch.labels[name].mask.cpu().numpy()
            divisor = sizes[mask, None] if quantity.over_atoms else 1.0
            rows = (len(mask), quantity.numbers)
            error = (mean - labels[name]).reshape(rows)[mask] / divisor
            spread = deviations[f"{name}{STD}"].reshape(rows)[mask] / divisor
            if len(error):
                self.of_quantities.setdefault(name, Spreads()).add(error, spread)

    def lines(self) -> list[str]:
        """One line for each labelled quantity, in thousandths of its unit."""
        return [
            f"committee of {self.n_models}: {name} {spreads.text(QUANTITIES[name])}"
            for name, spreads in self._in_order()
        ]

    def as_content(self, models: Sequence[Path]) -> dict[str, object]:
        """What --output_json says of the committee.

        By quantity ``rmse`` and ``rms_spread`` in its unit, per atom where it is judged so, their
        ratio, and the rank correlation of error and spread; beside them the paths of the models.
        """
        of_quantities = {name: spreads.as_plain() for name, spreads in self._in_order()}
        return {"models": [str(path) for path in models], **of_quantities}

    def _in_order(self) -> list[tuple[str, "Spreads"]]:
        """What was labelled, in the order of the table of quantities."""
        return [
            (name, self.of_quantities[name]) for name in QUANTITIES if name in self.of_quantities
        ]


class Spreads:
    """Errors of means and standard deviations of one quantity."""

    def __init__(self) -> None:
        self._squared_error = 0.0
        self._squared_spread = 0.0
        self._entries = 0
        self._seen = 0  # rows
        self._every = 1  # of so many rows one is kept
        self._kept = np.zeros((2, 0))  # lengths of errors and of spreads

    def add(self, error: Floats, spread: Floats) -> None:
        """Take labelled rows: errors and standard deviations, (n_rows, numbers)."""
        self._squared_error += float((error**2).sum())
        self._squared_spread += float((spread**2).sum())
        self._entries += error.size
        lengths = np.sqrt(np.stack([(error**2).sum(axis=1), (spread**2).sum(axis=1)]))
        numbers = np.arange(self._seen, self._seen + len(error))
        self._seen += len(error)
        self._kept = np.concatenate([self._kept, lengths[:, numbers % self._every == 0]], axis=1)
        while self._kept.shape[1] > MOST_RANKED:
            self._every *= 2
            self._kept = self._kept[:, ::2]

    @property
    def rmse(self) -> float:
        """Root mean square error of the mean over the models."""
        return (self._squared_error / self._entries) ** 0.5

    @property
    def rms_spread(self) -> float:
        """Root mean square of the standard deviation over the models."""
        return (self._squared_spread / self._entries) ** 0.5

    @property
    def ratio(self) -> float | None:
        """Error over spread: above 1 the models agree more than they are right.

        None where they do not differ.
        """
        return self.rmse / self.rms_spread if self.rms_spread > 0 else None

    @property
    def rank_correlation(self) -> float | None:
        """Spearman's ρ of the lengths of errors and spreads, of structures or of atoms; None
        where it has no value.
        """
        if self._kept.shape[1] < FEWEST_RANKED:
            return None
        ranks = np.stack([ranks_of(lengths) for lengths in self._kept])
        ranks -= ranks.mean(axis=1, keepdims=True)
        scale = float(np.sqrt((ranks**2).sum(axis=1).prod()))
        return float((ranks[0] * ranks[1]).sum()) / scale if scale > 0 else None

    def text(self, quantity: Quantity) -> str:
        """``rmse 3.10 rms spread 1.00 meV/atom, rmse/spread 3.10, rank correlation 0.71``."""
        ratio = "-" if self.ratio is None else f"{self.ratio:.2f}"
        correlation = "-" if self.rank_correlation is None else f"{self.rank_correlation:.2f}"
        return (
            f"rmse {milli(self.rmse)} rms spread {milli(self.rms_spread)} m{quantity.error_unit}, "
            f"rmse/spread {ratio}, rank correlation of error and spread {correlation}"
        )

    def as_plain(self) -> dict[str, float | int | None]:
        """The numbers by name, for a JSON file."""
        return {
            "rmse": self.rmse,
            "rms_spread": self.rms_spread,
            "rmse_over_spread": self.ratio,
            "rank_correlation": self.rank_correlation,
            "n_rows": self._seen,
        }


def ranks_of(values: Floats) -> Floats:
    """Ranks from 1, (n,); equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse], dtype=np.float64)
