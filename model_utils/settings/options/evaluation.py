"""Options of evaluate.py."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from dataloader.errors import InputError
from model_utils.settings.declared import OF_THE_COMMAND, panel
from model_utils.settings.option_types import NonNegative
from model_utils.settings.options.common import CommonOptions, DeviceOptions, TrustOptions
from model_utils.settings.options.data import (
    FORMAT_FLAGS,
    NAMES_OF_FORMATS,
    BatchOptions,
    FilterOptions,
    LabelOptions,
    check_format,
)
from model_utils.settings.options.physics import PhysicsOptions
from model_utils.settings.options.reporting import ReportOptions
from model_utils.settings.table_names import FORMS_OF_STEP


@panel("Loss that is printed", 30, nature=OF_THE_COMMAND)
@dataclass(frozen=True, kw_only=True)
class PrintedLossOptions:
    """Weights of the loss that is printed beside the errors."""

    energy_weight: NonNegative = 1.0
    """Weight of the energy in the loss that is printed."""
    forces_weight: NonNegative = 100.0
    """Weight of the forces in the loss that is printed."""
    stress_weight: NonNegative = 0.0
    """Weight of the stress in the loss that is printed."""
    quantity_weights: tuple[str, ...] = ()
    """Weights in the loss that is printed of quantities beside energy, forces and stress, as `dipole=10`: of those that the network or a plug-in gives."""


@panel("What is evaluated, and what is written", 5, nature=OF_THE_COMMAND)
@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Evaluate a trained model on labelled structures."""

    common: CommonOptions
    device: DeviceOptions
    batches: BatchOptions
    filters: FilterOptions
    labels: LabelOptions
    trust: TrustOptions
    input_model: tuple[Path, ...]
    """A `*_model.pt` (best weights) or `*_checkpoint.pt` (raw weights) of ours, a `.model` of mace, or safetensors; which was used is printed. Several models of one kind are a committee: judged is their mean, and how their spread compares with the error is printed and written; predictions have `mace_energy_std`, `mace_forces_std` (the standard deviation over the models, divided by their number) beside them."""
    input_json: Path | None = None
    """A model.json that the one inside the weights file must equal; needed where the file holds none (mace's training checkpoint)."""
    data_format: Annotated[str | None, NAMES_OF_FORMATS] = None
    """Format of the data; follows from the flag that names the files, or from these, unless given."""
    data: tuple[Path, ...] = ()
    """Data of any format, known by ending or content, as --train_file takes them: files, folders of them, patterns with * ? [ ]. Structures without labels (cif, POSCAR) are predicted and not compared."""
    xyz_path: tuple[Path, ...] = ()
    """Extended-XYZ files."""
    lmdb_path: tuple[Path, ...] = ()
    """LMDBs."""
    head: str | None = None
    """Head of the model that judges all structures, whatever head they name; by default each has the one that it names; of a model of several, a structure that names none is refused."""
    eval_on_free_atoms: bool = True
    """Where records say which atoms were held fixed, only force components of free atoms count."""
    loss: PrintedLossOptions
    physics_checks: PhysicsOptions
    step: Annotated[str, FORMS_OF_STEP] = "fast"
    """Form of the network's arithmetic, as in training."""
    output_json: Path | None = None
    """Write the metrics as JSON, metrics as top-level keys."""
    output_table: Path | None = None
    """Write a CSV with one row per structure: identifier, atoms, energies, force RMSE, largest force error, RMSE of every other labelled quantity."""
    output_xyz: Path | None = None
    """Write the structures with predictions (`mace_energy`, `mace_forces`, `mace_stress`) beside labels (`REF_…`)."""
    atom_energies: bool = False
    """Write the energies of atoms into --output_xyz (`mace_node_energies`, eV): E0s are in, so that they sum to `mace_energy`; of a committee with their standard deviation. A forward pass more."""
    reporting: ReportOptions
    overwrite: bool = False
    """Replace an output file that is already there."""

    def __post_init__(self) -> None:
        if sum(map(bool, (self.data, self.xyz_path, self.lmdb_path))) != 1:
            raise InputError(
                "name the data with either --xyz_path or --lmdb_path, or with --data alone"
            )
        check_format(self.data_format, xyz=self.xyz_path, lmdb=self.lmdb_path)
        if not self.input_model:
            raise InputError(
                "--input_model names no file; expected a weights file, or several for a committee"
            )
        if self.atom_energies and self.output_xyz is None:
            raise InputError(
                "--atom_energies is given without --output_xyz, into which they go; add "
                "it, or leave it out"
            )

    def files(self) -> tuple[tuple[str | None, Path], ...]:
        """The files, each with its format where that is given."""
        flags = [*((name, f"{name}_path") for name in FORMAT_FLAGS), (self.data_format, "data")]
        return tuple((name, path) for name, flag in flags for path in getattr(self, flag))
