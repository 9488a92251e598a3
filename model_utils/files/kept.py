"""The good models of a run that are kept for a later choice: a folder of weights
files, each with its errors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from model_utils.errors import InputError, VerificationError
from model_utils.files import checkpoint
from model_utils.files.checkpoint import WeightsFile

PATTERN = "step_*_model.pt"


def name_of(step: int) -> str:
    """The file of the model after so many optimizer steps."""
    return f"step_{step}_model.pt"


@dataclass(frozen=True, kw_only=True)
class KeptModel:
    """One of them.

    Attributes:
        path: its file.
        step: optimizer steps behind it.
        stage: of the run, from 1 on: losses of two stages cannot be compared.
        errors: of the validation data by metric; None where nothing was labelled.
        score: what the run's judge made of them, by the name of the metric that the run judges by.
    """

    path: Path
    step: int
    stage: int
    errors: Mapping[str, float | int | None]
    score: tuple[str, float]

    def by(self, metric: str) -> float | None:
        """The number by which this one is compared with others; None where there is none."""
        name, value = self.score
        return value if metric == name else self.errors.get(metric)


def of_file(file: WeightsFile, stage: int = 1) -> KeptModel:
    """What a weights file says of itself, one that was kept or a run's best.

    Args:
        file: that was read.
        stage: of a run's best model that does not say it, as older ones do not.

    Raises:
        VerificationError: it does not say which errors it has.
    """
    content = file.content
    errors = content.get("metrics")
    if not isinstance(errors, dict) or not all(
        value is None or isinstance(value, int | float) for value in errors.values()
    ):
        raise VerificationError(f"{file.path} is not as we write it: it does not say its errors")
    score = content.get("score")
    # of an older best model, which does not say
    judged = ("loss", float(errors.get("loss") or 0.0))
    if (
        isinstance(score, list)
        and len(score) == 2
        and isinstance(score[0], str)
        and isinstance(score[1], float)
    ):
        judged = (score[0], score[1])
    return KeptModel(
        path=file.path,
        step=content["step"],
        stage=content["stage"] if isinstance(content.get("stage"), int) else stage,
        errors=errors,
        score=judged,
    )


def models_in(folder: Path) -> list[KeptModel]:
    """All that are there, by their step; those that cannot be read are left out.

    A model is evicted while a training runs, so that a file may be gone when it is opened.
    """
    kept = []
    for path in folder.glob(PATTERN):
        try:
            kept.append(of_file(checkpoint.read(path)))
        except (InputError, VerificationError):
            continue
    return sorted(kept, key=lambda model: model.step)


def best_of(models: Sequence[KeptModel], metric: str, n: int) -> list[KeptModel]:
    """The best by a metric, at most so many, the best first; of equal ones the earlier.

    By the loss those of the last stage are better than all before, whose losses have other weights.
    """
    last = max((model.stage for model in models), default=1)

    def key(model: KeptModel) -> tuple[bool, float, int]:
        value = model.by(metric)
        assert value is not None
        return (metric == "loss" and model.stage != last, value, model.step)

    return sorted((model for model in models if model.by(metric) is not None), key=key)[:n]
