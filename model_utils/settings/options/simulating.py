"""Options of relax.py and md.py."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from dataloader.errors import InputError
from model_utils.settings.declared import OF_THE_COMMAND, panel
from model_utils.settings.option_types import Count, NonNegative, NonNegativeInt, Positive
from model_utils.settings.options.common import CommonOptions, DeviceOptions
from model_utils.settings.options.data import NAMES_OF_FORMATS
from model_utils.settings.table_names import FORMS_OF_STEP, NamesOf

NAMES_OF_ENSEMBLES = NamesOf(
    "model_utils.simulation.ensembles", "ENSEMBLES", words=(("nvt", "langevin, or nose_hoover"),)
)
NAMES_OF_MINIMIZERS = NamesOf("model_utils.simulation.relaxation", "MINIMIZERS")


@panel("Model and structures", 5, nature=OF_THE_COMMAND)
@dataclass(frozen=True, kw_only=True)
class SimulatedOptions:
    """Which model computes which structures."""

    input_model: tuple[Path, ...]
    """A `*_model.pt`, a `*_checkpoint.pt`, a `.model` of mace, or safetensors; several are a committee, whose mean counts."""
    data: tuple[Path, ...]
    """Structures of any format, known by ending or content: extended XYZ, cif, POSCAR, LMDBs, files of ASE; files, folders of them, patterns with * ? [ ]. Labels in them are not read; atoms that they hold fixed stay where they are."""
    data_format: Annotated[str | None, NAMES_OF_FORMATS] = None
    """Format of the data, where ending and content do not say it."""
    charge_key: str | None = None
    """Entry of the charge of a structure, for models that take it; `none`: charges are passed over, and charged structures taken for neutral ones."""
    spin_key: str | None = None
    """Entry of the multiplicity 2S + 1, likewise."""
    drop_charged: bool = False
    """Leave out structures with a charge or spin for which the model has no input; unless given, they are an error."""
    head: str | None = None
    """Head of the model, where it has several."""
    step: Annotated[str, FORMS_OF_STEP] = "fast"
    """Form of the network's arithmetic, as in training."""


@panel("Relaxation", 6, nature=OF_THE_COMMAND)
@dataclass(frozen=True, kw_only=True)
class MinimizingOptions:
    """How structures are brought to a minimum, and when they are there."""

    fmax: Positive = 0.05
    """Converged where no force is larger (eV/Å); where cells are relaxed the same holds for the virial per atom that ASE makes of the stress."""
    max_steps: Count = 500
    """Steps after which a structure is given up as not converged."""
    minimizer: Annotated[str, NAMES_OF_MINIMIZERS] = "lbfgs"
    """How the minimum is sought."""
    max_shift: Positive = 0.2
    """Longest way of an atom in one step (Å)."""
    processes: Count | None = None
    """Structures that are relaxed at once, each in a process with one thread; one for each core unless given, and one on a GPU."""
    skin: NonNegative = 0.5
    """How far neighbour lists reach beyond the cutoff (Å); no result depends on it."""


@panel("Relaxation", 6, nature=OF_THE_COMMAND)
@dataclass(frozen=True, kw_only=True)
class RelaxOptions:
    """Relax structures with a trained model, many at once."""

    common: CommonOptions
    device: DeviceOptions
    simulated: SimulatedOptions
    output_dir: Path
    """A folder for `relaxed.xyz`, `relaxed.csv`, `relaxed.json` and the trajectories. Repeated after a kill, the command does what is missing."""
    minimizing: MinimizingOptions
    relax_cell: bool = False
    """Relax cells too, of structures that are periodic in three directions."""
    pressure: Annotated[float, OF_THE_COMMAND] = 0.0
    """Pressure that cells are relaxed against (GPa)."""
    trajectories: bool = True
    """Keep the way of each structure, as an ASE trajectory."""
    overwrite: bool = False
    """Begin anew in a folder that holds another relaxation."""

    def __post_init__(self) -> None:
        if self.pressure and not self.relax_cell:
            raise InputError(
                "--pressure is given but cells are held; give --relax_cell too, or leave it out"
            )


@panel("Dynamics", 6, nature=OF_THE_COMMAND)
@dataclass(frozen=True, kw_only=True)
class MdOptions:
    """Molecular dynamics with a trained model."""

    common: CommonOptions
    device: DeviceOptions
    simulated: SimulatedOptions
    output_dir: Path
    """A folder for `trajectory.xyz`, `md.csv`, `state.json` and `md.json`. Repeated after a kill, or with more steps, the command goes on from the state, bit for bit."""
    n_steps: Count
    """Steps in all, those of earlier calls included."""
    index: NonNegativeInt | None = None
    """Which structure of the data moves, from 0 on; needed where there are several."""
    repeat: tuple[Count, ...] = ()
    """Repeat the cell so often along its three vectors."""
    ensemble: Annotated[str, NAMES_OF_ENSEMBLES] = "nve"
    """What is kept: the energy, the temperature (Langevin or a chain of Nosé–Hoover thermostats), or temperature and pressure (Martyna–Tobias–Klein, isotropic)."""
    temperature: Positive = 300.0
    """Temperature of the velocities at the beginning and of the thermostat (K)."""
    velocities: Literal["drawn", "data"] = "drawn"
    """Velocities at the beginning: drawn for the temperature, or those of the data (`momenta` in ASE's units, as `trajectory.xyz` and ASE's files have them), of which the motion of the whole is taken away where the ensemble has none."""
    timestep: Positive = 1.0
    """Timestep (fs); 0.5 or less where there is hydrogen."""
    friction: Positive = 10.0
    """Friction of Langevin's thermostat (1/ps)."""
    thermostat_time: Positive = 100.0
    """Time in which a Nosé–Hoover chain follows (fs)."""
    pressure: float = 0.0
    """Pressure of npt (GPa)."""
    barostat_time: Positive = 1000.0
    """Time in which the cell follows the pressure (fs)."""
    seed: NonNegativeInt = 123
    """Seed of the velocities and of Langevin's forces."""
    write_every: Count = 10
    """Steps between two rows of `md.csv` and frames of `trajectory.xyz`."""
    checkpoint_every: Count = 200
    """Steps between two states on the disk; a kill costs no more."""
    skin: NonNegative = 0.5
    """How far neighbour lists reach beyond the cutoff (Å); no result depends on it."""
    overwrite: bool = False
    """Begin anew in a folder that holds another run."""
