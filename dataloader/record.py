"""What a record means, whatever file it came from: one set of rules for every reader.

A reader brings names and values (`RawRecord`); from here on it does not matter any more whether
they stood in an extended-XYZ comment, in a pickle or in an ASE row. Names that decide physics are
read in any case, units that are stated are converted and said, charge and spin have one set of
names, and held atoms one meaning.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dataloader.labels import (
    CHARGE_NAMES,
    SPIN_NAMES,
    LabelKeys,
    LabelNames,
    Labels,
    find_labels,
    usual_names,
)
from dataloader.names import Entries, WantedNames
from dataloader.needs import FeatureSpec
from dataloader.quantities import DIPOLE, QUANTITIES
from dataloader.record_details import (
    CHARGED_DIPOLE,
    CONSTRAINTS,
    HELD_NAME,
    MOVABLE_NAME,
    PERIODIC_DIPOLE,
    VIRIAL_WEIGHT_NAMES,
    WEIGHT_NAME,
    feature_of,
    free_atoms_of,
    held_otherwise,
    is_charged,
    meaningful,
    number_named,
    text_of,
    weight_of,
    weights_of,
)
from dataloader.record_geometry import (
    FRACTIONAL_NAMES,
    LATTICE_NAMES,
    NEAR_LATTICE_NAMES,
    NUMBER_NAMES,
    PBC_NAMES,
    POSITION_NAMES,
    SPECIES_NAMES,
    Pbc,
    PbcRule,
    atomic_numbers_of,
    cell_of,
    periodicity_of,
    positions_of,
)
from dataloader.record_units import StatedUnits
from dataloader.structure import Edges, Structure, volume_of

EVERYTHING: Literal["everything"] = "everything"  # of names to keep
Keep = Sequence[str] | Literal["everything"]


@dataclass(frozen=True, slots=True)
class RawRecord:
    """Names and values as a file has them.

    Attributes:
        values: of the whole structure.
        columns: those with a value for each atom, where the format tells them apart; None
            where ``values`` holds all.
        texts: how entries of ``values`` are spelt, where the format has no types: what is a
            name, such as ``12e45678``, may look like a number.
    """

    values: Mapping[str, object]
    columns: Mapping[str, object] | None = None
    texts: Mapping[str, str] = field(default_factory=dict)


class Reading(NamedTuple):
    """A structure, and what is to be known of how it was read."""

    structure: Structure
    names: LabelNames  # under which the labels were found
    # quantity and reason, of labels that are there and unusable
    faults: tuple[tuple[str, str], ...]
    pbc_rule: str
    notes: tuple[str, ...]  # what was converted or passed over, for the log


def read_record(
    raw: RawRecord,
    identifier: str,
    keys: LabelKeys,
    features: Sequence[FeatureSpec],
    keep: Keep,
    pbc_rule: PbcRule,
) -> Reading:
    """One record as a structure with its labels.

    Args:
        raw: names and values.
        identifier: a name under which a person finds the record again.
        keys: names of labels, charge and spin that the user gave.
        features: inputs that the model takes.
        keep: names of further entries to keep with the structure, or all that are left.
        pbc_rule: periodic directions where the record does not say them, and the rule in words.

    Raises:
        RecordError, LabelError: the record is no structure, or an entry that is
            always read has no meaning.
    """
    of_structure = Entries.of(raw.values)
    of_atoms = of_structure if raw.columns is None else Entries.of(raw.columns)
    units = StatedUnits(of_structure)
    numbers = atomic_numbers_of(of_atoms)
    n_atoms = len(numbers)
    positions = positions_of(of_atoms, n_atoms) * units.of_lengths("positions")
    cell = cell_of(of_structure) * units.of_lengths("cell")
    units.refuse_half_stated_lengths(has_cell=bool(cell.any()))
    pbc, rule = periodicity_of(of_structure, cell, pbc_rule)
    labels = find_labels(
        of_structure,
        keys,
        n_atoms,
        volume_of(cell, pbc),
        columns=None if raw.columns is None else of_atoms,
        scale=lambda quantity: units.scale(quantity, n_atoms),
    )
    units.refuse_half_stated(labels)
    charge = number_named(of_structure, keys.charge, CHARGE_NAMES, "charge")
    spin = number_named(of_structure, keys.spin, SPIN_NAMES, "spin")
    free_atoms, held_in_part = free_atoms_of(of_atoms, of_structure, n_atoms)
    of_dipole = _notes_on_dipole(labels, pbc, ionic=is_charged(of_structure, charge))
    structure = Structure(
        atomic_numbers=numbers,
        positions=positions,
        cell=cell,
        pbc=pbc,
        identifier=identifier,
        free_atoms=free_atoms,
        charge=charge,
        spin=spin,
        head=text_of(of_structure, "head", raw.texts),
        config_type=text_of(of_structure, "config_type", raw.texts) or "Default",
        features={
            spec.name: feature_of(
                spec, of_atoms if spec.per_atom else of_structure, n_atoms, charge, spin
            )
            for spec in features
        },
        labels=meaningful(labels, pbc),
        weight=weight_of(of_structure, WEIGHT_NAME),
        weights=weights_of(of_structure, labels),
        extra=_kept_entries(raw, keep, labels, n_atoms),
        columns=_kept_columns(raw, labels, n_atoms) if keep == EVERYTHING else {},
        edges=edges if isinstance(edges := raw.values.get("edges"), Edges) else None,
    )
    return Reading(
        structure=structure,
        names=labels.names,
        faults=tuple(labels.faults.items()),
        pbc_rule=rule,
        notes=(
            *units.notes(),
            *(note for note in (held_in_part, held_otherwise(raw.values)) if note is not None),
            *of_dipole,
        ),
    )


def _notes_on_dipole(labels: Labels, pbc: Pbc, *, ionic: bool) -> list[str]:
    """Where a dipole is no property of the structure alone."""
    if DIPOLE.name not in labels.values:
        return []
    notes = {PERIODIC_DIPOLE: any(pbc), CHARGED_DIPOLE: ionic}
    return [note for note, holds in notes.items() if holds]


def names_read(
    keys: LabelKeys, features: tuple[FeatureSpec, ...], keep: tuple[str, ...]
) -> WantedNames:
    """Every name of a record that `read_record` looks at, in any case, and the
    names that state units.
    """
    return _names_read(keys, features, keep, tuple(QUANTITIES))


@cache
def _names_read(
    keys: LabelKeys,
    features: tuple[FeatureSpec, ...],
    keep: tuple[str, ...],
    quantities: tuple[str, ...],
) -> WantedNames:
    """Every name that is looked at with a table of these quantities, which grows where a
    network gives one more.
    """
    groups = (
        NUMBER_NAMES,
        SPECIES_NAMES,
        POSITION_NAMES,
        FRACTIONAL_NAMES,
        LATTICE_NAMES,
        NEAR_LATTICE_NAMES,
        PBC_NAMES,
        [WEIGHT_NAME, *(QUANTITIES[name].weight_name for name in quantities)],
        VIRIAL_WEIGHT_NAMES,
        (HELD_NAME, MOVABLE_NAME, "head", "config_type", "edges"),
        [spec.name for spec in features],
        keep,
    )
    return WantedNames({*usual_names(keys), *(name for group in groups for name in group)})


def _kept_entries(raw: RawRecord, keep: Keep, labels: Labels, n_atoms: int) -> dict[str, object]:
    """The named entries that are one number or one text, as the file spells it: they are
    identifiers; of everything, small arrays too.
    """
    if keep != EVERYTHING:
        named = {name: raw.texts.get(name, _plain(raw.values.get(name))) for name in keep}
        return {name: value for name, value in named.items() if value is not None}
    used = _used_names(raw, labels)
    kept: dict[str, object] = {}
    for name, value in raw.values.items():
        plain = _plain(value)
        if name in used or value is None:
            continue
        if plain is not None:
            kept[name] = _as_spelt(plain, raw.texts.get(name))
        elif (
            isinstance(value, np.ndarray | list)
            and not _is_column(value, n_atoms)
            and np.size(value) <= 9
            and np.asarray(value).dtype != object
        ):
            kept[name] = np.asarray(value)
    return kept


def _kept_columns(raw: RawRecord, labels: Labels, n_atoms: int) -> dict[str, NDArray[np.generic]]:
    """The entries with a value for each atom that mean nothing to us and
    are passed on as they are.
    """
    used = _used_names(raw, labels)
    columns = raw.values if raw.columns is None else raw.columns
    return {
        name: np.asarray(value)
        for name, value in columns.items()
        if name not in used and value is not None and _is_column(value, n_atoms)
    }


def _is_column(value: object, n_atoms: int) -> bool:
    return (
        isinstance(value, np.ndarray | list) and np.ndim(value) in (1, 2) and len(value) == n_atoms
    )


def _plain(value: object) -> str | int | float | None:
    if isinstance(value, np.ndarray | np.generic) and value.size == 1:
        item: object = value.reshape(-1)[0].item()
        return item if isinstance(item, str | int | float) else None
    return value if isinstance(value, str | int | float) else None


def _as_spelt(value: str | int | float, text: str | None) -> str | int | float:
    """A number, or the text that cannot have meant it: ``1234e567`` is not infinite."""
    if text is None or not isinstance(value, float) or math.isfinite(value):
        return value
    return value if "inf" in text.casefold() or "nan" in text.casefold() else text


def _used_names(raw: RawRecord, labels: Labels) -> WantedNames:
    """Names whose meaning is in the structure already, and those of labels."""
    geometry = (*NUMBER_NAMES, *SPECIES_NAMES, *POSITION_NAMES, *LATTICE_NAMES, *PBC_NAMES)
    named = [name.split(" (")[0] for name in labels.names if name]
    return WantedNames({*geometry, *named, "head", "config_type", "edges", "natoms", CONSTRAINTS})
