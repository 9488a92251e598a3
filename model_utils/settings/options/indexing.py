"""Options of dataloader/index.py."""

from dataclasses import dataclass
from pathlib import Path

from model_utils.settings.declared import OF_THE_COMMAND, panel
from model_utils.settings.option_types import Positive, ShareText
from model_utils.settings.options.common import CommonOptions
from model_utils.settings.options.data import DataOptions


@panel("What is indexed", 5, nature=OF_THE_COMMAND)
@dataclass(frozen=True, kw_only=True)
class IndexOptions:
    """Index LMDBs before anybody trains on them; what a training would do at its start, by as many
    processes as you like.
    """

    common: CommonOptions
    data: DataOptions
    input_json: Path | None = None
    """The model.json of the training to come: its inputs are looked for in the records, and neighbours within its cutoff are counted."""
    r_max: Positive | None = None
    """Count neighbours within this cutoff (Å) too, and keep the counts; that of the model.json where one is given."""
    share: ShareText | None = None
    """Index one of several equal shares of the shards, counted from 0: `3/64`, or `$SLURM_ARRAY_TASK_ID/64` in a job array. Shares know nothing of one another, and may run at any time, in any order."""
