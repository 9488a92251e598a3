"""Options of metadata.py: init, fit and check."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from dataloader.errors import InputError
from model_utils.settings.declared import FIXED, OF_THE_COMMAND, panel
from model_utils.settings.option_types import Count, Fraction, NonNegativeInt, Positive
from model_utils.settings.options.common import CommonOptions
from model_utils.settings.options.data import DataOptions

USUAL_E0S = "auto"
USUAL_SCALING = "rms_forces"


@dataclass(frozen=True, kw_only=True)
class MeasuredDataOptions(DataOptions):
    """Data of which all are measured unless told otherwise."""

    valid_fraction: Annotated[Fraction, FIXED] = 0.0
    """Leave out the structures that training with this --valid_fraction and --seed sets aside."""


@panel("What is measured, and where it goes", 5, nature=OF_THE_COMMAND)
@dataclass(frozen=True, kw_only=True)
class MetadataOptions:
    """What every command that measures data takes."""

    common: CommonOptions
    data: MeasuredDataOptions
    output_json: Path
    """Where the complete model.json goes."""
    overwrite: bool = False
    """Replace it where it is there already."""
    E0s: str | None = None
    """Reference energies: `isolated` (IsolatedAtom frames), `lstsq` (least squares), `average` (the same where compositions do not determine all), `auto` (the first of these that works; unless given), an xyz file of isolated atoms, or JSON by element, by head and element where there are several heads."""
    linear_references: Path | None = None
    """JSON of linear reference energies (eV, by element or as a list by atomic number), which become the atomic_energies; in place of --E0s."""
    scaling: Literal["rms_forces", "std", "none"] | None = None
    """Scale of the interaction energy: rms of the force components (unless given), spread of the energies per atom, or 1. Where one is numerical noise the other is taken, with a warning."""
    zero_shift: bool = False
    """Shift 0 in place of the mean energy per atom, as `mace_run_train --model MACE`."""
    seed: NonNegativeInt = 123
    """Seed of that split."""

    def __post_init__(self) -> None:
        self._check_data()
        if self.linear_references is not None and self.E0s not in (None, USUAL_E0S):
            raise InputError(
                "--linear_references and --E0s both say what the atomic_energies are; leave one out"
            )

    def _check_data(self) -> None:
        self.data.check()


@panel("The network", 6, nature=OF_THE_COMMAND)
@dataclass(frozen=True, kw_only=True)
class MetadataInitOptions(MetadataOptions):
    """From a data file to a complete model.json: elements, heads, E0s,
    avg_num_neighbors, scale and shift.

    Without data: the network alone, for the elements of --elements or else of OC22, which
    `metadata.py fit` completes.
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
        return bool(self.data.files("train") or self.data.files("val") or self.data.sources)

    def _check_data(self) -> None:
        if self.has_data:
            super()._check_data()
            return
        given = {
            "E0s": self.E0s is not None,
            "linear_references": self.linear_references is not None,
            "scaling": self.scaling is not None,
            "zero_shift": self.zero_shift,
        }
        for name, is_given in given.items():
            if is_given:
                raise InputError(
                    f"--{name} says how data are measured, and none are named: name them with "
                    "--train_file, or leave it out and give it to `metadata.py fit`"
                )


@dataclass(frozen=True, kw_only=True)
class MetadataFitOptions(MetadataOptions):
    """Put E0s, avg_num_neighbors, scale and shift of the data into an existing model.json."""

    input_json: Path
    """The model.json; what it lacks of these is added, what it has is replaced."""


@panel("What is looked at, and where it goes", 5, nature=OF_THE_COMMAND)
@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """Look for what is wrong with data before they are trained on; exit code 2
    where there are errors.
    """

    common: CommonOptions
    data: DataOptions
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
        self.data.check()
