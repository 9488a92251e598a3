"""Forces and stress of one set by their size, and the sign of the stress."""

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from dataloader.data_check.looking import Finding, Level, Set

GPA = 160.2177  # of 1 eV/Å³
KBAR = 1602.177
HIGH_STRESS = 2.0  # eV/Å³, 320 GPa: the centre of the earth
# eV, of the stress times the volume of an atom; the bulk modulus of diamond times its volume is 16
HIGH_WORK = 4.0
UNLIKE = 10.0  # forces of hot structures against those of a few relaxed ones
FEWEST = 5  # structures with forces
FORCE_UNITS = {  # eV/Å
    "kcal/mol/Å": 23.0605,
    "Hartree/Bohr": 51.4221,
    "kJ/mol/Å": 96.485,
    "meV/Å": 1000.0,
}
ENOUGH = 100  # structures with a stress, whose signs then say something
COMPRESSED = 0.8  # closest distance over covalent radii, below which such a pressure is possible


def scales(data: Set) -> list[Finding]:
    """Forces and stress by their size."""
    return _forces(data) + _stress(data)


def _forces(data: Set) -> list[Finding]:
    squares = data.looked["force_square"]
    if not np.isfinite(squares).any():
        return []
    rms = float(np.sqrt(np.nanmean(squares)))
    text = (
        f"rms of the force components {rms:.4g} eV/Å, largest force "
        f"{np.nanmax(data.looked['max_force']):.4g}"
    )
    level: Level = "note"
    if 0 < rms < 0.02:
        level = "warning"
        text = f"{text}: small; Hartree/Bohr would make it {51.4221 * rms:.3g} eV/Å"
    elif rms > 15:
        level = "warning"
        text = f"{text}: large; from kcal/mol/Å it would be {rms / 23.0605:.3g} eV/Å"
    return [Finding(level=level, check="forces", text=text, data=data.name)]


def against_other_set(data: Set, train: Set) -> list[Finding]:
    """Forces of validation or test against those of the training set: another unit."""
    own, theirs = _rms_of_forces(data), _rms_of_forces(train)
    if not own or not theirs or 1 / UNLIKE < own / theirs < UNLIKE:
        return []
    ratio = max(own / theirs, theirs / own)
    unit = min(FORCE_UNITS, key=lambda name: abs(np.log(ratio / FORCE_UNITS[name])))
    text = (
        f"forces are {own / theirs:.3g} times those of {train.name} (rms {own:.3g} against "
        f"{theirs:.3g} eV/Å): are some in {unit}, or of structures of another kind?"
    )
    return [
        Finding(level="warning", check="forces", text=text, data=data.name, factor=own / theirs)
    ]


def _rms_of_forces(data: Set) -> float:
    """Root mean square of the force components, eV/Å; 0 where too few structures have them."""
    squares = data.looked["force_square"]
    finite = squares[np.isfinite(squares)]
    return float(np.sqrt(finite.mean())) if len(finite) >= FEWEST else 0.0


def _stress(data: Set) -> list[Finding]:
    """By size; a stress as in the earth's core is believed where atoms are
    pressed together as there.
    """
    traces = data.looked["trace"]
    largest = data.looked["max_stress"]
    if not np.isfinite(traces).any():
        return []
    rms = float(np.sqrt(np.nanmean(np.square(traces))))
    text = f"rms of the mean normal stress {rms:.4g} eV/Å³ ({GPA * rms:.4g} GPa)"
    middle = np.nanmedian(largest)
    work = np.nanmedian(largest * data.looked["volume"])
    if middle <= HIGH_STRESS and work <= HIGH_WORK:
        return [Finding(level="note", check="stress", text=text, data=data.name)]
    factor = KBAR if rms > 16 else GPA
    close = np.median(data.looked["closest"][np.isfinite(largest)]) < COMPRESSED
    units = f"GPa? divide by {GPA:g}"
    if rms > 16:
        units = f"kbar? divide by {KBAR:g} (of strained cells perhaps in {units})"
    text = f"{text}: {'large' if close else 'too large'}; is it in {units}"
    level: Level = "warning" if close and rms < 16 else "error"
    return [Finding(level=level, check="stress", text=text, data=data.name, factor=factor)]


def stress_sign(data: Set) -> list[Finding]:
    """Compressed structures must be under pressure: of the most stressed tenth, the
    sign against the volume.

    The volume is compared with that which the elements of the structure have
    in the other structures.
    """
    traces = data.looked["trace"]
    volumes = data.looked["volume"]
    rows = np.nonzero(np.isfinite(traces) & np.isfinite(volumes))[0]
    if len(rows) < ENOUGH:
        if len(rows) == 0:
            return []
        text = f"its sign is not checked: {len(rows)} structures have it, {ENOUGH} are needed"
        return [Finding(level="note", check="stress", text=text, data=data.name)]
    fractions = data.counts[rows] / data.n_atoms[rows, None]
    present = fractions.any(axis=0)
    target = np.log(volumes[rows])
    residual = (
        target
        - fractions[:, present] @ np.linalg.lstsq(fractions[:, present], target, rcond=None)[0]
    )
    size = np.abs(traces[rows])
    most = size >= np.quantile(size, 0.9)
    rho = _rank_correlation(residual[most], traces[rows][most])
    n = int(most.sum())
    if rho * np.sqrt(n - 1) < -3:
        text = (
            f"the sign of the stress is flipped: of the {n} most stressed structures the "
            f"compressed ones are under tension (rank correlation {rho:.2f}, expected positive); "
            "ASE's sign is positive under tension"
        )
        return [Finding(level="error", check="stress", text=text, data=data.name, factor=-1.0)]
    return [
        Finding(
            level="note",
            check="stress",
            text=f"sign agrees with the volumes ({rho:+.2f})",
            data=data.name,
        )
    ]


def _rank_correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Spearman's; 0 where all values of one are equal."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(spearmanr(a, b).statistic)
