"""Energies against reference energies that are given, against those of another
set and of other files.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from dataloader.atomic_energies import impossible, without_energy
from dataloader.data_check.energies import (
    ENERGY_FACTORS,
    LEAST,
    EnergyFit,
    fit_energies,
    kinds,
    robust,
    within,
)
from dataloader.data_check.looking import MAX_Z, Finding, Level, Set
from dataloader.structure import symbols

# eV per atom that a structure lies above its free atoms. Tungsten is bound by 8.9; against the
# unpolarised atoms of plane-wave programs, whose energy is about zero, by 13. A set whose middle
# lies above its free atoms does not exist.
BOUND = (-15.0, 2.0)
# the same of one element in a fit, which takes from one what it gives to another
BOUND_ELEMENT = (-20.0, 8.0)
SURE = 5.0  # standard errors that a shift of one E0 is at least
CERTAIN = 0.25  # eV; below this error of a fitted E0 the compositions tell it
FREE = 1.0  # eV; bound by less, an element has an E0 of a fit and not of its free atom
# Noble gases and metals bound by less than 2 eV: their E0s do not tell free atoms from a fit.
WEAK = {2, 10, 18, 36, 54, 86, 11, 12, 19, 20, 30, 37, 38, 48, 55, 56, 63, 70, 80}


def against_references(
    data: Set, fit: EnergyFit | None, references: Mapping[int, float], whose: str
) -> list[Finding]:
    """Given E0s (isolated atoms, a model.json) against the energies.

    E0s of free atoms leave the binding energy, which may have any plausible size: where there is
    one element or one composition, a shifted E0 cannot be told from it. Fitted E0s leave nothing,
    so where the compositions tell them and all but one agree with a fit, that one is shifted.
    """
    energy = data.looked["energy"]
    n = data.n_atoms
    rows = np.isfinite(energy)
    given = np.zeros(MAX_Z)
    known = np.isin(np.arange(MAX_Z), list(references))
    given[list(references)] = list(references.values())
    if (
        not rows.any()
        or (data.counts.any(axis=0) & ~known).any()
        or (fit is not None and fit.per_atom)
    ):
        return []
    residual = ((energy - data.counts @ given) / n)[rows]
    shifts = {} if fit is None else _shifted(data.part(rows, data.name), fit, given, residual)
    if not shifts and not BOUND[0] <= np.median(residual) <= BOUND[1]:
        return [_unbound(data, given, float(np.median(residual)), whose)]
    return [
        Finding(
            level="error",
            check="E0s",
            text=f"E0 of {symbols([z])} in {whose} is {given[z]:.6g} eV, the energies lead to "
            f"{given[z] + shift:.6g}: shifted by {-shift:+.4g} eV",
            data=data.name,
            factor=-shift,
        )
        for z, shift in shifts.items()
    ]


def _shifted(
    data: Set, fit: EnergyFit, given: NDArray[np.float64], residual: NDArray[np.float64]
) -> dict[int, float]:
    """Elements whose given E0 is wrong, with what is to be added to it."""
    limit = max(2 * fit.spread, 1e-3)
    if 1.4826 * np.median(np.abs(residual)) < limit:
        return {}
    present = [int(z) for z in np.nonzero(data.counts.any(axis=0))[0]]
    deviation = fit.values - given
    telling = [z for z in present if fit.errors[z] < CERTAIN]
    bound = {
        z: float(deviation[z])
        for z in telling
        if not BOUND_ELEMENT[0] <= deviation[z] <= BOUND_ELEMENT[1] and len(present) > 1
    }
    lone = None if bound else _only_one(data, present, residual, limit)
    others = [z for z in telling if z != lone and z not in WEAK]
    if lone not in telling or not others or abs(deviation[lone]) < 0.05:
        return bound
    if np.median(np.abs(deviation[others])) > FREE:
        return bound
    shift = float(robust(data.fractions[:, [lone]], residual)[0][0])
    # two fits of a few noisy structures, by totals and per atom, differ by some errors
    return bound if abs(shift) < SURE * fit.errors[lone] else {lone: shift}


def _only_one(
    data: Set, present: list[int], residual: NDArray[np.float64], limit: float
) -> int | None:
    """The element whose shift alone explains what the given E0s leave; None where none does."""
    left = {
        z: float(np.median(np.abs(robust(data.fractions[:, [z]], residual)[1]))) for z in present
    }
    best = min(left, key=lambda z: left[z])
    return best if 1.4826 * left[best] < limit else None


def _unbound(data: Set, given: NDArray[np.float64], middle: float, whose: str) -> Finding:
    present = np.nonzero(data.counts.any(axis=0))[0].tolist()
    shown = ", ".join(f"{symbols([z])} {given[z]:.6g}" for z in present[:4]) + (
        " …" if len(present) > 4 else ""
    )
    text = (
        f"energies lie {abs(middle):.4g} eV/atom {'above' if middle > 0 else 'below'} the "
        f"E0s in {whose} ({shown} eV); atoms are bound by 0 to {-BOUND[0]:g}: E0s of "
        "another method or unit?"
    )
    return Finding(level="error", check="E0s", text=text, data=data.name, factor=-middle)


def lacking_energies(data: Set, energies: Mapping[int, float]) -> list[Finding]:
    """Elements that occur and whose E0 in the model.json is 0 while others have one: nobody gave
    it.
    """
    occurring = [int(z) for z in np.nonzero(data.counts.any(axis=0))[0]]
    lacking = without_energy(energies, occurring)
    if not lacking:
        return []
    text = (
        f"E0 of {symbols(lacking)} in model.json is 0 eV, which says nothing: energies of "
        "structures with it are off by that of the atoms; give it one, or see that their head is "
        "the right one"
    )
    return [Finding(level="warning", check="E0s", text=text, data=data.name)]


def undetermined(
    data: Set, fit: EnergyFit | None, references: Mapping[str, Mapping[int, float]]
) -> list[Finding]:
    """Compositions that do not tell the E0s, where no isolated atoms do; and E0s in a
    model.json that show it.
    """
    present = [int(z) for z in np.nonzero(data.counts.any(axis=0))[0]]
    if fit is None or fit.rank >= len(present):
        return []
    low = [
        f"{symbols([z])} {energy:.4g} eV in {whose}"
        for whose, values in references.items()
        for z, energy in impossible(values).items()
    ]
    if not low and any(set(present) <= set(values) for values in references.values()):
        return []
    text = (
        f"the compositions determine only {fit.rank} of {len(present)} E0s ({symbols(present)}): "
        "those of a fit give energies of these compositions, none of others, of fragments or "
        "reactions; give isolated atoms"
    )
    text = f"{text}; no atom has the E0 of {low[0]}" if low else text
    return [Finding(level="warning", check="E0s", text=text, data=data.name)]


def against_other_set(data: Set, train: Set, fit: EnergyFit | None) -> list[Finding]:
    """Energies of validation or test against the fit of the training set: another
    unit, another reference.

    Structures of another kind (hotter, smaller, more open) may have other energies per
    atom: that is a warning.
    """
    energy = data.looked["energy"]
    n = data.n_atoms
    if fit is None or fit.per_atom or np.isfinite(energy).sum() < 5:
        return []
    known = np.isfinite(energy) & np.isfinite(fit.error_of(data.fractions))
    if known.sum() < 5:
        return []
    data = data.part(known, data.name)
    energy = energy[known]
    n = n[known]
    predicted = data.counts @ fit.values
    residual = (energy - predicted) / n
    doubt = float(np.median(np.hypot(fit.error_of(data.fractions), fit.spread)))
    limit = max(12 * doubt, LEAST)
    same_kind = within(kinds(data), kinds(train)) and within(data.fractions, train.fractions)
    middle = np.median(np.abs(residual))
    if middle < limit and not (same_kind and abs(np.median(residual)) > max(4 * doubt, 0.3)):
        return []
    if np.median(np.abs(predicted) / n) > limit:
        for factor, meaning in {
            **ENERGY_FACTORS,
            0.0: "energies are per atom, those are not",
        }.items():
            expected = factor or 1 / n
            if np.median(np.abs(energy / predicted / expected - 1)) < 0.05 and (
                factor or np.median(n) > 1.5
            ):
                shown = float(np.median(energy / predicted))
                text = (
                    f"energies are {shown:.4g} times what those of {train.name} lead to "
                    f"expect: {meaning}?"
                )
                factor = factor or float(1 / np.median(n))
                return [
                    Finding(
                        level="error", check="energies", text=text, data=data.name, factor=factor
                    )
                ]
    return [_another_reference(data, train, residual)]


def _another_reference(data: Set, train: Set, residual: NDArray[np.float64]) -> Finding:
    shift = {}
    left = {}
    for z in np.nonzero(data.counts.any(axis=0))[0].tolist():
        values, rest = robust(data.fractions[:, [z]], residual)
        shift[z] = float(values[0])
        left[z] = float(np.median(np.abs(rest)))
    largest = min(left, key=lambda z: left[z])  # the one element whose shift explains most
    middle = float(np.median(residual))
    same_kind = within(kinds(data), kinds(train)) and (
        abs(middle) > 0.3 or abs(shift[largest]) > 1.0
    )
    level: Level = "error" if same_kind or abs(middle) > -BOUND[0] else "warning"
    text = f"energies do not continue those of {train.name}: "
    if level == "warning":
        text += (
            f"{middle:+.4g} eV/atom, by structures of another kind (forces, neighbours, "
            "distances) or another method"
        )
    elif len(left) > 1:
        text += (
            f"an E0 is shifted, most that of {symbols([largest])} by {shift[largest]:+.4g} eV; "
            "another reference or functional?"
        )
    else:
        text += f"{middle:+.4g} eV/atom; another reference or functional?"
    return Finding(level=level, check="E0s", text=text, data=data.name, factor=shift[largest])


def between_files(data: Set, paths: Mapping[int, str]) -> list[Finding]:
    """Files of one head against the largest of them, as a validation set
    against the training set.
    """
    numbers, sizes = np.unique(data.files, return_counts=True)
    if len(numbers) < 2:
        return []
    largest = int(numbers[sizes.argmax()])
    base = data.part(data.files == largest, paths[largest])
    fit = fit_energies(base)
    findings = []
    for number in numbers.tolist():
        if number != largest:
            other = data.part(data.files == number, data.name)
            for finding in against_other_set(other, base, fit):
                text = f"{paths[number]}: {finding.text}"
                findings.append(Finding(**{**vars(finding), "text": text}))
    return findings
