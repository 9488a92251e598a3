"""Reference energies (E0s): of isolated atoms, what no atom can have, and what
compositions do not determine.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from ase.data import chemical_symbols

from dataloader.errors import InputError
from dataloader.labels import TO_EVALUATE, LabelKeys
from dataloader.structure import Structure, symbols
from dataloader.xyz import stream_xyz

SAME = 1e-6  # eV
SHOWN = 6

# The 57 elements of OC22: Tran et al., ACS Catal. 13, 3066 (2023), doi
# 10.1021/acscatal.2c05426; as fairchem lists them (OC22_elements). Oxides of metals and
# metalloids, with H, C, N and O in the adsorbates.
OC22 = (
    *("H", "Li", "Be", "C", "N", "O", "Na", "Mg", "Al", "Si"),
    *("K", "Ca", "Sc", "Ti", "V", "Cr", "Mn", "Fe", "Co", "Ni", "Cu", "Zn", "Ga", "Ge", "As", "Se"),
    *("Rb", "Sr", "Y", "Zr", "Nb", "Mo", "Ru", "Rh", "Pd", "Ag", "Cd", "In", "Sn", "Sb", "Te"),
    *(
        "Cs",
        "Ba",
        "Ce",
        "Lu",
        "Hf",
        "Ta",
        "W",
        "Re",
        "Os",
        "Ir",
        "Pt",
        "Au",
        "Hg",
        "Tl",
        "Pb",
        "Bi",
    ),
)


def _lowest(z: int) -> float:
    """eV; no atom has less than with all its electrons: −20.9 Z^(7/3) (Thomas and
    Fermi) with some room.
    """
    return float(-20.9 * z ** (7 / 3) * 1.3 - 3)


# eV, by atomic number
LOWEST = np.array([0.0, *(_lowest(z) for z in range(1, len(chemical_symbols)))])


def impossible(energies: Mapping[int, float]) -> dict[int, float]:
    """The energies that no atom can have, of some by atomic number (eV): lower than
    with all its electrons.
    """
    return {z: energy for z, energy in energies.items() if energy < LOWEST[z]}


def without_energy(
    energies: Mapping[int, float], occurring: Collection[int] | None = None
) -> list[int]:
    """Elements to which nobody gave an energy: theirs is 0 while another one has some.

    Args:
        energies: eV by atomic number.
        occurring: atomic numbers that count; all unless given.

    Returns:
        Their atomic numbers; none where all energies are 0, which is a choice.
    """
    zero = {z for z, energy in energies.items() if energy == 0}
    if len(zero) == len(energies):
        return []
    return sorted(zero if occurring is None else zero & set(occurring))


def shown(energies: Mapping[int, float]) -> str:
    """``H -13.6, O -430 eV``, the first few of many."""
    parts = [f"{chemical_symbols[z]} {energies[z]:.6g}" for z in sorted(energies)]
    return (
        ", ".join(parts[:SHOWN])
        + (f" and {len(parts) - SHOWN} more" if len(parts) > SHOWN else "")
        + " eV"
    )


def undetermined(what: str, rank: int, energies: Mapping[int, float]) -> str:
    """What it means that compositions determine fewer E0s than there are elements.

    Args:
        what: ``E0s`` or ``shifts of E0s``.
        rank: how many they determine.
        energies: what was taken, eV by atomic number, of the elements that occur.
    """
    return (
        f"the compositions determine only {rank} of {len(energies)} {what}, and the shortest that "
        f"fit were taken ({shown(energies)}): energies of other compositions, of fragments and of "
        "reactions mean nothing with them; give IsolatedAtom frames, or --E0s with a file of "
        "isolated atoms or JSON"
    )


def add_isolated(energies: dict[int, float], atom: Structure) -> None:
    """Note the energy of an isolated atom.

    Raises:
        InputError: it has none, or another one of the element has another.
    """
    z = int(atom.atomic_numbers[0])
    if atom.energy is None:
        raise InputError(
            f"{atom.identifier}: IsolatedAtom frame of {chemical_symbols[z]} has no energy under "
            "the usual names, or that of --energy_key where it is given; name the entry that is "
            "the energy with --energy_key, as other labels with --forces_key and the like"
        )
    if abs(energies.setdefault(z, atom.energy) - atom.energy) > SAME:
        raise InputError(
            f"{atom.identifier}: IsolatedAtom frames of {chemical_symbols[z]} disagree: "
            f"{energies[z]} and {atom.energy} eV; keep one, or write `head` into those of another "
            "head"
        )


def isolated_by_head(atoms: Iterable[Structure], default: str) -> dict[str, dict[int, float]]:
    """Energies (eV) of isolated atoms by head and atomic number; those that name no head
    are of the default one.

    Raises:
        InputError: one has no energy, or two of one element and head disagree.
    """
    by_head: dict[str, dict[int, float]] = {}
    for atom in atoms:
        add_isolated(by_head.setdefault(atom.head or default, {}), atom)
    return by_head


def isolated_of_heads(
    atoms: Iterable[Structure], heads: Sequence[str], occurring: Collection[str]
) -> tuple[dict[str, dict[int, float]], list[int]]:
    """Energies (eV) of isolated atoms by head and atomic number, of a model with these heads.

    Atoms that name no head are of the model's only one, or of the only one that structures
    beside them are of.

    Args:
        atoms: isolated ones.
        heads: of the model.
        occurring: heads of the structures that have no other source of E0s.

    Returns:
        The energies, and the atomic numbers of atoms whose head nobody can tell.

    Raises:
        InputError: one has no energy, or two of one element and head disagree.
    """
    known = heads if len(heads) == 1 else [*occurring]
    by_head = isolated_by_head(atoms, known[0] if len(known) == 1 else "")
    return by_head, sorted(by_head.pop("", {}))


def read_isolated(path: Path, keys: LabelKeys) -> dict[str, dict[int, float]]:
    """Energies of a file of isolated atoms, whatever its frames are called; under ``""``
    those that name no head.

    Raises:
        InputError: the file cannot be read, or a frame has several atoms or no energy.
    """
    atoms = []
    for frame, read in enumerate(stream_xyz(path, keys, TO_EVALUATE)):
        structure = read.structure
        if structure.n_atoms != 1:
            raise InputError(
                f"{path} frame {frame} has {structure.n_atoms} atoms; expected isolated atoms "
                "only, one in each frame"
            )
        if structure.energy is None:
            looked = keys.energy or "the usual names"
            raise InputError(
                f"{path} frame {frame}: energy missing (looked for {looked}); name "
                "it with --energy_key"
            )
        atoms.append(structure)
    return isolated_by_head(atoms, "")


def differences(isolated: Mapping[int, float], energies: Mapping[int, float]) -> str:
    """Where isolated atoms and E0s of a model differ, with both numbers;
    nothing where they do not.
    """
    parts = [
        f"{chemical_symbols[z]} {energy:.6g} against {energies[z]:.6g}"
        for z, energy in sorted(isolated.items())
        if z in energies and abs(energy - energies[z]) > SAME * max(1.0, abs(energy))
    ]
    return ", ".join(parts[:SHOWN]) + (
        f" and {len(parts) - SHOWN} more" if len(parts) > SHOWN else ""
    )


def lacking(elements: Sequence[int], energies: Mapping[int, float]) -> str:
    """Symbols of the elements that have no energy."""
    return symbols([z for z in elements if z not in energies])
