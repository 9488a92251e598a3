"""Energies against forces: what energies change by between near structures, and
the work of the forces.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dataloader.data_check.energies import EnergyFit, impossible_elements, too_low
from dataloader.data_check.looking import Finding, Set
from dataloader.structure import Structure

FACTORS = {  # slope of energy differences against the work of the forces
    23.0605: ("energies", 23.0605, "energies are in kcal/mol in place of eV"),
    96.485: ("energies", 96.485, "energies are in kJ/mol in place of eV"),
    1 / 27.2114: ("energies", 1 / 27.2114, "energies are in Hartree in place of eV"),
    51.4221: ("forces", 1 / 51.4221, "forces are in Hartree/Bohr in place of eV/Å"),
    25.7110: ("forces", 1 / 25.7110, "forces are in Rydberg/Bohr in place of eV/Å"),
    1 / 23.0605: ("forces", 23.0605, "forces are in kcal/mol/Å in place of eV/Å"),
}
ENOUGH = 8  # pairs


class Pair(NamedTuple):
    """Two structures of the same atoms."""

    distance: float  # Å, length of the displacement of all atoms
    work: float  # eV, of the forces along it
    difference: float  # eV
    n_atoms: float
    most: float  # eV, the most that such forces can do along it


class Comparison(NamedTuple):
    """Energies against work over all near pairs."""

    correlation: float
    slope: float
    ratio: float
    n_atoms: float
    jumps: NDArray[np.bool_]  # pairs whose energies differ by what no force explains


def compare(data: Set) -> Comparison | None:
    """Energy differences of near structures against the work of the forces between them;
    None with too few pairs.

    The trapezoidal rule −½(F₁ + F₂)·Δx is exact for a harmonic energy; near pairs count most.
    """
    pairs = _near_pairs(data.sampled)
    if len(pairs) < ENOUGH:
        return None
    distance, work, difference, sizes, most = np.array(pairs).T
    weight = np.maximum(distance, 0.02) ** -6
    both = (weight * work * difference).sum()
    own = (weight * work * work).sum()
    energy = (weight * difference**2).sum()
    if own == 0 or energy == 0:
        return None
    return Comparison(
        correlation=float(both / np.sqrt(own * energy)),
        slope=float(both / own),
        ratio=float(np.sqrt(energy / own)),
        n_atoms=float(np.median(sizes)),
        jumps=(np.abs(difference - work) > 0.1 * sizes) & (np.abs(difference) > 5 * most),
    )


def says_totals(compared: Comparison | None) -> bool:
    """Whether energies change as forces say, so that they are of whole structures."""
    return compared is not None and compared.correlation > 0.6 and 0.3 < compared.ratio < 3


def energies_and_forces(
    data: Set, fit: EnergyFit | None, compared: Comparison | None
) -> list[Finding]:
    """The ratio of the units of energies and forces, the sign of the forces,
    and jumps of the energy.
    """
    if compared is None:
        return _not_compared(data)
    if abs(compared.correlation) < 0.6:
        return _jumps(data, compared)
    slope = compared.slope
    ratio = compared.ratio
    n = compared.n_atoms
    if slope < 0:
        text = (
            f"energies rise along the forces (ratio {slope:.3g}): are the forces gradients? "
            "their sign is flipped"
        )
        return [Finding(level="error", check="forces", text=text, data=data.name, factor=-1.0)]
    if n > 2 and 0.6 < ratio * n < 1.6:
        text = (
            f"energies change {ratio:.3g} times as much as the forces say, 1/{n:g}: "
            "are they per atom?"
        )
        return [Finding(level="error", check="energies", text=text, data=data.name, factor=1 / n)]
    if 0.3 < ratio < 3:
        text = (
            f"energies change as the forces say (ratio {slope:.2f} over "
            f"{len(compared.jumps)} near pairs)"
        )
        return [Finding(level="note", check="forces", text=text, data=data.name)]
    # the other way the forces are
    wrong = "energies" if too_low(data) or impossible_elements(data, fit) else None
    if wrong is None and ratio > 1 and np.nanmean(data.looked["force_square"]) < 0.2**2:
        wrong = "forces"
    candidates = [item for item in FACTORS.items() if wrong in (None, item[1][0])]
    what, factor, text = min(candidates, key=lambda item: abs(np.log(ratio / item[0])))[1]
    text = (
        f"energies change {ratio:.3g} times as much as the forces say: {text}? factor {factor:.5g}"
    )
    return [Finding(level="error", check=what, text=text, data=data.name, factor=factor)]


def _not_compared(data: Set) -> list[Finding]:
    """What cannot be said of forces without structures that are near to one another."""
    if not any(s.energy is not None and s.forces is not None for s in data.sampled):
        return []
    text = (
        f"sign and unit are not checked against the energies: that needs {ENOUGH} pairs of near "
        "structures of the same atoms, as of a trajectory"
    )
    return [Finding(level="note", check="forces", text=text, data=data.name)]


def _jumps(data: Set, compared: Comparison) -> list[Finding]:
    """Pairs between which the energy jumps, where they are many: structures of two
    references among one another.
    """
    n = int(compared.jumps.sum())
    if n < max(3, 0.1 * len(compared.jumps)):
        return []
    text = (
        f"between {n} of {len(compared.jumps)} pairs of near structures the energy jumps by more "
        "than any force explains: two units, references or functionals in one head?"
    )
    return [Finding(level="error", check="energies", text=text, data=data.name)]


def _near_pairs(structures: Sequence[Structure], reach: int = 60) -> list[Pair]:
    """Every structure with the nearest of those that follow it."""
    groups: dict[bytes, list[Structure]] = {}
    for s in structures:
        if s.energy is not None and s.forces is not None and s.n_atoms > 1:
            state = f"{s.charge or 0.0} {s.spin or 0.0}".encode()
            groups.setdefault(s.atomic_numbers.tobytes() + bytes(s.pbc) + state, []).append(s)
    pairs = []
    for group in groups.values():
        for i, first in enumerate(group):
            later = [
                pair
                for other in group[i + 1 : i + reach]
                if (pair := _pair(first, other)) is not None
            ]
            if later:
                pairs.append(min(later))
    return pairs


def _pair(a: Structure, b: Structure) -> Pair | None:
    assert a.energy is not None
    assert b.energy is not None
    assert a.forces is not None
    assert b.forces is not None
    shown = _displacement(a, b)
    if shown is None:
        return None
    displacement, rotation = shown
    length = float(np.sqrt(np.square(displacement).sum()))
    if length < 1e-4:
        return None
    work = -0.5 * float(((a.forces @ rotation + b.forces) * displacement).sum())
    most = 0.5 * float(np.linalg.norm(a.forces) + np.linalg.norm(b.forces)) * length
    return Pair(length, work, b.energy - a.energy, float(a.n_atoms), most)


def _displacement(
    a: Structure, b: Structure
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """What brings the atoms of the first to the second, after a rotation, which is given
    too; None for two cells.
    """
    if any(a.pbc):
        if np.abs(a.cell - b.cell).max() > 1e-6:
            return None
        vectors = a.cell[np.array(a.pbc)]
        displacement = b.positions - a.positions
        return displacement - np.rint(displacement @ np.linalg.pinv(vectors)) @ vectors, np.eye(3)
    first = a.positions - a.positions.mean(axis=0)
    second = b.positions - b.positions.mean(axis=0)
    u, _, vt = np.linalg.svd(first.T @ second)
    rotation = (u * [1.0, 1.0, np.sign(np.linalg.det(u @ vt))]) @ vt
    return second - first @ rotation, rotation
