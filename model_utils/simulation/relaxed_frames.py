"""What a frame of relaxed atoms says of itself, besides atoms and cell: names that no reader takes
for labels.
"""

import hashlib

from model_utils.simulation.calculator import Calculator

ENERGY = "mace_energy"  # of the cell, eV
ENERGY_OF = "mace_energy_of"  # mark of the models that computed it
CONVERGED = "converged"
HOLE_MARK = "energy_hole"  # there where the energy is suspected to be a hole of the model


def mark_of(calculator: Calculator) -> str:
    """What tells energies of one calculator from those of another: a short hash of its models, in
    any order, and their heads.
    """
    models = sorted(f"{potential.digest()} {potential.head}" for potential in calculator.potentials)
    return f"sha256:{hashlib.sha256(' '.join(models).encode()).hexdigest()[:16]}"
