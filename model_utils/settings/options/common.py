"""Options of every command, and groups that many commands have."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from model_utils.settings.declared import FIXED, MAY_CHANGE, OF_THE_COMMAND, panel
from model_utils.settings.option_types import Threads


@panel("This command", 100)
@dataclass(frozen=True, kw_only=True)
class CommonOptions:
    """What every command takes."""

    config: Annotated[Path | None, OF_THE_COMMAND] = None
    """YAML file of settings: a key is a flag without its dashes. Flags win over it, in any order; relative paths in it are relative to the file."""
    plugin: Annotated[tuple[Path, ...], OF_THE_COMMAND] = ()
    """Python files of yours that are imported before anything else and add to the tables: a loss shape, a loss, a schedule, an optimizer, a logger, a format, a quantity, an architecture (`configs/plugins/` has an example). Their sha256 is kept in checkpoints, and whoever goes on with one names them again; who only uses the model, where the network or its quantities are theirs."""
    debug: Annotated[bool, OF_THE_COMMAND] = False
    """Show the traceback behind a one-line error."""


@panel("Device and precision", 60)
@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    """Where and in which precision to compute."""

    device: Annotated[str, MAY_CHANGE] = "auto"
    """`cpu`, `cuda`, `cuda:N`, or `auto`: CUDA where there is one."""
    dtype: Annotated[Literal["float32", "float64"] | None, FIXED] = None
    """Working precision. Training from a model.json: float32 unless given; otherwise that of the weights file. Energies and sums of E0 are always formed in float64."""
    threads: Annotated[Threads | None, MAY_CHANGE] = None
    """CPU threads of one process; torch's choice unless given. Recorded, since another number may change the last bits."""


@panel("Trust", 90)
@dataclass(frozen=True, kw_only=True)
class TrustOptions:
    """Whether code in a file may run."""

    trust_pickle: Annotated[bool, OF_THE_COMMAND] = False
    """Where the model cannot be read as data, for its classes are not mace's or its form is torch's old one: execute the code in the file, with your rights, in a process of its own. For files of people you trust; the sha256 is printed."""
