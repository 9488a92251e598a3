"""Units that data state beside their numbers: ``energy_unit=hartree`` is read and
converted, never overlooked.

Everything inside is eV, eV/Å, eV/Å³ and Å. Conversion factors are of CODATA 2018.
"""

import re
import unicodedata
from collections.abc import Mapping
from typing import NamedTuple

from ase.units import create_units

_SI = create_units("2018")


class UnitError(ValueError):
    """A unit is stated that is not known, or that does not measure what it stands beside."""


class Unit(NamedTuple):
    """A unit as powers of energy and length, and what one of it is in eV and Å."""

    factor: float
    energy: int
    length: int
    per_atom: bool = False


_LENGTHS = {
    1.0: (
        "å",
        "a",
        "ang",
        "angs",
        "angst",
        "angstrom",
        "angstroms",
        "angstroem",
        "ångström",
        "ångstrom",
        "aa",
    ),
    _SI.Bohr: ("bohr", "bohrs", "a0", "a_0", "bohr_radius"),
    _SI.nm: ("nm", "nanometer", "nanometers", "nanometre", "nanometres"),
    1e-2: ("pm", "picometer", "picometre"),
}
_MOLAR_KCAL = _SI.kcal / _SI.mol
_MOLAR_KJ = _SI.kJ / _SI.mol
_ENERGIES = {
    1.0: ("ev", "evs", "electronvolt", "electronvolts", "electron_volt", "electron*volt"),
    1e-3: ("mev", "millielectronvolt"),  # of text; MeV is told apart before case is dropped
    1e3: ("kev",),
    _SI.Hartree: ("hartree", "hartrees", "ha", "eh", "e_h", "hart"),
    1e-3 * _SI.Hartree: ("mhartree", "mha", "millihartree"),
    _SI.Rydberg: ("rydberg", "rydbergs", "ry", "ryd"),
    _MOLAR_KCAL: ("kcal/mol", "kcalmol", "kcal_mol"),
    _MOLAR_KJ: ("kj/mol", "kjmol", "kj_mol"),
    _SI.J: ("j", "joule", "joules"),
    _SI.kB: ("k", "kelvin"),
    _SI.invcm: ("cm^-1", "1/cm", "invcm", "wavenumber"),
}
_PRESSURES = {
    _SI.GPa: ("gpa", "gigapascal"),
    1e-3 * _SI.GPa: ("mpa", "megapascal"),
    1e-6 * _SI.GPa: ("kpa",),
    _SI.Pascal: ("pa", "pascal", "pascals"),
    _SI.bar: ("bar", "bars"),
    1e3 * _SI.bar: ("kbar", "kilobar", "kb"),
    1e6 * _SI.bar: ("mbar", "megabar"),
    101325.0 * _SI.Pascal: ("atm", "atmosphere", "atmospheres"),
}
DIPOLE = (0, 101)  # a charge times a length, which no powers of energy and length are
_DIPOLES = {
    1.0: ("e*å", "eå", "e*a", "ea", "e*ang", "eang", "e*angstrom", "eangstrom"),
    _SI.Debye: ("debye", "debyes", "d"),
    _SI.Bohr: ("e*bohr", "ebohr", "e*a0", "ea0"),
}
_NAMED: dict[str, Unit] = {
    **{name: Unit(factor, 0, 1) for factor, names in _LENGTHS.items() for name in names},
    **{name: Unit(factor, 1, 0) for factor, names in _ENERGIES.items() for name in names},
    **{name: Unit(factor, 1, -3) for factor, names in _PRESSURES.items() for name in names},
    **{name: Unit(factor, *DIPOLE) for factor, names in _DIPOLES.items() for name in names},
}
_ATOMIC_UNITS = {"au", "a.u", "a.u.", "atomic", "atomic_unit", "atomic_units"}
_SUPERSCRIPTS = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
_FACTOR = re.compile(r"([*/]?)([^*/^]+?)(?:\^([+-]?\d))?(?=[*/]|$)")

# What a unit may stand beside: powers of energy and length.
ENERGY = (1, 0)
FORCE = (1, -1)
STRESS = (1, -3)
LENGTH = (0, 1)
_OURS = {ENERGY: "eV", FORCE: "eV/Å", STRESS: "eV/Å³", LENGTH: "Å", DIPOLE: "e·Å"}

_KEY = re.compile(
    r"^(?:ref_|dft_)?(?P<what>energy|energies|free_energy|forces?|gradients?|stress(?:es)?|virials?|positions?|pos|"
    r"coordinates?|coords?|lengths?|distances?|cell|lattice|dipoles?|dipole_moments?)_?units?$"
    r"|^units?_(?:of_)?(?P<of>energy|energies|forces?|stress(?:es)?|virials?|positions?|lengths?|dipoles?)$"
)
_MEASURES: Mapping[str, tuple[str, tuple[int, int]]] = {
    **dict.fromkeys(("energy", "energies", "free_energy"), ("energy", ENERGY)),
    **dict.fromkeys(("force", "forces", "gradient", "gradients"), ("forces", FORCE)),
    **dict.fromkeys(("stress", "stresses"), ("stress", STRESS)),
    **dict.fromkeys(("virial", "virials"), ("virial", ENERGY)),
    **dict.fromkeys(
        ("position", "positions", "pos", "coordinate", "coordinates", "coord", "coords"),
        ("positions", LENGTH),
    ),
    **dict.fromkeys(("length", "lengths", "distance", "distances"), ("lengths", LENGTH)),
    **dict.fromkeys(("cell", "lattice"), ("cell", LENGTH)),
    **dict.fromkeys(("dipole", "dipoles", "dipole_moment", "dipole_moments"), ("dipole", DIPOLE)),
}
GENERAL = ("unit", "units")  # of what, such a key does not say


def stated_quantity(key: str) -> str | None:
    """What a key states the unit of: energy, forces, stress, virial, positions, cell,
    lengths; None for other keys.

    ``energy-unit``, ``EnergyUnits``, ``unit_of_energy`` are all read.
    """
    match = _KEY.match(_folded_key(key))
    if match is None:
        return None
    quantity, _ = _MEASURES[match["what"] or match["of"]]
    return quantity


def is_general(key: str) -> bool:
    """Whether a key states units without saying of what: ``units=metal``."""
    return _folded_key(key) in GENERAL


def _folded_key(key: str) -> str:
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", key)  # energyUnit
    return re.sub(r"[-\s.]+", "_", spaced.strip()).casefold()


def factor_to_ours(text: object, quantity: str) -> tuple[float, bool]:
    """What a stated unit is in eV, eV/Å, eV/Å³ or Å, and whether it is one per atom.

    Args:
        text: the unit as it is written: ``kcal/mol/Å``, ``Hartree bohr^-1``, ``GPa``.
        quantity: one of those that ``stated_quantity`` gives.

    Raises:
        UnitError: the text is no unit that is known, or one of something else.
    """
    dimension = next(dimension for name, dimension in _MEASURES.values() if name == quantity)
    ours = _OURS[dimension]
    if not isinstance(text, str):
        raise UnitError(f"{text!r} is no unit; expected {ours}")
    unit = _atomic(dimension) if text.strip().casefold() in _ATOMIC_UNITS else parsed(text)
    if unit is None:
        raise UnitError(f"{text!r:.40} is no unit that is known; convert to {ours}, or say {ours}")
    if (unit.energy, unit.length) != dimension:
        raise UnitError(
            f"{text!r:.40} does not measure {quantity}; expected {ours} or another unit of it"
        )
    if unit.per_atom and quantity != "energy":
        raise UnitError(f"{text!r:.40} is per atom; expected {ours}")
    return unit.factor, unit.per_atom


def _atomic(dimension: tuple[int, int]) -> Unit:
    energy, length = dimension
    if dimension == DIPOLE:
        return Unit(_SI.Bohr, *DIPOLE)
    return Unit(_SI.Hartree**energy * _SI.Bohr**length, energy, length)


def parsed(text: str) -> Unit | None:
    """A unit from its text; None where a part of it is not known."""
    if re.search(r"\bMeV\b", text):
        return None  # a million, where all but the case says a thousandth
    whole = _canonical(text)
    if whole in _NAMED:
        return _NAMED[whole]
    for molar in ("kcal", "kj"):  # the mole belongs to the energy, wherever it is written
        if molar in whole:
            stripped = re.sub(r"/mol(?:e)?(?![a-z])|\*mol\^-1", "", whole)
            if stripped == whole:
                return None
            whole = stripped.replace(molar, f"{molar}mol")
    total = Unit(1.0, 0, 0)
    end = 0
    for match in _FACTOR.finditer(whole):
        if match.start() != end:
            return None
        end = match.end()
        sign = -1 if match[1] == "/" else 1
        power = sign * int(match[3] or 1)
        if match[2] == "atom" and power == -1:
            total = total._replace(per_atom=True)
            continue
        if match[2] not in _NAMED:
            return None
        base = _NAMED[match[2]]
        total = Unit(
            total.factor * base.factor**power,
            total.energy + power * base.energy,
            total.length + power * base.length,
            total.per_atom,
        )
    return total if whole and end == len(whole) else None


def _canonical(text: str) -> str:
    """Small letters, ``*``, ``/`` and ``^``: from ``kcal mol⁻¹ Å⁻¹``,
    ``eV/(Å**3)``, ``Eh.a0^-1``.
    """
    plain = (
        unicodedata.normalize("NFC", text.strip().translate(_SUPERSCRIPTS))
        .replace("\u212b", "Å")
        .casefold()
    )
    plain = plain.replace("**", "^").replace("·", "*").replace("⋅", "*").replace(" per ", "/")
    plain = re.sub(
        r"/\(([^()]*)\)", lambda inner: "/" + re.sub(r"[*\s]+", "/", inner[1].strip()), plain
    )
    plain = plain.strip("()[]")
    plain = re.sub(
        r"/(?:cell|config|configuration|structure|frame|molecule|system)(?![a-z])", "", plain
    )
    plain = re.sub(r"/a\.?u\.?(?![a-z])", "/bohr", plain)  # Ry/au, as QE says
    plain = re.sub(r"(/mol)-(?=[a-zå])", r"\1/", plain)  # kcal/mol-Å, as LAMMPS says
    plain = re.sub(r"\s*([*/^])\s*", r"\1", plain)
    plain = re.sub(r"\s+", "*", plain)
    plain = re.sub(r"(?<=[a-zåöa0])\^?(-\d)", r"^\1", plain)
    return re.sub(r"(?<=[a-zåö])([23])(?=$|[*/])", r"^\1", plain).replace("atoms", "atom")
