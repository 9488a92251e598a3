"""Every setting of every command: declared once, with type, default and help."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from dataloader.errors import InputError
from model_utils.settings.option_types import Duration, finite_number, whole_number, whole_number_or_auto

Int = Annotated[int, Parameter(converter=whole_number)]
CountOrAuto = Annotated[int | Literal["auto"], Parameter(converter=whole_number_or_auto)]
Count = Annotated[int, Parameter(converter=whole_number, validator=Number(gte=1, lt=2**53))]
NonNegativeInt = Annotated[int, Parameter(converter=whole_number, validator=Number(gte=0, lt=2**53))]
Positive = Annotated[float, Parameter(converter=finite_number, validator=Number(gt=0))]
Rate = Annotated[float, Parameter(converter=finite_number, validator=Number(gt=0, lte=1e30))]  # a float32 holds 3e38
Threads = Annotated[int, Parameter(converter=whole_number, validator=Number(gte=1, lte=4096))]
NonNegative = Annotated[float, Parameter(converter=finite_number, validator=Number(gte=0))]
Fraction = Annotated[float, Parameter(converter=finite_number, validator=Number(gte=0, lt=1))]
# of structures in an epoch, whose order is made in memory
Ratio = Annotated[float, Parameter(converter=finite_number, validator=Number(gt=0, lte=1000))]
Decay = Annotated[float, Parameter(converter=finite_number, validator=Number(gt=0, lt=1))]


Role = Literal["train", "val", "test"]
FORMAT_FLAGS = ("xyz", "lmdb")  # formats with flags of their own, as --xyz_train
GENERAL_FLAGS: dict[Role, str] = {"train": "train_file", "val": "valid_file", "test": "test_file"}  # of any format


@dataclass(frozen=True, kw_only=True)
class CommonOptions:
    """What every command takes."""

    config: Path | None = None
    """YAML file of settings: a key is a flag without its dashes. Flags win over it, in any order; relative paths in it are relative to the file."""
    debug: bool = False
    """Show the traceback behind a one-line error."""


@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    """Where and in which precision to compute."""

    device: str = "auto"
    """`cpu`, `cuda`, `cuda:N`, or `auto`: CUDA where there is one."""
    dtype: Literal["float32", "float64"] | None = None
    """Working precision. Training from a model.json: float32 unless given; otherwise that of the weights file. Energies and sums of E0 are always formed in float64."""
    threads: Threads | None = None
    """CPU threads of one process; torch's choice unless given. Recorded, since another number may change the last bits."""


@dataclass(frozen=True, kw_only=True)
class TrustOptions:
    """Whether code in a file may run."""

    trust_pickle: bool = False
    """Where the model cannot be read as data, for its classes are not mace's or its form is torch's old one: execute the code in the file, with your rights, in a process of its own. For files of people you trust; the sha256 is printed."""


@dataclass(frozen=True, kw_only=True)
class LabelOptions:
    """Names of the labels in the data."""

    energy_key: str | None = None
    """Name of the energy (eV, whole configuration). Unless given: REF_energy, energy, y; two that disagree are an error."""
    forces_key: str | None = None
    """Name of the forces (eV/Å). Unless given: REF_forces, forces, force."""
    stress_key: str | None = None
    """Name of the stress (eV/Å³, ASE's sign; 3×3, nine or six numbers). Unless given: REF_stress, stress, or a virial, which is converted. `none`, here as for the other labels: it is not looked for."""
    charge_key: str | None = None
    """Name of the charge of the whole structure. Unless given: total_charge, charge. `none`: charges are of no matter."""
    spin_key: str | None = None
    """Name of the spin multiplicity 2S + 1. Unless given: total_spin, spin, multiplicity, spin_multiplicity. `none`: as above."""
    free_energy: bool = False
    """Take the free energy as the energy where no energy name is given."""
    label_keys: tuple[str, ...] = ()
    """Names of the labels of quantities that a plug-in adds, as `dipole=REF_dipole`."""


@dataclass(frozen=True, kw_only=True)
class FilterOptions:
    """Which structures are used."""

    elements: tuple[str, ...] = ()
    """Keep only structures made of these elements (symbols, atomic numbers, or `oc22` for the 57 of OC22) and count the others. Unless given, an element that model.json lacks is an error."""
    max_dropped: Fraction = 0.001
    """Largest share of an LMDB's records that may be faulty (missing label, NaN, broken cell); they are listed, more is an error. In xyz files the first faulty frame is an error."""
    max_atoms: Count | None = None
    """Leave out structures with more atoms, and count them."""
    max_force: Positive | None = None
    """Leave out structures with a force (length, eV/Å) above it, and count them."""
    max_neighbors: Count = 500
    """Largest mean number of neighbours per atom that a structure may have; more is taken for a broken cell and is an error. A long r_max in a dense solid needs more."""
    drop_charged: bool = False
    """Leave out structures with a charge or spin for which the model has no input, and count them; unless given, they are an error (`--charge_key none --spin_key none`: they are taken as they are)."""
    verify: bool = False
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
        _check_format_name(self.format, f"format of {self.path}")


@dataclass(frozen=True, kw_only=True)
class TrainDataOptions(LabelOptions, FilterOptions):
    """Training, validation and test data."""

    data_format: str | None = None
    """Format of the data: xyz, lmdb, hdf5, ase or one that a plug-in adds; follows from the flags that name files, or from these, unless given."""
    train_file: tuple[Path, ...] = ()
    """Data of any format to train on, known by ending or content: extended XYZ, LMDBs, HDF5 of mace_prepare_data, files of ASE (.traj, .db), outputs of VASP (OUTCAR, vasprun.xml), Quantum Espresso, CP2K, FHI-aims; files, folders of them, patterns with * ? [ ]."""
    valid_file: tuple[Path, ...] = ()
    """The same to validate on."""
    test_file: tuple[Path, ...] = ()
    """The same to test the best model on at the end."""
    xyz_train: tuple[Path, ...] = ()
    """Extended-XYZ files to train on."""
    xyz_val: tuple[Path, ...] = ()
    """Extended-XYZ files to validate on."""
    xyz_test: tuple[Path, ...] = ()
    """Extended-XYZ files to test the best model on at the end."""
    lmdb_train: tuple[Path, ...] = ()
    """LMDBs to train on: files, directories of shards, patterns with * ? [ ], packed data sets."""
    lmdb_val: tuple[Path, ...] = ()
    """LMDBs to validate on."""
    lmdb_test: tuple[Path, ...] = ()
    """LMDBs to test the best model on at the end."""
    lmdb_train_samples: Count | None = None
    """Train on so many records of the LMDBs, drawn by --seed."""
    lmdb_val_samples: Count | None = None
    """Validate on so many records of the validation LMDBs, drawn by --seed."""
    sources: Annotated[tuple[SourceOptions, ...], Parameter(show=False)] = ()
    """Only in the YAML: a list of files with settings of their own: `path`, `role` (train, val, test), `format`, `head`, `weight`, `ratio`, `energy_key`, `forces_key`, `stress_key`, `charge_key`, `spin_key`."""
    head: str | None = None
    """Head of the model for structures whose record and source name none."""
    valid_fraction: Fraction = 0.1
    """Share of the training structures set aside for validation where no validation data are named; drawn by --seed, their names are saved. Of a file with a ratio, no larger a part than an epoch has."""
    train_on_free_atoms: bool = True
    """Where records say which atoms were held (`fixed`, `move_mask`, ASE's FixAtoms and FixCartesian), only the force components of free atoms count in the loss."""
    eval_on_free_atoms: bool = True
    """The same for validation and test metrics."""
    allow_missing_labels: bool = False
    """Take structures that lack a label whose loss weight is not 0; each counts in the terms it has labels for, and the numbers are printed."""

    def files(self, role: Role) -> tuple[SourceOptions, ...]:
        """The files of one role, whichever flag or list names them; nobody else knows the flags' names."""
        general = GENERAL_FLAGS[role]
        flags = [*((name, f"{name}_{role}") for name in FORMAT_FLAGS), (self.data_format, general)]
        named = [
            SourceOptions(path=path, role=role, format=name) for name, flag in flags for path in getattr(self, flag)
        ]
        return (*named, *(source for source in self.sources if source.role == role))


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """How structures are grouped."""

    batch_size: Count | None = None
    """Structures per batch; 10 unless a budget below is given."""
    max_atoms_per_batch: Count | None = None
    """Budget of atoms per batch."""
    max_edges_per_batch: CountOrAuto | None = None
    """Budget of directed edges per batch, the best measure of memory; `auto` measures how many the device's memory holds, and the run keeps that number. With --batch_size both limits hold."""
    num_workers: NonNegativeInt = 0
    """Processes that read and prepare batches beside the main one."""


@dataclass(frozen=True, kw_only=True)
class LossOptions:
    """Weights and shapes of the loss terms."""

    energy_weight: NonNegative = 1.0
    """Weight of the mean over configurations of the loss of (ΔE / atoms)."""
    forces_weight: NonNegative = 100.0
    """Weight of the mean over force components."""
    stress_weight: NonNegative = 0.0
    """Weight of the mean over the nine stress components; 0: stress is not trained."""
    energy_loss: Literal["mse", "huber", "mae"] = "mse"
    """Shape of the energy term."""
    forces_loss: Literal["mse", "huber", "mae", "l2norm"] = "mse"
    """Shape of the forces term; l2norm is the mean over atoms of the length of the force error."""
    stress_loss: Literal["mse", "huber", "mae"] = "mse"
    """Shape of the stress term."""
    quantity_weights: tuple[str, ...] = ()
    """Weights of the terms of quantities that a plug-in adds, as `dipole=10`; 0 unless given."""
    quantity_losses: tuple[str, ...] = ()
    """Shapes of these terms, as `dipole=huber`; mse unless given."""
    huber_delta: Positive = 0.01
    """Where Huber turns from square to linear, in eV/atom, eV/Å and eV/Å³."""


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions:
    """How the weights are moved."""

    optimizer: Literal["adam", "adamw"] = "adam"
    """adam adds weight decay to the gradient, adamw takes it from the weight."""
    lr: Rate = 0.01
    """Learning rate."""
    weight_decay: Annotated[float, Parameter(converter=finite_number, validator=Number(gte=0, lte=1e30))] = 5e-7
    """Weight decay; never on biases, norms, scales, shifts and scalars."""
    amsgrad: bool = True
    """Keep the largest second moment (Reddi et al. 2018), as mace does."""
    beta1: Decay = 0.9
    """Decay of the first moment."""
    beta2: Decay = 0.999
    """Decay of the second moment."""
    freeze: tuple[str, ...] = ()
    """Leave parameters as they are: patterns of names, for example `node_embedding.*` `interactions.0.*`."""
    lr_of: tuple[str, ...] = ()
    """Learning rates of their own: `PATTERN=RATE`, for example `readouts.*=0.001`; the schedule acts on all alike."""
    clip_grad: NonNegative = 10.0
    """Largest norm of the gradient; 0 does not clip."""
    accumulate_batches: Count = 1
    """Batches per optimizer step; the loss is that of one large batch."""
    scheduler: Literal["plateau", "step", "exponential", "cosine", "onecycle", "constant"] = "plateau"
    """Learning-rate schedule."""
    scheduler_unit: Literal["epoch", "step"] = "epoch"
    """Whether schedule and warm-up count epochs or optimizer steps."""
    scheduler_patience: NonNegativeInt = 50
    """plateau: validations without a lower loss before the rate is reduced."""
    lr_factor: Annotated[float, Parameter(converter=finite_number, validator=Number(gt=0, lte=1))] = 0.8
    """plateau and step: factor of a reduction."""
    lr_step: Count = 100
    """step: epochs or steps between reductions."""
    lr_gamma: Annotated[float, Parameter(converter=finite_number, validator=Number(gt=0, lte=1))] = 0.9993
    """exponential: factor per epoch or step."""
    min_lr: NonNegative = 0.0
    """Lower end of every schedule."""
    warmup: NonNegative = 0.0
    """Length of the linear warm-up in epochs or steps; onecycle takes 30 % of the run unless given."""
    ema: bool = False
    """Keep an exponential moving average of the weights; validation, the best model and schedules then look at it."""
    ema_decay: Decay = 0.99
    """Decay of the average."""


@dataclass(frozen=True, kw_only=True)
class StageTwoOptions:
    """A second stage with other loss weights and rate (mace's SWA stage)."""

    stage_two: bool = False
    """Train a second stage; its best model becomes the model of the run, stage one's is kept under its own name."""
    start_stage_two: Count | None = None
    """Epochs of stage one; three quarters of all unless given."""
    stage_two_lr: Rate = 0.001
    """Learning rate of stage two."""
    stage_two_energy_weight: NonNegative = 1000.0
    """Energy weight of stage two."""
    stage_two_forces_weight: NonNegative = 100.0
    """Forces weight of stage two."""
    stage_two_stress_weight: NonNegative | None = None
    """Stress weight of stage two; that of stage one unless given."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How long, how often, with which seed."""

    epochs: Count = 100
    """Passes over the training data."""
    max_steps: Count | None = None
    """Stop after this many optimizer steps, whatever the epoch."""
    patience: Count | None = None
    """Stop (or go on to stage two) after this many validations without a lower loss."""
    seed: NonNegativeInt = 123
    """Seed of initial weights, order and split."""
    step: Literal["fast", "reference", "cueq", "oeq"] = "fast"
    """Form of the network's arithmetic: `fast` does the same in less time, on the same weights; `reference` is mace-torch's own module; `cueq` and `oeq` are its modules over cuequivariance and openequivariance, for CUDA, compared with the reference on the first batch. A network that the fast one does not cover runs the reference, and the log says so."""
    deterministic: bool = False
    """On CUDA: only operations whose sums have a fixed order, at some cost. The CPU's always have."""
    validate_every: Count = 1
    """Epochs between validations."""
    validate_every_steps: Count | None = None
    """Optimizer steps between validations, in place of epochs."""
    checkpoint_every_steps: Count | None = None
    """Optimizer steps between checkpoints, besides the one after each epoch."""
    checkpoint_every_minutes: Positive | None = None
    """Minutes between checkpoints, besides the one after each epoch."""
    log_every_steps: Count | None = None
    """Optimizer steps between records in metrics.jsonl, besides those of each epoch."""
    time_limit: Duration | None = None
    """Stop in time, saved and with exit code 75, when the run has lasted so long: minutes, or HH:MM:SS."""
    tensorboard: bool = False
    """Write TensorBoard events beside the checkpoint."""
    dry_run: bool = False
    """Build everything, take one step on the largest batch, print sizes, memory and time, write nothing."""


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Where the run writes."""

    output_checkpoint: Path
    """A directory `run/` for `run/run_checkpoint.pt`, or a file ending in .pt or .pth."""
    output_model: Path | None = None
    """The same for the best model, `run/run_model.pt`; beside the checkpoint unless given."""
    overwrite: bool = False
    """Start although the place holds another run's files; they are removed when training begins."""
    resume: Literal["auto"] | None = None
    """auto: continue the run that lies at the output place, or start it where there is none."""
    export_mace_model: bool = True
    """At the end also write `<name>.model`, the bare module that mace's calculator opens."""


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(
    OutputOptions,
    RunOptions,
    StageTwoOptions,
    OptimizerOptions,
    LossOptions,
    BatchOptions,
    TrainDataOptions,
    DeviceOptions,
    CommonOptions,
):
    """Everything of a training but where the network comes from."""

    def __post_init__(self) -> None:
        _check_data(self)
        _check_run(self)


@dataclass(frozen=True, kw_only=True)
class TrainOptions(TrainingOptions):
    """Train a MACE model from a model.json."""

    input_json: Path
    """Description of the network; ten lines are enough, `metadata.py init` writes one from data."""


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions(TrustOptions, TrainingOptions):
    """Train on from the weights of another model, with its structure."""

    input_model: Path
    """A `*_model.pt` (best weights) or `*_checkpoint.pt` (raw weights) of ours, a `.model` of mace, or safetensors."""
    input_json: Path | None = None
    """A model.json that the one of the weights must equal; needed where the file holds none."""
    add_head: str | None = None
    """Give the network a further head of this name, a copy of one of the source's with its E0s. Which structures are of it say the records (`head`) or the YAML's list of sources; of a source with one head, all others are of that one."""
    copy_head: str | None = None
    """Head of the source that --add_head or a new --replay_head copies; its first unless given."""
    replay: Path | None = None
    """Data, of any format, of what the source was trained on, replayed beside the new data so that fine-tuning does not forget. Labels have the usual names; the YAML's list of sources says everything else."""
    replay_ratio: Ratio = 1.0
    """Replayed structures in an epoch for each one of the new data."""
    replay_weight: NonNegative = 1.0
    """Weight of a replayed structure in the loss."""
    replay_labels: Literal["file", "source"] = "file"
    """Where labels of replayed structures come from: their file, or `source`: the source model computes them before training; they are kept as `<name>_replay.xyz`."""
    replay_head: str = "replay"
    """Head of the replayed structures: a new name becomes a copy of the source's head with its E0s; the source's own name trains one head on both, where E0s are unchanged."""
    E0s: str = "keep"
    """Reference energies: `keep` the source's, `shift` them by a least-squares fit of its errors on the training data, head by head, `isolated` takes those of the data's IsolatedAtom frames; or an xyz file of isolated atoms or JSON by element, for all of the source's own heads, or by head and element. A replayed head keeps the source's. Changes are printed."""
    lr: Rate = 1e-4
    """Learning rate; small, or the source is forgotten in the first steps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.copy_head is not None and self.add_head is None and self.replay is None:
            raise InputError("--copy_head is given but no new head; name it with --add_head")
        for name in ("add_head", "copy_head", "replay_head"):
            if getattr(self, name) == "":
                raise InputError(f"--{name} is empty; give the head's name, or leave the flag out")
        trained_on = [source.path for source in self.files("train")]
        if self.replay is not None and self.replay_labels == "file" and self.replay in trained_on:
            raise InputError(
                f"--replay {self.replay} is what the run trains on already; name data that the source was trained on, "
                "or let it label them anew with --replay_labels source"
            )
        if self.replay is not None and self.add_head is not None:
            raise InputError("--replay adds a head of its own, which --replay_head names; leave --add_head out")
        for name in ("ratio", "weight", "labels", "head"):
            if self.replay is None and getattr(self, f"replay_{name}") != getattr(FinetuneOptions, f"replay_{name}"):
                raise InputError(f"--replay_{name} is given but not what to replay; name it with --replay")


@dataclass(frozen=True, kw_only=True)
class ResumeOptions(CommonOptions):
    """Continue a run from its checkpoint. Only what is named here may change; everything else stays as the run has it."""

    input_model: Path
    """The run's directory, or its `*_checkpoint.pt`: the newest generation that is not damaged is taken."""
    output_checkpoint: Path | None = None
    """Continue at another place, which then gets the best models and records so far; at its own unless given."""
    output_model: Path | None = None
    """The same for the best model."""
    epochs: Count | None = None
    """Passes over the training data in all, those done included. Without --lr or --reset_scheduler cosine and onecycle keep the end they had and hold their last rate, which must not be 0."""
    max_steps: Count | None = None
    """Optimizer steps in all, those done included."""
    patience: Count | None = None
    """Validations without a lower loss after which the run ends."""
    lr: Rate | None = None
    """Rate of the next step; later ones follow the schedule from there, and cosine and onecycle come down to --min_lr where the run now ends. A warm-up ends. The optimizer's moments are kept."""
    resume_new_lr: bool = False
    """Accepted with --lr, which does it alone."""
    reset_scheduler: bool = False
    """Begin the schedule anew, with its warm-up, from the rate of --lr where that is given; cosine and onecycle then end where the run now ends."""
    resume_reset_scheduler: bool = False
    """The same."""
    resume_best: bool = False
    """Go on from the best weights instead of the last ones, with fresh moments."""
    ema: bool | None = None
    """Begin (`--ema`, from the weights of now) or end (`--no_ema`) the moving average."""
    xyz_train: tuple[Path, ...] = ()
    """Where the training data are now; they must be the same."""
    xyz_val: tuple[Path, ...] = ()
    """Where the validation data are now."""
    xyz_test: tuple[Path, ...] = ()
    """Test data; they may be others."""
    lmdb_train: tuple[Path, ...] = ()
    """Where the training data are now; they must be the same."""
    lmdb_val: tuple[Path, ...] = ()
    """Where the validation data are now."""
    lmdb_test: tuple[Path, ...] = ()
    """Test data; they may be others."""
    train_file: tuple[Path, ...] = ()
    """Where the training data are now; they must be the same."""
    valid_file: tuple[Path, ...] = ()
    """Where the validation data are now."""
    test_file: tuple[Path, ...] = ()
    """Test data; they may be others."""
    max_neighbors: Count | None = None
    """As in training."""
    device: str | None = None
    """As in training."""
    threads: Threads | None = None
    """As in training."""
    num_workers: NonNegativeInt | None = None
    """As in training."""
    deterministic: bool | None = None
    """As in training."""
    checkpoint_every_steps: Count | None = None
    """As in training."""
    checkpoint_every_minutes: Positive | None = None
    """As in training."""
    time_limit: Duration | None = None
    """As in training; the limit of the stored run does not count."""
    tensorboard: bool | None = None
    """As in training."""

    def __post_init__(self) -> None:
        if self.resume_new_lr and self.lr is None:
            raise InputError("--resume_new_lr needs the new rate: add --lr")


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(TrustOptions, LabelOptions, FilterOptions, BatchOptions, DeviceOptions, CommonOptions):
    """Evaluate a trained model on labelled structures."""

    input_model: Path
    """A `*_model.pt` (best weights) or `*_checkpoint.pt` (raw weights) of ours, a `.model` of mace, or safetensors; which was used is printed."""
    input_json: Path | None = None
    """A model.json that the one inside the weights file must equal; needed where the file holds none (mace's training checkpoint)."""
    data_format: str | None = None
    """Format of the data: xyz, lmdb, hdf5, ase or one that a plug-in adds; follows from the flag that names the files, or from these, unless given."""
    data: tuple[Path, ...] = ()
    """Data of any format, known by ending or content, as --train_file takes them: files, folders of them, patterns with * ? [ ]. Structures without labels (cif, POSCAR) are predicted and not compared."""
    xyz_path: tuple[Path, ...] = ()
    """Extended-XYZ files."""
    lmdb_path: tuple[Path, ...] = ()
    """LMDBs."""
    head: str | None = None
    """Head of the model for structures that name none."""
    eval_on_free_atoms: bool = True
    """Where records say which atoms were held fixed, only force components of free atoms count."""
    energy_weight: NonNegative = 1.0
    """Weight of the energy in the loss that is printed."""
    forces_weight: NonNegative = 100.0
    """Weight of the forces in the loss that is printed."""
    stress_weight: NonNegative = 0.0
    """Weight of the stress in the loss that is printed."""
    quantity_weights: tuple[str, ...] = ()
    """Weights of quantities that a plug-in adds in the loss that is printed, as `dipole=10`."""
    step: Literal["fast", "reference", "cueq", "oeq"] = "fast"
    """Form of the network's arithmetic, as in training."""
    output_json: Path | None = None
    """Write the metrics as JSON, metrics as top-level keys."""
    output_table: Path | None = None
    """Write a CSV with one row per structure: identifier, atoms, energies, force RMSE, largest force error."""
    output_xyz: Path | None = None
    """Write the structures with predictions (`mace_energy`, `mace_forces`, `mace_stress`) beside labels (`REF_…`)."""
    overwrite: bool = False
    """Replace an output file that is already there."""

    def __post_init__(self) -> None:
        if sum(map(bool, (self.data, self.xyz_path, self.lmdb_path))) != 1:
            raise InputError("name the data with either --xyz_path or --lmdb_path, or with --data alone")
        _check_format(self.data_format, xyz=self.xyz_path, lmdb=self.lmdb_path)

    def files(self) -> tuple[tuple[str | None, Path], ...]:
        """The files, each with its format where that is given."""
        flags = [*((name, f"{name}_path") for name in FORMAT_FLAGS), (self.data_format, "data")]
        return tuple((name, path) for name, flag in flags for path in getattr(self, flag))


@dataclass(frozen=True, kw_only=True)
class MetadataOptions(TrainDataOptions, CommonOptions):
    """What every command that measures data takes."""

    output_json: Path
    """Where the complete model.json goes."""
    overwrite: bool = False
    """Replace it where it is there already."""
    E0s: str = "auto"
    """Reference energies: `isolated` (IsolatedAtom frames), `lstsq` (least squares), `average` (the same where compositions do not determine all), `auto` (the first of these that works), an xyz file of isolated atoms, or JSON by element, by head and element where there are several heads."""
    linear_references: Path | None = None
    """JSON of linear reference energies (eV, by element or as a list by atomic number), which become the atomic_energies; in place of --E0s."""
    scaling: Literal["rms_forces", "std", "none"] = "rms_forces"
    """Scale of the interaction energy: rms of the force components, spread of the energies per atom, or 1. Where one is numerical noise the other is taken, with a warning."""
    zero_shift: bool = False
    """Shift 0 in place of the mean energy per atom, as `mace_run_train --model MACE`."""
    valid_fraction: Fraction = 0.0
    """Leave out the structures that training with this --valid_fraction and --seed sets aside."""
    seed: NonNegativeInt = 123
    """Seed of that split."""

    def __post_init__(self) -> None:
        self._check_data()
        if self.linear_references is not None and self.E0s != "auto":
            raise InputError("--linear_references and --E0s both say what the atomic_energies are; leave one out")

    def _check_data(self) -> None:
        _check_data(self)


@dataclass(frozen=True, kw_only=True)
class MetadataInitOptions(MetadataOptions):
    """From a data file to a complete model.json: elements, heads, E0s, avg_num_neighbors, scale and shift.

    Without data: the network alone, for the elements of --elements or else of OC22, which `metadata.py fit` completes.
    """

    preset: Literal["tiny", "small", "medium", "large"] | None = None
    """Size: 16x0e within 4 Å for a first try, 128x0e, 128x0e+128x1o, 128x0e+128x1o+128x2e."""
    mace_config: Path | None = None
    """YAML of mace_run_train that describes the network."""
    r_max: Positive | None = None
    """Cutoff in Å; 5 unless given."""
    hidden_irreps: str | None = None
    """Channels and orders of the node features, for example 64x0e+64x1o."""
    max_ell: NonNegativeInt | None = None
    """Highest order of the spherical harmonics."""
    correlation: Count | None = None
    """Correlation order (body order less one) of every layer."""
    num_interactions: Count | None = None
    """Number of layers."""

    @property
    def has_data(self) -> bool:
        """Whether there is anything to measure."""
        return bool(self.files("train") or self.files("val") or self.sources)

    def _check_data(self) -> None:
        if self.has_data:
            super()._check_data()


@dataclass(frozen=True, kw_only=True)
class MetadataFitOptions(MetadataOptions):
    """Put E0s, avg_num_neighbors, scale and shift of the data into an existing model.json."""

    input_json: Path
    """The model.json; what it lacks of these is added, what it has is replaced."""


@dataclass(frozen=True, kw_only=True)
class CheckOptions(TrainDataOptions, CommonOptions):
    """Look for what is wrong with data before they are trained on; exit code 2 where there are errors."""

    input_json: Path | None = None
    """A model.json: elements and E0s are compared with its own."""
    output_json: Path | None = None
    """Write the findings as JSON."""
    overwrite: bool = False
    """Replace it where it is there already."""
    samples: Count = 100_000
    """Structures of each set to look at, drawn by --seed where there are more."""
    r_max: Positive | None = None
    """Cutoff in Å for neighbours; that of the model.json, else 5."""
    batch_size: Count | None = None
    """Structures of a batch, for the estimate of memory; 10 unless given."""
    seed: NonNegativeInt = 123
    """Seed of the sample."""

    def __post_init__(self) -> None:
        _check_data(self)


@dataclass(frozen=True, kw_only=True)
class PackOptions(LabelOptions, FilterOptions, CommonOptions):
    """Pack data into shards of compact arrays with checksums, split without leaks."""

    input: tuple[Path, ...]
    """What to pack: data of any format, known by ending or content: extended-XYZ files, LMDBs, directories or patterns of shards, packed data, HDF5 of mace_prepare_data, files of ASE, outputs of VASP, Quantum Espresso, CP2K, FHI-aims."""
    output_dir: Path
    """A new folder; with --split it gets one folder for each part. Repeated after a kill, the command goes on."""
    rows_per_shard: Count = 20000
    """Structures of one shard."""
    r_max: Positive | None = None
    """Store the neighbour lists within this cutoff (Å); models with it or a shorter one need not compute them."""
    split: tuple[str, ...] = ()
    """Shares, for example `train=0.8 valid=0.1 test=0.1`; the first is the pool."""
    id_key: str | None = None
    """Name of the records' identifier; equal ones stay together, and ID files speak of it."""
    group_key: str | None = None
    """Name of an entry (trajectory, system); records of one group stay in one part."""
    valid_ids: Path | None = None
    """File of the identifiers, one on each line, that are the fixed validation set."""
    test_ids: Path | None = None
    """The same for the final test set."""
    stages: tuple[Count, ...] = ()
    """Sizes of nested subsets of the pool; each becomes `stage_<size>.json` beside its manifest, which --lmdb_train takes."""
    drop_duplicates: bool = False
    """Leave out structures that repeat another; they are reported in any case."""
    allow_missing_labels: bool = False
    """Pack structures without energy or forces too."""
    seed: NonNegativeInt = 123
    """Seed of the split and of the pool's order."""

    def __post_init__(self) -> None:
        _check_names(self)
        if (self.valid_ids or self.test_ids) and self.id_key is None:
            raise InputError("ID files are given but not what they speak of; name the identifier with --id_key")


@dataclass(frozen=True, kw_only=True)
class ShowOptions(TrustOptions, CommonOptions):
    """Say what a weights file is."""

    input_model: Path
    """A `*_model.pt` or `*_checkpoint.pt` of ours, a `.model` of mace, safetensors, or (with a model.json) mace's training checkpoint."""
    input_json: Path | None = None
    """Its model.json, where the file holds none; otherwise the two must agree."""


@dataclass(frozen=True, kw_only=True)
class DescribeOptions(ShowOptions):
    """Say what a weights file is."""

    samples: bool = False
    """Of a checkpoint: list the records of LMDBs that its run trains and validates on, by shard, key and row."""


@dataclass(frozen=True, kw_only=True)
class VerifyOptions(ShowOptions):
    """Check a weights file against a model.json: hash, names, shapes, buffers, outputs."""

    def __post_init__(self) -> None:
        if self.input_json is None:
            raise InputError("--input_json is missing; see --help")


@dataclass(frozen=True, kw_only=True)
class DiffOptions(ShowOptions):
    """Compare two weights files: structure field by field, tensor by tensor."""

    other_model: Path
    """The other file."""
    other_json: Path | None = None
    """Its model.json, where it holds none."""


@dataclass(frozen=True, kw_only=True)
class ConvertOptions(ShowOptions):
    """Write weights in another form, checked against the source on structures before it is kept."""

    to: Literal["safetensors", "module", "lammps", "mliap"]
    """`safetensors` with model.json beside; `module` for mace's calculator; `lammps` TorchScript; `mliap`, pickled, for LAMMPS's ML-IAP."""
    output: Path
    """Where it goes."""
    head: str | None = None
    """Head of a model with several. LAMMPS's forms have one; with it `module` and `safetensors` become a model of this head alone."""
    dtype: Literal["float32", "float64"] | None = None
    """Precision of the result. Unless given the file's own, but float64 where the other program, which adds E0s in it, would be off by more than 0.1 meV per atom."""
    overwrite: bool = False
    """Replace a file there."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions(ShowOptions):
    """Write the model.json that lies inside a weights file."""

    output_json: Path
    """Where it goes."""
    elements: tuple[str, ...] = ()
    """Elements (symbols or atomic numbers) of a `.model` of 2022, which does not say them; its rows are taken to be in the order of atomic numbers, as mace had them."""
    overwrite: bool = False
    """Replace another file there."""


StateItem = Literal["moments", "schedule", "average", "position", "best_loss", "metrics_offset"]


@dataclass(frozen=True, kw_only=True)
class VerifyResumeOptions(TrainOptions):
    """Run some steps straight and once more with a kill -9 in the middle, resume, and compare to the last bit.

    Takes all settings of train_mace.py; --output_checkpoint is the folder that gets the two runs.
    """

    steps: Annotated[int, Parameter(converter=whole_number, validator=Number(gte=4, lt=2**53))] = 20
    """Optimizer steps of each of the two runs."""
    planted_fault: StateItem | None = None
    """Let the checkpoint forget this before the run is resumed: shows that the comparison would find it."""


FIXED_IN_A_RUN = {
    name: "cannot change in a resumed run; leave it out, or start a new run with train_mace.py"
    for name in set(TrainOptions.__dataclass_fields__) - set(ResumeOptions.__dataclass_fields__)
}


def _check_data(options: TrainDataOptions) -> None:
    of_flags = {
        name: tuple(path for role in GENERAL_FLAGS for path in getattr(options, f"{name}_{role}"))
        for name in FORMAT_FLAGS
    }
    _check_format(options.data_format, **of_flags)
    _check_names(options)
    train = options.files("train")
    if not train:
        flags = " or ".join(f"--{name}_train" for name in FORMAT_FLAGS)
        raise InputError(f"no training data: name them with {flags}, or with --train_file")
    if all(source.ratio is not None for source in train):
        raise InputError("every source has a ratio, and none is what they relate to; leave it out of one of them")


def _check_names(options: LabelOptions) -> None:
    for name in ("energy_key", "forces_key", "stress_key", "charge_key", "spin_key"):
        if getattr(options, name) == "":
            raise InputError(f"--{name} is empty; give the label's name, or leave the flag out")


def _check_format_name(name: str | None, where: str) -> None:
    """Raise InputError where a format is named that there is not."""
    if name is None:
        return
    from dataloader.formats import format_named  # which imports readers; --help does without them

    try:
        format_named(name)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _check_format(data_format: str | None, **paths: tuple[Path, ...]) -> None:
    _check_format_name(data_format, "--data_format")
    for name, given in paths.items():
        if given and data_format is not None and data_format != name:
            raise InputError(
                f"--data_format {data_format} but {given[0]} was given by a --{name}_… flag; drop one of the two"
            )


def rates_by_pattern(options: OptimizerOptions) -> dict[str, float]:
    """The rates of --lr_of.

    Raises:
        InputError: one is not PATTERN=RATE.
    """
    found = {}
    for text in options.lr_of:
        pattern, _, rate = text.partition("=")
        try:
            found[pattern] = float(rate)
        except ValueError:
            found[pattern] = 0.0
        if not pattern or not 0 < found[pattern] <= 1e30:
            raise InputError(f"--lr_of {text!r} is not PATTERN=RATE, for example readouts.*=0.001")
    return found


def _check_run(options: TrainingOptions) -> None:
    rates_by_pattern(options)
    if options.resume and options.overwrite:
        raise InputError(
            "--resume and --overwrite contradict each other: one keeps the run that is there, one removes it"
        )
    if options.start_stage_two is not None and not options.stage_two:
        raise InputError("--start_stage_two is given but --stage_two is not; add --stage_two or drop it")
    if options.energy_weight == options.forces_weight == options.stress_weight == 0 and not options.quantity_weights:
        raise InputError(
            "all loss weights are 0; give at least one of --energy_weight, --forces_weight, --stress_weight"
        )
