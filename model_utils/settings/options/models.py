"""Options of read_model.py: export, verify, show, diff, convert and best."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from model_utils.settings.declared import OF_THE_COMMAND, panel
from model_utils.settings.option_types import Count
from model_utils.settings.options.common import CommonOptions, TrustOptions
from model_utils.settings.table_names import NamesOf


@panel("The model", 5, nature=OF_THE_COMMAND)
@dataclass(frozen=True, kw_only=True)
class ShowOptions:
    """Say what a weights file is."""

    common: CommonOptions
    trust: TrustOptions
    input_model: Path
    """A `*_model.pt` or `*_checkpoint.pt` of ours, a `.model` of mace, safetensors, or (with a model.json) mace's training checkpoint."""
    input_json: Path | None = None
    """Its model.json, where the file holds none; otherwise the two must agree."""


@panel("What is done with it", 6, nature=OF_THE_COMMAND)
@dataclass(frozen=True, kw_only=True)
class DescribeOptions(ShowOptions):
    """Say what a weights file is."""

    samples: bool = False
    """Of a checkpoint: list the records of LMDBs that its run trains and validates on, by shard, key and row."""


@dataclass(frozen=True, kw_only=True)
class VerifyOptions(ShowOptions):
    """Check a weights file against a model.json: hash, names, shapes, buffers, outputs."""

    input_json: Path = field()
    """The model.json that the one of the weights must equal."""


@panel("What is done with it", 6, nature=OF_THE_COMMAND)
@dataclass(frozen=True, kw_only=True)
class DiffOptions(ShowOptions):
    """Compare two weights files: structure field by field, tensor by tensor; or, of two folders,
    their runs: settings, data, versions.
    """

    POSITIONAL = ("input_model", "other_model")  # may stand without their flags

    other_model: Path
    """The other file, or the folder of the other run."""
    other_json: Path | None = None
    """Its model.json, where it holds none."""


@panel("What is done with it", 6, nature=OF_THE_COMMAND)
@dataclass(frozen=True, kw_only=True)
class ConvertOptions(ShowOptions):
    """Write weights in another form, checked against the source on structures before it is kept."""

    to: Annotated[str, NamesOf("model_utils.tasks.conversion", "FORMS")]
    """`safetensors` with model.json beside; `module` for mace's calculator; `lammps` TorchScript; `mliap`, pickled, for LAMMPS's ML-IAP."""
    output: Path
    """Where it goes."""
    head: str | None = None
    """Head of a model with several. LAMMPS's forms have one; with it `module` and `safetensors` become a model of this head alone."""
    dtype: Literal["float32", "float64"] | None = None
    """Precision of the result. Unless given the file's own, but float64 where the other program, which adds E0s in it, would be off by more than 0.1 meV per atom."""
    overwrite: bool = False
    """Replace a file there; never one that a training writes."""


@panel("What is done with it", 6, nature=OF_THE_COMMAND)
@dataclass(frozen=True, kw_only=True)
class ExportOptions(ShowOptions):
    """Write the model.json that lies inside a weights file."""

    output_json: Path
    """Where it goes."""
    elements: tuple[str, ...] = ()
    """Elements (symbols or atomic numbers) of a `.model` of 2022, which does not say them; its rows are taken to be in the order of atomic numbers, as mace had them."""
    overwrite: bool = False
    """Replace another file there."""


@panel("Which model", 5, nature=OF_THE_COMMAND)
@dataclass(frozen=True, kw_only=True)
class BestOptions:
    """Choose among the models that a run kept, or average them, without training."""

    common: CommonOptions
    input_model: Path
    """The run: its directory or its `*_checkpoint.pt`. May be given as the first word, without the flag."""
    metric: str = "loss"
    """By what: `loss`, or an error by its name in metrics.jsonl, as `forces_rmse`; the lower, the better."""
    average: Count = 1
    """Average the weights of so many of the best; 1 takes the best alone."""
    output_model: Path | None = None
    """Where it goes; `<name>_by_<metric>_model.pt` beside the run's best model unless given."""
    overwrite: bool = False
    """Replace a file there; never one that a training writes."""
