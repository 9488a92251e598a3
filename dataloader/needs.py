"""What a network needs of the data: elements, heads, reference energies, cutoff,
inputs besides the species.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class FeatureSpec:
    """An input of the network besides species, as the data must hold it."""

    name: str
    per_atom: bool  # one row per atom; otherwise one number per structure
    width: int = 1  # numbers per row
    # smallest and largest value of a class; None: any real number
    classes: tuple[int, int] | None = None

    def fault(self, value: NDArray[np.float64], n_atoms: int) -> str | None:
        """What is wrong with a value, as a phrase; None where it fits."""
        shapes = (
            [(n_atoms, self.width)] + ([(n_atoms,)] if self.width == 1 else [])
            if self.per_atom
            else [(), (1,)]
        )
        if value.shape not in shapes:
            return f"{self.name} has shape {value.shape}, expected {shapes[0]}"
        if not np.isfinite(value).all():
            return f"{self.name} is not finite"
        if self.classes is not None:
            low, high = self.classes
            if (value != np.round(value)).any() or (value < low).any() or (value > high).any():
                return f"{self.name} must be a whole number from {low} to {high}"
        return None


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What the data path must know of the model: element order, heads, reference
    energies, cutoff, inputs.
    """

    atomic_numbers: tuple[int, ...]
    heads: tuple[str, ...]
    atomic_energies: tuple[tuple[float, ...], ...]  # [head][element], eV
    r_max: float  # Å
    features: tuple[FeatureSpec, ...] = ()  # inputs of the embeddings

    def species_of(self, atomic_numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Position of every atomic number in the model's order; all of them must be in it."""
        table = np.full(max(self.atomic_numbers) + 1, -1, dtype=np.int64)
        table[list(self.atomic_numbers)] = np.arange(len(self.atomic_numbers))
        return table[atomic_numbers]
