"""Options of watch.py."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from model_utils.settings.declared import OF_THE_COMMAND, panel
from model_utils.settings.option_types import Count, Positive
from model_utils.settings.options.common import CommonOptions


@panel("What is watched", 5, nature=OF_THE_COMMAND)
@dataclass(frozen=True, kw_only=True)
class WatchOptions:
    """Watch runs in the terminal by what they write: progress, errors,
    rates, time left, warnings.
    """

    POSITIONAL_LIST: ClassVar[str] = "runs"

    common: CommonOptions
    runs: tuple[Path, ...]
    """Runs, which may stand without the flag: the folder of a run, the folder of an experiment (--run_dir; its latest run is shown), or a metrics.jsonl."""
    once: bool = False
    """Print one view and end; what is done where the output is no terminal. Otherwise the view goes on until all runs are finished, or Ctrl-C."""
    every: Positive = 2.0
    """Seconds between two looks at the files."""
    no_improvement: Count = 20
    """Warn where so many epochs have brought no better model."""
    silent_minutes: Positive = 10.0
    """Warn where a run that is not finished has written nothing for so long, and for five times as long as its records usually take: it waits for data, is stuck, or was killed."""
