"""--keep_best: which of the models of a run stay beside the best one, for a
choice that is made later.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from model_utils.files.kept import KeptModel, best_of, models_in, name_of
from model_utils.files.outputs import Outputs
from model_utils.metrics import Metrics
from model_utils.model_loader import PairWriter
from model_utils.run.train_state import TrainState
from model_utils.runtime import log
from model_utils.settings.options import JudgingOptions


@dataclass(frozen=True)
class Kept:
    """How many models are kept by each of some metrics, and which metric the run judges by."""

    most: int
    metrics: tuple[str, ...]
    judged_by: str


class Keeper:
    """Keeps the best models by each of some metrics.

    What is there lies in the files themselves, so a checkpoint knows nothing of it. A model that is
    no longer among the best is removed after the next checkpoint: a run that is killed before goes
    on from where the model was still good.

    Args:
        folder: of the kept models.
        writer: of the run's files.
        asked: how many, by what.
        step: of the checkpoint that the run goes on from. Models beyond it are
            made again, or never were.
    """

    def __init__(self, folder: Path, writer: PairWriter, asked: Kept, step: int) -> None:
        self._folder = folder
        self._writer = writer
        self._asked = asked
        there = models_in(folder)
        self._models = [model for model in there if model.step <= step]
        self._leaving: set[Path] = {model.path for model in there if model.step > step}

    def judged(self, state: TrainState, errors: Metrics, score: float) -> None:
        """Keep the model of a validation where it is among the best."""
        progress = state.progress
        model = KeptModel(
            path=self._folder / name_of(progress.step),
            step=progress.step,
            stage=progress.stage,
            errors=errors.as_plain(),
            score=(self._asked.judged_by, score),
        )
        others = [other for other in self._models if other.step != model.step]
        best = self._best_of([*others, model])
        if model not in best:
            return
        try:
            self._write(model, state.judged, state.judged_kind, progress.epoch)
        except OSError as error:
            log.warning("warning: the model of step %d is not kept: %s", model.step, error)
            return
        self._leaving |= {other.path for other in others if other not in best}
        self._leaving.discard(model.path)
        self._models = best

    def checkpoint_written(self) -> None:
        """Remove the models that are not among the best any more."""
        for path in self._leaving:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                log.warning(
                    "warning: %s is not among the best any more, and cannot be removed: %s",
                    path,
                    error,
                )
        self._leaving = set()

    def _best_of(self, models: Sequence[KeptModel]) -> list[KeptModel]:
        asked = self._asked
        chosen = {
            model.step: model
            for metric in asked.metrics
            for model in best_of(models, metric, asked.most)
        }
        return [chosen[step] for step in sorted(chosen)]

    def _write(
        self, model: KeptModel, parameters: Mapping[str, Tensor], weights: str, epoch: int
    ) -> None:
        self._folder.mkdir(exist_ok=True)
        self._writer.save_kept(
            model.path,
            parameters,
            weights=weights,
            epoch=epoch,
            step=model.step,
            stage=model.stage,
            metrics=dict(model.errors),
            score=list(model.score),
        )


def keeper(
    options: JudgingOptions, outputs: Outputs, writer: PairWriter, step: int
) -> Keeper | None:
    """What keeps the models that --keep_best asks for; None where it does not.

    Args:
        options: of the run.
        outputs: its place.
        writer: of its files.
        step: of the checkpoint that the run goes on from; 0 of a new run.
    """
    if options.keep_best is None:
        return None
    metrics = options.keep_best_by or (options.best_metric,)
    return Keeper(
        outputs.kept, writer, Kept(options.keep_best, tuple(metrics), options.best_metric), step
    )
