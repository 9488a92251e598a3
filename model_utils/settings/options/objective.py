"""Options of how validations are judged, and which models are kept for a later choice."""

from dataclasses import dataclass
from typing import Annotated, Literal

from dataloader.errors import InputError
from model_utils.settings.declared import FIXED, MAY_CHANGE, InResume, panel
from model_utils.settings.option_types import Count


@panel("The best model", 36)
@dataclass(frozen=True, kw_only=True)
class JudgingOptions:
    """What makes a model the best, and how many good ones are kept."""

    best_metric: Annotated[str, FIXED] = "loss"
    """By what the best model is chosen, and patience and plateau look at: `loss`, or an error by its name in metrics.jsonl, as `forces_rmse`, `energy_mae_per_atom`."""
    best_over: Annotated[Literal["structures", "heads"], FIXED] = "structures"
    """Of what it is taken: all validation structures together, or the mean over heads, in which a head of few structures counts as much as any other."""
    keep_best: Annotated[Count | None, MAY_CHANGE, InResume("As in training.")] = None
    """Keep so many of the best models, each as `<name>_kept/step_<step>_model.pt`: `read_model.py best` chooses among them later, by another metric too, or averages them."""
    keep_best_by: Annotated[tuple[str, ...], MAY_CHANGE, InResume("As in training.")] = ()
    """Metrics by each of which --keep_best keeps so many; --best_metric unless given."""

    def __post_init__(self) -> None:
        if self.keep_best_by and self.keep_best is None:
            raise InputError(
                "--keep_best_by is given but not how many models to keep; add "
                "--keep_best, or drop it"
            )
