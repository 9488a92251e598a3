"""Options of data: files, names of labels, which structures are used, how they are batched."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from dataloader.errors import InputError
from model_utils.settings.declared import FIXED, MAY_CHANGE, ONLY_IN_YAML, InResume, panel
from model_utils.settings.option_types import (
    Count,
    CountOrAuto,
    Fraction,
    NonNegative,
    NonNegativeInt,
    Positive,
    Ratio,
)
from model_utils.settings.options.splits import SplitOptions
from model_utils.settings.table_names import NamesOf

Role = Literal["train", "val", "test"]
FORMAT_FLAGS = ("xyz", "lmdb")  # formats with flags of their own, as --xyz_train
# of any format
GENERAL_FLAGS: dict[Role, str] = {"train": "train_file", "val": "valid_file", "test": "test_file"}


def flags_of(role: Role) -> tuple[str, ...]:
    """Every flag that names files of a role."""
    return (GENERAL_FLAGS[role], *(f"{name}_{role}" for name in FORMAT_FLAGS))


NAMES_OF_FORMATS = NamesOf("dataloader.formats", "FORMATS")


@panel("Names of the labels", 12)
@dataclass(frozen=True, kw_only=True)
class LabelOptions:
    """Names of the labels in the data."""

    energy_key: Annotated[str | None, FIXED] = None
    """Name of the energy (eV, whole configuration). Unless given: REF_energy, energy, y; two that disagree are an error."""
    forces_key: Annotated[str | None, FIXED] = None
    """Name of the forces (eV/Å). Unless given: REF_forces, forces, force."""
    stress_key: Annotated[str | None, FIXED] = None
    """Name of the stress (eV/Å³, ASE's sign; 3×3, nine or six numbers). Unless given: REF_stress, stress, or a virial, which is converted. `none`, here as for the other labels: it is not looked for."""
    charge_key: Annotated[str | None, FIXED] = None
    """Name of the charge of the whole structure. Unless given: total_charge, charge. `none`: charges are of no matter."""
    spin_key: Annotated[str | None, FIXED] = None
    """Name of the spin multiplicity 2S + 1. Unless given: total_spin, spin, multiplicity, spin_multiplicity. `none`: as above."""
    free_energy: Annotated[bool, FIXED] = False
    """Take the free energy as the energy where no energy name is given."""
    label_keys: Annotated[tuple[str, ...], FIXED] = ()
    """Names of the labels of quantities beside energy, forces and stress, as `dipole=REF_dipole`: of networks of dipoles, and of what a plug-in adds. `dipole_unit=Debye` beside it is converted; e·Å unless stated. pack.py keeps such labels where they are named here."""

    def __post_init__(self) -> None:
        for name in ("energy_key", "forces_key", "stress_key", "charge_key", "spin_key"):
            if getattr(self, name) == "":
                raise InputError(f"--{name} is empty; give the label's name, or leave the flag out")


@panel("Which structures are used", 14)
@dataclass(frozen=True, kw_only=True)
class FilterOptions:
    """Which structures are used."""

    elements: Annotated[tuple[str, ...], FIXED] = ()
    """Keep only structures made of these elements (symbols, atomic numbers, or `oc22` for the 57 of OC22) and count the others. Unless given, an element that model.json lacks is an error."""
    max_dropped: Annotated[Fraction, MAY_CHANGE] = 0.001
    """Largest share of an LMDB's records that may be faulty (missing label, NaN, broken cell); they are listed, more is an error. In xyz files the first faulty frame is an error."""
    max_atoms: Annotated[Count | None, FIXED] = None
    """Leave out structures with more atoms, and count them."""
    max_force: Annotated[Positive | None, FIXED] = None
    """Leave out structures with a force (length, eV/Å) above it, and count them."""
    max_neighbors: Annotated[Count, MAY_CHANGE] = 500
    """Largest mean number of neighbours per atom that a structure may have; more is taken for a broken cell and is an error. A long r_max in a dense solid needs more."""
    drop_charged: Annotated[bool, FIXED] = False
    """Leave out structures with a charge or spin for which the model has no input, and count them; unless given, they are an error (`--charge_key none --spin_key none`: they are taken as they are)."""
    verify: Annotated[bool, MAY_CHANGE] = False
    """Compare the sha256 of every LMDB with that of the first run with this flag, before anything is read from it."""


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """One entry of the YAML's list of sources: a file with settings of its own."""

    path: Path
    """The file."""
    role: Role = "train"
    """What it is for."""
    format: str | None = None
    """xyz, lmdb, hdf5, ase or one that a plug-in adds; by ending or content unless given."""
    head: str | None = None
    """Head of the model for structures that name none."""
    head_of_all: bool | None = None
    """The head is also of structures that name another."""
    weight: NonNegative = 1.0
    """Multiplies the weight of every structure of the file."""
    ratio: Ratio | None = None
    """Structures of this file in an epoch for each one of the files without a ratio: drawn by (seed, epoch), each equally often."""
    energy_key: str | None = None
    """As --energy_key, for this file; `auto` looks for the usual names whatever --energy_key says."""
    forces_key: str | None = None
    """As --forces_key, for this file."""
    stress_key: str | None = None
    """As --stress_key, for this file."""
    charge_key: str | None = None
    """As --charge_key, for this file."""
    spin_key: str | None = None
    """As --spin_key, for this file."""

    def __post_init__(self) -> None:
        if self.ratio is not None and self.role != "train":
            raise InputError(f"ratio of {self.path}: only files to train on have one; leave it out")
        if self.format is not None:
            try:
                NAMES_OF_FORMATS.checked(self.format)
            except ValueError as error:
                raise InputError(f"format of {self.path}: {error}") from None


@panel("Data", 10)
@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Training, validation and test data."""

    filters: FilterOptions
    labels: LabelOptions
    splits: SplitOptions
    data_format: Annotated[str | None, NAMES_OF_FORMATS, MAY_CHANGE] = None
    """Format of the data; follows from the flags that name files, or from these, unless given."""
    train_file: Annotated[
        tuple[Path, ...],
        MAY_CHANGE,
        InResume("Where the training data are now; they must be the same."),
    ] = ()
    """Data of any format to train on, known by ending or content: extended XYZ, LMDBs, HDF5 of mace_prepare_data, files of ASE (.traj, .db), outputs of VASP (OUTCAR, vasprun.xml), Quantum Espresso, CP2K, FHI-aims; files, folders of them, patterns with * ? [ ]."""
    valid_file: Annotated[
        tuple[Path, ...],
        MAY_CHANGE,
        InResume("Where the validation data are now."),
    ] = ()
    """Data of any format to validate on."""
    test_file: Annotated[
        tuple[Path, ...],
        MAY_CHANGE,
        InResume("Test data; they may be others."),
    ] = ()
    """Data of any format to test the best model on at the end."""
    xyz_train: Annotated[
        tuple[Path, ...],
        MAY_CHANGE,
        InResume("Where the training data are now; they must be the same."),
    ] = ()
    """Extended-XYZ files to train on."""
    xyz_val: Annotated[
        tuple[Path, ...],
        MAY_CHANGE,
        InResume("Where the validation data are now."),
    ] = ()
    """Extended-XYZ files to validate on."""
    xyz_test: Annotated[
        tuple[Path, ...],
        MAY_CHANGE,
        InResume("Test data; they may be others."),
    ] = ()
    """Extended-XYZ files to test the best model on at the end."""
    lmdb_train: Annotated[
        tuple[Path, ...],
        MAY_CHANGE,
        InResume("Where the training data are now; they must be the same."),
    ] = ()
    """LMDBs to train on: files, directories of shards, patterns with * ? [ ], packed data sets."""
    lmdb_val: Annotated[
        tuple[Path, ...],
        MAY_CHANGE,
        InResume("Where the validation data are now."),
    ] = ()
    """LMDBs to validate on."""
    lmdb_test: Annotated[
        tuple[Path, ...],
        MAY_CHANGE,
        InResume("Test data; they may be others."),
    ] = ()
    """LMDBs to test the best model on at the end."""
    lmdb_train_samples: Annotated[Count | None, FIXED] = None
    """Train on so many records of the LMDBs, drawn by --seed."""
    lmdb_val_samples: Annotated[Count | None, FIXED] = None
    """Validate on so many records of the validation LMDBs, drawn by --seed."""
    sources: Annotated[tuple[SourceOptions, ...], MAY_CHANGE, ONLY_IN_YAML] = ()
    """Only in the YAML: a list of files with settings of their own: `path`, `role` (train, val, test), `format`, `head`, `head_of_all` (also of structures that name another), `weight`, `ratio`, `energy_key`, `forces_key`, `stress_key`, `charge_key`, `spin_key`."""
    head: Annotated[str | None, FIXED] = None
    """Head of the model for structures whose record and source name none."""
    valid_fraction: Annotated[Fraction, FIXED] = 0.1
    """Share of the training structures set aside for validation where no validation data are named; drawn by --seed, their names are saved. Of a file with a ratio, no larger a part than an epoch has."""
    config_type_weights: Annotated[tuple[str, ...], FIXED] = ()
    """Weights in the loss of structures by their `config_type`, as `bulk=2 surface=0.5`; they multiply those that the records and sources give. 1 for all others. Metrics have no weights."""
    train_on_free_atoms: Annotated[bool, FIXED] = True
    """Where records say which atoms were held (`fixed`, `move_mask`, constraints of ASE that hold atoms), only the force components of free atoms count in the loss."""
    eval_on_free_atoms: Annotated[bool, FIXED] = True
    """In validation and test metrics, too, only the force components of free atoms count."""
    allow_missing_labels: Annotated[bool, FIXED] = False
    """Take structures that lack a label whose loss weight is not 0; each counts in the terms it has labels for, and the numbers are printed."""

    def check(self) -> None:
        """Refuse data that contradict one another, or none to train on.

        Raises:
            InputError: naming the flags.
        """
        of_flags = {
            name: tuple(path for role in GENERAL_FLAGS for path in getattr(self, f"{name}_{role}"))
            for name in FORMAT_FLAGS
        }
        check_format(self.data_format, **of_flags)
        trained_on = self.files("train")
        if not trained_on:
            flags = " or ".join(f"--{name}_train" for name in FORMAT_FLAGS)
            raise InputError(f"no training data: name them with {flags}, or with --train_file")
        if all(source.ratio is not None for source in trained_on):
            raise InputError(
                "every source has a ratio, and none is what they relate to; leave it "
                "out of one of them"
            )

    def files(self, role: Role) -> tuple[SourceOptions, ...]:
        """The files of one role, whichever flag or list names them; nobody else
        knows the flags' names.
        """
        general = GENERAL_FLAGS[role]
        flags = [*((name, f"{name}_{role}") for name in FORMAT_FLAGS), (self.data_format, general)]
        named = [
            SourceOptions(path=path, role=role, format=name)
            for name, flag in flags
            for path in getattr(self, flag)
        ]
        return (*named, *(source for source in self.sources if source.role == role))


@panel("Batches", 16)
@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """How structures are grouped."""

    batch_size: Annotated[Count | None, FIXED] = None
    """Structures per batch; 10 unless a budget below is given."""
    max_atoms_per_batch: Annotated[Count | None, FIXED] = None
    """Budget of atoms per batch."""
    max_edges_per_batch: Annotated[CountOrAuto | None, FIXED] = None
    """Budget of directed edges per batch, the best measure of memory; `auto` measures how many the device's memory holds, and the run keeps that number. With --batch_size both limits hold."""
    num_workers: Annotated[NonNegativeInt, MAY_CHANGE] = 0
    """Processes that read and prepare batches beside the main one."""


def check_format(data_format: str | None, **paths: tuple[Path, ...]) -> None:
    """Refuse a stated format beside files that a flag of another format names.

    Raises:
        InputError: naming the first file.
    """
    for name, given in paths.items():
        if given and data_format is not None and data_format != name:
            raise InputError(
                f"--data_format {data_format} but {given[0]} was given by a --{name}_… flag; "
                "drop one of the two"
            )
