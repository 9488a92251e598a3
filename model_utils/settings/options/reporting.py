"""Options of plot_loss.py, and of the report of evaluate.py."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dataloader.errors import InputError
from model_utils.settings.declared import OF_THE_COMMAND, panel
from model_utils.settings.option_types import Count, NonNegativeInt
from model_utils.settings.options.common import CommonOptions


@panel("Report and comparison", 8, nature=OF_THE_COMMAND)
@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """What is written for people to look at."""

    report: Path | None = None
    """Write a page (HTML) that opens without a network: parity and residuals, errors by element, config_type, head, size and force, the worst structures in 3D, the run's learning curves, intervals. Needs `pip install -e '.[report]'`. The intervals go into --output_json too."""
    compare_with: Path | None = None
    """Another model, the baseline: both are judged on the same structures, and `baseline`, `finetuned` (--input_model), `delta`, intervals of the deltas and p-values of a paired test go into --output_json and the page."""
    compare_head: str | None = None
    """Head of the baseline that judges all structures; --head unless given."""
    worst: NonNegativeInt = 12
    """Structures with the largest errors that the page shows in 3D."""
    draws: Count = 2000
    """Sets of structures drawn for an interval (bootstrap), and exchanges of results for a p-value."""
    draws_seed: NonNegativeInt = 0
    """Seed of the draws; the same gives the same intervals."""

    def __post_init__(self) -> None:
        if self.compare_head is not None and self.compare_with is None:
            raise InputError(
                "--compare_head is given without --compare_with, whose head it names; leave it out"
            )


@panel("Curves", 5, nature=OF_THE_COMMAND)
@dataclass(frozen=True, kw_only=True)
class PlotLossOptions:
    """Draw the learning curves of one or several runs, also while they run."""

    common: CommonOptions
    run_dir: tuple[Path, ...]
    """Folders of runs, folders of several runs, or files `metrics.jsonl`."""
    metric: tuple[str, ...] = ("loss",)
    """What is drawn, a panel for each: `loss`, `lr`, or an error by its name in metrics.jsonl, as `forces_rmse`."""
    by: Literal["epoch", "step"] = "epoch"
    """What the curves are drawn over."""
    smooth: Count = 1
    """Average training over so many records (centred; at most a fifth of a stage, and not over the beginning of stage two). Validation is drawn as it is."""
    title: str | None = None
    """Title of the figure; of one run its name unless given."""
    out_png: Path | None = None
    """The figure; `artifacts/loss_curve.png` in the folder of a run, `loss_curve.png` here for several, unless given. A file of that name is replaced."""
    out_svg: Path | None = None
    """The figure as SVG; beside the PNG unless given."""
    out_csv: Path | None = None
    """Every point as a row (run, stage, kind, epoch, step, metric, value, smoothed, best); `loss_long.csv` beside the PNG, or the name of `--out_png` with `.csv`, unless given."""
