"""Energies of one set against a fit by composition, and how well that fit is known."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dataloader.atomic_energies import LOWEST
from dataloader.data_check.looking import Finding, Level, Set
from dataloader.structure import symbols

# What an energy may be too large by, and what people then have in their files.
ENERGY_FACTORS = {
    23.0605: "kcal/mol in place of eV",
    27.2114: "eV where Hartree is expected, or twice converted",
    96.485: "kJ/mol in place of eV",
    1 / 27.2114: "Hartree in place of eV",
    1 / 13.6057: "Rydberg in place of eV",
}
LEAST = 0.05  # eV/atom; what a fit by composition leaves is never an outlier below it
# quantiles between which another group's middle must lie to be of the same kind
ALIKE = (0.05, 0.95)


@dataclass(frozen=True)
class EnergyFit:
    """Energies per element that fit most structures."""

    values: NDArray[np.float64]  # (MAX_Z,), eV; 0 for elements that are not there
    errors: NDArray[np.float64]  # (MAX_Z,), eV; inf where the compositions do not tell
    spread: float  # eV per atom, of the middle of the structures
    per_atom: bool  # the energies of the set are per atom, the fit is of energy × atoms
    rank: int  # how many E0s the compositions determine
    # (MAX_Z, MAX_Z), of the values over spread², within what is determined
    covariance: NDArray[np.float64]
    row_space: NDArray[np.float64]  # (MAX_Z, MAX_Z), projection on the compositions that occurred

    def error_of(self, fractions: NDArray[np.float64]) -> NDArray[np.float64]:
        """Standard error (eV/atom) of what the fit says of compositions (n, MAX_Z); inf for
        those out of its reach.
        """
        outside = np.abs(fractions - fractions @ self.row_space).max(axis=1) > 1e-6
        variance = np.einsum("ij,jk,ik->i", fractions, self.covariance, fractions)
        return np.where(outside, np.inf, self.spread * np.sqrt(np.maximum(variance, 0.0)))


def fit_energies(data: Set) -> EnergyFit | None:
    """Least absolute deviations per atom, so that structures with a wrong label do not bend
    it; None with too few.
    """
    energy = data.looked["energy"]
    n = data.n_atoms
    rows = np.isfinite(energy)
    fractions = data.fractions[rows]
    rank, covariance, row_space = _reach(fractions)
    if rows.sum() < rank + 2:
        return None
    fits = []
    for target in (energy, energy * n):
        values, residual = robust(fractions, (target / n)[rows])
        fits.append((values, spread_of(residual, rank)))
    per_atom = np.ptp(n[rows]) > 0 and fits[1][1] < 0.2 * fits[0][1] * np.median(n[rows])
    per_atom = bool(
        per_atom and _explains(fits[1], data, energy * n) > _explains(fits[0], data, energy)
    )
    values, spread = fits[1 if per_atom else 0]
    known = np.abs(np.diag(row_space) - 1) < 1e-6
    errors = np.where(known, spread * np.sqrt(np.maximum(np.diag(covariance), 0.0)), np.inf)
    return EnergyFit(values, errors, spread, per_atom, rank, covariance, row_space)


def _reach(fractions: NDArray[np.float64]) -> tuple[int, NDArray[np.float64], NDArray[np.float64]]:
    """Rank of the compositions, covariance of a fit to them for unit errors,
    projection on what they span.
    """
    _, sizes, rows = np.linalg.svd(np.linalg.qr(fractions, mode="r"), full_matrices=False)
    kept = sizes > 1e-6 * sizes[0] if len(sizes) else np.zeros(0, dtype=bool)
    directions = rows[kept]
    covariance = (directions / sizes[kept, None] ** 2).T @ directions
    return int(kept.sum()), covariance, directions.T @ directions


def spread_of(residual: NDArray[np.float64], parameters: int) -> float:
    """The middle size of residuals, as a standard deviation; so many are zero by
    fitting and say nothing.
    """
    return 1.4826 * float(np.median(np.sort(np.abs(residual))[parameters:]))


def _explains(
    fit: tuple[NDArray[np.float64], float], data: Set, target: NDArray[np.float64]
) -> float:
    """How much smaller the spread around the fit is than that of the energies
    per atom, on a log scale.
    """
    rows = np.isfinite(target)
    per_atom = (target / data.n_atoms)[rows]
    residual = per_atom - (data.counts[rows] @ fit[0]) / data.n_atoms[rows]
    size = np.median(np.abs(per_atom - np.median(per_atom)))
    size = max(float(size), 1e-3 * float(np.abs(per_atom).max()))
    return float(np.log(size / max(float(np.median(np.abs(residual))), 1e-12)))


def robust(
    matrix: NDArray[np.float64], target: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Coefficients (columns of the matrix,) with the least sum of absolute
    residuals, and the residuals.
    """
    present = matrix.any(axis=0)
    columns = matrix[:, present]
    weights = np.ones(len(target))
    solution = np.zeros(present.sum())
    for _ in range(30):
        root = np.sqrt(weights)[:, None]
        solution = np.linalg.lstsq(columns * root, target * root[:, 0], rcond=None)[0]
        residual = np.abs(target - columns @ solution)
        weights = 1.0 / np.maximum(residual, max(1e-6, 1e-3 * float(np.median(residual))))
    values = np.zeros(matrix.shape[1])
    values[present] = solution
    return values, target - columns @ solution


def energies(data: Set, fit: EnergyFit | None, *, totals: bool) -> list[Finding]:
    """Energies of one set against its own fit: per atom, single ones in another unit,
    outliers, two references.

    Args:
        data: the structures of one head.
        fit: of their energies.
        totals: energies are known to be of whole structures, since they change as forces say.
    """
    impossible = too_low(data) or impossible_elements(data, fit)
    if fit is None:
        return impossible
    if fit.per_atom and not totals:
        text = (
            "energies are per atom: times the number of atoms they fit the compositions, as "
            "they are they do not"
        )
        factor = float(1 / np.median(data.n_atoms))
        return [Finding(level="error", check="energies", text=text, data=data.name, factor=factor)]
    text = f"spread around a fit of E0s {fit.spread:.4g} eV/atom"
    findings = [Finding(level="note", check="energies", text=text, data=data.name)]
    if fit.per_atom:
        return findings + impossible
    groups = _two_groups(data, fit)
    return findings + impossible + (groups or _outliers(data, fit))


def _outliers(data: Set, fit: EnergyFit) -> list[Finding]:
    """Single energies far from the fit: in another unit by their ratio, or merely far."""
    energy = data.looked["energy"]
    n = data.n_atoms
    predicted = data.counts @ fit.values
    residual = (energy - predicted) / n
    limit = max(12 * fit.spread, LEAST)
    outliers = np.isfinite(energy) & (np.abs(residual) > limit)
    findings, named = _in_another_unit(
        data, predicted, outliers & (np.abs(predicted) / n > 4 * fit.spread)
    )
    rest = outliers & ~named
    if not rest.any():
        return findings
    worst = np.argsort(-np.abs(np.where(rest, residual, 0.0)))[: rest.sum()]
    furthest = residual[worst[0]]
    text = (
        f"{rest.sum()} energies lie more than {limit:.3g} eV/atom from the fit, the "
        f"furthest {furthest:.4g}"
    )
    # atoms pressed together may have any energy above, but no structure binds so much
    # better than the others
    level: Level = "error" if rest.mean() > 0.01 and (residual[rest] < -10).any() else "warning"
    return [
        *findings,
        Finding(level=level, check="energies", text=text, data=data.name, keys=data.keys(worst)),
    ]


def _in_another_unit(
    data: Set, predicted: NDArray[np.float64], outliers: NDArray[np.bool_]
) -> tuple[list[Finding], NDArray[np.bool_]]:
    """Findings, and which of the outliers they name."""
    n = data.n_atoms
    findings = []
    named = np.zeros(len(data), dtype=bool)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = data.looked["energy"] / predicted
    for factor, meaning in {**ENERGY_FACTORS, 0.0: "per atom"}.items():
        expected = 1 / n if factor == 0.0 else np.full(len(data), factor)
        alike = (
            outliers & ~named & (np.abs(ratio / expected - 1) < 0.05) & (np.abs(expected - 1) > 0.2)
        )
        if alike.any():
            shown = float(np.median(ratio[alike]))
            text = (
                f"{alike.sum()} energies are {shown:.4g} times what the others lead to "
                f"expect: {meaning}?"
            )
            keys = data.keys(alike)
            findings.append(
                Finding(
                    level="error",
                    check="energies",
                    text=text,
                    data=data.name,
                    factor=factor or shown,
                    keys=keys,
                )
            )
            named |= alike
    return findings, named


def _two_groups(data: Set, fit: EnergyFit) -> list[Finding]:
    """Energies per atom in two groups with nothing between, of structures that are
    alike: two references.
    """
    rows = np.nonzero(np.isfinite(data.looked["energy"]))[0]
    if len(rows) < 2 * (fit.rank + 1):  # what a fit to half of them leaves may have any shape
        return []
    fractions = data.fractions[rows]
    target = (data.looked["energy"] / data.n_atoms)[rows]
    upper = _above_the_gap(target - fractions @ fit.values)
    if upper is None:
        return []
    for _ in range(3):  # the first fit runs between the groups
        values, residual = robust(np.hstack([fractions, upper[:, None]]), target)
        apart = float(values[-1])
        upper = residual + apart * upper > apart / 2
        if min(upper.sum(), (~upper).sum()) < max(2, 0.1 * len(rows)):
            return []
    spread = spread_of(residual, fit.rank + 1)
    rest = np.where(upper, residual + apart, residual)
    gap = float(np.quantile(rest[upper], ALIKE[0]) - np.quantile(rest[~upper], ALIKE[1]))
    if apart < max(0.3, 8 * spread) or gap < max(0.15, 4 * spread, 0.4 * apart):
        return []
    if not (alike(data, rows[upper], rows[~upper]) and alike(data, rows[~upper], rows[upper])):
        return []
    text = (
        f"energies form two groups {apart:.4g} eV/atom apart, {(~upper).sum()} and {upper.sum()} "
        "structures of the same kind: two units, references or functionals in one head? give "
        "each a head of its own"
    )
    keys = data.keys(rows[upper])
    return [
        Finding(level="error", check="energies", text=text, data=data.name, factor=apart, keys=keys)
    ]


def _above_the_gap(residual: NDArray[np.float64]) -> NDArray[np.bool_] | None:
    """Which residuals lie above the widest gap between a tenth from below
    and a tenth from above.
    """
    values = np.sort(residual)
    few = max(int(np.ceil(0.1 * len(values))), 2)
    steps = np.diff(values)[few - 1 : len(values) - few]
    if not len(steps):
        return None
    at = few - 1 + int(steps.argmax())
    return np.asarray(residual > (values[at] + values[at + 1]) / 2)


def kinds(data: Set) -> NDArray[np.float64]:
    """What tells kinds of structures apart, (n, 5): neighbours, force (log), closest
    contact, charge, spin.
    """
    looked = data.looked
    columns = [
        looked["n_edges"] / data.n_atoms,
        np.log10(looked["force_square"] + 1e-6),
        looked["closest"],
    ]
    return np.stack([*columns, looked["charge"], looked["spin"]], axis=1).astype(float)


def alike(data: Set, some: NDArray[np.int64], others: NDArray[np.int64]) -> bool:
    """Whether the middle of some structures lies within the range of others, in
    composition and in kind.
    """
    return within(kinds(data)[some], kinds(data)[others]) and within(
        data.fractions[some], data.fractions[others]
    )


def within(some: NDArray[np.float64], others: NDArray[np.float64]) -> bool:
    """Whether the medians of the columns of one table lie within the range of the
    other's, with some room.
    """
    with np.errstate(invalid="ignore"):
        low, high = np.quantile(others, ALIKE, axis=0)
        middle = np.median(some, axis=0)
        room = 0.1 * np.abs(np.median(others, axis=0)) + 1e-3
        outside = (middle < low - room) | (middle > high + room)
    return not outside.any()


def too_low(data: Set) -> list[Finding]:
    """Energies below those of all electrons of the atoms, whatever the compositions determine."""
    with np.errstate(invalid="ignore"):
        below = data.looked["energy"] < data.counts @ LOWEST
    if below.mean() <= 0.5:
        return []
    text = (
        f"{below.sum()} energies are lower than with all electrons of the atoms: another unit, "
        "kcal/mol (23.06) or kJ/mol (96.49)?"
    )
    return [
        Finding(
            level="error",
            check="energies",
            text=text,
            data=data.name,
            factor=23.0605,
            keys=data.keys(below),
        )
    ]


def impossible_elements(data: Set, fit: EnergyFit | None) -> list[Finding]:
    """An element whose fitted energy is lower than with all its electrons,
    beyond the error of the fit.
    """
    if fit is None:
        return []
    enough = data.counts.astype(bool).sum(axis=0) >= 5
    low = np.isfinite(fit.errors) & enough & (fit.values + 3 * np.minimum(fit.errors, 1e9) < LOWEST)
    if not low.any():
        return []
    first = int(low.argmax())
    text = (
        f"the energy of {symbols([first])} would be {fit.values[first]:.4g} eV, lower than with "
        "all its electrons: another unit, kcal/mol (23.06) or kJ/mol (96.49)?"
    )
    return [Finding(level="error", check="energies", text=text, data=data.name, factor=23.0605)]
