"""The same few waters as every kind of file that is read: by the real writers, or in the
words of the programs.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect
from ase.io import write
from ase.units import GPa, create_units

from conftest import pair_potential

h5py = pytest.importorskip("h5py")
QE = create_units("2006")
CP2K = create_units("2018")
BOX = 8.0
# eV/Å³, in ASE's order xx, yy, zz, yz, xz, xy
STRESS = np.array([0.001, 0.002, 0.003, 0.0004, 0.0005, 0.0006])
Frames = Sequence[Atoms]


def boxed_waters(n: int, seed: int = 0) -> list[Atoms]:
    """Waters in a box, with numbers of few digits, and labels of a pair potential as a
    calculator leaves them.
    """
    rng = np.random.default_rng(seed)
    frames = []
    for i in range(n):
        base = np.array([[4.0, 4.0, 4.0], [4.96, 4.0, 4.0], [3.76, 4.93, 4.0]])
        atoms = Atoms(
            "OHH", np.round(base + rng.normal(0, 0.05, (3, 3)), 5), cell=np.eye(3) * BOX, pbc=True
        )
        energy, forces = pair_potential(atoms)
        stress = np.round(STRESS * (1 + i) / GPa, 4) * GPa
        atoms.calc = SinglePointCalculator(
            atoms, energy=round(energy, 6), forces=np.round(forces, 6), stress=stress
        )
        frames.append(atoms)
    return frames


def energy_of(atoms: Atoms) -> float:
    return float(atoms.calc.results["energy"])


def forces_of(atoms: Atoms) -> np.ndarray:
    return np.asarray(atoms.calc.results["forces"])


def kbar(atoms: Atoms) -> np.ndarray:
    """The stress as VASP prints it, (6,), in kbar and of the other sign, in ASE's order."""
    return np.asarray(-10 * atoms.calc.results["stress"] / GPa)


def rows(values: np.ndarray, form: str) -> list[str]:
    return ["".join(format(x, form) for x in row) for row in np.atleast_2d(values)]


def write_xyz(path: Path, frames: Frames) -> None:
    write(path, list(frames), format="extxyz")


def write_traj(path: Path, frames: Frames) -> None:
    write(path, list(frames))


def write_db(path: Path, frames: Frames) -> None:
    database = connect(path)
    for atoms in frames:
        database.write(atoms, data={"far": np.arange(3.0)}, origin="test")


def write_ase_lmdb(path: Path, frames: Frames) -> None:
    database = connect(path, type="aselmdb")
    for atoms in frames:
        database.write(atoms)
    database.close()


def write_hdf5(path: Path, frames: Frames) -> None:
    """As ``mace_prepare_data`` of mace-torch 0.3.16; a test compares with the command itself."""
    with h5py.File(path, "w") as file:
        file.attrs["drop_last"] = False
        for number, atoms in enumerate(frames):
            group = file.create_group(f"config_batch_0/config_{number}")
            put_geometry(group, atoms)
            labels = {
                "energy": energy_of(atoms),
                "forces": forces_of(atoms),
                "stress": atoms.calc.results["stress"],
            }
            for name, value in {**labels, "virials": "None", "dipole": "None", "head": ""}.items():
                group[f"properties/{name}"] = value
                group[f"property_weights/{name}"] = float(name in labels)


def put_geometry(group: Any, atoms: Atoms) -> None:
    entries = {
        "atomic_numbers": atoms.numbers,
        "positions": atoms.positions,
        "cell": atoms.cell.array,
    }
    for name, value in {
        **entries,
        "pbc": atoms.pbc,
        "weight": 1.0,
        "config_type": "Default",
    }.items():
        group[name] = value


def write_old_hdf5(path: Path, frames: Frames) -> None:
    """As until mace-torch 0.3.12: labels beside the geometry, absent ones as
    zeros with the weight 0.
    """
    with h5py.File(path, "w") as file:
        for number, atoms in enumerate(frames):
            group = file.create_group(f"config_batch_0/config_{number}")
            put_geometry(group, atoms)
            labels = {
                "energy": energy_of(atoms),
                "forces": forces_of(atoms),
                "stress": atoms.calc.results["stress"],
            }
            absent = {
                "virials": np.zeros((3, 3)),
                "dipole": np.zeros(3),
                "charges": np.zeros(3),
                "head": "None",
            }
            for name, value in {**labels, **absent}.items():
                group[name] = value
            for name in ("energy", "forces", "stress", "virials"):
                group[f"{name}_weight"] = float(name in labels)


def write_outcar(path: Path, frames: Frames) -> None:
    lines = [" vasp.6.3.2 27Jun22 (build Nov 25 2022) complex", ""]
    lines += [" POTCAR:    PAW_PBE O 08Apr2002", " POTCAR:    PAW_PBE H 15Jun2001"] * 2
    lines += [
        (
            "   k-points           NKPTS =      1   k-points in BZ     NKDIM =      1   number of "
            "bands    NBANDS=      8"
        )
    ]
    lines += [
        "   ISPIN  =      1    spin polarized calculation?",
        "   ions per type =               1   2",
    ]
    lines += [
        " k-points in reciprocal lattice and weights: Automatic mesh",
        "   0.00000000  0.00000000  0.00000000   1.0",
    ]
    for number, atoms in enumerate(frames, 1):
        xx, yy, zz, yz, xz, xy = kbar(atoms)
        energy = energy_of(atoms)
        lines += [f"----------- Iteration {number:6d}(   1)  -----------"]
        lines += ["  in kB " + "".join(f"{x:12.5f}" for x in (xx, yy, zz, xy, yz, xz))]
        lines += ["      direct lattice vectors                 reciprocal lattice vectors"]
        lines += rows(np.hstack([atoms.cell.array, np.eye(3) / BOX]), "15.9f")
        lines += [
            " POSITION                                       TOTAL-FORCE (eV/Angst)",
            " " + "-" * 83,
        ]
        lines += rows(np.hstack([atoms.positions, forces_of(atoms)]), "13.6f")
        lines += [" " + "-" * 83, "  FREE ENERGIE OF THE ION-ELECTRON SYSTEM (eV)", "  " + "-" * 51]
        lines += [f"  free  energy   TOTEN  = {energy - 0.5:18.8f} eV", ""]
        lines += [
            f"  energy  without entropy= {energy + 0.5:17.8f}  energy(sigma->0) = {energy:17.8f}",
            "",
        ]
    path.write_text("\n".join(lines))


def write_vasprun(path: Path, frames: Frames) -> None:
    def varray(name: str, values: np.ndarray) -> str:
        inner = "".join(f"<v>{row}</v>\n" for row in rows(values, "20.10f"))
        return f'<varray name="{name}">\n{inner}</varray>\n'

    def crystal(atoms: Atoms) -> str:
        basis = varray("basis", atoms.cell.array)
        places = varray("positions", atoms.get_scaled_positions(wrap=False))
        return f"<crystal>{basis}</crystal>{places}"

    def calculation(atoms: Atoms) -> str:
        energy = energy_of(atoms)
        energies = (
            f'<energy><i name="e_fr_energy">{energy - 0.5:.8f}</i><i '
            f'name="e_0_energy">{energy:.8f}</i></energy>'
        )
        xx, yy, zz, yz, xz, xy = kbar(atoms)
        stress = varray("stress", np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]]))
        forces = varray("forces", forces_of(atoms))
        inner = f"<structure>{crystal(atoms)}</structure>{forces}{stress}{energies}"
        return f"<calculation><scstep>{energies}</scstep>{inner}</calculation>\n"

    names = "".join(
        f"<rc><c>{symbol}</c><c>1</c></rc>" for symbol in frames[0].get_chemical_symbols()
    )
    path.write_text(
        '<?xml version="1.0" encoding="ISO-8859-1"?>\n<modeling>\n'
        '<generator><i name="program">vasp</i></generator>\n'
        '<kpoints><varray name="kpointlist"><v>0.0 0.0 0.0</v></varray>'
        '<varray name="weights"><v>1.0</v></varray></kpoints>\n'
        '<parameters><i name="PSTRESS">0.0</i></parameters>\n'
        f'<atominfo><atoms>3</atoms><array name="atoms"><set>{names}</set></array></atominfo>\n'
        f'<structure name="initialpos">{crystal(frames[0])}</structure>\n'
        f"{''.join(map(calculation, frames))}</modeling>\n"
    )


def write_pwscf(path: Path, frames: Frames) -> None:
    """A relaxation of pw.x: the first structure in units of the lattice, the others in Å."""
    alat = BOX / QE["Bohr"]
    lines = ["", "     Program PWSCF v.7.1 starts on 25Nov2022 at 12: 0: 0", ""]
    lines += [
        "     number of atoms/cell      =            3",
        "     number of atomic types    =            2",
    ]
    lines += [f"     celldm(1)={alat:15.9f}  celldm(2)=   0.000000  celldm(3)=   0.000000", ""]
    lines += ["     crystal axes: (cart. coord. in units of alat)"]
    lines += [
        f"               a({i + 1}) = ({row} )" for i, row in enumerate(rows(np.eye(3), "11.6f"))
    ]
    lines += ["", "     site n.     atom                  positions (alat units)"]
    for i, (symbol, row) in enumerate(
        zip("OHH", rows(frames[0].positions / BOX, "14.9f"), strict=True)
    ):
        lines += [f"     {i + 1:5d}           {symbol:3s} tau({i + 1:4d}) = ({row}  )"]
    for number, atoms in enumerate(frames):
        if number:
            lines += ["", "ATOMIC_POSITIONS (angstrom)"]
            lines += [
                f"{s}  {row}" for s, row in zip("OHH", rows(atoms.positions, "17.10f"), strict=True)
            ]
        energy, forces = energy_of(atoms) / QE["Ry"], forces_of(atoms) / QE["Ry"] * QE["Bohr"]
        xx, yy, zz, yz, xz, xy = -atoms.calc.results["stress"] / QE["Ry"] * QE["Bohr"] ** 3
        tensor = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
        lines += ["", f"!    total energy              = {energy:16.8f} Ry", ""]
        lines += ["     Forces acting on atoms (cartesian axes, Ry/au):", ""]
        lines += [
            f"     atom {i + 1:4d} type  1   force = {row}"
            for i, row in enumerate(rows(forces, "14.8f"))
        ]
        lines += ["", "     Computing stress (Cartesian axis) and pressure", ""]
        lines += [
            "          total   stress  (Ry/bohr**3)                   (kbar)     P=        0.00"
        ]
        lines += [f"{row}          0.00  0.00  0.00" for row in rows(tensor, "14.8f")]
    path.write_text("\n".join([*lines, "", "     JOB DONE.", ""]))


def write_aims(path: Path, frames: Frames) -> None:
    """Molecular dynamics of FHI-aims."""
    lines = [
        "          Invoking FHI-aims ...",
        "",
        "  | Number of atoms                   :        3",
    ]
    lines += [
        "  | Number of spin channels           :        1",
        "  | Number of k-points             :         1",
    ]
    lines += ["  The structure contains        3 atoms,  and a total of         10.000 electrons."]
    lines += ["  | Number of Kohn-Sham states (occupied + empty):       8", "  | Unit cell:"]
    lines += [f"  |  {row}" for row in rows(frames[0].cell.array, "16.8f")]
    lines += [
        "  | Atomic structure:",
        "  |       Atom                x [A]            y [A]            z [A]",
    ]
    lines += [
        f"  |  {i + 1:4d}: Species {s:10s} {row}"
        for i, (s, row) in enumerate(_named(frames[0], "16.8f"))
    ]
    lines += [
        "  Complete information for previous time-step:",
        "          Begin self-consistency iteration #    1",
        "",
    ]
    for number, atoms in enumerate(frames):
        energy = energy_of(atoms)
        if number:
            lines += ["  Begin self-consistency loop: Re-initialization."]
        lines += [f"  | Total energy uncorrected      : {energy + 0.5:20.8f} eV"]
        lines += [f"  | Electronic free energy        : {energy:20.8f} eV"]
        xx, yy, zz, yz, xz, xy = atoms.calc.results["stress"]
        tensor = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
        lines += [
            "  |              Analytical stress tensor - Symmetrized               |",
            "  |   ",
            "  |   ",
        ]
        lines += ["  |                   x        y        z  |", "  |   "]
        lines += [
            f"  |  {axis} {row}  |" for axis, row in zip("xyz", rows(tensor, "16.8f"), strict=True)
        ]
        lines += ["  Total atomic forces (unitary forces cleaned) [eV/Ang]:"]
        lines += [
            f"  |  {i + 1:4d} {row}" for i, row in enumerate(rows(forces_of(atoms), "22.12f"))
        ]
        lines += ["  Atomic structure (and velocities) as used in the preceding time step:"]
        lines += [f"  lattice_vector   {row}" for row in rows(atoms.cell.array, "16.8f")]
        lines += [f"            atom   {row}  {symbol}" for symbol, row in _named(atoms, "16.8f")]
    path.write_text("\n".join([*lines, "", "          Have a nice day.", "-" * 60, ""]))


def _named(atoms: Atoms, form: str) -> list[tuple[str, str]]:
    return list(zip(atoms.get_chemical_symbols(), rows(atoms.positions, form), strict=True))


def write_cp2k(path: Path, frames: Frames) -> None:
    """Single points of CP2K, one after another."""
    path.write_text("".join(map(cp2k_run, frames)))


def cp2k_run(atoms: Atoms) -> str:
    lines = [" CP2K| version string:                                          CP2K version 9.1"]
    for axis, row in zip("abc", rows(atoms.cell.array, "10.3f"), strict=True):
        lines += [f" CELL| Vector {axis} [angstrom]:  {row}    |{axis}| = {BOX:10.3f}"]
    lines += [
        " CELL| Periodicity                                                           XYZ",
        "",
    ]
    lines += [" MODULE QUICKSTEP: ATOMIC COORDINATES IN ANGSTROM", ""]
    lines += [
        "   Atom Kind Element         X             Y             Z       Z(eff)     Mass",
        "",
    ]
    table = zip(atoms.numbers, _named(atoms, "14.6f"), strict=True)
    lines += [
        f"{i + 1:7d}    1 {s:2s} {z:3d} {row}    1.0000   1.0000"
        for i, (z, (s, row)) in enumerate(table)
    ]
    energy, forces = (
        energy_of(atoms) / CP2K["Hartree"],
        forces_of(atoms) / CP2K["Hartree"] * CP2K["Bohr"],
    )
    lines += [
        "",
        "",
        f" ENERGY| Total FORCE_EVAL ( QS ) energy [a.u.]:            {energy:20.15f}",
        "",
    ]
    lines += [
        " ATOMIC FORCES in [a.u.]",
        "",
        " # Atom   Kind   Element          X              Y              Z",
    ]
    lines += [f"{i + 1:7d}      1      O     {row}" for i, row in enumerate(rows(forces, "15.8f"))]
    return "\n".join(
        [*lines, " SUM OF ATOMIC FORCES           0.00000000     0.00000000     0.00000000", "", ""]
    )


def new_cp2k_run(atoms: Atoms) -> str:
    """The same in the words of 2024."""
    text = (
        cp2k_run(atoms)
        .replace("[a.u.]:  ", "[hartree]")
        .replace(" ATOMIC FORCES in", " FORCES| Atomic forces in")
    )
    head, _, _ = text.partition(" FORCES| Atomic forces in")
    forces = forces_of(atoms) / CP2K["Hartree"] * CP2K["Bohr"]
    lines = [
        " FORCES| Atomic forces [hartree/bohr]",
        " FORCES|   Atom     x               y               z        |f|",
    ]
    lines += [f" FORCES|{i + 1:7d} {row}  0.0E+00" for i, row in enumerate(rows(forces, "16.8E"))]
    return "\n".join([head, *lines, " FORCES|    Sum   0.0 0.0 0.0 0.0", ""])


Write = Callable[[Path, Frames], None]
FILES: dict[str, tuple[str, Write]] = {  # by the name of a file: its format, and what writes it
    "waters.xyz": ("xyz", write_xyz),
    "waters.aselmdb": ("lmdb", write_ase_lmdb),
    "train_0.h5": ("hdf5", write_hdf5),
    "old.hdf5": ("hdf5", write_old_hdf5),
    "waters.traj": ("ase", write_traj),
    "waters.db": ("ase", write_db),
    "OUTCAR": ("ase", write_outcar),
    "vasprun.xml": ("ase", write_vasprun),
    "relax.out": ("ase", write_pwscf),
    "aims.out": ("ase", write_aims),
    "points.log": ("ase", write_cp2k),
}
NO_STRESS = {"points.log"}
