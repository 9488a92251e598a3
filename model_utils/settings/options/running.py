"""Options of a run as a whole: a folder for each, how it is continued from its own command,
a network in the YAML.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from model_utils.settings.declared import FIXED, MAY_CHANGE, OF_THE_COMMAND, ONLY_IN_YAML, panel
from model_utils.settings.option_types import Positive
from model_utils.settings.options.common import CommonOptions


@panel("A folder for each run, and how it goes on", 42)
@dataclass(frozen=True, kw_only=True)
class RunningOptions:
    """A folder for each run, and how it goes on."""

    run_dir: Annotated[Path | None, OF_THE_COMMAND] = None
    """Folder of an experiment, in place of --output_checkpoint: each run gets a folder of its own in it, with `run.json` (what was asked, versions, machine, data, every start), and `latest` leads to the newest. With --resume the newest unfinished run of equal settings goes on, and where all are finished nothing is left to do; a task of a job array has its own."""
    resume_best: Annotated[bool, OF_THE_COMMAND] = False
    """With --resume: go on from the best weights instead of the last ones, with fresh moments, and with the rate of --lr."""
    resume_new_lr: Annotated[bool, OF_THE_COMMAND] = False
    """With --resume: --lr is the rate of the next step, and the schedule goes on from it. Without this flag or one of its neighbours another --lr is another run."""
    reset_scheduler: Annotated[bool, OF_THE_COMMAND] = False
    """With --resume: begin the schedule anew, from the rate of --lr."""
    resume_reset_scheduler: Annotated[bool, OF_THE_COMMAND] = False
    """Another name of --reset_scheduler."""
    scheduler_length: Annotated[Positive | None, FIXED] = None
    """Epochs or steps (--scheduler_unit) until cosine and onecycle have come down to --min_lr, where they stay; the length of the run unless given."""
    stage_two_follows_schedule: Annotated[bool, FIXED] = False
    """Stage two goes on with the rate of the schedule; --stage_two_lr is not looked at."""
    output_safetensors: Annotated[Path | None, MAY_CHANGE] = None
    """At the end also write the best weights as safetensors, with their model.json beside; compared with the model before it gets its name. A file of another run is not replaced, and with --run_dir the file lies in the folder of the run."""

    @property
    def changes_the_run(self) -> bool:
        """Whether the run that goes on is to do otherwise than the unbroken one."""
        return (
            self.resume_best
            or self.resume_new_lr
            or self.reset_scheduler
            or self.resume_reset_scheduler
        )


@panel("The network", 5)
@dataclass(frozen=True, kw_only=True)
class InlineModelOptions:
    """A network that is described in the file of settings."""

    network: Annotated[str | None, FIXED, ONLY_IN_YAML] = None
    """Fields of model.json as JSON text: what a section `model` of the YAML is turned into. What data say (elements, E0s, avg_num_neighbors, scale, shift) is measured where it is absent, as `metadata.py init` does."""
    info_file: Annotated[Path | None, MAY_CHANGE] = None
    """Where what was measured for a section `model` of the YAML is kept, and found again by later runs on the same data; `dataset_info.json` beside the checkpoint, or in the folder of --run_dir, unless given."""


@panel("The run", 5, nature=OF_THE_COMMAND)
@dataclass(frozen=True, kw_only=True)
class ReproduceOptions:
    """Print the command that repeats a run."""

    POSITIONAL = ("input_model",)  # may stand without its flag

    common: CommonOptions
    input_model: Path
    """Folder of the run, or its `*_checkpoint.pt`; may be written without the flag."""
    output_checkpoint: Path | None = None
    """Place of the repetition in the command that is printed; `repeated` unless given."""
