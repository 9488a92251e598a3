"""Does a data set mean what it should? Energies against a fit and against forces, scales, stress, distances, repeats.

Nothing here opens a file: ``look`` takes one structure to a few numbers, the rest is arithmetic on arrays of them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from ase.data import covalent_radii
from numpy.typing import NDArray

from dataloader.neighbors import MAX_NEIGHBORS, GraphFault, build_graph
from dataloader.packed.duplicates import fingerprint
from dataloader.structure import Structure, symbols

Level = Literal["error", "warning", "note"]
MAX_Z = 119
SHOWN = 5

# What a label may be short of or too large by, and what people then have in their files.
ENERGY_FACTORS = {
    23.0605: "kcal/mol in place of eV",
    27.2114: "eV where Hartree is expected, or twice converted",
    96.485: "kJ/mol in place of eV",
    1 / 27.2114: "Hartree in place of eV",
    1 / 13.6057: "Rydberg in place of eV",
}
FORCE_FACTORS = {  # slope of energy differences against the work of the forces
    23.0605: ("energies", 23.0605, "energies are in kcal/mol in place of eV"),
    96.485: ("energies", 96.485, "energies are in kJ/mol in place of eV"),
    1 / 27.2114: ("energies", 1 / 27.2114, "energies are in Hartree in place of eV"),
    51.4221: ("forces", 1 / 51.4221, "forces are in Hartree/Bohr in place of eV/Å"),
    25.7110: ("forces", 1 / 25.7110, "forces are in Rydberg/Bohr in place of eV/Å"),
    1 / 23.0605: ("forces", 23.0605, "forces are in kcal/mol/Å in place of eV/Å"),
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the table."""

    level: Level
    check: str
    text: str
    data: str = ""  # which set
    factor: float | None = None
    keys: tuple[str, ...] = ()  # of the first structures that show it


class Looked(NamedTuple):
    """The numbers of one structure."""

    fingerprint: int
    energy: float  # NaN where there is none
    force_square: float  # mean over components; NaN
    max_force: float
    zero_forces: bool  # every component of several atoms
    trace: float  # of the stress, over 3, eV/Å³; NaN
    max_stress: float
    volume: float  # per atom, Å³; NaN
    closest: float  # smallest distance over the sum of covalent radii; inf
    lonely: int  # atoms without a neighbour within the cutoff
    n_edges: int
    fault: str


@dataclass(frozen=True, kw_only=True)
class Set:
    """The structures of one role that were looked at."""

    name: str
    total: int  # structures there are
    names: Callable[[int], str]
    looked: Mapping[str, NDArray[Any]]  # the columns of Looked
    counts: NDArray[np.uint16]  # (n, MAX_Z), atoms of each element
    sampled: Sequence[Structure] = field(default_factory=tuple)  # a few, for what needs positions

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def n_atoms(self) -> NDArray[np.float64]:
        """Atoms of each structure."""
        return self.counts.sum(axis=1, dtype=np.float64)

    def keys(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> tuple[str, ...]:
        """Names of the first of these structures."""
        numbers = np.nonzero(rows)[0] if rows.dtype == bool else rows
        return tuple(self.names(int(row)) for row in numbers[:SHOWN])


def look(structure: Structure, r_max: float, max_neighbors: int = MAX_NEIGHBORS) -> Looked:
    """The numbers of one structure."""
    s, nan = structure, float("nan")
    closest, lonely, n_edges, fault = float("inf"), 0, 0, ""
    try:
        graph = build_graph(s, r_max, max_neighbors)
        n_edges = graph.n_edges
        lonely = s.n_atoms - len(np.unique(graph.receivers)) if s.n_atoms > 1 else 0
        if n_edges:
            vectors = graph.positions[graph.receivers] - graph.positions[graph.senders] + graph.shifts @ s.cell
            radii = covalent_radii[s.atomic_numbers]
            closest = float((np.linalg.norm(vectors, axis=1) / (radii[graph.senders] + radii[graph.receivers])).min())
    except GraphFault as error:
        fault = str(error)
    forces, stress = s.forces, s.stress
    return Looked(
        fingerprint=fingerprint(s),
        energy=nan if s.energy is None else s.energy,
        force_square=nan if forces is None else float(np.square(forces).mean()),
        max_force=nan if forces is None else float(np.sqrt(np.square(forces).sum(axis=1).max())),
        zero_forces=forces is not None and s.n_atoms > 1 and not forces.any(),
        trace=nan if stress is None else float(np.trace(stress)) / 3,
        max_stress=nan if stress is None else float(np.abs(stress).max()),
        volume=abs(float(np.linalg.det(s.cell))) / s.n_atoms if s.periodic else nan,
        closest=closest,
        lonely=lonely,
        n_edges=n_edges,
        fault=fault,
    )


def counts_of(structure: Structure) -> NDArray[np.uint16]:
    """Atoms of each element, (MAX_Z,)."""
    return np.bincount(structure.atomic_numbers, minlength=MAX_Z).astype(np.uint16)


# ---- one set


def labels(data: Set) -> list[Finding]:
    """Missing and zero labels."""
    energy, forces = data.looked["energy"], data.looked["force_square"]
    found = []
    for what, missing in (("energy", np.isnan(energy)), ("forces", np.isnan(forces))):
        if missing.any():
            level: Level = "error"
            text = f"{what} missing in {missing.sum()} of {len(data)} structures"
            found.append(Finding(level=level, check="labels", text=text, data=data.name, keys=data.keys(missing)))
    for what, zero in (("energy is exactly 0", energy == 0), ("all forces are exactly 0", data.looked["zero_forces"])):
        if zero.any():
            level = "error" if zero.mean() > 0.5 else "warning"
            text = f"{what} in {zero.sum()} of {len(data)} structures: is it a label or a placeholder?"
            found.append(Finding(level=level, check="labels", text=text, data=data.name, keys=data.keys(zero)))
    return found


def geometry(data: Set) -> list[Finding]:
    """Distances, cells, lonely atoms."""
    looked, found = data.looked, []
    broken = looked["fault"] != ""
    if broken.any():
        first = str(looked["fault"][np.argmax(broken)])
        text = f"{broken.sum()} structures whose neighbour list shows that they are broken, the first: {first}"
        found.append(Finding(level="error", check="distances", text=text, data=data.name, keys=data.keys(broken)))
    close = looked["closest"] < 0.5
    if close.any():
        text = f"{close.sum()} structures with two atoms closer than half the sum of their covalent radii"
        found.append(Finding(level="warning", check="distances", text=text, data=data.name, keys=data.keys(close)))
    lonely = looked["lonely"] > 0
    if lonely.any():
        text = f"{lonely.sum()} structures with atoms that have no neighbour within the cutoff"
        found.append(Finding(level="warning", check="distances", text=text, data=data.name, keys=data.keys(lonely)))
    volumes = looked["volume"]
    if np.isfinite(volumes).any():
        low, high = np.nanmin(volumes), np.nanmax(volumes)
        text = f"volume per atom from {low:.3g} to {high:.3g} Å³"
        found.append(Finding(level="note", check="cells", text=text, data=data.name))
    return found


def scales(data: Set) -> list[Finding]:
    """Forces and stress by their size."""
    found = []
    squares = data.looked["force_square"]
    if np.isfinite(squares).any():
        rms = float(np.sqrt(np.nanmean(squares)))
        text = f"rms of the force components {rms:.4g} eV/Å, largest force {np.nanmax(data.looked['max_force']):.4g}"
        level: Level = "note"
        if 0 < rms < 0.02:
            level, text = "warning", f"{text}: small; Hartree/Bohr would make it {51.4221 * rms:.3g} eV/Å"
        elif rms > 15:
            level, text = "warning", f"{text}: large; from kcal/mol/Å it would be {rms / 23.0605:.3g} eV/Å"
        found.append(Finding(level=level, check="forces", text=text, data=data.name))
    traces, largest = data.looked["trace"], data.looked["max_stress"]
    if np.isfinite(traces).any():
        rms = float(np.sqrt(np.nanmean(np.square(traces))))
        text = f"rms of the mean normal stress {rms:.4g} eV/Å³ ({160.2177 * rms:.4g} GPa)"
        level = "note"
        if np.nanmedian(largest) > 2.0:
            unit, factor = ("kbar", 1602.177) if rms > 16 else ("GPa", 160.2177)
            level, text = "error", f"{text}: too large; is it in {unit}? divide by {factor:g}"
            found.append(Finding(level=level, check="stress", text=text, data=data.name, factor=factor))
        else:
            found.append(Finding(level=level, check="stress", text=text, data=data.name))
    return found


def stress_sign(data: Set) -> list[Finding]:
    """Compressed structures must be under pressure: of the most stressed tenth, the sign against the volume.

    The volume is compared with that which the elements of the structure have in the other structures.
    """
    traces, volumes = data.looked["trace"], data.looked["volume"]
    rows = np.nonzero(np.isfinite(traces) & np.isfinite(volumes))[0]
    if len(rows) < 100:
        return []
    fractions = data.counts[rows] / data.n_atoms[rows, None]
    present = fractions.any(axis=0)
    target = np.log(volumes[rows])
    residual = target - fractions[:, present] @ np.linalg.lstsq(fractions[:, present], target, rcond=None)[0]
    size = np.abs(traces[rows])
    most = size >= np.quantile(size, 0.9)
    rho, n = _rank_correlation(residual[most], traces[rows][most]), int(most.sum())
    if rho * np.sqrt(n - 1) < -3:
        text = (
            f"the sign of the stress is flipped: of the {n} most stressed structures the compressed ones are under "
            f"tension (rank correlation {rho:.2f}, expected positive); ASE's sign is positive under tension"
        )
        return [Finding(level="error", check="stress", text=text, data=data.name, factor=-1.0)]
    return [Finding(level="note", check="stress", text=f"sign agrees with the volumes ({rho:+.2f})", data=data.name)]


def _rank_correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    ranks = [np.argsort(np.argsort(x)).astype(float) for x in (a, b)]
    return float(np.corrcoef(np.stack(ranks))[0, 1]) if np.ptp(a) > 0 and np.ptp(b) > 0 else 0.0


# ---- energies against a fit


@dataclass(frozen=True)
class EnergyFit:
    """Energies per element that fit most structures."""

    values: NDArray[np.float64]  # (MAX_Z,), eV; 0 for elements that are not there
    spread: float  # eV per atom, of the middle of the structures
    per_atom: bool  # the energies of the set are per atom, the fit is of energy × atoms


def fit_energies(data: Set) -> EnergyFit | None:
    """Least absolute deviations per atom, so that structures with a wrong label do not bend it."""
    energy, n = data.looked["energy"], data.n_atoms
    rows = np.isfinite(energy)
    if rows.sum() < 3:
        return None
    fits = []
    for target in (energy, energy * n):
        values, residual = _robust(data.counts[rows] / n[rows, None], (target / n)[rows])
        fits.append((values, 1.4826 * float(np.median(np.abs(residual)))))
    sizes_differ = np.ptp(n[rows]) > 0
    per_atom = sizes_differ and fits[1][1] < 0.2 * fits[0][1] * np.median(n[rows])
    per_atom = bool(per_atom and _explains(fits[1], data, energy * n) > _explains(fits[0], data, energy))
    values, spread = fits[1 if per_atom else 0]
    return EnergyFit(values, spread, per_atom)


def _explains(fit: tuple[NDArray[np.float64], float], data: Set, target: NDArray[np.float64]) -> float:
    """How much smaller the spread around the fit is than that of the energies per atom, on a log scale."""
    rows = np.isfinite(target)
    per_atom = (target / data.n_atoms)[rows]
    residual = per_atom - (data.counts[rows] @ fit[0]) / data.n_atoms[rows]
    size = np.median(np.abs(per_atom - np.median(per_atom)))
    size = max(float(size), 1e-3 * float(np.abs(per_atom).max()))
    return float(np.log(size / max(float(np.median(np.abs(residual))), 1e-12)))


def _robust(
    matrix: NDArray[np.float64], target: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    present = matrix.any(axis=0)
    columns, weights = matrix[:, present], np.ones(len(target))
    solution = np.zeros(present.sum())
    for _ in range(30):
        root = np.sqrt(weights)[:, None]
        solution = np.linalg.lstsq(columns * root, target * root[:, 0], rcond=None)[0]
        residual = np.abs(target - columns @ solution)
        weights = 1.0 / np.maximum(residual, max(1e-6, 1e-3 * float(np.median(residual))))
    values = np.zeros(matrix.shape[1])
    values[present] = solution
    return values, target - columns @ solution


def energies(data: Set, fit: EnergyFit | None) -> list[Finding]:
    """Energies of one set against its own fit: per atom, single ones in another unit, outliers, impossible elements."""
    if fit is None:
        return []
    energy, n = data.looked["energy"], data.n_atoms
    found = []
    if fit.per_atom:
        text = "energies are per atom: times the number of atoms they fit the compositions, as they are they do not"
        found.append(
            Finding(level="error", check="energies", text=text, data=data.name, factor=float(1 / np.median(n)))
        )
        return found
    text = f"spread around a fit of E0s {fit.spread:.4g} eV/atom"
    found.append(Finding(level="note", check="energies", text=text, data=data.name))
    predicted = data.counts @ fit.values
    residual = (energy - predicted) / n
    limit = max(12 * fit.spread, 0.05)
    outliers = np.isfinite(energy) & (np.abs(residual) > limit)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = energy / predicted
    named = np.zeros(len(data), dtype=bool)
    for factor, meaning in {**ENERGY_FACTORS, 0.0: "per atom"}.items():
        expected = 1 / n if factor == 0.0 else np.full(len(data), factor)
        alike = outliers & ~named & (np.abs(ratio / expected - 1) < 0.05) & (np.abs(expected - 1) > 0.2)
        if alike.any():
            shown = float(np.median(ratio[alike]))
            text = f"{alike.sum()} energies are {shown:.4g} times what the others lead to expect: {meaning}?"
            found.append(
                Finding(
                    level="error",
                    check="energies",
                    text=text,
                    data=data.name,
                    factor=factor or shown,
                    keys=data.keys(alike),
                )
            )
            named |= alike
    rest = outliers & ~named
    if rest.any():
        worst = np.argsort(-np.abs(np.where(rest, residual, 0.0)))[: rest.sum()]
        furthest = residual[worst[0]]
        text = f"{rest.sum()} energies lie more than {limit:.3g} eV/atom from the fit, the furthest {furthest:.4g}"
        level: Level = "error" if rest.mean() > 0.01 and np.abs(furthest) > 10 else "warning"
        found.append(Finding(level=level, check="energies", text=text, data=data.name, keys=data.keys(worst)))
    return found + _impossible(data, fit)


def _impossible(data: Set, fit: EnergyFit) -> list[Finding]:
    """No atom is bound more strongly than all its electrons: −20.9 Z^(7/3) eV (Thomas and Fermi) with some room."""
    enough = data.counts.astype(bool).sum(axis=0) >= 5
    z = np.arange(MAX_Z)
    too_low = enough & (z > 0) & (fit.values < -20.9 * np.maximum(z, 1) ** (7 / 3) * 1.3 - 3)
    rank = np.linalg.matrix_rank((data.counts / data.n_atoms[:, None])[:, enough]) if enough.any() else 0
    if not too_low.any() or rank < enough.sum():
        return []
    worst = int(np.nonzero(too_low)[0][0])
    text = (
        f"the energy of {symbols([worst])} would be {fit.values[worst]:.4g} eV, lower than with all its electrons: "
        "another unit, kcal/mol (23.06) or kJ/mol (96.49)?"
    )
    return [Finding(level="error", check="energies", text=text, data=data.name, factor=23.0605)]


def against_references(data: Set, fit: EnergyFit | None, references: Mapping[int, float], whose: str) -> list[Finding]:
    """Given E0s (isolated atoms, a model.json) against the energies.

    E0s that leave no more than a fit does are right. Where a shift of one of them alone explains what they leave, it is
    that one; E0s of isolated atoms leave the binding energy, which no single shift explains, and only what no binding
    energy can be is wrong.
    """
    energy, n = data.looked["energy"], data.n_atoms
    rows = np.isfinite(energy)
    known = np.isin(np.arange(MAX_Z), list(references))
    if fit is None or fit.per_atom or not rows.any() or (data.counts.any(axis=0) & ~known).any():
        return []
    given = np.zeros(MAX_Z)
    given[list(references)] = list(references.values())
    matrix, residual = data.counts[rows] / n[rows, None], ((energy - data.counts @ given) / n)[rows]
    limit = max(2 * fit.spread, 1e-3)
    if 1.4826 * np.median(np.abs(residual)) < limit:
        return []
    shifts: dict[int, float] = {}
    for z in np.nonzero(data.counts.any(axis=0))[0]:
        shift, left = _robust(matrix[:, [z]], residual)
        if 1.4826 * np.median(np.abs(left)) < limit and abs(shift[0]) > 0.05:
            shifts[int(z)] = float(shift[0])
    if len(shifts) > 1:  # the one that explains most
        shifts = dict(
            [min(shifts.items(), key=lambda item: np.median(np.abs(residual - matrix[:, item[0]] * item[1])))]
        )
    if not shifts:
        shifts = {z: float(fit.values[z] - references[z]) for z in references if data.counts[:, z].any()}
        shifts = {z: shift for z, shift in shifts.items() if not -15.0 <= shift <= 3.0}
    return [
        Finding(
            level="error",
            check="E0s",
            text=f"E0 of {symbols([z])} in {whose} is {references[z]:.6g} eV, the energies lead to "
            f"{references[z] + shift:.6g}: shifted by {-shift:+.4g} eV",
            data=data.name,
            factor=-shift,
        )
        for z, shift in shifts.items()
    ]


def against_other_set(data: Set, train: Set, fit: EnergyFit | None) -> list[Finding]:
    """Energies of validation or test against the fit of the training set: another unit, another reference."""
    energy, n = data.looked["energy"], data.n_atoms
    rows = np.isfinite(energy)
    known = train.counts.any(axis=0)
    if fit is None or fit.per_atom or rows.sum() < 5 or (data.counts.any(axis=0) & ~known).any():
        return []
    predicted = data.counts @ fit.values
    residual = ((energy - predicted) / n)[rows]
    limit = max(12 * fit.spread, 0.05)
    if np.abs(np.median(residual)) < limit and np.median(np.abs(residual)) < limit:
        return []
    ratio = float(np.median(energy[rows] / predicted[rows]))
    for factor, meaning in ENERGY_FACTORS.items():
        if abs(ratio / factor - 1) < 0.05:
            text = f"energies are {ratio:.4g} times what those of {train.name} lead to expect: {meaning}?"
            return [Finding(level="error", check="energies", text=text, data=data.name, factor=factor)]
    per_atom = float(np.median((energy * n / predicted)[rows]))
    if abs(per_atom - 1) < 0.05 and np.median(n) > 1.5:
        text = f"energies are per atom, those of {train.name} are not"
        return [Finding(level="error", check="energies", text=text, data=data.name, factor=float(1 / np.median(n)))]
    matrix = data.counts[rows] / n[rows, None]
    shift = np.zeros(MAX_Z)
    left = np.full(MAX_Z, np.inf)
    for z in np.nonzero(data.counts.any(axis=0))[0]:
        (shift[z],), rest = _robust(matrix[:, [z]], residual)
        left[z] = np.median(np.abs(rest))
    largest = int(left.argmin())  # the one element whose shift explains most
    text = (
        f"energies do not continue those of {train.name}: an E0 is shifted, most that of {symbols([largest])} by "
        f"{shift[largest]:+.4g} eV; another reference or functional?"
    )
    return [Finding(level="error", check="E0s", text=text, data=data.name, factor=float(shift[largest]))]


# ---- energies against forces


def energies_and_forces(data: Set, fit: EnergyFit | None) -> list[Finding]:
    """Energy differences of near structures against the work of the forces between them: the ratio of the units.

    The trapezoidal rule −½(F₁ + F₂)·Δx is exact for a harmonic energy; near pairs count most.
    """
    pairs = _near_pairs(data.sampled)
    if len(pairs) < 8:
        return []
    distance, work, difference, sizes = np.array(pairs).T
    weight = np.maximum(distance, 0.02) ** -6
    slope = float((weight * work * difference).sum() / (weight * work * work).sum())
    correlation = float(
        (weight * work * difference).sum() / np.sqrt((weight * work**2).sum() * (weight * difference**2).sum())
    )
    if abs(correlation) < 0.6:
        return []
    if slope < 0:
        text = f"energies rise along the forces (ratio {slope:.3g}): are the forces gradients? their sign is flipped"
        return [Finding(level="error", check="forces", text=text, data=data.name, factor=-1.0)]
    ratio = float(np.sqrt((weight * difference**2).sum() / (weight * work**2).sum()))
    n = float(np.median(sizes))
    if n > 2 and 0.6 < ratio * n < 1.6:
        text = f"energies change {ratio:.3g} times as much as the forces say, 1/{n:g}: are they per atom?"
        return [Finding(level="error", check="energies", text=text, data=data.name, factor=1 / n)]
    if 0.3 < ratio < 3:
        text = f"energies change as the forces say (ratio {slope:.2f} over {len(pairs)} near pairs)"
        return [Finding(level="note", check="forces", text=text, data=data.name)]
    wrong = "energies" if fit is not None and _impossible(data, fit) else None  # the other way the forces are
    if wrong is None and ratio > 1 and np.nanmean(data.looked["force_square"]) < 0.2**2:
        wrong = "forces"
    candidates = [item for item in FORCE_FACTORS.items() if wrong in (None, item[1][0])]
    what, factor, text = min(candidates, key=lambda item: abs(np.log(ratio / item[0])))[1]
    text = f"energies change {ratio:.3g} times as much as the forces say: {text}? factor {factor:.5g}"
    return [Finding(level="error", check=what, text=text, data=data.name, factor=factor)]


def _near_pairs(structures: Sequence[Structure], within: int = 60) -> list[tuple[float, float, float, float]]:
    """(length of the displacement, work of the forces, energy difference, atoms) of the nearest later structure."""
    groups: dict[bytes, list[Structure]] = {}
    for s in structures:
        if s.energy is not None and s.forces is not None and s.n_atoms > 1:
            groups.setdefault(s.atomic_numbers.tobytes() + bytes(s.pbc), []).append(s)
    pairs = []
    for group in groups.values():
        for i, first in enumerate(group):
            found = [pair for other in group[i + 1 : i + within] if (pair := _pair(first, other)) is not None]
            if found:
                pairs.append(min(found))
    return pairs


def _pair(a: Structure, b: Structure) -> tuple[float, float, float, float] | None:
    assert a.energy is not None
    assert b.energy is not None
    assert a.forces is not None
    assert b.forces is not None
    rotation = np.eye(3)
    if any(a.pbc):
        if np.abs(a.cell - b.cell).max() > 1e-6:
            return None
        vectors = a.cell[np.array(a.pbc)]
        moved = b.positions - a.positions
        moved = moved - np.rint(moved @ np.linalg.pinv(vectors)) @ vectors
    else:
        one, other = a.positions - a.positions.mean(axis=0), b.positions - b.positions.mean(axis=0)
        u, _, vt = np.linalg.svd(one.T @ other)
        rotation = (u * [1.0, 1.0, np.sign(np.linalg.det(u @ vt))]) @ vt
        moved = other - one @ rotation
    length = float(np.sqrt(np.square(moved).sum()))
    if length < 1e-4:
        return None
    work = -0.5 * float(((a.forces @ rotation + b.forces) * moved).sum())
    return length, work, b.energy - a.energy, float(a.n_atoms)


# ---- elements, repeats, memory


def elements(sets: Sequence[Set], known: Sequence[int] | None) -> list[Finding]:
    """Elements of the data, and those that a model lacks."""
    found = []
    for data in sets:
        per_element = data.counts.astype(bool).sum(axis=0)
        present = np.nonzero(per_element)[0]
        text = f"{len(present)} elements: {symbols(present)}"
        found.append(Finding(level="note", check="elements", text=text, data=data.name))
        lacking = [int(z) for z in present if known is not None and z not in known]
        if lacking:
            rows = np.asarray(data.counts[:, lacking].any(axis=1))
            text = f"{symbols(lacking)} in {rows.sum()} structures, which the model.json lacks"
            found.append(Finding(level="error", check="elements", text=text, data=data.name, keys=data.keys(rows)))
        rare = [int(z) for z in present if per_element[z] < 10]
        if rare and len(data) >= 100:
            text = f"fewer than 10 structures have {symbols(rare)}"
            found.append(Finding(level="warning", check="elements", text=text, data=data.name))
    if len(sets) > 1:
        trained = sets[0].counts.any(axis=0)
        for data in sets[1:]:
            unseen = [int(z) for z in np.nonzero(data.counts.any(axis=0) & ~trained)[0]]
            if unseen:
                rows = np.asarray(data.counts[:, unseen].any(axis=1))
                text = f"{symbols(unseen)} in {rows.sum()} structures, which {sets[0].name} lacks"
                found.append(Finding(level="error", check="elements", text=text, data=data.name, keys=data.keys(rows)))
    return found


def repeats(sets: Sequence[Set]) -> list[Finding]:
    """Structures that stand twice, in one set or in two, and whether their energies agree."""
    found = []
    for number, data in enumerate(sets):
        prints = data.looked["fingerprint"]
        _, first, counts = np.unique(prints, return_index=True, return_counts=True)
        twice = np.isin(np.arange(len(prints)), first, invert=True)
        if twice.any():
            text = f"{twice.sum()} structures repeat {int((counts > 1).sum())} others of the set"
            found.append(Finding(level="warning", check="duplicates", text=text, data=data.name, keys=data.keys(twice)))
            spread = _largest_disagreement(prints, data.looked["energy"] / data.n_atoms)
            if spread > 1e-3:
                text = f"equal structures have energies that differ by up to {spread:.4g} eV/atom"
                found.append(Finding(level="error", check="duplicates", text=text, data=data.name))
        for other in sets[:number]:
            shared = np.isin(prints, other.looked["fingerprint"])
            if shared.any():
                text = f"{shared.sum()} structures stand in {other.name} too: errors on them say nothing"
                found.append(
                    Finding(level="error", check="duplicates", text=text, data=data.name, keys=data.keys(shared))
                )
    return found


def _largest_disagreement(prints: NDArray[np.uint64], values: NDArray[np.float64]) -> float:
    order = np.argsort(prints, kind="stable")
    same = prints[order][1:] == prints[order][:-1]
    gaps = np.abs(np.diff(values[order]))[same]
    return float(np.nanmax(gaps)) if np.isfinite(gaps).any() else 0.0


def memory(data: Set, batch_size: int, channels: int, max_ell: int, layers: int) -> Finding:
    """Rough memory of a training step on the largest batch: messages on edges rule it."""
    largest = np.sort(data.looked["n_edges"].astype(np.int64))[::-1][:batch_size].sum()
    atoms = np.sort(data.n_atoms)[::-1][:batch_size].sum()
    per_edge = channels * (max_ell + 1) ** 2 * 4 * layers * 3  # forward, and twice for the derivative of forces
    gigabytes = float(largest) * per_edge / 2**30
    text = (
        f"the largest batch of {batch_size} has {atoms:.0f} atoms and {largest} edges: some {gigabytes:.2g} GiB in "
        f"single precision with {channels} channels, max_ell {max_ell}, {layers} layers"
    )
    return Finding(level="note", check="memory", text=text, data=data.name)
