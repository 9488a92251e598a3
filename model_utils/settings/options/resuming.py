"""Options of resume.py: of a training those that may change, and what is done to the
state that is taken over.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dataloader.errors import InputError
from model_utils.settings.declared import OF_THE_COMMAND, changeable, names_of, panel
from model_utils.settings.option_types import Rate
from model_utils.settings.options.common import CommonOptions
from model_utils.settings.options.training import TrainingOptions, TrainOptions

if TYPE_CHECKING:

    class ChangeableOptions:
        """The options of a training that may change, each None or empty unless it is given."""

else:
    ChangeableOptions = changeable(TrainingOptions, "ChangeableOptions")


@panel("What changes", 20, nature=OF_THE_COMMAND)
@dataclass(frozen=True, kw_only=True)
class ResumeOptions:
    """Continue a run from its checkpoint.

    Only what is named here may change; everything else stays as the run has it.
    """

    common: CommonOptions
    changed: ChangeableOptions
    input_model: Path
    """The run's directory, or its `*_checkpoint.pt`: the newest generation that is not damaged is taken."""
    lr: Rate | None = None
    """Rate of the next step; later ones follow the schedule from there, and cosine and onecycle come down to --min_lr at the --scheduler_length of the run where it has one, else where the run now ends. A warm-up ends. The optimizer's moments are kept."""
    resume_new_lr: bool = False
    """Accepted with --lr, which does it alone."""
    reset_scheduler: bool = False
    """Begin the schedule anew, with its warm-up, from the rate of --lr where that is given; cosine and onecycle then have the --scheduler_length of the run, else they end where it now ends."""
    resume_reset_scheduler: bool = False
    """Another name of --reset_scheduler."""
    resume_best: bool = False
    """Go on from the best weights instead of the last ones, with fresh moments."""
    ema: bool | None = None
    """Begin (`--ema`, from the weights of now) or end (`--no_ema`) the moving average."""

    def __post_init__(self) -> None:
        if self.resume_new_lr and self.lr is None:
            raise InputError("--resume_new_lr needs the new rate: add --lr")


FIXED_IN_A_RUN = {
    name: "cannot change in a resumed run; leave it out, or start a new run with train_mace.py"
    for name in names_of(TrainOptions)
    if name not in names_of(ResumeOptions)
}
